"""The baseline and the advantage, by hand."""

import jax.numpy as jnp
import numpy as np

from nas_jax.search.algorithms import baseline as baseline_lib


def test_baseline_by_hand():
  # decay 0.9; means of the batches 2, 4, 1.
  # 1: no past, so b = 2, their own mean; the average starts there: 0.9 * 2 + 0.1 * 2 = 2.
  # 2: b = 2, from before them;           0.9 * 2 + 0.1 * 4 = 2.2.
  # 3: b = 2.2;                           0.9 * 2.2 + 0.1 * 1 = 2.08.
  baseline = baseline_lib.init_baseline()
  for rewards, advantage, value in (
    ([1.0, 3.0], [-1.0, 1.0], 2.0),
    ([4.0, 4.0], [2.0, 2.0], 2.2),
    ([0.0, 2.0], [-2.2, -0.2], 2.08),
  ):
    found, baseline = baseline_lib.advantage(baseline, jnp.array(rewards), 0.9)
    np.testing.assert_allclose(found, advantage, rtol=1e-6)
    np.testing.assert_allclose(baseline.value, value, rtol=1e-6)
  assert baseline.seen == 6


def test_a_first_child_alone_teaches_nothing():
  advantage, baseline = baseline_lib.advantage(baseline_lib.init_baseline(), jnp.array([0.7]), 0.95)
  np.testing.assert_array_equal(advantage, [0.0])
  np.testing.assert_allclose(baseline.value, 0.7, rtol=1e-6)


def test_baseline_of_one_reward_a_layer():
  advantage, baseline = baseline_lib.advantage(
    baseline_lib.Baseline(jnp.array(1.0), jnp.array(1), jnp.array(0.0)), jnp.array([[1.0, 3.0]]), 0.5
  )
  np.testing.assert_allclose(advantage, [[0.0, 2.0]])
  np.testing.assert_allclose(baseline.value, 1.5)  # half of 1, half of the mean 2


def test_a_normalized_advantage_by_hand():
  # The average of squares starts with the first batch's, (1 + 1) / 2 = 1; then, with decay 0.5 and b = 2,
  # it is 0.5 * 1 + 0.5 * (16 + 4) / 2 = 5.5.
  first, baseline = baseline_lib.advantage(baseline_lib.init_baseline(), jnp.array([1.0, 3.0]), 0.5, normalize=True)
  np.testing.assert_allclose(first, [-1.0, 1.0], rtol=1e-6)
  second, baseline = baseline_lib.advantage(baseline, jnp.array([6.0, 0.0]), 0.5, normalize=True)
  np.testing.assert_allclose(second, np.array([4.0, -2.0]) / 5.5**0.5, rtol=1e-6)
  # A hundred times the reward is the same advantage; equal rewards are none, whatever rounding leaves of them.
  scaled, _ = baseline_lib.advantage(baseline_lib.init_baseline(), jnp.array([100.0, 300.0]), 0.5, normalize=True)
  np.testing.assert_allclose(scaled, first, rtol=1e-6)
  equal, _ = baseline_lib.advantage(
    baseline_lib.Baseline(jnp.array(0.7), jnp.array(9), jnp.array(0.0)), jnp.array([0.7000001]), 0.5, True
  )
  assert abs(equal[0]) < 0.1


def test_the_baseline_is_the_average_of_all_rewards_of_layers_that_there_are():
  exists = jnp.array([[True, True, False], [True, False, False]])
  before = baseline_lib.Baseline(jnp.asarray(2.0), jnp.asarray(3), jnp.asarray(0.0))
  reward = jnp.array([[1.0, 5, 9], [6, 9, 9]])
  value, baseline = baseline_lib.advantage(before, reward, None, exists=exists)
  np.testing.assert_allclose(value, [[-1, 3, 0], [4, 0, 0]])
  np.testing.assert_allclose(baseline.value, (3 * 2 + 1 + 5 + 6) / 6, rtol=1e-6)
  assert baseline.seen == 6
