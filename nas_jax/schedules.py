"""Learning rates over the steps of a training."""

from collections.abc import Callable

import jax.numpy as jnp
import optax

from nas_jax.types import Array

SCHEDULES = ('constant', 'cosine', 'epochs', 'twice')


def rate(
  schedule: str,
  lr: float | Array,
  steps: int,
  epoch: int,
  decay_epoch: float | Array = 0.0,
  decay: float = 0.5,
) -> float | Array | Callable[[Array], float | Array]:
  """What optax takes as a learning rate.

  Args:
    schedule: 'cosine' to 0 over all steps; 'epochs': times `decay` after each epoch from `decay_epoch` on; 'twice':
      times `decay` once `decay_epoch` epochs are over and again after half as many more, as 150 and 225 of 300.
    lr: at the start; this and `decay_epoch` may be arrays.
    steps: of the whole training.
    epoch: steps of a pass over the data.
    decay_epoch: epochs at the rate of the start.
    decay: a factor.
  """
  if schedule == 'constant':
    return lr
  if schedule == 'cosine':
    return optax.cosine_decay_schedule(lr, steps)
  if schedule == 'epochs':
    return lambda step: lr * decay ** jnp.maximum(step // epoch + 1 - decay_epoch, 0)
  if schedule == 'twice':
    return lambda step: lr * decay ** sum(step >= epoch * times * decay_epoch for times in (1.0, 1.5))
  raise ValueError(f'schedule (={schedule!r}) must be one of {", ".join(SCHEDULES)}.')
