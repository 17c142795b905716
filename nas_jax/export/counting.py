"""The cost of a Flax module: its weights, and the multiply-adds of one call."""

import math
from typing import Any

import flax.linen as nn
import jax
from jax.extend import core

from nas_jax.training.costs import Cost
from nas_jax.types import PyTree


def cost(module: nn.Module, *inputs: PyTree) -> Cost:
  """Counts the weights of a module, and the multiply-adds of one call, from its traced program; nothing is computed.

  Of a conditional the branch with the most multiply-adds counts.

  Args:
    module: a module of `export.module`, or any other.
    *inputs: its arguments, or their shapes: one image [1, H, W, C], or one token [1, 1] of a language model.

  >>> import jax, jax.numpy as jnp
  >>> from nas_jax import export, published
  >>> image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
  >>> export.cost(export.module(published.FIGURE_7), image)
  Cost(weights=4120990, multiply_adds=4218089952)
  """
  made = jax.eval_shape(module.init, jax.random.key(0), *inputs)
  program = jax.make_jaxpr(module.apply)(made, *inputs)
  return Cost(sum(leaf.size for leaf in jax.tree.leaves(made['params'])), _multiply_adds(program.jaxpr))


def _multiply_adds(program: core.Jaxpr) -> int:
  return sum(_of_equation(equation) for equation in program.eqns)


def _of_equation(equation: Any) -> int:
  name, outputs = equation.primitive.name, math.prod(equation.outvars[0].aval.shape) if equation.outvars else 0
  if name == 'conv_general_dilated':
    kernel, spec = equation.invars[1].aval.shape, equation.params['dimension_numbers'].rhs_spec
    return outputs * math.prod(kernel) // kernel[spec[0]]  # for each output the weights that it reads
  if name == 'dot_general':
    (contracted, _), _ = equation.params['dimension_numbers']
    return outputs * math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
  if name == 'cond':  # one of its branches is computed
    return max(_multiply_adds(branch.jaxpr) for branch in equation.params['branches'])
  inner = [part for value in equation.params.values() for part in _programs(value)]
  return equation.params.get('length', 1) * sum(map(_multiply_adds, inner)) if inner else 0


def _programs(value: Any) -> list[core.Jaxpr]:
  """Returns the programs that a parameter of an equation holds."""
  if isinstance(value, core.ClosedJaxpr):
    return [value.jaxpr]
  return [value] if isinstance(value, core.Jaxpr) else []
