"""The recurrent cell of ENAS, Pham et al. (2018) Sec. 2.1: a chain of highway nodes, each reading an earlier one.

A *static* `RnnArch` (Python ints) has its own weights only. A *traced* one (int32 arrays, see `space.stack`) selects
from weights that all cells of N nodes share, one matrix for each pair of a node and an earlier one. So one program runs
every cell.

Node 0 reads x_t and h_(t-1), node l reads node j = previous[l - 1]. With the activation f of a node, and * elementwise:

  c_0 = sigmoid(x W_c + h U_c),   h_0 = c_0 * f_0(x W_h + h U_h) + (1 - c_0) * h
  c_l = sigmoid(h_j V_c),         h_l = c_l * f_l(h_j V_h) + (1 - c_l) * h_j

h_t is the mean of the nodes that no other node reads.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nas_jax import operations as operations_lib
from nas_jax.nn import products
from nas_jax.nn import recurrent as recurrent_lib
from nas_jax.nn.precision import at_least_float32
from nas_jax.nn.reverse_only import reverse_only
from nas_jax.operations import BUILT_IN, IDENTITY, Operations
from nas_jax.space.base import is_static
from nas_jax.space.checks import check_static
from nas_jax.space.enas import RnnArch, check_rnn, loose_ends
from nas_jax.types import Array, Key


def init(
  key: Key, arch: RnnArch, in_features: int, features: int, *, scale: float | Array | None = None
) -> dict[str, Array]:
  """Returns the parameters of a static cell, or, for a traced arch, the parameters that all cells of N nodes share.

  Args:
    key: the random key.
    arch: only its number of nodes N, and whether it is static, are used.
    in_features: width of x.
    features: H, width of h.
    scale: weights are uniform in [-scale, scale]; by default 1 / sqrt(H).

  Returns:
    {'kernel': [in_features, 2 H], 'recurrent_kernel': [H, 2 H], 'nodes': [k, H, 2 H]}, with the columns of c_l before
    those of f_l. For a static arch k is N - 1. For a traced one k is N (N - 1) / 2, and the matrix of node l reading
    node j has the index l (l - 1) / 2 + j.

  Raises:
    ValueError: `arch` is no architecture of a cell, see `space.enas.check_rnn`; its activations are not looked at.
  """
  check_rnn(arch, None)
  scale = features**-0.5 if scale is None else scale
  ends_key, nodes_key = jax.random.split(key)
  kernels = jax.random.uniform(nodes_key, (_matrices(arch), features, 2 * features), minval=-scale, maxval=scale)
  return recurrent_lib.init(ends_key, in_features, features, 2, scale=scale) | {'nodes': kernels}


def own(params: dict[str, Array], arch: RnnArch) -> dict[str, Array]:
  """Selects the parameters of one cell, static or traced, from the shared ones, in the layout of a static cell.

  Raises ValueError as `init`.
  """
  check_rnn(arch, None)
  node = np.arange(1, len(arch.activate), dtype=np.int32)
  pairs = node * (node - 1) // 2 + jnp.asarray(arch.previous, jnp.int32)
  return params | {'nodes': params['nodes'][pairs]}


def unroll(
  params: dict[str, Array],
  arch: RnnArch,
  carry: Array,
  xs: products.Inputs,
  *,
  h_mask: Array | None = None,
  normalize: bool = False,
  hoist: bool = True,
  operations: Operations = BUILT_IN,
  together: int = 1,
) -> tuple[Array, Array]:
  """Runs the cell over a sequence. The input projections of all steps are one product before the loop.

  Args:
    params: as `init` returns them. With a traced arch the matrices of its cell are gathered once, before the loop.
    arch: static or traced.
    carry: h [B, H].
    xs: [T, B, in], time first; or `Rows` of a table.
    h_mask: [B, H] or [H], multiplies h_(t-1) in the products of node 0 (variational dropout).
    normalize: batch norm of the outputs, by the mean and variance over the B rows of each step and without a learned
      scale, as in the paper's search. The h that goes on to the next step is not normalized.
    hoist: computes the gradient of each recurrent matrix as one product after the backward loop, not as a sum of T
      products inside it. This is a `custom_vjp`, so forward-mode derivatives need False.
    operations: the operations that the arch may hold, as in `Space.operations`; a traced program computes only these. A
      static arch needs them only if it holds activations of your own.
    together: number of time steps in one iteration of the compiled loop, forward and backward.

  Returns:
    The final h and the outputs h_t [T, B, H].

  Raises:
    ValueError: `arch` is no architecture of a cell, see `space.enas.check_rnn`: for example, a static one holds an
      unknown activation; or the parameters do not fit the arch.
    TypeError: forward-mode derivatives are taken and `hoist` is True.
  """
  check_rnn(arch, operations)
  static, wanted = is_static(arch), _matrices(arch)
  if len(params['nodes']) != wanted:
    raise ValueError(
      f'nodes (={len(params["nodes"])} matrices) are not those of a {"static" if static else "traced"} cell of '
      f'{len(arch.activate)} nodes, which has {wanted}: `own` takes those of one cell out of the shared ones.'
    )
  if hoist:
    params, carry, xs, h_mask = reverse_only((params, carry, xs, h_mask), recurrent_lib.NO_FORWARD_MODE)
  chosen = params if static else own(params, arch)
  mask = jnp.broadcast_to(jnp.ones((), carry.dtype) if h_mask is None else h_mask, carry.shape)
  gates = products.projected(xs, chosen['kernel'], hoist)
  floats = products.promoted((chosen['recurrent_kernel'], chosen['nodes'], gates, carry, mask))
  loop = functools.partial(jax.lax.scan, unroll=together)
  h, hs = (_hoisted_scan if hoist else _scan)(loop, arch, operations, *products.vary_together(floats, arch))
  return h, jax.nn.standardize(at_least_float32(hs), axis=1).astype(hs.dtype) if normalize else hs


def equations(arch: RnnArch, operations: Operations = BUILT_IN) -> str:
  """Returns the equations of a static cell, two lines for each node; x and h are x_t and h_(t-1).

  Raises ValueError as `space.checks.check_static`: for example, if the cell holds an activation that is neither built
  in nor among `operations`.
  """
  check_static(arch, RnnArch, operations=operations)
  lines = []
  for node, activate in enumerate(arch.activate):
    before = f'h_{arch.previous[node - 1]}' if node else 'h'
    gate, value = (f'V{k}_{node} {before}' if node else f'W{k} x + U{k} h' for k in 'ch')
    name = '' if activate == IDENTITY else operations_lib.find('activate', operations, activate).name
    lines += [f'c_{node} = sigmoid({gate})', f'h_{node} = c_{node} * {name}({value}) + (1 - c_{node}) * {before}']
  ends = [f'h_{node}' for node in loose_ends(arch.previous, len(arch.activate))]
  mean = f'({" + ".join(ends)}) / {len(ends)}' if len(ends) > 1 else ends[0]
  return '\n'.join((*lines, f'h_t = {mean}'))


def _matrices(arch: RnnArch) -> int:
  """Returns the number of node matrices: one for each node after the first, or one for each pair if shared."""
  nodes = len(arch.activate)
  return nodes - 1 if is_static(arch) else nodes * (nodes - 1) // 2


def _shares(arch: Any) -> Array:
  """Returns the weight [N] of each node in h_t: the mean of the nodes that no other node reads."""
  nodes = np.arange(len(arch.activate))
  loose = (jnp.asarray(arch.previous, jnp.int32)[:, None] != nodes[None]).all(0)
  return loose / loose.sum()


def _node(operations: Operations, activate: int | Array, sums: Array, before: Array) -> Array:
  """Returns h_l [B, H]. `sums` [B, 2 H] are the inputs of c_l and f_l; `before` [B, H] is the node that it reads."""
  gate, value = jnp.split(sums, 2, -1)
  return before + jax.nn.sigmoid(gate) * (operations_lib.activate(operations, activate, value) - before)


def _step(arch, operations, recurrent, nodes, mask, h, x):
  """One step. Returns h_t, and for the backward pass h_t, h_(t-1), sums [N, B, 2 H] and values [N, B, H]."""
  static, sums = is_static(arch), [x + (h * mask) @ recurrent]
  values = [_node(operations, arch.activate[0], sums[0], h)]
  for activate, previous, kernel in zip(arch.activate[1:], arch.previous, nodes, strict=True):
    before = values[previous] if static else jax.lax.select_n(previous, *values)
    sums.append(before @ kernel)
    values.append(_node(operations, activate, sums[-1], before))
  every = jnp.stack(values)
  after = jnp.tensordot(_shares(arch).astype(h.dtype), every, 1)
  return after, (after, h, jnp.stack(sums), every)


def _scan(loop, arch, operations, recurrent, nodes, xs, h, mask):
  """The plain loop, whose gradient JAX derives. Returns h [B, H] and the outputs [T, B, H]."""
  h, (hs, *_) = loop(functools.partial(_step, arch, operations, recurrent, nodes, mask), h, xs)
  return h, hs


def _hoisted_scan(loop, arch, operations, *floats):
  """`_scan` whose backward loop does not contain the gradients of the matrices."""
  # A static arch enters by closure: as an argument it would become traced.
  fixed, chosen = (arch, None) if is_static(arch) else (None, arch)

  @jax.custom_vjp
  def scan(chosen, *floats):
    return _scan(loop, fixed or chosen, operations, *floats)

  def forward(chosen, recurrent, nodes, xs, h, mask):
    step = functools.partial(_step, fixed or chosen, operations, recurrent, nodes, mask)
    h, (hs, *kept) = loop(step, h, xs)
    return (h, hs), (chosen, recurrent, nodes, mask, *kept)

  def backward(residuals, cotangents):
    chosen, recurrent, nodes, mask, before, sums, values = residuals
    arch, (dh, dhs) = fixed or chosen, cotangents
    shares = _shares(arch).astype(dh.dtype)[:, None, None]
    transposed_kernel, transposed_nodes = products.transposed(recurrent), products.transposed(nodes)

    def through(activate, sums, before, dvalue):
      return jax.vjp(functools.partial(_node, operations, activate), sums, before)[1](dvalue)

    def step(dh, inputs):
      dh_out, before, sums, values = inputs
      dvalues, dsums = shares * (dh + dh_out)[None], []
      for node in reversed(range(1, len(arch.activate))):
        read = arch.previous[node - 1]
        dsum, dread = through(arch.activate[node], sums[node], values[read], dvalues[node])
        dvalues = dvalues.at[read].add(dread + dsum @ transposed_nodes[node - 1])
        dsums.append(dsum)
      dsum, dh = through(arch.activate[0], sums[0], before, dvalues[0])
      dmasked = dsum @ transposed_kernel
      return dh + dmasked * mask, (jnp.stack([dsum, *reversed(dsums)]), dmasked)

    dh, (dsums, dmasked) = loop(step, dh, (dhs, before, sums, values), reverse=True)
    drecurrent = products.weight_gradient(before * mask[None], dsums[:, 0], recurrent)
    dnodes = jnp.einsum('tnbi,tnbj->nij', values[:, jnp.asarray(arch.previous, jnp.int32)], dsums[:, 1:])
    return None, drecurrent, dnodes, dsums[:, 0], dh, (dmasked * before).sum(0)

  scan.defvjp(forward, backward)
  return scan(chosen, *floats)
