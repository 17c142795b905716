"""The cost of children: counts, bounds that leave children untrained, and rewards that include cost."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import testing

from nas_jax import config, export, space
from nas_jax.children import language_model
from nas_jax.search import journal
from nas_jax.systems import cell, chain, conv, language
from nas_jax.training import costs, evaluators, fit
from nas_jax.training.costs import Bounds, Cost, Shaping
from nas_jax.types import Batch, Outcome, Repeats

IMAGES = testing.pictures()


def batch(archs, repeats=None):
  ids = jnp.arange(len(archs), dtype=jnp.int32)
  keys = jax.random.split(jax.random.key(0), len(archs))
  return Batch(ids, keys, ids[:, None], space.stack(archs), repeats=repeats)


def recording(rewards):
  """Returns an evaluator whose rewards are `rewards`, and the list of the children that it was asked to train."""
  asked = []

  def evaluate(batch):
    left_out = np.zeros(len(batch.ids), bool) if batch.repeats is None else np.asarray(batch.repeats.known)
    asked.append((~left_out).tolist())
    failed = np.where(left_out, fit.Status.PADDING, fit.Status.OK)
    earned = jnp.where(left_out, 0.0, jnp.asarray(rewards, jnp.float32))
    return Outcome(earned, {'score': earned, 'failed': failed}, failed=jnp.asarray(left_out))

  return asked, evaluate


ARCHS = [space.ChainArch((code,)) for code in (1, 2, 3)]
COSTS = {1: Cost(100, 4000), 2: Cost(200, 1000), 3: Cost(400, 5000)}


def of_first_layer(arch):
  return COSTS[arch.layers[0]]


def test_a_shaped_reward_by_hand():
  # 0.5 * (100 / 200)^-0.5 = 0.5 * sqrt 2; at the target it stays; 0.5 * (400 / 200)^-0.5 = 0.5 / sqrt 2.
  _, evaluate = recording([0.5, 0.5, 0.5])
  found = costs.accounted(evaluate, of_first_layer, shaping=Shaping('weights', 200, -0.5))(batch(ARCHS))
  np.testing.assert_allclose(found.reward, [0.5 * 2**0.5, 0.5, 0.5 * 2**-0.5], rtol=1e-6)
  # As Tan et al. say, a model of twice the cost earns as much if its accuracy is about 5 % higher.
  found = costs.accounted(evaluate, of_first_layer, shaping=Shaping('multiply_adds', 1000))(batch(ARCHS[:1] * 3))
  np.testing.assert_allclose(found.reward, [0.5 * 4**-0.07] * 3, rtol=1e-6)
  assert 2**0.07 == pytest.approx(1.05, abs=1e-3)
  assert found.metrics['weights'].tolist() == [100] * 3 and found.metrics['multiply_adds'].tolist() == [4000] * 3


def test_without_shaping_a_reward_is_left_to_the_bit():
  _, evaluate = recording([0.1, -0.7, 0.3])
  found = costs.accounted(evaluate, of_first_layer)(batch(ARCHS))
  assert found.reward.tolist() == np.float32([0.1, -0.7, 0.3]).tolist()
  with pytest.raises(ValueError, match=r'a child has earned -0\.7: .*Take --cost=none'):
    costs.accounted(evaluate, of_first_layer, shaping=Shaping('weights', 200))(batch(ARCHS))


def test_a_child_above_a_bound_is_not_trained_and_says_which():
  asked, evaluate = recording([0.5, 0.6, 0.7])
  found = costs.accounted(evaluate, of_first_layer, Bounds(weights=200, multiply_adds=3999))(batch(ARCHS))
  assert asked == [[False, True, False]]  # a child at the bound is trained
  lines = journal.records(batch(ARCHS), found, 6.0)
  assert [line['failed'] for line in lines] == [
    'more multiply-adds than max_multiply_adds', None, 'more weights than max_weights',
  ]  # fmt: skip
  assert [line['seconds'] for line in lines] == [0.0, 6.0, 0.0]
  assert [line['weights'] for line in lines] == [100, 200, 400]
  assert [line['score'] for line in lines] == [None, pytest.approx(0.6), None]
  assert lines[0]['reward'] == 0.0 and found.failed.tolist() == [True, False, True]


def test_what_repeats_an_earlier_child_is_not_trained_either():
  asked, evaluate = recording([0.5, 0.6, 0.7])
  known = Repeats(jnp.array([False, True, False]), jnp.array([0, 0, 2]), jnp.zeros(3), jnp.zeros(3, bool))
  found = costs.accounted(evaluate, of_first_layer, Bounds(weights=399))(batch(ARCHS, known))
  assert asked == [[True, False, False]]
  assert found.metrics['failed'].tolist() == [fit.Status.OK, fit.Status.PADDING, fit.Status.ABOVE_WEIGHTS]


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    ({'cost': 'weights'}, r'cost \(=weights\) wants a cost_target'),
    ({'cost_target': 5}, r'cost_target \(=5\).* cost is none'),
    ({'cost_exponent': -1.0}, r'cost_exponent \(=-1.0\).* cost is none'),
    ({'cost': 'seconds', 'cost_target': 5}, 'cost .*one of none, weights, multiply_adds'),
    ({'cost': 'weights', 'cost_target': 5, 'cost_exponent': 0.5}, 'cost_exponent .*at most 0'),
    ({'max_weights': -1}, 'max_weights .*at least 0'),
  ],
)
@pytest.mark.parametrize('system', [conv, chain])
def test_what_cannot_be_is_one_line(system, changes, words):
  make = testing.conv_config if system is conv else testing.chain_config
  with pytest.raises(ValueError, match=words) as error:
    system.make_problem(make(**changes), IMAGES)
  assert '\n' not in str(error.value)


def test_the_formula_says_how_rewards_are_shaped():
  cfg = testing.conv_config(cost='multiply_adds', cost_target=20000)
  assert costs.formula(cfg) == ' * (multiply-adds / 20,000)^-0.07' and costs.formula(testing.conv_config()) == ''


@pytest.mark.parametrize('system', [conv, chain])
def test_networks_are_counted_as_what_is_exported_is(system):
  cfg = testing.conv_config() if system is conv else testing.chain_config()
  problem = system.make_problem(cfg, IMAGES)
  image = jax.ShapeDtypeStruct((1, *IMAGES.shape), jnp.float32)
  drawn = evaluators.random_batch(problem.space, jax.random.key(1), 3)
  for arch in space.unstack(drawn.archs):
    assert problem.cost_of(arch) == export.cost(export.module(arch, classes=IMAGES.classes), image)


def test_all_cells_of_a_space_cost_the_same_and_as_many_weights_are_trained():
  cfg, text = testing.cell_config(base=4, layers=2, tied=True, embedding=4), testing.text()
  problem = cell.make_problem(cfg, text)
  archs = space.unstack(evaluators.random_batch(problem.space, jax.random.key(0), 3).archs)
  (found,) = {problem.cost_of(arch) for arch in archs}
  child = language.build(cfg, text, language_model.tree(problem.space.operations), cfg.hidden)
  assert found.weights == language.weights(child, archs[0])
  for arch in archs[1:]:
    network = export.module(arch, vocabulary=5, features=4, layers=2, tied=True, embedding=4)
    assert export.cost(network, jax.ShapeDtypeStruct((1, 1), jnp.int32)) == found


def test_a_config_of_before_has_no_bounds():
  new = testing.conv_config()
  old = {name: value for name, value in config.as_json(new).items() if name not in costs.Config.added}
  assert config.differences(old, new) == [] and config.from_json(conv.Config, old) == new
  bounded = dataclasses.replace(new, max_weights=9)
  assert config.differences(old, bounded) == ['max_weights (0 -> 9)']
