import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from testing import LAYERED, SPACES, one_line, strings
from tools import planted_reward

from nas_jax import search
from nas_jax.search.algorithms import reinforce
from nas_jax.search.algorithms.reinforce import Baseline
from nas_jax.space import choice_space, enas_macro_space
from nas_jax.types import Batch, Outcome

SMALL = search.Config(
  m=3, controller_units=4, controller_layers=1, controller_init=1.0, controller_lr=0.01, controller_clip=2.0
)


def config(**fields) -> search.Config:
  return dataclasses.replace(SMALL, **fields)


# -- the pieces, by hand ----------------------------------------------------------------------------------------------


def test_baseline_by_hand():
  # decay 0.9; means of the batches 2, 4, 1.
  # 1: no past, so b = 2, their own mean; the average starts there: 0.9 * 2 + 0.1 * 2 = 2.
  # 2: b = 2, from before them;           0.9 * 2 + 0.1 * 4 = 2.2.
  # 3: b = 2.2;                           0.9 * 2.2 + 0.1 * 1 = 2.08.
  baseline = reinforce.init_baseline()
  for rewards, advantage, value in (
    ([1.0, 3.0], [-1.0, 1.0], 2.0),
    ([4.0, 4.0], [2.0, 2.0], 2.2),
    ([0.0, 2.0], [-2.2, -0.2], 2.08),
  ):
    found, baseline = reinforce.advantage(baseline, jnp.array(rewards), 0.9)
    np.testing.assert_allclose(found, advantage, rtol=1e-6)
    np.testing.assert_allclose(baseline.value, value, rtol=1e-6)
  assert baseline.seen == 6


def test_a_first_child_alone_teaches_nothing():
  advantage, baseline = reinforce.advantage(reinforce.init_baseline(), jnp.array([0.7]), 0.95)
  np.testing.assert_array_equal(advantage, [0.0])
  np.testing.assert_allclose(baseline.value, 0.7, rtol=1e-6)


def test_baseline_of_one_reward_a_layer():
  advantage, baseline = reinforce.advantage(
    Baseline(jnp.array(1.0), jnp.array(1), jnp.array(0.0)), jnp.array([[1.0, 3.0]]), 0.5
  )
  np.testing.assert_allclose(advantage, [[0.0, 2.0]])
  np.testing.assert_allclose(baseline.value, 1.5)  # half of 1, half of the mean 2


def test_a_normalized_advantage_by_hand():
  # The average of squares starts with the first batch's, (1 + 1) / 2 = 1; then, with decay 0.5 and b = 2,
  # it is 0.5 * 1 + 0.5 * (16 + 4) / 2 = 5.5.
  first, baseline = reinforce.advantage(reinforce.init_baseline(), jnp.array([1.0, 3.0]), 0.5, normalize=True)
  np.testing.assert_allclose(first, [-1.0, 1.0], rtol=1e-6)
  second, baseline = reinforce.advantage(baseline, jnp.array([6.0, 0.0]), 0.5, normalize=True)
  np.testing.assert_allclose(second, np.array([4.0, -2.0]) / 5.5**0.5, rtol=1e-6)
  # A hundred times the reward is the same advantage; equal rewards are none, whatever rounding leaves of them.
  scaled, _ = reinforce.advantage(reinforce.init_baseline(), jnp.array([100.0, 300.0]), 0.5, normalize=True)
  np.testing.assert_allclose(scaled, first, rtol=1e-6)
  equal, _ = reinforce.advantage(
    Baseline(jnp.array(0.7), jnp.array(9), jnp.array(0.0)), jnp.array([0.7000001]), 0.5, True
  )
  assert abs(equal[0]) < 0.1


def test_credit():
  layers = np.array([0, 1, 1, 2])
  np.testing.assert_array_equal(reinforce.credit(jnp.array([5.0, 6.0]), layers), [[5.0] * 4, [6.0] * 4])
  by_layer = jnp.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
  np.testing.assert_array_equal(reinforce.credit(by_layer, layers), [[1, 2, 2, 3], [4, 5, 5, 6]])


def test_loss_by_hand():
  log_prob, advantage = jnp.array([[-1.0, -2.0], [-3.0, 0.0]]), jnp.array([[2.0, 2.0], [-1.0, -1.0]])
  # -((-1 * 2 - 2 * 2) + (-3 * -1 + 0 * -1)) / 2 = -(-6 + 3) / 2
  assert reinforce.loss(log_prob, advantage) == 1.5
  gradient, leak = jax.grad(reinforce.loss, argnums=(0, 1))(log_prob, advantage)
  np.testing.assert_array_equal(gradient, [[-1.0, -1.0], [0.5, 0.5]])
  np.testing.assert_array_equal(leak, np.zeros((2, 2)))


# -- the expected gradient, exactly -----------------------------------------------------------------------------------


@functools.cache
def exact(name: str):
  """Over all n strings of a space, `(estimates [n] or [n, L], rewards [n]) -> found, wanted`.

  They are the mean gradient of single strings whose rewards are `estimates`, each as often as it is drawn, and the
  gradient of -E[rewards].
  """
  s = search.ask_tell(SPACES[name], config(m=1, controller_clip=0.0))
  tokens = strings(s.space)
  state = s.init(jax.random.key(0))._replace(baseline=Baseline(jnp.asarray(0.3), jnp.asarray(1), jnp.asarray(0.0)))

  def objective(theta, rewards):
    probability = jnp.exp(jax.vmap(s.controller.log_prob, (None, 0))(theta, tokens).sum(1))
    return -probability @ rewards, probability

  def single(tokens, reward):
    return s.gradient(state, Batch(None, None, tokens[None], None), Outcome(reward[None]))

  @jax.jit
  def gradients(estimates, rewards):
    wanted, often = jax.grad(objective, has_aux=True)(state.theta, rewards)
    return jax.tree.map(lambda g: jnp.tensordot(often, g, 1), jax.vmap(single)(tokens, estimates)), wanted

  return gradients


@pytest.mark.parametrize('name', SPACES)
def test_expected_gradient_is_that_of_the_expected_reward(name, x64):
  rewards = np.random.default_rng(0).normal(size=SPACES[name].size())
  found, wanted = exact(name)(rewards, rewards)
  assert all(jnp.abs(leaf).max() > 1e-5 for leaf in jax.tree.leaves(wanted))
  chex.assert_trees_all_close(found, wanted, atol=1e-12)


def test_expected_gradient_of_rewards_by_layer(x64):
  # r_l depends on the layers 0 .. l. A token can change only what comes after it, so with sum_(k >= l) r_k as the
  # reward of layer l the gradient is that of E[sum_l r_l].
  rng, rewards = np.random.default_rng(0), []
  for layer in range(LAYERED.layers):
    drawn, seen = {}, LAYERED.layer_of_token() <= layer
    rewards.append([drawn.setdefault(tuple(tokens[seen]), rng.normal()) for tokens in strings(LAYERED)])
  rewards = np.array(rewards).T  # [n, L]
  found, wanted = exact('layered')(rewards[:, ::-1].cumsum(1)[:, ::-1], rewards.sum(1))
  chex.assert_trees_all_close(found, wanted, atol=1e-12)


def test_entropy_bonus_of_one_token_is_the_gradient_of_its_entropy():
  s = search.ask_tell(choice_space({'a': 'wxyz'}), config(m=4, entropy_weight=0.7))
  state = s.init(jax.random.key(0))

  def entropy(theta):
    log_p = jax.vmap(s.controller.log_prob, (None, 0))(theta, jnp.arange(4)[:, None])[:, 0]
    return -jnp.exp(log_p) @ log_p

  # With equal rewards the advantages of a first batch are 0, and the bonus is all that is left.
  found = s.gradient(state, Batch(None, None, jnp.zeros((4, 1), jnp.int32), None), Outcome(jnp.ones(4)))
  wanted = jax.tree.map(lambda g: -0.7 * g, jax.jit(jax.grad(entropy))(state.theta))
  assert optax.tree.norm(wanted) > 1e-2
  chex.assert_trees_all_close(found, wanted, atol=1e-6)


# -- learning ---------------------------------------------------------------------------------------------------------


def test_links_are_drawn_to_their_target():
  """Where all children earn the same, the divergence of Pham et al. (2018) alone moves the controller."""
  made = enas_macro_space(3, ('conv 3', 'max pool 3'))
  s = search.ask_tell(made, config(m=4, skip_weight=0.8, skip_target=0.2, controller_lr=0.05))
  state = s.init(jax.random.key(0))

  def odds():
    _, found = s.policy_summary(state, jax.random.split(jax.random.key(1), 8))
    return np.concatenate([found[3, :1], found[5]])

  assert (odds() > 0.35).all()
  for _ in range(60):
    state, _ = s.tell(state, s.ask(state), Outcome(jnp.ones(4)))
  np.testing.assert_allclose(odds(), 0.2, atol=0.05)


def test_a_planted_reward_is_learned():
  state, reward = planted_reward.run(3, 50, controller_lr=5e-3)
  assert reward[:, 0].mean() == pytest.approx(0.357, abs=0.08)
  assert reward[:, -5:].mean() > 0.6
  np.testing.assert_allclose(state.best.reward, reward.max((1, 2)))


# -- a search as functions --------------------------------------------------------------------------------------------


@functools.cache
def built(**fields) -> tuple[search.Search, search.SearchState]:
  s = search.ask_tell(LAYERED, config(**fields))
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


def test_an_update_by_hand():
  s, state = built()
  batch, outcome = s.ask(state), Outcome(jnp.array([1.0, 2.0, 6.0]))
  grads = s.gradient(state, batch, outcome)
  after, info = s.apply(state, grads, batch, outcome)
  # Adam's first step is lr * g / (|g| + 1e-8), against the gradient.
  wanted = jax.tree.map(lambda w, g: w - 0.01 * g / (jnp.abs(g) + 1e-8), state.theta, grads)
  chex.assert_trees_all_close(after.theta, wanted, atol=1e-4)
  assert (after.step, after.baseline.seen) == (1, 3)
  # The mean of the rewards is 3: advantages -2, -1 and 3.
  for name, value in {'reward': 3, 'baseline': 3, 'advantage': 2, 'gradient_norm': optax.tree.norm(grads)}.items():
    np.testing.assert_allclose(info[name], value, rtol=1e-5)


def test_the_gradient_is_clipped():
  s, state = built()
  batch, outcome = s.ask(state), Outcome(jnp.zeros(3))
  unit = jax.tree.map(lambda w: w / optax.tree.norm(state.theta), state.theta)
  # Adam's momentum after one step is a tenth of the gradient, whose norm is cut to 2 if it is more.
  for norm, left in ((1.0, 1.0), (100.0, 2.0)):
    after, info = s.apply(state, jax.tree.map(lambda g, norm=norm: norm * g, unit), batch, outcome)
    np.testing.assert_allclose(optax.tree.norm(optax.tree.get(after.opt_state, 'mu')), 0.1 * left, rtol=1e-5)
    np.testing.assert_allclose(info['gradient_norm'], norm, rtol=1e-5)  # reported as it was


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
  after, _ = s.apply(state, state.theta, s.ask(state), Outcome(rewards))
  assert (after.best.reward, after.best.id) == (2.0, 1)


def test_random_search_learns_nothing():
  s, state = built(algorithm='random')
  *_, after = tell(s, state, [1.0, 2.0, 3.0], [4.0, 1.0, 4.0])
  assert state.theta == after.theta == ()
  # What it asks for depends on its key and the step alone.
  chex.assert_trees_all_equal(s.ask(after), s.ask(state._replace(step=after.step)))
  # It keeps its best, and for the record a baseline: 0.95 * 2 + 0.05 * 3.
  assert (after.step, after.best.id, after.best.reward) == (2, 3, 4.0)
  np.testing.assert_allclose(after.baseline.value, 2.05, rtol=1e-6)


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
    search.ask_tell(LAYERED, config(**{field: value}))
  one_line(error)
