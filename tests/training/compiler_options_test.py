"""The compiler options of the systems: they affect speed alone, so no other test would notice their loss."""

import jax
import pytest
import testing

from nas_jax import space
from nas_jax.nn import image_ops
from nas_jax.systems import chain, conv, enas, enas_images, retrain_conv
from nas_jax.training import costs, evaluators, layout

IMAGES = testing.pictures()
WITHOUT_YNN = {'xla_cpu_experimental_ynn_fusion_type': ''}


@pytest.fixture
def told(monkeypatch):
  """The options of each compiled program. Evaluators make the programs of a batch's first child and train nothing."""
  found, make = [], layout.over_children

  def over_children(function, mesh, *at_once, **options):
    found.append(options.get('compiler_options', {}))
    return make(function, mesh, *at_once, **options)

  monkeypatch.setattr(layout, 'over_children', over_children)
  monkeypatch.setattr(costs, 'accounted', lambda evaluate, *others: evaluate)
  monkeypatch.setattr(evaluators, 'from_scratch', lambda programs, *others: lambda batch: programs)
  monkeypatch.setattr(
    evaluators,
    'static_programs',
    lambda own, *others: lambda batch: own(space.unstack(batch.archs)[0], layout.child_mesh()),
  )
  return found


def batch(of):
  return evaluators.random_batch(of, jax.random.key(0), 1)


def test_a_program_for_all(told):
  assert image_ops.compiler_options('cpu') == WITHOUT_YNN and image_ops.compiler_options('gpu') == {}
  cfg = testing.conv_config(child_program='generic')
  evaluators.build(conv.make_problem(cfg, IMAGES))(batch(conv.make_space(cfg)))
  network = batch(conv.make_space(cfg)).archs
  retrain_conv.task(retrain_conv.Config(batch=9), IMAGES, space.unstack(network)[0], '0', 1)
  problem = enas_images.make_problem(testing.macro_config(), IMAGES)
  evaluators.build(problem)(batch(problem.space))
  assert told == 9 * [WITHOUT_YNN]


def test_a_program_for_each_is_quick_to_compile(told):
  cfg = testing.conv_config(child_program='specialised')
  evaluators.build(conv.make_problem(cfg, IMAGES))(batch(conv.make_space(cfg)))
  cfg = testing.chain_config()
  chain.build_evaluator(chain.make_problem(cfg, IMAGES))(batch(chain.make_space(cfg)))
  assert [options['xla_backend_optimization_level'] for options in told] == 2 * [0, 1, 1]
  assert all(WITHOUT_YNN.items() <= options.items() for options in told)


def test_shared_weights(told, monkeypatch):
  jit, learning = jax.jit, []
  monkeypatch.setattr(jax, 'jit', lambda function, **options: learning.append(options) or jit(function, **options))
  cfg = testing.micro_config()
  enas.build_programs(enas_images.make_problem(cfg, IMAGES), cfg)
  assert told == 2 * [WITHOUT_YNN]
  ours = [options['compiler_options'] for options in learning if options]
  assert ours == 4 * [WITHOUT_YNN]  # learning and initial weights too
