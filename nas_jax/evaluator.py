"""Evaluators: architectures in, rewards out."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from nas_jax import train
from nas_jax.types import Batch, Outcome, PyTree


def from_scratch(
  programs: train.Fit, data: PyTree, reward: Callable[[dict[str, np.ndarray]], np.ndarray]
) -> Callable[[Batch], Outcome]:
  """Trains every child from its own initial weights on `data`; `reward` maps its metrics [m] to rewards [m].

  A child that failed earns 0.
  """
  data = train.share(data, programs.mesh)

  def evaluate(batch: Batch) -> Outcome:
    metrics = train.fit(programs, batch.archs, batch.keys, data)
    with np.errstate(all='ignore'):  # a failed child may have scored anything
      earned = np.where(metrics['failed'] == train.FINE, reward(metrics), 0.0)
    return Outcome(jnp.asarray(earned, jnp.float32), metrics)

  return evaluate
