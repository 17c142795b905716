"""A tree cell for Flax linen."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from nas_jax.nn.recurrent import Carry
from nas_jax.operations import BUILT_IN, Operations
from nas_jax.published import NASCELL
from nas_jax.space.tree import TreeArch, check_tree
from nas_jax.tree_cell import cell, params
from nas_jax.tree_cell.params import Initializer
from nas_jax.types import Array, DType, Key


class TreeCell(nn.RNNCellBase):
  """A tree cell for Flax linen, e.g. for `nn.RNN`. The carry is (c, h); parameters are named as by `init`.

  Attributes that `nn.OptimizedLSTMCell` also has mean the same here.

  Attributes:
    features: H.
    arch: a static architecture.
    bias: whether to add the one bias [n * H] that TensorFlow's NASCell offers.
    operations: your own operations, if the arch holds any.
    dtype: the type of the products with weights; by default the common type of inputs, carry and parameters.
    param_dtype: the type of the parameters and of fresh carries.
    kernel_init: initializer of the whole 'kernel' [in, n * H]; by default uniform in +- 1 / sqrt(H). Initializers
      from `nn.with_partitioning` are accepted.
    recurrent_kernel_init: initializer of the whole 'recurrent_kernel', by default as for 'kernel'.
    bias_init: initializer of the bias; by default zeros.
    carry_init: initializer of c and of h.
    projection: P, the width of h; None for H without a projection. See `init`.
    projection_init: initializer of the 'projection_kernel'.
    layer_norm: whether to normalize each leaf's projections of x and of h, see `init`.
    recurrent_dropout: rate of dropout of h where it enters the leaves. The mask is drawn by the rng 'dropout' in each
      step. `nn.RNN(cell, split_rngs={'params': False, 'dropout': False})` takes the same mask in all time steps (Gal &
      Ghahramani, 2016). With True for 'dropout' each step has its own mask.
    deterministic: whether to leave dropout out, as in evaluation; must be given if the rate is above 0.

  Raises:
    ValueError: raised when the cell is called: `arch` is no architecture of a cell, an attribute is out of range, an
      initializer is given for a parameter that the cell does not have, or dropout lacks `deterministic` or its rng.

  >>> import flax.linen as nn
  >>> import jax, jax.numpy as jnp
  >>> from nas_jax import tree_cell
  >>> rnn = nn.RNN(tree_cell.TreeCell(features=4, arch=tree_cell.LSTM))
  >>> xs = jnp.ones((2, 5, 3))  # batch, time, features
  >>> rnn.apply(rnn.init(jax.random.key(0), xs), xs).shape
  (2, 5, 4)
  """

  features: int
  arch: TreeArch = NASCELL
  bias: bool = False
  operations: Operations = BUILT_IN
  dtype: DType | None = None
  param_dtype: DType = jnp.float32
  kernel_init: Initializer | None = None
  recurrent_kernel_init: Initializer | None = None
  bias_init: Initializer | None = None
  carry_init: Initializer = nn.initializers.zeros_init()
  projection: int | None = None
  projection_init: Initializer | None = None
  layer_norm: bool = False
  recurrent_dropout: float = 0.0
  deterministic: bool | None = None

  @nn.compact
  def __call__(self, carry: Carry, inputs: Array) -> tuple[Carry, Array]:
    """One step, as `apply`."""
    check_tree(self.arch, self.operations)
    initializers = params.initializers_of(
      self.arch, inputs.shape[-1], self.features, bias=self.bias, projection=self.projection,
      layer_norm=self.layer_norm, kernel_init=self.kernel_init, recurrent_kernel_init=self.recurrent_kernel_init,
      bias_init=self.bias_init, projection_init=self.projection_init,
    )  # fmt: skip
    made = {
      name: self.param(name, initializer, shape, self.param_dtype)
      for name, (initializer, shape) in initializers.items()
    }
    mask, held = self._mask(carry[1]), self.operations
    return cell.apply(made, self.arch, carry, inputs, h_mask=mask, dtype=self.dtype, operations=held)

  def _mask(self, h: Array) -> Array | None:
    """Draws the mask of recurrent dropout; None if nothing is dropped."""
    params.check_rate(self.recurrent_dropout)
    if self.recurrent_dropout and self.deterministic is None:
      raise ValueError('recurrent_dropout needs deterministic: False in training, True in evaluation.')
    if not self.recurrent_dropout or self.deterministic:
      return None
    if not (self.has_rng('dropout') or self.has_rng('params')):
      raise ValueError(
        "recurrent_dropout needs the rng 'dropout': pass rngs={'dropout': key} to apply, and "
        "split_rngs={'params': False, 'dropout': False} to nn.RNN."
      )
    return params.dropout_mask(self.make_rng('dropout'), self.recurrent_dropout, h)

  @nn.nowrap
  def initialize_carry(self, rng: Key, input_shape: tuple[int, ...]) -> Carry:
    """Returns (c, h) by `carry_init`, in `param_dtype`; `input_shape` is [..., in]."""
    (c_key, h_key), batch = jax.random.split(rng), input_shape[:-1]
    c = self.carry_init(c_key, (*batch, self.features), self.param_dtype)
    return c, self.carry_init(h_key, (*batch, self.projection or self.features), self.param_dtype)

  @property
  def num_feature_axes(self) -> int:
    """One: the last axis of the inputs."""
    return 1
