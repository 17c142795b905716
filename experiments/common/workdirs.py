"""A folder of results: opened by one process at a time, its files whole or not at all, what is damaged moved aside."""

from collections.abc import Callable, Mapping, Sequence
import contextlib
import json
import os
import shlex
from typing import Any
import warnings

import filelock
import jax

from nas_jax import config


def lock(workdir: str, flag: str = 'workdir') -> contextlib.AbstractContextManager[Any]:
  """Makes the folder, if need be, and takes it for this process, for as long as what is returned lives.

  Args:
    workdir: the folder.
    flag: the flag that names it, for error messages.

  Raises:
    ValueError: it cannot be written, or another process has it.
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


def _unusable(workdir: str, error: OSError, flag: str) -> ValueError:
  return ValueError(f'{flag} (={workdir!r}) cannot be used ({error.strerror}): name one that can be written.')


def open_config(workdir: str, cfg: Any, flag: str = 'workdir') -> Any:
  """Makes the folder and writes config.json; in a folder that has one, checks that it is the same config.

  A config.json that is missing or damaged is written again from the copy in origin.json, or else from `cfg`.

  Args:
    workdir: the folder.
    cfg: the config.
    flag: the flag that names the folder, for error messages.

  Returns:
    `cfg`, with the fields that are 'auto' as they were settled in this folder, if they were.

  Raises:
    ValueError: the folder cannot be written, or holds results of another config; the message says how they differ.
  """
  path = os.path.join(workdir, 'config.json')
  try:
    os.makedirs(workdir, exist_ok=True)
    old = read(path)
    if not isinstance(old, dict):
      origin = read(os.path.join(workdir, 'origin.json'))
      copy = origin.get('config') if isinstance(origin, dict) else None
      if os.path.exists(os.path.join(workdir, 'children.jsonl')):
        warnings.warn(f'{path} is missing: taken from {"origin.json" if copy else "the flags"}.', stacklevel=2)
      old = copy or config.as_json(cfg)
      write(path, json.dumps(old, indent=2) + '\n')
  except OSError as error:
    raise _unusable(workdir, error, flag) from None
  cfg = config.settled(cfg, old)
  different = config.differences(old, cfg)
  if different:
    unknown = [name for name in config.without_removed(old, type(cfg)) if not hasattr(cfg, name)]
    if unknown:  # nearly all fields differ: to list them would help nobody
      what = f'results of another kind, with settings such as {", ".join(unknown[:3])}: name'
    else:
      what = f'results of another config: {", ".join(different)}. Give the same flags to resume, or name'
    raise ValueError(f'{flag} (={workdir!r}) holds {what} another --{flag}.')
  return cfg


def write_config(workdir: str, cfg: Any) -> None:
  """Writes config.json, and its copy in origin.json."""
  write(os.path.join(workdir, 'config.json'), json.dumps(config.as_json(cfg), indent=2) + '\n')
  path = os.path.join(workdir, 'origin.json')
  if origin := read(path):
    write(path, json.dumps(origin | {'config': config.as_json(cfg)}, indent=2) + '\n')


def note_origin(workdir: str, launcher: str, argv: Sequence[str], cfg: Any, **facts: Any) -> None:
  """Notes in origin.json what a report should say of where its numbers come from: the command, and `facts`."""
  command = shlex.join(['python', '-m', f'experiments.{launcher}', *argv[1:]])
  devices = f'{len(jax.local_devices())} {jax.default_backend()}'
  origin = {'command': command, **facts, 'devices': devices, 'jax': jax.__version__, 'config': config.as_json(cfg)}
  write(os.path.join(workdir, 'origin.json'), json.dumps(origin, indent=2) + '\n')


def write(path: str, text: str) -> None:
  """Writes a file whole or not at all."""
  with open(path + '.part', 'w', encoding='utf-8') as file:
    file.write(text)
    file.flush()
    os.fsync(file.fileno())
  os.replace(path + '.part', path)


def read(path: str) -> Any:
  """The JSON in `path`, or None if there is none; a file that is no JSON is moved aside, and said so by a warning."""
  if not os.path.exists(path):
    return None
  try:
    with open(path, encoding='utf-8') as file:
      return json.load(file)
  except ValueError:
    aside = os.path.join(os.path.dirname(path), 'damaged', os.path.basename(path))
    os.makedirs(os.path.dirname(aside), exist_ok=True)
    os.replace(path, aside)
    warnings.warn(f'{path} is damaged: moved to {aside}.', stacklevel=2)
    return None


def cached(path: str, measure: Callable[[], Any]) -> Any:
  """The JSON in `path`; on the first time, what `measure` returns, written there."""
  found = read(path)
  if found is None:
    write(path, json.dumps(measure(), indent=2) + '\n')
    found = read(path)
  return found


def cached_each(path: str, measures: Mapping[str, Callable[[], Any]]) -> dict[str, Any]:
  """The entries of the JSON in `path` that are asked for; those not there yet are measured and added."""
  found = read(path) or {}
  for name, measure in measures.items():
    if name not in found:
      found[name] = measure()
      write(path, json.dumps(found, indent=2) + '\n')
  return {name: found[name] for name in measures}
