"""The parameters of a tree cell: their names, shapes and initial values, the same for functions, linen and NNX."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

from nas_jax.space.tree import TreeArch, check_tree, leaves
from nas_jax.types import Array, DType, Key

Initializer = Callable[[Key, tuple[int, ...], DType], Any]  # as in `jax.nn.initializers`; may return metadata too


def init(
  key: Key,
  arch: TreeArch,
  in_features: int,
  features: int,
  *,
  bias: bool = False,
  scale: float | Array | None = None,
  projection: int | None = None,
  layer_norm: bool = False,
  kernel_init: Initializer | None = None,
  recurrent_kernel_init: Initializer | None = None,
  bias_init: Initializer | None = None,
  projection_init: Initializer | None = None,
  param_dtype: DType = float,
) -> dict[str, Array]:
  """Returns parameters in the layout of TensorFlow's NASCell: the columns of the n leaves in order.

  Args:
    key: the random key.
    arch: static or traced; only its number of leaves n is used.
    in_features: width of x.
    features: H, the width of c and, without a projection, of h.
    bias: adds a 'bias' [n * H], which the paper's cells do not have. As in TensorFlow it is added to h U.
    scale: weights without an initializer are uniform in [-scale, scale]; by default 1 / sqrt(H).
    projection: P, the width of h. Adds a 'projection_kernel' [H, P] that multiplies the value of the root (Sak et al.,
      2014).
    layer_norm: adds a 'kernel_scale' and a 'recurrent_scale' [n * H] of ones. Each leaf's projection of x and
      its projection of h are then normalized to mean 0 and variance 1 over their H features (Ba et al., 2016) and
      multiplied by these scales.
    kernel_init: initializer of the whole 'kernel', as in `jax.nn.initializers`.
    recurrent_kernel_init: initializer of the whole 'recurrent_kernel'.
    bias_init: initializer of the bias; by default zeros.
    projection_init: initializer of the 'projection_kernel'.
    param_dtype: type of all parameters; by default float32, or float64 if JAX's x64 mode is on.

  Returns:
    {'kernel': [in_features, n * H], 'recurrent_kernel': [P, n * H]} and the optional parameters. P is H without a
    projection.

  Raises:
    ValueError: `arch` is no architecture of a cell, see `space.tree.check_tree`; an initializer is given for a
      parameter that the cell does not have, or together with `scale`.

  >>> import jax
  >>> from nas_jax import tree_cell
  >>> params = tree_cell.init(jax.random.key(0), tree_cell.NASCELL, in_features=3, features=4)
  >>> {name: weights.shape for name, weights in params.items()}  # NASCELL has 8 leaves
  {'kernel': (3, 32), 'recurrent_kernel': (4, 32)}
  """
  initializers = initializers_of(
    arch, in_features, features, bias=bias, scale=scale, projection=projection, layer_norm=layer_norm,
    kernel_init=kernel_init, recurrent_kernel_init=recurrent_kernel_init, bias_init=bias_init,
    projection_init=projection_init,
  )  # fmt: skip
  return initialized(key, initializers, param_dtype)


def initializers_of(
  arch: TreeArch,
  in_features: int,
  features: int,
  *,
  bias: bool = False,
  scale: float | Array | None = None,
  projection: int | None = None,
  layer_norm: bool = False,
  kernel_init: Initializer | None = None,
  recurrent_kernel_init: Initializer | None = None,
  bias_init: Initializer | None = None,
  projection_init: Initializer | None = None,
) -> dict[str, tuple[Initializer, tuple[int, ...]]]:
  """Returns the initializer and the shape of each parameter, by name. Arguments and errors are those of `init`."""
  check_tree(arch, None)
  if bias_init is not None and not bias:
    raise ValueError('bias_init is given, but the cell has no bias: set bias=True, or leave bias_init out.')
  if projection_init is not None and projection is None:
    raise ValueError('projection_init is given, but the cell has no projection: set projection, or leave it out.')
  if projection is not None and projection < 1:
    raise ValueError(f'projection (={projection}) must be the width of h, at least 1, or None.')
  if scale is not None and (kernel_init is not None or recurrent_kernel_init is not None):
    raise ValueError('scale is the range of the default initializers: leave it out where you give initializers.')
  limit = features**-0.5 if scale is None else scale

  def uniform(key: Key, shape: tuple[int, ...], dtype: DType) -> Array:
    return jax.random.uniform(key, shape, dtype, -limit, limit)

  width = leaves(arch) * features
  found: dict[str, tuple[Initializer, tuple[int, ...]]] = {
    'kernel': (kernel_init or uniform, (in_features, width)),
    'recurrent_kernel': (recurrent_kernel_init or uniform, (projection or features, width)),
  }
  if bias:
    found['bias'] = bias_init or nn.initializers.zeros_init(), (width,)
  if layer_norm:
    found |= {name: (nn.initializers.ones_init(), (width,)) for name in ('kernel_scale', 'recurrent_scale')}
  if projection is not None:
    found['projection_kernel'] = projection_init or uniform, (features, projection)
  return found


def initialized(
  key: Key, initializers: dict[str, tuple[Initializer, tuple[int, ...]]], param_dtype: DType
) -> dict[str, Any]:
  """Returns parameters by name, each drawn with a key of its own; initializers are those of `initializers_of`."""
  first, second = jax.random.split(key)
  keys = {'kernel': first, 'recurrent_kernel': second}
  return {
    name: initializer(keys.get(name, jax.random.fold_in(key, place)), shape, param_dtype)
    for place, (name, (initializer, shape)) in enumerate(initializers.items())
  }


def check_rate(recurrent_dropout: float) -> None:
  """Raises ValueError if a rate of dropout is out of range."""
  if not 0 <= recurrent_dropout < 1:
    raise ValueError(f'recurrent_dropout (={recurrent_dropout}) must be a rate from 0 to below 1.')


def dropout_mask(key: Key, rate: float, h: Array) -> Array:
  """Draws the factors of dropout for h: 0 with probability `rate`, otherwise 1 / (1 - rate)."""
  return jax.random.bernoulli(key, 1 - rate, h.shape).astype(h.dtype) / (1 - rate)
