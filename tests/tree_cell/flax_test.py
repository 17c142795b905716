"""Tree cells can do what Flax's own cells can: one test per feature, for the LSTMs of linen and NNX and for ours."""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

from flax import nnx
import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from nas_jax import tree_cell
from nas_jax.operations import ADD, MULT, RELU, SIGMOID, TANH
from nas_jax.tree_cell import TreeArch

T, B, IN, H = 3, 4, 3, 2
BF16, F32 = jnp.bfloat16, jnp.float32
# c_t stands beside the injected node, not above it: its type does not follow from that of c_(t-1).
ARCH = TreeArch(combine=(ADD, MULT, ADD), activate=(TANH, RELU, SIGMOID), inject=(ADD, TANH), index=(1, 0))


class Cell(NamedTuple):
  """A cell of either kind, as functions."""

  weights: Any
  step: Callable  # (weights, carry, x) -> carry, y
  # (weights, xs, carry=None, unroll=1, seq_lengths=None) -> carry, ys; sequences [..., T, in] in the RNN of its library
  run: Callable
  fresh: Callable  # (batch, carry_init=None) -> carry


def linen(make, **options):
  cell = make(**options)
  key = jax.random.key(0)
  weights = cell.init(key, cell.initialize_carry(key, (IN,)), jnp.zeros(IN, F32))

  def run(weights, xs, carry=None, unroll=1, **given):
    rnn = nn.RNN(cell, return_carry=True, unroll=unroll)
    return rnn.apply({'params': {'cell': weights['params']}}, xs, initial_carry=carry, **given)

  def fresh(batch, carry_init=None):
    given = {} if carry_init is None else {'carry_init': carry_init}
    return make(**options, **given).initialize_carry(key, (*batch, IN))

  return Cell(weights, cell.apply, run, fresh)


def in_nnx(make, **options):
  cell = make(**options, rngs=nnx.Rngs(0))
  graph, weights = nnx.split(cell)

  def step(weights, carry, x):
    return nnx.merge(graph, weights)(carry, x)

  def run(weights, xs, carry=None, unroll=1, **given):
    rnn = nnx.RNN(nnx.merge(graph, weights), return_carry=True, unroll=unroll)
    return rnn(xs, initial_carry=carry, **given)

  def fresh(batch, carry_init=None):
    return cell.initialize_carry((*batch, IN), nnx.Rngs(1), carry_init)

  return Cell(weights, step, run, fresh)


MAKE = {
  'linen LSTM': functools.partial(linen, functools.partial(nn.OptimizedLSTMCell, H)),
  'linen TreeCell': functools.partial(linen, functools.partial(tree_cell.TreeCell, H, ARCH, True)),
  'NNX LSTM': functools.partial(in_nnx, functools.partial(nnx.OptimizedLSTMCell, IN, H)),
  'NNXTreeCell': functools.partial(in_nnx, functools.partial(tree_cell.NNXTreeCell, IN, H, ARCH, bias=True)),
}
ALL = pytest.mark.parametrize('make', MAKE.values(), ids=MAKE)


def role(path):
  """Which of kernel, recurrent_kernel and bias a weight is, in any of the cells."""
  names = [str(getattr(part, 'key', getattr(part, 'name', ''))) for part in path]
  if 'bias' in names or 'recurrent_kernel' in names:
    return next(name for name in names if name in ('bias', 'recurrent_kernel'))
  return 'recurrent_kernel' if any(name in ('hi', 'hf', 'hg', 'ho', 'dense_h') for name in names) else 'kernel'


def by_role(weights, take):
  """The set of what `take` makes of the weights of each role."""
  found: dict[str, set] = {'kernel': set(), 'recurrent_kernel': set(), 'bias': set()}
  for path, leaf in jax.tree_util.tree_leaves_with_path(weights):
    found[role(path)].add(take(leaf))
  return found


def normal(seed, *shape):
  return jax.random.normal(jax.random.key(seed), shape, F32)


def dtypes(values):
  return {leaf.dtype for leaf in jax.tree.leaves(values)}


def steps(function, *arguments):
  """Returns the equations of a program, its loops included."""

  def walk(jaxpr):
    for step in jaxpr.eqns:
      yield step
      for value in jax.tree.leaves(list(step.params.values())):
        inner = getattr(value, 'jaxpr', value)
        if hasattr(inner, 'eqns'):
          yield from walk(inner)

  return list(walk(jax.make_jaxpr(function)(*arguments).jaxpr))


def products(function, *arguments):
  """The types that matrix products have as inputs in a program."""
  found = [step for step in steps(function, *arguments) if step.primitive.name == 'dot_general']
  return {variable.aval.dtype for step in found for variable in step.invars}


def assert_close(got, want, tolerance=1e-5):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), got, want)


# -- what Flax's cells have -------------------------------------------------------------------------------------------


@ALL
@pytest.mark.parametrize(
  'dtype, param_dtype, inputs, in_products, result',
  [
    (None, F32, F32, F32, F32),
    (BF16, F32, F32, BF16, F32),
    (BF16, BF16, F32, BF16, BF16),
    (None, BF16, BF16, BF16, BF16),
  ],
)
def test_dtype_and_param_dtype(make, dtype, param_dtype, inputs, in_products, result):
  more = {} if param_dtype == F32 else {'recurrent_kernel_init': nn.initializers.normal()}  # orthogonal has no bfloat16
  cell = make(dtype=dtype, param_dtype=param_dtype, **more)
  xs = normal(0, B, T, IN).astype(inputs)
  assert dtypes(cell.weights) == {jnp.dtype(param_dtype)}
  assert dtypes(cell.fresh((B,))) == {jnp.dtype(param_dtype)}
  assert products(cell.run, cell.weights, xs) == {jnp.dtype(in_products)}
  assert dtypes(jax.eval_shape(cell.run, cell.weights, xs)) == {jnp.dtype(result)}
  gradient = jax.eval_shape(jax.grad(lambda weights: cell.run(weights, xs)[1].astype(F32).sum()), cell.weights)
  assert dtypes(gradient) == {jnp.dtype(param_dtype)}


@ALL
def test_parameters_stay_f32_under_x64(x64, make):
  cell = make()
  assert dtypes((cell.weights, cell.fresh((B,)))) == {jnp.dtype(F32)}
  assert dtypes(jax.eval_shape(cell.run, cell.weights, normal(0, B, T, IN))) == {jnp.dtype(F32)}


@ALL
def test_initializers(make):
  ones = nn.initializers.constant
  cell = make(kernel_init=ones(1.0), recurrent_kernel_init=ones(2.0), bias_init=ones(3.0))
  found = by_role(cell.weights, lambda leaf: tuple(np.unique(leaf)))
  assert found == {'kernel': {(1.0,)}, 'recurrent_kernel': {(2.0,)}, 'bias': {(3.0,)}}


@ALL
def test_carry_init(make):
  cell = make(param_dtype=F32)
  assert not any(part.any() for part in cell.fresh((2, B)))
  c, h = cell.fresh((2, B), nn.initializers.normal(1.0))
  assert c.shape == h.shape == (2, B, H) and c.dtype == h.dtype == F32
  assert len(np.unique(jnp.concatenate([c, h]))) == 4 * B * H  # each number drawn for itself


@ALL
def test_a_fresh_carry_can_be_donated(make):
  cell = make()
  carry, x = cell.fresh((B,)), normal(0, B, IN)
  want = cell.step(cell.weights, cell.fresh((B,)), x)
  assert_close(jax.jit(cell.step, donate_argnums=1)(cell.weights, carry, x), want)
  assert all(part.is_deleted() for part in carry)


@ALL
def test_without_a_batch_axis_and_with_several(make):
  cell, xs = make(), normal(0, 2, B, T, IN)
  carry = normal(1, 2, B, H), normal(2, 2, B, H)
  run = jax.jit(cell.run)
  want, step = run(cell.weights, xs, carry), cell.step(cell.weights, carry, xs[:, :, 0])
  assert want[1].shape == (2, B, T, H)
  for row in ((0, 0), (1, 2)):
    one = jax.tree.map(lambda value, row=row: value[row], (carry, xs, want, step))
    got = cell.step(cell.weights, one[0], one[1][0])
    assert jax.tree.map(jnp.shape, got) == (((H,), (H,)), (H,))
    assert_close(got, one[3])
    if row == (1, 2):
      assert_close(run(cell.weights, one[1], one[0]), one[2])


@ALL
def test_rows_of_different_lengths(make):
  """The carry of a row is that after its own last step, and its outputs until then are those of the row alone."""
  cell, xs, lengths = make(), normal(0, B, T, IN), (1, 3, 2, 3)
  carry = normal(1, B, H), normal(2, B, H)
  (c, h), ys = cell.run(cell.weights, xs, carry, seq_lengths=jnp.array(lengths))
  for row, length in enumerate(lengths):
    alone = tuple(part[row : row + 1] for part in carry)
    for t in range(length):
      alone, y = cell.step(cell.weights, alone, xs[row : row + 1, t])
      assert_close(ys[row : row + 1, t], y)
    assert_close((c[row : row + 1], h[row : row + 1]), alone)


@ALL
def test_time_steps_in_one_iteration_of_the_loop(make):
  cell, xs, carry = make(), normal(0, B, T, IN), (normal(1, B, H), normal(2, B, H))
  runs = [functools.partial(cell.run, unroll=unroll) for unroll in (1, 2)]  # T is no multiple of 2
  loops = [[step for step in steps(run, cell.weights, xs, carry) if step.primitive.name == 'scan'] for run in runs]
  assert [loop.params['unroll'] for (loop,) in loops] == [1, 2]
  assert_close(*(_with_gradients(run, cell.weights, carry, xs) for run in runs))


def _with_gradients(run, weights, carry, xs):
  """Returns gradients by all inputs, and the results."""

  def value(weights, carry, xs):
    final, ys = run(weights, xs, carry)
    return sum((leaf**2).sum() for leaf in (*final, ys)), (final, ys)

  return jax.jit(jax.grad(value, (0, 1, 2), has_aux=True))(weights, carry, xs)


@ALL
def test_partitioning_metadata(make):
  library = nn if make.func is linen else nnx
  plain = nn.initializers.normal()
  with nnx.use_eager_sharding(False):
    cell = make(
      kernel_init=library.with_partitioning(plain, ('in', 'gates')),
      recurrent_kernel_init=library.with_partitioning(plain, (None, 'gates')),
    )
    specs = library.get_partition_spec(cell.weights)
    assert cell.step(cell.weights, cell.fresh((B,)), normal(0, B, IN))[1].shape == (B, H)
  found: dict[str, set] = {'kernel': set(), 'recurrent_kernel': set(), 'bias': set()}
  for path, spec in jax.tree_util.tree_leaves_with_path(specs, is_leaf=lambda leaf: isinstance(leaf, P)):
    found[role(path)].add(spec)
  assert found['kernel'] == {P('in', 'gates')} and found['recurrent_kernel'] == {P(None, 'gates')}
  assert not any(part for spec in found['bias'] for part in spec)


@pytest.mark.parametrize('name', ['NNX LSTM', 'NNXTreeCell'])
def test_metadata_of_nnx(name):
  with nnx.use_eager_sharding(False):
    cell = MAKE[name](
      kernel_metadata={'out_sharding': ('a', 'b')},
      recurrent_kernel_metadata={'out_sharding': ('c', 'd')},
      bias_metadata={'note': 'mine'},
    )
  variables = jax.tree_util.tree_leaves_with_path(cell.weights, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))
  found = {role(path): variable.get_metadata() for path, variable in variables}
  assert found['kernel']['out_sharding'] == ('a', 'b') and found['recurrent_kernel']['out_sharding'] == ('c', 'd')
  assert found['bias']['note'] == 'mine'


@ALL
def test_gradient_on_an_explicit_mesh(make):
  cell, mesh = make(), jax.make_mesh((4,), ('data',), axis_types=(AxisType.Explicit,))
  xs, carry = normal(0, B, T, IN), (normal(1, B, H), normal(2, B, H))

  def loss(weights, carry, xs):
    return (cell.run(weights, xs, carry)[1] ** 2).sum()

  gradient = jax.jit(jax.grad(loss, (0, 1, 2)))
  want = gradient(cell.weights, carry, xs)
  with jax.set_mesh(mesh):
    got = gradient(*jax.device_put((cell.weights, carry, xs), (P(), P('data'), P('data'))))
  assert jax.tree.leaves(got[2])[0].sharding.spec[0] == 'data'
  assert_close(got, want)
