"""A tree cell for Flax NNX. It has a module of its own because `flax.nnx` imports optax."""

from typing import Any

from flax import nnx
import jax.numpy as jnp

from nas_jax.operations import BUILT_IN, Operations
from nas_jax.space.tree import TreeArch
from nas_jax.tree_cell import cell
from nas_jax.types import Array


class NNXTreeCell(nnx.RNNCellBase):
  """A tree cell for `nnx.RNN`. The carry is (c, h); parameters are made and named as by `tree_cell.init`.

  Args:
    in_features: width of the inputs.
    hidden_features: H.
    arch: a static architecture.
    bias: whether to add the one bias [n * H] that TensorFlow's NASCell offers.
    operations: your own operations, if the arch holds any.
    rngs: gives the key of the parameters.

  >>> from flax import nnx
  >>> import jax.numpy as jnp
  >>> from nas_jax import tree_cell
  >>> rnn = nnx.RNN(tree_cell.NNXTreeCell(3, 4, tree_cell.LSTM, rngs=nnx.Rngs(0)))
  >>> rnn(jnp.ones((2, 5, 3))).shape  # batch, time, features
  (2, 5, 4)
  """

  def __init__(
    self,
    in_features: int,
    hidden_features: int,
    arch: TreeArch = cell.NASCELL,
    *,
    bias: bool = False,
    operations: Operations = BUILT_IN,
    rngs: nnx.Rngs,
  ):
    self.hidden_features, self.arch, self.operations = hidden_features, nnx.static(arch), nnx.static(operations)
    params = cell.init(rngs.params(), arch, in_features, hidden_features, bias=bias)
    self.kernel, self.recurrent_kernel = nnx.Param(params['kernel']), nnx.Param(params['recurrent_kernel'])
    self.bias = nnx.Param(params['bias']) if bias else nnx.data(None)

  def __call__(self, carry: cell.Carry, inputs: Array) -> tuple[cell.Carry, Array]:
    """One step, as `tree_cell.apply`."""
    params = {'kernel': self.kernel[...], 'recurrent_kernel': self.recurrent_kernel[...]}
    if self.bias is not None:
      params['bias'] = self.bias[...]
    return cell.apply(params, self.arch, carry, inputs, operations=self.operations)

  def initialize_carry(self, input_shape: tuple[int, ...], rngs: Any = None, carry_init: Any = None) -> cell.Carry:
    """Zeros; `input_shape` is [..., in_features]."""
    del rngs, carry_init
    zeros = jnp.zeros((*input_shape[:-1], self.hidden_features))
    return zeros, zeros

  @property
  def num_feature_axes(self) -> int:
    """One: the last axis of the inputs."""
    return 1
