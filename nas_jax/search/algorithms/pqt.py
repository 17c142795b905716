"""Priority queue training: Abolafia et al. (2018), "Neural Program Synthesis with Priority Queue Training".

The best distinct token sequences so far are kept in a queue. Each update adds two gradients: that of REINFORCE, and
that of the mean log-probability of the sequences in the queue. So the controller imitates the best sequences that it
has found (Sec. 2.3 of the paper, "PG + PQT").
"""

import dataclasses
import functools
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from nas_jax.config import field
from nas_jax.search.algorithms import baseline as baseline_lib
from nas_jax.search.algorithms import reinforce
from nas_jax.search.algorithms.base import Algorithm, Credit, depths, of_sequences
from nas_jax.space import Space
from nas_jax.types import Array, Batch, Info, Key, Outcome, PyTree


@dataclasses.dataclass
class Config(reinforce.Config):
  """The settings of priority queue training."""

  queue: int = field(5, 'best token sequences that pqt imitates; 10 in Abolafia et al. (2018)', low=1)
  queue_weight: float = field(
    0.5, "weight of the log-probability of the queue's sequences in pqt, per (normalized) reward", low=0.0
  )

  added: ClassVar[dict[str, Any]] = {'queue': 5, 'queue_weight': 0.5}  # see `config.with_added`


class Queue(NamedTuple):
  """The best distinct token sequences of a search, best first."""

  tokens: Array  # [Q, T] int32
  depth: Array  # [Q] int32, layers; 0 where there is no sequence yet
  reward: Array  # [Q] the best reward of each sequence; minus infinity where there is no sequence


class State(NamedTuple):
  """The state of priority queue training: that of REINFORCE, and the queue."""

  theta: PyTree
  opt_state: PyTree
  baseline: baseline_lib.Baseline
  queue: Queue


def build(space: Space, cfg: Config) -> Algorithm:
  """Returns REINFORCE with a priority queue."""
  controller, own = reinforce.make_controller(space, cfg), reinforce.build(space, cfg)
  assert own.gradient is not None and own.apply is not None
  own_gradient, own_apply = own.gradient, own.apply

  def init(key: Key) -> State:
    nothing = jnp.zeros((cfg.queue, space.length), jnp.int32), jnp.zeros(cfg.queue, jnp.int32)
    theta, opt_state, baseline = own.init(key)
    return State(theta, opt_state, baseline, Queue(*nothing, jnp.full(cfg.queue, -jnp.inf)))

  def gradient(state: State, batch: Batch, outcome: Outcome, credit: Credit) -> PyTree:
    queue = push(state.queue, batch.tokens, depths(space, batch), *of_sequences(batch, outcome))

    def objective(theta: PyTree) -> Array:
      log_prob = jax.vmap(functools.partial(controller.log_prob, theta))(queue.tokens, queue.depth).sum(1)
      return -cfg.queue_weight * jnp.mean(log_prob, where=queue.depth > 0)

    # If all children so far failed, the queue is empty, and the mean over it is NaN.
    some = (queue.depth > 0).any()
    pull = jax.tree.map(lambda x: jnp.where(some, x, 0.0), jax.grad(objective)(state.theta))
    return jax.tree.map(jnp.add, own_gradient(state, batch, outcome, credit), pull)

  def apply(state: State, grads: PyTree, batch: Batch, outcome: Outcome, credit: Credit) -> tuple[State, Info]:
    (theta, opt_state, baseline), info = own_apply(state, grads, batch, outcome, credit)
    queue = push(state.queue, batch.tokens, depths(space, batch), *of_sequences(batch, outcome))
    return State(theta, opt_state, baseline, queue), info

  return reinforce.policy_gradient(controller, init, own.propose, gradient, apply)


def push(queue: Queue, tokens: Array, depth: Array, reward: Array, failed: Array) -> Queue:
  """Returns the queue after m more children: the best distinct sequences. Children that failed do not count."""
  reward = jnp.where(failed, -jnp.inf, reward).astype(queue.reward.dtype)
  merged = Queue(*(jnp.concatenate(pair) for pair in zip(queue, Queue(tokens, depth, reward), strict=True)))
  order = jnp.argsort(-merged.reward, stable=True)
  ranked = jax.tree.map(lambda x: x[order], merged)
  same = (ranked.tokens[:, None] == ranked.tokens[None]).all(-1) & (ranked.depth[:, None] == ranked.depth[None])
  repeats = jnp.tril(same, -1).any(1) | (ranked.reward == -jnp.inf)
  first = jnp.argsort(repeats, stable=True)[: len(queue.reward)]
  best, gone = jax.tree.map(lambda x: x[first], ranked), repeats[first]
  return Queue(
    jnp.where(gone[:, None], 0, best.tokens), jnp.where(gone, 0, best.depth), jnp.where(gone, -jnp.inf, best.reward)
  )
