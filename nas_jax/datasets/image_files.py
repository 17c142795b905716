"""Reads the pixels of image files with Pillow."""

from collections.abc import Iterator, Sequence
import contextlib
import struct
from typing import Any

import numpy as np

from nas_jax import lazy
from nas_jax.datasets import splits
from nas_jax.datasets.class_folders import Kind
from nas_jax.words import counted

KIND = Kind('image', ('.bmp', '.gif', '.jpeg', '.jpg', '.png', '.ppm', '.tif', '.tiff', '.webp'))
_GREY, _COLOUR = ('1', 'L', 'LA'), ('P', 'PA', 'RGB', 'RGBA', 'RGBX', 'CMYK', 'YCbCr', 'LAB', 'HSV')


def read(paths: Sequence[str], resize: splits.Size = 0) -> np.ndarray:
  """Returns images of files, [n, H, W, 1] if they are grey or [n, H, W, 3], uint8.

  Raises:
    ValueError: in one line: a file cannot be read (the error names it); some images are grey and some in colour; the
      images differ in size and `resize` is 0; or they would take too much memory, which is found before any is decoded.
  """
  shapes = [_shape(path) for path in paths]
  kinds = {channels: path for path, (_, _, channels) in zip(paths, shapes, strict=True)}
  if len(kinds) > 1:
    raise ValueError(f'{kinds[1]} is grey and {kinds[3]} in colour: want images of one kind; convert some of them.')
  (channels,) = kinds
  if resize:
    height, width = splits.height_and_width(resize)
    splits.check_memory(
      f'{counted(len(paths), "image")} of {height} x {width} pixels', len(paths) * height * width * channels
    )
  else:
    splits.check_memory(counted(len(paths), 'image'), sum(height * width * channels for height, width, _ in shapes))
  found = None
  for k, path in enumerate(paths):
    image = decoded(path, channels)
    image = splits.scaled(image, resize) if resize else image
    if found is None:
      found = np.empty((len(paths), *image.shape), np.uint8)
    if image.shape != found.shape[1:]:
      one, other = (' x '.join(map(str, shape[:2])) for shape in (found.shape[1:], image.shape))
      raise ValueError(
        f'{paths[0]} has {one} pixels and {path} {other}: give resize, as --resize=64 or --resize=48,64.'
      )
    found[k] = image
  assert found is not None, paths
  return found


def decoded(path: str, channels: int) -> np.ndarray:
  """Returns the image of a file, [H, W, channels] uint8, rotated by its EXIF orientation; transparency is ignored.

  Raises:
    ValueError: in one line: the file cannot be read, or `channels` is neither 1 nor 3.
  """
  if channels not in (1, 3):
    raise ValueError(f'the model takes {channels} channels: image files have 1 or 3; give an .npz.')
  with _opened(path) as image:
    from PIL import ImageOps

    pixels = np.asarray(ImageOps.exif_transpose(image).convert('L' if channels == 1 else 'RGB'))
  return pixels[..., None] if channels == 1 else pixels


def _shape(path: str) -> tuple[int, int, int]:
  """Returns height, width and channels of an image as it is stored. Nothing is decoded."""
  with _opened(path) as image:
    return image.height, image.width, 1 if image.mode in _GREY else 3


@contextlib.contextmanager
def _opened(path: str) -> Iterator[Any]:
  """Opens a Pillow image. Raises ValueError if it is no image, has several frames, or pixels of more than 8 bits."""
  lazy.require('PIL', 'reading image files')
  from PIL import Image

  try:
    with Image.open(path) as image:
      frames = getattr(image, 'n_frames', 1)
      if frames > 1 and image.format != 'MPO':  # cameras add another version of a photograph to such a file
        raise ValueError(f'it has {frames} images, want a file for each')
      if image.mode not in _GREY + _COLOUR:
        raise ValueError(f'it has pixels of type {image.mode}, want 8 bits for each channel')
      yield image
  except (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError) as error:
    raise ValueError(f'{path} cannot be read as an image ({error}).') from None
