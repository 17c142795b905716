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
    labels: of each split, as `plain` returns them.
    names: the array 'class_names' [K] of words for labels 0 to K - 1; None names each class by its label.
    numbers: whether labels are numbers to predict. They are returned as they are, and there are no classes.

  Raises:
    ValueError: in one line: names are not different words, or are given with numbers to predict; or as `numbered`.
  """
  if names is None:
    return (labels, ()) if numbers else numbered(labels)
  if numbers:
    raise ValueError(f"{path} has 'class_names', and metric r2 takes labels that are numbers: leave them out.")
  return labels, _class_names(path, names)


def plain(labels: np.ndarray) -> np.ndarray:
  """Returns labels of an .npz as they are read everywhere: [n, 1] becomes [n], and bytes become words, as UTF-8."""
  flat = labels[:, 0] if labels.shape[1:] == (1,) else labels
  return np.char.decode(flat, 'utf-8') if flat.dtype.kind == 'S' else flat


def known(path: str, arrays: Mapping[str, np.ndarray], shape: tuple[int, ...]) -> np.ndarray | None:
  """Returns the array 'labels' of an .npz for a trained network, as `plain` reads it; None if there is none.

  If the file also has the array 'class_names' [K], the labels are its words for the numbers 0 to K - 1.

  Args:
    path: the path of the file, for errors.
    arrays: the arrays of the file by name.
    shape: the shape that the labels must have, [n] or [n, k].

  Raises:
    ValueError: in one line: the labels have another shape; or there are names that are not words, without labels, or
      for labels that are not 0 to K - 1.
  """
  if 'labels' not in arrays:
    if 'class_names' in arrays:
      raise ValueError(f"{path} has 'class_names' and no 'labels': give both, or leave the names out.")
    return None
  labels = plain(arrays['labels'])
  if labels.shape != shape:
    raise ValueError(f'{path} has labels {labels.shape}: want {shape}.')
  if 'class_names' not in arrays:
    return labels
  names = np.array(_class_names(path, arrays['class_names']))
  if labels.dtype.kind not in 'biu':
    raise ValueError(f"{path} has 'class_names' and labels of type {labels.dtype}: want integers.")
  if labels.min() < 0 or labels.max() >= len(names):
    raise ValueError(
      f"{path} has 'class_names' {names.shape}, and labels other than 0 to {len(names) - 1}: want these."
    )
  return names[labels.astype(int)]


def _class_names(path: str, names: np.ndarray) -> tuple[str, ...]:
  """Returns the array 'class_names' of a file. Raises ValueError unless it has different words [K]."""
  if names.ndim != 1 or names.dtype.kind != 'U':
    raise ValueError(f"{path} has 'class_names' {names.shape} of type {names.dtype}: want words [K].")
  found = tuple(map(str, names))
  if twice := [name for k, name in enumerate(found) if name in found[:k]]:
    raise ValueError(f"{path} has {twice[0]!r} twice in 'class_names': want a name of its own for each label.")
  return found


def numbered(labels: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
  """Returns labels as class numbers from 0 on, and the sorted names of the classes.

  Args:
    labels: [n] ints, bools or words, of each split; 'train' has all classes.

  Raises:
    ValueError: in one line: labels are floats or of another type, or other splits have a class that 'train' lacks.
  """
  for name, some in labels.items():
    splits.check_type(name, some)
    if (some.dtype.kind == 'U') != (labels['train'].dtype.kind == 'U'):
      train = labels['train'].dtype
      raise ValueError(f'the {name} split has labels of type {some.dtype}, and train {train}: want one.')
  classes = np.unique(labels['train'])
  for name, some in labels.items():
    if len(extra := np.setdiff1d(some, classes)):
      raise ValueError(f'the {name} split has class {str(extra[0])!r}, and no training example is of it: add some.')
  return {name: np.searchsorted(classes, some) for name, some in labels.items()}, tuple(map(str, classes))
