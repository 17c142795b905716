"""From what a child scored to the reward of the architecture."""

from collections.abc import Callable

import numpy as np

Reward = Callable[[dict[str, np.ndarray]], np.ndarray]  # the metrics of m children, [m] each -> rewards [m]


def of_perplexity(perplexity: np.ndarray, c: float = 80.0, limit: float = 0.0, power: float = 2.0) -> np.ndarray:
  """c / perplexity^2, Zoph & Le (2017) Sec. 4.2 ("c is a constant, usually set at 80"), at most `limit` if not 0.

  `power` is 1 in Pham et al. (2018).
  """
  reward = c / perplexity**power
  return reward.clip(max=limit) if limit else reward


def of_accuracy(accuracy: np.ndarray, power: float = 3.0) -> np.ndarray:
  """Validation accuracy from 0 to 1, cubed: Zoph & Le (2017) Sec. 4.1."""
  return accuracy**power


def perplexity_formula(c: float = 80.0, limit: float = 0.0, power: float = 2.0) -> str:
  """Returns `of_perplexity` in words."""
  return f'{c:g} / perplexity' + (f'^{power:g}' if power != 1 else '') + (f', at most {limit:g}' if limit else '')


def accuracy_formula(power: float = 3.0) -> str:
  """Returns `of_accuracy` in words."""
  return 'accuracy' + (f'^{power:g}' if power != 1 else '')
