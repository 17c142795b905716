"""Images of a user: a folder with a sub-folder for each class, or an .npz of arrays."""

from collections.abc import Mapping
import os
from typing import Any
import zipfile
import zlib

import numpy as np

from nas_jax.datasets import image_files, splits
from nas_jax.datasets.splits import Size, Source, Split

FOLDER, ENDING = 'folder', '.npz'  # the name of the data set in a folder, and the ending of a data set in a file
_SPLITS = {'train': 'train', 'valid': 'validation', 'val': 'validation', 'validation': 'validation', 'test': 'test'}
LAYOUT = (
  "arrays 'images' [n, H, W, C] uint8 and 'labels' [n], perhaps 'valid_images', 'valid_labels', 'test_images' and "
  "'test_labels', and 'class_names'"
)


def of_folder(folder: str, resize: Size = 0) -> tuple[dict[str, Source], tuple[str, ...]]:
  """Returns the splits of a folder of images, and the names of its classes.

  The folder has a sub-folder for each class, with the name of the class. It holds the images of the class, directly or
  in further sub-folders. Or the folder has a folder 'train', and optionally 'valid' (or 'val', 'validation') and
  'test', each of which has a sub-folder for each class.

  Args:
    folder: its path.
    resize: the size to bring images to.

  Raises:
    ValueError: in one line that names the problem: there is no such folder, class or image, or another split has a
      class that the training images lack. A file that is no image raises an error only when it is read.
  """
  if not os.path.isdir(folder):
    raise ValueError(f'dataset {FOLDER!r} is read from a folder, and data_dir (={folder!r}) is none: name it.')
  inside = folders(folder)
  named = {name: os.path.join(folder, name) for name in inside if name in _SPLITS}
  if 'train' not in named:
    if named:
      raise ValueError(
        f'{folder} has a folder {next(iter(named))} and no folder train: want both, with classes in them.'
      )
    named = {'train': folder}
  elif others := [name for name in inside if name not in _SPLITS]:
    raise ValueError(f'{folder} has a folder {others[0]} beside its splits: want train, valid and test alone.')
  paths, labels = dict[str, list[str]](), dict[str, np.ndarray]()
  for name, path in named.items():
    split = _SPLITS[name]
    if split in paths:
      raise ValueError(f'{folder} has several folders for the validation split: want one.')
    paths[split], labels[split] = by_class(path)
  numbers, names = numbered(labels)

  def source(split: str) -> Source:
    def read(places: np.ndarray) -> Split:
      return Split(image_files.read([paths[split][place] for place in places], resize), numbers[split][places])

    return Source(len(paths[split]), read)

  return {split: source(split) for split in paths}, names


def by_class(folder: str) -> tuple[list[str], np.ndarray]:
  """Returns the paths of n images in the sub-folders of a folder, and for each the name of its sub-folder, [n].

  Raises:
    ValueError: there is no sub-folder, a sub-folder holds no image, or an image is in no sub-folder.
  """
  if loose := image_files.inside(folder):
    raise ValueError(f'{loose[0]} is in no folder of a class: move it into one.')
  if not folders(folder):
    raise ValueError(f'{folder} has no sub-folders: want one for each class, with its images.')
  files = {name: image_files.below(os.path.join(folder, name)) for name in folders(folder)}
  return [path for some in files.values() for path in some], np.repeat(list(files), list(map(len, files.values())))


def folders(folder: str) -> list[str]:
  """Returns the names of the folders in a folder, in order; hidden folders are left out."""
  return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith('.'))


def of_npz(path: str, resize: Size = 0, numbers: bool = False) -> tuple[dict[str, Source], tuple[str, ...]]:
  """Returns the splits of an .npz of images, and the names of its classes.

  Its arrays are `images`, uint8 [n, H, W, C] or, if they are grey, [n, H, W]; and `labels` [n], ints or words. Other
  splits are in `valid_images`, `valid_labels`, `test_images` and `test_labels`. `class_names` [K] names the labels 0 to
  K - 1; without it the name of a class is its label. Names of arrays may also begin with `train_` or `val_`.

  Args:
    path: of the file.
    resize: the size to bring images to.
    numbers: whether labels are numbers to predict, so that there are no classes.

  Raises:
    ValueError: in one line that names the problem: the file cannot be read or takes too much memory; an array is
      missing or has another name; or labels are not of classes.
  """
  found = _arrays(path)
  names = found.pop('class_names', None)
  images, labels = dict[str, np.ndarray](), dict[str, np.ndarray]()
  for name, array in found.items():
    before, _, kind = name.rpartition('_')
    split = _SPLITS.get(before or 'train')
    into: Any = {'images': images, 'labels': labels}.get(kind)
    if split is None or into is None or split in into:
      raise ValueError(f'{path} has an array {name!r}: want {LAYOUT}.')
    into[split] = array
  for split in {**images, **labels, 'train': ()}:
    if missing := [kind for kind, some in (('images', images), ('labels', labels)) if split not in some]:
      raise ValueError(f'{path} has no {missing[0]} of the {split} split: want {LAYOUT}.')
    images[split] = images[split][..., None] if images[split].ndim == 3 else images[split]
    labels[split] = labels[split][:, 0] if labels[split].shape[1:] == (1,) else labels[split]
    splits.check_shapes(split, images[split], labels[split])
  if numbers and names is not None:
    raise ValueError(f"{path} has 'class_names', and metric r2 takes labels that are numbers: leave them out.")
  known = _words(path, names) if names is not None else ()
  labels, classes = (labels, known) if names is not None or numbers else numbered(labels)

  def source(split: str) -> Source:
    def read(places: np.ndarray) -> Split:
      some = images[split][places]
      return Split(splits.resized(some, resize) if resize else some, labels[split][places])

    return Source(len(images[split]), read)

  return {split: source(split) for split in images}, classes


def _arrays(path: str) -> dict[str, np.ndarray]:
  try:
    with zipfile.ZipFile(path) as file:
      needed = sum(entry.file_size for entry in file.infolist())
    splits.check_memory(f'the arrays of {path}', needed)
    with np.load(path, allow_pickle=False) as arrays:
      return {name: arrays[name] for name in arrays.files}
  except ValueError as error:
    raise ValueError(f'{path} cannot be read ({error}): want an .npz with {LAYOUT}.') from None
  except (OSError, zipfile.BadZipFile, EOFError, zlib.error) as error:
    why = error.strerror if isinstance(error, OSError) and error.strerror else error
    raise ValueError(f'{path} cannot be read ({why}): want an .npz with {LAYOUT}.') from None


def _words(path: str, names: np.ndarray) -> tuple[str, ...]:
  if names.ndim != 1 or names.dtype.kind != 'U':
    raise ValueError(f"{path} has 'class_names' {names.shape} of type {names.dtype}: want words [K].")
  return tuple(map(str, names))


def numbered(labels: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
  """Returns labels as the numbers of classes from 0 on, and the names of the classes, sorted.

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
      raise ValueError(f'the {name} split has class {str(extra[0])!r}, and no training image is of it: add some.')
  return {name: np.searchsorted(classes, some) for name, some in plain.items()}, tuple(map(str, classes))
