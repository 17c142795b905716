"""Regularized evolution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import testing

from nas_jax.search import algorithms
from nas_jax.types import Batch, Outcome

SPACE = testing.SPACES['choice']
KEYS = jax.random.split(jax.random.key(0), 64)


def after(own, *children):
  """Returns the state after one batch of children (tokens, reward); a reward of None is a failure."""
  tokens = jnp.array([tokens for tokens, _ in children], jnp.int32)
  reward = jnp.array([0.0 if reward is None else reward for _, reward in children])
  failed = jnp.array([reward is None for _, reward in children])
  batch = Batch(None, None, tokens, None)
  return own.update(own.init(jax.random.key(0)), batch, Outcome(reward, failed=failed), lambda value: value)[0]


def apart(own, state, tokens):
  """Returns in how many tokens each proposal differs from a sequence."""
  return np.unique((np.asarray(own.propose(state, KEYS, None)) != np.array([tokens])).sum(1)).tolist()


@pytest.mark.parametrize('gone', [1, 2])  # the population is full, or the batch is larger
def test_the_parent_is_the_best_of_the_newest(gone):
  own = algorithms.build(SPACE, testing.search_config(algorithm='evolution', population=3, tournament=40))
  children = [([0, 0, 0], 9.0)] * gone + [([1, 2, 1], -2.0), ([0, 1, 0], -1.0), ([1, 0, 1], -3.0)]
  assert apart(own, after(own, *children), [0, 1, 0]) == [1]
  assert apart(own, after(own, *children[gone:][::-1]), [0, 1, 0]) == [1]


def test_a_small_tournament_draws_other_parents_too():
  own = algorithms.build(SPACE, testing.search_config(algorithm='evolution', population=2, tournament=1))
  assert apart(own, after(own, ([0, 0, 0], 1.0), ([1, 2, 1], 2.0)), [1, 2, 1]) == [1, 2, 3]


def test_a_child_that_failed_is_no_parent():
  own = algorithms.build(SPACE, testing.search_config(algorithm='evolution', population=2, tournament=40))
  assert apart(own, after(own, ([1, 2, 1], None), ([0, 0, 0], -7.0)), [0, 0, 0]) == [1]


def test_the_first_children_are_drawn_uniformly():
  own = algorithms.build(SPACE, testing.search_config(algorithm='evolution', population=3))
  state = after(own, ([0, 0, 0], 1.0), ([0, 0, 0], 1.0))
  assert apart(own, state, [0, 0, 0]) == [0, 1, 2, 3]
