"""Splits of a set of images, before and after they are read, and images brought to one size."""

from collections.abc import Callable, Mapping, Sequence
import os
from typing import NamedTuple

import numpy as np

from nas_jax import lazy

LARGEST = 2**35  # bytes of the images of a split
COPIES = 3  # of the images in memory while they are laid out for training

Size = int | tuple[int, int]  # of images in pixels: side of a square, or height and width; 0 leaves them as they are


class Split(NamedTuple):
  """Some images and their classes, or the numbers to predict from them (regression)."""

  images: np.ndarray  # [n, H, W, C] uint8
  labels: np.ndarray  # [n] int32; float32 if they are numbers to predict


class Scale(NamedTuple):
  """Mean and standard deviation of numbers to predict, which networks learn as (number - mean) / deviation."""

  mean: float
  deviation: float


class Source(NamedTuple):
  """A split that has not been read yet."""

  size: int  # images
  read: Callable[[np.ndarray], Split]  # reads the images at some indices [k]; raises ValueError if it cannot


def read(
  sources: Mapping[str, Source], max_examples: int = 0, test_share: float = 0.0, seed: int = 0
) -> dict[str, Split]:
  """Reads splits, or a random part of each.

  Args:
    sources: the splits by name; 'train' is one of them.
    max_examples: the most images to read of each split; 0 for all.
    test_share: share of the training images that become the test split, if there is none. They are the same for every
      seed and any `max_examples`, so that no search sees them.
    seed: of the choice of `max_examples` images.

  Raises:
    ValueError: as `Source.read`, or `test_share` leaves a split without images.
  """
  places = {name: np.arange(source.size) for name, source in sources.items()}
  if test_share and 'test' not in sources:
    order, cut = np.random.default_rng(0).permutation(places['train']), round(test_share * len(places['train']))
    if not 1 <= cut < len(order):
      raise ValueError(f'test_share (={test_share}) of {len(order)} images leaves a split without any: take another.')
    places |= {'test': np.sort(order[:cut]), 'train': np.sort(order[cut:])}

  def some(name: str, every: np.ndarray) -> Split:
    # Only the chosen images are read: decoding takes longer than all the rest.
    order = np.random.default_rng(seed).permutation(len(every))[: max_examples or None]
    return sources[name if name in sources else 'train'].read(every[np.sort(order)])

  return {name: some(name, every) for name, every in places.items()}


def height_and_width(size: Size) -> tuple[int, int]:
  """Returns the height and the width of a size."""
  return (size, size) if isinstance(size, int) else size


def resized(images: Sequence[np.ndarray] | np.ndarray, size: Size) -> np.ndarray:
  """Returns n images [H, W, C] of any sizes scaled to one size, [n, h, w, C], smoothed where that is smaller.

  Raises:
    ValueError: they would take too much memory, or are not uint8.
  """
  height, width = height_and_width(size)
  check_memory(f'{len(images)} images of {height} x {width} pixels', len(images) * height * width * images[0].shape[-1])
  if images[0].dtype != np.uint8:
    raise ValueError(f'the images have pixels of type {images[0].dtype}: want uint8, 0 to 255.')
  return np.stack([scaled(image, size) for image in images])


def scaled(image: np.ndarray, size: Size) -> np.ndarray:
  """Returns an image [H, W, C] uint8 in another size."""
  height, width = height_and_width(size)
  lazy.require('PIL', 'resizing images')
  from PIL import Image

  def channel(pixels: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR))

  # JAX is not used here: this runs before a launcher has chosen the devices.
  return np.stack([channel(image[..., c]) for c in range(image.shape[-1])], -1)


def memory() -> int:
  """Returns the bytes of memory of this machine; COPIES * LARGEST if the system cannot tell."""
  return os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') if hasattr(os, 'sysconf') else COPIES * LARGEST


def check_memory(what: str, needed: int) -> None:
  """Raises ValueError if images of `needed` bytes, in words `what`, do not fit into memory.

  Memory holds several copies of the images while they are laid out for training.
  """
  limit = min(LARGEST, memory() // COPIES)
  if needed > limit:
    raise ValueError(
      f'{what} take {needed / 2**30:.3g} GiB: want at most {limit / 2**30:.3g} GiB, since memory holds them {COPIES} '
      'times while they are laid out; take a smaller resize, or fewer max_examples.'
    )


def check_shapes(name: str, images: np.ndarray, labels: np.ndarray) -> None:
  """Raises ValueError unless the split `name` has images [n, H, W, C], n > 0, and a label for each, [n]."""
  if labels.ndim == 2 and len(images) == len(labels):
    way = 'labels[:, 0]' if labels.shape[1] == 1 else 'labels.argmax(1), if they are one-hot'
    raise ValueError(
      f'the {name} split has labels {labels.shape}: want the number of a class for each image, [n]; take {way}.'
    )
  if images.ndim != 4 or labels.ndim != 1 or len(images) != len(labels) or not len(labels):
    shapes = f'images {images.shape} and labels {labels.shape}'
    raise ValueError(f'the {name} split has {shapes}: want [n, H, W, C] and [n], n > 0.')


def check_type(name: str, labels: np.ndarray) -> None:
  """Raises ValueError unless the labels of the split `name` are ints, bools or words."""
  if labels.dtype.kind == 'f':
    raise ValueError(
      f'the {name} split has labels of type {labels.dtype}, as for regression, which takes metric r2: want ints or '
      'words, the classes of images; if they are numbers of classes, make them ints.'
    )
  if labels.dtype.kind not in 'biuU':
    raise ValueError(f'the {name} split has labels of type {labels.dtype}: want ints or words.')


def check_numbers(name: str, labels: np.ndarray) -> None:
  """Raises ValueError unless the labels of the split `name` are finite numbers that are not all the same."""
  if labels.dtype.kind not in 'iuf' or not np.isfinite(labels).all():
    what = f'of type {labels.dtype}' if labels.dtype.kind not in 'iuf' else 'that are not finite'
    raise ValueError(f'the {name} split has labels {what}: metric r2 wants numbers to predict, one for each image.')
  if labels.min() == labels.max():
    raise ValueError(f'the {name} split has the label {labels[0]} alone: metric r2 wants numbers that differ.')
