"""All programs lower for GPUs and TPUs. No such device is needed for that, and nothing is compiled."""

import functools
import itertools

import jax
import jax.numpy as jnp
import pytest

from experiments.common.systems import ENAS, SYSTEMS
from nas_jax import search, space
from nas_jax.search.algorithms import ALGORITHMS
from nas_jax.systems import enas
from nas_jax.training import evaluators, fit
from nas_jax.training.problem import static_fitter, traced_fitter
from nas_jax.types import Outcome

PLATFORMS = 'cuda', 'tpu'
KINDS = {system.kind: system for system in SYSTEMS}


@pytest.fixture(autouse=True)
def accelerator(monkeypatch):
  """The children of a device are one batch, and there are no compiler options for CPUs."""
  monkeypatch.setattr(fit, 'in_turn', lambda mesh: False)
  monkeypatch.setattr(fit, 'jit_options', lambda *_: {})


@functools.cache
def smoke(kind):
  """Returns the config, the data and two children of the smoke preset of a system."""
  system = KINDS[kind]
  cfg = system.presets['smoke']()
  problem = system.make_problem(cfg, system.load(cfg, ''))
  return cfg, problem, evaluators.random_batch(problem.space, jax.random.key(0), 2)


def lowered(function, *args):
  """Returns the program as text, and asserts that both platforms support its operations."""
  exported = jax.export.export(jax.jit(function), platforms=PLATFORMS)(*args)
  assert exported.platforms == PLATFORMS
  return exported.mlir_module()


def mesh():
  return fit.child_mesh(jax.devices()[:1])


@pytest.mark.parametrize(
  # The long ones are of networks that the next test lowers too.
  'kind',
  [pytest.param(kind, marks=pytest.mark.long) if kind in ('enas_macro', 'enas_micro') else kind for kind in KINDS],
)
def test_training_alone(kind):
  """From scratch, with a traced and with a static architecture."""
  _, problem, batch = smoke(kind)
  made = []
  if problem.traced:
    made.append((traced_fitter(problem, problem.traced(batch.archs), mesh()), batch.archs))
  if KINDS[kind] not in ENAS:
    made.append((static_fitter(problem, space.unstack(batch.archs)[0], mesh()), ()))
  for programs, archs in made:
    states = fit.shapes(programs, archs, batch.keys)
    real, count = jnp.ones(2, bool), jnp.asarray(1)
    assert 'func' in lowered(lambda *a, programs=programs: programs.init(*a), archs, batch.keys, real)
    assert 'while' in lowered(
      lambda *a, programs=programs: programs.chunk(*a), problem.data, count, states, archs, batch.keys
    )
    assert 'func' in lowered(lambda *a, programs=programs: programs.score(*a), problem.data, states, archs)


@pytest.mark.parametrize(
  'kind', [pytest.param(one.kind, marks=pytest.mark.long) if one.kind == 'enas_macro' else one.kind for one in ENAS]
)
def test_training_and_scoring_shared_weights(kind):
  cfg, problem, batch = smoke(kind)
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


def asked(kind, algorithm):
  """Of the algorithms beside the paper's, `make test` has those of the first system only."""
  seldom = algorithm == 'random' or (algorithm != 'reinforce' and kind != next(iter(KINDS)))
  return pytest.param(kind, algorithm, marks=pytest.mark.long if seldom else (), id=f'{kind}-{algorithm}')


@pytest.mark.parametrize(('kind', 'algorithm'), [asked(*pair) for pair in itertools.product(KINDS, ALGORITHMS)])
def test_the_controller(kind, algorithm):
  _, problem, _ = smoke(kind)
  s = search.ask_tell(problem.space, search.Config(m=2, controller_units=4, algorithm=algorithm))
  state = jax.eval_shape(s.init, jax.random.key(0))
  batch = jax.eval_shape(s.ask, state)
  assert 'func' in lowered(s.ask, state)
  assert 'func' in lowered(lambda *a: s.tell(*a[:2], Outcome(a[2])), state, batch, jnp.zeros(2))
  assert 'func' in lowered(s.policy_summary, state, jax.random.split(jax.random.key(0), 3))
