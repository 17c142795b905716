"""The precision in which children are trained and scored. Their weights are always kept in float32."""

import contextlib
from typing import Any

import jax
import jax.numpy as jnp

from nas_jax.types import PyTree

PRECISIONS = ('float32', 'bfloat16', 'tf32')
PRECISION_HELP = (
  "precision of children's products and of the values between them. 'float32': as JAX computes float32, which on some "
  "accelerators rounds the factors of products. 'tf32': the factors have at least TF32's precision. 'bfloat16': half "
  'the memory, and faster on accelerators. Weights, optimizer, statistics of batch norm and loss are always float32'
)


def lowered(precision: str, tree: PyTree) -> PyTree:
  """Prepares floats as factors of products: rounds them to bfloat16 for 'bfloat16', else leaves them as they are.

  Gradients come back in the type of the arrays that went in.
  """

  def low(x: Any) -> Any:
    return x.astype(jnp.bfloat16) if jnp.issubdtype(x.dtype, jnp.floating) else x

  return jax.tree.map(low, tree) if precision == 'bfloat16' else tree


def at_least_float32(x: jax.Array) -> jax.Array:
  """Prepares floats for sums and statistics: casts narrower types to float32 and leaves others as they are."""
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def scope(precision: str) -> contextlib.AbstractContextManager[Any]:
  """Returns the context in which programs of a precision are traced.

  With 'tf32' the factors of float32 products keep at least TF32's precision: one pass of TF32 on GPUs that have it,
  three passes of bfloat16 on TPUs. The other precisions leave JAX's own setting for float32 products unchanged.
  """
  return jax.default_matmul_precision('tensorfloat32') if precision == 'tf32' else contextlib.nullcontext()
