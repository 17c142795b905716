"""Learning rates over the steps of a training."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax

from nas_jax.types import Array

SCHEDULES = ('constant', 'cosine', 'epochs', 'twice', 'restarts')


def prolongs(schedule: str) -> bool:
  """Says whether a schedule does not depend on the length of training, so that a finished training can be continued."""
  return schedule != 'cosine'


def stretched(cfg: Any, times: int) -> dict[str, Any]:
  """Returns `decay_epoch` and `lr_decay` with which the rate of a training `times` times as long falls as much slower.

  Args:
    cfg: a config with these two fields and `schedule`. Only the schedule 'epochs' decays again after each epoch.
    times: how much longer.
  """
  decay = cfg.lr_decay ** (1 / times) if cfg.schedule == 'epochs' else cfg.lr_decay
  return {'decay_epoch': times * cfg.decay_epoch, 'lr_decay': decay}


def rate(
  schedule: str,
  lr: float | Array,
  steps: int | Array,
  epoch: int,
  decay_epoch: float | Array = 0.0,
  decay: float = 0.5,
  least: float = 0.0,
) -> float | Array | Callable[[Array], float | Array]:
  """Returns a learning rate as optax takes it: a number, or a function of the step.

  Args:
    schedule: one of SCHEDULES. 'constant' stays at `lr`. 'cosine' falls from `lr` to `least` over the whole training.
      'epochs' is multiplied by `decay` after each epoch from `decay_epoch` on. 'twice' is multiplied by `decay` after
      `decay_epoch` epochs, and again after 1.5 times as many. 'restarts' falls from `lr` to `least` over
      `decay_epoch` epochs and starts again at `lr`; each fall takes twice as long as the one before.
    lr: the rate of the first step, a number or an array.
    steps: training steps in all, a number or an array.
    epoch: training steps in a pass over the data.
    decay_epoch: epochs until the rate first decays, or of the first fall of 'restarts'; a number or an array.
    decay: the factor of 'epochs' and 'twice'.
    least: the least rate of 'cosine' and 'restarts'.

  Raises:
    ValueError: there is no such schedule.
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
      # Together the finished cosines took 2^number - 1 times as long as the first.
      number = jnp.floor(jnp.log2(step / first + 1.0))
      done = (step / first + 1.0) / 2.0**number - 1.0
      return least + 0.5 * (lr - least) * (1.0 + jnp.cos(jnp.pi * done))

    return turn
  raise ValueError(f'schedule (={schedule!r}) must be one of {", ".join(SCHEDULES)}.')
