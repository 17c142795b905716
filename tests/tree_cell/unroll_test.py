"""`unroll` in all its uses: any batch axes, Explicit meshes, bfloat16, and forward mode."""

import re

from cell_examples import ALL, ARCH, FORMS, IN, SMOOTH, WAYS, WIDTH, H, T, assert_close, example, loss, normal, traced
import jax
import jax.numpy as jnp
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
import pytest
from testing import one_line

from nas_jax import tree_cell

F32 = jnp.float32


@WAYS
def test_unroll_takes_any_batch_axes(x64, form, hoist):
  """Values and gradients of a batch of two by three, against one of six and against one row alone."""
  params, arch = example(bias=True)[0], form(ARCH)
  carry, xs = (normal(1, 2, 3, H), normal(2, 2, 3, H)), normal(3, T, 2, 3, IN)
  length = jnp.array([[1, 2, 3], [3, 0, 1]])

  @jax.jit
  def run(params, carry, xs, length):
    """Results, and the gradients of the sum of their sines."""

    def value(*inputs):
      results = tree_cell.unroll(inputs[0], arch, *inputs[1:], length=length, hoist=hoist)
      return sum(jnp.sin(leaf).sum() for leaf in jax.tree.leaves(results)), results

    return jax.grad(value, (0, 1, 2), has_aux=True)(params, carry, xs)

  def rows(values, take):
    """Takes rows of (gradients by params, carry and xs; results): the time axis stands before them."""
    (dparams, dcarry, dxs), (final, ys) = values
    (dcarry, final), (dxs, ys) = jax.tree.map(take, (dcarry, final)), jax.tree.map(jax.vmap(take), (dxs, ys))
    return (dparams, dcarry, dxs), (final, ys)

  def flat(value):
    return value.reshape(6, *value.shape[2:])

  found = run(params, carry, xs, length)
  six = run(params, jax.tree.map(flat, carry), jax.vmap(flat)(xs), flat(length))
  assert_close(rows(found, flat), six)
  (_, *one), results = run(params, jax.tree.map(lambda value: value[0, 1], carry), xs[:, 0, 1], length[0, 1])
  (_, *want), want_results = rows(found, lambda value: value[0, 1])
  assert_close((one, results), (want, want_results))


@WAYS
def test_steps_together_change_no_result(x64, form, hoist):
  """Two steps in one iteration of the loop; the three time steps are no multiple of that."""
  (params, carry, xs), arch = example(**ALL | {'width': ALL['projection']}), form(ARCH)

  def run(together):
    def value(*inputs):
      return loss(inputs[0], arch, *inputs[1:], length=jnp.array([3, 1, 0, 2]), hoist=hoist, together=together)

    return jax.value_and_grad(value, (0, 1, 2))

  def iterations(together):
    """The `unroll` of each loop over time."""
    return set(re.findall(r' unroll=(\d+)', str(jax.make_jaxpr(run(together))(params, carry, xs))))

  want = jax.jit(run(1))(params, carry, xs)
  assert iterations(1) == {'1'} and '2' in iterations(2)
  assert_close(jax.jit(run(2))(params, carry, xs), want)


@FORMS
@pytest.mark.parametrize('options', [{}, ALL], ids=['plain', 'all'])
def test_gradient_on_an_explicit_mesh(form, options):
  width = options.get('projection', H)
  inputs = jax.tree.map(lambda value: value.astype(F32), example(width, **options))
  arch, mesh = form(ARCH), jax.make_mesh((4,), ('data',), axis_types=(AxisType.Explicit,))
  gradient = jax.jit(jax.value_and_grad(lambda params, carry, xs: loss(params, arch, carry, xs), (0, 1, 2)))
  want = gradient(*inputs)
  with jax.set_mesh(mesh):
    value, (dparams, dcarry, dxs) = gradient(*jax.device_put(inputs, (P(), P('data'), P(None, 'data'))))
  assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(dparams))
  assert dxs.sharding.spec[1] == 'data' and dcarry[0].sharding.spec[0] == 'data'
  assert_close((value, (dparams, dcarry, dxs)), want, 2e-5)


@pytest.mark.parametrize(
  'form, hoist, options',
  [(lambda arch: arch, True, ALL), (traced, True, {}), (lambda arch: arch, False, ALL)],
  ids=['static', 'traced', 'static without hoist'],
)
def test_bfloat16_through_and_through(form, hoist, options):
  arch, inputs = form(SMOOTH), jax.tree.map(lambda value: value / 2, example(options.get('projection', H), **options))
  half, single = (jax.tree.map(lambda value, t=t: value.astype(t), inputs) for t in (jnp.bfloat16, F32))

  def results(inputs, dtype=None):
    """Results and gradients."""

    def value(params, carry, xs):
      found = tree_cell.unroll(params, arch, carry, xs, hoist=hoist, dtype=dtype)
      return found[1].astype(F32).sum(), found

    return jax.grad(value, (0, 1, 2), has_aux=True)(*inputs)

  whole, mixed, want = jax.jit(lambda: (results(half), results(single, jnp.bfloat16), results(single)))()
  assert {leaf.dtype for leaf in jax.tree.leaves(whole)} == {jnp.dtype(jnp.bfloat16)}
  # Products in bfloat16, weights and carry in float32: so are all results, and near those of float32 alone.
  assert {leaf.dtype for leaf in jax.tree.leaves(mixed)} == {jnp.dtype(F32)}
  for got in (whole, mixed):
    gradient, found = jax.tree.map(lambda a, b: jnp.linalg.norm(a.astype(F32) - b) / jnp.linalg.norm(b), got, want)
    assert 1e-4 < max(jax.tree.leaves(found)) < 0.03, found
    assert max(jax.tree.leaves(gradient)) < 0.25, gradient  # layer norm of four numbers may enlarge an error tenfold


def test_forward_mode_names_hoist_false(x64):
  params, carry, xs = example()

  def run(params, hoist=True):
    return tree_cell.unroll(params, ARCH, carry, xs, hoist=hoist)[1]

  tangents = jax.tree.map(jnp.ones_like, params)
  for derivative in (
    lambda: jax.jvp(run, (params,), (tangents,)),
    lambda: jax.jit(lambda p: jax.jvp(run, (p,), (tangents,)))(params),
    lambda: jax.jvp(jax.jit(run), (params,), (tangents,)),
    lambda: jax.jacfwd(run)(params),
    lambda: jax.linearize(run, params)[1](tangents),
  ):
    with pytest.raises(TypeError, match=r'unroll has .*custom_vjp.*pass hoist=False') as error:
      derivative()
    one_line(error)
  jax.jvp(lambda p: run(p, hoist=False), (params,), (tangents,))


@WAYS
def test_strict_promotion(form, hoist):
  """Types are mixed only where `dtype` asks for it."""
  params, carry, xs = jax.tree.map(lambda value: value.astype(jnp.float32), example(WIDTH, **ALL))
  mask, length = jnp.ones(WIDTH), jnp.array([0, 1, 2, T])

  def value(params):
    (c, _), ys = tree_cell.unroll(params, form(ARCH), carry, xs, h_mask=mask, length=length, hoist=hoist)
    return ys.sum() + c.sum()

  with jax.numpy_dtype_promotion('strict'):
    found = jax.jit(jax.grad(value))(params)
  assert_close(found, jax.jit(jax.grad(value))(params), 1e-6)
