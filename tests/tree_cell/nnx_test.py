"""The tree cell in Flax NNX."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nas_jax import space, tree_cell

ARCH = space.TreeArch((0, 1, 0), (1, 3, 2), (0, 3), (1, 0))


@pytest.mark.parametrize('bias', [False, True])
def test_in_nnx_rnn_it_is_unroll(bias):
  cell = tree_cell.NNXTreeCell(3, 4, ARCH, bias=bias, rngs=nnx.Rngs(0))
  params = {name: value[...] for name, value in nnx.state(cell, nnx.Param).items()}
  assert {name: value.shape for name, value in params.items()} == {
    'kernel': (3, 8),
    'recurrent_kernel': (4, 8),
  } | ({'bias': (8,)} if bias else {})
  xs = jax.random.normal(jax.random.key(1), (5, 2, 3))
  ys = nnx.RNN(cell, time_major=True)(xs)
  zeros = jnp.zeros((2, 4))
  np.testing.assert_allclose(ys, tree_cell.unroll(params, ARCH, (zeros, zeros), xs)[1], rtol=1e-6)


def test_it_can_be_trained():
  cell = tree_cell.NNXTreeCell(3, 4, ARCH, rngs=nnx.Rngs(0))
  xs = jax.random.normal(jax.random.key(1), (2, 5, 3))
  grads = nnx.grad(lambda cell: (nnx.RNN(cell)(xs) ** 2).sum())(cell)
  assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(nnx.state(grads)))


def test_no_other_name_is_made_up():
  with pytest.raises(AttributeError, match='TorchTreeCell'):
    tree_cell.TorchTreeCell  # noqa: B018
