"""A GPU kernel for the loop over time of a static tree cell. No search uses it, as it has not run on a GPU yet.

`tree_cell.unroll` starts several small kernels in each time step, and on a GPU a small cell waits for their start. Here
one kernel runs all time steps of a child forward, and another one backward. Under `vmap` each child is one block of
threads, so children train on different multiprocessors. The arithmetic of the cell and of its gradient is that of
`tree_cell.program`. The module stands beside the benchmark that compares the two loops. It belongs in `nas_jax.nn` only
if it is faster on a GPU.

A kernel reads the recurrent weights once, before its loop, and they stay on the chip. Their gradient is one product
after the loop, as in `tree_cell.unroll`, so it takes no room there. A cell of base n has n H^2 recurrent weights, and a
multiprocessor of an H100 has 227 KB of shared memory and 256 KB of registers. In float32:

  base 8, H = 64: 128 KB of weights. Triton plans 144 KB of shared memory for the forward kernel of NASCELL, and 200 KB
    for the backward kernel, which exchanges the gradients of all leaves between threads.
  base 8, H = 128: 512 KB of weights, which do not fit. In bfloat16 they would take 256 KB, which does not fit either.

All tiles are [H, B], not [B, H]. So the weights are the first factor of each product, which fills the 64 rows of one
instruction of Hopper's tensor cores, and the tile of a leaf is a product of its own, not a slice of a wider one. Triton
takes tiles only if their sizes are powers of two, so B is padded to a power of two, and to at least 16.

JAX 0.11 has deprecated Pallas's Triton backend, so before a search uses the kernel it should be written for Mosaic GPU,
whose shared memory and tensor cores are explicit.
"""

from collections.abc import Callable
import functools
from typing import Any

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
import jax.numpy as jnp

from nas_jax.nn.products import projected, weight_gradient
from nas_jax.nn.recurrent import Carry
from nas_jax.operations import BUILT_IN
from nas_jax.space.tree import TreeArch
from nas_jax.tree_cell.program import static_tree
from nas_jax.types import Array

LEAST = 16  # the least number of columns of a tile in a product
STAGES = 1  # tiles are not loaded ahead of time, as the tiles of three steps would need 488 KB in the backward loop


def unroll(
  params: dict[str, Array],
  arch: TreeArch,
  carry: Carry,
  xs: Array,
  *,
  warps: int = 8,
  interpret: bool = False,
) -> tuple[Carry, Array]:
  """Runs a cell of float32 without bias over a sequence, as `tree_cell.unroll` does.

  Args:
    params: 'kernel' [in, n * H] and 'recurrent_kernel' [H, n * H]. H must be a power of two and at least 16.
    arch: static.
    carry: (c, h), each [B, H].
    xs: [T, B, in], time first.
    warps: warps of 32 threads for each child.
    interpret: runs the kernels as JAX operations, on any device.

  Returns:
    The final (c, h) and the outputs h_t [T, B, H].

  Raises:
    ValueError: `params` hold other weights, such as a bias.
  """
  if set(params) != {'kernel', 'recurrent_kernel'}:
    raise ValueError(f'params hold {", ".join(sorted(params))}: the kernel takes kernel and recurrent_kernel alone.')
  tree = functools.partial(static_tree, arch, BUILT_IN)
  call = functools.partial(_call, triton.CompilerParams(warps, STAGES), interpret)
  c, h, hs = _loop(tree, call)(params['recurrent_kernel'], projected(xs, params['kernel']), *carry)
  return (c, h), hs


def _call(params: Any, interpret: bool, kernel: Callable, shapes: list[tuple[int, ...]], *inputs: Array) -> list[Array]:
  """Runs a kernel on whole arrays. Returns its outputs, which have the given shapes."""
  outputs = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
  return pl.pallas_call(kernel, outputs, interpret=interpret, compiler_params=params)(*inputs)


def _loop(tree: Callable, call: Callable) -> Callable:
  """Returns a function (recurrent_kernel, gates [T, B, n * H], c, h) -> (c, h, hs) that has a gradient of its own."""

  @jax.custom_vjp
  def loop(kernel, gates, c, h):
    return forward(kernel, gates, c, h)[0]

  def forward(kernel, gates, c, h):
    batch, features = c.shape
    inputs, c_tile, h_tile = (_tiles(value, features) for value in (gates, c, h))
    states = (len(gates), *c_tile.shape)
    weights = kernel.reshape(features, -1, features)
    cs, hs, products = call(
      functools.partial(_forward, tree),
      [states, states, inputs.shape],
      weights.transpose(1, 2, 0),
      inputs,
      c_tile,
      h_tile,
    )
    befores = [jnp.concatenate([first[None], after[:-1]]) for first, after in ((c_tile, cs), (h_tile, hs))]
    last_c, outputs = _rows(cs[-1], batch), _rows(hs, batch)
    return (last_c, outputs[-1], outputs), (kernel, inputs, products, *befores)

  def backward(saved, cotangents):
    kernel, inputs, products, c_before, h_before = saved
    batch, features = cotangents[0].shape
    dc, dh, dhs = (_tiles(value, features) for value in cotangents)
    dgates, dproducts, dc, dh = call(
      functools.partial(_backward, tree),
      [inputs.shape, inputs.shape, dc.shape, dh.shape],
      kernel.reshape(features, -1, features).transpose(1, 0, 2),
      inputs,
      products,
      c_before,
      dhs,
      dc,
      dh,
    )
    dkernel = weight_gradient(_rows(h_before, batch), _rows(dproducts, batch), kernel)
    return dkernel, *(_rows(value, batch) for value in (dgates, dc, dh))

  loop.defvjp(forward, backward)
  return loop


def _forward(tree, weights, gates, c, h, cs, hs, products):
  """The kernel of the forward loop. Each `gates[t, i]` is the tile [H, B] of leaf i.

  It writes the states after each step, and the products h U, which the backward loop needs.
  """
  each = range(len(weights))
  kernels = [weights[i] for i in each]  # [H, H], transposed

  def step(t, carry):
    c, h = carry
    recurrent = [kernels[i] @ h for i in each]
    for i in each:
      products[t, i] = recurrent[i]
    c, h = tree([gates[t, i] for i in each], recurrent, c)
    cs[t, 0], hs[t, 0] = c, h
    return c, h

  jax.lax.fori_loop(0, len(gates), step, (c[0], h[0]))


def _backward(tree, weights, gates, products, c_before, dhs, dc, dh, dgates, dproducts, dc_first, dh_first):
  """The kernel of the backward loop, which recomputes the values inside the cell."""
  each, steps = range(len(weights)), len(gates)
  kernels = [weights[i] for i in each]  # [H, H]

  def step(done, carry):
    (dc, dh), t = carry, steps - 1 - done
    inputs = [gates[t, i] for i in each], [products[t, i] for i in each], c_before[t, 0]
    _, vjp = jax.vjp(tree, *inputs)
    dgate, dproduct, dc = vjp((dc, dh + dhs[t, 0]))
    for i in each:
      dgates[t, i], dproducts[t, i] = dgate[i], dproduct[i]
    return dc, sum(kernels[i] @ dproduct[i] for i in each)

  dc_first[0], dh_first[0] = jax.lax.fori_loop(0, steps, step, (dc[0], dh[0]))


def _tiles(values: Array, features: int) -> Array:
  """Lays [..., B, n * H] out as [..., n, H, B], with B padded by zeros."""
  batch = values.shape[-2]
  values = jnp.swapaxes(values, -1, -2).reshape(*values.shape[:-2], -1, features, batch)
  more = max(LEAST, pl.next_power_of_2(batch)) - batch
  return jnp.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, more)])


def _rows(tiles: Array, batch: int) -> Array:
  """The inverse of `_tiles`."""
  kept = tiles[..., :batch]
  return jnp.swapaxes(kept.reshape(*kept.shape[:-3], -1, batch), -1, -2)
