"""The contract of all systems with all search algorithms: one suite, with a line for each system."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import testing

from experiments.bench.timing import compilations
from nas_jax import search, space
from nas_jax.search import per_layer
from nas_jax.search.algorithms import ALGORITHMS
from nas_jax.systems import cell, conv, enas, enas_images, enas_rnn, sequence, table
from nas_jax.training import checkpoint
from nas_jax.types import Outcome

CONTROLLER = {'m': 4, 'controller_units': 8, 'controller_lr': 0.02}


def tree_cells():
  cfg = testing.cell_config(**CONTROLLER)
  s = cell.build(cfg, testing.text())
  return cfg, lambda cfg: search.build(s.space, cfg, s.train)


def readers():
  cfg = testing.sequence_config(**CONTROLLER)
  s = sequence.build(cfg, testing.sequences())
  return cfg, lambda cfg: search.build(s.space, cfg, s.train)


def networks():
  # Links share one attention over all layers, which narrow controllers hardly tell apart.
  writer = CONTROLLER | {'controller_units': 35, 'controller_lr': 0.01, 'controller_init': 0.5}
  cfg = testing.conv_config(max_depth=4, child_program='generic', **writer)
  s = conv.build(cfg, testing.pictures())
  return cfg, lambda cfg: search.build(s.space, cfg, s.train)


def tables():
  ops = np.array(list(itertools.product(range(3), range(2), range(4))))
  return table.Config(**CONTROLLER), lambda cfg: table.build(cfg, ops, np.linspace(0.0, 1.0, len(ops)))


def layers():
  made = space.chain_space(('conv 1 1 1', 'conv 2 1 1', 'max pool 2 2'), 3)

  def train(batch):
    return Outcome((batch.tokens * jnp.array([3, 2, 1])[None]).sum(1) / 12 + batch.depth / 6)

  return per_layer.Config(**CONTROLLER), lambda cfg: per_layer.build(made, cfg, train)


def asked_and_told():
  choices = space.choice_space({'a': ('x', 'y', 'z'), 'b': ('p', 'q'), 'c': ('x', 'y', 'z'), 'd': ('p', 'q')})

  def evaluate(batch):
    return Outcome((batch.tokens[:, 0] == 2).astype(jnp.float32))

  return search.Config(**CONTROLLER), lambda cfg: search.ask_tell(choices, cfg)._replace(evaluate=evaluate)


def guided():
  """A Gaussian process chooses among proposals of the algorithm, and no sequence is asked for twice."""
  choices = space.choice_space({f'slot {k}': 'wxyz' for k in range(8)})

  def evaluate(batch):
    return Outcome((batch.tokens == 2).mean(1))

  cfg = search.Config(known='avoid', proposals='guided', **CONTROLLER)
  return cfg, lambda cfg: search.ask_tell(choices, cfg)._replace(evaluate=evaluate)


def sharing(problem, cfg):
  programs = enas.build_programs(problem, cfg)
  return cfg, lambda cfg: enas.build(problem, cfg, programs)


def macro():
  writer = CONTROLLER | {'controller_units': 16, 'controller_init': 0.5}  # links: as in `networks`
  cfg = testing.macro_config(**writer)
  return sharing(enas_images.make_problem(cfg, testing.pictures()), cfg)


def micro():
  cfg = testing.micro_config(**CONTROLLER)
  return sharing(enas_images.make_problem(cfg, testing.pictures()), cfg)


def recurrent():
  cfg = testing.rnn_config(**CONTROLLER)
  return sharing(enas_rnn.make_problem(cfg, testing.text()), cfg)


# Each makes a config and a builder of its search. The programs that train children are compiled once for all.
SYSTEMS = {
  'cell': tree_cells,
  'sequence': readers,
  'conv': networks,
  'table': tables,
  'per_layer': layers,
  'macro': macro,
  'micro': micro,
  'recurrent': recurrent,
  'ask_tell': asked_and_told,
  'guided': guided,
}


@functools.cache
def system(name):
  return SYSTEMS[name]()


@functools.cache
def built(name, algorithm):
  cfg, build = system(name)
  return build(dataclasses.replace(cfg, algorithm=algorithm))


# For algorithms other than the paper's, the systems that `make test` includes.
QUICK = {'random': ('cell', 'table', 'ask_tell'), 'evolution': ('table',)}


def case(name, algorithm):
  """Returns a system and an algorithm as a test case. All pairs are tested, and some also by `make test`."""
  seldom = algorithm != 'reinforce' and name not in QUICK.get(algorithm, ())
  return pytest.param((name, algorithm), marks=pytest.mark.long if seldom else (), id=f'{name}-{algorithm}')


@pytest.fixture(scope='module', params=[case(*pair) for pair in itertools.product(SYSTEMS, ALGORITHMS)])
def pair(request):
  """A system and an algorithm."""
  return request.param


@pytest.fixture(scope='module')
def s(pair):
  name, algorithm = pair
  yield built(name, algorithm)
  last = 'random' if name in QUICK['random'] else 'reinforce'
  if algorithm in (last, tuple(ALGORITHMS)[-1]):  # what trains children serves all algorithms until then
    testing.drop_programs()


def numbers(state):
  return [np.asarray(x) for x in jax.tree.leaves(state._replace(key=jax.random.key_data(state.key)))]


def equal(a, b):
  return all(np.array_equal(x, y) for x, y in zip(numbers(a), numbers(b), strict=True))


def steps(s, state, count):
  for _ in range(count):
    batch = s.ask(state)
    state, _ = s.tell(state, batch, s.evaluate(batch))
  return state


@pytest.fixture(scope='module')
def walked(s):
  """The states after 0, 2 and 4 steps."""
  start = s.init(jax.random.key(0))
  middle = steps(s, start, 2)
  return start, middle, steps(s, middle, 2)


def test_nothing_is_nan_and_the_state_moves(s, walked):
  assert not any(np.isnan(x).any() for x in numbers(walked[-1])) and np.isfinite(walked[-1].best.reward)
  assert not equal(walked[0], walked[-1]) and int(walked[-1].step) == 4


def test_compiled_once(s, walked):
  """A step after the first compiles nothing for the controller."""
  batch = s.ask(walked[1])
  outcome = s.evaluate(batch)
  with compilations() as found:
    s.ask(walked[2])
    s.tell(walked[1], batch, outcome)
  assert found == []


def test_children_are_of_the_space(s, walked):
  batch = s.ask(walked[1])
  assert batch.ids.tolist() == [8, 9, 10, 11]
  for k, tokens in enumerate(np.asarray(batch.tokens)):
    arch = s.space.decode(tokens)
    assert (s.space.encode(arch) == tokens).all()
    assert arch == s.space.from_json(s.space.to_json(arch))
    for traced, static in zip(batch.archs, arch, strict=True):
      assert traced[k].tolist() == list(static)


def test_asking_is_pure(s, walked):
  first, second = s.ask(walked[1]), s.ask(walked[1])
  assert (first.tokens == second.tokens).all() and (first.keys == second.keys).all()
  assert not (first.tokens == s.ask(walked[0]).tokens).all()


def test_evaluating_again_earns_the_same(s, walked):
  batch = s.ask(walked[1])
  outcome = s.evaluate(batch)
  assert outcome.reward.shape[0] == s.m and np.isfinite(outcome.reward).all()
  assert (s.evaluate(batch).reward == outcome.reward).all()


def test_tell_is_apply_after_gradient(s, walked):
  if s.gradient is None:
    pytest.skip('an algorithm that follows no gradient')
  batch = s.ask(walked[1])
  outcome = s.evaluate(batch)
  told, _ = s.tell(walked[1], batch, outcome)
  applied, _ = s.apply(walked[1], s.gradient(walked[1], batch, outcome), batch, outcome)
  for a, b in zip(numbers(told), numbers(applied), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.filterwarnings('ignore::DeprecationWarning')
def test_saved_and_restored_it_goes_on_the_same(s, walked, tmp_path):
  save, close = checkpoint.saver(str(tmp_path / 'checkpoints'))
  save(2, walked[1])
  close()
  restored = checkpoint.restore(str(tmp_path / 'checkpoints'), s.init(jax.random.key(9)))
  assert equal(restored, walked[1])
  assert equal(steps(s, restored, 2), walked[2])


def test_a_planted_reward_is_learned(pair, s):
  """The share of tokens that agree with one token sequence rises well above that of an untrained search."""
  if pair[1] == 'random':
    pytest.skip('learns nothing')
  planted = s.ask(s.init(jax.random.key(5))).tokens[0]

  def reward(tokens):
    return (tokens == planted[None]).mean(1)

  untrained = np.mean([reward(s.ask(s.init(jax.random.key(seed))).tokens) for seed in range(10, 20)])
  state, shares = s.init(jax.random.key(0)), []
  for _ in range(100):
    batch = s.ask(state)
    shares.append(float(reward(batch.tokens).mean()))
    state, _ = s.tell(state, batch, Outcome(reward(batch.tokens)))
  # Evolution changes a token of every parent: its children are at most as good as a parent with one token wrong.
  most = 1.0 - (pair[1] == 'evolution') / s.space.length
  assert np.mean(shares[-10:]) > untrained + min(0.2, 0.4 * (most - untrained))


def test_random_search_is_the_same_search_without_a_controller(pair, s):
  """Its batches depend only on the step and the key, not on its record of children."""
  if pair[1] != 'random' or pair[0] == 'guided':
    pytest.skip('chooses by what it remembers')
  state = s.init(jax.random.key(0))
  batch = s.ask(state)
  after, _ = s.tell(state, batch, Outcome(jnp.arange(4.0)))
  assert int(after.best.id) == 3 and (s.ask(after).tokens == s.ask(state._replace(step=after.step)).tokens).all()
  assert s.gradient is None and s.apply is None
