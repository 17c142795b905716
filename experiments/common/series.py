"""Reads a user's sequences of numbers for a trained network."""

import os
from typing import NamedTuple

import numpy as np

from nas_jax import export
from nas_jax.datasets import class_folders, npz, own_sequences, sequence_files
from nas_jax.datasets import labels as labels_lib

LAYOUT = (
  "arrays 'sequences' [n, T, F] and perhaps 'lengths' [n], 'labels' [n] and 'class_names' [K]; or a FILE.csv, .tsv or "
  '.npy of one sequence, or a folder of such files'
)
SERIES = "one array 'series' [T, F] to forecast; or a FILE.csv, .tsv or .npy of it"


class Given(NamedTuple):
  """The sequences that a network is applied to."""

  names: tuple[str, ...]  # [n]
  sequences: np.ndarray  # [n, T, F]; for a forecast the series [T, F]
  lengths: np.ndarray  # [n]; for a forecast []
  labels: np.ndarray | None  # [n] or [n, k], if they are known


def read(path: str, model: export.SequenceModel) -> Given:
  """Reads the sequences of a folder or a file, or the series of a file if the model forecasts.

  A folder holds a file for each sequence, or a sub-folder of files for each class; the names of the sub-folders are
  then the labels. A .csv, .tsv or .npy holds one sequence, and an .npz 'sequences' and optionally 'lengths',
  'labels' and 'class_names', or 'series'.

  Raises:
    ValueError: a file cannot be read, has other arrays, or does not fit the model. The message is one line.
  """
  if isinstance(model, export.Forecaster):
    found, columns = _series(path), model.inputs.columns
    if found.names and columns and found.names != columns:
      raise ValueError(
        f'{path} has the columns {", ".join(found.names)}: want {", ".join(columns)}, as in training, or no names.'
      )
    model(found.values)  # raises ValueError
    return Given((), found.values, np.array(len(found.values)), None)
  numbers = 1 if model.inputs.scale is None else np.size(model.inputs.scale.mean)
  names, made, lengths, labels = _sequences(path, numbers)
  features = model.inputs.example.shape[-1]
  if made.shape[-1] != features:
    raise ValueError(f'{path} has sequences {made.shape}: want [n, T, {features}], as in training.')
  return Given(names, made, lengths, labels)


def _series(path: str) -> sequence_files.Table:
  """Returns the series of a file."""
  if sequence_files.KIND.holds(path):
    return sequence_files.table(path)
  if os.path.isdir(path):
    raise ValueError(f'{path} is a folder, and the model forecasts one series: give its FILE.csv, .tsv, .npy or .npz.')
  arrays = npz.read(path, SERIES, 'take fewer steps')
  if list(arrays) != ['series']:
    raise ValueError(f'{path} has arrays {", ".join(arrays)}: want {SERIES}.')
  return sequence_files.Table(own_sequences.checked_series(path, arrays['series']))


def _sequences(path: str, numbers: int) -> Given:
  """Returns the sequences of a folder or a file. Each has `numbers` labels: 1, or k numbers that a network predicts."""
  if os.path.isdir(path):
    files, labels = class_folders.labelled(path, sequence_files.KIND)
    return Given(class_folders.names(files, labels), *sequence_files.read(files), labels)
  if sequence_files.KIND.holds(path):
    return Given((os.path.basename(path),), *sequence_files.read([path]), None)
  arrays = npz.read(path, LAYOUT, 'take fewer sequences')
  if 'sequences' not in arrays or not arrays.keys() <= {'sequences', 'lengths', 'labels', 'class_names'}:
    raise ValueError(f'{path} has arrays {", ".join(arrays)}: want {LAYOUT}.')
  made, lengths = own_sequences.checked(path, arrays['sequences'], arrays.get('lengths'))
  labels = labels_lib.known(path, arrays, (len(made),) if numbers == 1 else (len(made), numbers))
  return Given(tuple(map(str, range(len(made)))), made, lengths, labels)
