"""Layers that the Flax modules of image networks share, and their variables.

Each unit of a child, a convolution and the batch norm after it, becomes an `nn.Conv` named NAME_conv and an
`nn.BatchNorm` named NAME_norm. A separable convolution also has NAME_depthwise. All functions are called inside an
`nn.compact` method.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from nas_jax.children.conv import MOMENTUM
from nas_jax.types import Array, PyTree


class Norm(NamedTuple):
  """How batch norm is computed."""

  epsilon: float  # added to the variance
  train: bool  # whether to use the batch's statistics and update the running ones; else the running ones are used

  def __call__(self, x: Array, name: str) -> Array:
    """Applies batch norm to images [B, H, W, C]."""
    return nn.BatchNorm(
      not self.train, momentum=MOMENTUM, epsilon=self.epsilon, use_fast_variance=False, name=f'{name}_norm'
    )(x)


def convolved(
  x: Array, name: str, filters: int, window: tuple[int, int], strides: tuple[int, int] = (1, 1), separable: bool = False
) -> Array:
  """Applies a convolution without bias. With stride s it returns pixels 0, s, 2 s, ... of the output of stride 1.

  If it is separable, it is a depthwise convolution followed by a 1 x 1 convolution.
  """
  padding = [((k - 1) // 2, k // 2) for k in window]
  if separable:
    count = x.shape[-1]
    x = nn.Conv(
      count, window, padding=padding, feature_group_count=count, use_bias=False, name=f'{name}_depthwise'
    )(x)  # fmt: skip
    window, padding = (1, 1), [(0, 0), (0, 0)]
  return nn.Conv(filters, window, strides, padding, use_bias=False, name=f'{name}_conv')(x)


def reduced(x: Array, name: str, filters: int, norm: Norm) -> Array:
  """Applies the factorised reduction of ENAS to half the height and width, rounded up, and batch norm.

  Half of the filters, rounded down, read pixels 0, 2, ... of both axes. The others read pixels 1, 3, ..., and zeros
  past the edge.
  """
  between, half = jnp.pad(x, [(0, 0), (0, 1), (0, 1), (0, 0)])[:, 1:, 1:], filters // 2
  counts = {'even': (x, half), 'odd': (between, filters - half)}
  parts = [
    nn.Conv(count, (1, 1), 2, use_bias=False, name=f'{name}_{side}_conv')(image)
    for side, (image, count) in counts.items()
    if count
  ]
  return norm(jnp.concatenate(parts, -1), name)


def pooled(x: Array, window: Sequence[int], strides: Sequence[int], largest: bool) -> Array:
  """Applies max or average pooling, with windows that begin at 0, s, 2 s, ... and are cut off at the edge."""
  sizes = zip(x.shape[1:3], window, strides, strict=True)
  return _pool(x, window, strides, [(0, max(0, (n - 1) // s * s + k - n)) for n, k, s in sizes], largest)


def pooled_around(x: Array, size: int, largest: bool) -> Array:
  """Applies max or average pooling over a window around each pixel, cut off at the edge."""
  return _pool(x, (size, size), (1, 1), 'SAME', largest)


def _pool(x, window, strides, padding, largest):
  if largest:
    return nn.max_pool(x, tuple(window), tuple(strides), padding)
  return nn.avg_pool(x, tuple(window), tuple(strides), padding, count_include_pad=False)


Unit = tuple[str, PyTree, PyTree]  # name, the child's parameters, and its moving statistics


def variables(units: Iterable[Unit], reductions: Iterable[Unit], params: PyTree) -> PyTree:
  """Returns the variables of a module from the parameters of a child's units and of its classifier.

  Args:
    units: convolutions and batch norms; {} for a layer that has neither.
    reductions: the units that `reduced` computes.
    params: the weights of the child; its classifier is taken.
  """
  weights: dict[str, PyTree] = {'classifier': {'kernel': params['softmax'], 'bias': params['softmax_bias']}}
  statistics: dict[str, PyTree] = {}
  for name, unit, moving in (*units, *_halves(reductions)):
    if 'depthwise' in unit:
      weights[f'{name}_depthwise'] = {'kernel': unit['depthwise'][:, :, None]}
    if 'kernel' in unit:
      weights[f'{name}_conv'] = {'kernel': unit['kernel']}
    if 'shift' in unit:
      weights[f'{name}_norm'] = {'scale': unit['scale'], 'bias': unit['shift']}
      statistics[f'{name}_norm'] = dict(zip(('mean', 'var'), moving, strict=True))
  return {'params': weights} | ({'batch_stats': statistics} if statistics else {})


def _halves(reductions: Iterable[Unit]) -> Iterable[Unit]:
  """Yields the two convolutions of each reduction, and its batch norm."""
  for name, unit, moving in reductions:
    half = unit['kernel'].shape[-1] // 2
    for side, kernel in (('even', unit['kernel'][..., :half]), ('odd', unit['kernel'][..., half:])):
      if kernel.size:
        yield f'{name}_{side}', {'kernel': kernel}, ()
    yield name, {'scale': unit['scale'], 'shift': unit['shift']}, moving
