"""Reads all arrays of a user's .npz file, and sorts them into splits by the prefixes of their names."""

from collections.abc import Mapping, Sequence
import zipfile
import zlib

import numpy as np

from nas_jax.datasets import splits

ENDING = '.npz'
SPLITS = {'train': 'train', 'valid': 'validation', 'val': 'validation', 'validation': 'validation', 'test': 'test'}


def read(path: str, layout: str, way_out: str) -> dict[str, np.ndarray]:
  """Returns the arrays of a file by name.

  Args:
    path: the path of the file.
    layout: the arrays that are wanted, in words, for errors.
    way_out: what to do if the arrays are too large, for an error.

  Raises:
    ValueError: in one line, naming the file: it cannot be read or takes too much memory.
  """
  try:
    with zipfile.ZipFile(path) as file:
      needed = sum(entry.file_size for entry in file.infolist())
  except (OSError, zipfile.BadZipFile) as error:
    raise _unreadable(path, error, layout) from None
  splits.check_memory(f'the arrays of {path}', needed, way_out)
  try:
    with np.load(path, allow_pickle=False) as arrays:
      return {name: arrays[name] for name in arrays.files}
  except (ValueError, OSError, zipfile.BadZipFile, EOFError, zlib.error) as error:
    raise _unreadable(path, error, layout) from None


def _unreadable(path: str, error: Exception, layout: str) -> ValueError:
  why = error.strerror if isinstance(error, OSError) and error.strerror else error
  return ValueError(f'{path} cannot be read ({why}): want an .npz with {layout}.')


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
