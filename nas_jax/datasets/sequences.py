"""Sequences of numbers with labels, and windows of a time series, as arrays. Nothing is downloaded."""

from collections.abc import Mapping
import hashlib
import os
from typing import NamedTuple

import numpy as np

from nas_jax.datasets import class_folders, images, npz, sequence_files, splits
from nas_jax.datasets import labels as labels_lib
from nas_jax.datasets.class_folders import FOLDER
from nas_jax.datasets.splits import Scale, Source
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
  labels: np.ndarray  # [n] int32, the class of each; [n, k] float32 if they are numbers to predict


class Sequences(NamedTuple):
  """A set of sequences in three splits."""

  train: Split
  valid: Split
  test: Split  # without sequences if the set has no such split: a search does not need one
  outputs: int  # classes, or numbers to predict of each sequence
  sha256: str  # of what was read, for results
  standard: Scale  # [F] of the features, over all steps of the training sequences
  names: tuple[str, ...] = ()  # of the classes; () if labels are numbers to predict
  scale: Scale | None = None  # [k] of the training labels if they are numbers to predict; None for classes
  horizon: int = 0  # steps that are forecast, if the sequences are windows of a series

  @property
  def shape(self) -> tuple[int, int]:
    """Steps and features of a sequence."""
    return self.train.sequences.shape[1:]


def load_sequences(
  dataset: str = 'digits',
  data_dir: str = '',
  valid_share: float = 0.1,
  max_examples: int = 0,
  seed: int = 0,
  test_share: float = 0.0,
  numbers: bool = False,
  window: int = 0,
  horizon: int = 1,
) -> Sequences:
  """Reads a set of sequences.

  Args:
    dataset: 'digits' are the images of scikit-learn row by row, 1,797 sequences of 8 steps with 8 features, a fifth of
      them for testing. 'folder' is the folder `data_dir` of files of one sequence each, see `of_folder`. A name that
      ends in .npz is a file of arrays, in `data_dir` if that is given: see `of_npz` and `windows`. A name that ends in
      .csv, .tsv or .npy is a file of one series: see `sequence_files.table` and `windows`.
    data_dir: the folder of the files; not used by 'digits'.
    valid_share: share of the training sequences to validate with, if the set has no validation split of its own. In a
      series, the validation split is the last part of the steps that are not for testing.
    max_examples: how many training sequences to take, those to validate with included, and at most as many of the other
      splits of the set; 0 takes all.
    seed: the seed of the random choice of the sequences to take and to validate with.
    test_share: share of the training sequences that become the test split if the set has none; 0 for no test split.
      These sequences do not depend on the seed. In a series, the test split is the last part.
    numbers: whether labels are numbers to predict instead of classes; only for a file.
    window: steps that a forecast is made from; 0 if the file holds no series.
    horizon: steps that are forecast; 1 if the file holds no series.

  Raises:
    ValueError: in one line, as `of_folder`, `of_npz`, `windows` and `split_sequences`, or there is no such
      set; `numbers` are wanted of a set with classes; or `window` is missing for a series, or is given for sequences
      with labels.
  """
  names, ahead = tuple[str, ...](), 0
  if numbers and dataset in ('digits', FOLDER):
    raise ValueError(f'metric r2 predicts numbers, and dataset {dataset!r} has classes: take a FILE.npz of numbers.')
  if dataset == 'digits':
    sources, names = _digits(), tuple(map(str, range(10)))
  elif dataset == FOLDER:
    sources, names = of_folder(data_dir)
  else:
    path = os.path.join(data_dir, os.path.expanduser(dataset))
    arrays = _arrays(dataset, path)
    if 'series' in arrays:
      ahead = horizon
      sources = _of_series(path, arrays, numbers, window, horizon, valid_share, test_share)
    else:
      sources, names = of_npz(path, arrays, numbers)
  if not ahead and (window or horizon != 1):
    raise ValueError(
      f'window (={window}) and horizon (={horizon}) are for a series to forecast, and {dataset} holds none: leave them '
      'out.'
    )
  parts = splits.read(sources, max_examples, test_share, seed)
  return split_sequences(parts, names, valid_share, max_examples, seed, ahead)


def _arrays(dataset: str, path: str) -> dict[str, np.ndarray]:
  """Returns the arrays of an .npz by name; of a .csv, .tsv or .npy its sequence, as array 'series'."""
  if path.endswith(npz.ENDING):
    return npz.read(path, LAYOUT, 'take fewer sequences')
  if sequence_files.KIND.holds(path):
    return {'series': sequence_files.table(path).values}
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
    target = own['labels'][:, 0] if own['labels'].shape[1:] == (1,) and not numbers else own['labels']
    made[split] = Split(*checked(f'the {split} split', own['sequences'], own.get('lengths')), target)
    _check_labels(split, made[split], numbers)
  labels, classes = labels_lib.of_npz(path, {name: part.labels for name, part in made.items()}, names, numbers)
  return {name: _source(part._replace(labels=labels[name])) for name, part in made.items()}, classes


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


def _source(part: Split) -> Source[Split]:
  return Source(len(part.lengths), lambda places: Split(*(array[places] for array in part)))


def _digits() -> dict[str, Source[Split]]:
  """Returns the digits of scikit-learn, whose rows are the steps of a sequence."""
  found = images.digits()

  def rows(part: splits.Split) -> Split:
    return Split(*checked('digits', part.images[..., 0] / 15), part.labels)  # 0 to 16, as in the set

  return {name: _source(rows(part)) for name, part in found.items()}


def _of_series(
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


def split_sequences(
  parts: Mapping[str, Split],
  names: tuple[str, ...],
  valid_share: float = 0.1,
  max_examples: int = 0,
  seed: int = 0,
  horizon: int = 0,
) -> Sequences:
  """Makes `Sequences` from a split 'train' and, optionally, 'validation' and 'test'.

  Args:
    parts: the splits, as `checked` makes sequences and lengths. They may differ in T; all get the steps of the longest.
      Without 'validation' it is drawn from 'train'.
    names: the names of the classes that the labels number; () if labels are numbers to predict, [n] or [n, k].
    valid_share: as in `load_sequences`.
    max_examples: as in `load_sequences`.
    seed: as in `load_sequences`.
    horizon: as in `Sequences`.

  Raises:
    ValueError: in one line: splits differ in their features or number of labels; labels have fewer than two classes;
      or numbers to predict are not finite or all the same.
  """
  parts = _of_one_length(parts)
  train, numbers = parts['train'], not names
  digest = hashlib.sha256()
  for name, part in parts.items():
    shapes = [one.sequences.shape[1:] + one.labels.shape[1:] for one in (train, part)]
    if shapes[0] != shapes[1]:
      raise ValueError(f'sequences and labels are {shapes[0]} in train and {shapes[1]} in {name}: want one shape.')
    _check_values(name, part.labels, names)
    for array in part:
      digest.update(np.ascontiguousarray(array).tobytes())
  valid = parts.get('validation')
  held, left = splits.held_out(len(train.labels), None if valid else valid_share, max_examples, seed)

  def taken(part: Split, at: np.ndarray | slice) -> Split:
    labels = part.labels[:, None] if numbers and part.labels.ndim == 1 else part.labels
    return Split(part.sequences[at], part.lengths[at], labels[at].astype(np.float32 if numbers else np.int32))

  some = slice(max_examples or None)
  rest, chosen = taken(train, left), taken(valid, some) if valid else taken(train, held)
  kept = taken(parts['test'], some) if 'test' in parts else taken(train, slice(0))
  _check_values('train', rest.labels, names)
  _check_values('validation', chosen.labels, names)
  inside = np.arange(rest.sequences.shape[1]) < rest.lengths[:, None]
  outputs = rest.labels.shape[1] if numbers else len(names)
  standard, scale = _scale(rest.sequences[inside]), _scale(rest.labels) if numbers else None
  return Sequences(rest, chosen, kept, outputs, digest.hexdigest(), standard, names, scale, horizon)


def _of_one_length(parts: Mapping[str, Split]) -> dict[str, Split]:
  """Returns splits whose sequences have as many steps as the longest of any split."""
  steps = max(part.sequences.shape[1] for part in parts.values())

  def padded(part: Split) -> Split:
    count, own, features = part.sequences.shape
    if own == steps:
      return part
    sequence_files.check_memory(count, steps, features)
    return part._replace(sequences=np.pad(part.sequences, ((0, 0), (0, steps - own), (0, 0))))

  return {name: padded(part) for name, part in parts.items()}


def _check_values(name: str, labels: np.ndarray, names: tuple[str, ...]) -> None:
  """Raises ValueError unless labels have two of the classes or more or, without names, pass `splits.check_numbers`."""
  if not names:
    splits.check_numbers(name, labels)
    return
  splits.check_type(name, labels)
  if labels.dtype.kind == 'U':
    raise ValueError(f"the {name} split has labels that are words beside 'class_names': leave these out.")
  if labels.min() < 0 or labels.max() >= len(names):
    raise ValueError(f'the {name} split has labels from {labels.min()} to {labels.max()}: want 0 to {len(names) - 1}.')
  if len(np.unique(labels)) < 2:
    raise ValueError(f'the {name} split has 1 of {len(names)} classes: want at least two to tell apart.')


def _scale(values: np.ndarray) -> Scale:
  """Returns the mean and the standard deviation of columns [n, k]; a column that does not vary is divided by 1."""
  deviation = values.std(0, dtype=np.float64)
  return Scale(values.mean(0, dtype=np.float64), np.where(deviation > 0.0, deviation, 1.0))
