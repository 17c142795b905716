"""The contract of all search algorithms, on small spaces that have every kind of token.

`tests/systems/contract_test.py` has the contract of whole searches: resuming, compiling once, learning.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import testing
from testing import LAYERED, SPACES, strings

from nas_jax.search import algorithms
from nas_jax.space.base import Kind
from nas_jax.types import Batch, Outcome

KEYS = jax.random.split(jax.random.key(1), 32)


@pytest.fixture(params=algorithms.ALGORITHMS)
def name(request):
  return request.param


def build(name, space):
  return algorithms.build(space, testing.search_config(algorithm=name))


def batch_of(space, tokens, depth=None):
  ids = jnp.arange(len(tokens), dtype=jnp.int32)
  return Batch(ids, KEYS[: len(tokens)], tokens, space.decode_batch(tokens), depth)


def same(value):
  return value


def shapes(state):
  return jax.tree.map(lambda x: (x.shape, x.dtype), state)


# These sample their proposals from the controller of REINFORCE.
CONTROLLED = ('pqt', 'ppo')
CASES = [
  pytest.param(name, where, marks=pytest.mark.long) if name in CONTROLLED and where != 'layered' else (name, where)
  for name in algorithms.ALGORITHMS
  for where in SPACES
]


@pytest.mark.parametrize(('name', 'where'), CASES)
def test_proposals_are_token_sequences_of_the_space(name, where):
  """Before and after an update; choices, links, pointers, and tokens that exist for some types of layer only."""
  space = SPACES[where]
  own, allowed = build(name, space), {tuple(tokens) for tokens in strings(space).tolist()}
  state, propose = own.init(jax.random.key(0)), jax.jit(lambda state, keys: own.propose(state, keys, None))
  for _ in range(2):
    tokens = propose(state, KEYS)
    assert tokens.shape == (len(KEYS), space.length) and tokens.dtype == jnp.int32
    found = {tuple(row) for row in tokens.tolist()}
    assert found <= allowed and len(found) > 1
    outcome = Outcome(jnp.linspace(0.0, 1.0, len(KEYS)))
    after, info = jax.jit(own.update, static_argnums=3)(state, batch_of(space, tokens), outcome, same)
    assert shapes(after) == shapes(state)
    assert not any(np.isnan(value).any() for value in jax.tree.leaves(after))
    assert all(np.shape(value) == () and np.isfinite(value) for value in info.values())
    state = after


@pytest.mark.parametrize('depth', [1, 2])
def test_tokens_beyond_the_depth_are_not_there(name, depth):
  own, allowed = build(name, LAYERED), {tuple(tokens) for tokens in strings(LAYERED, depth).tolist()}
  state = own.init(jax.random.key(0))
  fixed = own.propose(state, KEYS, depth)
  traced = jax.jit(own.propose)(state, KEYS, jnp.int32(depth))
  assert {tuple(row) for row in fixed.tolist()} <= allowed
  np.testing.assert_array_equal(fixed, traced)


def test_layers_may_have_rewards_and_sequences_depths_of_their_own(name):
  """The reward of a layer that does not exist is not looked at."""
  own = build(name, LAYERED)
  state, depths = own.init(jax.random.key(0)), jnp.array([1, 3, 2])
  tokens = jnp.stack([own.propose(state, KEYS[k : k + 1], depth)[0] for k, depth in enumerate((1, 3, 2))])
  reward = jnp.array([[0.5, 0, 0], [0.1, 0.9, 0.4], [0.2, 0.3, 0]])
  update = jax.jit(own.update, static_argnums=3)
  batch = batch_of(LAYERED, tokens)._replace(depth=depths)
  after, info = update(state, batch, Outcome(reward), same)
  again, _ = update(state, batch, Outcome(reward.at[0, 2].set(7.0).at[2, 2].set(-3.0)), same)
  assert shapes(after) == shapes(state) and all(np.isfinite(value) for value in info.values())
  jax.tree.map(np.testing.assert_array_equal, after, again)


@pytest.mark.parametrize(
  'name',
  [pytest.param(name, marks=pytest.mark.long) if name in CONTROLLED else name for name in algorithms.ALGORITHMS],
)
def test_searches_side_by_side_are_those_alone(name):
  """Searches under `vmap` equal single ones, as searches in tables run many seeds in one program."""
  own = build(name, SPACES['choice'])

  def search(key):
    def step(state, key):
      tokens = own.propose(state, jax.random.split(key, 3), None)
      reward = jnp.sin(tokens.sum(1) * 1.7 + tokens[:, 0])
      return own.update(state, batch_of(SPACES['choice'], tokens), Outcome(reward), same)[0], tokens

    return jax.lax.scan(step, own.init(key), jax.random.split(key, 4))

  alone, (state, tokens) = jax.jit(search), jax.jit(jax.vmap(search))(KEYS[:3])
  for k, key in enumerate(KEYS[:3]):
    state_k, tokens_k = alone(key)
    np.testing.assert_array_equal(tokens[k], tokens_k)
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(state_k), strict=True):
      np.testing.assert_allclose(a[k], b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('where', ['choice', 'layered'])
def test_the_summary_is_of_every_label(name, where):
  space = SPACES[where]
  own = build(name, space)
  entropy, odds = jax.jit(own.summary)(own.init(jax.random.key(0)), KEYS)
  assert entropy.shape == () and 0.0 <= entropy <= np.log(float(space.size())) + 1e-5
  assert odds.shape == (len(space.slots), max(slot.width for slot in space.slots))
  for row, slot in zip(np.asarray(odds), space.slots, strict=True):
    assert ((row >= 0) & (row <= 1)).all() and not row[slot.width :].any()
    if slot.kind != Kind.LINK:
      assert row.sum() == pytest.approx(1, abs=1e-5)


def test_a_gradient_is_of_theta_and_comes_with_all_that_replicas_need(name):
  own = build(name, LAYERED)
  parts = own.gradient, own.apply, own.log_prob
  assert len({part is None for part in parts}) == 1
  if own.gradient is None:
    return
  state = own.init(jax.random.key(0))
  batch, outcome = batch_of(LAYERED, own.propose(state, KEYS[:3], None)), Outcome(jnp.array([1.0, 0.0, 2.0]))
  grads = own.gradient(state, batch, outcome, same)
  assert shapes(grads) == shapes(state.theta) and hasattr(state, 'opt_state')
  log_prob = own.log_prob(state, batch)
  assert log_prob.shape == batch.tokens.shape and (log_prob <= 0).all() and (log_prob < 0).any()
  doubled = own.gradient(state, batch, outcome, lambda value: 2 * value)
  assert any((a != b).any() for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(doubled), strict=True))
