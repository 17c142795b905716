"""Searches in a table, against dictionaries, hand-worked curves and random search."""

import io
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nas_jax import search
from nas_jax.systems import table
from nas_jax.types import Batch, Outcome


def _save(tmp_path, **arrays):
  path = tmp_path / 'table.npz'
  np.savez(path, **{name: values for name, values in arrays.items() if values is not None})
  return str(path)


def _additive(rng, widths):
  """Every string, with the mean over slots of a value for each token: noise-free, in [0, 1]."""
  values = [rng.uniform(size=width) for width in widths]
  ops = np.array(list(itertools.product(*map(range, widths))), np.int32)
  return ops, np.mean([value[ops[:, t]] for t, value in enumerate(values)], axis=0)


@pytest.fixture(scope='module')
def additive():
  return _additive(np.random.default_rng(0), (4, 2, 3, 4, 3, 4, 4))


@pytest.fixture(scope='module')
def runs(additive):
  """Final states, tokens and outcomes of 24 seeds, 100 evaluations each, by algorithm."""
  keys = jax.random.split(jax.random.key(1), 24)
  return {
    name: search.run_seeds(table.build(table.Config(algorithm=name), *additive), keys, 100)
    for name in ('reinforce', 'random')
  }


@pytest.fixture(scope='module')
def small(additive):
  """A search with two children an update, and a compiled function from keys to whole searches of 12 updates."""
  s = table.build(table.Config(m=2, controller_lr=0.05, controller_units=8, controller_layers=1), *additive)
  return s, jax.jit(lambda keys: search.run_seeds(s, keys, 12))


# lookup


@pytest.mark.parametrize(
  ('widths', 'share'),
  [
    ((2, 3, 4, 2), 0.4),
    ((5, 1, 2, 3), 0.05),
    ((3, 2, 3), 1.0),
    ((4, 4), 1e-9),  # one row
    ((40,), 0.5),  # one column
    ((1,), 1.0),  # both
  ],
)
def test_lookup_agrees_with_a_dictionary_on_every_string(widths, share):
  # One label more than the table has in each slot, so that there are strings before, between and after all rows.
  asked = np.array(list(itertools.product(*(range(width + 1) for width in widths))), np.int32)
  inside = asked[(asked < np.array(widths)).all(1)]
  look = jax.jit(jax.vmap(table.lookup, (None, 0)))
  for seed in range(3):
    rows = np.random.default_rng(seed).permutation(len(inside))[: max(1, round(share * len(inside)))]
    ops = np.unique(inside[rows], axis=0)
    known = {tuple(string): row for row, string in enumerate(ops.tolist())}
    row, there = map(np.asarray, look(ops, asked))
    np.testing.assert_array_equal(there, [tuple(string) in known for string in asked.tolist()])
    np.testing.assert_array_equal(row[there], [known[tuple(string)] for string in asked[there].tolist()])
    assert ((row >= 0) & (row < len(ops))).all()


def test_token_sequences_that_are_missing_fail():
  ops = np.array([[0, 1], [1, 0], [1, 2]], np.int32)
  tokens = np.array([[0, 0], [0, 1], [1, 0], [1, 1], [1, 2]], np.int32)
  batch = Batch(jnp.arange(5), jax.random.split(jax.random.key(0), 5), tokens, None)
  for test in (np.array([5.0, 6.0, 7.0]), None):
    s = table.build(table.Config(), ops, np.array([0.5, 0.25, -1.0]), test)
    outcome = jax.jit(s.evaluate)(batch)
    np.testing.assert_array_equal(outcome.reward, [np.nan, 0.5, 0.25, np.nan, -1])
    np.testing.assert_array_equal(outcome.failed, [True, False, False, True, False])
    np.testing.assert_array_equal(outcome.metrics['row'], [-1, 0, 1, -1, 2])
    if test is None:
      assert 'test' not in outcome.metrics
    else:
      np.testing.assert_array_equal(outcome.metrics['test'], [np.nan, 5, 6, np.nan, 7])


def test_slots_are_as_wide_as_the_table(additive):
  s = table.build(table.Config(), *additive)
  assert [slot.width for slot in s.space.slots] == [4, 2, 3, 4, 3, 4, 4]
  assert s.space.size() == len(additive[0]) == 4608


# load


def test_load_sorts_and_averages_duplicates(tmp_path):
  ops = np.array([[1, 0], [0, 2], [1, 0], [0, 1], [1, 0]], np.int64)
  loaded = table.load(_save(tmp_path, ops=ops, reward=[1.0, 0.5, 2.0, 0.25, 6.0], test=[3, 1, 2, 7, 1]))
  np.testing.assert_array_equal(loaded.ops, [[0, 1], [0, 2], [1, 0]])
  assert loaded.ops.dtype == np.int32
  np.testing.assert_array_equal(loaded.reward, [0.25, 0.5, 3.0])  # (1 + 2 + 6) / 3
  np.testing.assert_array_equal(loaded.test, [7.0, 1.0, 2.0])  # (3 + 2 + 1) / 3


def test_load_without_test_scores(tmp_path):
  assert table.load(_save(tmp_path, ops=[[0], [1]], reward=[0.5, 0.25])).test is None


OPS = np.array([[0, 1], [1, 0]])


@pytest.mark.parametrize(
  ('arrays', 'message'),
  [
    ({'ops': None}, 'has no ops: want'),
    ({'reward': None}, 'has no reward: want'),
    ({'ops': None, 'reward': None}, 'has no ops and no reward'),
    ({'reward': [1.0, 2.0, 3.0]}, r'reward of .* is float64 \(3,\), ops has 2 rows'),
    ({'reward': [[1.0], [2.0]]}, r'reward of .* is float64 \(2, 1\)'),
    ({'reward': 1.0}, r'reward of .* \(\)'),
    ({'reward': [1.0, np.nan]}, 'reward of .* is nan in row 1'),
    ({'reward': [-np.inf, 1.0]}, 'reward of .* is -inf in row 0'),
    ({'reward': ['a', 'b']}, 'reward of .* <U1'),
    ({'reward': [1j, 1.0]}, 'reward of .* complex128'),
    ({'test': [1.0]}, r'test of .* is float64 \(1,\)'),
    ({'test': [np.nan, 1.0]}, 'test of .* is nan in row 0'),
    ({'reward': np.array([0.1, 0.2], np.longdouble)}, 'reward of .* is float128'),
    ({'ops': [[0, 1], [10**9, 0]]}, 'ops of .* has 1000000003 choices.*at most'),
    ({'test': ['a', 'b']}, 'test of .* <U1'),
    ({'ops': OPS.astype(float)}, 'ops of .* is float64'),
    ({'ops': OPS.astype(bool)}, 'ops of .* is bool'),
    ({'ops': -OPS}, 'ops of .* want ints from 0'),
    ({'ops': OPS + 2**32}, 'ops of .* fit 32 bits'),  # would wrap round to OPS
    ({'ops': [0, 1]}, r'ops of .* \(2,\)'),
    ({'ops': 3}, r'ops of .* \(\)'),
    ({'ops': np.zeros((0, 2), int), 'reward': []}, r'ops of .* \(0, 2\)'),
    ({'ops': np.zeros((2, 0), int)}, r'ops of .* \(2, 0\)'),
    ({'ops': OPS.astype(object)}, 'cannot be read'),  # would need pickle
    ({'reward': np.array([1.0, 'a'], object)}, 'cannot be read'),
  ],
)
def test_load_names_the_array_at_fault_in_one_line(tmp_path, arrays, message):
  path = _save(tmp_path, **({'ops': OPS, 'reward': [0.1, 0.2]} | arrays))
  with pytest.raises(ValueError, match=message) as caught:
    table.load(path)
  assert '\n' not in str(caught.value) and path in str(caught.value)


def _bytes(save, *arrays, **named):
  file = io.BytesIO()
  save(file, *arrays, **named)
  return file.getvalue()


WHOLE = _bytes(np.savez, ops=OPS, reward=[0.1, 0.2])


def test_a_table_that_unpacks_to_more_than_the_bound_is_refused(tmp_path, monkeypatch):
  monkeypatch.setattr(table, 'LARGEST', 10_000)
  path = tmp_path / 'bomb.npz'
  np.savez_compressed(path, ops=np.zeros((5000, 2), np.int32), reward=np.zeros(5000))
  assert path.stat().st_size < 10_000
  with pytest.raises(ValueError, match='unpacks to 80256 bytes: want at most 10000; leave rows out'):
    table.load(str(path))


@pytest.mark.parametrize(
  'spoil',
  [
    lambda path: None,  # no such file
    lambda path: path.mkdir(),
    lambda path: path.touch(),  # empty
    lambda path: path.write_text('ops,reward\n0,1\n'),
    lambda path: path.write_bytes(_bytes(np.save, OPS)),  # a lone array
    lambda path: path.write_bytes(_bytes(np.save, OPS.astype(object))),  # a pickle
    lambda path: path.write_bytes(WHOLE[:-40]),  # cut short
    lambda path: path.write_bytes(WHOLE.replace(b'NUMPY', b'NUMPX')),  # a wrong checksum
  ],
)
def test_load_refuses_what_is_no_npz_in_one_line(tmp_path, spoil):
  path = tmp_path / 'table.npz'
  spoil(path)
  with pytest.raises(ValueError, match=f'{re.escape(str(path))} cannot be read') as caught:
    table.load(str(path))
  assert '\n' not in str(caught.value)


# summary


def _outcomes(reward, test):
  return Outcome(jnp.asarray(reward), {'test': jnp.asarray(test)})


def test_summary_by_hand():
  # Two seeds, two updates of m = 2, of which the first 3 of 4 evaluations count.
  #   seed 0: reward 1 4 4 |8   best 1 4 4   first reached by 0 1 1, whose test is 3 5 5 (not the tie's 9)
  #   seed 1: reward 2 0 2 |0   best 2 2 2   first reached by 0 0 0, whose test is 7 7 7
  outcomes = _outcomes([[[1.0, 4.0], [4.0, 8.0]], [[2.0, 0.0], [2.0, 0.0]]], [[[3, 5], [9, 6]], [[7, 8], [1, 2]]])
  assert table.summary(outcomes, 3) == {
    'reward_mean': 3.0,  # of 4 and 2
    'reward_std': 1.0,
    'test_mean': 6.0,  # of 5 and 7
    'test_std': 1.0,
    'curve': [1.5, 3.0, 3.0],
    'curve_test': [5.0, 6.0, 6.0],
  }
  # All four: seed 0 ends at reward 8, test 6.
  whole = table.summary(outcomes, 4)
  assert whole['curve'] == [1.5, 3.0, 3.0, 5.0] and whole['curve_test'] == [5.0, 6.0, 6.0, 6.5]
  assert table.summary(outcomes, 1)['curve'] == [1.5]


def test_summary_of_rewards_below_zero():
  summary = table.summary(_outcomes([[[-3.0], [-5.0], [-2.0]]], [[[1], [2], [3]]]), 3)
  assert summary['curve'] == [-3.0, -3.0, -2.0] and summary['curve_test'] == [1.0, 1.0, 3.0]


def test_summary_without_test_scores():
  summary = table.summary(Outcome(jnp.array([[[1.0], [2.0]]]), {}), 2)
  assert summary['curve'] == [1.0, 2.0]
  assert summary['test_mean'] is summary['test_std'] is summary['curve_test'] is None


def test_what_failed_is_not_in_the_summary():
  outcomes = Outcome(
    jnp.array([[[0.0], [-3.0], [0.0]], [[0.0], [0.0], [-1.0]]]),
    {'test': jnp.array([[[9.0], [5.0], [9.0]], [[9.0], [9.0], [7.0]]])},
    failed=jnp.array([[[True], [False], [True]], [[True], [True], [False]]]),
  )
  found = table.summary(outcomes, 3)
  assert found['curve'] == [None, -3.0, -2.0] and found['curve_test'] == [None, 5.0, 6.0]
  assert (found['reward_mean'], found['reward_std'], found['test_mean']) == (-2.0, 1.0, 6.0)
  assert table.summary(outcomes, 1)['reward_mean'] is None


# whole searches


def test_a_row_that_is_missing_fails_and_is_never_the_best():
  ops, reward = np.array([[0, 0], [0, 1], [1, 0]], np.int32), np.array([-3.0, -1.0, -2.0])
  s = table.build(table.Config(m=4), ops, reward)
  state, (tokens, outcomes) = search.run_seeds(s, jax.random.split(jax.random.key(0), 2), 20)
  missing = (np.asarray(tokens) == 1).all(-1)
  assert missing.any()
  np.testing.assert_array_equal(outcomes.failed, missing)
  np.testing.assert_array_equal(state.best.tokens, [[0, 1]] * 2)
  np.testing.assert_array_equal(state.best.reward, -1.0)
  assert table.summary(outcomes, 80)['reward_mean'] == -1.0


def test_seeds_differ_and_repeat(small):
  keys = jax.random.split(jax.random.key(3), 4)
  _, run = small
  tokens, outcomes = run(keys)[1]
  jax.tree.map(np.testing.assert_array_equal, (tokens, outcomes), run(keys)[1])
  assert len(np.unique(tokens, axis=0)) == 4


def test_a_seed_among_others_is_the_loop_over_ask_evaluate_tell(small):
  keys = jax.random.split(jax.random.key(3), 4)
  s, run = small
  state, tokens = s.init(keys[1]), []
  for _ in range(12):
    batch = s.ask(state)
    tokens.append(batch.tokens)
    state, _ = s.tell(state, batch, s.evaluate(batch))
  final, (tokens_, _) = run(keys)
  np.testing.assert_array_equal(tokens_[1], tokens)
  np.testing.assert_allclose(final.algorithm.baseline.value[1], state.algorithm.baseline.value, rtol=1e-6)
  np.testing.assert_array_equal(final.best.tokens[1], state.best.tokens)


def test_rewards_are_those_of_the_table(additive, runs):
  ops, reward = additive
  for state, (tokens, outcomes) in runs.values():
    row = outcomes.metrics['row']
    np.testing.assert_array_equal(ops[row], tokens)
    np.testing.assert_array_equal(np.float32(reward)[row], outcomes.reward)
    np.testing.assert_array_equal(state.best.reward, outcomes.reward.max((1, 2)))
    first = np.asarray(outcomes.reward)[..., 0].argmax(1)
    np.testing.assert_array_equal(state.best.id, first)
    np.testing.assert_array_equal(state.best.tokens, np.asarray(tokens)[np.arange(len(first)), first, 0])


def test_reinforce_beats_random_search(runs):
  """In the best child found, and far more so in the children it draws in the end."""
  outcomes = {name: run[1][1] for name, run in runs.items()}
  late = {name: float(outcome.reward[:, 80:].mean()) for name, outcome in outcomes.items()}
  assert late['reinforce'] > late['random'] + 0.15, late
  best = {name: table.summary(outcome, 100)['reward_mean'] for name, outcome in outcomes.items()}
  assert best['reinforce'] > best['random'] + 0.02, best


def test_a_string_drawn_again_counts_again():
  # Of two strings, uniform search has seen the better one after e draws with probability 1 - 2**-e. Were repeats
  # free, two evaluations would always do.
  s = table.build(table.Config(algorithm='random'), np.array([[0], [1]], np.int32), np.array([0.0, 1.0]))
  state, (_, outcomes) = search.run_seeds(s, jax.random.split(jax.random.key(0), 2000), 6)
  assert outcomes.reward.shape == (2000, 6, 1) and (state.step == 6).all()
  curve = table.summary(outcomes, 6)['curve']
  np.testing.assert_allclose(curve, 1 - 0.5 ** np.arange(1, 7), atol=0.04)  # 3.6 standard errors


def test_a_table_of_one_string():
  s = table.build(table.Config(), np.zeros((1, 1), np.int32), np.array([0.5]))
  state, (tokens, outcomes) = search.run_seeds(s, jax.random.split(jax.random.key(0), 2), 5)
  assert tokens.shape == (2, 5, 1, 1) and not tokens.any()  # two seeds, however many devices
  assert (state.step == 5).all()
  assert table.summary(outcomes, 5)['curve'] == [0.5] * 5
  np.testing.assert_array_equal(state.algorithm.baseline.value, 0.5)
