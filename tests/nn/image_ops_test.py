"""Convolution and batch norm against the references of JAX and Flax."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nas_jax.nn import image_ops

RNG = np.random.default_rng(0)
SHAPES = [  # (height, width), (kh, kw), stride
  ((5, 6), (3, 3), (1, 1)),
  ((5, 6), (1, 7), (1, 1)),
  ((4, 5), (7, 5), (2, 1)),
  ((7, 6), (3, 5), (3, 2)),
  ((5, 5), (1, 1), (2, 2)),
  ((2, 2), (7, 7), (3, 3)),
  ((6, 5), (4, 2), (2, 3)),
]


def reference(x, kernel, stride):
  """The output of stride 1 in explicitly padded images, at every s-th place."""
  pads = [(0, 0), *(((k - 1) // 2, k // 2) for k in kernel.shape[:2]), (0, 0)]
  wide = jnp.pad(x, pads)
  y = jax.lax.conv_general_dilated(wide, kernel, (1, 1), 'VALID', dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
  return y[:, :: stride[0], :: stride[1]]


@pytest.mark.parametrize('size, window, stride', SHAPES)
def test_conv_and_its_gradients(x64, size, window, stride):
  x, kernel = jnp.asarray(RNG.normal(size=(2, *size, 3))), jnp.asarray(RNG.normal(size=(*window, 3, 4)))
  want, pull = jax.vjp(lambda x, k: reference(x, k, stride), x, kernel)
  found, own_pull = jax.vjp(lambda x, k: image_ops.conv(x, k, stride), x, kernel)
  assert found.shape == (2, -(-size[0] // stride[0]), -(-size[1] // stride[1]), 4)
  np.testing.assert_allclose(found, want, rtol=1e-11, atol=1e-12)
  dy = jnp.asarray(RNG.normal(size=want.shape))
  for one, other in zip(own_pull(dy), pull(dy), strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-11, atol=1e-12)


def test_the_canonical_gradients_are_the_derived_ones(x64):
  """On whichever platform this runs, the other's formulas too."""
  x, kernel = jnp.asarray(RNG.normal(size=(2, 7, 6, 3))), jnp.asarray(RNG.normal(size=(3, 5, 3, 4)))
  dy = jnp.asarray(RNG.normal(size=image_ops.conv(x, kernel, (3, 2)).shape))
  derived = jax.vjp(lambda x, k: image_ops._conv(x, k, (3, 2)), x, kernel)[1](dy)
  np.testing.assert_allclose(image_ops._image_gradient(x.shape, kernel, (3, 2), dy), derived[0], rtol=1e-11)
  np.testing.assert_allclose(image_ops._kernel_gradient(x, kernel.shape, (3, 2), dy), derived[1], rtol=1e-11)


@pytest.mark.parametrize('relu', [False, True])
def test_batch_norm_is_flax_batch_norm(x64, relu):
  x = jnp.asarray(RNG.normal(size=(3, 4, 5, 2)) * 3 + 1)
  scale, bias, dy = (jnp.asarray(RNG.normal(size=shape)) for shape in (2, 2, x.shape))
  exact = {'dtype': float, 'param_dtype': float, 'force_float32_reductions': False}
  layer = nn.BatchNorm(use_running_average=False, momentum=0.0, epsilon=1e-3, **exact)

  def flax(x, scale, bias):
    start = {'mean': jnp.zeros(2), 'var': jnp.ones(2)}
    variables = {'params': {'scale': scale, 'bias': bias}, 'batch_stats': start}
    with jax.numpy_rank_promotion('allow'):
      y, changed = layer.apply(variables, x, mutable=['batch_stats'])
    return jax.nn.relu(y) if relu else y, changed['batch_stats']

  want, pull, stats = jax.vjp(flax, x, scale, bias, has_aux=True)
  found, own_pull, own_stats = jax.vjp(
    lambda *args: (lambda y, *moments: (y, moments))(*image_ops.batch_norm(*args, 1e-3, relu)),
    x,
    scale,
    bias,
    has_aux=True,
  )
  np.testing.assert_allclose(found, want, rtol=1e-10, atol=1e-12)
  np.testing.assert_allclose(own_stats, (stats['mean'], stats['var']), rtol=1e-10)
  for one, other in zip(own_pull(dy), pull(dy), strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-11)
  np.testing.assert_allclose(image_ops.normalize(x, scale, bias, *own_stats, 1e-3, relu), want, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize('size, window', [((5, 6), (3, 3)), ((2, 1), (5, 3))])
def test_depthwise_is_a_grouped_convolution(x64, size, window):
  x, kernel = jnp.asarray(RNG.normal(size=(2, *size, 3))), jnp.asarray(RNG.normal(size=(*window, 3)))

  def grouped(x, kernel):
    numbers = ('NHWC', 'HWIO', 'NHWC')
    return jax.lax.conv_general_dilated(
      x, kernel[:, :, None], (1, 1), 'SAME', dimension_numbers=numbers, feature_group_count=3
    )

  want, pull = jax.vjp(grouped, x, kernel)
  found, own_pull = jax.vjp(image_ops.depthwise, x, kernel)
  np.testing.assert_allclose(found, want, rtol=1e-11, atol=1e-12)
  dy = jnp.asarray(RNG.normal(size=want.shape))
  for one, other in zip(own_pull(dy), pull(dy), strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize('largest', [False, True])
@pytest.mark.parametrize('size', [3, 5])
def test_pools_around_each_pixel(x64, size, largest):
  x = jnp.asarray(RNG.normal(size=(2, 4, 3, 2)))

  def windows(x, start, function):
    return jax.lax.reduce_window(x, start, function, (1, size, size, 1), (1, 1, 1, 1), 'SAME')

  def reference(x):
    if largest:
      return windows(x, -jnp.inf, jax.lax.max)
    return windows(x, 0.0, jax.lax.add) / windows(jnp.ones_like(x), 0.0, jax.lax.add)

  want, pull = jax.vjp(reference, x)
  found, own_pull = jax.vjp(lambda x: image_ops.pool_around(x, size, largest), x)
  np.testing.assert_allclose(found, want, rtol=1e-12)
  dy = jnp.asarray(RNG.normal(size=x.shape))
  np.testing.assert_allclose(own_pull(dy)[0], pull(dy)[0], rtol=1e-11, atol=1e-12)


def test_of_equal_largest_values_one_has_the_gradient(x64):
  x = jnp.zeros((1, 3, 3, 1))
  _, pull = jax.vjp(lambda x: image_ops.pool_around(x, 3, True), x)
  (gradient,) = pull(jnp.ones_like(x))
  assert gradient.sum() == 9.0 and gradient[0, 2, 2, 0] == 4.0  # the four windows that reach the last corner


def test_under_vmap_and_scan():
  x = jnp.asarray(RNG.normal(size=(3, 2, 4, 4, 3)), jnp.float32)
  kernel = jnp.asarray(RNG.normal(size=(3, 3, 3, 3, 2)), jnp.float32)

  def loss(kernel, x):
    y, *_ = image_ops.batch_norm(image_ops.conv(x, kernel, (1, 1)), jnp.ones(2), jnp.zeros(2), 1e-5, True)
    return (y * jnp.arange(y.size).reshape(y.shape)).sum()

  one_by_one = jnp.stack([jax.grad(loss)(k, images) for k, images in zip(kernel, x, strict=True)])
  np.testing.assert_allclose(jax.vmap(jax.grad(loss))(kernel, x), one_by_one, rtol=1e-3, atol=1e-3)
  _, scanned = jax.lax.scan(lambda c, i: (c, jax.grad(loss)(*i)), None, (kernel, x))
  np.testing.assert_allclose(scanned, one_by_one, rtol=1e-3, atol=1e-3)


def test_square_sum_of_large_stacks_and_small_arrays(x64, monkeypatch):
  monkeypatch.setattr(image_ops, 'LARGE', 100)
  tree = {'stack': RNG.normal(size=(3, 4, 5, 6)), 'matrix': RNG.normal(size=(20, 30)), 'number': np.asarray(2.0)}
  towards = jax.tree.map(lambda x: RNG.normal(size=x.shape), tree)
  assert '_squares' in str(jax.make_jaxpr(image_ops.square_sum)(tree))  # what is large is there

  def plain(tree):
    return sum((leaf**2).sum() for leaf in jax.tree.leaves(tree))

  for wanted, found in zip(*(jax.jvp(f, (tree,), (towards,)) for f in (plain, image_ops.square_sum)), strict=True):
    np.testing.assert_allclose(found, wanted, rtol=1e-12)
  grads = jax.grad(image_ops.square_sum)(tree)
  jax.tree.map(lambda g, x: np.testing.assert_allclose(g, 2 * x, rtol=1e-12), grads, tree)
  assert image_ops.square_sum([]) == 0.0
