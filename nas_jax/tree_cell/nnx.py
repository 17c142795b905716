"""A tree cell for Flax NNX. It has a module of its own because `flax.nnx` imports optax."""

from collections.abc import Mapping
import types
from typing import Any

from flax import nnx
import jax.numpy as jnp

from nas_jax.nn.recurrent import Carry
from nas_jax.operations import BUILT_IN, Operations
from nas_jax.published import NASCELL
from nas_jax.space.tree import TreeArch
from nas_jax.tree_cell import cell, params
from nas_jax.tree_cell.params import Initializer
from nas_jax.types import Array, DType

_NAMES = ('kernel', 'recurrent_kernel', 'bias', 'kernel_scale', 'recurrent_scale', 'projection_kernel')
_NONE: Mapping[str, Any] = types.MappingProxyType({})


class NNXTreeCell(nnx.RNNCellBase):
  """A tree cell for `nnx.RNN`. The carry is (c, h); parameters are made and named as by `tree_cell.init`.

  Arguments that `nnx.OptimizedLSTMCell` also has mean the same here.

  Args:
    in_features: width of the inputs.
    hidden_features: H.
    arch: a static architecture.
    bias: whether to add the one bias [n * H] that TensorFlow's NASCell offers.
    operations: your own operations, if the arch holds any.
    dtype: the type of the products with weights; by default the common type of inputs, carry and parameters.
    param_dtype: the type of the parameters and of fresh carries.
    kernel_init: initializer of the whole 'kernel' [in, n * H]; by default uniform in +- 1 / sqrt(H). Initializers
      from `nnx.with_partitioning` are accepted.
    recurrent_kernel_init: initializer of the whole 'recurrent_kernel', by default as for 'kernel'.
    bias_init: initializer of the bias; by default zeros.
    carry_init: initializer of c and of h; by default zeros. `initialize_carry` can be given another one.
    projection: P, the width of h; None for H without a projection. See `tree_cell.init`.
    projection_init: initializer of the 'projection_kernel'.
    layer_norm: whether to normalize each leaf's projections of x and of h, see `tree_cell.init`.
    recurrent_dropout: rate of dropout of h where it enters the leaves. The mask is drawn by the rng stream 'dropout'
      in each step; `nnx.RNN(cell, broadcast_rngs='dropout')` takes the same mask in all time steps (Gal & Ghahramani,
      2016).
    deterministic: whether to leave dropout out; `train()` and `eval()` of a module set it.
    kernel_metadata: metadata of the 'kernel', such as {'out_sharding': (None, 'model')}.
    recurrent_kernel_metadata: metadata of the 'recurrent_kernel'.
    bias_metadata: metadata of the bias.
    rngs: gives the keys of the parameters and of dropout.

  Raises:
    ValueError: `arch` is no architecture of a cell, an argument is out of range, or an initializer or metadata are
      given for a parameter that the cell does not have.

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
    arch: TreeArch = NASCELL,
    *,
    bias: bool = False,
    operations: Operations = BUILT_IN,
    dtype: DType | None = None,
    param_dtype: DType = jnp.float32,
    kernel_init: Initializer | None = None,
    recurrent_kernel_init: Initializer | None = None,
    bias_init: Initializer | None = None,
    carry_init: Initializer | None = None,
    projection: int | None = None,
    projection_init: Initializer | None = None,
    layer_norm: bool = False,
    recurrent_dropout: float = 0.0,
    deterministic: bool = False,
    kernel_metadata: Mapping[str, Any] = _NONE,
    recurrent_kernel_metadata: Mapping[str, Any] = _NONE,
    bias_metadata: Mapping[str, Any] = _NONE,
    rngs: nnx.Rngs,
  ):
    params.check_rate(recurrent_dropout)
    if bias_metadata and not bias:
      raise ValueError('bias_metadata is given, but the cell has no bias: set bias=True, or leave bias_metadata out.')
    self.in_features, self.hidden_features = in_features, hidden_features
    self.arch, self.operations = nnx.static(arch), nnx.static(operations)
    self.dtype, self.param_dtype, self.carry_init = dtype, param_dtype, carry_init
    self.projection, self.recurrent_dropout, self.deterministic = projection, recurrent_dropout, deterministic
    initializers = params.initializers_of(
      arch, in_features, hidden_features, bias=bias, projection=projection, layer_norm=layer_norm,
      kernel_init=kernel_init, recurrent_kernel_init=recurrent_kernel_init, bias_init=bias_init,
      projection_init=projection_init,
    )  # fmt: skip
    metadata = {'kernel': kernel_metadata, 'recurrent_kernel': recurrent_kernel_metadata, 'bias': bias_metadata}
    made = params.initialized(rngs.params(), initializers, param_dtype)
    for name in _NAMES:
      setattr(self, name, nnx.Param(made[name], **metadata.get(name, {})) if name in made else nnx.data(None))
    self.rngs: Any = rngs['dropout'].fork() if recurrent_dropout else nnx.data(None)

  def __call__(self, carry: Carry, inputs: Array) -> tuple[Carry, Array]:
    """One step, as `tree_cell.apply`."""
    variables = {name: getattr(self, name) for name in _NAMES}
    made = {name: variable[...] for name, variable in variables.items() if variable is not None}
    dropping = self.recurrent_dropout and not self.deterministic
    mask = params.dropout_mask(self.rngs(), self.recurrent_dropout, carry[1]) if dropping else None
    return cell.apply(made, self.arch, carry, inputs, h_mask=mask, dtype=self.dtype, operations=self.operations)

  def initialize_carry(
    self,
    input_shape: tuple[int, ...],
    rngs: nnx.Rngs | nnx.RngStream | None = None,
    carry_init: Initializer | None = None,
  ) -> Carry:
    """Returns (c, h) in `param_dtype`; `input_shape` is [..., in_features].

    Args:
      input_shape: the shape of the inputs of a step.
      rngs: gives the keys for an initializer, from the stream 'carry'.
      carry_init: initializer of c and of h, by default that of the cell, or zeros, which need no `rngs`.

    Raises:
      ValueError: there is an initializer, but no `rngs`.
    """
    make, stream = carry_init or self.carry_init, rngs.carry if isinstance(rngs, nnx.Rngs) else rngs
    shapes = [(*input_shape[:-1], width) for width in (self.hidden_features, self.projection or self.hidden_features)]
    if make is None:
      c, h = (jnp.zeros(shape, self.param_dtype) for shape in shapes)
    elif stream is None:
      raise ValueError('carry_init needs keys: pass rngs=nnx.Rngs(...) to initialize_carry.')
    else:
      c, h = (make(stream(), shape, self.param_dtype) for shape in shapes)
    return c, h

  @property
  def num_feature_axes(self) -> int:
    """One: the last axis of the inputs."""
    return 1
