"""All programs lower for GPUs and TPUs. No such device is needed for that, and nothing is compiled."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import pytest

from experiments.common.systems import ENAS, SYSTEMS
from nas_jax import replicas, search, space
from nas_jax.search import per_layer
from nas_jax.search.algorithms import ALGORITHMS
from nas_jax.systems import enas, retrain
from nas_jax.training import evaluators, fit, layout
from nas_jax.training.problem import static_fitter, traced_fitter
from nas_jax.types import Outcome

PLATFORMS = 'cuda', 'tpu'
NAMED = {system.name: system for system in SYSTEMS}


@pytest.fixture(autouse=True)
def accelerator(monkeypatch):
  """The children of a device are one batch, and there are no compiler options for CPUs."""
  monkeypatch.setattr(layout, 'in_turn', lambda mesh: False)
  monkeypatch.setattr(layout, 'jit_options', lambda *_: {})


@functools.cache
def smoke(name):
  """Returns the config, the data and two children of the smoke preset of a system."""
  system = NAMED[name]
  cfg = system.presets['smoke']()
  problem = system.make_problem(cfg, system.load(cfg, ''))
  return cfg, problem, evaluators.random_batch(problem.space, jax.random.key(0), 2)


def lowered(function, *args):
  """Returns the program as text, and asserts that both platforms support its operations."""
  exported = jax.export.export(jax.jit(function), platforms=PLATFORMS)(*args)
  assert exported.platforms == PLATFORMS
  return exported.mlir_module()


def mesh():
  return layout.child_mesh(jax.devices()[:1])


def lower(programs, data, archs, keys):
  """Lowers the three programs of children."""
  states = fit.shapes(programs, archs, keys)
  assert 'func' in lowered(lambda *a: programs.init(*a), archs, keys, jnp.ones(2, bool))
  assert 'while' in lowered(lambda *a: programs.chunk(*a), data, jnp.asarray(1), states, archs, keys)
  assert 'func' in lowered(lambda *a: programs.score(*a), data, states, archs)


@pytest.mark.parametrize(
  # The long ones are of networks that the next test lowers too.
  'name',
  [pytest.param(name, marks=pytest.mark.long) if name in ('macro', 'micro') else name for name in NAMED],
)
def test_training_alone(name):
  """From scratch, with a traced and with a static architecture."""
  _, problem, batch = smoke(name)
  if problem.traced:
    lower(traced_fitter(problem, problem.traced(batch.archs), mesh()), problem.data, batch.archs, batch.keys)
  if NAMED[name] not in ENAS:
    lower(static_fitter(problem, space.unstack(batch.archs)[0], mesh()), problem.data, (), batch.keys)


@pytest.mark.parametrize(
  ('name', 'fields'),
  [
    ('cell', {'precision': 'bfloat16', 'unroll': 5}),
    pytest.param('cell', {'precision': 'tf32'}, marks=pytest.mark.long),
    pytest.param('conv', {'precision': 'bfloat16'}, marks=pytest.mark.long),
    pytest.param('conv', {'precision': 'tf32'}, marks=pytest.mark.long),
  ],
)
def test_lower_precision_and_unrolled_loops(name, fields):
  system = NAMED[name]
  cfg = dataclasses.replace(system.presets['smoke'](), **fields)
  problem = system.make_problem(cfg, system.load(cfg, ''))
  batch = evaluators.random_batch(problem.space, jax.random.key(0), 2)
  lower(traced_fitter(problem, problem.traced(batch.archs), mesh()), problem.data, batch.archs, batch.keys)


@pytest.mark.parametrize(
  'name', ['cell', *(pytest.param(name, marks=pytest.mark.long) for name in NAMED if name != 'cell')]
)
def test_retraining(name, monkeypatch):
  """With dropout and tied embeddings in language models."""
  one, system = mesh(), NAMED[name]
  monkeypatch.setattr(layout, 'child_mesh', lambda *_: one)
  recipe = system.retrain
  cfg = recipe.presets['smoke']()
  if name == 'cell':
    cfg = dataclasses.replace(cfg, dropout=('0.1:0.2:0.3:0.4',), tied=True)
  batch = smoke(name)[2]
  task = recipe.task(cfg, system.load(cfg, ''), space.unstack(batch.archs)[0], recipe.sizes(cfg)[0], 2, True)
  points = [retrain.grid(recipe.point, cfg)[0]] * 2
  lower(task.programs, task.data, recipe.hyperparameters(points), batch.keys)


@pytest.mark.parametrize(
  'name', [pytest.param(one.name, marks=pytest.mark.long) if one.name == 'macro' else one.name for one in ENAS]
)
def test_training_and_scoring_shared_weights(name):
  cfg, problem, batch = smoke(name)
  programs, caught = enas.build_programs(problem, cfg, mesh()), []

  def updates(update, most):
    caught.append((update, most))
    return programs.updates(update, most)

  s = enas.build(problem, cfg, programs._replace(updates=updates))
  state = jax.eval_shape(s.init, jax.random.key(0))
  weights, alone = state.children, state._replace(children=())
  many = programs.updates(*caught[0])
  assert 'while' in lowered(lambda weights, state: many(weights, state, 1), weights, alone)
  assert 'while' in lowered(programs.learn, weights, jax.tree.map(lambda x: x[:, None], batch.archs), jax.random.key(1))


def asked(name, algorithm):
  """Of the algorithms beside the paper's, `make test` has those of the first system only."""
  seldom = algorithm == 'random' or (algorithm != 'reinforce' and name != next(iter(NAMED)))
  return pytest.param(name, algorithm, marks=pytest.mark.long if seldom else (), id=f'{name}-{algorithm}')


def test_proposals_of_a_process():
  """Guided proposals need the rewards of earlier children, which the state holds."""
  s = search.ask_tell(NAMED['cell'].make_space(smoke('cell')[0]), search.Config(m=2, proposals='guided'))
  state = jax.eval_shape(s.init, jax.random.key(0))
  batch = jax.eval_shape(s.ask, state)
  assert 'func' in lowered(s.ask, state)
  assert 'func' in lowered(lambda *a: s.tell(*a[:2], Outcome(a[2])), state, batch, jnp.zeros(2))


def test_the_controller_with_a_reward_for_each_layer():
  """With the replay tree, which is part of the state."""
  cfg = per_layer.Config(m=2, controller_units=4)
  s = per_layer.build(smoke('per_layer')[1].space, cfg, lambda batch: Outcome(jnp.zeros(0)))
  state = jax.eval_shape(s.init, jax.random.key(0))
  batch = jax.eval_shape(s.ask, state)
  each, failed = jnp.zeros(batch.tokens.shape), jnp.zeros(batch.tokens.shape, bool)  # of each prefix
  assert 'func' in lowered(s.ask, state)
  assert 'func' in lowered(lambda *a: s.tell(*a[:2], Outcome(*a[2:])), state, batch, each, {}, ~failed, failed)


def test_replicas():
  s = search.ask_tell(NAMED['cell'].make_space(smoke('cell')[0]), search.Config(m=2, controller_units=4))
  machine = replicas.simulated(replicas.build(s, 3, accumulate=2))
  fleet = jax.eval_shape(machine.init, jax.random.key(0))
  batch = jax.eval_shape(machine.ask, fleet)
  assert 'func' in lowered(machine.ask, fleet)
  assert 'func' in lowered(lambda *a: machine.tell(*a[:2], Outcome(a[2])), fleet, batch, jnp.zeros(2))


@pytest.mark.parametrize(('name', 'algorithm'), [asked(*pair) for pair in itertools.product(NAMED, ALGORITHMS)])
def test_the_controller(name, algorithm):
  _, problem, _ = smoke(name)
  s = search.ask_tell(problem.space, search.Config(m=2, controller_units=4, algorithm=algorithm))
  state = jax.eval_shape(s.init, jax.random.key(0))
  batch = jax.eval_shape(s.ask, state)
  assert 'func' in lowered(s.ask, state)
  assert 'func' in lowered(lambda *a: s.tell(*a[:2], Outcome(a[2])), state, batch, jnp.zeros(2))
  assert 'func' in lowered(s.policy_summary, state, jax.random.split(jax.random.key(0), 3))
