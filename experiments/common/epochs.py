"""Extends full trainings to more epochs. A training is continued if its learning-rate schedule allows it.

The result is that of a training with the larger number of epochs from the start. To make this possible, the state of a
final training is kept after its end, in a folder ended-... beside trainings.json. With the schedule 'cosine' the rate
of every step depends on the number of epochs, so such trainings start anew.
"""

from collections.abc import Mapping
import functools
import glob
import hashlib
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import workdirs
from nas_jax import config, files
from nas_jax.training import checkpoint, full_training, schedules
from nas_jax.types import Array


def open_results(results: str, cfg: Any) -> None:
  """Opens a folder of results, which may have fewer epochs than `cfg`; see `workdirs.open_config`.

  If it has fewer, config.json is updated, and states of unfinished trainings that cannot be continued are removed.

  Raises:
    ValueError: as `workdirs.open_config`, or the results have more epochs than `cfg`.
  """
  workdirs.open_config(results, cfg, 'results')
  old = (workdirs.read(os.path.join(results, 'config.json')) or config.as_json(cfg))['epochs']
  if cfg.epochs < old:
    raise ValueError(
      f'epochs (={cfg.epochs}) are fewer than the {old} of the trainings in {results}: ask for at least as many, or '
      'name another --results.'
    )
  if cfg.epochs > old:
    if not schedules.prolongs(cfg.schedule):
      for path in glob.glob(os.path.join(glob.escape(results), '*', 'running*')):
        files.remove(path)
    workdirs.write_config(results, cfg)


def of(entry: Mapping[str, Any]) -> int:
  """Returns the epochs of an entry of trainings.json."""
  return len(entry['curve'][0])


def begin(running: str, name: str, cfg: Any, old: int, epochs: int) -> None:
  """Restores the state folder of a training that gets more epochs, and prints whether it continues or starts anew.

  Args:
    running: the folder for the state of a running training.
    name: of the training.
    cfg: of the trainings; it has their learning-rate schedule.
    old: the number of epochs so far.
    epochs: the number of epochs that the training will have.
  """
  ended = _ended(running)
  if os.path.isdir(ended) and not os.path.isdir(running):
    os.replace(ended, running)
  if os.path.isdir(running):
    print(f'{name}: goes on after epoch {old}, to epoch {epochs}', flush=True)
    return
  why = (
    'its state was not kept' if schedules.prolongs(cfg.schedule) else 'all rates of the schedule depend on their number'
  )
  print(f'{name}: trained anew for {epochs} epochs and not {old}: {why}', flush=True)


def end(running: str, cfg: Any, final: bool) -> None:
  """Keeps the state of an ended training if it is final and can get more epochs; otherwise removes the state."""
  if final and schedules.prolongs(cfg.schedule) and os.path.isdir(running):
    files.remove(_ended(running))
    os.replace(running, _ended(running))
  else:
    files.remove(running)


def _ended(running: str) -> str:
  return os.path.join(os.path.dirname(running), os.path.basename(running).replace('running', 'ended', 1))


def folder_of(folder: str, key: str) -> str:
  """Returns the folder for the state of a running training, one for each entry of trainings.json.

  Earlier versions had one folder for all trainings. If it is there and trainings.json lacks `key`, it is renamed to be
  the folder of `key`, whose state it holds.
  """
  running = os.path.join(folder, 'running')
  own = f'{running}-{hashlib.sha256(key.encode()).hexdigest()[:8]}'
  if os.path.isdir(running) and key not in (workdirs.read(os.path.join(folder, 'trainings.json')) or {}):
    os.replace(running, own)
  return own


def saved(progress: full_training.Progress, m: int) -> full_training.Progress:
  """Returns the state of m trainings in the form that is saved.

  It lacks the padding, and its arrays are on the host, so that it suits any number of devices: Orbax wants the devices
  that an array was saved on. Its curve has only the epochs that are done.
  """
  states, best = jax.tree.map(lambda leaf: np.asarray(leaf[:m]), (progress.states, progress.best))
  return progress._replace(states=states, best=best, curve=progress.curve[: int(progress.done), :m])


def restored(running: str, fresh: full_training.Progress, m: int) -> full_training.Progress:
  """Returns the saved state of m trainings, or `fresh`, that of untrained networks, if none was saved.

  The padding, if any, is that of `fresh`.
  """

  def after(step: int) -> full_training.Progress:
    return fresh._replace(curve=fresh.curve[:1].repeat(step, 0), done=jnp.asarray(step, jnp.int32))

  def older(wanted: full_training.Progress) -> list[tuple[full_training.Progress, Any]]:
    # Earlier versions saved the padding, and before that the curve at full length.
    return [(after(len(wanted.curve)), own), (fresh, own)]

  own = functools.partial(saved, m=m)
  found = checkpoint.restore(running, lambda step: own(after(step)), older)
  if found is None:
    return fresh

  def placed(old: Array, new: Array) -> Array:
    return jax.device_put(old.at[:m].set(new), old.sharding)

  states, best = jax.tree.map(placed, (fresh.states, fresh.best), (found.states, found.best))
  return found._replace(states=states, best=best, curve=fresh.curve.at[: len(found.curve), :m].set(found.curve))
