"""Labels of a user: the numbers and the names of classes, or numbers to predict."""

from collections.abc import Mapping

import numpy as np

from nas_jax.datasets import splits


def of_npz(
  path: str, labels: dict[str, np.ndarray], names: np.ndarray | None, numbers: bool
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
  """Returns the labels of an .npz by split, as class numbers from 0 on, and the names of the classes.

  Args:
    path: the path of the file, for errors.
    labels: [n] of each split.
    names: the array 'class_names' [K] of words for labels 0 to K - 1; None names each class by its label.
    numbers: whether labels are numbers to predict. They are returned as they are, and there are no classes.

  Raises:
    ValueError: in one line: names are not words, or are given with numbers to predict; or as `numbered`.
  """
  if names is None:
    return (labels, ()) if numbers else numbered(labels)
  if numbers:
    raise ValueError(f"{path} has 'class_names', and metric r2 takes labels that are numbers: leave them out.")
  if names.ndim != 1 or names.dtype.kind != 'U':
    raise ValueError(f"{path} has 'class_names' {names.shape} of type {names.dtype}: want words [K].")
  return labels, tuple(map(str, names))


def numbered(labels: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
  """Returns labels as class numbers from 0 on, and the sorted names of the classes.

  Args:
    labels: [n] ints, bools or words, of each split; 'train' has all classes.

  Raises:
    ValueError: in one line: labels are floats or of another type, or other splits have a class that 'train' lacks.
  """
  plain = {name: np.char.decode(some, 'utf-8') if some.dtype.kind == 'S' else some for name, some in labels.items()}
  for name, some in plain.items():
    splits.check_type(name, some)
    if (some.dtype.kind == 'U') != (plain['train'].dtype.kind == 'U'):
      raise ValueError(f'the {name} split has labels of type {some.dtype}, and train {plain["train"].dtype}: want one.')
  classes = np.unique(plain['train'])
  for name, some in plain.items():
    if len(extra := np.setdiff1d(some, classes)):
      raise ValueError(f'the {name} split has class {str(extra[0])!r}, and no training example is of it: add some.')
  return {name: np.searchsorted(classes, some) for name, some in plain.items()}, tuple(map(str, classes))
