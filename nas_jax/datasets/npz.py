"""Reads arrays of .npz and .npy files that a user gives, and sorts them into splits by the prefixes of their names."""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import math
import os
from typing import IO
import zipfile

import numpy as np

from nas_jax.datasets import splits

ENDING = '.npz'
SPLITS = {'train': 'train', 'valid': 'validation', 'val': 'validation', 'validation': 'validation', 'test': 'test'}
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}  # by version


def read(
  path: str, layout: str, way_out: str, names: Sequence[str] | None = None, most: int | None = None
) -> dict[str, np.ndarray]:
  """Returns the arrays of a file by name. Nothing in the file is trusted: not the sizes in its headers, nor pickles.

  Args:
    path: the path of the file.
    layout: the arrays that are wanted, in words, for errors.
    way_out: what to do if the arrays are too large, for an error.
    names: the arrays to read, of which some may be missing; None for all.
    most: the most bytes that the arrays may unpack to; None for as many as fit into memory.

  Raises:
    ValueError: in one line, naming the file: it cannot be read or takes too much memory.
  """
  wanted = f'an .npz with {layout}'
  with reading(path, wanted):
    file = zipfile.ZipFile(path)
  with file:
    every = {entry.filename.removesuffix('.npy'): entry for entry in file.infolist()}
    entries = {name: entry for name, entry in every.items() if names is None or name in names}
    needed = sum(entry.file_size for entry in entries.values())
    if most is not None and needed > most:
      raise ValueError(f'{path} unpacks to {needed} bytes: want at most {most}; {way_out}.')
    splits.check_memory(f'the arrays of {path}', needed, way_out)
    with reading(path, wanted):
      return {name: _in_zip(file, entry) for name, entry in entries.items()}


def read_npy(path: str, wanted: str, way_out: str) -> np.ndarray:
  """Returns the array of an .npy file, which is trusted no more than an .npz. Arguments and errors are as in `read`."""
  with reading(path, wanted):
    size = os.path.getsize(path)
  splits.check_memory(path, size, way_out)
  with reading(path, wanted):
    return _array('it', size, lambda: open(path, 'rb'))


@contextlib.contextmanager
def reading(path: str, wanted: str) -> Iterator[None]:
  """Turns any error into a ValueError of one line that names the file and says what is wanted."""
  try:
    yield
  except Exception as error:  # zipfile, its decompressors and NumPy report damaged files by errors of many types
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    why = next(iter(text.splitlines()), '') or type(error).__name__
    raise ValueError(f'{path} cannot be read ({why}): want {wanted}.') from None


def _in_zip(file: zipfile.ZipFile, entry: zipfile.ZipInfo) -> np.ndarray:
  return _array(entry.filename, entry.file_size, lambda: file.open(entry.filename))


def _array(name: str, size: int, opened: Callable[[], IO[bytes]]) -> np.ndarray:
  """Returns the array of `size` bytes. Raises ValueError if its header asks for more memory than it has bytes."""
  with opened() as content:
    version = np.lib.format.read_magic(content)
    if version not in _HEADERS:
      raise ValueError(f'{name} has format {version}, want 1.0 or 2.0')
    shape, _, dtype = _HEADERS[version](content)
  if math.prod(shape) * max(dtype.itemsize, 1) > size and not dtype.hasobject:  # objects are never read
    raise ValueError(f'{name} has a header of shape {shape} and only {size} bytes')
  with opened() as content:
    return np.lib.format.read_array(content, allow_pickle=False)


def by_split(
  path: str, arrays: Mapping[str, np.ndarray], kinds: Sequence[str], layout: str, optional: Sequence[str] = ()
) -> dict[str, dict[str, np.ndarray]]:
  """Returns arrays by split, 'train', 'validation' or 'test', and by kind.

  Names are like 'test_images'; 'train_images' may also be called 'images'.

  Args:
    path: the path of the file, for errors.
    arrays: the arrays by name.
    kinds: what each split has, such as 'images' and 'labels'.
    layout: as in `read`.
    optional: kinds that a split may also have.

  Raises:
    ValueError: in one line: a name is none of these, or a kind is missing.
  """
  found = dict[str, dict[str, np.ndarray]]()
  for name, array in arrays.items():
    before, _, kind = name.rpartition('_')
    split = SPLITS.get(before or 'train')
    if split is None or kind not in (*kinds, *optional) or kind in found.get(split, {}):
      raise ValueError(f'{path} has an array {name!r}: want {layout}.')
    found.setdefault(split, {})[kind] = array
  for split in {**found, 'train': {}}:
    if missing := [kind for kind in kinds if kind not in found.get(split, {})]:
      raise ValueError(f'{path} has no {missing[0]} of the {split} split: want {layout}.')
  return found
