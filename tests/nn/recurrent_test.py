"""The loop over time with the LSTM in it; trees are tested in their own files."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nas_jax.nn import products, recurrent

T, B, IN, H = 5, 3, 4, 2


def test_the_lstm_is_flax_lstm(x64):
  params = recurrent.init(jax.random.key(0), IN, H, 4, bias=True)
  params['bias'] = jax.random.normal(jax.random.key(1), (4 * H,))
  xs = jax.random.normal(jax.random.key(2), (T, B, IN))
  parts = {}
  for k, gate in enumerate('igfo'):  # in this order they stand side by side
    here = slice(k * H, (k + 1) * H)
    parts[f'i{gate}'] = {'kernel': params['kernel'][:, here]}
    parts[f'h{gate}'] = {'kernel': params['recurrent_kernel'][:, here], 'bias': params['bias'][here]}
  zeros = jnp.zeros((B, H)), jnp.zeros((B, H))
  carry, ys = recurrent.unroll(recurrent.lstm, None, params, zeros, xs)
  rnn = nn.RNN(nn.LSTMCell(H, param_dtype=float), time_major=True, return_carry=True)
  flax_carry, flax_ys = rnn.apply({'params': {'cell': parts}}, xs)
  np.testing.assert_allclose(ys, flax_ys, rtol=1e-12)
  np.testing.assert_allclose(carry, flax_carry, rtol=1e-12)


@pytest.mark.parametrize('rows', [4, T * B - 1, T * B, 40])
@pytest.mark.parametrize('hoist', [True, False])
def test_rows_of_a_table_are_what_is_looked_up(x64, rows, hoist):
  """Values and gradients, whether the table is projected or what was looked up."""
  params = recurrent.init(jax.random.key(0), IN, H, 4, bias=True)
  table = jax.random.normal(jax.random.key(1), (rows, IN))
  places = jax.random.randint(jax.random.key(2), (T, B), 0, rows)
  zeros, weights = (jnp.zeros((B, H)), jnp.zeros((B, H))), jax.random.normal(jax.random.key(3), (T, B, H))

  def loss(params, table, made):
    _, ys = recurrent.unroll(recurrent.lstm, None, params, zeros, made(table, places), hoist=hoist)
    return (ys * weights).sum()

  both = [
    jax.value_and_grad(loss, (0, 1))(params, table, made)
    for made in (products.Rows, lambda table, places: table[places])
  ]
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12), *both)
  program = jax.jit(loss, static_argnums=2).lower(params, table, products.Rows).as_text()
  assert (f'tensor<1x{rows}x{4 * H}xf64>' in program) == (rows < T * B)


def test_hoisting_changes_no_gradient_of_the_lstm(x64):
  params = recurrent.init(jax.random.key(0), IN, H, 4, bias=True)
  xs, mask = jax.random.normal(jax.random.key(1), (T, B, IN)), jnp.array([[0.0, 2.0], [2.0, 0.0], [2.0, 2.0]])

  def loss(params, hoist):
    zeros = jnp.zeros((B, H)), jnp.zeros((B, H))
    (c, _), ys = recurrent.unroll(recurrent.lstm, None, params, zeros, xs, h_mask=mask, hoist=hoist)
    return (ys * jnp.arange(ys.size).reshape(ys.shape)).sum() + c.sum()

  one, other = (jax.grad(loss)(params, hoist) for hoist in (True, False))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11), one, other)


def test_init_is_uniform_in_its_range_and_takes_a_traced_scale():
  params = jax.jit(lambda scale: recurrent.init(jax.random.key(0), 30, 20, 4, scale=scale))(0.3)
  assert params['kernel'].shape == (30, 80) and params['recurrent_kernel'].shape == (20, 80) and 'bias' not in params
  for leaf in params.values():
    assert 0.29 < np.abs(leaf).max() <= 0.3 and abs(leaf.mean()) < 0.02
