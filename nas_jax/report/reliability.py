"""Is the reward a signal? Rank correlations, to be looked at before searches are compared."""

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
  children: int  # number of children of `seeds`


def measure(
  space: Space,
  evaluate: Callable[[Batch], Outcome],
  key: Key,
  children: int,
  m: int,
  longer: Callable[[Batch], Outcome] | None = None,
  longer_children: int = 0,
) -> Reliability:
  """Trains `children` random architectures twice with `evaluate`, and `longer_children` of them with `longer`.

  They are trained in batches of m, as in the search, so that no other program has to be compiled.
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
  """How well a cheap score of architectures agrees with an expensive one, which counts as the truth."""

  failed: int  # architectures that fail by the cheap score and not by the expensive one
  everywhere: float  # Spearman's rank correlation over all that do not fail by the expensive score
  quarter: float  # the same within the best quarter by the expensive score
  regret: float  # relative loss in the expensive score of the cheap score's best; infinite if that one fails
  regret5: float  # the same for the best by the expensive score among the five best by the cheap one


def agreement(sure: np.ndarray, cheap: np.ndarray) -> Agreement:
  """Compares two scores [n] of the same architectures. Lower is better, and infinity means failed."""
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
  """Kendall's tau-b: the share of pairs in the same order minus that of the others; NaN if a or b is constant."""
  if np.ptp(a) == 0 or np.ptp(b) == 0:
    return float('nan')
  return float(stats.kendalltau(a, b).statistic)


def spearman(a: np.ndarray, b: np.ndarray) -> float:
  """Spearman's rank correlation, with mean ranks for ties; NaN if a or b is constant."""
  if np.ptp(a) == 0 or np.ptp(b) == 0:
    return float('nan')
  return float(stats.spearmanr(a, b).statistic)
