"""Benchmarks of search algorithms: spaces whose rewards cost nothing, so that whole searches are one program.

Tables of known rewards are in `systems.table`, models of real children in `systems.surrogate`. This module has a hidden
target, whose best architecture is known, and synthetic ("made") tables, whose rewards are computed from random effects.
"""

from collections.abc import Callable
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nas_jax import search
from nas_jax.space import Space, choice_space, tree_cell_space
from nas_jax.systems import table
from nas_jax.types import Array, Batch, Key, Outcome, PyTree


class Benchmark(NamedTuple):
  """Rewards for all token sequences of a space. `hide` and `evaluate` are pure and can be compiled by `jax.jit`."""

  space: Space
  hide: Callable[[Key], PyTree]  # draws what differs between searches, such as a target, from the key of a search
  evaluate: Callable[[PyTree, Batch], Outcome]  # (what was hidden, batch) -> outcome; its metrics may have `test`
  worst: float  # the score of a search that has found nothing yet
  best: float | None  # the greatest reward there is; None if it is not known


def build(benchmark: Benchmark, cfg: search.Config) -> search.Search:
  """Returns a search in a benchmark.

  The hidden target depends only on the key of the search. Searches by different algorithms with the same key therefore
  have the same target, and can be compared in pairs.

  >>> import jax
  >>> from nas_jax import search
  >>> from nas_jax.systems import benchmarks
  >>> s = benchmarks.build(benchmarks.hidden_cell(), search.Config(m=2, algorithm='random'))
  >>> batch = s.ask(s.init(jax.random.key(0)))
  >>> bool((s.evaluate(batch).reward == (batch.tokens == batch.extra[None]).mean(1)).all())
  True
  """
  s = search.build(benchmark.space, cfg, lambda batch: benchmark.evaluate(batch.extra, batch))
  return s._replace(ask=lambda state: s.ask(state)._replace(extra=benchmark.hide(state.key)))


def of_table(known: table.Table) -> Benchmark:
  """Returns a table as a benchmark. Token sequences that it lacks fail."""
  s = table.build(table.Config(), known.ops, known.reward, known.test)
  return Benchmark(
    s.space,
    hide=lambda key: (),
    evaluate=lambda _, batch: s.evaluate(batch),
    worst=float(known.reward.min()),
    best=float(known.reward.max()),
  )


def hidden_cell(base: int = 8) -> Benchmark:
  """Returns tree cells (34 tokens at base 8) whose reward is the share of tokens that agree with a hidden cell's."""
  space = tree_cell_space(base=base)
  widths = jnp.asarray([space.slots[i].width for i in space.owner])  # a cell has no links
  return Benchmark(
    space,
    hide=lambda key: jax.random.randint(jax.random.fold_in(key, _HIDDEN), widths.shape, 0, widths),
    evaluate=lambda target, batch: Outcome((batch.tokens == target[None]).mean(1)),
    worst=0.0,
    best=1.0,
  )


_HIDDEN = 2**31  # folded into the key of a search; step numbers are folded in too, and are always smaller


class Recipe(NamedTuple):
  """The parameters of a made table. Shares are of the variance of rewards."""

  seed: int
  widths: tuple[int, int]  # least and greatest number of choices of a token
  tokens: int
  interactions: float  # the share of effects of pairs of tokens
  rows: float  # the share that is drawn independently for each token sequence
  missing: float  # least share of token sequences that fail: those with a banned combination of two tokens
  ceiling: bool  # whether rewards are bent so that good ones differ less than bad ones, as accuracies do


MADE = {
  'made5': Recipe(0, (3, 9), 5, 0.3, 0.05, 0.2, True),
  'made6': Recipe(1, (2, 6), 6, 0.5, 0.1, 0.0, False),
  'made8': Recipe(2, (2, 5), 8, 0.3, 0.05, 0.3, True),
  'made10': Recipe(3, (2, 6), 10, 0.2, 0.02, 0.1, False),
  'made14': Recipe(4, (2, 4), 14, 0.4, 0.05, 0.1, True),
  'made20': Recipe(5, (2, 5), 20, 0.3, 0.05, 0.2, False),
}
_SAMPLE = 4096  # random token sequences that shares are measured on
_LISTED = 2**17  # greatest size of a space that is searched through for its best token sequence


class Effects(NamedTuple):
  """The effects from which the reward of a token sequence is computed."""

  single: np.ndarray  # [T, K] effect of each choice of each token
  places: np.ndarray  # [P, 2] the pairs of tokens that interact
  pair: np.ndarray  # [P, K, K] effect of each combination of their choices
  row: float  # standard deviation of the effect that is drawn for each token sequence
  mixer: np.ndarray  # [T] int32, odd: factors that hash a token sequence to a number
  banned: np.ndarray  # [F, 4] combinations that fail: place and token, another place and its token
  ceiling: bool


def made(recipe: Recipe) -> Benchmark:
  """Returns a made table. The same recipe makes the same table; it is never stored.

  Over random token sequences its rewards have a mean of about 0 and a standard deviation of about 1, before `ceiling`
  bends them. The best reward is known if there are at most 2^17 token sequences.
  """
  effects, widths = _effects(recipe)
  space = choice_space({f'slot {t}': [str(k) for k in range(width)] for t, width in enumerate(widths)})
  score = jax.jit(jax.vmap(functools.partial(_score, effects)))

  def evaluate(_: PyTree, batch: Batch) -> Outcome:
    reward, failed = jax.vmap(functools.partial(_score, effects))(batch.tokens)
    return Outcome(reward, failed=failed)

  if space.size() <= _LISTED:
    some = np.stack(np.unravel_index(np.arange(space.size()), widths), 1).astype(np.int32)
  else:
    some = np.random.default_rng(recipe.seed).integers(widths, size=(_SAMPLE, len(widths)), dtype=np.int32)
  reward, failed = map(np.asarray, score(some))
  there = reward[~failed]
  best = float(there.max()) if space.size() <= _LISTED else None
  return Benchmark(space, lambda key: (), evaluate, float(there.min()), best)


def _effects(recipe: Recipe) -> tuple[Effects, np.ndarray]:
  """Returns the effects of a recipe, and the widths [T] of its tokens."""
  rng, count = np.random.default_rng(recipe.seed), recipe.tokens
  widths = rng.integers(recipe.widths[0], recipe.widths[1] + 1, size=count)
  some = rng.integers(widths, size=(_SAMPLE, count))
  single = rng.normal(size=(count, widths.max())) * rng.lognormal(sigma=0.5, size=(count, 1))  # some tokens matter more
  pairs = np.array([(i, j) for i in range(count) for j in range(i)])
  places = pairs[rng.permutation(len(pairs))[: 2 * count]]
  pair = rng.normal(size=(len(places), widths.max(), widths.max()))

  def scaled(values: np.ndarray, of_some: np.ndarray, share: float) -> np.ndarray:
    return values * (np.sqrt(share) / of_some.sum(1).std())

  of_single = single[np.arange(count), some]
  of_pair = pair[np.arange(len(places)), some[:, places[:, 0]], some[:, places[:, 1]]]
  single = scaled(single, of_single, 1 - recipe.interactions - recipe.rows)
  pair = scaled(pair, of_pair, recipe.interactions)
  single -= single[np.arange(count), some].sum(1).mean() / count
  mixer = rng.integers(2**30, size=count) * 2 + 1
  banned, fails = [], np.zeros(_SAMPLE, bool)
  while fails.mean() < recipe.missing:
    i, j = places[rng.integers(len(places))]
    combination = i, rng.integers(widths[i]), j, rng.integers(widths[j])
    banned.append(combination)
    fails |= (some[:, i] == combination[1]) & (some[:, j] == combination[3])
  found = np.array(banned, np.int32).reshape(-1, 4)
  return Effects(single, places, pair, recipe.rows**0.5, mixer.astype(np.int32), found, recipe.ceiling), widths


def _score(effects: Effects, tokens: Array) -> tuple[Array, Array]:
  """Returns the reward of tokens [T], and whether they fail."""
  first, second = effects.places.T
  total = jnp.asarray(effects.single, jnp.float32)[np.arange(len(effects.single)), tokens].sum()
  total += jnp.asarray(effects.pair, jnp.float32)[np.arange(len(first)), tokens[first], tokens[second]].sum()
  own = jax.random.fold_in(jax.random.key(0), (jnp.asarray(effects.mixer) * (tokens + 1)).sum())
  total += effects.row * jax.random.normal(own)
  place, token, other, its = effects.banned.T
  failed = ((tokens[place] == token) & (tokens[other] == its)).any()
  return (1 - jax.nn.softplus(-total) if effects.ceiling else total), failed
