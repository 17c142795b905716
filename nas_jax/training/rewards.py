"""Rewards of architectures, computed from the scores of their children."""

from collections.abc import Callable

import jax
import numpy as np

from nas_jax.training import metrics
from nas_jax.words import counted

# (the metrics of m children, [m] each) -> their rewards [m], greater for better children. The metrics are the scores of
# the system, such as 'accuracy', and for children that were trained by themselves also 'loss' and 'failed'. The metrics
# of a child that failed may be NaN; its reward is not used. With shared weights the arrays are JAX arrays, and may be
# traced.
Reward = Callable[[dict[str, np.ndarray]], np.ndarray]


def checked(reward: Reward, metrics: dict[str, np.ndarray]) -> np.ndarray:
  """Returns the rewards [m] of m children by a reward function of the user, which are checked first.

  Raises:
    ValueError: the rewards are not m numbers, or the reward of a child that has not failed is not finite. The latter
      is not checked for traced rewards.
  """
  found, m = reward(metrics), len(next(iter(metrics.values())))
  if np.shape(found) != (m,):
    raise ValueError(
      f'the reward of {counted(m, "child", "children")} is of shape {np.shape(found)}: want ({m},), a number for each.'
    )
  if not isinstance(found, jax.core.Tracer):
    wrong = ~np.isfinite(np.asarray(found)) & (np.asarray(metrics.get('failed', np.zeros(m))) == 0)
    if wrong.any():
      k = int(wrong.argmax())
      scored = ', '.join(f'{name} {value[k]}' for name, value in metrics.items())
      raise ValueError(f'the reward of a child is {found[k]}: want a finite number; its metrics are {scored}.')
  return found


def of_perplexity(perplexity: np.ndarray, c: float = 80.0, limit: float = 0.0, power: float = 2.0) -> np.ndarray:
  """Returns c / perplexity^power, Zoph & Le (2017) Sec. 4.2 ("c is a constant, usually set at 80").

  If `limit` is not 0, it is the greatest reward. `power` is 2 in Zoph & Le and 1 in Pham et al. (2018).
  """
  reward = c / perplexity**power
  return reward.clip(max=limit) if limit else reward


def of_accuracy(accuracy: np.ndarray, power: float = 3.0) -> np.ndarray:
  """Returns accuracy^power; another score from 0 to 1 may take its place. Zoph & Le (2017) Sec. 4.1 cube it."""
  return accuracy**power


def of_r2(r2: np.ndarray, power: float = 3.0) -> np.ndarray:
  """Returns (1 / (2 - R2))^power: 1 for a network without error, (1/2)^power for one that predicts the mean.

  As 2 - R2 = 1 + (mean squared error) / (variance), a better network earns more, however bad both are.
  """
  return (1.0 / (2.0 - r2)) ** power


def perplexity_formula(c: float = 80.0, limit: float = 0.0, power: float = 2.0) -> str:
  """Returns the formula of `of_perplexity` as text."""
  return f'{c:g} / perplexity' + (f'^{power:g}' if power != 1 else '') + (f', at most {limit:g}' if limit else '')


def accuracy_formula(power: float = 3.0, metric: str = 'accuracy') -> str:
  """Returns the formula of `of_accuracy` or `of_r2` as text; `metric` is the score, one of `metrics.NAMES`."""
  score = '(1 / (2 - R2))' if metric == 'r2' else metrics.NAMES[metric][0]
  return score + (f'^{power:g}' if power != 1 else '')
