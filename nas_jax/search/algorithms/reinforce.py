"""REINFORCE with a baseline: Williams (1992), Zoph & Le (2017) Sec. 3.2.

The gradient of J(theta) = E[R] is estimated by (1/m) sum_k sum_t grad log P(a_t | a_<t; theta) (R_k - b).
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from nas_jax.types import Array


class Baseline(NamedTuple):
  """An average of the rewards so far."""

  value: Array  # []
  seen: Array  # [] int32, rewards so far
  square: Array  # [] the same average of squared advantages


def init_baseline() -> Baseline:
  """No reward seen yet."""
  return Baseline(jnp.zeros(()), jnp.zeros((), jnp.int32), jnp.zeros(()))


def advantage(
  baseline: Baseline, reward: Array, decay: float | None, normalize: bool = False, exists: Array | None = None
) -> tuple[Array, Baseline]:
  """R_k - b, with b from before these rewards, and the baseline after them.

  The very first batch has no past: its b is its own mean, which is also where the average starts. (The paper gives
  neither the decay nor the start; an Adam-like debiased average would not be a baseline from before the update.)

  Args:
    baseline: as it stands.
    reward: [m], or [m, L].
    decay: of the moving average, per batch; None for the plain average of all rewards so far.
    normalize: divide by the root of the average square, these rewards included: free of the reward's scale, and at
      most 1 / sqrt(1 - decay) where m is 1.
    exists: [m, L] which rewards there are, all if None; the advantage of the others is 0.
  """
  count = reward.size if exists is None else exists.sum(dtype=jnp.int32)
  keep = baseline.seen / (baseline.seen + count) if decay is None else decay
  mean = jnp.mean(reward, where=exists)
  before = jnp.where(baseline.seen == 0, mean, baseline.value)
  value = reward - before if exists is None else jnp.where(exists, reward - before, 0.0)
  square = jnp.mean(value**2, where=exists)
  square = jnp.where(baseline.seen == 0, square, keep * baseline.square + (1.0 - keep) * square)
  if normalize:
    # What rounding leaves of equal rewards must not be blown up to 1.
    least = 1e-5 * jnp.abs(before) + jnp.finfo(value.dtype).tiny
    value /= jnp.maximum(jnp.sqrt(square), least)
  after = keep * before + (1.0 - keep) * mean
  return value, Baseline(after, baseline.seen + count, square)


RETURNS = ('past', 'to go')


def returns(value: Array, gamma: float, kind: str) -> Array:
  """What each layer is credited with, [m, L], from what each earned.

  'past' is G_t = R_t + gamma G_(t-1), as Xu writes it; 'to go' is G_t = R_t + gamma G_(t+1), as Sutton & Barto do. What
  came before a choice does not depend on it: in expectation 'past' credits it with R_t alone, and 'to go' follows the
  gradient of the sum of all rewards.

  Args:
    value: [m, L] rewards, or advantages; 0 for layers that are not there.
    gamma: how much of the neighbour's return counts.
    kind: of RETURNS.
  """
  gap = np.arange(value.shape[1])[None] - np.arange(value.shape[1])[:, None]  # from the earner to the credited
  gap = gap if kind == 'past' else -gap
  share = np.where(gap >= 0, gamma ** np.maximum(gap, 0), 0.0)
  return (value[:, :, None] * jnp.asarray(share, value.dtype)[None]).sum(1)


def credit(value: Array, layer_of_token: np.ndarray) -> Array:
  """Spreads [m] over all tokens, or [m, L] over the tokens of each layer: [m, T]."""
  if value.ndim == 2:
    chex.assert_axis_dimension(value, 1, int(layer_of_token.max()) + 1)
    return value[:, layer_of_token]
  return jnp.broadcast_to(value[:, None], (len(value), len(layer_of_token)))


def loss(log_prob: Array, advantage: Array) -> Array:
  """The REINFORCE surrogate, Sec. 3.2; its gradient is the estimate of -grad J.

  Args:
    log_prob: [m, T] log P(a_t | a_<t), nats; 0 where the token does not exist.
    advantage: [m, T] R_k - b, spread over the tokens; no gradient flows through it.

  Returns:
    [] mean over children of the summed token losses.
  """
  chex.assert_equal_shape([log_prob, advantage])
  return -jnp.mean(jnp.sum(log_prob * jax.lax.stop_gradient(advantage), axis=1))
