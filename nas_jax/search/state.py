"""What a search learns from: its state, and one update of the controller by REINFORCE."""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from nas_jax.config import field
from nas_jax.controller import Controller, divergence
from nas_jax.search.algorithms import reinforce
from nas_jax.space import Space
from nas_jax.types import Array, Batch, Key, Outcome, PyTree


@dataclasses.dataclass
class Config:
  """What every search has: the controller and its update. The defaults are Zoph & Le's.

  On CIFAR-10 each of 100 replicas had 8 children and a rate of 6e-4, on Penn Treebank each of 400 had 1 and 5e-4.
  """

  algorithm: str = field('reinforce', 'what proposes children', choices=('reinforce', 'random'))
  seed: int = field(0, 'of the whole run', low=0)
  m: int = field(8, 'children per update; 8 a replica on CIFAR-10, Sec. 4.1', low=1)
  controller_units: int = field(35, 'width of each LSTM layer, Sec. 4.1', low=1)
  controller_layers: int = field(2, 'LSTM layers, Sec. 4.1', low=1)
  controller_init: float = field(0.08, 'weights start uniform within +-this, Sec. 4.1', above=0.0)
  controller_lr: float = field(5e-4, 'of Adam, Sec. 4.2', above=0.0)
  controller_beta1: float = field(
    0.9, "Adam's decay of the mean gradient; 0 in the code of Pham et al.", low=0.0, high=1.0
  )
  controller_epsilon: float = field(1e-8, "Adam's, beside the root of the mean square; 1e-3 likewise", above=0.0)
  controller_temperature: float = field(1.0, 'logits are divided by it; 5 in Pham et al. (2018)', above=0.0)
  controller_tanh: float = field(
    0.0, 'if not 0, logits become this times tanh of what they are; 2.5 in Pham et al. (2018)', low=0.0
  )
  controller_clip: float = field(0.0, 'greatest norm of the gradient, 0 for none (the paper names none)', low=0.0)
  baseline: str = field(
    'moving', "b: a 'moving' average of the rewards, or the plain one of 'all' so far", choices=('moving', 'all')
  )
  baseline_decay: float = field(0.95, 'of the moving average of rewards (the paper does not say)', low=0.0, high=1.0)
  normalize_advantage: bool = field(False, 'divide R - b by a moving root mean square of it; not in the paper')
  depth_start: int = field(0, 'layers of the first children, 0 for the deepest from the start; 6, Sec. 4.1', low=0)
  depth_step: int = field(2, 'layers more each time, Sec. 4.1', low=1)
  depth_every: int = field(1600, 'children until the next, Sec. 4.1', low=1)
  entropy_weight: float = field(0.0, 'of the entropy bonus, (normalized) reward per nat; 0 in the paper', low=0.0)
  skip_target: float = field(
    0.4, 'the probability that links are drawn to; 0.4 in Pham et al. (2018)', above=0.0, high=0.99
  )
  skip_weight: float = field(0.0, 'of the divergence from it, summed over links; 0.8 in Pham et al. (2018)', low=0.0)


class Best(NamedTuple):
  """The best child so far."""

  reward: Array  # []; minus infinity before the first
  id: Array  # [] int32
  tokens: Array  # [T] int32
  depth: Array  # [] int32, layers


class SearchState(NamedTuple):
  """Everything that decides the future of a search."""

  step: Array  # [] int32, updates so far
  key: Key  # the run's key; steps and children fold their numbers into it
  theta: PyTree  # controller parameters
  opt_state: PyTree
  baseline: reinforce.Baseline
  best: Best
  children: PyTree = ()  # () from scratch; the weights, where children share them
  replay: PyTree = ()  # what is remembered of architectures, where the search does


Credit = Callable[[SearchState, Batch, Array], Array]
Remember = Callable[[SearchState, Batch, Outcome], SearchState]


def build(
  space: Space,
  cfg: Config,
  controller: Controller,
  optimizer: optax.GradientTransformation,
  credit: Credit,
  remember: Remember,
):
  """(gradient, apply) of a search; see `search.build`, which they make up."""
  layer_of_token = space.layer_of_token()
  decay = cfg.baseline_decay if cfg.baseline == 'moving' else None

  def earned(batch: Batch, outcome: Outcome) -> tuple[Array, Array | None]:
    """Rewards, and of those of layers which there are."""
    reward = jnp.where(jnp.isfinite(outcome.reward), outcome.reward, 0.0)
    if reward.ndim == 1 or batch.depth is None:
      return reward, None
    depth = jnp.broadcast_to(batch.depth, len(reward))
    return reward, jnp.arange(reward.shape[1])[None] < depth[:, None]

  def advantage(state: SearchState, batch: Batch, outcome: Outcome) -> tuple[Array, reinforce.Baseline]:
    reward, exists = earned(batch, outcome)
    return reinforce.advantage(state.baseline, reward, decay, cfg.normalize_advantage, exists)

  def gradient(state: SearchState, batch: Batch, outcome: Outcome) -> PyTree:
    value, _ = advantage(state, batch, outcome)
    value = credit(state, batch, value)

    def objective(theta):
      score = map_sequences(functools.partial(controller.score, theta), batch)
      loss = reinforce.loss(score.log_prob, reinforce.credit(value, layer_of_token))
      if cfg.entropy_weight:
        loss -= cfg.entropy_weight * score.entropy.sum(1).mean()
      if cfg.skip_weight:
        apart = jax.vmap(lambda odds: divergence(space, odds, cfg.skip_target))(score.probabilities)
        loss += cfg.skip_weight * apart.mean()
      return loss

    return jax.grad(objective)(state.theta)

  def apply(state: SearchState, grads: PyTree, batch: Batch, outcome: Outcome):
    reward, exists = earned(batch, outcome)
    value, baseline = advantage(state, batch, outcome)
    updates, opt_state = optimizer.update(grads, state.opt_state)
    found = _best(space, batch, reward, exists)
    better = found.reward > state.best.reward
    best = jax.tree.map(lambda new, old: jnp.where(better, new, old), found, state.best)
    info = {
      'reward': jnp.mean(reward, where=exists),
      'baseline': baseline.value,
      'advantage': jnp.mean(jnp.abs(value), where=exists),
      'gradient_norm': optax.tree.norm(grads) if cfg.algorithm != 'random' else jnp.zeros(()),
    }
    state = remember(state, batch, outcome)._replace(
      step=state.step + 1,
      theta=optax.apply_updates(state.theta, updates),
      opt_state=opt_state,
      baseline=baseline,
      best=best,
    )
    return state, info

  return gradient, apply


def map_sequences(function: Callable[[Array, Any], PyTree], batch: Batch) -> PyTree:
  """`function(tokens [T], depth)` of every string; their depth may be one for all."""
  return jax.vmap(function, in_axes=(0, 0 if batch.deep else None))(batch.tokens, batch.depth)


def _best(space: Space, batch: Batch, reward: Array, exists: Array | None) -> Best:
  """The best child of a batch; of one with a reward a layer, the best prefix."""
  depth = jnp.broadcast_to(space.layers if batch.depth is None else batch.depth, len(reward)).astype(jnp.int32)
  if reward.ndim == 1:
    first = jnp.argmax(reward)
    return Best(reward[first], batch.ids[first], batch.tokens[first], depth[first])
  reward = reward if exists is None else jnp.where(exists, reward, -jnp.inf)
  first, layer = jnp.divmod(jnp.argmax(reward), reward.shape[1])
  tokens, depth = batch.tokens[first], layer.astype(jnp.int32) + 1
  tokens = jnp.where(space.exists(tokens, depth), tokens, 0)
  return Best(reward[first, layer], batch.ids[first], tokens, depth)
