"""Files of architectures that a user names: one architecture, as in best.json, or a list of them, as in top.json."""

from collections.abc import Callable, Mapping
import functools
import json
import os
from typing import Any

from nas_jax import config, space


def named_archs(name: str, known: Mapping[str, Any], kind: str = '') -> dict[str, Any]:
  """Returns the known architecture of a name, or the architectures in the file of that name, by name.

  Raises ValueError if it is neither.
  """
  if name in known:
    return {name: known[name]}
  if not os.path.exists(name):
    near = config.did_you_mean(name, known)
    raise ValueError(f'{name} is neither a file nor a known architecture{near}: known are {", ".join(known)}.')
  return read_archs(name, functools.partial(space.from_json, kind=kind))


def read_arch(path: str, kind: str = '') -> Any:
  """Returns the architecture in a file. Raises ValueError, naming the file, if it has none or one of another kind."""
  return read_file(path, functools.partial(space.from_json, kind=kind))


def read_archs(path: str, parse: Callable[[str], Any] = space.from_json) -> dict[str, Any]:
  """Returns the result of `parse` for each architecture in a file: one as in best.json, or a list as in top.json.

  Each is named by the path and, in a list, by its position, counted from 1. Raises ValueError as `read_file`.
  """
  return read_file(path, lambda text: {name: parse(one) for name, one in _entries_of(path, text)})


def _entries_of(path: str, text: str) -> list[tuple[str, str]]:
  """Returns the name and the JSON text of each architecture in a file."""
  try:
    found = json.loads(text)
  except ValueError:
    found = None  # the parser of architectures reports the error
  if not isinstance(found, list):
    return [(path, text)]
  if not found:
    raise ValueError('it is an empty list, and there is no architecture in it.')
  return [(f'{path} {place}', json.dumps(one)) for place, one in enumerate(found, 1)]


def read_file(path: str, parse: Callable[[str], Any]) -> Any:
  """Returns `parse(text)` for the text of a file.

  Raises ValueError, naming the file, if it cannot be read, is no UTF-8 text, or `parse` raises ValueError.
  """
  try:
    with open(path, encoding='utf-8') as file:
      return parse(file.read())
  except (OSError, UnicodeDecodeError) as error:
    raise ValueError(f'{path} cannot be read ({error}): name a file like a best.json.') from None
  except ValueError as error:
    raise ValueError(f'{path}: {error}') from None
