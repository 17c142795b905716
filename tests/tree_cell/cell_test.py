"""The cell-tree compiler forward: against equations, hand-worked numbers, Flax's LSTM and a plain interpreter."""

import functools
import itertools
import pathlib
import re
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from nas_jax import space, tree_cell
from nas_jax.operations import ADD, IDENTITY, MAX, MULT, RELU, SIGMOID, TANH
from nas_jax.tree_cell import LSTM, NASCELL, TreeArch

T, B, IN, H = 5, 3, 4, 2

# Sec. 3.4, the worked example of base 2.
EXAMPLE = TreeArch(combine=(ADD, MULT, MULT), activate=(TANH, RELU, SIGMOID), inject=(ADD, RELU), index=(1, 0))


def traced(arch):
  return jax.tree.map(lambda ids: ids[0], space.stack([arch]))


FORMS = pytest.mark.parametrize('form', [lambda arch: arch, traced], ids=['static', 'traced'])


def random_archs(cells, count):
  rng = np.random.default_rng(0)
  return [cells.decode([rng.integers(slot.width) for slot in cells.slots]) for _ in range(count)]


def wide_space(base):
  """Cells with every operation of the paper, those of its control experiment too."""
  return space.tree_cell_space(base, space.COMBINE[:3], space.ACTIVATE[:5])


def example(leaves, time=()):
  """Returns random parameters, carry and inputs in the current default precision."""
  rng = np.random.default_rng(1)

  def normal(*shape):
    return jnp.asarray(rng.normal(size=shape))

  params = {'kernel': normal(IN, leaves * H), 'recurrent_kernel': normal(H, leaves * H)}
  return params, (normal(B, H), normal(B, H)), normal(*time, B, IN)


def leaf_inputs(params, h, x):
  """Returns the inputs of the leaves: lists of x W_i and h U_i."""
  n = params['kernel'].shape[1] // H
  projections = x @ params['kernel'], h @ params['recurrent_kernel']
  return [np.split(np.asarray(projection), n, axis=-1) for projection in projections]


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


def relu(x):
  return np.maximum(x, 0)


def interpret(arch, xs, hs, c):
  """Returns (c_t, h_t) by recursion from the root, written after the text of Sec. 3.4."""
  combine = np.add, np.multiply, np.maximum
  activate = lambda x: x, np.tanh, sigmoid, relu, np.sin
  n = len(xs)

  def before(node):
    k = node - n
    pair = (xs[node], hs[node]) if k < 0 else (after(2 * k), after(2 * k + 1))
    return combine[arch.combine[node]](*pair)

  def after(node):
    value = activate[arch.activate[node]](before(node))
    if node == arch.index[1]:
      value = activate[arch.inject[1]](combine[arch.inject[0]](value, c))
    return value

  return before(arch.index[0]), after(2 * n - 2)


def assert_close(got, want, tolerance=1e-12):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), got, want)


def steps(jaxpr):
  """Returns every equation of a program, including those of its loops, branches and functions."""
  for step in jaxpr.eqns:
    yield step
    for value in jax.tree.leaves(list(step.params.values())):
      inner = getattr(value, 'jaxpr', value)
      if hasattr(inner, 'eqns'):
        yield from steps(inner)


def primitives(function, *arguments):
  return {step.primitive.name for step in steps(jax.make_jaxpr(function)(*arguments).jaxpr)}


# -- one step ---------------------------------------------------------------------------------------------------------


@FORMS
@pytest.mark.parametrize('double, tolerance', [(False, 1e-6), (True, 1e-12)], ids=['f32', 'f64'])
def test_nascell_equals_its_equations(form, double, tolerance):
  with jax.enable_x64(double):
    params, (c, h), x = example(8)
    (got_c, got_h), y = jax.jit(lambda: tree_cell.apply(params, form(NASCELL), (c, h), x))()
    assert got_c.dtype == got_h.dtype == x.dtype
    np.testing.assert_array_equal(got_h, y)

    (x0, x1, x2, x3, x4, x5, x6, x7), (m0, m1, m2, m3, m4, m5, m6, m7) = leaf_inputs(params, h, x)
    first = np.tanh(np.tanh(sigmoid(x0 + m0) * relu(x1 + m1)) + c)
    second = np.tanh(sigmoid(x2 + m2) + relu(x3 * m3))
    third = np.tanh(np.tanh(x4 + m4) * sigmoid(x5 + m5))
    fourth = sigmoid(np.tanh(x6 + m6) + sigmoid(x7 + m7))
    want_c = first * second
    assert_close((got_c, got_h), (want_c, np.tanh(want_c * np.tanh(third + fourth))), tolerance)


@FORMS
def test_base_2_example_by_hand(x64, form):
  params = {'kernel': jnp.array([[0.25, 2.0]]), 'recurrent_kernel': jnp.array([[0.25, 3.0]])}
  x, h, c = jnp.array([[1.0], [-1.0], [1.0]]), jnp.ones((3, 1)), jnp.array([[-0.3], [0.3], [-1.0]])
  (c_t, h_t), _ = tree_cell.apply(params, form(EXAMPLE), (c, h), x)
  # c_t is 2 x * 3 h as it was before the relu of node 1.
  assert_close(c_t, [[6], [-6], [6]])
  # Row 0: relu(tanh(.5) - .3) = .1621172; sigmoid(.1621172 * 6) = .7256579. Row 1: a1 = relu(-6) = 0, sigmoid(0) = .5.
  # Row 2: relu(tanh(.5) - 1) = 0, sigmoid(0) = .5.
  assert_close(h_t, [[0.7256579], [0.5], [0.5]], 1e-7)


def test_every_pair_of_indices_by_hand(x64):
  # x = h = 1. a0 = -2 - 1 = -3; a1 = relu(5 * -1) = 0, -5 before the relu; h_t = relu(a0 + a1) = 0, -3 before it.
  # With c_(t-1) = 10 into node 0: a0 = 7, root 7 before and after; into node 1: a1 = 10, likewise 7; into the root: 10.
  # c_t is read before the node's own activation and so before its injection, but after injection further down.
  params = {'kernel': jnp.array([[-2.0, 5.0]]), 'recurrent_kernel': jnp.array([[-1.0, -1.0]])}
  ones = jnp.ones((1, 1))
  want_c = {(0, 0): -3, (0, 1): -3, (0, 2): -3, (1, 0): -5, (1, 1): -5, (1, 2): -5, (2, 0): 7, (2, 1): 7, (2, 2): -3}
  want_h = {0: 7, 1: 7, 2: 10}
  traced_cell = jax.jit(lambda arch: tree_cell.apply(params, arch, (10 * ones, ones), ones)[0])
  for pair in itertools.product(range(3), repeat=2):
    arch = TreeArch((ADD, MULT, ADD), (IDENTITY, RELU, RELU), (ADD, IDENTITY), pair)
    want = want_c[pair], want_h[pair[1]]
    assert tree_cell.apply(params, arch, (10 * ones, ones), ones)[0] == want, pair
    assert traced_cell(traced(arch)) == want, pair


@pytest.mark.parametrize(
  'cells, count',
  [
    (space.tree_cell_space(8), 200),
    (space.tree_cell_space(4), 40),
    (space.tree_cell_space(2), 40),
    (wide_space(4), 60),
    (wide_space(2), 60),
  ],
  ids=['8', '4', '2', '4 with max and sin', '2 with max and sin'],
)
def test_static_and_one_traced_program_equal_an_interpreter(x64, cells, count):
  params, (c, h), x = example(cells.spec['base'])
  inputs = *leaf_inputs(params, h, x), np.asarray(c)
  traces = []

  @jax.jit
  def traced_cell(arch):
    traces.append(arch)
    return tree_cell.apply(params, arch, (c, h), x)[0]

  for arch in random_archs(cells, count):
    want = interpret(arch, *inputs)
    assert_close(tree_cell.apply(params, arch, (c, h), x)[0], want)
    assert_close(traced_cell(traced(arch)), want)
  assert len(traces) == 1


def test_possible_operations_change_the_program_and_not_the_result(x64):
  cells = space.tree_cell_space(2, ('max', 'add'), ('sigmoid', 'relu'))
  params, carry, x = example(2)

  @jax.jit
  def every(arch):
    return tree_cell.apply(params, arch, carry, x)

  @jax.jit
  def possible(arch):
    return tree_cell.apply(params, arch, carry, x, operations=cells.operations)

  for arch in random_archs(cells, 20):
    assert_close(possible(traced(arch)), every(traced(arch)))
  assert 'sin' in primitives(every, traced(arch))
  assert 'sin' not in primitives(possible, traced(arch))


@FORMS
def test_the_bias_joins_the_recurrent_side(form, x64):
  # c_t of the example is (x W_1) * (h U_1 + b_1): on the input side the bias would give another product.
  params, (c, h), x = example(2)
  params['bias'] = jnp.linspace(-1, 1, 2 * H)
  (c_new, _), _ = tree_cell.apply(params, form(EXAMPLE), (c, h), x)
  right = x @ params['kernel'][:, H:], h @ params['recurrent_kernel'][:, H:] + params['bias'][None, H:]
  assert_close(c_new, right[0] * right[1])


# -- sequences --------------------------------------------------------------------------------------------------------


def test_lstm_tree_is_flax_lstm(x64):
  params, carry, xs = example(8, (T,))
  params['bias'] = jnp.linspace(-1, 1, 8 * H)
  gates = {'f': [0, 1], 'i': [2], 'g': [3], 'o': [4, 5, 6, 7]}  # the leaves that each gate sums

  def gate(name, leaves):
    return sum(jnp.split(params[name], 8, axis=-1)[leaf] for leaf in leaves)

  flax_params = {f'i{name}': {'kernel': gate('kernel', leaves)} for name, leaves in gates.items()}
  for name, leaves in gates.items():
    flax_params[f'h{name}'] = {'kernel': gate('recurrent_kernel', leaves), 'bias': gate('bias', leaves)}
  rnn = nn.RNN(nn.OptimizedLSTMCell(H), time_major=True, return_carry=True)
  want = rnn.apply({'params': {'cell': flax_params}}, xs, initial_carry=carry)
  assert_close(tree_cell.unroll(params, LSTM, carry, xs), want)


@FORMS
@pytest.mark.parametrize('mask_shape', [None, (H,), (B, H)], ids=['no mask', 'mask [H]', 'mask [B, H]'])
def test_unroll_is_a_loop_of_apply(x64, form, mask_shape):
  params, carry, xs = example(2, (T,))
  mask = None if mask_shape is None else jax.random.uniform(jax.random.key(0), mask_shape)
  got = tree_cell.unroll(params, form(EXAMPLE), carry, xs, h_mask=mask)
  outputs = []
  for x in xs:
    c, h = carry
    # Only the leaves see h_(t-1), so to mask it there is to mask it in the carry.
    masked = h if mask is None else h * jnp.broadcast_to(mask, h.shape)
    carry, y = tree_cell.apply(params, EXAMPLE, (c, masked), x)
    outputs.append(y)
  assert_close(got, (carry, jnp.stack(outputs)))


@FORMS
def test_rows_stop_at_their_length(x64, form):
  params, (c, h), xs = example(2, (T,))
  length = jnp.array([2, 0, T])
  (got_c, got_h), ys = tree_cell.unroll(params, form(EXAMPLE), (c, h), xs, length=length)
  for row, steps_taken in enumerate(length):
    alone = slice(row, row + 1)
    carry, outputs = tree_cell.unroll(params, EXAMPLE, (c[alone], h[alone]), xs[:steps_taken, alone])
    assert_close((got_c[alone], got_h[alone]), carry)
    assert_close(ys[:steps_taken, alone], outputs)


def test_vmap_and_map_over_archs_equal_a_loop(x64):
  params, carry, xs = example(4, (T,))
  archs = random_archs(wide_space(4), 6)
  stacked = space.stack(archs)

  def child(arch):
    return tree_cell.unroll(params, arch, carry, xs)

  one = jax.jit(child)
  want = jax.tree.map(lambda *rows: jnp.stack(rows), *[one(traced(arch)) for arch in archs])
  assert_close(jax.jit(jax.vmap(child))(stacked), want)
  assert_close(jax.jit(lambda archs: jax.lax.map(child, archs))(stacked), want)


def test_unroll_inside_shard_map(x64):
  params, carry, xs = example(4, (T,))
  archs = space.stack(random_archs(wide_space(4), 8))

  def children(archs, params, carry, xs):
    return jax.lax.map(lambda arch: tree_cell.unroll(params, arch, carry, xs), archs)

  mesh = jax.make_mesh((4,), ('child',), axis_types=(AxisType.Auto,))
  sharded = jax.shard_map(children, mesh=mesh, in_specs=(P('child'), P(), P(), P()), out_specs=P('child'))
  assert_close(jax.jit(sharded)(archs, params, carry, xs), jax.jit(children)(archs, params, carry, xs))


# -- programs ---------------------------------------------------------------------------------------------------------


def test_static_program_chooses_nothing():
  params, carry, xs = example(8, (T,))

  def gradient(arch):
    return jax.grad(lambda params: tree_cell.unroll(params, arch, carry, xs)[1].sum())(params)

  choices = {'cond', 'select_n'}
  assert not choices & primitives(lambda xs: tree_cell.unroll(params, NASCELL, carry, xs), xs)
  # An LSTM, since relu has a select in its own derivative.
  assert not choices & primitives(lambda: gradient(LSTM))
  assert choices <= primitives(lambda arch: tree_cell.unroll(params, arch, carry, xs), traced(NASCELL))


@pytest.mark.parametrize('hoist', [True, False])
def test_hoisting_takes_the_weight_gradient_out_of_the_loop(hoist):
  params, carry, xs = example(2, (T,))
  program = jax.make_jaxpr(jax.grad(lambda p: tree_cell.unroll(p, EXAMPLE, carry, xs, hoist=hoist)[1].sum()))(params)
  loops = [step for step in steps(program.jaxpr) if step.primitive.name == 'scan']
  made = {variable.aval.shape for loop in loops for variable in loop.outvars}
  assert (params['recurrent_kernel'].shape in made) == (not hoist)


def test_static_arch_is_a_static_argument_of_jit():
  params, carry, x = example(8)
  assert hash(NASCELL) == hash(TreeArch(*NASCELL)) != hash(LSTM)
  traces = []

  @functools.partial(jax.jit, static_argnames='arch')
  def cell(params, arch, carry, x):
    traces.append(arch)
    return tree_cell.apply(params, arch, carry, x)

  for arch in (NASCELL, LSTM, TreeArch(*NASCELL)):
    assert_close(cell(params, arch, carry, x), tree_cell.apply(params, arch, carry, x), 1e-6)
  assert traces == [NASCELL, LSTM]


def test_import_brings_in_no_training_library():
  code = 'import sys, nas_jax.tree_cell; print(*{name.partition(".")[0] for name in sys.modules})'
  root = pathlib.Path(tree_cell.__file__).parents[2]
  loaded = subprocess.run([sys.executable, '-c', code], cwd=root, capture_output=True, text=True, check=True).stdout
  assert {'jax', 'flax'} <= set(loaded.split())
  assert not {'optax', 'orbax', 'tensorflow_datasets', 'tensorflow', 'matplotlib'} & set(loaded.split())


# -- parameters -------------------------------------------------------------------------------------------------------


@FORMS
def test_init_shapes(form):
  params = tree_cell.init(jax.random.key(0), form(NASCELL), IN, H)
  assert jax.tree.map(jnp.shape, params) == {'kernel': (IN, 8 * H), 'recurrent_kernel': (H, 8 * H)}
  assert tree_cell.init(jax.random.key(0), form(EXAMPLE), IN, H)['kernel'].shape == (IN, 2 * H)


@pytest.mark.parametrize('scale, limit', [(None, 1 / 8), (0.05, 0.05)])
def test_init_is_uniform_in_its_range(scale, limit):
  params = tree_cell.init(jax.random.key(0), EXAMPLE, 64, 64, bias=True, scale=scale)
  np.testing.assert_array_equal(params['bias'], np.zeros(2 * 64))
  for name in ('kernel', 'recurrent_kernel'):
    # 8192 draws: a largest below .99 limit has a chance of 1e-18; their variance is limit²/3, here within 6 sd.
    assert 0.99 * limit < params[name].max() <= limit and -limit <= params[name].min() < -0.99 * limit
    np.testing.assert_allclose(params[name].var(), limit**2 / 3, rtol=0.06)
  assert not np.array_equal(params['kernel'], params['recurrent_kernel'])


@pytest.mark.parametrize('bias', [True, False])
def test_tree_cell_in_flax_rnn_is_unroll(x64, bias):
  xs = example(2, (T,))[2]
  rnn = nn.RNN(tree_cell.TreeCell(H, EXAMPLE, bias, param_dtype=float), time_major=True, return_carry=True)
  variables = rnn.init(jax.random.key(0), xs)
  params = variables['params']['cell']
  shapes = {'kernel': (IN, 2 * H), 'recurrent_kernel': (H, 2 * H)} | ({'bias': (2 * H,)} if bias else {})
  assert jax.tree.map(jnp.shape, params) == shapes
  assert 0.9 * H**-0.5 < max(abs(params['kernel']).max(), abs(params['recurrent_kernel']).max()) <= H**-0.5
  params = params | ({'bias': jnp.linspace(-1, 1, 2 * H)} if bias else {})  # it starts as zeros
  zeros = jnp.zeros((B, H))
  got = rnn.apply({'params': {'cell': params}}, xs)
  assert_close(got, tree_cell.unroll(params, EXAMPLE, (zeros, zeros), xs))


# -- equations --------------------------------------------------------------------------------------------------------


def test_equations_of_nascell():
  assert tree_cell.equations(NASCELL).splitlines() == [
    'a0 = sigmoid(W0 x + U0 h)',
    'a1 = relu(W1 x + U1 h)',
    'a2 = sigmoid(W2 x + U2 h)',
    'a3 = relu((W3 x) * (U3 h))',
    'a4 = tanh(W4 x + U4 h)',
    'a5 = sigmoid(W5 x + U5 h)',
    'a6 = tanh(W6 x + U6 h)',
    'a7 = sigmoid(W7 x + U7 h)',
    'a8 = tanh(tanh(a0 * a1) + c)',
    'a9 = tanh(a2 + a3)',
    'a10 = tanh(a4 * a5)',
    'a11 = sigmoid(a6 + a7)',
    'c_t = a8 * a9',
    'a13 = tanh(a10 + a11)',
    'h_t = tanh(c_t * a13)',
  ]


def test_equations_of_base_2():
  assert tree_cell.equations(EXAMPLE).splitlines() == [
    'a0 = relu(tanh(W0 x + U0 h) + c)',
    'c_t = (W1 x) * (U1 h)',
    'a1 = relu(c_t)',
    'h_t = sigmoid(a0 * a1)',
  ]
  arch = TreeArch((ADD, MAX, MAX), (IDENTITY, IDENTITY, TANH), inject=(MULT, IDENTITY), index=(2, 0))
  assert tree_cell.equations(arch).splitlines() == [
    'a0 = (W0 x + U0 h) * c',
    'a1 = max(W1 x, U1 h)',
    'c_t = max(a0, a1)',
    'h_t = tanh(c_t)',
  ]


@pytest.mark.parametrize('base', [2, 8])
def test_equations_mean_what_the_cell_computes(x64, base):
  params, (c, h), x = example(base)
  xs, hs = leaf_inputs(params, h, x)
  names = {'tanh': np.tanh, 'sigmoid': sigmoid, 'relu': relu, 'sin': np.sin, 'max': np.maximum, 'c': np.asarray(c)}
  for i in range(base):
    names |= {f'W{i}x': xs[i], f'U{i}h': hs[i]}
  for arch in random_archs(wide_space(base), 60):
    values = dict(names)
    for line in tree_cell.equations(arch).splitlines():
      name, expression = line.split(' = ')
      values[name] = eval(re.sub(r'([WU]\d+) ([xh])', r'\1\2', expression), values)
    assert_close((values['c_t'], values['h_t']), interpret(arch, xs, hs, c))
