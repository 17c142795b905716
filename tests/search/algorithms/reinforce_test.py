"""REINFORCE: its parts by hand, its gradient by enumeration, one update, and learning."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import testing
from testing import LAYERED, SPACES, strings
from tools import planted_reward

from nas_jax import search
from nas_jax.search.algorithms import reinforce
from nas_jax.search.algorithms.baseline import Baseline
from nas_jax.space import choice_space, enas_macro_space
from nas_jax.types import Batch, Outcome

# -- the pieces, by hand ----------------------------------------------------------------------------------------------


def test_the_optimizer_is_adam_with_the_numbers_of_the_config():
  """The first step of Adam is lr g / (|g| + epsilon); the second by hand, with a beta1 of 0.5 and a beta2 of 0.999."""
  cfg = search.Config(controller_lr=0.1, controller_beta1=0.5, controller_epsilon=0.5, controller_clip=0.0)
  optimizer = reinforce.make_optimizer(cfg)
  theta, grads = jnp.zeros(1), (jnp.array([0.5]), jnp.array([-1.0]))
  first, state = optimizer.update(grads[0], optimizer.init(theta))
  np.testing.assert_allclose(first, [-0.1 * 0.5 / (0.5 + 0.5)], rtol=1e-5)
  second, _ = optimizer.update(grads[1], state)
  mean, square = (0.5 * 0.25 - 0.5) / (1 - 0.5**2), (0.999 * 0.00025 + 0.001) / (1 - 0.999**2)
  np.testing.assert_allclose(second, [-0.1 * mean / (np.sqrt(square) + 0.5)], rtol=1e-5)
  clipped = reinforce.make_optimizer(dataclasses.replace(cfg, controller_clip=0.1))
  np.testing.assert_allclose(clipped.update(grads[0], clipped.init(theta))[0], [-0.1 * 0.1 / (0.1 + 0.5)], rtol=1e-5)


def test_every_token_gets_the_advantage_of_its_sequence_or_layer():
  layers = np.array([0, 1, 1, 2])
  np.testing.assert_array_equal(reinforce.spread(jnp.array([5.0, 6.0]), layers), [[5.0] * 4, [6.0] * 4])
  by_layer = jnp.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
  np.testing.assert_array_equal(reinforce.spread(by_layer, layers), [[1, 2, 2, 3], [4, 5, 5, 6]])
  with pytest.raises(AssertionError):  # a fourth layer would earn nothing, a missing one would repeat the last
    reinforce.spread(jnp.ones((2, 4)), layers)


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
  s = search.ask_tell(SPACES[name], testing.search_config(m=1, controller_clip=0.0))
  tokens = strings(s.space)
  state, baseline = s.init(jax.random.key(0)), Baseline(jnp.asarray(0.3), jnp.asarray(1), jnp.asarray(0.0))
  state = state._replace(algorithm=state.algorithm._replace(baseline=baseline))
  controller = reinforce.make_controller(s.space, testing.search_config())

  def objective(theta, rewards):
    probability = jnp.exp(jax.vmap(controller.log_prob, (None, 0))(theta, tokens).sum(1))
    return -probability @ rewards, probability

  def single(tokens, reward):
    return s.gradient(state, Batch(None, None, tokens[None], None), Outcome(reward[None]))

  @jax.jit
  def gradients(estimates, rewards):
    wanted, often = jax.grad(objective, has_aux=True)(state.algorithm.theta, rewards)
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
  s = search.ask_tell(choice_space({'a': 'wxyz'}), testing.search_config(m=4, entropy_weight=0.7))
  state = s.init(jax.random.key(0))
  controller = reinforce.make_controller(s.space, testing.search_config())

  def entropy(theta):
    log_p = jax.vmap(controller.log_prob, (None, 0))(theta, jnp.arange(4)[:, None])[:, 0]
    return -jnp.exp(log_p) @ log_p

  # With equal rewards the advantages of a first batch are 0, and the bonus is all that is left.
  found = s.gradient(state, Batch(None, None, jnp.zeros((4, 1), jnp.int32), None), Outcome(jnp.ones(4)))
  wanted = jax.tree.map(lambda g: -0.7 * g, jax.jit(jax.grad(entropy))(state.algorithm.theta))
  assert optax.tree.norm(wanted) > 1e-2
  chex.assert_trees_all_close(found, wanted, atol=1e-6)


# -- one update -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def s():
  return search.ask_tell(LAYERED, testing.search_config())


def test_an_update_by_hand(s):
  state = s.init(jax.random.key(0))
  batch, outcome, before = s.ask(state), Outcome(jnp.array([1.0, 2.0, 6.0])), state.algorithm
  grads = s.gradient(state, batch, outcome)
  after, info = s.apply(state, grads, batch, outcome)
  # Adam's first step is lr * g / (|g| + 1e-8), against the gradient.
  wanted = jax.tree.map(lambda w, g: w - 0.01 * g / (jnp.abs(g) + 1e-8), before.theta, grads)
  chex.assert_trees_all_close(after.algorithm.theta, wanted, atol=1e-4)
  assert (after.step, after.algorithm.baseline.seen) == (1, 3)
  # The mean of the rewards is 3: advantages -2, -1 and 3.
  for name, value in {'reward': 3, 'baseline': 3, 'advantage': 2, 'gradient_norm': optax.tree.norm(grads)}.items():
    np.testing.assert_allclose(info[name], value, rtol=1e-5)


def test_the_gradient_is_clipped(s):
  state = s.init(jax.random.key(0))
  batch, outcome, theta = s.ask(state), Outcome(jnp.zeros(3)), state.algorithm.theta
  unit = jax.tree.map(lambda w: w / optax.tree.norm(theta), theta)
  # Adam's momentum after one step is a tenth of the gradient, whose norm is cut to 2 if it is more.
  for norm, left in ((1.0, 1.0), (100.0, 2.0)):
    after, info = s.apply(state, jax.tree.map(lambda g, norm=norm: norm * g, unit), batch, outcome)
    momentum = optax.tree.get(after.algorithm.opt_state, 'mu')
    np.testing.assert_allclose(optax.tree.norm(momentum), 0.1 * left, rtol=1e-5)
    np.testing.assert_allclose(info['gradient_norm'], norm, rtol=1e-5)  # reported as it was


# -- learning ---------------------------------------------------------------------------------------------------------


def test_links_are_drawn_to_their_target():
  """If all children have equal rewards, only the divergence of Pham et al. (2018) moves the controller."""
  made = enas_macro_space(3, ('conv 3', 'max pool 3'))
  s = search.ask_tell(made, testing.search_config(m=4, skip_weight=0.8, skip_target=0.2, controller_lr=0.05))
  state = s.init(jax.random.key(0))

  def odds():
    _, found = s.policy_summary(state, jax.random.split(jax.random.key(1), 8))
    return np.concatenate([found[3, :1], found[5]])

  assert (odds() > 0.35).all()
  for _ in range(60):
    state, _ = s.tell(state, s.ask(state), Outcome(jnp.ones(4)))
  np.testing.assert_allclose(odds(), 0.2, atol=0.05)


def test_the_penalty_of_links_is_the_sum_or_the_mean_over_layers():
  """If all children have equal rewards, the gradient is that of the penalty. Two layers have links."""
  made, grads = enas_macro_space(3, ('conv 3', 'max pool 3')), {}
  for penalty in ('sum', 'mean'):
    s = search.ask_tell(made, testing.search_config(m=4, skip_weight=0.8, skip_penalty=penalty))
    state = s.init(jax.random.key(0))
    grads[penalty] = s.gradient(state, s.ask(state), Outcome(jnp.ones(4)))
  assert optax.tree.norm(grads['sum']) > 0
  chex.assert_trees_all_close(grads['sum'], jax.tree.map(lambda x: 2 * x, grads['mean']), rtol=1e-4, atol=1e-7)


def test_a_planted_reward_is_learned():
  state, reward = planted_reward.run(3, 50, controller_lr=5e-3)
  assert reward[:, 0].mean() == pytest.approx(0.357, abs=0.08)
  assert reward[:, -5:].mean() > 0.6
  np.testing.assert_allclose(state.best.reward, reward.max((1, 2)))
