"""Convolutional layers that each read any layers before them, with the links in an array: one program for all networks.

Arrays have the size of the widest layer and of the largest window; entries beyond the channels of a layer or the window
of a kernel are 0. On accelerators each layer is one convolution of the largest window over all outputs before it, which
works well under `vmap`. On a CPU only the layers and links that exist are computed: by loops over the layers and over
the sources of each, with a branch for each size of convolution. The program has each branch once, not once for each
layer, so deep networks do not take longer to compile.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from nas_jax.children.conv_traced_weights import Sizes, Weights, Wires, corner, present
from nas_jax.nn import image_ops
from nas_jax.nn.precision import at_least_float32
from nas_jax.types import Array


def run(
  sizes: Sizes,
  norm_first: bool,
  weights: Weights,
  wires: Wires,
  x: Array,
  epsilon: float | Array,
  moving: tuple[Array, Array] | None,
) -> tuple[Array, tuple[Array, Array]]:
  """Computes convolution, batch norm and ReLU (batch norm last, if not `norm_first`), layer by layer.

  Args:
    sizes: static.
    norm_first: static.
    weights: entries that the network does not have are ignored.
    wires: the network.
    x: [B, H, W, C] images; they get no gradient. If they are bfloat16, so are convolutions and the outputs of layers.
    epsilon: added to the variance in batch norm.
    moving: mean and variance, [L, F] each, in evaluation, which has no gradient; None in training.

  Returns:
    The mean of each layer's output over its pixels, [L, B, F]; and the mean and variance [L, F] used in batch norm.
  """
  looped = _looped if moving is None else _evaluated
  weights = weights._replace(kernels=weights.kernels.astype(x.dtype))
  arguments = weights, wires, x, epsilon, moving
  return jax.lax.platform_dependent(
    *arguments,
    cpu=functools.partial(looped, sizes, norm_first),
    default=functools.partial(_masked, sizes, norm_first),
  )


def _masked(sizes, norm_first, weights, wires, x, epsilon, moving):
  """Computes every layer in full size; weights that the network does not have are set to 0."""
  weights = present(sizes, weights, wires)
  kh, kw, widest, most = sizes.most()
  below, features, used = _widened(x, widest), [], []
  for i in range(len(wires.height)):
    kernel = weights.kernels[i * (i + 1) // 2 :][: i + 1].transpose(1, 2, 0, 3, 4).reshape(kh, kw, -1, most)
    own = weights.scale[i], weights.shift[i], None if moving is None else (moving[0][i], moving[1][i])
    _, y, *stats = _normed(norm_first, image_ops.conv(below, kernel), *own, epsilon)
    below = jnp.concatenate([below, _widened(y, widest)], -1)
    features.append(image_ops.pixel_means(y))
    used.append(stats)
  mean, variance = (jnp.stack(values) for values in zip(*used, strict=True))
  return jnp.stack(features), (mean, variance)


def _normed(norm_first, z, scale, shift, moving, epsilon):
  """Returns the input of batch norm, the output of the layer, mean and variance."""
  z = z if norm_first else jax.nn.relu(z)
  if moving is None:
    return z, *image_ops.batch_norm(z, scale, shift, epsilon, norm_first)
  return z, image_ops.normalize(z, scale, shift, *moving, epsilon, norm_first), *moving


class _Found(NamedTuple):
  """The results of the loop over layers. With N = B H W, an output of f channels is the first N f entries of its row.

  Branches take and return single rows, because XLA would copy whole tables.
  """

  outputs: Array  # [L + 1, N C] as [B, H, W, c]: the sources
  transposed: Array  # [L + 1, N C] the sources, as [c, H, W, B]
  normed: Array  # [L, N F] as [B, H, W, f]: the inputs of batch norm
  features: Array  # [L, B, F]
  mean: Array  # [L, F]
  variance: Array


class _Place(NamedTuple):
  """The sources that a layer reads and the size of the layer, as indices."""

  first: Array  # index of the pair of this layer and source 0
  sources: Array  # [L + 1] all sources, beginning with those that the layer reads
  reads: Array  # the number of sources that the layer reads
  kinds: Array  # [L + 1] for each source its index into Sizes.sources
  window: Array  # index into Sizes.windows
  filters: Array  # index into Sizes.filters


def _place(sizes, wires, i):
  height, width = (_index(a, b[i]) for a, b in ((sizes.heights, wires.height), (sizes.widths, wires.width)))
  kinds = jnp.concatenate([jnp.zeros(1, jnp.int32), 1 + jax.vmap(lambda f: _index(sizes.filters, f))(wires.filters)])
  order = jnp.argsort(~wires.reads[i], stable=True).astype(jnp.int32)
  window = height * len(sizes.widths) + width
  return _Place(i * (i + 1) // 2, order, wires.reads[i].sum(), kinds, window, _index(sizes.filters, wires.filters[i]))


def _forward(sizes, norm_first, weights, wires, x, epsilon, moving):
  _, _, widest, most = sizes.most()
  depth, shape, n = len(wires.height), x.shape[:3], math.prod(x.shape[:3])
  rows = jnp.zeros((depth + 1, n * widest), x.dtype)
  start = _Found(
    rows.at[0].set(_over(rows[0], x)),
    rows.at[0].set(_over(rows[0], _transposed(x))),
    jnp.zeros((depth, n * most), x.dtype),
    jnp.zeros((depth, len(x), most), weights.scale.dtype),
    *jnp.zeros((2, depth, most), weights.scale.dtype),
  )

  def layer(i, found):
    place = _place(sizes, wires, i)
    rows = found.outputs[i + 1], found.transposed[i + 1], found.normed[i]

    def at_width(filters, *rows):
      z = _convolved(sizes, weights.kernels, place, found.outputs, (*shape, filters))
      own = weights.scale[i, :filters], weights.shift[i, :filters]
      stats = None if moving is None else (moving[0][i, :filters], moving[1][i, :filters])
      z, y, *stats = _normed(norm_first, z, *own, stats, epsilon)
      rows = [_over(row, value) for row, value in zip(rows, (y, _transposed(y), z), strict=True)]
      return *rows, *(_widened(value, most) for value in (image_ops.pixel_means(y), *stats))

    o, t, z, *rest = jax.lax.switch(place.filters, [functools.partial(at_width, f) for f in sizes.filters], *rows)
    rest = [whole.at[i].set(own) for whole, own in zip(found[2:], (z, *rest), strict=True)]
    return _Found(found.outputs.at[i + 1].set(o), found.transposed.at[i + 1].set(t), *rest)

  found = jax.lax.fori_loop(0, depth, layer, start)
  return (found.features, (found.mean, found.variance)), found


def _convolved(sizes, kernels, place, outputs, shape):
  """Returns the sum of the convolutions of one layer, [B, H, W, f]."""

  def read(channels, j):
    y = _taken(outputs, j, (*shape[:3], channels))
    kernel = _row(kernels, place.first + j)[:, :, :channels, : shape[3]]
    branches = [lambda y, kernel, size=size: image_ops.conv(y, _inner(kernel, size)) for size in sizes.windows()]
    return jax.lax.switch(place.window, branches, y, kernel)

  def add(k, z):
    j = _row(place.sources, k)
    return z + jax.lax.switch(_row(place.kinds, j), [functools.partial(read, c) for c in sizes.sources()], j)

  return jax.lax.fori_loop(0, place.reads, add, jnp.zeros(shape, outputs.dtype))


def _evaluated(*arguments):
  return _forward(*arguments)[0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _looped(sizes, norm_first, weights, wires, x, epsilon, moving):
  return _forward(sizes, norm_first, weights, wires, x, epsilon, moving)[0]


def _looped_forward(sizes, norm_first, weights, wires, x, epsilon, moving):
  out, found = _forward(sizes, norm_first, weights, wires, x, epsilon, moving)
  return out, (weights, wires, x.shape[:3], epsilon, found)


def _looped_backward(sizes, norm_first, residuals, cotangents):
  weights, wires, shape, epsilon, found = residuals
  depth, most = len(wires.height), sizes.most()[3]
  d_features = cotangents[0] / (shape[1] * shape[2])

  def layer(k, state):
    i = depth - 1 - k
    place, (d_outputs, grads) = _place(sizes, wires, i), state

    def at_width(filters, *rows):
      size = *shape, filters
      dy = at_least_float32(_first(d_outputs[i + 1], size)) + d_features[i, :, None, None, :filters]
      z, y = _taken(found.normed, i, size), _taken(found.outputs, i + 1, size)
      scale, mean, variance = (value[i, :filters] for value in (weights.scale, found.mean, found.variance))
      inverse = jax.lax.rsqrt(variance + epsilon)
      dz, *own = image_ops.batch_norm_gradient(z, scale, mean, inverse, y if norm_first else None, dy)
      dz = dz if norm_first else jnp.where(z > 0, dz, 0.0)
      rows = _over(rows[0], dz), _over(rows[1], dz.transpose(1, 2, 0, 3))
      return *rows, *(_widened(value, most) for value in own)

    rows = found.normed[i], found.normed[i]  # their values do not matter
    branches = [functools.partial(at_width, f) for f in sizes.filters]
    *rows, d_scale, d_shift = jax.lax.switch(place.filters, branches, *rows)
    d_outputs, d_kernels = _pulled(
      sizes, place, found.transposed, weights.kernels, rows, shape, (d_outputs, grads.kernels)
    )
    return d_outputs, Weights(d_kernels, grads.scale.at[i].set(d_scale), grads.shift.at[i].set(d_shift))

  start = jnp.zeros_like(found.outputs), jax.tree.map(jnp.zeros_like, weights)
  _, grads = jax.lax.fori_loop(0, depth, layer, start)
  return grads, None, None, None, None


_looped.defvjp(_looped_forward, _looped_backward)


def _pulled(sizes, place, outputs, kernels, rows, shape, state):
  """Adds one layer's contribution to the gradients of its sources, and stores the gradients of its kernels.

  The gradients are computed as in `image_ops.conv` on a CPU, but each array is transposed only once, not for each pair.
  """
  kh, kw, widest, most = sizes.most()
  batch, height, width = shape

  def read(filters, kind, j, row):
    channels = sizes.sources()[kind]
    dz, dz_transposed = _first(rows[0], (*shape, filters)), _first(rows[1], (height, width, batch, filters))
    y = _taken(outputs, j, (channels, height, width, batch))
    kernel = _row(kernels, place.first + j)[:, :, :channels, :filters]

    def at_window(size, y, kernel, dz, dz_transposed):
      before, after = [(s - 1) // 2 for s in size], [s // 2 for s in size]
      begin = corner((kh, kw), size)
      padding = [(0, 0), *((b, m - b - s) for b, m, s in zip(begin, (kh, kw), size, strict=True)), (0, 0)]
      dk = jnp.pad(image_ops.convolved(y, dz_transposed, [*zip(before, after, strict=True)]), padding)
      if kind == 0:
        return dk, ()  # the image
      transposed = _inner(kernel, size)[::-1, ::-1].swapaxes(2, 3)
      return dk, image_ops.convolved(dz, transposed, [*zip(after, before, strict=True)])

    branches = [functools.partial(at_window, size) for size in sizes.windows()]
    dk, dx = jax.lax.switch(place.window, branches, y, kernel, dz, dz_transposed)
    dk = jnp.pad(dk.transpose(1, 2, 0, 3), [(0, 0), (0, 0), (0, widest - channels), (0, most - filters)])
    return dk, row if kind == 0 else _over(row, _first(row, dx.shape) + dx)

  branches = [functools.partial(read, f, kind) for f in sizes.filters for kind in range(len(sizes.sources()))]

  def add(k, state):
    d_outputs, d_kernels = state
    j = _row(place.sources, k)
    branch = place.filters * len(sizes.sources()) + _row(place.kinds, j)
    dk, row = jax.lax.switch(branch, branches, j, _row(d_outputs, j))
    return d_outputs.at[j].set(row), d_kernels.at[place.first + j].set(dk)

  return jax.lax.fori_loop(0, place.reads, add, state)


def _index(values, value):
  """Returns the index of a value that is among `values`."""
  return (jnp.asarray(values, jnp.int32) == value).argmax().astype(jnp.int32)


def _row(table, i):
  return jax.lax.dynamic_index_in_dim(table, i, keepdims=False, allow_negative_indices=False)


def _first(row, shape):
  return row[: math.prod(shape)].reshape(shape)


def _taken(table, i, shape):
  i = jnp.asarray(i, jnp.int32)
  size = (1, math.prod(shape))
  return jax.lax.dynamic_slice(table, (i, jnp.zeros_like(i)), size, allow_negative_indices=False).reshape(shape)


def _over(row, value):
  """Returns the row with its first entries replaced by those of `value`."""
  return jax.lax.dynamic_update_slice(row, value.reshape(-1), (0,))


def _inner(kernel, size):
  """Returns the central part of a kernel [kh, kw, ...] that has the size of its own window."""
  top, left = corner(kernel.shape[:2], size)
  return kernel[top : top + size[0], left : left + size[1]]


def _transposed(x):
  """Transposes [B, H, W, C] to [C, H, W, B]."""
  return x.transpose(3, 1, 2, 0)


def _widened(x, most):
  """Pads the channels with zeros."""
  return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, most - x.shape[-1])])
