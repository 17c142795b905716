"""Compiles a `TreeArch` to a recurrent cell, Zoph & Le (2017) Sec. 3.4.

A *static* arch (Python ints) compiles to a program of its own operations only. With a *traced* arch (int32 arrays, see
`space.stack`) one program runs every cell and selects the operations as it runs.

Leaf i combines x W_i and h_(t-1) U_i; an inner node combines its two children; each node then applies its activation.
Cell Inject: the value of node index[1], after its activation, is combined with c_(t-1) and activated once more. Cell
Index: c_t is the value of node index[0] before its activation, hence before injection if both indices are the same
node. h_t is the value of the root, after injection if the root is node index[1].
"""

from collections.abc import Callable
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from nas_jax import operations as operations_lib
from nas_jax.nn import recurrent
from nas_jax.nn.recurrent import Carry
from nas_jax.operations import BUILT_IN, Operations
from nas_jax.published import NASCELL
from nas_jax.space.base import is_static
from nas_jax.space.tree import TreeArch, check_tree, leaves
from nas_jax.types import Array, Key


def init(
  key: Key, arch: TreeArch, in_features: int, features: int, *, bias: bool = False, scale: float | None = None
) -> dict[str, Array]:
  """Returns parameters in the layout of TensorFlow's NASCell: the columns of the n leaves in order.

  Args:
    key: the random key.
    arch: static or traced; only its number of leaves n is used.
    in_features: width of x.
    features: H, width of c and h.
    bias: adds a 'bias' [n * H] of zeros, which the paper's cells do not have. As in TensorFlow it is added to h U.
    scale: weights are uniform in [-scale, scale]; by default 1 / sqrt(H).

  Returns:
    {'kernel': [in_features, n * H], 'recurrent_kernel': [H, n * H]}.

  Raises:
    ValueError: `arch` is no architecture of a cell, see `space.tree.check_tree`.

  >>> import jax
  >>> from nas_jax import tree_cell
  >>> params = tree_cell.init(jax.random.key(0), tree_cell.NASCELL, in_features=3, features=4)
  >>> {name: weights.shape for name, weights in params.items()}  # NASCELL has 8 leaves
  {'kernel': (3, 32), 'recurrent_kernel': (4, 32)}
  """
  check_tree(arch, None)
  return recurrent.init(key, in_features, features, leaves(arch), bias=bias, scale=scale)


def apply(
  params: dict[str, Array], arch: TreeArch, carry: Carry, x: Array, *, operations: Operations = BUILT_IN
) -> tuple[Carry, Array]:
  """One time step: maps the carry (c, h) [B, H] and x [B, in] to ((c, h), h).

  `operations` are the operations that the arch may hold, as in `Space.operations`; a traced program computes only
  these. A static arch needs them only if it holds operations of your own.

  Raises:
    ValueError: `arch` is no architecture of a cell, such as a static one with an operation that is neither built in nor
      among `operations`, or a traced one that no `space.stack` made; see `space.tree.check_tree`.

  >>> import jax, jax.numpy as jnp
  >>> from nas_jax import tree_cell
  >>> params = tree_cell.init(jax.random.key(0), tree_cell.NASCELL, in_features=3, features=4)
  >>> zeros = jnp.zeros((2, 4))  # a batch of two
  >>> (c, h), y = tree_cell.apply(params, tree_cell.NASCELL, (zeros, zeros), jnp.ones((2, 3)))
  >>> c.shape, bool((y == h).all())
  ((2, 4), True)
  """
  return recurrent.step(*_cell(arch, operations, _if), params, carry, x)


def unroll(
  params: dict[str, Array],
  arch: TreeArch,
  carry: Carry,
  xs: recurrent.Inputs,
  *,
  h_mask: Array | None = None,
  length: Array | None = None,
  hoist: bool = True,
  operations: Operations = BUILT_IN,
) -> tuple[Carry, Array]:
  """Runs the cell over a sequence. The projections of all inputs are one product before the loop.

  With `hoist` the gradient of the recurrent weights is one product after the backward loop, not a sum of T products
  inside it, and the values inside the tree are recomputed, not stored. This is a `custom_vjp`: take `hoist=False` for
  forward-mode derivatives.

  Args:
    params: as `init` returns them.
    arch: static or traced.
    carry: (c, h), each [B, H].
    xs: [T, B, in], time first; or `nn.recurrent.Rows` of a table.
    h_mask: [B, H] or [H], multiplies h_(t-1) where it enters the leaves (variational dropout).
    length: [B] int, the number of steps of each row; after them its carry stays as it is.
    hoist: see above.
    operations: the operations that the arch may hold, see `apply`.

  Returns:
    The final (c, h) and the outputs h_t [T, B, H]; outputs after a row's length have no meaning.

  Raises:
    ValueError: as `apply` does.

  >>> import jax, jax.numpy as jnp
  >>> from nas_jax import tree_cell
  >>> params = tree_cell.init(jax.random.key(0), tree_cell.NASCELL, in_features=3, features=4)
  >>> zeros = jnp.zeros((2, 4))  # a batch of two
  >>> (c, h), ys = tree_cell.unroll(params, tree_cell.NASCELL, (zeros, zeros), jnp.ones((5, 2, 3)))  # five time steps
  >>> ys.shape, bool((ys[-1] == h).all())
  ((5, 2, 4), True)
  """
  cell, backward_cell = _cell(arch, operations, _if), _cell(arch, operations, _if_again)[0]
  return recurrent.unroll(
    *cell, params, carry, xs, h_mask=h_mask, length=length, hoist=hoist, backward_cell=backward_cell
  )


class TreeCell(nn.RNNCellBase):
  """A tree cell for Flax linen, e.g. for `nn.RNN`. The carry is (c, h); parameters are named as by `init`.

  Attributes:
    features: H.
    arch: a static architecture.
    bias: whether to add the one bias [n * H] that TensorFlow's NASCell offers.
    operations: your own operations, if the arch holds any.

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

  @nn.compact
  def __call__(self, carry: Carry, inputs: Array) -> tuple[Carry, Array]:
    """One step, as `apply`."""

    def make(name, shape):
      limit = self.features**-0.5
      return self.param(name, lambda key: jax.random.uniform(key, shape, minval=-limit, maxval=limit))

    check_tree(self.arch, self.operations)
    width = leaves(self.arch) * self.features
    params = {
      'kernel': make('kernel', (inputs.shape[-1], width)),
      'recurrent_kernel': make('recurrent_kernel', (self.features, width)),
    }
    if self.bias:
      params['bias'] = self.param('bias', nn.initializers.zeros_init(), (width,))
    return apply(params, self.arch, carry, inputs, operations=self.operations)

  @nn.nowrap
  def initialize_carry(self, rng: Key, input_shape: tuple[int, ...]) -> Carry:
    """Zeros; `input_shape` is [..., in]."""
    del rng
    zeros = jnp.zeros((*input_shape[:-1], self.features))
    return zeros, zeros

  @property
  def num_feature_axes(self) -> int:
    """One: the last axis of the inputs."""
    return 1


def _cell(arch: TreeArch, operations: Operations, if_: Callable) -> tuple[recurrent.Cell, TreeArch | None]:
  """Returns a cell as `nn.recurrent` takes it. A static arch is closed over: as an argument it would be traced."""
  check_tree(arch, operations)
  if is_static(arch):
    return lambda _, x, h, c: _static_tree(arch, operations, x, h, c), None
  return lambda traced, x, h, c: _traced_tree(traced, operations, if_, x, h, c), arch


def _static_tree(arch: TreeArch, operations: Operations, x: Array, h: Array, c: Array) -> Carry:
  n = leaves(arch)
  combine = functools.partial(operations_lib.combine, operations)
  activate = functools.partial(operations_lib.activate, operations)
  pairs = list(zip(jnp.split(x, n, -1), jnp.split(h, n, -1), strict=True))
  values: list[Array] = []
  for node in range(2 * n - 1):
    if node >= n:
      pairs.append((values[2 * (node - n)], values[2 * (node - n) + 1]))
    value = combine(arch.combine[node], *pairs[node])
    if node == arch.index[0]:
      c_new = value
    value = activate(arch.activate[node], value)
    if node == arch.index[1]:
      value = activate(arch.inject[1], combine(arch.inject[0], value, c))
    values.append(value)
  return c_new, values[-1]


def _traced_tree(arch: Any, operations: Operations, if_: Callable, x: Array, h: Array, c: Array) -> Carry:
  """Computes the tree level by level: a few wide operations, each of which selects from the possible ones.

  Only one node is injected, so each level has a conditional: under `lax.map` the other levels skip the injection, under
  `vmap` it becomes a select.
  """
  n = leaves(arch)
  left, right = (value.reshape(*value.shape[:-1], n, -1) for value in (x, h))

  def combine(chosen, a, b):
    return operations_lib.combine(operations, _beside(chosen, a), a, b)

  def activated(chosen, value):
    return operations_lib.activate(operations, _beside(chosen, value), value)

  def inject(how, level, c):
    chosen, place = how
    value = jax.lax.dynamic_index_in_dim(level, place, -2)
    value = activated(chosen[1:], combine(chosen[:1], value, c[..., None, :]))
    return jax.lax.dynamic_update_slice_in_dim(level, value, place, -2)

  c_new, first = jnp.zeros_like(c), 0
  while True:
    width = left.shape[-2]
    level = combine(arch.combine[first : first + width], left, right)
    reads, takes = arch.index[0] - first, arch.index[1] - first
    here = jax.lax.dynamic_index_in_dim(level, jnp.clip(reads, 0, width - 1), -2, keepdims=False)
    c_new = jnp.where((0 <= reads) & (reads < width), here, c_new)
    level = activated(arch.activate[first : first + width], level)
    inside, place = (0 <= takes) & (takes < width), jnp.clip(takes, 0, width - 1)
    level = if_(inject, inside, (arch.inject, place), level, c)
    if width == 1:
      return c_new, level[..., 0, :]
    pairs = level.reshape(*level.shape[:-2], width // 2, 2, -1)
    left, right = (half[..., 0, :] for half in jnp.split(pairs, 2, -2))  # slices would have a sum as gradient
    first += width


def _if(function: Callable, inside: Array, how: Any, value: Array, other: Array) -> Array:
  """Returns `function(how, value, other)` if `inside`, else `value`."""
  return jax.lax.cond(inside, lambda *both: function(how, *both), lambda value, _: value, value, other)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _if_again(function: Callable, inside: Array, how: Any, value: Array, other: Array) -> Array:
  """`_if` for the backward loop. Its gradient recomputes the branch, which saves 2 to 5 % of a step at H = 64.

  In the gradient that JAX derives, both branches return what the gradient of either one needs, so the branch that does
  nothing has to make such arrays too.
  """
  return _if(function, inside, how, value, other)


def _if_forward(function, inside, how, value, other):
  return _if(function, inside, how, value, other), (inside, how, value, other)


def _if_backward(function, saved, dvalue):
  inside, how, *both = saved

  def derived(dvalue):
    _, vjp = jax.vjp(functools.partial(function, how), *both)
    return vjp(dvalue)

  gradients = jax.lax.cond(inside, derived, lambda dvalue: (dvalue, jnp.zeros_like(both[1])), dvalue)
  return None, None, *gradients


_if_again.defvjp(_if_forward, _if_backward)


def _beside(chosen: Array, value: Array) -> Array:
  """Reshapes the ids [k] to broadcast with the nodes of `value` [..., k, H]."""
  return chosen.reshape((1,) * (value.ndim - 2) + (-1, 1))
