"""Files of results: written whole or not at all, checked when they are read, moved aside when they are damaged."""

from collections.abc import Callable, Mapping
import contextlib
import json
import math
import os
import shutil
from typing import Any, NamedTuple

Schema = Any  # see `mismatch`


class Unusable(ValueError):
  """This command cannot go on, and no bug is the cause: its folder holds other results, or a device lacks memory."""


def write(path: str, content: str | bytes) -> None:
  """Writes a file whole or not at all.

  A link at `path`, or at the temporary file beside it, is not followed; a folder at `path` is moved to `damaged`.
  """
  if os.path.isdir(path) and not os.path.islink(path):
    set_aside(path, os.path.join(os.path.dirname(path), 'damaged'))
  part = path + '.part'
  remove(part)
  with open(part, 'xb') as file:
    file.write(content.encode() if isinstance(content, str) else content)
    file.flush()
    os.fsync(file.fileno())
  os.replace(part, path)


def remove(path: str) -> None:
  """Removes a file, a link or a folder, if there is one."""
  if os.path.isdir(path) and not os.path.islink(path):
    shutil.rmtree(path)
  else:
    with contextlib.suppress(FileNotFoundError):
      os.unlink(path)


def set_aside(path: str, folder: str) -> str:
  """Moves a file or folder into `folder` under a name that is free there, and returns where it then is."""
  os.makedirs(folder, exist_ok=True)
  name = os.path.basename(path)
  free = (os.path.join(folder, name if not k else f'{name}-{k}') for k in range(10**9))
  aside = next(path for path in free if not os.path.lexists(path))
  os.replace(path, aside)
  return aside


def as_json(value: Any, indent: int | None = None) -> str:
  """Returns a value as JSON text. JSON has neither NaN nor infinity: a number that is not finite becomes null."""

  def finite(leaf: Any) -> Any:
    return None if isinstance(leaf, float) and not math.isfinite(leaf) else leaf

  return json.dumps(each_leaf(value, finite), indent=indent, allow_nan=False)


def each_leaf(value: Any, change: Callable[[Any], Any]) -> Any:
  """Returns a JSON value with `change` applied to everything that is no object and no list."""
  if isinstance(value, Mapping):
    return {key: each_leaf(entry, change) for key, entry in value.items()}
  return [each_leaf(entry, change) for entry in value] if isinstance(value, list | tuple) else change(value)


def parse(text: str | bytes) -> Any:
  """Returns the JSON value in a text. Raises ValueError if it is not JSON, or nested too deeply to be read."""
  try:
    return json.loads(text)
  except RecursionError:
    raise ValueError('it is nested too deeply') from None


def read(path: str, schema: Schema = object) -> Any:
  """Returns the JSON value in a file, or None if there is no file.

  Raises:
    ValueError: it is not JSON, or not of the schema.
    OSError: it cannot be read.
  """
  try:
    with open(path, 'rb') as file:
      found = parse(file.read())
  except FileNotFoundError:
    return None
  if why := mismatch(found, schema):
    raise ValueError(why)
  return found


def is_number(value: Any) -> bool:
  """Says whether a JSON value is a number that fits in a double."""
  return type(value) is float or (type(value) is int and abs(value) < 2**63)


def is_count(value: Any) -> bool:
  """Says whether a JSON value is an int of at least 0 that fits in 32 bits."""
  return type(value) is int and 0 <= value < 2**31


class Each(NamedTuple):
  """The schema of an object with any keys, all of whose values are of one schema."""

  schema: Schema


def mismatch(value: Any, schema: Schema, where: str = 'it') -> str:
  """Says in words how a JSON value differs from a schema; '' if it does not.

  A schema is one of these:

  * a type, or None: the value is of it. `object` takes everything. True and False are no numbers.
  * a mapping: the value is an object that has these keys, and perhaps others, with values of these schemas. A key that
    ends in '?' may be missing.
  * `Each(schema)`: the value is an object, and all of its values are of the schema.
  * a list of one schema: the value is a list of such values.
  * a tuple of schemas: the value is of one of them.
  * a function: it returns True for the value.
  """
  if isinstance(schema, Mapping):
    if not isinstance(value, dict):
      return f'{where} is no object'
    for key, inner in schema.items():
      name = key.removesuffix('?')
      if name in value:
        if why := mismatch(value[name], inner, name):
          return why
      elif not key.endswith('?'):
        return f'{where} has no {name!r}'
    return ''
  if isinstance(schema, Each):
    if not isinstance(value, dict):
      return f'{where} is no object'
    return next((why for key, entry in value.items() if (why := mismatch(entry, schema.schema, repr(key)))), '')
  if isinstance(schema, list):
    if not isinstance(value, list):
      return f'{where} is no list'
    return next((why for entry in value if (why := mismatch(entry, schema[0], f'an entry of {where}'))), '')
  if isinstance(schema, tuple):
    return '' if any(not mismatch(value, one) for one in schema) else f'{where} is {_short(value)}'
  if schema is None:
    fits = value is None
  elif isinstance(schema, type):
    fits = isinstance(value, schema) and (schema in (bool, object) or not isinstance(value, bool))
  else:
    fits = schema(value)
  return '' if fits else f'{where} is {_short(value)}'


def _short(value: Any) -> str:
  text = repr(value)
  return text if len(text) <= 40 else f'{text[:40]}...'
