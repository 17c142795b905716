"""Checkpoints of any state tree by Orbax, each with a SHA-256 digest, since Orbax does not notice a flipped byte."""

from collections.abc import Callable
import contextlib
import errno
import hashlib
import os
import tempfile
from typing import Any
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from nas_jax import files
from nas_jax.types import PyTree


def saver(folder: str, keep: int = 3) -> tuple[Callable[[int, PyTree], None], Callable[[], None]]:
  """Returns `save(step, state)` and `close()` for checkpoints in `folder`.

  Checkpoints are written in the background, and the newest `keep` of them are kept. Both functions raise OSError if a
  state cannot be written.
  """
  manager = _manager(folder, keep)

  def save(step: int, state: PyTree) -> None:
    arrays = _to_arrays(state)
    if jax.process_count() > 1:  # Orbax would take the array of one process for a part of a larger array
      arrays = jax.tree.map(np.asarray, arrays)
    items = ocp.args.Composite(
      state=ocp.args.StandardSave(arrays), digest=ocp.args.JsonSave({'sha256': _digest(arrays)})
    )
    # Orbax saves nothing and returns False if the newest checkpoint is not older: that state is saved already.
    written(lambda: manager.save(step, args=items))

  def close() -> None:
    written(manager.wait_until_finished)
    manager.close()

  def written(work: Callable[[], Any]) -> None:
    try:
      work()
    except Exception as error:  # Orbax reports a full disk by errors of many types
      raise OSError(errno.EIO, f'a checkpoint cannot be written: {_first_line(error)}', folder) from error

  return save, close


Layouts = list[tuple[PyTree, Callable[[Any], PyTree]]]  # trees of other shapes, each with its conversion function


def restore(
  folder: str,
  like: PyTree | Callable[[int], PyTree],
  older: Callable[[Any], Layouts] = lambda like: [],
  reject: Callable[[Any], str] = lambda state: '',
) -> PyTree | None:
  """Returns the newest sound state in `folder`, or None if there is none.

  A checkpoint that cannot be read, whose digest does not fit, or that is rejected, is moved to `<folder>/../damaged/`
  with a warning. So is anything else in the folder that Orbax would take for a checkpoint.

  Args:
    folder: where `saver` wrote.
    like: a state of the same shape, or a function from a step to one, for states that grow.
    older: maps such a state to the layouts in which earlier versions may have saved it.
    reject: maps a sound state to the reason for rejecting it; '' accepts it. Its exceptions are passed on.
  """
  damaged = os.path.join(os.path.dirname(os.path.abspath(folder)), 'damaged')
  for name in _strangers(folder):
    aside = files.set_aside(name, damaged)
    warnings.warn(f'{name} is no checkpoint: moved to {aside}.', stacklevel=2)
  for step in sorted(_steps(folder), reverse=True):
    state, why = None, ''
    try:
      state = _sound(folder, step, like, older)
    except Exception as error:  # Orbax reports damaged files by errors of many types
      why = f'is damaged ({_first_line(error)})'
    if not (why := why or reject(state)):
      return state
    aside = tempfile.mkdtemp(prefix=f'{step}-', dir=_made(damaged))
    os.replace(os.path.join(folder, str(step)), aside)
    warnings.warn(f'checkpoint {step} {why}: moved to {aside}.', stacklevel=2)
  return None


def load(folder: str, like: PyTree) -> PyTree:
  """Returns the newest state in `folder` and changes no file.

  Args:
    folder: where `saver` wrote.
    like: a state of the same shape, or shapes and types alone.

  Raises:
    ValueError: there is no state, or it cannot be read, has another shape, or its digest does not fit. The message is
      one line.
  """
  steps = _steps(folder)
  if not steps:
    raise ValueError(f'{folder} holds no weights.')
  try:
    manager = _manager(folder, None, write=False)
    try:
      return _read(manager, max(steps), like)
    finally:
      manager.close()
  except Exception as error:  # Orbax reports damaged files by errors of many types
    raise ValueError(f'{folder} cannot be read ({_first_line(error)}).') from None


def _made(folder: str) -> str:
  os.makedirs(folder, exist_ok=True)
  return folder


def _is_step(name: str) -> bool:
  return name.isascii() and name.isdecimal() and len(name) < 19 and name == str(int(name))


def _steps(folder: str) -> list[int]:
  return [int(name) for name in os.listdir(folder) if _is_step(name)] if os.path.isdir(folder) else []


def _strangers(folder: str) -> list[str]:
  """Returns the paths on which Orbax would fail: names with digits outside ASCII, and files in place of folders."""
  if not os.path.isdir(folder):
    return [folder] if os.path.lexists(folder) else []
  paths = {name: os.path.join(folder, name) for name in os.listdir(folder)}
  ends = {name: name.rsplit('_')[-1] for name in paths}
  odd = [name for name, end in ends.items() if end.isdigit() and not (_is_step(name) and os.path.isdir(paths[name]))]
  return [paths[name] for name in odd]


def _sound(folder: str, step: int, like: PyTree | Callable[[int], PyTree], older: Callable[[Any], Layouts]) -> PyTree:
  """Returns the state of a step. Raises an exception of any kind if the state cannot be read."""
  # Only a saver deletes what is half-written: Orbax does so in the background, and two managers would hit each other.
  manager = _manager(folder, None, write=False)
  try:
    wanted = like(step) if callable(like) else like
    try:
      return _read(manager, step, wanted)
    except Exception:
      for layout, convert in older(wanted):
        with contextlib.suppress(Exception):
          return convert(_read(manager, step, layout))
      raise
  finally:
    manager.close()


def _read(manager: ocp.CheckpointManager, step: int, wanted: PyTree) -> PyTree:
  """Returns the state of a step, of the shape of `wanted`. Raises an exception of any kind if it cannot be read."""
  # Arrays of the host: Orbax would look for the devices that an array was saved on, and these may be missing here.
  template = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), _to_arrays(wanted))
  items = ocp.args.Composite(state=ocp.args.StandardRestore(template), digest=ocp.args.JsonRestore())
  found = manager.restore(step, args=items)
  if found.digest['sha256'] != _digest(found.state):
    raise ValueError('its digest does not fit')
  if jax.tree.map(np.shape, found.state) != jax.tree.map(np.shape, template):
    raise ValueError('its arrays have other shapes')
  return _from_arrays(found.state, wanted)


def _first_line(error: Exception) -> str:
  return str(error).splitlines()[0][:200] if str(error) else type(error).__name__


def _manager(folder: str, keep: int | None, write: bool = True) -> ocp.CheckpointManager:
  folder = os.path.abspath(folder)
  if write:
    os.makedirs(folder, exist_ok=True)
  # Of several processes only process 0 keeps checkpoints: without this Orbax would wait for the others.
  alone = ocp.options.MultiprocessingOptions()
  if jax.process_count() > 1:
    alone = ocp.options.MultiprocessingOptions(
      primary_host=0, active_processes={0}, barrier_sync_key_prefix=hashlib.sha256(folder.encode()).hexdigest()[:16]
    )
  # Half-written checkpoints of a killed process are deleted. Folders are made in the foreground. In the background,
  # Orbax would count them by a number that all savers of a process share, so that one of two savers might write too
  # early or wait for ever.
  options = ocp.CheckpointManagerOptions(
    max_to_keep=keep,
    create=False,
    cleanup_tmp_directories=write,
    async_options=ocp.options.AsyncOptions(create_directories_asynchronously=False),
    multiprocessing_options=alone,
  )
  handlers = {
    'state': ocp.StandardCheckpointHandler(multiprocessing_options=alone),
    'digest': ocp.JsonCheckpointHandler(multiprocessing_options=alone),
  }
  registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
  registry.add('state', ocp.args.StandardSave, handlers['state'])
  registry.add('state', ocp.args.StandardRestore, handlers['state'])
  registry.add('digest', ocp.args.JsonSave, handlers['digest'])
  registry.add('digest', ocp.args.JsonRestore, handlers['digest'])
  return ocp.CheckpointManager(folder, options=options, handler_registry=registry)


def _to_arrays(state: PyTree) -> PyTree:
  """Replaces random keys by their data, as arrays of integers; NamedTuples stay as they are."""
  return jax.tree.map(lambda x: jax.random.key_data(x) if _is_key(x) else x, state)


def _from_arrays(arrays: PyTree, like: PyTree) -> PyTree:
  """The inverse of `_to_arrays`. Orbax commits arrays to a device; the returned ones are committed to none."""

  def free(array, leaf):
    array = jnp.asarray(np.asarray(array))
    return jax.random.wrap_key_data(array, impl=jax.random.key_impl(leaf)) if _is_key(leaf) else array

  return jax.tree.map(free, arrays, like)


def _is_key(x) -> bool:
  return jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)


def _digest(arrays: PyTree) -> str:
  sha = hashlib.sha256()
  for path, leaf in jax.tree_util.tree_flatten_with_path(arrays)[0]:
    value = np.asarray(leaf)
    sha.update(f'{jax.tree_util.keystr(path)} {value.dtype} {value.shape}'.encode())
    sha.update(value.tobytes())
  return sha.hexdigest()
