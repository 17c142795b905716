"""A search as pure functions: what it asks for, what it keeps, what it refuses."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import testing
from testing import LAYERED, one_line

from nas_jax import search
from nas_jax.types import Outcome


@functools.cache
def built(**fields) -> tuple[search.Search, search.SearchState]:
  s = search.ask_tell(LAYERED, testing.search_config(**fields))
  return s, s.init(jax.random.key(0))


def tell(s, state, *rewards):
  """The states after each of several batches of rewards."""
  states = []
  for reward in rewards:
    state, _ = s.tell(state, s.ask(state), Outcome(jnp.asarray(reward)))
    states.append(state)
  return states


def test_asking_changes_nothing():
  s, state = built()
  batch = s.ask(state)
  chex.assert_trees_all_equal(batch, s.ask(state))
  assert batch.tokens.shape == (3, LAYERED.length)
  chex.assert_trees_all_equal(batch.archs, LAYERED.decode_batch(batch.tokens))


def test_children_are_numbered_and_have_keys_of_their_own():
  s, state = built()
  (after,) = tell(s, state, [1.0, 2.0, 3.0])
  first, second = s.ask(state), s.ask(after)
  np.testing.assert_array_equal(first.ids, [0, 1, 2])
  np.testing.assert_array_equal(second.ids, [3, 4, 5])
  keys = [tuple(key) for batch in (first, second) for key in jax.random.key_data(batch.keys).tolist()]
  assert len(set(keys)) == 6
  assert after.key == state.key  # steps fold their number into it, so that any of them can be asked again


def test_a_child_does_not_depend_on_its_siblings():
  (three, state), (two, other) = built(), built(m=2)
  chex.assert_trees_all_equal(other, state)
  many, few = three.ask(state), two.ask(state)
  for name in ('ids', 'keys', 'tokens'):
    chex.assert_trees_all_equal(getattr(many, name)[:2], getattr(few, name))


def test_tell_is_apply_after_gradient():
  s, state = built()
  (state,) = tell(s, state, [1.0, 0.0, 2.0])
  batch, outcome = s.ask(state), Outcome(jnp.array([0.5, 2.0, 1.0]))
  (told, info), (applied, same) = (
    s.tell(state, batch, outcome),
    s.apply(state, s.gradient(state, batch, outcome), batch, outcome),
  )
  assert told.key == applied.key
  found, wanted = (told._replace(key=()), info), (applied._replace(key=()), same)
  chex.assert_trees_all_close(found, wanted, rtol=1e-5, atol=1e-6)


def test_the_best_child_is_the_first_of_equals():
  s, state = built()
  assert (state.best.reward, state.best.id) == (-np.inf, -1)
  states = tell(s, state, [-3.0, -1.0, -1.0], [-2.0, -1.0, -4.0], [-5.0, -6.0, -0.5])
  assert [int(after.best.id) for after in states] == [1, 1, 8]
  assert [float(after.best.reward) for after in states] == [-1.0, -1.0, -0.5]
  np.testing.assert_array_equal(states[1].best.tokens, s.ask(state).tokens[1])
  np.testing.assert_array_equal(states[2].best.tokens, s.ask(states[1]).tokens[2])


def test_the_best_of_rewards_by_layer():
  # A child is as good as its best layer.
  s, state = built()
  rewards = jnp.array([[0.0, 1.0, 0.5], [2.0, 0.0, 0.0], [0.0, 0.0, 1.5]])
  after, _ = s.tell(state, s.ask(state), Outcome(rewards))
  assert (after.best.reward, after.best.id) == (2.0, 1)


def test_a_reward_that_is_not_finite_counts_as_none():
  s, state = built()
  batch = s.ask(state)
  zero = jnp.arange(float(s.m)).at[-1].set(0.0)
  told, _ = s.tell(state, batch, Outcome(zero.at[-1].set(jnp.nan)))
  wanted, _ = s.tell(state, batch, Outcome(zero))
  jax.tree.map(np.testing.assert_array_equal, told._replace(key=()), wanted._replace(key=()))


def test_ask_tell_has_no_evaluator():
  s, state = built()
  with pytest.raises(ValueError, match=r'no evaluator.*tell') as error:
    s.evaluate(s.ask(state))
  one_line(error)


@pytest.mark.parametrize(
  'field, value',
  [
    ('algorithm', 'evolution'),
    ('algorithm', None),
    ('seed', -1),
    ('m', 0),
    ('m', -1),
    ('m', 2.0),
    ('m', True),
    ('m', '8'),
    ('controller_units', 0),
    ('controller_layers', 0),
    ('controller_init', 0.0),
    ('controller_lr', 0.0),
    ('controller_lr', -1e-3),
    ('controller_lr', float('nan')),
    ('controller_lr', '0.1'),
    ('controller_clip', -1.0),
    ('baseline_decay', 1.01),
    ('baseline_decay', -0.1),
    ('entropy_weight', -1.0),
  ],
)
def test_settings_out_of_range_are_refused(field, value):
  with pytest.raises(ValueError, match=f'^{field} ') as error:
    search.ask_tell(LAYERED, testing.search_config(**{field: value}))
  one_line(error)
