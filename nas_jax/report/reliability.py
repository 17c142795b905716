"""Is the reward a signal? Rank correlations to look at before any search is compared with another."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from nas_jax.controller import uniform_controller
from nas_jax.space import Space
from nas_jax.types import Batch, Key, Outcome


class Reliability(NamedTuple):
  """Spearman rank correlations of rewards over the same random children."""

  seeds: float  # two trainings from different initial weights; aim at 0.7 or more
  budget: float  # the search's training against a longer one; aim at 0.5 or more; NaN if not measured
  children: int  # how many the first is over


def measure(
  space: Space,
  evaluate: Callable[[Batch], Outcome],
  key: Key,
  children: int,
  m: int,
  longer: Callable[[Batch], Outcome] | None = None,
  longer_children: int = 0,
) -> Reliability:
  """Trains `children` uniform samples twice with `evaluate`, and the first `longer_children` of them with `longer`.

  All go in batches of m, so that a search compiled for m needs no other program.
  """
  tokens = jax.vmap(lambda k: uniform_controller(space).sample((), k))(
    jax.random.split(jax.random.fold_in(key, 0), children)
  )

  def rewards(evaluate, seed, count):
    keys = jax.random.split(jax.random.fold_in(key, seed), children)
    found = []
    for start in range(0, count, m):
      part = jnp.arange(start, start + m) % children  # the last batch is filled up from the front
      batch = Batch(part.astype(jnp.int32), keys[part], tokens[part], space.decode_batch(tokens[part]))
      found.append(np.asarray(evaluate(batch).reward))
    return np.concatenate(found)[:count]

  first, second = rewards(evaluate, 1, children), rewards(evaluate, 2, children)
  budget = float('nan')
  if longer is not None and longer_children > 2:
    budget = spearman(first[:longer_children], rewards(longer, 3, longer_children))
  return Reliability(spearman(first, second), budget, children)


def kendall(a: np.ndarray, b: np.ndarray) -> float:
  """Kendall's tau-b: the share of pairs in the same order less that of the others; NaN if either is constant."""
  if np.ptp(a) == 0 or np.ptp(b) == 0:
    return float('nan')
  return float(stats.kendalltau(a, b).statistic)


def spearman(a: np.ndarray, b: np.ndarray) -> float:
  """Rank correlation, ties at their mean rank; NaN if either is constant."""
  if np.ptp(a) == 0 or np.ptp(b) == 0:
    return float('nan')
  return float(stats.spearmanr(a, b).statistic)
