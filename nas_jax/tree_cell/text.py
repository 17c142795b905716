"""Static tree cells as text: equations for people, a Python file for other projects."""

from collections.abc import Iterator, Mapping
import textwrap
from typing import NamedTuple

from nas_jax.space.tree import ACTIVATE, COMBINE, IDENTITY, TreeArch, leaves


class _Words(NamedTuple):
  """How a cell is spelled."""

  x: str  # what the input gives to leaf {i}
  h: str  # what the state gives to leaf {i}
  functions: Mapping[str, str]  # the names of operations that are called, where they are spelled otherwise


def equations(arch: TreeArch) -> str:
  """A static cell as equations, a line a node; x and h are x_t and h_(t-1), c is c_(t-1)."""
  return '\n'.join(f'{name} = {value}' for name, value in _statements(arch, _Words('W{i} x', 'U{i} h', {})))


def to_source(arch: TreeArch) -> str:
  """A static cell as a Python file that needs only JAX: `init`, `step` and `unroll`.

  Its parameters are those of `tree_cell`, so weights trained here work there and the other way round.
  """
  functions = {
    'tanh': 'jnp.tanh',
    'sigmoid': 'jax.nn.sigmoid',
    'relu': 'jax.nn.relu',
    'sin': 'jnp.sin',
    'max': 'jnp.maximum',
  }
  statements = _statements(arch, _Words('x[{i}]', 'h[{i}]', functions))
  body = textwrap.indent('\n'.join(f'{name} = {value}' for name, value in statements), '  ')
  fields = ', '.join(f'{name}={tuple(values)}' for name, values in arch._asdict().items())
  return _FILE.format(fields=fields, leaves=leaves(arch), body=body)


def _statements(arch: TreeArch, words: _Words) -> Iterator[tuple[str, str]]:
  """(name, expression) in the order of evaluation; the last is h_t."""
  n = leaves(arch)

  def call(operation: str, *operands: str) -> str:
    return f'{words.functions.get(operation, operation)}({", ".join(operands)})'

  def combined(operation: int, a: str, b: str) -> str:
    if COMBINE[operation] == 'max':
      return call('max', a, b)
    # Sums and products of two words, as 'W0 x', need brackets only as factors.
    a, b = (f'({x})' if ' ' in x and COMBINE[operation] == 'mult' and not x.endswith(')') else x for x in (a, b))
    return f'{a} {"+" if COMBINE[operation] == "add" else "*"} {b}'

  def activated(operation: int, value: str) -> str:
    return value if operation == IDENTITY else call(ACTIVATE[operation], value)

  for node in range(2 * n - 1):
    if node < n:
      pair = words.x.format(i=node), words.h.format(i=node)
    else:
      pair = f'a{2 * (node - n)}', f'a{2 * (node - n) + 1}'
    value = combined(arch.combine[node], *pair)
    if node == arch.index[0]:
      yield 'c_t', value
    value = activated(arch.activate[node], value)
    if node == arch.index[1]:
      if arch.activate[node] == IDENTITY and COMBINE[arch.inject[0]] != 'max' and COMBINE[arch.combine[node]] != 'max':
        value = f'({value})'
      value = activated(arch.inject[1], combined(arch.inject[0], value, 'c'))
    yield ('h_t' if node == 2 * n - 2 else f'a{node}'), value


_FILE = '''"""A recurrent cell found by architecture search. It needs only JAX.

{fields}
"""

import jax
import jax.numpy as jnp


def init(key, in_features, features):
  """Parameters, uniform within +- 1 / sqrt(features)."""
  limit, (first, second) = features**-0.5, jax.random.split(key)
  return {{
    'kernel': jax.random.uniform(first, (in_features, {leaves} * features), minval=-limit, maxval=limit),
    'recurrent_kernel': jax.random.uniform(second, (features, {leaves} * features), minval=-limit, maxval=limit),
  }}


def step(params, carry, x):
  """One time step: ((c, h), x [batch, in_features]) to ((c, h), h)."""
  c, h = carry
  x = jnp.split(x @ params['kernel'], {leaves}, axis=-1)
  h = jnp.split(h @ params['recurrent_kernel'] + params.get('bias', 0.0), {leaves}, axis=-1)
{body}
  return (c_t, h_t), h_t


def unroll(params, carry, xs):
  """The cell over xs [time, batch, in_features]: the last (c, h), and every h."""
  return jax.lax.scan(lambda carry, x: step(params, carry, x), carry, xs)
'''
