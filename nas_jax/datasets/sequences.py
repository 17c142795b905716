"""Sequences of numbers with labels, and windows of a time series, as arrays. Nothing is downloaded."""

from collections.abc import Mapping
import hashlib
import os
from typing import NamedTuple

import numpy as np

from nas_jax.datasets import images, own_sequences, sequence_files, splits
from nas_jax.datasets.class_folders import FOLDER
from nas_jax.datasets.own_sequences import Split
from nas_jax.datasets.splits import Scale, Source


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
  columns: tuple[str, ...] = ()  # [F] names of the features, if the table of a series has them
  numbered: bool = False  # whether the set numbers its classes and names them elsewhere; else a label is its name

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
      them for testing. 'folder' is the folder `data_dir` of files of one sequence each: see `own_sequences.of_folder`.
      A name that ends in .npz is a file of arrays, in `data_dir` if that is given: see `own_sequences.of_npz` and
      `windows`. A name that ends in .csv, .tsv or .npy is such a file of one series: see `sequence_files.table`.
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
    ValueError: in one line, as the functions of `own_sequences` and `split_sequences`, or there is no such set;
      `numbers` are wanted of a set with classes; or `window` is missing for a series, or is given for sequences with
      labels.
  """
  names, columns, ahead, numbered = tuple[str, ...](), tuple[str, ...](), 0, False
  if numbers and dataset in ('digits', FOLDER):
    raise ValueError(f'metric r2 predicts numbers, and dataset {dataset!r} has classes: take a FILE.npz of numbers.')
  if dataset == 'digits':
    sources, names = _digits(), tuple(map(str, range(10)))
  elif dataset == FOLDER:
    sources, names = own_sequences.of_folder(data_dir)
  else:
    path = os.path.join(data_dir, os.path.expanduser(dataset))
    arrays, columns = own_sequences.read_file(dataset, path)
    if 'series' in arrays:
      ahead = horizon
      sources = own_sequences.of_series(path, arrays, numbers, window, horizon, valid_share, test_share)
    else:
      numbered = 'class_names' in arrays
      sources, names = own_sequences.of_npz(path, arrays, numbers)
  if not ahead and (window or horizon != 1):
    raise ValueError(
      f'window (={window}) and horizon (={horizon}) are for a series to forecast, and {dataset} holds none: leave them '
      'out.'
    )
  parts = splits.read(sources, max_examples, test_share, seed)
  found = split_sequences(parts, names, valid_share, max_examples, seed, ahead)
  return found._replace(columns=columns, numbered=numbered)


def _digits() -> dict[str, Source[Split]]:
  """Returns the digits of scikit-learn, whose rows are the steps of a sequence."""
  found = images.digits()

  def rows(part: splits.Split) -> Split:
    return Split(*own_sequences.checked('digits', part.images[..., 0] / 15), part.labels)  # 0 to 16, as in the set

  return {name: own_sequences.source(rows(part)) for name, part in found.items()}


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
    parts: the splits, as `own_sequences.checked` makes sequences and lengths. They may differ in T, and all get
      the steps of the longest. Without 'validation' it is drawn from 'train'.
    names: the names of the classes that the labels number; () if labels are numbers to predict, [n] or [n, k].
    valid_share: as in `load_sequences`.
    max_examples: as in `load_sequences`.
    seed: as in `load_sequences`.
    horizon: as in `Sequences`.

  Raises:
    ValueError: in one line: splits differ in their features or number of labels; labels have fewer than two classes;
      numbers to predict are not finite or all the same; or the variance of a feature cannot be computed in float64.
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
    return Split(part.sequences[at], part.lengths[at], labels[at].astype(np.float64 if numbers else np.int32))

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
  """Returns the mean and the standard deviation of columns [n, k]; a column that does not vary is divided by 1.

  Raises ValueError if float64 is too narrow for the variance of a column.
  """
  with np.errstate(over='ignore', invalid='ignore'):
    mean, deviation = values.mean(0, dtype=np.float64), values.std(0, dtype=np.float64)
    varies = np.ptp(values, 0) > 0.0  # rounding may make the deviation of a constant column greater than 0
  if not np.isfinite(deviation).all() or (varies & (deviation == 0.0)).any():
    raise ValueError(
      f'the training sequences have numbers up to {np.abs(values).max():.3g}, too large or too small to compute their '
      'variance: scale each feature to numbers near 1.'
    )
  return Scale(mean, np.where(varies, deviation, 1.0))
