"""The cell-tree compiler: a `TreeArch` to a recurrent cell, Zoph & Le (2017) Sec. 3.4.

A *static* arch (Python ints) compiles to its own operations and nothing else. A *traced* arch (int32 arrays, see
`space.stack`) makes one program for every cell, which chooses the operations as it runs.

Leaf i combines x W_i and h_(t-1) U_i; an inner node combines its two children; each node then applies its activation.
Cell Inject: the value of node index[1], after its activation, is combined with c_(t-1) and activated once more. Cell
Index: c_t is the value of node index[0] before its activation, so before injection if both indices name one node. h_t
is the value of the root, injected if it is the root that takes c_(t-1).
"""

from collections.abc import Sequence
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from nas_jax.published import LSTM, NASCELL
from nas_jax.space.base import is_static
from nas_jax.space.tree import ACTIVATE, COMBINE, IDENTITY, RELU, SIGMOID, SIN, TANH, TreeArch, leaves
from nas_jax.tree_draw import draw
from nas_jax.tree_text import equations, to_source
from nas_jax.types import Array, Key, PyTree

__all__ = ['LSTM', 'NASCELL', 'TreeArch', 'TreeCell', 'apply', 'draw', 'equations', 'init', 'to_source', 'unroll']

Carry = tuple[Array, Array]  # (c, h), each [B, H]
Operations = tuple[Sequence[int], Sequence[int]]  # the (combine, activate) ids that a traced arch may hold
EVERY: Operations = (tuple(range(len(COMBINE))), tuple(range(len(ACTIVATE))))


def init(
  key: Key, arch: TreeArch, in_features: int, features: int, *, bias: bool = False, scale: float | None = None
) -> dict[str, Array]:
  """Parameters in the layout of TensorFlow's NASCell: n leaves side by side, in index order.

  Args:
    key: the random key.
    arch: static or traced; only its number of leaves n matters.
    in_features: width of x.
    features: H, width of c and h.
    bias: adds a 'bias' [n * H] of zeros, which the paper's cells do not have; as in TensorFlow it joins h U, not x W.
    scale: weights are uniform in [-scale, scale]; by default 1 / sqrt(H).

  Returns:
    {'kernel': [in_features, n * H], 'recurrent_kernel': [H, n * H]}.
  """
  width = leaves(arch) * features
  scale = features**-0.5 if scale is None else scale
  input_key, recurrent_key = jax.random.split(key)
  params = {
    'kernel': jax.random.uniform(input_key, (in_features, width), minval=-scale, maxval=scale),
    'recurrent_kernel': jax.random.uniform(recurrent_key, (features, width), minval=-scale, maxval=scale),
  }
  return params | {'bias': jnp.zeros(width)} if bias else params


def apply(
  params: dict[str, Array], arch: TreeArch, carry: Carry, x: Array, *, operations: Operations = EVERY
) -> tuple[Carry, Array]:
  """One time step: carry (c, h) [B, H] and x [B, in] to ((c, h), h).

  `operations` is for a traced arch: the ids that it may hold, so that the program can leave the others out.
  """
  c, h = carry
  recurrent = h @ params['recurrent_kernel'] + _bias(params)[None]
  c, h = _tree(arch, operations, *_vary_together((x @ params['kernel'], recurrent, c), arch))
  return (c, h), h


def unroll(
  params: dict[str, Array],
  arch: TreeArch,
  carry: Carry,
  xs: Array,
  *,
  h_mask: Array | None = None,
  length: Array | None = None,
  hoist: bool = True,
  operations: Operations = EVERY,
) -> tuple[Carry, Array]:
  """The cell over a sequence; the input projections of all steps are one product before the loop.

  With `hoist` the gradient of the recurrent weights is one product after the backward loop rather than a sum of T small
  ones inside it, and the values inside the tree are computed again rather than stored. That is a `custom_vjp`: take
  `hoist=False` for forward-mode derivatives.

  Args:
    params: as `init` returns them.
    arch: static or traced.
    carry: (c, h), each [B, H].
    xs: [T, B, in], time first.
    h_mask: [B, H] or [H], multiplies h_(t-1) where it enters the leaves (variational dropout).
    length: [B] int, the steps each row takes; afterwards its carry stays as it is.
    hoist: see above.
    operations: for a traced arch, the ids that it may hold.

  Returns:
    The final (c, h) and the outputs h_t [T, B, H]; those past a row's length mean nothing.
  """
  mask = jnp.broadcast_to(jnp.ones((), xs.dtype) if h_mask is None else h_mask, carry[1].shape)
  keep = None if length is None else jnp.arange(len(xs))[:, None, None] < length[None, :, None]
  floats = (params['recurrent_kernel'], _bias(params), xs @ params['kernel'], *carry, mask)
  c, h, hs = (_hoisted_scan if hoist else _scan)(arch, operations, keep, *_vary_together(floats, (arch, keep)))
  return (c, h), hs


class TreeCell(nn.RNNCellBase):
  """A cell as a Flax (linen) recurrent cell, for `nn.RNN` and friends: carry (c, h), parameters as `init` names them.

  Attributes:
    features: H.
    arch: static, so that each cell is its own program.
    bias: whether to add the one bias [n * H] that TensorFlow's NASCell offers.
  """

  features: int
  arch: TreeArch = NASCELL
  bias: bool = False

  @nn.compact
  def __call__(self, carry: Carry, inputs: Array) -> tuple[Carry, Array]:
    """One step, as `apply`."""

    def make(name, shape):
      limit = self.features**-0.5
      return self.param(name, lambda key: jax.random.uniform(key, shape, minval=-limit, maxval=limit))

    width = leaves(self.arch) * self.features
    params = {
      'kernel': make('kernel', (inputs.shape[-1], width)),
      'recurrent_kernel': make('recurrent_kernel', (self.features, width)),
    }
    if self.bias:
      params['bias'] = self.param('bias', nn.initializers.zeros_init(), (width,))
    return apply(params, self.arch, carry, inputs)

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


def __getattr__(name: str) -> Any:
  if name == 'NNXTreeCell':  # on first use: flax.nnx brings in optax
    from nas_jax.tree_cell_nnx import NNXTreeCell

    return NNXTreeCell
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}.')


def _bias(params: dict[str, Array]) -> Array:
  """[n * H], zeros where the cell has none."""
  kernel = params['recurrent_kernel']
  return params['bias'] if 'bias' in params else jnp.zeros(kernel.shape[1:], kernel.dtype)


def _vary_together(arrays: tuple[Array, ...], others: PyTree) -> tuple[Array, ...]:
  """Under `shard_map`, makes all arrays vary over the mesh axes that any of them, or of `others`, varies over.

  A scan wants its carry, and a `custom_vjp` its cotangents, to be of one such type. Elsewhere this adds a constant 0.
  """
  zero = sum(jnp.zeros_like(array, shape=()) for array in jax.tree.leaves((arrays, others)))
  return tuple(array + zero for array in arrays)


# -- the loop over time -----------------------------------------------------------------------------------------------


def _scan(arch, operations, keep, kernel, bias, gates, c, h, mask):
  """The loop as it is written; JAX derives its gradient. Returns c, h [B, H] and the outputs [T, B, H]."""
  (c, h), (hs, *_) = jax.lax.scan(functools.partial(_step, arch, operations, kernel, bias, mask), (c, h), (gates, keep))
  return c, h, hs


def _step(arch, operations, kernel, bias, mask, carry, inputs):
  """One step: the carry after it, and its output beside what the backward pass needs."""
  (c, h), (gate, keep) = carry, inputs
  recurrent = (h * mask) @ kernel + bias[None]
  new_c, new_h = _tree(arch, operations, gate, recurrent, c)
  after = (new_c, new_h) if keep is None else (jnp.where(keep, new_c, c), jnp.where(keep, new_h, h))
  return after, (new_h, c, h, recurrent)


def _hoisted_scan(arch, operations, keep, *floats):
  """`_scan` with the weight gradient taken out of its backward loop."""
  # As an argument of a custom_vjp a static arch would be traced, so it enters by closure; a traced one must be one.
  static, traced = (arch, None) if is_static(arch) else (None, arch)

  @jax.custom_vjp
  def scan(traced, keep, kernel, bias, gates, c, h, mask):
    return _scan(static or traced, operations, keep, kernel, bias, gates, c, h, mask)

  def forward(traced, keep, kernel, bias, gates, c, h, mask):
    step = functools.partial(_step, static or traced, operations, kernel, bias, mask)
    (c, h), (hs, cs, before, recurrents) = jax.lax.scan(step, (c, h), (gates, keep))
    return (c, h, hs), (traced, keep, kernel, gates, cs, before, recurrents, mask)

  def backward(residuals, cotangents):
    traced, keep, kernel, gates, cs, before, recurrents, mask = residuals
    dc, dh, dhs = cotangents

    def step(carry, inputs):
      dc, dh = carry
      gate, recurrent, c, keep, dh_out = inputs
      if keep is None:
        past_c = past_h = 0.0
      else:  # a row past its length hands its cotangent on unchanged
        past_c, past_h = jnp.where(keep, 0.0, dc), jnp.where(keep, 0.0, dh)
        dc, dh = jnp.where(keep, dc, 0.0), jnp.where(keep, dh, 0.0)
      _, vjp = jax.vjp(functools.partial(_tree, static or traced, operations), gate, recurrent, c)
      dgate, drecurrent, dc = vjp((dc, dh_out + dh))
      dmasked = drecurrent @ kernel.T
      return (dc + past_c, dmasked * mask + past_h), (dgate, drecurrent, dmasked)

    inputs = (gates, recurrents, cs, keep, dhs)
    (dc, dh), (dgates, drecurrents, dmasked) = jax.lax.scan(step, (dc, dh), inputs, reverse=True)
    dkernel = jnp.einsum('tbi,tbj->ij', before * mask[None], drecurrents)
    return None, None, dkernel, drecurrents.sum((0, 1)), dgates, dc, dh, (dmasked * before).sum(0)

  scan.defvjp(forward, backward)
  return scan(traced, keep, *floats)


# -- one step of the tree ---------------------------------------------------------------------------------------------


def _tree(arch: TreeArch, operations: Operations, x: Array, h: Array, c: Array) -> Carry:
  """What enters the leaves, x and h [B, n * H], and c_(t-1) [B, H], to (c_t, h_t)."""
  if is_static(arch):
    return _static_tree(arch, x, h, c)
  return _traced_tree(arch, operations, x, h, c)


def _static_tree(arch: TreeArch, x: Array, h: Array, c: Array) -> Carry:
  n = leaves(arch)
  pairs = list(zip(jnp.split(x, n, -1), jnp.split(h, n, -1), strict=True))
  values: list[Array] = []
  for node in range(2 * n - 1):
    if node >= n:
      pairs.append((values[2 * (node - n)], values[2 * (node - n) + 1]))
    value = _COMBINE[arch.combine[node]](*pairs[node])
    if node == arch.index[0]:
      c_new = value
    value = _ACTIVATE[arch.activate[node]](value)
    if node == arch.index[1]:
      value = _ACTIVATE[arch.inject[1]](_COMBINE[arch.inject[0]](value, c))
    values.append(value)
  return c_new, values[-1]


def _traced_tree(arch: Any, operations: Operations, x: Array, h: Array, c: Array) -> Carry:
  """The same, a level of the tree at a time: few wide operations, each a choice among the possible ones.

  Injection touches one node, so its level branches: under `lax.map` the other levels skip it, under `vmap` they select.
  """
  n = leaves(arch)
  left, right = (value.reshape(*value.shape[:-1], n, -1) for value in (x, h))

  def combine(chosen, a, b):
    return _combine(operations[0], _beside(chosen, a), a, b)

  def activate(chosen, value):
    return _activate(operations[1], _beside(chosen, value), value)

  c_new, first = jnp.zeros_like(c), 0

  def inject(level, place):
    value = jax.lax.dynamic_index_in_dim(level, place, -2)
    value = activate(arch.inject[1:], combine(arch.inject[:1], value, c[..., None, :]))
    return jax.lax.dynamic_update_slice_in_dim(level, value, place, -2)

  while True:
    width = left.shape[-2]
    level = combine(arch.combine[first : first + width], left, right)
    reads, takes = arch.index[0] - first, arch.index[1] - first
    here = jax.lax.dynamic_index_in_dim(level, jnp.clip(reads, 0, width - 1), -2, keepdims=False)
    c_new = jnp.where((0 <= reads) & (reads < width), here, c_new)
    level = activate(arch.activate[first : first + width], level)
    inside = (0 <= takes) & (takes < width)
    level = jax.lax.cond(inside, inject, lambda level, _: level, level, jnp.clip(takes, 0, width - 1))
    if width == 1:
      return c_new, level[..., 0, :]
    left, right, first = level[..., ::2, :], level[..., 1::2, :], first + width


def _beside(chosen: Array, value: Array) -> Array:
  """[k] operations, shaped to stand beside the nodes of `value` [..., k, H]."""
  return chosen.reshape((1,) * (value.ndim - 2) + (-1, 1))


_COMBINE = (jnp.add, jnp.multiply, jnp.maximum)  # by id, as space.COMBINE names them
_ACTIVATE = (lambda x: x, jnp.tanh, jax.nn.sigmoid, jax.nn.relu, jnp.sin)  # as space.ACTIVATE


def _combine(possible: Sequence[int], chosen: Array, a: Array, b: Array) -> Array:
  """Node k of a level [..., k, H] by operation `chosen[..., k, :]`."""
  return _choose(chosen, {i: _COMBINE[i](a, b) for i in possible})


def _activate(possible: Sequence[int], chosen: Array, x: Array) -> Array:
  """Node k of a level [..., k, H] by operation `chosen[..., k, :]`.

  One tanh serves both tanh and sigmoid(x) = (1 + tanh(x / 2)) / 2.
  """
  values = {i: _ACTIVATE[i](x) for i in possible if i in (IDENTITY, RELU, SIN)}
  if TANH in possible or SIGMOID in possible:
    tanh = jnp.tanh(jnp.where(chosen == SIGMOID, 0.5, 1.0).astype(x.dtype) * x)
    values |= {i: v for i, v in {TANH: tanh, SIGMOID: 0.5 + 0.5 * tanh}.items() if i in possible}
  return _choose(chosen, values)


def _choose(chosen: Array, values: dict[int, Array]) -> Array:
  (_, value), *rest = values.items()
  for i, other in rest:
    value = jnp.where(chosen == i, other, value)
  return value
