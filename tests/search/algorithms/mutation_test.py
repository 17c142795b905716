"""Mutations of token sequences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from testing import SPACES, strings

from nas_jax.controller import uniform_controller
from nas_jax.search.algorithms.mutation import mutate

KEYS = jax.random.split(jax.random.key(0), 200)


def mutants(space, tokens, depth, wanted, count=1):
  """Returns the distinct results of many mutations as rows, and the fresh sequence of each."""
  fresh = jax.vmap(lambda key: uniform_controller(space).sample((), key, wanted))(KEYS)
  change = jax.jit(lambda fresh, key: mutate(space, jnp.asarray(tokens), depth, fresh, key, wanted, count))
  return np.asarray(jax.vmap(change)(fresh, KEYS)), np.asarray(fresh)


@pytest.mark.parametrize('where', SPACES)
def test_one_token_changes_and_the_result_is_of_the_space(where):
  space = SPACES[where]
  allowed, parent = strings(space), strings(space)[-1]
  found, _ = mutants(space, parent, space.layers, None)
  assert {tuple(row) for row in found.tolist()} <= {tuple(row) for row in allowed.tolist()}
  both = np.asarray(space.exists(found) & space.exists(parent)[None])
  assert (((found != parent[None]) & both).sum(1) == 1).all()


def test_every_neighbour_is_found():
  space = SPACES['choice']
  parent = np.array([1, 2, 0])
  found = {tuple(row) for row in mutants(space, parent, 1, None)[0].tolist()}
  assert found == {(0, 2, 0), (1, 0, 0), (1, 1, 0), (1, 2, 1)}


def test_several_tokens_change():
  found, _ = mutants(SPACES['choice'], np.array([1, 2, 0]), 1, None, 2)
  assert ((found != np.array([[1, 2, 0]])).sum(1) == 2).all()


def test_tokens_that_the_parent_lacks_are_fresh():
  """From a parent of one layer, the second and third layer are fresh, as are the tokens that a new type requires."""
  space = SPACES['layered']
  parent = strings(space, 1)[1]
  found, fresh = mutants(space, parent, 1, None)
  deeper = space.layer_of_token() > 0
  assert (found[:, deeper] == fresh[:, deeper]).all() and (found[:, 0] == 1 - parent[0]).all()
  typed = SPACES['typed']
  parent = next(row for row in strings(typed) if row.tolist()[:3] == [0, 2, 0])
  found, fresh = mutants(typed, parent, 2, None)
  pooled = found[:, 0] == 1
  assert pooled.any() and (found[pooled, 1] == 0).all()
  assert (found[pooled, 2] == fresh[pooled, 2])[fresh[pooled, 0] == 1].all()


def test_a_sequence_that_has_nothing_to_change_stays():
  space = SPACES['layered']
  single = strings(space, 1)[0]
  assert (mutants(space, single, 1, 1, 0)[0] == single[None]).all()
