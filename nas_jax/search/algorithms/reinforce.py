"""REINFORCE with a baseline: Williams (1992), Zoph & Le (2017) Sec. 3.2.

The gradient of J(theta) = E[R] is estimated by (1/m) sum_k sum_t grad log P(a_t | a_<t; theta) (R_k - b).
"""

import dataclasses
import functools
from typing import Any, ClassVar, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from nas_jax.config import field
from nas_jax.controller import PENALTIES, Controller, Score, divergence, lstm_controller, policy_summary
from nas_jax.search.algorithms import baseline as baseline_lib
from nas_jax.search.algorithms.base import Algorithm, Credit, Propose, map_sequences
from nas_jax.space import Space
from nas_jax.types import Array, Batch, Depth, Info, Key, Outcome, PyTree


@dataclasses.dataclass
class Config(baseline_lib.Config):
  """The controller and how it learns. The defaults are those of Zoph & Le."""

  m: int = field(8, 'children per update of the controller; 8 in each replica on CIFAR-10, Sec. 4.1', low=1, high=2**16)
  controller_units: int = field(35, "width of each of the controller's LSTM layers, Sec. 4.1", low=1, high=8192)
  controller_layers: int = field(2, 'LSTM layers of the controller, Sec. 4.1', low=1, high=64)
  controller_init: float = field(
    0.08, "the controller's weights start uniform in [-x, x] for this x, Sec. 4.1", above=0.0
  )
  controller_lr: float = field(
    5e-4, "learning rate of the controller's Adam: 5e-4 on Penn Treebank, 6e-4 on CIFAR-10, Sec. 4.2", above=0.0
  )
  controller_beta1: float = field(
    0.9, "decay of the mean gradient in the controller's Adam; 0 in the code of Pham et al. (2018)", low=0.0, high=1.0
  )
  controller_epsilon: float = field(
    1e-8, "epsilon of the controller's Adam; 1e-3 in the code of Pham et al. (2018)", above=0.0
  )
  controller_temperature: float = field(1.0, "divides the controller's logits; 5 in Pham et al. (2018)", above=0.0)
  controller_tanh: float = field(
    0.0, "if not 0, the controller's logits are this times their tanh; 2.5 in Pham et al. (2018)", low=0.0
  )
  controller_clip: float = field(
    0.0, "greatest norm of the controller's gradient, 0 for no limit (the paper names none)", low=0.0
  )
  entropy_weight: float = field(
    0.0, "weight of the controller's entropy beside the (normalized) reward, per nat; 0 in the paper", low=0.0
  )
  skip_target: float = field(
    0.4, 'probability of a link that skip_weight draws towards; 0.4 in Pham et al. (2018)', above=0.0, high=0.99
  )
  skip_weight: float = field(
    0.0, 'weight of the KL divergence of links from skip_target; 0.8 in Pham et al. (2018)', low=0.0
  )
  skip_penalty: str = field(
    'sum',
    "what skip_weight multiplies: the 'sum' of the divergences of all links, or the 'mean' over the layers that have "
    "links of each layer's sum, as in the code of Pham et al. (2018)",
    choices=PENALTIES,
  )

  added: ClassVar[dict[str, Any]] = {'skip_penalty': 'sum'}  # see `config.with_added`


class State(NamedTuple):
  """The state of REINFORCE."""

  theta: PyTree  # the controller's parameters
  opt_state: PyTree
  baseline: baseline_lib.Baseline


def build(space: Space, cfg: Config) -> Algorithm:
  """Returns REINFORCE on a recurrent controller."""
  controller, optimizer = make_controller(space, cfg), make_optimizer(cfg)
  layer_of_token = space.layer_of_token()

  def init(key: Key) -> State:
    theta = controller.init(key)
    return State(theta, optimizer.init(theta), baseline_lib.init_baseline())

  def propose(state: State, keys: Key, depth: Depth) -> Array:
    return jax.vmap(lambda key: controller.sample(state.theta, key, depth))(keys)

  def gradient(state: State, batch: Batch, outcome: Outcome, credit: Credit) -> PyTree:
    value, _, _ = baseline_lib.advantages(cfg, state.baseline, batch, outcome)
    value = credit(value)

    def objective(theta: PyTree) -> Array:
      score = map_sequences(functools.partial(controller.score, theta), batch)
      return regularized(loss(score.log_prob, spread(value, layer_of_token)), space, cfg, score)

    return jax.grad(objective)(state.theta)

  def apply(state: State, grads: PyTree, batch: Batch, outcome: Outcome, credit: Credit) -> tuple[State, Info]:
    del credit
    _, baseline, info = baseline_lib.advantages(cfg, state.baseline, batch, outcome)
    updates, opt_state = optimizer.update(grads, state.opt_state)
    state = State(optax.apply_updates(state.theta, updates), opt_state, baseline)
    return state, info | {'gradient_norm': optax.tree.norm(grads)}

  return policy_gradient(controller, init, propose, gradient, apply)


def policy_gradient(controller: Controller, init, propose: Propose, gradient, apply) -> Algorithm:
  """Returns an algorithm made of these functions, which follows a gradient of `theta`, the controller's parameters."""

  def update(state: Any, batch: Batch, outcome: Outcome, credit: Credit) -> tuple[PyTree, Info]:
    return apply(state, gradient(state, batch, outcome, credit), batch, outcome, credit)

  return Algorithm(
    init,
    propose,
    update,
    summary=lambda state, keys: policy_summary(controller, state.theta, keys),
    gradient=gradient,
    apply=apply,
    log_prob=lambda state, batch: map_sequences(functools.partial(controller.log_prob, state.theta), batch),
  )


def regularized(total: Array, space: Space, cfg: Config, score: Score, there: Array | None = None) -> Array:
  """Returns a loss with the entropy bonus and the penalty of links, which are means over children.

  Args:
    total: [] the loss without them.
    space: the space of the children.
    cfg: the weights.
    score: of n children, [n, ...] each.
    there: [n] bool, which children count; None for all.
  """
  if cfg.entropy_weight:
    total -= cfg.entropy_weight * jnp.mean(score.entropy.sum(1), where=there)
  if cfg.skip_weight:
    apart = jax.vmap(lambda odds: divergence(space, odds, cfg.skip_target, cfg.skip_penalty))(score.probabilities)
    total += cfg.skip_weight * jnp.mean(apart, where=there)
  return total


def make_controller(space: Space, cfg: Config) -> Controller:
  """Returns the controller that `cfg` describes."""
  shape = cfg.controller_units, cfg.controller_layers, cfg.controller_init
  return lstm_controller(space, *shape, cfg.controller_temperature, cfg.controller_tanh)


def make_optimizer(cfg: Config) -> optax.GradientTransformation:
  """Returns the controller's optimizer: Adam, after clipping if `cfg` asks for it."""
  clip = [optax.clip_by_global_norm(cfg.controller_clip)] if cfg.controller_clip else []
  return optax.chain(*clip, optax.adam(cfg.controller_lr, b1=cfg.controller_beta1, eps=cfg.controller_epsilon))


RETURNS = ('past', 'to go')


def returns(value: Array, gamma: float, kind: str) -> Array:
  """Returns the credit of each layer, [m, L], from the reward or advantage of each layer.

  'past' is G_t = R_t + gamma G_(t-1), as Xu writes it. 'to go' is G_t = R_t + gamma G_(t+1), as in Sutton & Barto. The
  rewards of earlier layers do not depend on the choice of layer t, so in expectation 'past' credits that choice with
  R_t alone, while 'to go' follows the gradient of the (discounted) sum of rewards.

  Args:
    value: [m, L] rewards or advantages, 0 for layers that do not exist.
    gamma: the discount per layer.
    kind: one of RETURNS.
  """
  gap = np.arange(value.shape[1])[None] - np.arange(value.shape[1])[:, None]  # from the earner to the credited
  gap = gap if kind == 'past' else -gap
  share = np.where(gap >= 0, gamma ** np.maximum(gap, 0), 0.0)
  return (value[:, :, None] * jnp.asarray(share, value.dtype)[None]).sum(1)


def spread(value: Array, layer_of_token: np.ndarray) -> Array:
  """Gives every token the value [m] of its sequence, or the value [m, L] of its layer. Returns [m, T]."""
  if value.ndim == 2:
    chex.assert_axis_dimension(value, 1, int(layer_of_token.max()) + 1)
    return value[:, layer_of_token]
  return jnp.broadcast_to(value[:, None], (len(value), len(layer_of_token)))


def loss(log_prob: Array, advantage: Array) -> Array:
  """The REINFORCE surrogate loss, Sec. 3.2; its gradient is the estimate of -grad J.

  Args:
    log_prob: [m, T] log P(a_t | a_<t), nats; 0 where the token does not exist.
    advantage: [m, T] R_k - b, spread over the tokens; no gradient flows through it.

  Returns:
    [] mean over children of the summed token losses.
  """
  chex.assert_equal_shape([log_prob, advantage])
  return -jnp.mean(jnp.sum(log_prob * jax.lax.stop_gradient(advantage), axis=1))
