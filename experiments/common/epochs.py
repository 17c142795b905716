"""Extends full trainings to more epochs than they had. They are continued if the learning-rate schedule allows it.

An extended training gives the same result as a training with that many epochs from the start. The state of
a final training is therefore kept after its end, in a folder ended-... beside its entry in trainings.json. With the
schedule 'cosine' the rate of every step depends on the number of epochs, so trainings with it start anew.
"""

from collections.abc import Mapping
import glob
import hashlib
import os
from typing import Any

from experiments.common import workdirs
from nas_jax import config, files
from nas_jax.training import checkpoint, full_training, schedules


def open_results(results: str, cfg: Any) -> None:
  """Opens a folder of results, which may be of fewer epochs; see `workdirs.open_config`.

  Raises:
    ValueError: as there, or the results are of more epochs than `cfg` asks for.
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
  """Prepares the folder of the state of a training that is asked for more epochs, and says what will happen.

  Args:
    running: the folder of the state of a training under way.
    name: of the training.
    cfg: of the trainings, which has the schedule of their learning rate.
    old: the epochs that it had.
    epochs: the epochs that it will have.
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
  """Keeps the state of an ended training that may be asked for more epochs; removes that of another training."""
  if final and schedules.prolongs(cfg.schedule) and os.path.isdir(running):
    files.remove(_ended(running))
    os.replace(running, _ended(running))
  else:
    files.remove(running)


def _ended(running: str) -> str:
  return os.path.join(os.path.dirname(running), os.path.basename(running).replace('running', 'ended', 1))


def folder_of(folder: str, key: str) -> str:
  """Returns the folder for the state of a training under way, one for each entry of trainings.json.

  Earlier versions had one folder for all trainings. It held the state of the first one that trainings.json lacks.
  """
  running = os.path.join(folder, 'running')
  own = f'{running}-{hashlib.sha256(key.encode()).hexdigest()[:8]}'
  if os.path.isdir(running) and key not in (workdirs.read(os.path.join(folder, 'trainings.json')) or {}):
    os.replace(running, own)
  return own


def saved(progress: full_training.Progress) -> full_training.Progress:
  """Returns a state as it is saved: its curve holds only the epochs that are done, not those to come."""
  return progress._replace(curve=progress.curve[: int(progress.done)])


def restored(running: str, fresh: full_training.Progress) -> full_training.Progress:
  """Returns the state to go on from; `fresh`, which is that of an untrained network, if none was saved."""

  def like(step: int) -> full_training.Progress:
    return fresh._replace(curve=fresh.curve[:1].repeat(step, 0))

  # Earlier versions saved the curve in its full length.
  found = checkpoint.restore(running, like, lambda wanted: [(fresh, saved)])
  if found is None:
    return fresh
  return found._replace(curve=fresh.curve.at[: len(found.curve)].set(found.curve))
