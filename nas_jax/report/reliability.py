"""The reliability of the reward, measured by rank correlations. Check it before you compare searches."""

from collections.abc import Mapping
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from nas_jax.controller import uniform_controller
from nas_jax.space import Space
from nas_jax.types import Batch, Evaluate, Key


class Ranks(NamedTuple):
  """How two trainings of the same children rank them. A child that failed in one of them has no rank."""

  all: float  # Spearman's rank correlation over the children that failed in neither; NaN if it cannot be measured
  quarter: float  # the correlation over the best quarter of these children by the second training
  failed: int | None  # children that failed in one of the trainings, or in both; None if they were not counted
  regret: float = math.nan  # see `regret`: loss of reward in the second training of the best child by the first one


class Reliability(NamedTuple):
  """Rank correlations of the rewards of the same random children. None means not measured."""

  seeds: Ranks  # two trainings from different initial weights; aim at 0.7 or more
  data_seeds: Ranks | None  # two trainings from different initial weights on data of different seeds
  budget: Ranks | None  # the search's training and a longer one; aim at 0.5 or more
  children: int  # of `seeds` and `data_seeds`


def measure(
  space: Space,
  evaluate: Evaluate,
  key: Key,
  children: int,
  m: int,
  longer: Evaluate | None = None,
  longer_children: int = 0,
  other_data: Evaluate | None = None,
) -> Reliability:
  """Trains random architectures more than once, and compares the rewards.

  Batches have m children, as in the search, so that no other program has to be compiled.

  Args:
    space: the space of the children.
    evaluate: trains and scores children; called twice for each child.
    key: the random key of the architectures and of the initial weights.
    children: the number of architectures.
    m: the number of children in a batch.
    longer: trains children for longer; called once for each of the first `longer_children`.
    longer_children: with fewer than 3, `longer` is not called.
    other_data: trains children on data of another seed; called once for each child.
  """
  first, second = (rewards(space, evaluate, key, seed, children, m) for seed in (1, 2))
  budget = data_seeds = None
  if longer is not None and longer_children > 2:
    budget = ranks(first[:longer_children], rewards(space, longer, key, 3, children, m, longer_children))
  if other_data is not None:
    data_seeds = ranks(first, rewards(space, other_data, key, 4, children, m))
  return Reliability(ranks(first, second), data_seeds, budget, children)


def rewards(
  space: Space, evaluate: Evaluate, key: Key, seed: int, children: int, m: int, first: int | None = None
) -> np.ndarray:
  """Returns the rewards of the first (by default all) of `children` random architectures, NaN where they failed.

  They are trained in batches of m. An architecture depends only on `key` and its index; its initial weights also
  depend on `seed`.
  """
  tokens = jax.vmap(lambda k: uniform_controller(space).sample((), k))(
    jax.random.split(jax.random.fold_in(key, 0), children)
  )
  keys, count = jax.random.split(jax.random.fold_in(key, seed), children), first or children
  found = []
  for start in range(0, count, m):
    part = jnp.arange(start, start + m) % children  # the last batch is filled up with the first children
    batch = Batch(part.astype(jnp.int32), keys[part], tokens[part], space.decode_batch(tokens[part]))
    outcome = evaluate(batch)
    found.append(np.where(outcome.failed, np.nan, outcome.reward) if outcome.failed is not None else outcome.reward)
  return np.concatenate(found)[:count]


def as_json(found: Reliability) -> dict[str, Any]:
  """Returns what `from_json` reads. A number that could not be measured is None."""
  named = {name: one for name, one in found._asdict().items() if isinstance(one, Ranks)}
  return {
    'children': found.children,
    **{name: finite(one.all) for name, one in named.items()},
    'quarter': {name: finite(one.quarter) for name, one in named.items()},
    'failed': {name: one.failed for name, one in named.items()},
    'regret': {name: finite(one.regret) for name, one in named.items()},
  }


def from_json(saved: Mapping[str, Any]) -> Reliability:
  """The inverse of `as_json`.

  Earlier versions wrote no 'quarter', 'failed' and 'regret', and did not leave out failures.
  """

  def of(name: str) -> Ranks | None:
    if name not in saved:
      return None
    found = saved[name], *(saved.get(part, {}).get(name) for part in ('quarter', 'regret'))
    every, quarter, regret = (math.nan if value is None else value for value in found)
    return Ranks(every, quarter, saved.get('failed', {}).get(name), regret)

  seeds = of('seeds')
  assert seeds, "the schema of the file asks for 'seeds'"
  return Reliability(seeds, of('data_seeds'), of('budget'), saved['children'])


def in_words(found: Reliability, training: str, longer: str) -> dict[str, Ranks]:
  """Returns the measured correlations; the key of each names, in words, the two trainings that it compares.

  Args:
    found: what was measured.
    training: how long children of the search are trained, in words.
    longer: how long children of the longer training are trained, in words.
  """
  parts = {
    'two seeds': found.seeds,
    'two seeds with other data seeds': found.data_seeds,
    f'{training} and {longer}, half of them': found.budget,
  }
  return {words: one for words, one in parts.items() if one}


def finite(value: float) -> float | None:
  """Returns a number as JSON has it: None if it could not be measured."""
  return value if math.isfinite(value) else None


def ranks(first: np.ndarray, second: np.ndarray) -> Ranks:
  """Compares the rewards [n] of two trainings of the same children. A failed child has a reward that is not finite."""
  a, b = trained(first, second)
  return Ranks(spearman(a, b), _within_quarter(-a, -b), len(first) - len(a), regret(-b, -a))


def _within_quarter(cheap: np.ndarray, sure: np.ndarray) -> float:
  """Returns Spearman's correlation within the quarter that is lowest by `sure`; NaN for fewer than three children."""
  quarter = np.argsort(sure, kind='stable')[: -(-len(sure) // 4)]
  return spearman(cheap[quarter], sure[quarter]) if len(quarter) > 2 else float('nan')


def regret(sure: np.ndarray, cheap: np.ndarray, most: int = 1) -> float:
  """Returns the regret of a choice: how much worse it is than the best architecture, relative to the best one.

  Architectures are ranked by a cheap score. The choice is the best, by an expensive score, of the first `most` of them.

  Args:
    sure: [n] the expensive scores, by which the choice is judged. Lower is better; infinity means failed.
    cheap: [n] the cheap scores, likewise.
    most: how many of the first are compared by the expensive score.

  Returns:
    (score of the choice - best score) / |best score|, in expensive scores. Infinite if all of the first `most` failed;
    NaN if all architectures failed, or if the best score is 0.
  """
  best = sure.min(initial=np.inf)
  if not np.isfinite(best) or best == 0:
    return math.nan
  first = np.argsort(cheap, kind='stable')[:most]
  return float((sure[first].min() - best) / abs(best))


class Agreement(NamedTuple):
  """How well a cheap score of architectures agrees with an expensive one, which counts as the truth."""

  failed: int  # architectures that fail by the cheap score but not by the expensive one
  all: float  # Spearman's rank correlation over all that do not fail by the expensive score
  quarter: float  # the correlation within the best quarter by the expensive score
  regret: float  # see `regret`: of the best by the cheap score
  regret5: float  # of the best, by the expensive score, of the five best by the cheap score


def agreement(sure: np.ndarray, cheap: np.ndarray) -> Agreement:
  """Compares two scores [n] of the same architectures. Lower is better, and infinity means failed."""
  sound = np.isfinite(sure)
  if sound.sum() < 2:
    return Agreement(0, *[float('nan')] * 4)
  ranks, sound_sure = stats.rankdata(cheap[sound]), sure[sound]
  return Agreement(
    int((~np.isfinite(cheap[sound])).sum()),
    spearman(ranks, sound_sure),
    _within_quarter(ranks, sound_sure),
    regret(sure, cheap),
    regret(sure, cheap, 5),
  )


def trained(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Returns two scores of the same children, without the children for which one of the scores is not finite."""
  sound = np.isfinite(a) & np.isfinite(b)
  return a[sound], b[sound]


def kendall(a: np.ndarray, b: np.ndarray) -> float:
  """Kendall's tau-b: the share of concordant pairs minus the share of discordant ones; NaN if a or b is constant."""
  if not len(a) or np.ptp(a) == 0 or np.ptp(b) == 0:
    return float('nan')
  return float(stats.kendalltau(a, b).statistic)


def spearman(a: np.ndarray, b: np.ndarray) -> float:
  """Spearman's rank correlation, with mean ranks for ties; NaN if a or b is constant."""
  if not len(a) or np.ptp(a) == 0 or np.ptp(b) == 0:
    return float('nan')
  return float(stats.spearmanr(a, b).statistic)
