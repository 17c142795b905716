"""Learning rates over the steps of a training."""

from collections.abc import Callable

import jax.numpy as jnp
import optax

from nas_jax.types import Array

SCHEDULES = ('constant', 'cosine', 'epochs', 'twice', 'restarts')


def rate(
  schedule: str,
  lr: float | Array,
  steps: int | Array,
  epoch: int,
  decay_epoch: float | Array = 0.0,
  decay: float = 0.5,
  least: float = 0.0,
) -> float | Array | Callable[[Array], float | Array]:
  """What optax takes as a learning rate.

  Args:
    schedule: 'cosine' to `least` over all steps; 'epochs': times `decay` after each epoch from `decay_epoch` on;
      'twice': times `decay` once `decay_epoch` epochs are over and again after half as many more, as 150 and 225 of
      300; 'restarts': cosines to `least`, the first over `decay_epoch` epochs, each next one twice as long.
    lr: at the start; this, `steps` and `decay_epoch` may be arrays.
    steps: of the whole training.
    epoch: steps of a pass over the data.
    decay_epoch: epochs at the rate of the start.
    decay: a factor.
    least: the rate at the end of a cosine.
  """
  if schedule == 'constant':
    return lr
  if schedule == 'cosine':
    if isinstance(steps, int):
      return optax.cosine_decay_schedule(lr, steps, least / lr if least else 0.0)
    return lambda step: least + (lr - least) * 0.5 * (1.0 + jnp.cos(jnp.pi * jnp.minimum(step, steps) / steps))
  if schedule == 'epochs':
    return lambda step: lr * decay ** jnp.maximum(step // epoch + 1 - decay_epoch, 0)
  if schedule == 'twice':
    return lambda step: lr * decay ** sum(step >= epoch * times * decay_epoch for times in (1.0, 1.5))
  if schedule == 'restarts':
    first = epoch * decay_epoch

    def turn(step: Array) -> Array:
      number = jnp.floor(
        jnp.log2(step / first + 1.0)
      )  # how many cosines are over: they took 2^number - 1 times the first
      done = (step / first + 1.0) / 2.0**number - 1.0
      return least + 0.5 * (lr - least) * (1.0 + jnp.cos(jnp.pi * done))

    return turn
  raise ValueError(f'schedule (={schedule!r}) must be one of {", ".join(SCHEDULES)}.')
