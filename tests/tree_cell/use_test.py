"""The cell-tree compiler in other people's code: Flax's wrappers, JAX's transformations, TensorFlow's weights."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from nas_jax import space, tree_cell
from nas_jax.operations import ADD, IDENTITY, MULT, RELU, TANH
from nas_jax.tree_cell import NASCELL, TreeArch

T, B, IN, H = 4, 4, 3, 2
LENGTH = (2, 4, 1, 3)

# c_t lies above the injected node, so that the gradient runs through both parts of the carry.
CELL = TreeArch(combine=(ADD, MULT, ADD), activate=(TANH, RELU, IDENTITY), inject=(MULT, TANH), index=(2, 0))


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


def parameters(leaves, seed=0):
  shapes = {'kernel': (IN, leaves * H), 'recurrent_kernel': (H, leaves * H), 'bias': (leaves * H,)}
  return {name: normal(seed + i, *shape) for i, (name, shape) in enumerate(shapes.items())}


def plain(params, arch, carry, xs):
  """`unroll` with every step written out."""
  ys = []
  for x in xs:
    carry, y = tree_cell.apply(params, arch, carry, x)
    ys.append(y)
  return carry, jnp.stack(ys)


def loss(params, arch, carry, xs, unroll=tree_cell.unroll, **options):
  """A number in which every output counts with a weight of its own, as does the final c."""
  (c, _), ys = unroll(params, arch, carry, xs, **options)
  return (ys * jnp.cos(jnp.arange(ys.size)).reshape(ys.shape)).sum() + jnp.sin(c).sum()


def assert_close(got, want):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-11), got, want)


# -- Flax -------------------------------------------------------------------------------------------------------------


def alone(params, xs, row, reverse=False):
  """One row [B, T, in] of a batch, cut to its length: the final carry [1, H] and the outputs in the order of time."""
  sequence = xs[row, : LENGTH[row], None]
  zeros = jnp.zeros((1, H))
  carry, ys = tree_cell.unroll(params, CELL, (zeros, zeros), sequence[::-1] if reverse else sequence)
  return carry, ys[::-1, 0] if reverse else ys[:, 0]


def test_rnn_with_seq_lengths(x64):
  xs, params = normal(9, B, T, IN), parameters(2)
  rnn = nn.RNN(tree_cell.TreeCell(H, CELL, bias=True, param_dtype=float), return_carry=True)
  (c, h), ys = rnn.apply({'params': {'cell': params}}, xs, seq_lengths=jnp.array(LENGTH))
  for row, length in enumerate(LENGTH):
    (want_c, want_h), want = alone(params, xs, row)
    assert_close((c[row], h[row], ys[row, :length]), (want_c[0], want_h[0], want))
  # What `unroll` calls `length` is the same thing.
  zeros = jnp.zeros((B, H))
  carry, _ = tree_cell.unroll(params, CELL, (zeros, zeros), xs.swapaxes(0, 1), length=jnp.array(LENGTH))
  assert_close((c, h), carry)


def test_bidirectional_with_seq_lengths(x64):
  xs = normal(9, B, T, IN)
  layer = nn.Bidirectional(
    *(nn.RNN(tree_cell.TreeCell(H, CELL, bias=True, param_dtype=float)) for _ in range(2)), return_carry=True
  )
  there, back = parameters(2), parameters(2, seed=5)
  variables = {'params': {'forward_rnn': {'cell': there}, 'backward_rnn': {'cell': back}}}
  made = layer.init(jax.random.key(0), xs)
  assert jax.tree.map(jnp.shape, made) == jax.tree.map(jnp.shape, variables)
  with jax.numpy_rank_promotion('allow'):  # Flax's own reversing of rows promotes
    carries, ys = layer.apply(variables, xs, seq_lengths=jnp.array(LENGTH))
  for row, length in enumerate(LENGTH):
    (first, forwards), (second, backwards) = alone(there, xs, row), alone(back, xs, row, reverse=True)
    assert_close(ys[row, :length], jnp.concatenate([forwards, backwards], -1))
    assert_close(jax.tree.map(lambda c, row=row: c[row : row + 1], carries), (first, second))


def test_a_remat_cell_in_rnn_has_the_same_gradient(x64):
  xs = normal(9, B, T, IN)
  variables = {'params': {'cell': parameters(2)}}

  def gradient(cell):
    return jax.grad(
      lambda variables: jnp.sin(nn.RNN(cell(H, CELL, bias=True, param_dtype=float)).apply(variables, xs)).sum()
    )(variables)

  assert_close(gradient(nn.remat(tree_cell.TreeCell)), gradient(tree_cell.TreeCell))


# -- transformations --------------------------------------------------------------------------------------------------


@pytest.fixture
def example(x64):
  """Params, carry and xs of a batch."""
  return parameters(2), (normal(7, B, H), normal(8, B, H)), normal(9, T, B, IN)


@jax.jit
def plain_gradient(params, carry, xs):
  """The loss and its gradient by everything, from `plain`."""
  return jax.value_and_grad(lambda *inputs: loss(inputs[0], CELL, *inputs[1:], unroll=plain), (0, 1, 2))(
    params, carry, xs
  )


@WAYS
def test_vmap_over_weights_is_a_loop(example, form, hoist):
  """An ensemble: as many sets of weights as you like, each with inputs of its own."""
  arch, several = form(CELL), jax.tree.map(lambda value: jnp.stack([value, -value, 0.5 * value]), example)

  def gradient(*inputs):
    return jax.value_and_grad(lambda *inputs: loss(inputs[0], arch, *inputs[1:], hoist=hoist), (0, 1, 2))(*inputs)

  got = jax.jit(jax.vmap(gradient))(*several)
  for k in range(3):
    take = jax.tree.map(lambda value, k=k: value[k], (got, several))
    assert_close(take[0], plain_gradient(*take[1]))


@WAYS
def test_a_batch_over_devices(example, form, hoist):
  """Data parallel under `shard_map` with its default checks: rows over devices, weights and cell on all of them."""
  arch = form(CELL)
  mesh = jax.make_mesh((4,), ('data',), axis_types=(AxisType.Auto,))
  rows = P('data'), P(None, 'data')

  def forward_and_gradient(params, carry, xs):
    def local(params):
      (c, h), ys = tree_cell.unroll(params, arch, carry, xs, hoist=hoist)
      return jnp.sin(ys).sum(), ((c, h), ys)

    gradient, results = jax.grad(local, has_aux=True)(params)
    return gradient, results  # of what all devices share, the gradient is the sum over them

  sharded = jax.shard_map(forward_and_gradient, mesh=mesh, in_specs=(P(), *rows), out_specs=(P(), rows))

  @jax.jit
  def want(params, carry, xs):
    results = plain(params, CELL, carry, xs)
    return jax.grad(lambda params: jnp.sin(plain(params, CELL, carry, xs)[1]).sum())(params), results

  assert_close(jax.jit(sharded)(*example), want(*example))


@WAYS
def test_remat_changes_no_gradient(example, form, hoist):
  arch = form(CELL)
  value = jax.checkpoint(lambda *inputs: loss(inputs[0], arch, *inputs[1:], hoist=hoist))
  assert_close(jax.jit(jax.value_and_grad(value, (0, 1, 2)))(*example), plain_gradient(*example))


def test_a_static_arch_is_a_static_argument_of_remat(example):
  value = jax.checkpoint(loss, static_argnums=1)
  got = jax.jit(jax.grad(value), static_argnums=1)(example[0], CELL, *example[1:])
  assert_close(got, plain_gradient(*example)[1][0])


@FORMS
def test_the_jacobian_both_ways(example, form):
  params, carry, xs = example
  arch = form(CELL)

  def final(bias, hoist):
    return tree_cell.unroll(params | {'bias': bias}, arch, carry, xs, hoist=hoist, length=jnp.array(LENGTH))[0]

  @jax.jit
  def both_ways(bias):
    return jax.jacfwd(lambda bias: final(bias, False))(bias), jax.jacrev(lambda bias: final(bias, True))(bias)

  assert_close(*both_ways(params['bias']))


@FORMS
def test_second_derivatives(example, form):
  """Forward mode goes through the hoisted backward loop, so products with the Hessian need no `hoist=False`."""
  params, carry, xs = example
  directions = jax.tree.map(jnp.cos, params)

  def product(arch, **options):
    return jax.jvp(jax.grad(lambda params: loss(params, arch, carry, xs, **options)), (params,), (directions,))[1]

  assert_close(*jax.jit(lambda: (product(form(CELL)), product(CELL, unroll=plain)))())


# -- TensorFlow -------------------------------------------------------------------------------------------------------


def tensorflow_nascell(kernel, recurrent_kernel, bias, state, inputs):
  """One step of TensorFlow's NASCell in numpy: state [c, m] and inputs [B, d] to (m, [c, m])."""

  def sigmoid(x):
    return 1 / (1 + np.exp(-x))

  def relu(x):
    return np.maximum(x, 0)

  c, m = state
  m_parts, x_parts = (np.split(part, 8, axis=1) for part in (m @ recurrent_kernel + bias, inputs @ kernel))
  first = [
    sigmoid(x_parts[0] + m_parts[0]),
    relu(x_parts[1] + m_parts[1]),
    sigmoid(x_parts[2] + m_parts[2]),
    relu(x_parts[3] * m_parts[3]),
    np.tanh(x_parts[4] + m_parts[4]),
    sigmoid(x_parts[5] + m_parts[5]),
    np.tanh(x_parts[6] + m_parts[6]),
    sigmoid(x_parts[7] + m_parts[7]),
  ]
  second = [
    np.tanh(first[0] * first[1]),
    np.tanh(first[2] + first[3]),
    np.tanh(first[4] * first[5]),
    sigmoid(first[6] + first[7]),
  ]
  second[0] = np.tanh(second[0] + c)
  new_c = second[0] * second[1]
  new_m = np.tanh(new_c * np.tanh(second[2] + second[3]))
  return new_m, [new_c, new_m]


@FORMS
def test_weights_of_tensorflow_mean_the_same(x64, form):
  params, carry, xs = parameters(8), (normal(7, B, H), normal(8, B, H)), normal(9, T, B, IN)
  arrays = [np.asarray(params[name]) for name in ('kernel', 'recurrent_kernel', 'bias')]
  state, outputs = [np.asarray(part) for part in carry], []
  for x in np.asarray(xs):
    output, state = tensorflow_nascell(*arrays, state, x)
    outputs.append(output)
  got, ys = tree_cell.unroll(params, form(NASCELL), carry, xs)
  assert_close((list(got), ys), (state, np.stack(outputs)))


def test_weights_of_tensorflow_in_a_flax_model(x64):
  params, xs = parameters(8), normal(9, B, T, IN)
  state, zeros = [np.zeros((B, H))] * 2, np.zeros((B, T, H))
  for t in range(T):
    weights = (np.asarray(params[name]) for name in ('kernel', 'recurrent_kernel', 'bias'))
    zeros[:, t], state = tensorflow_nascell(*weights, state, np.asarray(xs)[:, t])
  model = nn.RNN(tree_cell.TreeCell(H, bias=True, param_dtype=float))
  assert_close(model.apply({'params': {'cell': params}}, xs), zeros)
