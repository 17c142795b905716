"""Options of tree cells that Flax's cells lack: projection, layer norm, recurrent dropout; and refused input."""

import dataclasses
import functools
import inspect
import itertools
import pathlib

from cell_examples import ALL, ARCH, FORMS, IN, WIDTH, B, H, T, assert_close, example, loss, normal
from flax import nnx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from testing import one_line

from nas_jax import tree_cell

F32 = jnp.float32


# -- projection and layer norm ----------------------------------------------------------------------------------------


@FORMS
def test_projection_multiplies_the_root(x64, form):
  params, carry, xs = example(WIDTH, projection=WIDTH)
  assert params['recurrent_kernel'].shape == (WIDTH, 2 * H) and params['projection_kernel'].shape == (H, WIDTH)
  (c, h), y = tree_cell.apply(params, form(ARCH), carry, xs[0])
  plain = {name: value for name, value in params.items() if name != 'projection_kernel'}
  (want_c, root), _ = tree_cell.apply(plain, ARCH, carry, xs[0])
  assert_close((c, h, y), (want_c, root @ params['projection_kernel'], root @ params['projection_kernel']))


@FORMS
def test_layer_norm_is_that_of_flax_in_each_leaf(x64, form):
  params, (c, h), xs = example(bias=True, layer_norm=True)
  found = tree_cell.apply(params, form(ARCH), (c, h), xs[0])

  def read(values, scale):
    norm = nn.LayerNorm(use_bias=False, use_scale=False, param_dtype=float)
    return norm.apply({}, values.reshape(B, 2, H)).reshape(B, 2 * H) * scale[None]

  # With identities for weights the leaves read what they are given.
  eye = {'kernel': jnp.eye(2 * H), 'recurrent_kernel': jnp.eye(2 * H)}
  x = read(xs[0] @ params['kernel'], params['kernel_scale'])
  recurrent = read(h @ params['recurrent_kernel'], params['recurrent_scale']) + params['bias'][None]
  assert_close(found, tree_cell.apply(eye, ARCH, (c, recurrent), x))


@FORMS
@pytest.mark.parametrize('options', [{'layer_norm': True}, {'bias': True, 'projection': WIDTH}, ALL])
def test_hoisting_changes_no_gradient(x64, form, options):
  width = options.get('projection', H)
  params, carry, xs = example(width, **options)
  mask, length = normal(5, B, width), jnp.array([2, 0, T, 1])

  def gradient(hoist):
    def value(*inputs):
      return loss(inputs[0], form(ARCH), *inputs[1:3], h_mask=inputs[3], length=length, hoist=hoist)

    return jax.value_and_grad(value, (0, 1, 2, 3))(params, carry, xs, mask)

  assert_close(*jax.jit(lambda: (gradient(True), gradient(False)))())


def test_in_the_modules_of_flax_they_are_unroll(x64):
  xs = normal(9, B, T, IN)
  rnn = nn.RNN(tree_cell.TreeCell(H, ARCH, param_dtype=float, **ALL), return_carry=True)
  variables = rnn.init(jax.random.key(0), xs)
  module = tree_cell.NNXTreeCell(IN, H, ARCH, param_dtype=float, **ALL, rngs=nnx.Rngs(0))
  zeros = jnp.zeros((B, H)), jnp.zeros((B, WIDTH))
  for params, got in (
    (variables['params']['cell'], rnn.apply(variables, xs)),
    (
      {name: value[...] for name, value in nnx.state(module, nnx.Param).items()},
      nnx.RNN(module, return_carry=True)(xs),
    ),
  ):
    assert set(params) == {*example(WIDTH, **ALL)[0]}
    (c, h), ys = tree_cell.unroll(params, ARCH, zeros, xs.swapaxes(0, 1))
    assert_close(got, ((c, h), ys.swapaxes(0, 1)))


# -- recurrent dropout ------------------------------------------------------------------------------------------------


def dropped(kind, params, carry, xs, same, key):
  """The outputs of a cell that drops half of h, with the same mask in all steps or with one for each."""
  if kind == 'linen':
    cell = tree_cell.TreeCell(2, ARCH, recurrent_dropout=0.5, deterministic=False)
    rnn = nn.RNN(cell, split_rngs={'params': False, 'dropout': not same})
    return rnn.apply({'params': {'cell': params}}, xs, initial_carry=carry, rngs={'dropout': key})
  cell = tree_cell.NNXTreeCell(IN, 2, ARCH, recurrent_dropout=0.5, rngs=nnx.Rngs(params=0, dropout=key))
  cell.kernel[...], cell.recurrent_kernel[...] = params['kernel'], params['recurrent_kernel']
  return nnx.RNN(cell, broadcast_rngs='dropout' if same else None)(xs, initial_carry=carry)


@pytest.mark.parametrize('kind', ['linen', 'NNX'])
def test_dropout_masks_h_in_the_leaves(kind):
  """Every output is that of masks of 0 and 2, the same in all steps if so asked."""
  params = tree_cell.init(jax.random.key(0), ARCH, IN, 2, scale=1.0)
  xs, carry = jax.random.normal(jax.random.key(1), (2, IN)), (jnp.ones(2), jnp.array([0.5, -0.7]))
  masks = jnp.array(list(itertools.product([0.0, 2.0], repeat=4))).reshape(-1, 2, 2)  # of each step

  def masked(masks):
    state, y = tree_cell.apply(params, ARCH, carry, xs[0], h_mask=masks[0])
    return jnp.stack([y, tree_cell.apply(params, ARCH, state, xs[1], h_mask=masks[1])[1]])

  keys = jax.random.split(jax.random.key(2), 12)
  chosen = {}
  for same in (True, False):
    run = functools.partial(dropped, kind, params, carry, xs, same)
    near = jax.jit(lambda run=run: jnp.abs(jax.vmap(run)(keys)[:, None] - jax.vmap(masked)(masks)[None]).max((2, 3)))()
    assert ((near < 1e-6).sum(1) == 1).all()
    chosen[same] = masks[near.argmin(1)]
  assert (chosen[True][:, 0] == chosen[True][:, 1]).all() and len(np.unique(chosen[True], axis=0)) > 1
  assert (chosen[False][:, 0] != chosen[False][:, 1]).any()


def test_dropout_is_left_out_in_evaluation():
  params = tree_cell.init(jax.random.key(0), ARCH, IN, H)
  xs, carry = jnp.ones((T, IN)), (jnp.ones(H), jnp.ones(H))
  want = tree_cell.unroll(params, ARCH, carry, xs)[1]
  linen = nn.RNN(tree_cell.TreeCell(H, ARCH, recurrent_dropout=0.5, deterministic=True))
  assert_close(linen.apply({'params': {'cell': params}}, xs, initial_carry=carry), want, 1e-6)
  cell = tree_cell.NNXTreeCell(IN, H, ARCH, recurrent_dropout=0.5, rngs=nnx.Rngs(0))
  cell.kernel[...], cell.recurrent_kernel[...] = params['kernel'], params['recurrent_kernel']
  cell.eval()
  assert_close(nnx.RNN(cell)(xs, initial_carry=carry), want, 1e-6)
  cell.train()
  assert not np.allclose(nnx.RNN(cell)(xs, initial_carry=carry), want)


# -- initial values, and what is refused ------------------------------------------------------------------------------


def test_init_takes_initializers_and_a_type(x64):
  constant = nn.initializers.constant
  params = tree_cell.init(
    jax.random.key(0), ARCH, IN, H, **ALL, kernel_init=constant(1.0), recurrent_kernel_init=constant(2.0),
    bias_init=constant(3.0), projection_init=constant(4.0), param_dtype=jnp.float32,
  )  # fmt: skip
  assert {name: set(np.unique(value)) for name, value in params.items()} == {
    'kernel': {1.0}, 'recurrent_kernel': {2.0}, 'bias': {3.0}, 'kernel_scale': {1.0}, 'recurrent_scale': {1.0},
    'projection_kernel': {4.0},
  }  # fmt: skip
  assert {value.dtype for value in params.values()} == {jnp.dtype(F32)}
  drawn = tree_cell.init(jax.random.key(0), ARCH, IN, H, **ALL, bias_init=nn.initializers.normal())
  assert (
    len({*np.concatenate([value.ravel() for value in drawn.values()])})
    == sum(value.size for name, value in drawn.items() if 'scale' not in name) + 1
  )  # no two draw the same numbers


WRONG = [
  ({'bias_init': nn.initializers.zeros_init()}, r'bias_init is given, but the cell has no bias: set bias=True'),
  ({'projection_init': nn.initializers.zeros_init()}, r'projection_init is given, but the cell has no projection'),
  ({'projection': 0}, r'projection \(=0\) must be the width of h'),
]
OF_MODULES = [({'recurrent_dropout': rate}, r'recurrent_dropout \(=.*\) must be a rate') for rate in (-0.1, 1.0)]
ZEROS = (jnp.zeros(H), jnp.zeros(H))
USES = {
  'init': lambda **wrong: tree_cell.init(jax.random.key(0), ARCH, IN, H, **wrong),
  'TreeCell': lambda **wrong: tree_cell.TreeCell(H, ARCH, **wrong).init(jax.random.key(0), ZEROS, jnp.ones(IN)),
  'NNXTreeCell': lambda **wrong: tree_cell.NNXTreeCell(IN, H, ARCH, **wrong, rngs=nnx.Rngs(0)),
}


@pytest.mark.parametrize(
  ('use', 'wrong', 'words'),
  [(use, *case) for use in USES for case in WRONG + (OF_MODULES if use != 'init' else [])]
  + [
    ('init', {'scale': 1.0, 'kernel_init': nn.initializers.zeros_init()}, r'scale is the range of the default init'),
    ('TreeCell', {'recurrent_dropout': 0.5}, r'recurrent_dropout needs deterministic: False in training'),
    ('NNXTreeCell', {'bias_metadata': {'note': 1}}, r'bias_metadata is given, but the cell has no bias'),
  ],
)
def test_what_does_not_fit_is_refused(use, wrong, words):
  with pytest.raises(ValueError, match=f'^{words}') as error:
    USES[use](**wrong)
  one_line(error)


@pytest.mark.parametrize('use', ['apply', 'unroll', 'file'])
def test_parameters_that_would_not_be_read_are_refused(use):
  params, carry, xs = example()
  file = {}
  exec(tree_cell.to_source(ARCH), file)
  with pytest.raises(ValueError, match='hold .kernel_scales.*none of kernel|has no kernel_scale,') as error:
    if use == 'file':
      file['unroll'](params | {'kernel_scale': jnp.ones(2 * H)}, carry, xs)
    else:
      getattr(tree_cell, use)(params | {'kernel_scales': 1}, ARCH, carry, xs if use == 'unroll' else xs[0])
  one_line(error)


def test_the_page_names_every_option():
  page = (pathlib.Path(tree_cell.__file__).parents[2] / 'docs' / 'cells.md').read_text()
  options = {field.name for field in dataclasses.fields(tree_cell.TreeCell)} - {'parent', 'name'}
  for function in (tree_cell.NNXTreeCell.__init__, tree_cell.init, tree_cell.unroll):
    options |= set(inspect.signature(function).parameters) - {'self', 'key', 'rngs', 'in_features', 'hidden_features'}
  assert not [name for name in options - {'features', 'arch', 'params', 'carry', 'xs'} if f'`{name}' not in page]


def test_missing_keys_are_named():
  cell = tree_cell.TreeCell(H, ARCH, recurrent_dropout=0.5, deterministic=False)
  rnn, xs = nn.RNN(cell), jnp.ones((T, IN))
  weights = rnn.init(jax.random.key(0), xs)
  with pytest.raises(ValueError, match=r"^recurrent_dropout needs the rng 'dropout': .*split_rngs") as error:
    rnn.apply(weights, xs, rngs={'dropout': jax.random.key(1)})  # RNN hands on no key that split_rngs does not name
  one_line(error)
  module = tree_cell.NNXTreeCell(IN, H, ARCH, carry_init=nn.initializers.ones_init(), rngs=nnx.Rngs(0))
  with pytest.raises(ValueError, match=r'^carry_init needs keys: pass rngs') as error:
    module.initialize_carry((B, IN))
  one_line(error)
  np.testing.assert_array_equal(module.initialize_carry((B, IN), nnx.Rngs(0))[1], np.ones((B, H)))


def test_modules_with_options_can_be_hashed():
  one, other = (tree_cell.TreeCell(H, ARCH, **ALL, dtype=jnp.bfloat16) for _ in range(2))
  assert hash(one) == hash(other) and one == other
