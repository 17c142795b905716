"""The sizes, links and weights of convolutional layers whose links are in an array.

A layer reads sources: source 0 is the image, source j + 1 is layer j.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from nas_jax.types import Array


class Sizes(NamedTuple):
  """The sizes that the networks of one program choose from."""

  channels: int  # of the image
  heights: tuple[int, ...]  # of windows
  widths: tuple[int, ...]
  filters: tuple[int, ...]

  def most(self) -> tuple[int, int, int, int]:
    """The shape of the largest kernel: height, width, channels read, filters."""
    filters = max(self.filters)
    return max(self.heights), max(self.widths), max(self.channels, filters), filters

  def windows(self) -> list[tuple[int, int]]:
    """All pairs of a height and a width."""
    return [(height, width) for height in self.heights for width in self.widths]

  def sources(self) -> tuple[int, ...]:
    """The channels of each kind of source: the image, and a layer of each number of filters."""
    return self.channels, *self.filters


class Wires(NamedTuple):
  """The links and sizes of a network of L layers, traced."""

  reads: Array  # [L, L + 1] bool, whether layer i reads source j; false if j > i
  height: Array  # [L] int32, of the window
  width: Array
  filters: Array


class Weights(NamedTuple):
  """Weights of L layers, with E = L (L + 1) / 2 pairs of a layer and a source, in the order of `pairs`."""

  kernels: Array  # [E, kh, kw, C, F], each in the middle of the largest window
  scale: Array  # [L, F]
  shift: Array


def pairs(depth: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns the layer and the source of each kernel: (0, image), (1, image), (1, layer 0), ..."""
  layer, source = np.tril_indices(depth)
  return layer.astype(np.int32), source.astype(np.int32)


def corner(most: tuple[int, ...], size: tuple[int, ...]) -> tuple[int, ...]:
  """Returns where a window begins in a larger window that has the same central pixel."""
  return tuple((m - 1) // 2 - (s - 1) // 2 for m, s in zip(most, size, strict=True))


def present(sizes: Sizes, weights: Weights, wires: Wires) -> Weights:
  """Sets all weights that a network does not have to 0."""
  layer, source = pairs(len(wires.height))
  kh, kw, widest, most = sizes.most()

  def inside(most: int, size: Array) -> Array:
    begin = (most - 1) // 2 - (size - 1) // 2
    return (jnp.arange(most)[None] >= begin[:, None]) & (jnp.arange(most)[None] < (begin + size)[:, None])

  own = jnp.arange(most)[None] < wires.filters[:, None]
  channels = jnp.concatenate([jnp.full(1, sizes.channels), wires.filters])
  read = (jnp.arange(widest)[None] < channels[:, None])[source] & wires.reads[layer, source][:, None]
  window = inside(kh, wires.height)[layer][:, :, None] & inside(kw, wires.width)[layer][:, None]
  kernel = window[..., None, None] & (read[:, :, None] & own[layer][:, None])[:, None, None]
  return Weights(*(jnp.where(m, w, 0.0) for m, w in zip((kernel, own, own), weights, strict=True)))
