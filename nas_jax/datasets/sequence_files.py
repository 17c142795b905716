"""Reads files of one sequence each: tables with a row for each step, and arrays of NumPy."""

import array
from collections.abc import Iterable, Sequence
import csv
import os
from typing import NamedTuple

import numpy as np

from nas_jax.datasets import npz, splits
from nas_jax.datasets.class_folders import Kind
from nas_jax.words import counted

SEPARATORS = {'.csv': ',', '.tsv': '\t'}  # between the columns of a table, by the ending of its file
KIND = Kind('sequence', ('.csv', '.npy', '.tsv'))
_MISSING = ('', 'na', 'n/a', 'null', 'none')  # what tables have for missing values: no names of columns
_TABLE = (
  'a row of numbers for each step, perhaps below a line with the names of the columns; fill missing values in, and '
  'leave columns of dates or words out'
)
_ARRAY = 'an .npy with numbers [T, F] or [T]'


class Table(NamedTuple):
  """One sequence of a file."""

  values: np.ndarray  # [T, F] float64, T > 0, all finite
  names: tuple[str, ...] = ()  # [F] of the columns, if the file has them


def read(paths: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
  """Returns sequences of files, [n, T, F] with 0 after the end of each, and the number of steps of each, [n] int32.

  Raises:
    ValueError: in one line: a file cannot be read (the error names it), the files differ in their number of features or
      in the names of their columns, or they would take too much memory.
  """
  found, longest, named = list[np.ndarray](), 0, ('', '')
  for path in paths:
    values, columns = table(path)
    (steps, features), names = values.shape, ', '.join(columns)
    found.append(values)
    if features != (first := found[0].shape[1]):
      raise ValueError(
        f'{paths[0]} has {counted(first, "feature")} and {path} {features}: want the same number in all files.'
      )
    named = named if named[1] else (path, names)
    if names and names != named[1]:
      raise ValueError(
        f'{named[0]} has the columns {named[1]} and {path} {names}: want the same names in one order, or no names.'
      )
    if steps > longest:
      longest = steps
      check_memory(len(paths), longest, features)
  sequences = np.zeros((len(found), longest, found[0].shape[1]))
  for sequence, values in zip(sequences, found, strict=True):
    sequence[: len(values)] = values
  return sequences, np.array(list(map(len, found)), np.int32)


def check_memory(count: int, steps: int, features: int) -> None:
  """Raises ValueError if sequences do not fit into memory when all have as many steps as the longest."""
  what = f'{counted(count, "sequence")} padded to {counted(steps, "step")} of {counted(features, "feature")}'
  splits.check_memory(what, 8 * count * steps * features, 'take fewer or shorter sequences, or fewer max_examples')


def table(path: str) -> Table:
  """Returns the sequence of a file.

  A .csv has a row for each step and a column for each feature, separated by commas, a .tsv by tabs. Its first line may
  have the names of the columns. An .npy has an array [T, F], or [T] if there is one feature.

  Raises:
    ValueError: in one line that names the file and, in a table, the line: it cannot be read, has a cell that is no
      finite number, lines of different lengths or no step, or would take too much memory.
  """
  _, ending = os.path.splitext(path.lower())
  if ending not in SEPARATORS:
    return _of_array(path)
  with npz.reading(path, _TABLE):
    needed = 8 * _count_cells(path, SEPARATORS[ending])
  splits.check_memory(f'the numbers of {path}', needed, 'take fewer steps')
  with npz.reading(path, _TABLE), open(path, encoding='utf-8-sig', newline='') as file:
    return _of_text(file, SEPARATORS[ending])


def _of_array(path: str) -> Table:
  values = npz.read_npy(path, _ARRAY, 'take fewer steps')
  with npz.reading(path, _ARRAY):
    if values.ndim not in (1, 2) or not values.size or values.dtype.kind not in 'biuf':
      raise ValueError(f'it has shape {values.shape} and type {values.dtype}')
    found = values.reshape(len(values), -1).astype(np.float64)
    if not np.isfinite(found).all():
      raise ValueError(f'step {np.argwhere(~np.isfinite(found))[0][0]} has a number that is not finite')
    return Table(found)


def _count_cells(path: str, separator: str) -> int:
  """Returns the number of cells of a table, up to a line more or less. The file is not kept in memory."""
  with open(path, 'rb') as file:
    return sum(part.count(separator.encode()) + part.count(b'\n') for part in iter(lambda: file.read(2**20), b''))


def _of_text(lines: Iterable[str], separator: str) -> Table:
  """Returns the table of lines of text. Raises ValueError, naming the line, unless all cells are finite numbers."""
  values, names, width, empty = array.array('d'), tuple[str, ...](), 0, 0
  rows = csv.reader(lines, delimiter=separator)
  for cells in rows:
    line = rows.line_num
    if not cells:
      empty = empty or line  # such lines are ignored at the end of a file only: elsewhere, a value may be missing
      continue
    if empty:
      raise ValueError(f'line {empty} is empty')
    width = width or len(cells)
    if len(cells) != width:
      raise ValueError(f'line {line} has {counted(len(cells), "column")} and the first line {width}')
    if line == 1 and not any(map(_is_number, cells)):
      names = tuple(cell.strip() for cell in cells)
      if unnamed := [k for k, name in enumerate(names, 1) if name.lower() in _MISSING]:
        raise ValueError(f'line 1, column {unnamed[0]}: {cells[unnamed[0] - 1]!r} is no name of a column')
      continue
    try:
      values.extend(map(float, cells))
    except ValueError:
      column = next(k for k, cell in enumerate(cells, 1) if not _is_number(cell))
      raise ValueError(f'line {line}, column {column}: {cells[column - 1][:40]!r} is no number') from None
  found = np.frombuffer(values, np.float64).reshape(-1, width or 1)
  if not found.size:
    raise ValueError('it has no steps')
  if not np.isfinite(found).all():
    step, column = np.argwhere(~np.isfinite(found))[0].tolist()
    line = step + 1 + bool(names)
    raise ValueError(f'line {line}, column {column + 1}: {found[step, column]} is not finite')
  return Table(found, names)


def _is_number(cell: str) -> bool:
  try:
    float(cell)
  except ValueError:
    return False
  return True
