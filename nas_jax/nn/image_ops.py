"""Convolutions, pools and batch norm that are fast on every platform, CPUs included.

Images are [B, H, W, C], kernels [kh, kw, C, F]. On a CPU, inside a loop, the gradients that JAX derives of
a convolution have layouts for which XLA has only a naive kernel. Here they are written as convolutions of the usual
layout, which are about ten times faster. Sums over all pixels are fastest on a CPU as products with rows of ones.
"""

from collections.abc import Sequence
import functools
from typing import Any

import jax
import jax.numpy as jnp

from nas_jax.nn.precision import at_least_float32
from nas_jax.types import Array, PyTree

LARGE = 2**20  # elements of an array that is larger than the caches of a CPU


def compiler_options(platform: str) -> dict[str, Any]:
  """Returns the options of XLA for programs that use these functions.

  They turn YNN off in the CPU backend: without AVX-512 its convolutions make a training step take four times as long.
  """
  return {'xla_cpu_experimental_ynn_fusion_type': ''} if platform == 'cpu' else {}


def conv(x: Array, kernel: Array, stride: tuple[int, int] = (1, 1)) -> Array:
  """A convolution [B, ceil(H / sh), ceil(W / sw), F] without bias, in the type of the images.

  Padding is (k - 1) // 2 before and k // 2 after for every stride. So the output for stride s consists of the entries
  0, s, 2 s, ... of the output for stride 1.
  """
  return _own_gradient(x, kernel.astype(x.dtype), stride)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _own_gradient(x: Array, kernel: Array, stride: tuple[int, int]) -> Array:
  """A convolution whose gradient `_conv_backward` writes out."""
  return _conv(x, kernel, stride)


def _conv(x: Array, kernel: Array, stride: tuple[int, int]) -> Array:
  return convolved(x, kernel, [((k - 1) // 2, k // 2) for k in kernel.shape[:2]], window_strides=stride)


def convolved(
  x: Array, kernel: Array, padding: Sequence[tuple[int, int]], window_strides: tuple[int, int] = (1, 1), **dilation: Any
) -> Array:
  """XLA's convolution in its usual layout. Its derivative is slow on a CPU: see `conv`."""
  return jax.lax.conv_general_dilated(
    x, kernel, window_strides, padding, dimension_numbers=('NHWC', 'HWIO', 'NHWC'), **dilation
  )


def _conv_forward(x, kernel, stride):
  return _conv(x, kernel, stride), (x, kernel)


def _conv_backward(stride, residuals, dy):
  def derived(x, kernel, dy):
    return jax.vjp(lambda x, kernel: _conv(x, kernel, stride), x, kernel)[1](dy)

  def canonical(x, kernel, dy):
    return _image_gradient(x.shape, kernel, stride, dy), _kernel_gradient(x, kernel.shape, stride, dy)

  return jax.lax.platform_dependent(*residuals, dy, cpu=canonical, default=derived)


_own_gradient.defvjp(_conv_forward, _conv_backward)


def _image_gradient(shape: tuple[int, ...], kernel: Array, stride: tuple[int, int], dy: Array) -> Array:
  """Convolves the gradient of the outputs, dilated by the stride, with the flipped and transposed kernel."""
  padding = []
  for n, k, s, m in zip(shape[1:3], kernel.shape[:2], stride, dy.shape[1:3], strict=True):
    before = (k - 1) // 2
    padding.append((k - 1 - before, n - (m - 1) * s - 1 + before))
  transposed_kernel = kernel[::-1, ::-1].swapaxes(2, 3)
  return convolved(dy, transposed_kernel, padding, lhs_dilation=stride)


def _kernel_gradient(x: Array, shape: tuple[int, ...], stride: tuple[int, int], dy: Array) -> Array:
  """Convolves the images with the gradient of the outputs, with the batch and channel axes swapped."""
  padding = []
  for n, k, s, m in zip(x.shape[1:3], shape[:2], stride, dy.shape[1:3], strict=True):
    before = (k - 1) // 2
    padding.append((before, k - 1 - n - before + (m - 1) * s + 1))
  images, gradients = x.transpose(3, 1, 2, 0), dy.transpose(1, 2, 0, 3)
  return convolved(images, gradients, padding, rhs_dilation=stride).transpose(1, 2, 0, 3)


def depthwise(x: Array, kernel: Array) -> Array:
  """A depthwise convolution of [B, H, W, C] with [kh, kw, C], both sides odd, at stride 1 with zero padding.

  It is computed as a sum of shifted images, which every platform fuses. A grouped convolution, which XLA:CPU computes
  channel by channel, would take about eighty times as long, gradient included.
  """
  return _depthwise(x, kernel.astype(x.dtype))


@jax.custom_vjp
def _depthwise(x: Array, kernel: Array) -> Array:
  kh, kw, _ = kernel.shape
  images = _shifted(x, kh, kw, 0.0)
  return functools.reduce(jnp.add, [image * _row(kernel[k // kw, k % kw]) for k, image in enumerate(images)])


def _depthwise_forward(x, kernel):
  return _depthwise(x, kernel), (x, kernel)


def _depthwise_backward(residuals, dy):
  x, kernel = residuals
  kh, kw, _ = kernel.shape
  wide = _framed(x, kh, kw, 0.0)

  def gradient(k):  # in a loop, which compiles faster and runs as fast, as each k takes its own pass over the images
    return _sum(at_least_float32(jax.lax.dynamic_slice(wide, (0, k // kw, k % kw, 0), x.shape) * dy))

  gradients = jax.lax.map(gradient, jnp.arange(kh * kw)).reshape(kernel.shape).astype(kernel.dtype)
  return _depthwise(dy, kernel[::-1, ::-1]), gradients


_depthwise.defvjp(_depthwise_forward, _depthwise_backward)


def _framed(x: Array, kh: int, kw: int, value: float) -> Array:
  """Pads images by as much as a window of odd sides reaches beyond the edge."""
  return jnp.pad(x, [(0, 0), (kh // 2, kh // 2), (kw // 2, kw // 2), (0, 0)], constant_values=value)


def _shifted(x: Array, kh: int, kw: int, around: float) -> list[Array]:
  """Returns the images shifted to each position of a window in turn, padded with `around`."""
  wide, (height, width) = _framed(x, kh, kw, around), x.shape[1:3]
  return [wide[:, i : i + height, j : j + width] for i in range(kh) for j in range(kw)]


def pool_around(x: Array, size: int, largest: bool) -> Array:
  """Max pooling or average pooling over a window of odd `size` around each pixel, at stride 1: [B, H, W, C].

  Windows are cut off at the edge. The pool is computed from shifted images, rows and then columns, because the gradient
  of XLA:CPU's max pooling takes ten times as long. If several values are largest, the last one gets the gradient.
  """

  # The gradient of jnp.maximum tests which operand equals the result. Rounding in a recomputed operand breaks the test.
  def larger(a: Array, b: Array) -> Array:
    return jnp.where(a > b, a, b)

  def over(x, window):
    images = _shifted(x, *window, -jnp.inf if largest else 0.0)
    return functools.reduce(larger if largest else jnp.add, images)

  def both(x):
    return over(over(x, (size, 1)), (1, size))

  return both(x) if largest else both(x) / both(jnp.ones((1, *x.shape[1:3], 1), x.dtype))


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def batch_norm(
  x: Array, scale: Array, bias: Array, epsilon: float | Array = 1e-5, relu: bool = False
) -> tuple[Array, Array, Array]:
  """Batch norm in training mode (Ioffe & Szegedy 2015) over batch and pixels, optionally followed by a ReLU.

  Args:
    x: [B, H, W, C]. If it is bfloat16, the statistics are computed in float32 and the result is bfloat16.
    scale: [C] gamma.
    bias: [C] beta.
    epsilon: added to the variance; it gets no gradient.
    relu: whether a ReLU follows.

  Returns:
    The result, and the mean and the (biased) variance [C] of each channel, through which no gradient flows.
  """
  y, mean, variance, *_ = _normalized(x, scale, bias, epsilon, relu)
  return y, mean, variance


def normalize(
  x: Array, scale: Array, bias: Array, mean: Array, variance: Array, epsilon: float | Array = 1e-5, relu: bool = False
) -> Array:
  """Batch norm in evaluation mode, with given mean and variance, optionally followed by a ReLU."""
  y = (at_least_float32(x) - _row(mean)) * _row(scale * jax.lax.rsqrt(variance + epsilon)) + _row(bias)
  return (jax.nn.relu(y) if relu else y).astype(x.dtype)


def _normalized(given, scale, bias, epsilon, relu):
  x, count = at_least_float32(given), given.size // given.shape[-1]
  mean = _sum(x) / count
  centred = x - _row(mean)
  variance = _sum(centred * centred) / count
  inverse = jax.lax.rsqrt(variance + epsilon)
  y = centred * _row(inverse * scale) + _row(bias)
  return (jax.nn.relu(y) if relu else y).astype(given.dtype), mean, variance, inverse


def _norm_forward(x, scale, bias, epsilon, relu):
  y, mean, variance, inverse = _normalized(x, scale, bias, epsilon, relu)
  return (y, mean, variance), (x, scale, mean, inverse, y if relu else None)


def _norm_backward(relu, residuals, cotangents):
  del relu
  return *batch_norm_gradient(*residuals, cotangents[0]), None


def batch_norm_gradient(
  x: Array, scale: Array, mean: Array, inverse: Array, y: Array | None, dy: Array
) -> tuple[Array, Array, Array]:
  """Returns the gradients of x, scale and bias; `inverse` is 1 / sqrt(variance + epsilon), `y` the result of a ReLU."""
  count, dy = x.size // x.shape[-1], at_least_float32(dy)
  if y is not None:
    dy = jnp.where(y > 0, dy, 0.0)
  whitened = (at_least_float32(x) - _row(mean)) * _row(inverse)
  dbias, dscale = _sum(dy), _sum(dy * whitened)
  dx = _row(scale * inverse) * (dy - _row(dbias / count) - whitened * _row(dscale / count))
  return dx.astype(x.dtype), dscale, dbias


def pixel_means(x: Array) -> Array:
  """Returns the means [B, C] of images over their pixels, in float32 for bfloat16 images."""
  return at_least_float32(x).mean((1, 2))


batch_norm.defvjp(_norm_forward, _norm_backward)


def square_sum(tree: PyTree) -> Array:
  """The sum of the squares of all entries of all arrays."""
  leaves = jax.tree.leaves(tree)
  return sum((_squares(x) if x.ndim > 3 and x.size >= LARGE else (x**2).sum() for x in leaves), jnp.zeros(()))


@jax.custom_jvp
def _squares(x: Array) -> Array:
  """The sum of the squares of a large stack of arrays.

  On a CPU the arrays are summed one by one, because without YNN XLA would first write all squares to memory, which
  takes ten times as long.
  """

  def one_by_one(x: Array) -> Array:
    return jax.lax.map(lambda x: _sum(x**2), x).sum()

  return jax.lax.platform_dependent(x, cpu=one_by_one, default=lambda x: (x**2).sum())


@_squares.defjvp
def _squares_jvp(primals, tangents):
  (x,), (dx,) = primals, tangents
  return _squares(x), 2 * (x * dx).sum()


def _row(x: Array) -> Array:
  """Reshapes [C] to broadcast with [B, H, W, C]."""
  return x[None, None, None]


def _sum(x: Array) -> Array:
  """Sums [B, H, W, C] to [C].

  On a CPU this is a product with two rows of ones, because XLA calls a library for two rows but generates code for one.
  The library is as fast, and compiling a network takes a seventh less time.
  """
  flat = x.reshape(-1, x.shape[-1])
  return jax.lax.platform_dependent(
    flat, cpu=lambda flat: (jnp.ones((2, len(flat)), flat.dtype) @ flat)[0], default=lambda flat: flat.sum(0)
  )
