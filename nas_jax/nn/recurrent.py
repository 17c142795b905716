"""The loop over time for recurrent cells whose weights only multiply x and h: tree cells and the LSTM.

Such a cell is a function without weights. It maps the projections of x and of h to its k gates (or leaves), and
c_(t-1), to c_t and h_t. So the projections of all inputs are one product before the loop, and the gradient of each
weight matrix is one product after it.
"""

from collections.abc import Callable
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from nas_jax.types import Array, Key, PyTree

Carry = tuple[Array, Array]  # (c, h), each [B, H]
# (arch, x W [B, k * H], h U + b [B, k * H], c [B, H]) -> (c, h); `arch` is the traced architecture, or None
Cell = Callable[[PyTree, Array, Array, Array], Carry]


class Rows(NamedTuple):
  """Inputs that are rows of a table, such as the embeddings of words."""

  table: Array  # [V, in]
  indices: Array  # [T, B] int


Inputs = Array | Rows  # [T, B, in]


def init(
  key: Key, in_features: int, features: int, gates: int, *, bias: bool = False, scale: float | Array | None = None
) -> dict[str, Array]:
  """Returns 'kernel' [in_features, gates * H] and 'recurrent_kernel' [H, gates * H], uniform in [-scale, scale].

  By default scale is 1 / sqrt(H). `bias` adds a 'bias' [gates * H] of zeros.
  """
  width = gates * features
  scale = features**-0.5 if scale is None else scale
  input_key, recurrent_key = jax.random.split(key)
  params = {
    'kernel': jax.random.uniform(input_key, (in_features, width), minval=-scale, maxval=scale),
    'recurrent_kernel': jax.random.uniform(recurrent_key, (features, width), minval=-scale, maxval=scale),
  }
  return params | {'bias': jnp.zeros(width)} if bias else params


def step(cell: Cell, arch: PyTree, params: dict[str, Array], carry: Carry, x: Array) -> tuple[Carry, Array]:
  """One time step: maps the carry (c, h) [B, H] and x [B, in] to ((c, h), h)."""
  c, h = carry
  recurrent = h @ params['recurrent_kernel'] + _bias(params)[None]
  c, h = cell(arch, *vary_together((x @ params['kernel'], recurrent, c), arch))
  return (c, h), h


def unroll(
  cell: Cell,
  arch: PyTree,
  params: dict[str, Array],
  carry: Carry,
  xs: Inputs,
  *,
  h_mask: Array | None = None,
  length: Array | None = None,
  hoist: bool = True,
  backward_cell: Cell | None = None,
) -> tuple[Carry, Array]:
  """Runs a cell over a sequence.

  Args:
    cell: see `Cell`.
    arch: the traced architecture, or None.
    params: 'kernel' [in, k * H], 'recurrent_kernel' [H, k * H] and perhaps 'bias' [k * H].
    carry: (c, h), each [B, H].
    xs: [T, B, in], time first; or `Rows` of a table.
    h_mask: [B, H] or [H], multiplies h_(t-1) where it enters the cell (variational dropout).
    length: [B] int, the number of steps of each row; after them its carry stays as it is.
    hoist: computes the gradient of the recurrent weights as one product after the backward loop, and recomputes the
      values inside the cell instead of storing them. This is a `custom_vjp`, so forward-mode derivatives need False.
    backward_cell: the cell to recompute with, if another form of it is faster there.

  Returns:
    The final (c, h) and the outputs h_t [T, B, H]; outputs after a row's length have no meaning.
  """
  mask = jnp.broadcast_to(jnp.ones((), carry[1].dtype) if h_mask is None else h_mask, carry[1].shape)
  gates = projected(xs, params['kernel'], hoist)
  keep = None if length is None else jnp.arange(len(gates))[:, None, None] < length[None, :, None]
  floats = (params['recurrent_kernel'], _bias(params), gates, *carry, mask)
  scan = functools.partial(_hoisted_scan, backward_cell or cell) if hoist else _scan
  c, h, hs = scan(cell, arch, keep, *vary_together(floats, (arch, keep)))
  return (c, h), hs


def lstm(_: PyTree, x: Array, h: Array, c: Array) -> Carry:
  """The LSTM as a cell of four gates: input, candidate, forget, output; no peepholes (Zaremba et al., 2014, Sec. 3)."""
  i, g, f, o = jnp.split(x + h, 4, -1)
  c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
  return c, jax.nn.sigmoid(o) * jnp.tanh(c)


def looked_up(xs: Inputs) -> Array:
  """Returns the inputs as an array [T, B, in]."""
  return xs.table[xs.indices] if isinstance(xs, Rows) else xs


def projected(xs: Inputs, kernel: Array, hoist: bool = True) -> Array:
  """Computes x W for all steps, [T, B, out]; `hoist` as in `unroll`.

  If the inputs are rows of a table with fewer rows than there are inputs, the table is projected and its rows are
  looked up, which gives the same with fewer operations.
  """
  if isinstance(xs, Rows) and len(xs.table) < xs.indices.size:
    return projected(xs.table[None], kernel, hoist)[0][xs.indices]
  x, kernel = vary_together((looked_up(xs), kernel), ())
  return (project if hoist else jnp.matmul)(x, kernel)


@jax.custom_vjp
def project(x: Array, kernel: Array) -> Array:
  """x W for all steps [T, B, in], with the gradient of `weight_gradient`, which is faster on a CPU."""
  return x @ kernel


def weight_gradient(x: Array, dy: Array) -> Array:
  """Returns the gradient [in, out] of weights that map x [T, B, in] to outputs whose gradient is dy [T, B, out].

  It is one product of two matrices: for a sum over two axes XLA:CPU would first copy both arrays into another order.
  """
  x, dy = (value.reshape(-1, value.shape[-1]) for value in (x, dy))
  return transposed(x) @ dy


project.defvjp(
  lambda x, kernel: (x @ kernel, (x, kernel)),
  lambda saved, dy: (dy @ saved[1].T, weight_gradient(saved[0], dy)),
)


def transposed(kernel: Array) -> Array:
  """Returns W^T [..., out, in] as an array, so that a loop does not transpose W again in each of its products."""
  return jax.lax.optimization_barrier(kernel.mT)


def _bias(params: dict[str, Array]) -> Array:
  """Returns the bias [k * H]; zeros if the cell has none."""
  kernel = params['recurrent_kernel']
  return params['bias'] if 'bias' in params else jnp.zeros(kernel.shape[1:], kernel.dtype)


def vary_together(arrays: tuple[Array, ...], others: PyTree) -> tuple[Array, ...]:
  """Under `shard_map`, makes all arrays vary over each mesh axis that one of them, or of `others`, varies over.

  The carry of a scan and the cotangents of a `custom_vjp` must not change in this respect. Outside of `shard_map` this
  adds a constant 0.
  """
  zero = sum(jnp.zeros_like(array, shape=()) for array in jax.tree.leaves((arrays, others)))
  return tuple(array + zero for array in arrays)


def _scan(cell, arch, keep, kernel, bias, gates, c, h, mask):
  """The plain loop, whose gradient JAX derives. Returns c, h [B, H] and the outputs [T, B, H]."""
  (c, h), (hs, *_) = jax.lax.scan(functools.partial(_step, cell, arch, kernel, bias, mask), (c, h), (gates, keep))
  return c, h, hs


def _step(cell, arch, kernel, bias, mask, carry, inputs):
  """One step. Returns the carry after it, and its output together with what the backward pass needs."""
  (c, h), (gate, keep) = carry, inputs
  recurrent = (h * mask) @ kernel + bias[None]
  new_c, new_h = cell(arch, gate, recurrent, c)
  after = (new_c, new_h) if keep is None else (jnp.where(keep, new_c, c), jnp.where(keep, new_h, h))
  return after, (new_h, c, h, recurrent)


def _hoisted_scan(backward_cell, cell, arch, keep, *floats):
  """`_scan` whose backward loop recomputes with `backward_cell` and does not contain the gradient of the weights."""

  @jax.custom_vjp
  def scan(arch, keep, kernel, bias, gates, c, h, mask):
    return _scan(cell, arch, keep, kernel, bias, gates, c, h, mask)

  def forward(arch, keep, kernel, bias, gates, c, h, mask):
    step = functools.partial(_step, cell, arch, kernel, bias, mask)
    (c, h), (hs, cs, before, recurrents) = jax.lax.scan(step, (c, h), (gates, keep))
    return (c, h, hs), (arch, keep, kernel, gates, cs, before, recurrents, mask)

  def backward(residuals, cotangents):
    arch, keep, kernel, gates, cs, before, recurrents, mask = residuals
    dc, dh, dhs = cotangents
    transposed_kernel = transposed(kernel)

    def step(carry, inputs):
      dc, dh = carry
      gate, recurrent, c, keep, dh_out = inputs
      if keep is None:
        past_c = past_h = 0.0
      else:  # after the length of a row its cotangent is passed on unchanged
        past_c, past_h = jnp.where(keep, 0.0, dc), jnp.where(keep, 0.0, dh)
        dc, dh = jnp.where(keep, dc, 0.0), jnp.where(keep, dh, 0.0)
      _, vjp = jax.vjp(functools.partial(backward_cell, arch), gate, recurrent, c)
      dgate, drecurrent, dc = vjp((dc, dh_out + dh))
      dmasked = drecurrent @ transposed_kernel
      return (dc + past_c, dmasked * mask + past_h), (dgate, drecurrent, dmasked)

    inputs = (gates, recurrents, cs, keep, dhs)
    (dc, dh), (dgates, drecurrents, dmasked) = jax.lax.scan(step, (dc, dh), inputs, reverse=True)
    dkernel = weight_gradient(before * mask[None], drecurrents)
    return None, None, dkernel, drecurrents.sum((0, 1)), dgates, dc, dh, (dmasked * before).sum(0)

  scan.defvjp(forward, backward)
  return scan(arch, keep, *floats)
