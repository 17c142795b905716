"""The baseline b of REINFORCE: an average of earlier rewards. The advantage of a reward R is R - b.

Zoph & Le (2017), Sec. 3.2: "b is an exponential moving average of the previous architecture accuracies."
"""

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp

from nas_jax.config import field
from nas_jax.search.algorithms.base import layers_exist
from nas_jax.types import Array, Batch, Info, Outcome

BASELINES = ('moving', 'all')


@dataclasses.dataclass
class Config:
  """How the baseline and the advantage are computed."""

  baseline: str = field(
    'moving', "the baseline b, a 'moving' average of rewards or the average of 'all' so far", choices=BASELINES
  )
  baseline_decay: float = field(
    0.95, 'decay of the moving average of rewards, once per update (the paper does not say)', low=0.0, high=1.0
  )
  normalize_advantage: bool = field(
    False, 'divide the advantage R - b by its moving root mean square; not in the paper'
  )


class Baseline(NamedTuple):
  """The averages over the rewards so far."""

  value: Array  # [] of rewards
  seen: Array  # [] int32, how many rewards there were
  square: Array  # [] of squared advantages


def init_baseline() -> Baseline:
  """Returns the baseline before the first reward."""
  return Baseline(jnp.zeros(()), jnp.zeros((), jnp.int32), jnp.zeros(()))


def advantage(
  baseline: Baseline, reward: Array, decay: float | None, normalize: bool = False, exists: Array | None = None
) -> tuple[Array, Baseline]:
  """Returns the advantages R_k - b, with b from before these rewards, and the baseline after them.

  For the first batch, which has no past, b is the mean of the batch itself, and the average starts from that mean. The
  paper gives neither the decay nor the start. (An average with Adam's bias correction would not be a baseline from
  before the update.)

  Args:
    baseline: from before these rewards.
    reward: [m], or [m, L] with one reward for each layer.
    decay: of the moving average, once per batch; None for the plain average of all rewards so far.
    normalize: divide by the root of the average squared advantage, this batch included. The result is independent of
      the scale of the rewards, and at most 1 / sqrt(1 - decay) if m is 1.
    exists: [m, L] bool, which rewards exist; None for all. The advantage of the others is 0.
  """
  count = reward.size if exists is None else exists.sum(dtype=jnp.int32)
  keep = baseline.seen / (baseline.seen + count) if decay is None else decay
  mean = jnp.mean(reward, where=exists)
  before = jnp.where(baseline.seen == 0, mean, baseline.value)
  value = reward - before if exists is None else jnp.where(exists, reward - before, 0.0)
  square = jnp.mean(value**2, where=exists)
  square = jnp.where(baseline.seen == 0, square, keep * baseline.square + (1.0 - keep) * square)
  if normalize:
    # If all rewards are equal, the rounding errors that remain must not be scaled up to 1.
    least = 1e-5 * jnp.abs(before) + jnp.finfo(value.dtype).tiny
    value /= jnp.maximum(jnp.sqrt(square), least)
  after = keep * before + (1.0 - keep) * mean
  return value, Baseline(after, baseline.seen + count, square)


def advantages(cfg: Config, baseline: Baseline, batch: Batch, outcome: Outcome) -> tuple[Array, Baseline, Info]:
  """Returns the advantages of a batch, the baseline after it, and for reports b and the mean absolute advantage."""
  decay, exists = cfg.baseline_decay if cfg.baseline == 'moving' else None, layers_exist(batch, outcome.reward)
  value, after = advantage(baseline, outcome.reward, decay, cfg.normalize_advantage, exists)
  return value, after, {'baseline': after.value, 'advantage': jnp.mean(jnp.abs(value), where=exists)}
