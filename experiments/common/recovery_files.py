"""Saves the state of running trainings in a workdir, so that little is lost when the process ends, and detects crashes.

started.jsonl has lines of these kinds:

* `process`, `kills`: a process began in the control group `process`, where the kernel had made `kills` out-of-memory
  kills.
* `training`, `calls`: a training was begun, or resumed after this many calls of its program.
* `training`, `kept`: its state after this many calls is in training/.
* `training`, `metrics`: it ended with these metrics.
* `training`, `left`: it is over and has no metrics to restore.
* `died`: the process before crashed, with this cause.

crash.txt distinguishes a crash from a kill. While a search runs, Python's faulthandler writes to it on the signals of a
crash (SIGSEGV, SIGABRT, SIGBUS, SIGFPE, SIGILL) and on no other. SIGKILL, a preempted machine or a second Ctrl-C
leave it empty. An out-of-memory kill by the kernel is also a SIGKILL; the counter of the control group reveals it.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
import contextlib
import faulthandler
import math
import os
import shutil
import threading
import time
from typing import Any, NamedTuple
import warnings

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import control_group
from experiments.common.control_group import ControlGroup
from nas_jax import arrays, files, words
from nas_jax.files import is_count
from nas_jax.search import journal
from nas_jax.training import checkpoint
from nas_jax.training.fit import Status
from nas_jax.training.recovery import Limits, Metrics, Recovery, Stopped
from nas_jax.types import Array, PyTree

SECONDS = 60  # between two saved states of a training


class Standing(NamedTuple):
  """The progress of a training."""

  calls: Array  # [] int32, program calls done
  states: PyTree


class Store(NamedTuple):
  """How the states of trainings are kept, each in a folder of its own."""

  save: Callable[[str, int, Standing], None]  # (folder, calls, state)
  restore: Callable[[str, Standing], Standing | None]  # (folder, a state of the same shape) -> the newest sound one


def _save_by_orbax(folder: str, calls: int, state: Standing) -> None:
  save, close = checkpoint.saver(folder, keep=2)
  save(calls, state)
  close()


def _save_in_one_file(folder: str, calls: int, state: Standing) -> None:
  del calls  # is part of the state
  os.makedirs(folder, exist_ok=True)
  files.write(os.path.join(folder, STATE), arrays.pack(jax.tree.leaves(state)))


def _restore_from_one_file(folder: str, like: Standing) -> Standing | None:
  path = os.path.join(folder, STATE)
  try:
    with open(path, 'rb') as file:
      leaves = arrays.unpack(file.read())
    wanted, tree = jax.tree.flatten(like)
    if [(x.shape, x.dtype) for x in leaves] != [(x.shape, x.dtype) for x in wanted]:
      raise ValueError('it is of another training')
    return jax.tree.unflatten(tree, map(jnp.asarray, leaves))
  except FileNotFoundError:
    return None
  except ValueError as error:
    aside = files.set_aside(path, os.path.join(os.path.dirname(os.path.dirname(folder)), 'damaged'))
    warnings.warn(f'{path} is damaged ({error}): moved to {aside}.', stacklevel=2)
    return None


STATE = 'state.npz.sha256'  # a file made by `arrays.pack`: the digest and an .npz
ORBAX = Store(_save_by_orbax, checkpoint.restore)
# Orbax silently writes nothing in a process other than the first of several.
ONE_FILE = Store(_save_in_one_file, _restore_from_one_file)


class History(NamedTuple):
  """The records of started.jsonl about trainings, by their names."""

  ended: dict[str, Metrics]
  crashes: Counter[str]  # crashes while it was the only running training, since its state was last saved
  suspects: set[str]  # trainings that ran, beside others, when the process crashed


@contextlib.contextmanager
def recording_crashes(workdir: str) -> Iterator[None]:
  """A context in which a crash of this process is written to crash.txt, which `recovery` of the next process reads."""
  before = faulthandler.is_enabled()
  with open(os.path.join(workdir, 'crash.txt'), 'ab') as file:
    faulthandler.enable(file)
    try:
      yield
    finally:
      faulthandler.disable()
      if before:
        faulthandler.enable()


def forget_crash(workdir: str) -> None:
  """Empties crash.txt. Call it if this process's predecessor crashed through no fault of its own."""
  os.truncate(os.path.join(workdir, 'crash.txt'), 0)  # `recording_crashes` has it open


def recovery(
  workdir: str,
  limits: Limits,
  check: Callable[[], None],
  store: Store = ORBAX,
  unsaved: set[str] | None = None,
) -> Recovery:
  """Returns a recovery that writes started.jsonl and saves the states of long trainings in training/.

  First it adds to started.jsonl whether the process before crashed, and that this one began; crash.txt is emptied.

  Args:
    workdir: the folder.
    limits: of a child.
    check: raises `Stopped` if the process was asked to end.
    store: how the states are saved.
    unsaved: a set that the recovery keeps up to date: the names of running trainings with unsaved work.
  """
  unsaved = set() if unsaved is None else unsaved
  path, folder = os.path.join(workdir, 'started.jsonl'), os.path.join(workdir, 'training')
  lock, kept = threading.Lock(), dict[str, float]()  # when each training was last saved

  def note(line: dict[str, Any]) -> None:
    # Not synced to the disk: a line survives the end of the process, and one that is lost costs only one training.
    with lock, open(path, 'a', encoding='utf-8') as file:
      file.write(journal.encode(line) + '\n')

  lines, group = _read(path, os.path.join(workdir, 'damaged')), control_group.own()
  if died := _crash(os.path.join(workdir, 'crash.txt')) or _out_of_memory(lines, group):
    lines.append({'died': died})
    note(lines[-1])
  note({'process': group.name, 'kills': group.kills})
  ended, crashes, suspects = history(lines)

  def begin(name: str, fresh: PyTree) -> tuple[int, PyTree]:
    check()
    start = Standing(jnp.zeros((), jnp.int32), fresh)
    found = store.restore(os.path.join(folder, name), start) or start
    note({'training': name, 'calls': int(found.calls)})
    kept[name] = time.monotonic()
    return int(found.calls), found.states

  def keep(name: str, calls: int, states: PyTree) -> None:
    try:
      check()
    except Stopped:
      put(name, calls, states)
      raise
    if time.monotonic() - kept[name] > SECONDS:
      put(name, calls, states)
      kept[name] = time.monotonic()

  def put(name: str, calls: int, states: PyTree) -> None:
    # Copied before the next call, which donates the states.
    store.save(os.path.join(folder, name), calls, Standing(jnp.asarray(calls, jnp.int32), jax.device_get(states)))
    unsaved.discard(name)
    note({'training': name, 'kept': calls})

  def end(name: str, metrics: Metrics) -> None:
    note({'training': name, 'metrics': {key: [str(value.dtype), value.tolist()] for key, value in metrics.items()}})
    unsaved.discard(name)
    shutil.rmtree(os.path.join(folder, name), ignore_errors=True)

  def leave(name: str) -> None:
    note({'training': name, 'left': True})
    unsaved.discard(name)

  timeout = limits.child_timeout or math.inf
  return Recovery(
    recall=ended.get,
    failed_starts=lambda name: crashes[name],
    begin=begin,
    keep=keep,
    end=end,
    leave=leave,
    check=check,
    timeout=timeout,
    starts=limits.child_starts,
    is_suspect=suspects.__contains__,
    hold=unsaved.add,
    release=unsaved.discard,
  )


def history(lines: Iterable[dict[str, Any]]) -> History:
  """Returns the history that the lines of started.jsonl record, in their order."""
  found, under_way = History({}, Counter(), set()), set[str]()
  for line in lines:
    name = line.get('training', '')
    if 'process' in line:
      under_way = set()
    elif 'died' in line and len(under_way) == 1:
      found.crashes.update(under_way)
    elif 'died' in line:
      found.suspects.update(under_way)
    elif 'metrics' in line:
      found.ended[name] = {key: np.array(values, dtype) for key, (dtype, values) in line['metrics'].items()}
      under_way.discard(name)
    elif 'left' in line:
      under_way.discard(name)
    elif 'kept' in line:  # the training makes progress, so it does not crash the process
      found.crashes[name] = 0
      under_way.discard(name)
    else:
      under_way.add(name)
  return found


def _read(path: str, aside: str) -> list[dict[str, Any]]:
  if count := journal.drop_damaged_lines(path, aside, STARTED):
    warnings.warn(f'{path}: {words.counted(count, "damaged line")}, moved to {aside}.', stacklevel=3)
  return journal.read_lines(path, STARTED)


def _are_metrics(value: Any) -> bool:
  """Returns whether a JSON value has the form that `end` writes: for each name a dtype, and numbers or booleans."""
  try:
    arrays = {name: np.array(values, np.dtype(str(dtype))) for name, (dtype, values) in value.items()}
    known = all(status in set(Status) for status in arrays['failed'].tolist())
  except (AttributeError, KeyError, OverflowError, TypeError, ValueError):
    return False
  shapes = {array.shape for array in arrays.values()}
  return known and shapes == {(len(arrays['failed']),)} and all(array.dtype.kind in 'fiub' for array in arrays.values())


STARTED: files.Schema = (
  {'training': str, 'calls': is_count},
  {'training': str, 'kept': is_count},
  {'training': str, 'metrics': _are_metrics},
  {'training': str, 'left': bool},
  {'process': str, 'kills': is_count},
  {'died': str},
)


def _crash(path: str) -> str:
  """Returns the cause of the previous process's crash, or '' if it did not crash, and empties crash.txt."""
  if not os.path.isfile(path):
    return ''
  with open(path, errors='replace') as file:
    said = file.readline().strip()
  os.truncate(path, 0)
  return said


def _out_of_memory(lines: Iterable[dict[str, Any]], now: ControlGroup) -> str:
  """Returns 'out of memory' if the kernel has counted such a kill since the previous process began, else ''."""
  before = [line for line in lines if 'process' in line][-1:]
  killed = any(line['process'] == now.name and line['kills'] < now.kills for line in before)
  return 'out of memory' if killed and now.name else ''
