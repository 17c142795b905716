"""Images on the device: laid out, whitened, augmented (Zoph & Le 2017, Sec. 4.1)."""

from collections.abc import Sequence
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nas_jax.datasets.images import Split
from nas_jax.types import Array

# The orders of the images are drawn before training. Inside the program, a permutation would need a sort in every step,
# and drawing random bits would take as long to compile as several layers.
ORDERS = 64
MOST_PIXELS = 2**14  # most pixels times channels of an image for ZCA, whose matrix then takes 1 GiB
WHITENINGS = ('image', 'channel', 'zca')


class Data(NamedTuple):
  """Images on the device, [n, H, W, C] uint8 (float32 if whitened already), and their classes, [n] int32."""

  images: Array
  labels: Array
  valid_images: Array  # their number is a multiple of the score batch: images are repeated to fill it up
  valid_labels: Array  # of repeated images -1, or NaN if labels are numbers to predict
  orders: Array  # [ORDERS, n] int32, the order of images in each epoch; after ORDERS epochs the first is used again
  draws: Array  # [ORDERS, n] uint32, random bits that say how each image is augmented, see `augmented`


def lay_out(
  train: Split, scored: Sequence[Split], score_batch: int, whiten: str = 'image', seed: int = 0
) -> list[Data]:
  """Returns a `Data` for each of the splits `scored`, all with the same training images.

  Args:
    train: the training images.
    scored: the splits to score.
    score_batch: images in a scoring step.
    whiten: 'image': pixels stay uint8, and each image is standardized where it is used. 'channel': `channel` fitted on
      the training images, as float32. 'zca': ZCA whitening fitted on the training images, as float32.
    seed: the seed of the orders of the images and of the bits by which they are augmented.
  """
  turn = fit_whitening(whiten, train.images)

  def filled(images: np.ndarray, labels: np.ndarray) -> tuple[Array, Array]:
    count = -(-len(labels) // score_batch) * score_batch
    rest = np.full((count - len(labels), *labels.shape[1:]), np.nan if labels.dtype.kind == 'f' else -1, labels.dtype)
    return jnp.asarray(turn(np.resize(images, (count, *images.shape[1:])))), jnp.concatenate([labels, rest])

  images, labels = jnp.asarray(turn(train.images)), jnp.asarray(train.labels)
  rng = np.random.default_rng(seed)
  orders = rng.permuted(np.tile(np.arange(len(train.labels), dtype=np.int32), (ORDERS, 1)), axis=1)
  tables = jnp.asarray(orders), jnp.asarray(rng.integers(2**32, size=orders.shape, dtype=np.uint32))
  return [Data(images, labels, *filled(*split), *tables) for split in scored]


class Whitening(NamedTuple):
  """A function, made by `fit_whitening`, that maps images [n, H, W, C] uint8 to the inputs of a network."""

  kind: str  # one of WHITENINGS
  shift: Any = None  # float32: subtracted from channels [C], or from pixels between 0 and 1 [H * W * C]
  scale: Any = None  # float32: divisor of channels [C], or the matrix [H * W * C, H * W * C]

  def __call__(self, images: np.ndarray) -> np.ndarray:
    """Returns the images as float32; of kind 'image' unchanged, since `whitened` scales them where they are used."""
    if self.kind == 'channel':
      return (images.astype(np.float32) - self.shift) / self.scale
    if self.kind == 'zca':
      flat = images.reshape(len(images), -1).astype(np.float32) / 255.0
      return ((flat - self.shift) @ self.scale).astype(np.float32).reshape(images.shape)
    return images


def fit_whitening(kind: str, images: np.ndarray) -> Whitening:
  """Returns a whitening of one of WHITENINGS, fitted on images [n, H, W, C] uint8."""
  return {'channel': channel, 'zca': zca, 'image': lambda images: Whitening('image')}[kind](images)


def check_whitening(kind: str, shape: Sequence[int]) -> None:
  """Raises ValueError if a whitening of one of WHITENINGS would need too large a matrix for images [H, W, C]."""
  pixels = math.prod(shape)
  if kind == 'zca' and pixels > MOST_PIXELS:
    raise ValueError(
      f"whiten (='zca') needs a matrix of {pixels} x {pixels} for images {tuple(shape)}, "
      f'{4 * pixels**2 / 2**30:.0f} GiB: want at most {MOST_PIXELS} pixels times channels; take a '
      "smaller resize, or 'image'."
    )


def channel(images: np.ndarray) -> Whitening:
  """Returns the standardization of channels by their mean and standard deviation in images [n, H, W, C] uint8.

  The code of Pham et al. (2018) prepares images in this way. A channel that does not vary is divided by 1.
  """
  levels = np.arange(256)
  # Pixels are counted by their value, which needs no array of floats as large as the images.
  channels = np.moveaxis(images, -1, 0).reshape(images.shape[-1], -1)
  shares = np.stack([np.bincount(pixels, minlength=256) for pixels in channels]) / channels.shape[1]
  mean = shares @ levels
  deviation = np.sqrt((shares * (levels - mean[:, None]) ** 2).sum(1))
  return Whitening('channel', mean.astype(np.float32), np.where(deviation > 0.0, deviation, 1.0).astype(np.float32))


def zca(images: np.ndarray, least: float = 1e-2) -> Whitening:
  """Returns ZCA whitening fitted on images [n, H, W, C] uint8: pixels become uncorrelated, with variance 1.

  Of all such maps ZCA changes the images least. Pixels are scaled to 0 to 1, and `least` is added to the variance of
  each principal component, so that components of little variance, which are noise, are not scaled up.
  """
  check_whitening('zca', images.shape[1:])
  flat = images.reshape(len(images), -1).astype(np.float32) / 255.0
  mean = flat.mean(0)
  values, vectors = np.linalg.eigh((flat - mean).T @ (flat - mean) / len(flat))
  matrix = (vectors / np.sqrt(values.clip(0) + least)) @ vectors.T
  return Whitening('zca', mean, matrix)


class Augment(NamedTuple):
  """What happens to training images, Sec. 4.1."""

  upsample: int = 0  # pixels by which images are enlarged before a crop to their old size; 0 for neither
  flip: bool = False  # flip left to right at random
  pad: int = 0  # pixels of zeros all around before a crop to the old size, as in Pham et al. (2018)


def whitened(images: Array) -> Array:
  """Returns uint8 images as floats, each scaled to mean 0 and variance 1; floats are whitened already and stay."""
  return standardized(images) if images.dtype == jnp.uint8 else images


def standardized(images: Array) -> Array:
  """Returns images of pixels from 0 to 255 as floats, each scaled to mean 0 and variance 1."""
  x = images.astype(float) / 255.0
  mean = x.mean((1, 2, 3), keepdims=True)
  return (x - mean) * jax.lax.rsqrt(((x - mean) ** 2).mean((1, 2, 3), keepdims=True) + 1e-6)


def augmented(draws: Array, images: Array, augment: Augment) -> Array:
  """Returns images that are enlarged or padded, cropped and flipped, each at random.

  Args:
    draws: [B] uint32, random bits. The lowest one flips an image, the next 15 choose the row of its crop, and the
      others the column.
    images: [B, H, W, C].
    augment: which of these changes are made.
  """
  batch, height, width, channels = images.shape
  if augment.upsample:
    large = (batch, height + augment.upsample, width + augment.upsample, channels)
    images = jax.image.resize(images, large, 'bilinear')
  if augment.pad:
    images = jnp.pad(images, [(0, 0), (augment.pad,) * 2, (augment.pad,) * 2, (0, 0)])
  if more := augment.upsample + 2 * augment.pad:
    corners = (jnp.stack([draws >> 1 & 0x7FFF, draws >> 16], 1) % (more + 1)).astype(jnp.int32)

    def crop(one: Array, at: Array) -> Array:
      return jax.lax.dynamic_slice(one, (at[0], at[1], jnp.zeros_like(at[0])), (height, width, channels))

    images = jax.vmap(crop)(images, corners)
  if augment.flip:
    turn = (draws & 1)[:, None, None, None] == 1
    images = jnp.where(turn, images[:, :, ::-1], images)
  return images


def drawn(data: Data, batch: int, step: Array, augment: Augment) -> tuple[Array, Array]:
  """Returns the augmented images and the labels of a training step, which are the same for all children.

  When an order is used again, it is combined with the random bits of another epoch, so an epoch repeats exactly only
  after ORDERS^2 epochs.
  """
  count = len(data.labels) // batch
  epoch, start = step // count, step % count * batch

  def of_step(table: Array, row: Array) -> Array:
    return jax.lax.dynamic_slice(table, (row % len(table), start), (1, batch))[0]

  places = of_step(data.orders, epoch)
  draws = of_step(data.draws, epoch + epoch // len(data.orders))
  return augmented(draws, whitened(data.images[places]), augment), data.labels[places]
