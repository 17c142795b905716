"""The tree of a cell as a function without weights, as `nn.recurrent` takes it.

A *static* arch (Python ints) gives a program of its own operations only. With a *traced* arch (int32 arrays, see
`space.stack`) one program runs every cell and selects the operations as it runs.

Leaf i combines x W_i and h_(t-1) U_i; an inner node combines its two children; each node then applies its activation.
Cell Inject: the value of node index[1], after its activation, is combined with c_(t-1) and activated once more. Cell
Index: c_t is the value of node index[0] before its activation, hence before injection if both indices are the same
node. h_t is the value of the root, after injection if the root is node index[1].
"""

from collections.abc import Callable, Sequence
import functools
from typing import Any

import jax
import jax.numpy as jnp

from nas_jax import operations as operations_lib
from nas_jax.nn import recurrent
from nas_jax.nn.recurrent import Carry
from nas_jax.operations import Operations
from nas_jax.space.base import is_static
from nas_jax.space.tree import TreeArch, check_tree, leaves
from nas_jax.types import Array


def program(arch: TreeArch, operations: Operations, backward: bool = False) -> tuple[recurrent.Cell, TreeArch | None]:
  """Returns a cell as `nn.recurrent` takes it, and the arch if it is traced. A static arch is closed over.

  Args:
    arch: static or traced.
    operations: the operations that the arch may hold.
    backward: whether the cell will run in a backward loop, where another form of the cell is faster.

  Raises:
    ValueError: `arch` is no architecture of a cell, see `space.tree.check_tree`.
  """
  check_tree(arch, operations)
  if_ = _if_again if backward else _if
  if is_static(arch):
    return lambda _, x, h, c: _static_tree(arch, operations, x, h, c), None
  return lambda traced, x, h, c: _traced_tree(traced, operations, if_, x, h, c), arch


def _static_tree(arch: TreeArch, operations: Operations, x: Array, h: Array, c: Array) -> Carry:
  n = leaves(arch)
  return static_tree(arch, operations, jnp.split(x, n, -1), jnp.split(h, n, -1), c)


def static_tree(arch: TreeArch, operations: Operations, xs: Sequence[Array], hs: Sequence[Array], c: Array) -> Carry:
  """Computes (c_t, h_t) from the projections of x and h for each leaf, and c_(t-1). All arrays have one shape."""
  n = leaves(arch)
  combine = functools.partial(operations_lib.combine, operations)
  activate = functools.partial(operations_lib.activate, operations)
  pairs = list(zip(xs, hs, strict=True))
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

  JAX derives a gradient for which both branches store what the gradient of either one needs. So the branch that does
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
