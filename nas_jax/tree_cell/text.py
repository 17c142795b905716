"""Static tree cells as text: as equations, and as a Python file for other projects."""

from collections.abc import Callable, Iterator
import functools
import textwrap
from typing import NamedTuple

from nas_jax import operations as operations_lib
from nas_jax.operations import BUILT_IN, IDENTITY, Operation, Operations
from nas_jax.space.checks import check_static
from nas_jax.space.tree import TreeArch, leaves


class _Words(NamedTuple):
  """How the parts of a cell are written."""

  x: str  # the projection of the input for leaf {i}
  h: str  # the projection of the state for leaf {i}
  function: Callable[[Operation], str]  # the name of the function of an operation


def equations(arch: TreeArch, operations: Operations = BUILT_IN) -> str:
  """Returns the equations of a static cell; x is x_t, h is h_(t-1) and c is c_(t-1).

  There is one line for c_t and one for each node, except for a node whose value is c_t. No expression is repeated.

  Args:
    arch: a static architecture.
    operations: your own operations, if the cell holds any; `Space.operations` has them.

  Raises:
    ValueError: the cell holds an operation that is neither built in nor among `operations`.

  >>> from nas_jax import tree_cell
  >>> cell = tree_cell.TreeArch(combine=(0, 1, 0), activate=(1, 3, 2), inject=(0, 3), index=(1, 0))
  >>> print(tree_cell.equations(cell))
  a0 = relu(tanh(W0 x + U0 h) + c)
  c_t = (W1 x) * (U1 h)
  a1 = relu(c_t)
  h_t = sigmoid(a0 + a1)
  """
  words = _Words('W{i} x', 'U{i} h', lambda operation: operation.name)
  return '\n'.join(f'{name} = {value}' for name, value in _statements(arch, operations, words))


def to_source(arch: TreeArch, operations: Operations = BUILT_IN) -> str:
  """Returns a Python file that implements a static cell and needs only JAX. It has `init`, `step` and `unroll`.

  Its parameters are those of `tree_cell` without projection or layer norm, so weights can be exchanged in both
  directions. Operations whose source is a plain name, such as jnp.tanh, are called directly; others are defined at the
  top of the file. No expression is computed twice.

  Args:
    arch: a static architecture.
    operations: your own operations, if the cell holds any; `Space.operations` has them.

  Raises:
    ValueError: the cell holds an operation that is neither built in nor among `operations`.

  >>> from nas_jax import tree_cell
  >>> cell = tree_cell.TreeArch(combine=(0, 1, 0), activate=(1, 3, 2), inject=(0, 3), index=(1, 0))
  >>> module = {}
  >>> exec(tree_cell.to_source(cell), module)
  >>> sorted(name for name in ('init', 'step', 'unroll') if name in module)
  ['init', 'step', 'unroll']
  """
  definitions: dict[str, str] = {}

  def function(operation: Operation) -> str:
    if operation.source.replace('.', '').isidentifier():
      return operation.source
    definitions[f'_{operation.name}'] = operation.source
    return f'_{operation.name}'

  statements = _statements(arch, operations, _Words('x[{i}]', 'h[{i}]', function))
  body = textwrap.indent('\n'.join(f'{name} = {value}' for name, value in statements), '  ')
  fields = ', '.join(f'{name}={tuple(values)}' for name, values in arch._asdict().items())
  own = ''.join(f'\n{name} = {source}' for name, source in definitions.items())
  return _FILE.format(fields=fields, leaves=leaves(arch), body=body, definitions=own and f'\n{own}')


def _statements(arch: TreeArch, operations: Operations, words: _Words) -> Iterator[tuple[str, str]]:
  """Yields (name, expression) in the order of evaluation; the last name is h_t. No expression is written twice."""
  check_static(arch, TreeArch, operations=operations)
  n = leaves(arch)
  combine, activate = (functools.partial(operations_lib.find, kind, operations) for kind in Operations._fields)

  def combined(chosen: int, a: str, b: str) -> str:
    operation = combine(chosen)
    if not operation.infix:
      return f'{words.function(operation)}({a}, {b})'
    # Products of two words, as 'W0 x', need no brackets in a sum or a difference.
    a, b = (f'({x})' if ' ' in x and operation.infix not in '+-' and not x.endswith(')') else x for x in (a, b))
    return f'{a} {operation.infix} {b}'

  def activated(chosen: int, value: str) -> str:
    return value if chosen == IDENTITY else f'{words.function(activate(chosen))}({value})'

  names: list[str] = []  # of the values of the nodes
  for node in range(2 * n - 1):
    if node < n:
      pair = words.x.format(i=node), words.h.format(i=node)
    else:
      pair = names[2 * (node - n)], names[2 * (node - n) + 1]
    value = combined(arch.combine[node], *pair)
    if node == arch.index[0]:
      yield 'c_t', value
      value = 'c_t'
    value = activated(arch.activate[node], value)
    if node == arch.index[1]:
      plain = value != 'c_t' and arch.activate[node] == IDENTITY  # then it is the combination as it was written
      if plain and combine(arch.inject[0]).infix and combine(arch.combine[node]).infix:
        value = f'({value})'
      value = activated(arch.inject[1], combined(arch.inject[0], value, 'c'))
    names.append(value if value == 'c_t' else f'a{node}')
    if node == 2 * n - 2:
      yield 'h_t', value
    elif value != 'c_t':
      yield names[node], value


_FILE = '''"""A recurrent cell found by architecture search. It needs only JAX.

{fields}
"""

import jax
import jax.numpy as jnp{definitions}


def init(key, in_features, features):
  """Parameters, uniform within +- 1 / sqrt(features)."""
  limit, (first, second) = features**-0.5, jax.random.split(key)
  return {{
    'kernel': jax.random.uniform(first, (in_features, {leaves} * features), minval=-limit, maxval=limit),
    'recurrent_kernel': jax.random.uniform(second, (features, {leaves} * features), minval=-limit, maxval=limit),
  }}


def step(params, carry, x):
  """One time step: ((c, h), x [batch, in_features]) to ((c, h), h)."""
  if unknown := set(params) - {{'kernel', 'recurrent_kernel', 'bias'}}:
    raise ValueError(f'this file has no {{", ".join(sorted(unknown))}}, and no projection or layer norm.')
  c, h = carry
  x = jnp.split(x @ params['kernel'], {leaves}, axis=-1)
  h = jnp.split(h @ params['recurrent_kernel'] + params.get('bias', 0.0), {leaves}, axis=-1)
{body}
  return (c_t, h_t), h_t


def unroll(params, carry, xs):
  """The cell over xs [time, batch, in_features]: the last (c, h), and every h."""
  return jax.lax.scan(lambda carry, x: step(params, carry, x), carry, xs)
'''
