"""Proximal policy optimization: Schulman et al. (2017), with the advantages of REINFORCE.

Each child is used in several updates. The gradient is that of the clipped surrogate objective (Eq. 7 of the paper),

  (1/n) sum_k sum_t min(r_kt A_kt, clip(r_kt, 1 - e, 1 + e) A_kt),   r_kt = pi(a_t | a_<t) / pi_old(a_t | a_<t),

where pi_old is the controller that proposed the child. The paper makes several steps on one batch before it draws the
next. Here each update is one step on the children of the last `ppo_batches` batches. So each batch is used in that many
steps, and an update remains one gradient. A new batch has r = 1, and its gradient is that of REINFORCE.
"""

import dataclasses
import functools
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax

from nas_jax.config import field
from nas_jax.search.algorithms import baseline as baseline_lib
from nas_jax.search.algorithms import reinforce
from nas_jax.search.algorithms.base import Algorithm, Credit, depths, map_sequences
from nas_jax.space import Space
from nas_jax.types import Array, Batch, Info, Key, Outcome, PyTree


@dataclasses.dataclass
class Config(reinforce.Config):
  """The settings of proximal policy optimization."""

  ppo_clip: float = field(
    0.2,
    'share by which ppo lets the probability of a token change; 0.2 in Schulman et al. (2017)',
    above=0.0,
  )
  ppo_batches: int = field(
    4,
    'newest batches that an update of ppo learns from; 3 to 15 epochs in Schulman et al. (2017)',
    low=1,
  )

  added: ClassVar[dict[str, Any]] = {'ppo_clip': 0.2, 'ppo_batches': 4}  # see `config.with_added`


class Recent(NamedTuple):
  """The newest R children, oldest first. Rows that are still empty have depth 0 and advantage 0."""

  tokens: Array  # [R, T] int32
  depth: Array  # [R] int32, layers
  log_prob: Array  # [R, T] under the controller that proposed them, nats
  advantage: Array  # [R, T] what each token is credited with


class State(NamedTuple):
  """The state of proximal policy optimization: that of REINFORCE, and the newest children."""

  theta: PyTree
  opt_state: PyTree
  baseline: baseline_lib.Baseline
  recent: Recent


def build(space: Space, cfg: Config) -> Algorithm:
  """Returns proximal policy optimization."""
  controller, own = reinforce.make_controller(space, cfg), reinforce.build(space, cfg)
  optimizer, layer_of_token = reinforce.make_optimizer(cfg), space.layer_of_token()
  size = cfg.ppo_batches * cfg.m

  def init(key: Key) -> State:
    row = jnp.zeros((size, space.length))
    theta, opt_state, baseline = own.init(key)
    recent = Recent(row.astype(jnp.int32), jnp.zeros(size, jnp.int32), row, row)
    return State(theta, opt_state, baseline, recent)

  def remember(state: State, batch: Batch, outcome: Outcome, credit: Credit) -> Recent:
    value, _, _ = baseline_lib.advantages(cfg, state.baseline, batch, outcome)
    advantage = reinforce.spread(credit(value), layer_of_token)
    log_prob = batch.log_prob
    if log_prob is None:
      log_prob = map_sequences(functools.partial(controller.log_prob, state.theta), batch)
    newest = Recent(batch.tokens, depths(space, batch), log_prob, advantage)
    return Recent(*(jnp.concatenate(pair)[-size:] for pair in zip(state.recent, newest, strict=True)))

  def gradient(state: State, batch: Batch, outcome: Outcome, credit: Credit) -> PyTree:
    recent = jax.lax.stop_gradient(remember(state, batch, outcome, credit))

    def objective(theta: PyTree) -> Array:
      score = jax.vmap(functools.partial(controller.score, theta))(recent.tokens, recent.depth)
      there = recent.depth > 0
      total = -jnp.mean(surrogate(score.log_prob, recent.log_prob, recent.advantage, cfg.ppo_clip).sum(1), where=there)
      return reinforce.regularized(total, space, cfg, score, there)

    return jax.grad(objective)(state.theta)

  def apply(state: State, grads: PyTree, batch: Batch, outcome: Outcome, credit: Credit) -> tuple[State, Info]:
    _, baseline, info = baseline_lib.advantages(cfg, state.baseline, batch, outcome)
    updates, opt_state = optimizer.update(grads, state.opt_state)
    theta = optax.apply_updates(state.theta, updates)
    recent = remember(state, batch, outcome, credit)
    return State(theta, opt_state, baseline, recent), info | {'gradient_norm': optax.tree.norm(grads)}

  return reinforce.policy_gradient(controller, init, own.propose, gradient, apply)


def surrogate(log_prob: Array, before: Array, advantage: Array, clip: float) -> Array:
  """Returns the clipped objective of each token, Eq. 7, in the shape of the arguments.

  >>> import jax.numpy as jnp
  >>> log_prob, before = jnp.log(jnp.array([0.6, 0.6, 0.2, 0.2])), jnp.log(jnp.array([0.4, 0.4, 0.4, 0.4]))
  >>> found = surrogate(log_prob, before, jnp.array([1.0, -1.0, 1.0, -1.0]), 0.2)
  >>> [f'{each:.1f}' for each in found]
  ['1.2', '-1.5', '0.5', '-0.8']
  """
  ratio = jnp.exp(log_prob - before)
  return jnp.minimum(ratio * advantage, jnp.clip(ratio, 1.0 - clip, 1.0 + clip) * advantage)
