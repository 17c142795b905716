"""Benchmarks, against rewards computed in Python and against enumeration."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nas_jax.systems import benchmarks, table
from nas_jax.types import Batch


def _evaluate(benchmark, tokens, hidden=()):
  tokens = jnp.asarray(tokens, jnp.int32)
  keys = jax.random.split(jax.random.key(0), len(tokens))
  return jax.jit(benchmark.evaluate)(hidden, Batch(jnp.arange(len(tokens)), keys, tokens, None))


def test_searches_from_one_key_look_for_one_hidden_cell():
  benchmark = benchmarks.hidden_cell(base=2)
  random, reinforce = (
    benchmarks.build(benchmark, table.Config(algorithm=name, m=3, controller_units=4))
    for name in ('random', 'reinforce')
  )
  targets = []
  for seed in range(6):
    state = random.init(jax.random.key(seed))
    first = random.ask(state)
    state, _ = random.tell(state, first, random.evaluate(first))
    others = [random.ask(state), reinforce.ask(reinforce.init(jax.random.key(seed)))]
    for batch in others:
      np.testing.assert_array_equal(batch.extra, first.extra)
      share = (np.asarray(batch.tokens) == np.asarray(batch.extra)).mean(1)
      np.testing.assert_allclose(random.evaluate(batch).reward, share, rtol=1e-6)
    targets.append(np.asarray(first.extra))
  benchmark.space.decode(targets[0])  # raises ValueError if a token were out of range
  assert len(np.unique(targets, axis=0)) > 3
  assert float(_evaluate(benchmark, targets[:1], jnp.asarray(targets[0])).reward[0]) == benchmark.best == 1


RECIPE = benchmarks.Recipe(7, (2, 4), 5, 0.3, 0.0, 0.25, False)


def test_a_made_table_has_the_effects_of_its_recipe():
  benchmark = benchmarks.made(RECIPE)
  effects, widths = benchmarks._effects(RECIPE)
  every = np.array(list(itertools.product(*map(range, widths))))
  assert benchmark.space.size() == len(every)
  outcome = _evaluate(benchmark, every)
  single, pair = [], []
  for tokens, failed in zip(every, np.asarray(outcome.failed), strict=True):
    single.append(sum(effects.single[t, token] for t, token in enumerate(tokens)))
    pair.append(sum(effects.pair[p, tokens[i], tokens[j]] for p, (i, j) in enumerate(effects.places)))
    assert failed == any(tokens[i] == a and tokens[j] == b for i, a, j, b in effects.banned)
  total = np.add(single, pair)
  np.testing.assert_allclose(outcome.reward, total, atol=1e-5)
  assert np.var(pair) == pytest.approx(0.3, abs=0.03) and np.var(single) == pytest.approx(0.7, abs=0.03)
  assert 0.25 <= outcome.failed.mean() < 0.5
  there = total[~np.asarray(outcome.failed)]
  assert (benchmark.worst, benchmark.best) == pytest.approx((there.min(), there.max()), abs=1e-5)


def test_what_a_row_has_of_its_own_and_the_ceiling():
  plain = benchmarks.made(RECIPE)
  tokens = np.random.default_rng(0).integers([slot.width for slot in plain.space.slots], size=(200, 5))
  reward = np.asarray(_evaluate(plain, tokens).reward)
  bent = np.asarray(_evaluate(benchmarks.made(RECIPE._replace(ceiling=True)), tokens).reward)
  np.testing.assert_allclose(bent, 1 - np.log1p(np.exp(-reward)), atol=1e-5)
  rough = benchmarks.made(RECIPE._replace(rows=0.2))
  first, again = (np.asarray(_evaluate(rough, tokens).reward) for _ in range(2))
  np.testing.assert_array_equal(first, again)
  share = 1 - np.corrcoef(first, reward)[0, 1] ** 2  # of the variance that the effects do not explain
  assert 0.1 < share < 0.35
  distinct = np.unique(tokens, axis=0)
  assert len(np.unique(np.asarray(_evaluate(rough, distinct).reward))) == len(distinct)


def test_made_tables_stay_what_they_are():
  """Results are compared with earlier ones, so a table must not change."""
  best = {name: benchmarks.made(benchmarks.MADE[name]).best for name in ('made5', 'made6', 'made8')}
  assert best == pytest.approx({'made5': 0.953883, 'made6': 3.159563, 'made8': 0.971770}, abs=1e-5)
  sizes = {name: benchmarks._effects(recipe)[1].prod() for name, recipe in benchmarks.MADE.items()}
  assert sizes['made5'] == 6720 and sizes['made20'] > 10**9


def test_a_table_as_a_benchmark_is_the_table():
  known = table.distinct(np.array([[0, 1], [1, 0], [1, 2]]), np.array([0.5, 0.25, -1.0]), np.array([5.0, 6.0, 7.0]))
  benchmark = benchmarks.of_table(known)
  outcome = _evaluate(benchmark, [[0, 1], [0, 0], [1, 2]])
  np.testing.assert_array_equal(outcome.reward, [0.5, np.nan, -1])
  np.testing.assert_array_equal(outcome.failed, [False, True, False])
  np.testing.assert_array_equal(outcome.metrics['test'], [5, np.nan, 7])
  assert (benchmark.worst, benchmark.best) == (-1, 0.5)
