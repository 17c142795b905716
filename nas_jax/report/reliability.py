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


class Agreement(NamedTuple):
  """How well a cheap score ranks architectures that an expensive one ranks for certain."""

  failed: int  # architectures that the cheap one fails and the expensive one does not
  everywhere: float  # Spearman's rank correlation over all that do not fail the expensive one
  quarter: float  # the same within the quarter that the expensive one ranks best
  regret: float  # how much worse, relatively, its choice is than the best by the expensive one; infinite if that fails
  regret5: float  # the same if the expensive one chooses among its best five


def agreement(sure: np.ndarray, cheap: np.ndarray) -> Agreement:
  """Compares two scores [n] of the same architectures, lower is better and infinite is failed."""
  sound = np.isfinite(sure)
  if sound.sum() < 2:
    return Agreement(0, *[float('nan')] * 4)
  order, best = np.argsort(cheap, kind='stable'), sure.min()
  ranks, sound_sure = stats.rankdata(cheap[sound]), sure[sound]
  quarter = np.argsort(sound_sure)[: -(-len(sound_sure) // 4)]
  return Agreement(
    int((~np.isfinite(cheap[sound])).sum()),
    spearman(ranks, sound_sure),
    spearman(ranks[quarter], sound_sure[quarter]) if len(quarter) > 2 else float('nan'),
    float(sure[order[0]] / best - 1),
    float(sure[order[:5]].min() / best - 1),
  )


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
