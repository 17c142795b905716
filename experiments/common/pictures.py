"""Reads a user's images for a trained network."""

from collections.abc import Sequence
import os
from typing import NamedTuple

import numpy as np

from nas_jax import export
from nas_jax.datasets import class_folders, image_files, npz
from nas_jax.datasets import labels as labels_lib
from nas_jax.datasets.splits import resized

LAYOUT = "an array 'images' [n, H, W, C] and perhaps 'labels' [n] and 'class_names' [K]"


class Pictures(NamedTuple):
  """Images that a network takes."""

  names: tuple[str, ...]
  images: np.ndarray  # [n, H, W, C], 0 to 255
  labels: np.ndarray | None  # [n] numbers or names of classes, if they are known


def read(paths: Sequence[str], wanted: export.ImageInputs, resize: bool = False) -> Pictures:
  """Reads the images of one folder, of files, or of one .npz.

  A folder holds images, or a sub-folder for each class; the names of the sub-folders are then the labels.

  Image files are converted to grey or to colour, as the network requires. Images of other sizes are scaled if this was
  done in training or if `resize` is True.

  Args:
    paths: a folder, image files, or an .npz with 'images' [n, H, W, C] and perhaps 'labels' [n] and 'class_names' [K].
    wanted: the inputs of the network.
    resize: whether to scale images of other sizes.

  Raises:
    ValueError: there is no image, or one cannot be read or has another size. The message is one line.
  """
  if len(paths) == 1 and paths[0].endswith('.npz'):
    array, labels = _arrays(paths[0])
    images, names = list(array), tuple(map(str, range(len(array))))
  else:
    files, labels = _files(paths)
    names = class_folders.names(files, labels)
    images = [image_files.decoded(path, wanted.shape[2]) for path in files]
  height, width, channels = wanted.shape
  for name, image in zip(names, images, strict=True):
    if image.ndim != 3 or image.shape[2] != channels:
      raise ValueError(f'image {name} is {image.shape}: want [{height}, {width}, {channels}], as in training.')
    if image.shape != wanted.shape and not (resize or wanted.resized):
      raise ValueError(
        f'image {name} is {image.shape[0]} x {image.shape[1]}: the model takes {height} x {width}; --resize scales it.'
      )
  if any(image.shape != wanted.shape for image in images):
    images = list(resized(images, (height, width)))
  return Pictures(names, np.stack(images), labels)


def finite_numbers(labels: np.ndarray | None) -> np.ndarray | None:
  """Returns labels for a network that predicts numbers. Raises ValueError unless they are finite numbers, or None."""
  if labels is None or (labels.dtype.kind in 'iuf' and np.isfinite(labels).all()):
    return labels
  what = 'not finite' if labels.dtype.kind == 'f' else f'of type {labels.dtype}'
  raise ValueError(f'the labels are {what}, and the model predicts numbers: give finite numbers, or no labels.')


def class_numbers(labels: np.ndarray | None, classes: Sequence[str], numbered: bool = False) -> np.ndarray | None:
  """Returns the class number of each label, [n] as the labels.

  Args:
    labels: names of classes. Integers are class numbers instead if `numbered` is True or any name is no number.
    classes: the names of the classes.
    numbered: whether the labels in training were class numbers, with names of the classes beside them.

  Raises:
    ValueError: a label is no class.
  """
  if labels is None:
    return None
  names_are_numbers = all(name.lstrip('-').isdigit() for name in classes)
  if not np.issubdtype(labels.dtype, np.integer) or (names_are_numbers and not numbered):
    numbers = {name: number for number, name in enumerate(classes)}
    unknown = sorted({str(label) for label in labels} - numbers.keys())
    if unknown:
      raise ValueError(f'the labels have {unknown[0]!r}, which is no class of the model: want {", ".join(classes)}.')
    return np.array([numbers[str(label)] for label in labels])
  if labels.size and not 0 <= labels.min() <= labels.max() < len(classes):
    raise ValueError(f'the labels are from {labels.min()} to {labels.max()}: the model has 0 to {len(classes) - 1}.')
  return labels


def _arrays(path: str) -> tuple[np.ndarray, np.ndarray | None]:
  arrays = npz.read(path, LAYOUT, 'take fewer images', ('images', 'labels', 'class_names'))
  if 'images' not in arrays:
    raise ValueError(f'{path} has no images: want {LAYOUT}.')
  images = arrays['images'][..., None] if arrays['images'].ndim == 3 else arrays['images']
  if images.ndim != 4 or not len(images):
    raise ValueError(f'{path} has images {images.shape}: want [n, H, W, C], n > 0.')
  return images, labels_lib.known(path, arrays, images.shape[:1])


def _files(paths: Sequence[str]) -> tuple[list[str], np.ndarray | None]:
  """Returns the image files, and their class names if they lie in a folder for each class."""
  if len(paths) > 1 or not os.path.isdir(paths[0]):
    return list(paths), None
  return class_folders.labelled(paths[0], image_files.KIND)
