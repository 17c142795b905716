"""Searches that start with known architectures, against the searches where these come from."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest

from experiments.common import run_search
from nas_jax import search
from nas_jax.search import history, journal, per_layer, start
from nas_jax.search.algorithms import ALGORITHMS
from nas_jax.space import chain_space, conv_space, unstack
from nas_jax.systems import table

WIDTHS = (3, 4, 3)
OPS = np.array(list(itertools.product(*map(range, WIDTHS))), np.int32)
REWARD = np.random.default_rng(0).uniform(size=len(OPS))
MISSING = OPS[:, 0] + OPS[:, 1] == 3  # these fail
SMALL = {'controller_units': 4, 'controller_layers': 1, 'controller_lr': 0.05}
NOTHING = np.zeros((0, 3), np.int32)


def _search(**changes):
  return table.build(table.Config(**(SMALL | {'m': 2} | changes)), OPS[~MISSING], REWARD[~MISSING])


def _known(tokens, reward=None, failed=None):
  k, tokens = len(tokens), np.asarray(tokens, np.int32)
  rewards = np.zeros(k, np.float32) if reward is None else np.asarray(reward, np.float32)
  return start.Known(
    tokens, np.ones(k, np.int32), rewards, np.zeros(k, bool) if failed is None else failed, ~np.zeros(k, bool)
  )


NONE = _known(NOTHING)


def _run(s, state, steps):
  """Returns the last state, and (tokens, reward, failed) of all children in order."""
  found = []
  for _ in range(steps):
    batch = s.ask(state)
    outcome = s.evaluate(batch)
    found += zip(
      batch.tokens.tolist(), np.nan_to_num(outcome.reward).tolist(), np.asarray(outcome.failed).tolist(), strict=True
    )
    state, _ = s.tell(state, batch, outcome)
  return state, found


def test_told_of_its_own_children_a_search_is_where_it_was():
  s = _search(known='reuse')
  before, children = _run(s, s.init(jax.random.key(0)), 9)
  tokens, reward, failed = map(np.array, zip(*children, strict=True))
  assert failed.any() and not failed.all()
  fresh = np.array([list(t) not in tokens[:k].tolist() for k, t in enumerate(tokens)])
  assert not fresh.all()
  begun = start.begin(s, _known(tokens, reward, failed)._replace(trained=fresh), NOTHING)
  state = begun.init(jax.random.key(0))
  for one, other in zip(jax.tree.leaves(state.algorithm), jax.tree.leaves(before.algorithm), strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)
  assert state.worst == before.worst and state.step == 0 and begun.spent(state) == 0
  for name in ('tokens', 'reward', 'trained', 'sound', 'size'):
    np.testing.assert_allclose(getattr(state.history, name), getattr(before.history, name), rtol=1e-6)
  size = int(state.history.size)
  np.testing.assert_array_equal(state.history.id[:size], before.history.id[:size] - 18)


def test_what_it_was_told_is_never_its_best():
  best = OPS[~MISSING][REWARD[~MISSING].argmax()]
  begun = start.begin(_search(), _known([best], [100.0]), NOTHING)
  state = begun.init(jax.random.key(1))
  assert state.best.id == -1 and state.best.reward == -np.inf
  state, children = _run(begun, state, 3)
  assert float(state.best.reward) == pytest.approx(max(reward for _, reward, failed in children if not failed))


@pytest.mark.parametrize('known', ['train', 'avoid'])
def test_first_ones_are_asked_for_in_their_order(known):
  s, first = _search(known=known), OPS[[5, 30, 1]]
  begun = start.begin(s, NONE, first)
  state = begun.init(jax.random.key(2))
  one = begun.ask(state)
  np.testing.assert_array_equal(one.tokens, first[:2])
  np.testing.assert_array_equal(np.stack(one.archs.choice), first[:2])
  state, _ = begun.tell(state, one, begun.evaluate(one))
  two = begun.ask(state)
  np.testing.assert_array_equal(two.tokens[0], first[2])
  np.testing.assert_array_equal(two.tokens[1], s.ask(state).tokens[1])
  assert (two.keys == s.ask(state).keys).all()
  if known == 'avoid':
    assert not two.repeats.known.any()
  state, children = _run(begun, state, 12)
  drawn = [tuple(tokens) for tokens, _, _ in children]
  assert known == 'train' or len({*map(tuple, first.tolist()), *drawn}) == 2 + len(drawn)


def test_what_it_was_told_is_avoided_and_there_is_room_for_it():
  ops = np.array(list(itertools.product(range(8), repeat=3)), np.int32)
  s = table.build(table.Config(**SMALL, m=40, known='avoid', algorithm='random'), ops, ops.mean(1))
  rows = np.random.default_rng(1).permutation(len(ops))[:250]
  begun = start.begin(s, _known(ops[rows], ops[rows].mean(1)), NOTHING)
  state, children = _run(begun, begun.init(jax.random.key(0)), 2)  # 330 rows, more than the 256 of the smallest record
  drawn = {tuple(tokens) for tokens, _, _ in children}
  assert len(drawn) == 80 and not drawn & set(map(tuple, ops[rows].tolist()))
  assert state.history.size == 330 and len(state.history.depth) == history.capacity_for(370)


@pytest.mark.long
def test_stopped_it_goes_on_as_if_unbroken(tmp_path, monkeypatch):
  monkeypatch.setenv('TQDM_DISABLE', '1')
  tokens = OPS[~MISSING][[3, 9, 20, 11, 3]]
  s = start.begin(_search(known='avoid'), _known(tokens, REWARD[:5]), OPS[[1, 14, 2]])
  for name, stops in (('unbroken', [14]), ('stopped', [2, 8, 14])):
    for children in stops:
      run_search.run(str(tmp_path / name), s, 3, search.Budget(children))
  unbroken, stopped = (journal.read(str(tmp_path / name / 'children.jsonl')) for name in ('unbroken', 'stopped'))
  assert {k: dict(r, seconds=0) for k, r in unbroken.items()} == {k: dict(r, seconds=0) for k, r in stopped.items()}
  assert len(unbroken) == 14
  states = [
    run_search._restored(str(tmp_path / name / 'checkpoints'), s, 3, unbroken) for name in ('unbroken', 'stopped')
  ]
  for one, other in zip(*map(jax.tree.leaves, states), strict=True):
    if not jax.dtypes.issubdtype(one.dtype, jax.dtypes.prng_key):
      np.testing.assert_array_equal(one, other)


def test_first_ones_are_trained_as_they_are_before_children_grow_deeper():
  deep = conv_space(3, (1, 3), (1, 3), (4, 8))
  cfg = search.Config(m=2, algorithm='random', depth_start=1, depth_step=1, depth_every=3)  # two batches of depth 1
  s, nothing = search.ask_tell(deep, cfg), start.Known(np.zeros((0, deep.length), np.int32), *NONE[1:])
  first = np.zeros((5, deep.length), np.int32)
  first[:, :3] = [[1, 1, 1], [1, 1, 0], [1, 0, 1], [0, 1, 1], [0, 0, 1]]
  begun = start.begin(s, nothing, first[:4])
  state, trained = begun.init(jax.random.key(0)), []
  for _ in range(3):
    batch = begun.ask(state)
    trained += unstack(batch.archs)
    state, _ = begun.tell(state, batch, [0.0, 1.0])
  assert trained[:4] == [deep.decode(tokens, 1) for tokens in first[:4]]
  assert [len(arch.filters) for arch in trained] == [1, 1, 1, 1, 2, 2]
  with pytest.raises(ValueError, match='5 architectures to train first, and after 4 .* a depth_every of 5'):
    start.begin(s, nothing, first)
  fixed = dataclasses.replace(cfg, depth_start=0), dataclasses.replace(cfg, depth_start=3)
  assert all(search.ask_tell(deep, cfg).before_deeper is None for cfg in fixed)


def test_rewards_of_layers_are_refused():
  space = chain_space(layers=('conv 2 3 1', 'max pool 2 2'), max_depth=2)
  s = per_layer.build(space, per_layer.Config(), lambda batch: None)
  with pytest.raises(ValueError, match='rewards for each layer'):
    start.begin(s, NONE, NOTHING)


@pytest.mark.long
@pytest.mark.parametrize(('algorithm', 'proposals'), [*((name, 'policy') for name in ALGORITHMS), ('pqt', 'guided')])
def test_every_algorithm_can_be_told(algorithm, proposals):
  s = _search(algorithm=algorithm, proposals=proposals, known='avoid')
  tokens = OPS[~MISSING][:5]  # an odd number: the last batch is smaller
  begun = start.begin(s, _known(tokens, REWARD[~MISSING][:5]), OPS[~MISSING][[7]])
  state, fresh = begun.init(jax.random.key(0)), s.sized(s.init(jax.random.key(0)), 0)
  shapes = [jax.tree.map(lambda x: (x.shape, x.dtype), one) for one in (state, fresh)]
  assert shapes[0] == shapes[1]  # checkpoints of the one are those of the other
  again = begun.init(jax.random.key(0))
  for one, other in zip(jax.tree.leaves(state.algorithm), jax.tree.leaves(again.algorithm), strict=True):
    np.testing.assert_array_equal(one, other)
  assert proposals == 'policy' or state.guide.size == len(tokens)
  state, children = _run(begun, state, 4)
  drawn = [tuple(child) for child, _, _ in children]
  assert drawn[0] == tuple(OPS[~MISSING][7].tolist()) and not set(drawn) & set(map(tuple, tokens.tolist()))
