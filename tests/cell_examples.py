"""A small tree cell with random parameters, for the tests of its options and of its loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nas_jax import space, tree_cell
from nas_jax.operations import ADD, IDENTITY, MULT, RELU, SIGMOID, TANH
from nas_jax.tree_cell import TreeArch

T, B, IN, H, WIDTH = 3, 4, 3, 4, 2  # WIDTH is that of a projected h
ARCH = TreeArch(combine=(ADD, MULT, ADD), activate=(TANH, RELU, IDENTITY), inject=(MULT, TANH), index=(2, 0))
SMOOTH = ARCH._replace(activate=(TANH, SIGMOID, TANH))
ALL = {'bias': True, 'projection': WIDTH, 'layer_norm': True}


def traced(arch):
  return jax.tree.map(lambda ids: ids[0], space.stack([arch]))


FORMS = pytest.mark.parametrize('form', [lambda arch: arch, traced], ids=['static', 'traced'])
WAYS = pytest.mark.parametrize(
  'form, hoist',
  [(lambda arch: arch, True), (traced, True), (lambda arch: arch, False)],
  ids=['static', 'traced', 'static without hoist'],
)


def normal(seed, *shape):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def example(width=H, **options):
  """Returns random params, carry and xs [T, B, IN]."""
  shapes = tree_cell.init(jax.random.key(0), ARCH, IN, H, **options)
  params = {name: normal(place, *value.shape) for place, (name, value) in enumerate(shapes.items())}
  return params, (normal(7, B, H), normal(8, B, width)), normal(9, T, B, IN)


def assert_close(got, want, tolerance=1e-11):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), got, want)


def loss(params, arch, carry, xs, **options):
  """Returns a scalar in which every entry of the outputs and of the final carry has a different weight."""
  leaves = jax.tree.leaves(tree_cell.unroll(params, arch, carry, xs, **options))
  return sum((leaf * jnp.cos(1.0 + jnp.arange(leaf.size)).reshape(leaf.shape)).sum() for leaf in leaves)
