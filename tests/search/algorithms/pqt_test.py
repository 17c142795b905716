"""Priority queue training."""

import jax
import jax.numpy as jnp
import numpy as np
import testing
from testing import LAYERED

from nas_jax.search import algorithms
from nas_jax.search.algorithms import pqt, reinforce
from nas_jax.types import Batch, Outcome


def queue_of(size, *batches):
  """Returns the queue (tokens, depth, reward) after batches of children (token, depth, reward, failed)."""
  queue = pqt.Queue(jnp.zeros((size, 1), jnp.int32), jnp.zeros(size, jnp.int32), jnp.full(size, -jnp.inf))
  for children in batches:
    token, depth, reward, failed = (jnp.array(column) for column in zip(*children, strict=True))
    queue = pqt.push(queue, token[:, None], depth, reward, failed)
  return [(t[0], d, r) for t, d, r in zip(*(x.tolist() for x in queue), strict=True) if d]


def test_the_queue_holds_the_best_distinct_sequences():
  first = [(1, 1, 2.0, False), (2, 1, 9.0, True), (1, 1, 3.0, False), (3, 1, -1.0, False)]
  assert queue_of(3, first) == [(1, 1, 3.0), (3, 1, -1.0)]
  second = [(4, 1, 0.0, False), (1, 2, 5.0, False), (1, 1, 1.0, False), (3, 1, 4.0, False)]
  assert queue_of(3, first, second) == [(1, 2, 5.0), (3, 1, 4.0), (1, 1, 3.0)]
  assert queue_of(2, [(2, 1, 9.0, True)]) == []


def test_the_gradient_is_that_of_reinforce_and_of_the_queue():
  cfg = testing.search_config(algorithm='pqt', queue=2, queue_weight=0.7)
  own, plain = algorithms.build(LAYERED, cfg), reinforce.build(LAYERED, cfg)
  state = own.init(jax.random.key(0))
  tokens = own.propose(state, jax.random.split(jax.random.key(1), 3), None)
  batch, outcome = Batch(None, None, tokens, None), Outcome(jnp.array([1.0, 3.0, 2.0]))
  found = own.gradient(state, batch, outcome, lambda value: value)
  alone = plain.gradient(state, batch, outcome, lambda value: value)
  controller = reinforce.make_controller(LAYERED, cfg)
  pulls = [jax.grad(lambda theta, k=k: controller.log_prob(theta, tokens[k]).sum())(state.theta) for k in (1, 2)]
  wanted = jax.tree.map(lambda g, a, b: g - 0.7 * (a + b) / 2, alone, *pulls)
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
  # With nothing in the queue it is REINFORCE alone.
  lost = outcome._replace(failed=jnp.ones(3, bool))
  pair = (own.gradient(state, batch, lost, lambda v: v), plain.gradient(state, batch, lost, lambda v: v))
  jax.tree.map(np.testing.assert_array_equal, *pair)
