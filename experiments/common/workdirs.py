"""Folders of results. One process at a time opens a folder, writes are atomic, and damaged files are moved aside."""

from collections.abc import Callable, Mapping, Sequence
import contextlib
import dataclasses
import errno
import math
import os
import shlex
from typing import Any
import warnings

import filelock
import jax

from experiments.common import schemas
from nas_jax import config, files, words
from nas_jax.files import write
from nas_jax.search import journal
from nas_jax.space import Space

# No space, no quota, or a file too large: the same command goes on once there is space.
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# JAX's settings that change random numbers or the results of computations, and their defaults.
JAX_SETTINGS = {
  'jax_threefry_partitionable': True,
  'jax_default_prng_impl': 'threefry2x32',
  'jax_enable_x64': False,
  'jax_default_matmul_precision': None,
}


def lock(workdir: str, flag: str = 'workdir') -> contextlib.AbstractContextManager[Any]:
  """Creates the folder if it is missing, and locks it for this process as long as the returned object lives.

  On a file system without locks it only warns.

  Args:
    workdir: the folder.
    flag: the flag that names it, for error messages.

  Raises:
    ValueError: it cannot be written, or another process uses it.
    OSError: there is no space for the lock.
  """
  try:
    os.makedirs(workdir, exist_ok=True)
    lock = filelock.FileLock(os.path.join(workdir, 'lock'))
    lock.acquire(timeout=0)
  except filelock.Timeout:
    raise ValueError(
      f'{flag} (={workdir!r}) is in use by another process: wait for its end, or name another --{flag}.'
    ) from None
  except NotImplementedError:
    warnings.warn(f'{workdir} is where files cannot be locked: let no other process use it.', stacklevel=2)
    return contextlib.nullcontext()
  except OSError as error:
    raise _unusable(workdir, error, flag) from None
  return lock


def check_unused(workdir: str, flag: str = 'workdir') -> None:
  """Raises as `lock` does if the folder is there and another process uses it."""
  if os.path.exists(os.path.join(workdir, 'lock')):
    lock(workdir, flag)  # released at once


def open_trainings(folder: str, cfg: Any, sha256: str) -> None:
  """Notes in the folder of a host or worker which search its trainings are of, or checks that they are of this one.

  Such a folder may be on a disk of its own, and outlive the workdir of the search. Trainings are recalled by names that
  tell neither the config nor the data.

  Args:
    folder: where the host or worker saves its trainings.
    cfg: the config of the search; nothing is left open in it.
    sha256: of the data.

  Raises:
    files.Unusable: the folder cannot be written, or holds trainings of another config, other data or other settings of
      JAX.
    OSError: there is no space.
  """
  try:
    open_config(folder, cfg)
    check_data(folder, sha256)
    note_data(folder, sha256)
  except ValueError as error:
    raise files.Unusable(f'{error} If the folder is left from a search that is gone, remove it.') from None


def _unusable(workdir: str, error: OSError, flag: str) -> Exception:
  if error.errno in FULL:
    return OSError(error.errno, error.strerror, error.filename or workdir)
  return ValueError(f'{flag} (={workdir!r}) cannot be used ({error.strerror}): name one that can be written.')


def open_config(workdir: str, cfg: Any, flag: str = 'workdir') -> Any:
  """Creates the folder and writes config.json, or checks that the folder's config.json equals `cfg`.

  JAX's settings are compared first (see `JAX_SETTINGS`), and noted in origin.json. A config.json that is missing or
  damaged is written again from the copy in origin.json, or else from `cfg`. A config.json that differs from `cfg`
  counts as damaged if the copy equals `cfg`.

  Args:
    workdir: the folder.
    cfg: the config.
    flag: the flag that names the folder, for error messages.

  Returns:
    `cfg`, with the values of this folder for the choices that it leaves open ('auto', or a seed of -1).

  Raises:
    ValueError: the folder cannot be written, or holds results of another config or other JAX settings; the message
      says how they differ.
    OSError: there is no space for config.json.
  """
  path = os.path.join(workdir, 'config.json')
  try:
    os.makedirs(workdir, exist_ok=True)
    begun = os.path.lexists(path) or os.path.lexists(os.path.join(workdir, 'children.jsonl'))
    origin = read(os.path.join(workdir, 'origin.json')) or {}
    _check_jax_settings(workdir, origin, begun, flag)
    old, copy = read(path), origin.get('config')
    if old is None and begun:
      warnings.warn(f'{path} is missing: taken from {"origin.json" if copy else "the flags"}.', stacklevel=2)
    if old and copy and _differences(old, cfg) and not _differences(copy, cfg):
      warnings.warn(f'{path} is damaged: taken from origin.json.', stacklevel=2)
      old = None
    if old is None:
      old = copy or config.as_json(cfg)
      write_json(path, old)
    if 'jax_settings' not in origin:
      _add_to_origin(workdir, jax_settings=jax_settings())
  except OSError as error:
    raise _unusable(workdir, error, flag) from None
  _refuse_another(workdir, old, cfg, flag)
  return config.settled(cfg, old)


def check_config(workdir: str, cfg: Any, flag: str = 'workdir') -> None:
  """Raises ValueError if the folder holds results of another config than `cfg`. Nothing is written or moved."""
  if old := saved_config(workdir):
    _refuse_another(workdir, old, cfg, flag)


def _refuse_another(workdir: str, old: Mapping[str, Any], cfg: Any, flag: str) -> None:
  """Raises ValueError, which says how they differ, if a saved config is another one than `cfg`."""
  if different := _differences(old, cfg):
    unknown = [name for name in config.without_removed(old, type(cfg)) if not hasattr(cfg, name)]
    if unknown:  # nearly all fields differ: to list them would help nobody
      what = f'results of another kind, with settings such as {", ".join(unknown[:3])}: name'
    else:
      what = f'results of another config: {", ".join(different)}. Give the same flags to resume, or name'
    raise ValueError(f'{flag} (={workdir!r}) holds {what} another --{flag}.')


def settled(workdir: str, cfg: Any) -> Any:
  """Returns `cfg` with this folder's values for the data seed and whatever else flags leave open: see `config.settled`.

  In a new folder the data seed is the seed of the run. Nothing is written or moved.
  """
  return settled_by(saved_config(workdir), cfg)


def saved_config(workdir: str) -> dict[str, Any]:
  """Returns the config of a folder's results as JSON values, empty if there is none. Nothing is written or moved.

  The copy in origin.json takes precedence, as config.json may be damaged.
  """
  copy = object_in(os.path.join(workdir, 'origin.json')).get('config')
  return copy or object_in(os.path.join(workdir, 'config.json'))


def settled_by(old: Mapping[str, Any], cfg: Any) -> Any:
  """Returns `cfg` with what flags leave open taken from `old`, as `saved_config` returns it: see `settled`."""
  if old:
    return config.settled(cfg, old)
  return dataclasses.replace(cfg, data_seed=config.data_seed(cfg)) if isinstance(cfg, config.DataSeed) else cfg


def object_in(path: str) -> dict[str, Any]:
  """Returns the JSON object in a file, or an empty one if the file cannot be read. Nothing is moved."""
  try:
    return files.read(path, schemas.of(path)) or {}
  except (OSError, ValueError):
    return {}


def _differences(old: Mapping[str, Any], cfg: Any) -> list[str]:
  return config.differences(old, config.settled(cfg, old))


def jax_settings() -> dict[str, Any]:
  """Returns the current JAX settings that can change the bits of a result, by name."""
  return {name: getattr(jax.config, name) for name in JAX_SETTINGS}


def _check_jax_settings(workdir: str, origin: Mapping[str, Any], begun: bool, flag: str) -> None:
  """Raises ValueError if a folder has results of other JAX settings. A folder that records none had the defaults."""
  now = jax_settings()
  old = (JAX_SETTINGS | origin.get('jax_settings', {})) if begun else now
  different = [f'{name} ({old[name]} -> {now[name]})' for name in now if old[name] != now[name]]
  if different:
    raise ValueError(
      f'{flag} (={workdir!r}) holds results of other settings of JAX: {", ".join(different)}. Set them as they were, '
      f'or name another --{flag}.'
    )


def check_data(workdir: str, sha256: str, flag: str = 'workdir') -> None:
  """Raises ValueError if the results in a folder come from data with another SHA-256 digest."""
  old = object_in(os.path.join(workdir, 'origin.json')).get('sha256', sha256)
  if old != sha256:
    raise ValueError(
      f'{flag} (={workdir!r}) holds results of other data (sha256 {old[:12]}, not {sha256[:12]}): give the data that '
      f'they are of, or name another --{flag}.'
    )


def note_data(folder: str, sha256: str, **facts: Any) -> None:
  """Writes the SHA-256 digest of the data of the results to origin.json, for `check_data`, and `facts`."""
  _add_to_origin(folder, sha256=sha256, **facts)


def write_config(workdir: str, cfg: Any) -> None:
  """Writes config.json, and its copy in origin.json."""
  write_json(os.path.join(workdir, 'config.json'), config.as_json(cfg))
  _add_to_origin(workdir, config=config.as_json(cfg))


def note_origin(workdir: str, launcher: str, argv: Sequence[str], cfg: Any, **facts: Any) -> None:
  """Writes the origin of the results to origin.json: command, devices, JAX version, config and `facts`."""
  command = shlex.join(['python', '-m', f'experiments.{launcher}', *argv[1:]])
  devices = f'{len(jax.local_devices())} {jax.default_backend()}'
  _add_to_origin(workdir, command=command, **facts, devices=devices, jax=jax.__version__, config=config.as_json(cfg))


def _add_to_origin(workdir: str, **entries: Any) -> None:
  path = os.path.join(workdir, 'origin.json')
  write_json(path, (read(path) or {}) | entries)


def read(path: str) -> Any:
  """Returns the JSON value in a file of a workdir, or None if there is none.

  A file that is not JSON or does not fit its schema is moved to the folder `damaged` beside it, with a warning. Losses
  that are null are read as infinite: see `write_json`.
  """
  try:
    return _read(path)
  except (ValueError, IsADirectoryError) as error:
    aside = files.set_aside(path, os.path.join(os.path.dirname(path), 'damaged'))
    warnings.warn(f'{path} is damaged ({error}): moved to {aside}.', stacklevel=2)
    return None


def peek(path: str) -> Any:
  """Returns the JSON value in a file as `read` does, but moves nothing.

  Raises:
    files.Unusable: the file is damaged; the message names it.
  """
  try:
    return _read(path)
  except (OSError, ValueError) as error:
    raise files.Unusable(f'{path} cannot be read ({error}): restore or remove it.') from None


def write_json(path: str, value: Any, indent: int | None = 2) -> None:
  """Writes a JSON file whole or not at all. A number that is not finite becomes null."""
  write(path, files.as_json(value, indent) + '\n')


def _read(path: str) -> Any:
  found = files.read(path, schemas.of(path))
  if os.path.basename(path) not in schemas.WITH_LOSSES or found is None:
    return found
  return files.each_leaf(found, lambda leaf: math.inf if leaf is None else leaf)


def peek_derived(folder: str, made: Space, metric: str) -> list[journal.Record]:
  """Returns the architectures in derived.json, best first; none if there is no such file. Moves nothing.

  Raises:
    files.Unusable: the file is damaged; the message names it.
  """
  path = os.path.join(folder, 'derived.json')
  lines = peek(path) or []
  if not all(map(journal.derived_of(made, metric), lines)):
    raise files.Unusable(f'{path} cannot be read (no {made.kind} architectures with {metric}): restore or remove it.')
  return lines


def scores_of(entry: Any) -> list[float | None]:
  """Returns the scores in an entry of yardsticks.json, which may also name the architecture that they are of."""
  return entry['scores'] if isinstance(entry, Mapping) else entry


def read_children(path: str, made: Space) -> dict[int, journal.Record]:
  """Returns the children of a space in a journal, by id. Damaged lines are moved aside with a warning."""
  fits = journal.child_of(made)
  drop_damaged_lines(path, fits)
  return journal.read(path, schema=fits)


def drop_damaged_lines(path: str, schema: files.Schema) -> None:
  """Moves damaged lines of a journal of children aside, with a warning."""
  aside = os.path.join(os.path.dirname(path), 'damaged')
  if count := journal.drop_damaged_lines(path, aside, schema):
    warnings.warn(
      f'{path}: {words.counted(count, "damaged line")}, moved to {aside}; what was lost is trained again.',
      stacklevel=4,
    )


def cached(path: str, measure: Callable[[], Any], fits: Callable[[Any], bool] = lambda found: True) -> Any:
  """Returns the JSON value in `path`. If there is none that `fits`, it first writes the result of `measure` there."""
  found = read(path)
  if found is None or not fits(found):
    write_json(path, measure())
    found = read(path)
  return found


def cached_each(
  path: str,
  measures: Mapping[str, Callable[[], Any]],
  fits: Callable[[str, Any], bool] = lambda name, entry: True,
) -> dict[str, Any]:
  """Returns the entries `measures` of the JSON object in `path`.

  Those that are missing, or are not such that `fits(name, entry)`, are measured and written there.
  """
  found = read(path) or {}
  for name, measure in measures.items():
    if name not in found or not fits(name, found[name]):
      found[name] = measure()
      write_json(path, found)
  return {name: found[name] for name in measures}
