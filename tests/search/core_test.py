"""A search as pure functions: the batches it asks for, the state it keeps, the input it refuses."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import testing
from testing import LAYERED, one_line

from nas_jax import search, space
from nas_jax.search import algorithms
from nas_jax.types import Outcome


@functools.cache
def built(**fields) -> tuple[search.Search, search.SearchState]:
  s = search.ask_tell(LAYERED, testing.search_config(**fields))
  return s, s.init(jax.random.key(0))


def tell(s, state, *rewards):
  """Returns the states after each of several batches of rewards."""
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


def equal(state, other):
  jax.tree.map(np.testing.assert_array_equal, state._replace(key=()), other._replace(key=()))


FAILURES = [Outcome(jnp.array([1.0, jnp.nan, 2.0])), Outcome(jnp.array([1.0, 9.0, 2.0]), failed=[False, True, False])]


@pytest.mark.parametrize('outcome', FAILURES)
def test_a_failed_child_earns_0_among_rewards_that_are_not_negative(outcome):
  s, state = built()
  batch = s.ask(state)
  (told, info), (wanted, _) = s.tell(state, batch, outcome), s.tell(state, batch, Outcome(jnp.array([1.0, 0.0, 2.0])))
  jax.tree.map(np.testing.assert_array_equal, told.algorithm, wanted.algorithm)
  assert float(info['reward']) == 1.0 and (float(told.worst), float(wanted.worst)) == (1.0, 0.0)


@pytest.mark.parametrize('outcome', FAILURES)
def test_a_failed_child_earns_the_worst_reward_where_rewards_are_negative(outcome):
  s, state = built()
  (before,) = tell(s, state, [-3.0, -1.0, -2.0])
  batch, outcome = s.ask(before), outcome._replace(reward=outcome.reward - 3)
  told, _ = s.tell(before, batch, outcome)
  wanted, _ = s.tell(before, batch, Outcome(jnp.array([-2.0, -3.0, -1.0])))
  equal(told, wanted)
  grads = s.gradient(before, batch, outcome)
  chex.assert_trees_all_close(grads, s.gradient(before, batch, Outcome(jnp.array([-2.0, -3.0, -1.0]))))


@pytest.mark.parametrize('algorithm', algorithms.ALGORITHMS)
@pytest.mark.parametrize('scale', [pytest.param(1.0, marks=pytest.mark.long), -1.0])
def test_a_failed_child_is_never_the_best(algorithm, scale):
  s, state = built(algorithm=algorithm)
  (all_failed,) = tell(s, state, [jnp.nan, jnp.inf, -jnp.inf])
  assert (float(all_failed.best.reward), int(all_failed.best.id)) == (-jnp.inf, -1)
  for states in (tell(s, state, [-1.0, -0.5, jnp.nan]), tell(s, all_failed, [-1.0, -0.5, jnp.nan])):
    assert float(states[-1].best.reward) == -0.5
  rewards = scale * jnp.array([[3.0, jnp.nan, 1.0], [2.0, 4.0, jnp.nan], [jnp.nan, 1.0, 2.0]])
  state = tell(s, state, *rewards)[-1]
  assert float(state.best.reward) == float(jnp.nanmax(rewards)) and float(state.worst) == float(jnp.nanmin(rewards))


def test_of_rewards_by_layer_those_that_failed_are_never_the_best():
  s, state = built()
  rewards = jnp.array([[-2.0, jnp.nan, -0.5], [-2.0, -3.0, -4.0], [jnp.nan, -1.0, -1.5]])
  after, _ = s.tell(state, s.ask(state), Outcome(rewards, failed=[True, False, False]))
  assert (float(after.best.reward), int(after.best.id), float(after.worst)) == (-1.0, 2, -4.0)


def test_reinforce_learns_to_avoid_a_child_that_fails():
  s = search.ask_tell(space.choice_space({'width': ('16', '32', '64')}), testing.search_config(m=4, controller_lr=0.1))
  state = s.init(jax.random.key(0))
  earned = np.array([-1.0, -0.5, np.nan])
  for _ in range(60):
    batch = s.ask(state)
    state, _ = s.tell(state, batch, earned[np.asarray(batch.tokens)[:, 0]].tolist())
  assert state.best.tokens.tolist() == [1]
  assert (np.asarray(batch.tokens) != 2).all()


@pytest.mark.parametrize('given', [[0.5, 2, 1], (0.5, 2.0, 1.0), np.array([0.5, 2.0, 1.0]), Outcome([0.5, 2.0, 1.0])])
def test_rewards_may_be_told_as_any_sequence_of_numbers(given):
  s, state = built()
  batch = s.ask(state)
  equal(s.tell(state, batch, given)[0], s.tell(state, batch, Outcome(jnp.array([0.5, 2.0, 1.0])))[0])


@pytest.mark.parametrize(
  ('given', 'words'),
  [
    ([1.0, 2.0], r'shape \(2,\) for a batch of 3 children: want one for each child, \[3\]'),
    (1.0, r'shape \(\)'),
    ([[1.0], [2.0], [3.0]], r'shape \(3, 1\)'),
    ([1.0, None, 2.0], 'not numbers'),
    (['one', 'two', 'three'], 'not numbers'),
    ([[1.0], [2.0, 3.0], []], 'not numbers'),
    (None, 'not numbers'),
    (Outcome([1.0, 2.0, 3.0], failed=[True]), r'`failed` has shape \(1,\) for a batch of 3'),
  ],
)
def test_rewards_that_do_not_fit_the_batch_are_refused(given, words):
  s, state = built()
  with pytest.raises(ValueError, match=words) as error:
    s.tell(state, s.ask(state), given)
  one_line(error)


@pytest.mark.parametrize('known', ['train', 'reuse'])
def test_an_evaluator_may_return_only_the_rewards(known):
  cfg, lines = testing.search_config(known=known), list[dict[str, object]]()
  hook = search.Hook(children=lines.extend)
  for rewards in (lambda batch: batch.tokens.sum(1).tolist(), lambda batch: Outcome(batch.tokens.sum(1))):
    s = search.build(LAYERED, cfg, rewards)
    search.run(s, s.init(jax.random.key(0)), [hook], search.Budget(children=6))
  assert [line['reward'] for line in lines[:6]] == [line['reward'] for line in lines[6:]] and len(lines) == 12
  s = search.build(LAYERED, cfg, lambda batch: [1.0])
  with pytest.raises(ValueError, match=r'shape \(1,\) for a batch of 3 children'):
    search.run(s, s.init(jax.random.key(0)), [], search.Budget(children=3))


def test_ask_tell_has_no_evaluator():
  s, state = built()
  with pytest.raises(ValueError, match=r'no evaluator.*tell') as error:
    s.evaluate(s.ask(state))
  one_line(error)


@pytest.mark.parametrize(
  'field, value',
  [
    ('algorithm', 'annealing'),
    ('known', 'again'),
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


@pytest.mark.parametrize('fields', [{}, {'known': 'avoid'}, {'known': 'avoid', 'proposals': 'guided'}], ids=str)
def test_a_key_of_the_older_kind_gives_the_same_search(fields):
  s, state = built(**fields)
  older = s.init(jax.random.PRNGKey(0))
  for _ in range(2):
    np.testing.assert_array_equal(s.ask(older).tokens, s.ask(state).tokens)
    (state,), (older,) = (tell(s, one, [1.0, 2.0, 0.5]) for one in (state, older))


@pytest.mark.parametrize('algorithm', algorithms.ALGORITHMS)
def test_in_double_precision_a_search_is_one_program(x64, algorithm):
  s = search.build(LAYERED, testing.search_config(algorithm=algorithm), lambda batch: Outcome(batch.tokens.sum(1) / 3))
  states, (tokens, _) = search.run_seeds(s, jax.random.split(jax.random.key(0), 2), steps=2)
  np.testing.assert_allclose(states.best.reward, tokens.sum(3).max((1, 2)) / 3, rtol=1e-15)
