"""Derivatives of the cell-tree compiler: the hoisted backward loop against JAX's own and against finite differences."""

import jax
import jax.numpy as jnp
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from jax.test_util import check_grads
import numpy as np
import pytest

from nas_jax import space, tree_cell
from nas_jax.operations import ADD, MAX, MULT, RELU, SIGMOID, SIN, TANH
from nas_jax.tree_cell import TreeArch

T, B, IN, H = 4, 3, 3, 2

# c_t lies above the injected node, so that the gradient runs through both parts of the carry.
ROUGH = TreeArch(combine=(ADD, MULT, MAX), activate=(RELU, SIN, SIGMOID), inject=(MULT, TANH), index=(2, 0))
SMOOTH = TreeArch(combine=(ADD, MULT, ADD), activate=(TANH, SIGMOID, TANH), inject=(ADD, TANH), index=(2, 0))


def traced(arch):
  return jax.tree.map(lambda ids: ids[0], space.stack([arch]))


FORMS = pytest.mark.parametrize('form', [lambda arch: arch, traced], ids=['static', 'traced'])


def example(arch, mask_shape=(B, H)):
  """Everything that has a gradient: params with a bias, carry, xs and h_mask."""
  rng = np.random.default_rng(0)
  width = (len(arch.combine) + 1) // 2 * H

  def normal(*shape):
    return jnp.asarray(rng.normal(size=shape))

  params = {'kernel': normal(IN, width), 'recurrent_kernel': normal(H, width), 'bias': normal(width)}
  return params, (normal(B, H), normal(B, H)), normal(T, B, IN), None if mask_shape is None else normal(*mask_shape)


def loss(arch, inputs, **options):
  """A number in which each entry of the final c and h and of every output counts with a weight of its own."""
  params, carry, xs, mask = inputs
  results = jax.tree.leaves(tree_cell.unroll(params, arch, carry, xs, h_mask=mask, **options))
  return dot(results, [jnp.cos(1.0 + jnp.arange(value.size)).reshape(value.shape) for value in results])


def dot(a, b):
  return sum(map(jnp.vdot, jax.tree.leaves(a), jax.tree.leaves(b)))


def assert_close(got, want):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-11), got, want)


@FORMS
@pytest.mark.parametrize('mask_shape, length', [(None, None), ((H,), None), ((B, H), (2, 0, T))])
def test_hoisting_changes_no_gradient(x64, form, mask_shape, length):
  arch, inputs = form(ROUGH), example(ROUGH, mask_shape)
  length = None if length is None else jnp.array(length)

  def gradient(inputs, hoist):
    return jax.grad(lambda inputs: loss(arch, inputs, length=length, hoist=hoist))(inputs)

  hoisted, plain = jax.jit(lambda inputs: (gradient(inputs, True), gradient(inputs, False)))(inputs)
  assert jax.tree.map(jnp.shape, hoisted) == jax.tree.map(jnp.shape, inputs)
  assert_close(hoisted, plain)


@FORMS
def test_gradients_are_finite_differences(x64, form):
  arch, length = form(SMOOTH), jnp.array([2, 0, T])
  check_grads(jax.jit(lambda inputs: loss(arch, inputs, length=length)), (example(SMOOTH),), order=1, modes=('rev',))


@FORMS
def test_forward_mode_wants_hoist_false(x64, form):
  arch, inputs = form(ROUGH), example(ROUGH)
  directions = jax.tree.map(jnp.cos, inputs)

  @jax.jit
  def both_ways(inputs):
    _, slope = jax.jvp(lambda inputs: loss(arch, inputs, hoist=False), (inputs,), (directions,))
    return slope, dot(jax.grad(loss, argnums=1)(arch, inputs), directions)

  assert_close(*both_ways(inputs))
  with pytest.raises(TypeError, match='custom_vjp'):
    jax.jvp(lambda inputs: loss(arch, inputs), (inputs,), (directions,))


@pytest.mark.parametrize('hoist', [True, False])
def test_no_gradient_from_a_row_past_its_length(x64, hoist):
  params, carry, xs, _ = example(SMOOTH)
  length = jnp.array([2, 0, T])

  def final(carry, xs):
    return tree_cell.unroll(params, SMOOTH, carry, xs, length=length, hoist=hoist)[0]

  _, vjp = jax.vjp(final, carry, xs)
  cotangents = jax.tree.map(jnp.cos, carry)
  dcarry, dxs = vjp(cotangents)
  reached = (dxs != 0).any(-1)
  np.testing.assert_array_equal(reached, np.arange(T)[:, None] < np.array([[2, 0, T]]))
  # The row that takes no step hands its cotangent on.
  assert_close(jax.tree.map(lambda d: d[1], dcarry), jax.tree.map(lambda d: d[1], cotangents))


def test_gradient_under_vmap_and_inside_shard_map(x64):
  archs = space.stack([ROUGH._replace(index=pair) for pair in ((2, 0), (2, 1), (0, 2), (1, 1))])
  params, *data = example(ROUGH)
  data = jax.tree.map(lambda value: jnp.stack([value, -value, 2 * value, -2 * value]), data)

  def gradient(arch, params, data):
    return jax.grad(lambda params, data: loss(arch, (params, *data)), argnums=(0, 1))(params, data)

  def child(archs, params, data):
    arch, data = jax.tree.map(lambda value: value[0], (archs, data))
    dparams, ddata = gradient(arch, params, data)
    return dparams, jax.tree.map(lambda value: value[None], ddata)

  mesh = jax.make_mesh((4,), ('child',), axis_types=(AxisType.Auto,))
  sharded = jax.shard_map(child, mesh=mesh, in_specs=(P('child'), P(), P('child')), out_specs=(P(), P('child')))
  want, want_data = jax.jit(jax.vmap(gradient, in_axes=(0, None, 0)))(archs, params, data)
  # What the devices share has one gradient: the sum over them.
  assert_close(jax.jit(sharded)(archs, params, data), (jax.tree.map(lambda value: value.sum(0), want), want_data))
