"""The splits of a data set, before and after they are read; and functions that scale images to one size."""

from collections.abc import Callable, Mapping, Sequence
import os
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np

from nas_jax import lazy
from nas_jax.words import counted

LARGEST = 2**35  # bytes of the images of a split
COPIES = 3  # of the images in memory while they are laid out for training
SMALLER = 'take a smaller resize, or fewer max_examples'  # the way out if images are too large

Size = int | tuple[int, int]  # of images in pixels: side of a square, or height and width; 0 leaves them as they are


class Split(NamedTuple):
  """Some images and their classes, or the numbers to predict from them (regression)."""

  images: np.ndarray  # [n, H, W, C] uint8
  labels: np.ndarray  # [n] int32; float64 if they are numbers to predict


class Scale(NamedTuple):
  """Mean and standard deviation of numbers, which networks see as (number - mean) / deviation."""

  mean: float | np.ndarray  # [k] for k numbers of each example
  deviation: float | np.ndarray


Part = TypeVar('Part', bound=tuple[Any, ...])  # a split in memory, a NamedTuple of arrays [n, ...]


class Source(NamedTuple, Generic[Part]):
  """A split that has not been read yet."""

  size: int  # images, or other examples
  read: Callable[[np.ndarray], Part]  # reads the examples at some indices [k]; raises ValueError if it cannot


def read(
  sources: Mapping[str, Source[Part]], max_examples: int = 0, test_share: float = 0.0, seed: int = 0
) -> dict[str, Part]:
  """Reads splits, or a random part of each.

  Args:
    sources: the splits by name; 'train' is one of them.
    max_examples: the most examples to read of each split; 0 for all.
    test_share: share of the training examples that become the test split, if there is none. They are the same for every
      seed and any `max_examples`, so that no search sees them.
    seed: the seed of the choice of `max_examples`, except from the test split.

  Raises:
    ValueError: as `Source.read`, or `test_share` leaves a split empty.
  """
  places = {name: np.arange(source.size) for name, source in sources.items()}
  if test_share and 'test' not in sources:
    order, cut = np.random.default_rng(0).permutation(places['train']), round(test_share * len(places['train']))
    if not 1 <= cut < len(order):
      raise ValueError(f'test_share (={test_share}) of {len(order)} examples leaves a split without any: take another.')
    places |= {'test': np.sort(order[:cut]), 'train': np.sort(order[cut:])}

  def some(name: str, every: np.ndarray) -> Part:
    # Only the chosen examples are read: decoding images takes longer than all the rest.
    own = 0 if name == 'test' else seed  # what a network is judged by is the same for every seed
    order = np.random.default_rng(own).permutation(len(every))[: max_examples or None]
    return sources[name if name in sources else 'train'].read(every[np.sort(order)])

  return {name: some(name, every) for name, every in places.items()}


def held_out(
  count: int, valid_share: float | None, max_examples: int = 0, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
  """Splits `count` examples at random. Returns the indices of the validation and of the training examples.

  Args:
    count: the number of examples.
    valid_share: share of the examples to validate with; None if there is a validation split already.
    max_examples: how many examples to take for both together; 0 for all.
    seed: the seed of the split.

  Raises:
    ValueError: one of the two would be empty.
  """
  order = np.random.default_rng(seed).permutation(count)[: max_examples or None]
  cut = 0 if valid_share is None else round(valid_share * len(order))
  if valid_share is not None and not 1 <= cut < len(order):
    raise ValueError(
      f'valid_share (={valid_share}) of {len(order)} training examples leaves a split without any: take another '
      'share, or more examples.'
    )
  return order[:cut], order[cut:]


def height_and_width(size: Size) -> tuple[int, int]:
  """Returns the height and the width of a size."""
  return (size, size) if isinstance(size, int) else size


def resized(images: Sequence[np.ndarray] | np.ndarray, size: Size) -> np.ndarray:
  """Scales n images [H, W, C] of any sizes to one size: [n, h, w, C]. Those that shrink are smoothed.

  Raises:
    ValueError: they would take too much memory, or are not uint8.
  """
  height, width = height_and_width(size)
  what = f'{counted(len(images), "image")} of {height} x {width} pixels'
  check_memory(what, len(images) * height * width * images[0].shape[-1])
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


def check_memory(what: str, needed: int, way_out: str = SMALLER) -> None:
  """Raises ValueError if `needed` bytes of data do not fit into memory; `what` names the data.

  Memory holds several copies of the data while they are laid out for training. `way_out` says what to do instead.
  """
  limit = min(LARGEST, memory() // COPIES)
  if needed > limit:
    raise ValueError(
      f'{what} take {needed / 2**30:.3g} GiB: want at most {limit / 2**30:.3g} GiB, since memory holds them {COPIES} '
      f'times while they are laid out; {way_out}.'
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
      'words, the classes; if they are numbers of classes, make them ints.'
    )
  if labels.dtype.kind not in 'biuU':
    raise ValueError(f'the {name} split has labels of type {labels.dtype}: want ints or words.')


def check_numbers(name: str, labels: np.ndarray) -> None:
  """Raises ValueError unless the labels of the split `name` are finite numbers that are not all the same."""
  if labels.dtype.kind not in 'iuf' or not np.isfinite(labels).all():
    what = f'of type {labels.dtype}' if labels.dtype.kind not in 'iuf' else 'that are not finite'
    raise ValueError(f'the {name} split has labels {what}: metric r2 wants numbers to predict.')
  if labels.min() == labels.max():
    raise ValueError(f'the {name} split has the label {labels[0]} alone: metric r2 wants numbers that differ.')
