"""Sequences of a user: a folder with a sub-folder for each class, an .npz of arrays, or windows of a time series."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from nas_jax.datasets import class_folders, npz, sequence_files, splits
from nas_jax.datasets import labels as labels_lib
from nas_jax.datasets.class_folders import FOLDER
from nas_jax.datasets.splits import Source
from nas_jax.words import counted

LAYOUT = (
  "arrays 'sequences' [n, T, F], 'labels' [n] and perhaps 'lengths' [n], perhaps 'valid_sequences', 'test_sequences' "
  "and so on of other splits, and 'class_names'; or one array 'series' [T, F] to forecast"
)
SMALLER = 'take a smaller window, or fewer max_examples'  # the way out if sequences are too large


class Split(NamedTuple):
  """Some sequences, and what is to be predicted of each."""

  sequences: np.ndarray  # [n, T, F] floats; 0 after the end of a sequence
  lengths: np.ndarray  # [n] int32, steps of each sequence, from 1 to T
  labels: np.ndarray  # [n] int32, the class of each; [n, k] float64 if they are numbers to predict


def read_file(dataset: str, path: str) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
  """Returns the arrays of a file by name, and the names of the columns of a table, () if it has none.

  A .csv, .tsv or .npy has one array, 'series'.

  Raises:
    ValueError: in one line: the file cannot be read, takes too much memory, or has another ending. Then `dataset`, its
      name as it was given, is no set either.
  """
  if path.endswith(npz.ENDING):
    return npz.read(path, LAYOUT, 'take fewer sequences'), ()
  if sequence_files.KIND.holds(path):
    found = sequence_files.table(path)
    return {'series': found.values}, found.names
  raise ValueError(
    f"dataset (={dataset!r}) must be 'digits', {FOLDER!r}, a FILE.npz with {LAYOUT}; or a FILE.csv, .tsv or .npy of a "
    'series.'
  )


def of_folder(folder: str) -> tuple[dict[str, Source[Split]], tuple[str, ...]]:
  """Returns the splits of a folder of files that hold one sequence each, and the names of its classes.

  The layout of the folder is that of `class_folders.sources`, and its files are those of `sequence_files.table`. All
  sequences of a split are as long as the longest that is read.

  Raises:
    ValueError: as `class_folders.sources`. Files that cannot be read raise an error only when they are read.
  """

  def read(paths: list[str], labels: np.ndarray) -> Split:
    return Split(*sequence_files.read(paths), labels)

  return class_folders.sources(folder, sequence_files.KIND, read)


def of_npz(path: str, arrays: dict[str, np.ndarray], numbers: bool) -> tuple[dict[str, Source[Split]], tuple[str, ...]]:
  """Returns the splits of sequences with labels, and the names of their classes.

  The arrays are `sequences`, [n, T, F], or [n, T] if there is one feature; `labels`, [n] ints or words, or numbers to
  predict, [n] or [n, k]; and optionally `lengths` [n], the number of steps of each sequence. Other splits are
  `valid_sequences`, `valid_labels`, `test_sequences` and so on. `class_names` [K] are names for labels from 0 to K - 1.

  Args:
    path: the path of the file, for errors.
    arrays: the arrays by name.
    numbers: whether labels are numbers to predict, so that there are no classes.

  Raises:
    ValueError: in one line that names the problem: an array is missing, has another name, or a wrong shape or type.
  """
  names = arrays.pop('class_names', None)
  found = npz.by_split(path, arrays, ('sequences', 'labels'), LAYOUT, ('lengths',))
  made = dict[str, Split]()
  for split, own in found.items():
    x, lengths = checked(f'the {split} split', own['sequences'], own.get('lengths'))
    made[split] = Split(x, lengths, labels_lib.plain(own['labels']))
    _check_labels(split, made[split], numbers)
  labels, classes = labels_lib.of_npz(path, {name: part.labels for name, part in made.items()}, names, numbers)
  return {name: source(part._replace(labels=labels[name])) for name, part in made.items()}, classes


def checked(where: str, sequences: np.ndarray, lengths: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
  """Returns sequences [n, T, F] of floats, 0 after their ends, and their lengths [n].

  Args:
    where: the source of the sequences, for errors.
    sequences: [n, T, F] or [n, T].
    lengths: [n] ints; None if all have T steps.

  Raises:
    ValueError: in one line: the shape or type is wrong, or a number before the end of a sequence is not finite.
  """
  x = sequences[..., None] if sequences.ndim == 2 else sequences
  if x.ndim != 3 or not x.size:
    raise ValueError(f'{where} has sequences {sequences.shape}: want [n, T, F] or [n, T], none of them 0.')
  if x.dtype.kind not in 'biuf':
    raise ValueError(f'{where} has sequences of type {x.dtype}: want numbers.')
  count, steps, _ = x.shape
  own = np.full(count, steps) if lengths is None else lengths
  if own.shape != (count,) or own.dtype.kind not in 'iu' or own.min() < 1 or own.max() > steps:
    said = f'from {own.min()} to {own.max()}' if own.size and own.dtype.kind in 'iuf' else f'of type {own.dtype}'
    raise ValueError(f'{where} has lengths {own.shape} {said}: want ints [{count}] from 1 to {steps}.')
  x = np.where((np.arange(steps) < own[:, None])[..., None], x, 0.0)
  if not np.isfinite(x).all():
    first = np.argwhere(~np.isfinite(x))[0]
    raise ValueError(f'{where} has numbers that are not finite, first in sequence {first[0]}, step {first[1]}.')
  return x, own.astype(np.int32)


def _check_labels(split: str, part: Split, numbers: bool) -> None:
  """Raises ValueError unless the labels of n sequences are [n] or, if they are numbers to predict, [n] or [n, k]."""
  labels, count = part.labels, len(part.lengths)
  if labels.ndim not in ((1, 2) if numbers else (1,)) or len(labels) != count or not labels.size:
    wanted = f'[{count}] or [{count}, k], numbers to predict' if numbers else f'[{count}], a class for each sequence'
    raise ValueError(f'the {split} split has labels {labels.shape} of {count} sequences: want {wanted}.')


def source(part: Split) -> Source[Split]:
  """Returns the source of a split that is in memory already."""
  return Source(len(part.lengths), lambda places: Split(*(array[places] for array in part)))


def of_series(
  path: str,
  arrays: Mapping[str, np.ndarray],
  numbers: bool,
  window: int,
  horizon: int,
  valid_share: float,
  test_share: float,
) -> dict[str, Source[Split]]:
  """Returns the windows of the array 'series'. Raises ValueError if there are other arrays, or as `windows`."""
  if others := sorted(set(arrays) - {'series'}):
    raise ValueError(f"{path} has an array {others[0]!r} beside 'series': want {LAYOUT}.")
  if not numbers:
    raise ValueError(f'{path} has a series, which is forecast by numbers: take --metric=r2.')
  if not window:
    raise ValueError(f'{path} has a series: say how many steps a forecast is made from, as --window=32.')
  return windows(checked_series(path, arrays['series']), window, horizon, valid_share, test_share)


def checked_series(where: str, series: np.ndarray) -> np.ndarray:
  """Returns a series [T, F] of floats. Raises ValueError unless `series` is [T, F] or [T] of finite numbers."""
  if series.ndim not in (1, 2) or not series.size:
    raise ValueError(f'{where} has a series {series.shape}: want [T, F] or [T], none of them 0.')
  return checked(f'{where}: the series', series.reshape(1, len(series), -1))[0][0]


def windows(
  series: np.ndarray, window: int, horizon: int, valid_share: float, test_share: float = 0.0
) -> dict[str, Source[Split]]:
  """Cuts a series into windows, each with the change from its last value to each of the values after it.

  The last steps are for testing and those before them for validation. The values that a split forecasts lie within its
  own steps; its first windows reach back into the split before.

  Args:
    series: [T, F] floats.
    window: steps of a window.
    horizon: steps to forecast after it.
    valid_share: share of the steps that are not for testing.
    test_share: share of all steps; 0 for no test split.

  Returns:
    The splits. Labels are [n, horizon * F]: all features of the first step, then of the second. To predict their
    means is persistence with drift; R2 is the share of that forecast's squared error that a network avoids.

  Raises:
    ValueError: a split has no window, or the windows do not fit into memory.
  """
  steps, features = series.shape
  first_test = steps - round(test_share * steps)
  first_valid = first_test - round(valid_share * first_test)
  bounds = {'train': (window, first_valid), 'validation': (max(window, first_valid), first_test)}
  bounds |= {'test': (max(window, first_test), steps)} if test_share else {}
  sources = dict[str, Source[Split]]()
  for name, (first, end) in bounds.items():
    count = end - horizon + 1 - first
    if count < 1:
      raise ValueError(
        f'a series of {counted(steps, "step")} has no {name} window of {counted(window, "step")} with {horizon} after '
        'them: take a smaller window or horizon, or another valid_share or test_share.'
      )
    splits.check_memory(f'{count} windows', 8 * count * (window + horizon) * features, SMALLER)

    def read(places: np.ndarray, first: int = first) -> Split:
      at = (first + places)[:, None]  # the step after each window
      past, ahead = series[at + np.arange(-window, 0)], series[at + np.arange(horizon)]
      changes = (ahead - past[:, -1:]).reshape(len(places), -1)
      return Split(past, np.full(len(places), window, np.int32), changes)

    sources[name] = Source(count, read)
  return sources
