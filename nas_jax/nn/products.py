"""Products of inputs with weights for loops over time, and their gradients."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from nas_jax.types import Array, DType, PyTree


class Rows(NamedTuple):
  """Inputs that are rows of a table, such as the embeddings of words."""

  table: Array  # [V, in]
  indices: Array  # [T, B] int


Inputs = Array | Rows  # [T, B, in]


def looked_up(xs: Inputs) -> Array:
  """Returns the inputs as an array [T, B, in]."""
  return xs.table[xs.indices] if isinstance(xs, Rows) else xs


def projected(xs: Inputs, kernel: Array, hoist: bool = True, dtype: DType | None = None) -> Array:
  """Computes x W for all steps, [T, B, out]. `dtype` may be wider than the factors' type; `hoist` is as in `unroll`.

  If the inputs are rows of a table that has fewer rows than there are inputs, the table is projected first, and then
  its rows are looked up. The result is the same and takes fewer operations.
  """
  if isinstance(xs, Rows) and len(xs.table) < xs.indices.size:
    return projected(xs.table[None], kernel, hoist, dtype)[0][xs.indices]
  x, kernel = vary_together(promoted((looked_up(xs), kernel)), ())
  return project(x, kernel, dtype) if hoist else jnp.matmul(x, kernel, preferred_element_type=dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def project(x: Array, kernel: Array, dtype: DType | None = None) -> Array:
  """Computes x W for all steps x [T, B, in]. The gradient of W is `weight_gradient`, which is faster on a CPU."""
  return jnp.matmul(x, kernel, preferred_element_type=dtype)


def weight_gradient(x: Array, dy: Array, kernel: Array) -> Array:
  """Returns the gradient [in, out] of weights that map x [T, B, in] to outputs whose gradient is dy [T, B, out].

  The gradient is one product of two matrices, because for a sum over two axes XLA:CPU would first copy both arrays into
  another order. On a mesh with Explicit axes the two axes must not be merged, so JAX's own gradient is used, which is
  sharded as the weights are.
  """
  if jax.sharding.AxisType.Explicit in jax.typeof(x).sharding.mesh.axis_types:
    return jax.vjp(lambda kernel: x @ kernel, kernel)[1](dy)[0]
  x, dy = (value.reshape(-1, value.shape[-1]) for value in (x, dy))
  return transposed(x) @ dy


def _project_backward(dtype, saved, dy):
  del dtype
  x, kernel = saved
  dy = dy.astype(x.dtype)
  return dy @ kernel.T, weight_gradient(x, dy, kernel)


def _project_forward(x, kernel, dtype):
  return jnp.matmul(x, kernel, preferred_element_type=dtype), (x, kernel)


project.defvjp(_project_forward, _project_backward)


def transposed(kernel: Array) -> Array:
  """Returns W^T [..., out, in] as an array, so that a loop does not transpose W again in each of its products."""
  return jax.lax.optimization_barrier(kernel.mT)


def cast(values: PyTree, dtype: DType | None) -> PyTree:
  """Casts all floating-point arrays to `dtype`; None leaves them as they are. Integers, such as indices, are kept."""

  def one(value):
    return value.astype(dtype) if jnp.issubdtype(value.dtype, jnp.inexact) else value

  return values if dtype is None else jax.tree.map(one, values)


def promoted(arrays: tuple[Array, ...]) -> tuple[Array, ...]:
  """Casts arrays to their common type."""
  return tuple(array.astype(jnp.result_type(*arrays)) for array in arrays)


def vary_together(arrays: PyTree, others: PyTree) -> PyTree:
  """Under `shard_map`, makes all arrays vary over each mesh axis that one of them, or of `others`, varies over.

  The carry of a scan and the cotangents of a `custom_vjp` must vary over the same axes before and after. Outside of
  `shard_map` this function adds a constant 0.
  """
  leaves = jax.tree.leaves((arrays, others))
  zero = jnp.asarray(sum(jnp.zeros_like(leaf, shape=(), dtype=jnp.float32) for leaf in leaves))
  return jax.tree.map(lambda array: array + zero.astype(array.dtype), arrays)
