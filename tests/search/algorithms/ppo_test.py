"""Proximal policy optimization."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import testing
from testing import LAYERED

from nas_jax.search import algorithms
from nas_jax.search.algorithms import ppo, reinforce
from nas_jax.types import Batch, Outcome

KEYS = jax.random.split(jax.random.key(1), 6)


def same(value):
  return value


def close(a, b):
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('batches', [1, pytest.param(3, marks=pytest.mark.long)])
def test_of_the_first_batch_the_gradient_is_that_of_reinforce(batches):
  """The ratio is 1 and its derivative is that of log pi; empty places for batches do not count."""
  cfg = testing.search_config(algorithm='ppo', ppo_batches=batches, entropy_weight=0.1, skip_weight=0.2)
  own = algorithms.build(LAYERED, cfg)
  state = own.init(jax.random.key(0))
  batch = Batch(None, None, own.propose(state, KEYS[:3], None), None)
  told = batch, Outcome(jnp.array([1.0, 3.0, 2.0])), same
  close(own.gradient(state, *told), reinforce.build(LAYERED, cfg).gradient(state, *told))


@pytest.mark.long
def test_an_earlier_batch_counts_by_its_clipped_ratio():
  cfg = testing.search_config(algorithm='ppo', ppo_batches=2, ppo_clip=0.05, controller_lr=0.1)
  own, controller = algorithms.build(LAYERED, cfg), reinforce.make_controller(LAYERED, cfg)
  first = own.init(jax.random.key(0))
  log_prob = jax.vmap(controller.log_prob, (None, 0))
  batches = [Batch(None, None, own.propose(first, keys, None), None) for keys in (KEYS[:3], KEYS[3:])]
  rewards = jnp.array([1.0, 3.0, 2.0]), jnp.array([4.0, 0.0, 2.5])
  state, _ = own.update(first, batches[0], Outcome(rewards[0]), same)
  before = log_prob(first.theta, batches[0].tokens), log_prob(state.theta, batches[1].tokens)
  # The baseline starts at the mean of the first batch, 2, and stays there.
  advantages = rewards[0] - 2.0, rewards[1] - 2.0

  def objective(theta):
    parts = [
      ppo.surrogate(log_prob(theta, batch.tokens), old, value[:, None], 0.05).sum(1)
      for batch, old, value in zip(batches, before, advantages, strict=True)
    ]
    return -jnp.concatenate(parts).mean()

  ratio = jnp.exp(log_prob(state.theta, batches[0].tokens) - before[0])
  assert (abs(ratio - 1) > 0.05).any()  # some are clipped
  close(own.gradient(state, batches[1], Outcome(rewards[1]), same), jax.grad(objective)(state.theta))
