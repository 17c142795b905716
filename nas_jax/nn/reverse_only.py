"""Marks values that have only reverse-mode derivatives, so that forward mode raises a helpful error."""

import jax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
import jax.numpy as jnp

from nas_jax.types import PyTree


def reverse_only(values: PyTree, message: str) -> PyTree:
  """Returns `values`. Forward-mode derivatives with respect to them (`jvp`, `jacfwd`, ...) raise TypeError(message).

  A `custom_vjp` raises an error in this case too, but the message is JAX's own, and under `jit` it comes only when the
  program is lowered, outside of any `try`. The gradient itself may be differentiated in either mode, as with a
  `custom_vjp`.
  """

  def mark(value):
    return _mark.bind(value, message=message) if jnp.issubdtype(jnp.result_type(value), jnp.inexact) else value

  return jax.tree.map(mark, values)


_mark = Primitive('reverse_only')  # the identity on values
_tangent = Primitive('reverse_only_tangent')  # the identity on tangents, which may be transposed but not computed


def _refuse(*_, message, **__):
  raise TypeError(message)


def _differentiate(primals, tangents, *, message):
  (value,), (tangent,) = primals, tangents
  return value, tangent if type(tangent) is ad.Zero else _tangent.bind(tangent, message=message)


_mark.def_impl(lambda value, **_: value)
_tangent.def_impl(_refuse)
mlir.register_lowering(_mark, lambda _, value, **__: [value])
mlir.register_lowering(_tangent, _refuse)
ad.primitive_jvps[_mark] = _differentiate
ad.deflinear2(_tangent, lambda cotangent, _, **__: [cotangent])
for _primitive in (_mark, _tangent):
  _primitive.def_abstract_eval(lambda value, **_: value)
  batching.defvectorized(_primitive)
