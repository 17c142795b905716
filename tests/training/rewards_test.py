"""From children to rewards, and whether those are a signal."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import testing

from nas_jax import space
from nas_jax.report import reliability
from nas_jax.systems import cell
from nas_jax.training import fit, rewards
from nas_jax.types import Batch, Outcome


def test_reward_of_a_perplexity_by_hand():
  # 80 / 20^2 = 0.2; 80 / 4^2 = 5, cut at 2; an infinite perplexity earns nothing.
  found = rewards.of_perplexity(np.array([20.0, 4.0, np.inf]), c=80.0, limit=2.0)
  np.testing.assert_allclose(found, [0.2, 2.0, 0.0])
  np.testing.assert_allclose(rewards.of_perplexity(np.array([4.0])), [5.0])


def test_a_child_that_fails_earns_nothing():
  # At such a learning rate every cell with a gradient blows up.
  cfg = testing.cell_config(lr=1e30, optimizer='sgd', schedule='constant', clip=1e30, m=4)
  s = cell.build(cfg, testing.text())
  outcome = s.evaluate(s.ask(s.init(jax.random.key(0))))
  failed = outcome.metrics['failed'] == fit.Status.NOT_FINITE
  assert failed.any()
  assert (np.asarray(outcome.reward)[failed] == 0).all() and np.isfinite(outcome.reward).all()


def test_the_evaluator_pays_by_the_metrics_it_reports():
  cfg = testing.cell_config(reward_c=7.0)
  s = cell.build(cfg, testing.text())
  outcome = s.evaluate(s.ask(s.init(jax.random.key(0))))
  np.testing.assert_allclose(outcome.reward, 7.0 / outcome.metrics['perplexity'] ** 2, rtol=1e-6)


@pytest.mark.parametrize(
  ('a', 'b', 'wanted'),
  [
    ([1, 2, 3, 4], [1, 4, 9, 16], 1.0),
    ([1, 2, 3, 4], [4, 3, 2, 1], -1.0),
    # Ranks 1 2 3 4 and 1.5 1.5 3 4: covariance 4.75 - 0.25 = 4.5, variances 5 and 4.5, so 4.5 / sqrt(22.5).
    ([1, 2, 3, 4], [0, 0, 5, 6], 4.5 / math.sqrt(22.5)),
  ],
)
def test_spearman_by_hand(a, b, wanted):
  assert reliability.spearman(np.array(a), np.array(b)) == pytest.approx(wanted)


def test_a_constant_reward_has_no_rank():
  assert math.isnan(reliability.spearman(np.ones(4), np.arange(4)))


def test_reliability_tells_signal_from_noise():
  sp = space.choice_space({'a': [str(i) for i in range(50)], 'b': [str(i) for i in range(50)]})

  def signal(batch: Batch) -> Outcome:
    return Outcome(batch.tokens.sum(1).astype(jnp.float32))

  def noise(batch: Batch) -> Outcome:
    return Outcome(jax.vmap(jax.random.uniform)(batch.keys))

  # 30 children in batches of 4: the last batch is filled up.
  found = reliability.measure(sp, signal, jax.random.key(0), 30, 4, noise, 20)
  assert found.seeds == pytest.approx(1.0) and abs(found.budget) < 0.6 and found.children == 30
  assert abs(reliability.measure(sp, noise, jax.random.key(0), 60, 4).seeds) < 0.4
  assert math.isnan(reliability.measure(sp, signal, jax.random.key(0), 30, 4).budget)
