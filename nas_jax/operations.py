"""The operations that recurrent cells are made of: elementwise combinations of two values and activations of one.

The two tables below are the only place that lists them. Spaces, flags, cells, equations, source files and drawings all
read the tables, so one more line here adds an operation everywhere. To use an operation of your own, leave this file as
it is and pass an `Operation` to the function that makes a space or a cell.

  swish = Operation('swish', lambda x: x * jax.nn.sigmoid(2 * x), 'lambda x: x * jax.nn.sigmoid(2 * x)')
  cells = space.tree_cell_space(base=2, activate=('tanh', swish))
  arch = cells.decode(tokens)
  tree_cell.apply(params, arch, carry, x, operations=cells.operations)

Architectures hold ids. The id of a built-in operation is its index in its table and never changes. Your own operations
get the ids after the last built-in one, in the order in which you give them. To read such an architecture one needs the
same operations in the same order: `Space.operations`. JSON has their names instead of ids.
"""

import ast
import builtins
from collections.abc import Callable, Sequence
import functools
import keyword
import operator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nas_jax.types import Array


class Rescaled(NamedTuple):
  """An activation written as a rescaled version of another one: f(x) = shift + scale * function(inner * x)."""

  function: Callable[[Array], Array]
  inner: float
  scale: float
  shift: float


class Operation(NamedTuple):
  """A combination of two values or an activation of one."""

  name: str  # a Python identifier, used in spaces, flags, best.json and, without an `infix`, in equations
  function: Callable[..., Array]  # maps two arrays of one shape (or one array) to an array of this shape and type
  source: str  # the function as a Python expression of `jax` and `jnp`: 'jnp.tanh', 'lambda x: x * jnp.tanh(x)'
  infix: str = ''  # the operator that equations and source files use for a combination, if there is one
  sign: str = ''  # the label in drawings; by default `infix` or, without one, the name
  symmetric: bool = False  # whether a combination is commutative and associative, which `canonical` makes use of
  rescaled: Rescaled | None = None  # lets a traced cell compute this activation from another one that it needs

  @property
  def label(self) -> str:
    """The label in drawings."""
    return self.sign or self.infix or self.name

  def __reduce__(self) -> tuple[Any, ...]:
    """Pickles a built-in operation by its name, because functions of JAX cannot be pickled."""
    kinds = [kind for kind, table in BUILT_IN._asdict().items() if self in table]
    return (_built_in, (kinds[0], self.name)) if kinds else (Operation, tuple(self))


COMBINATIONS = (
  Operation('add', jnp.add, 'jnp.add', infix='+', symmetric=True),
  Operation('mult', jnp.multiply, 'jnp.multiply', infix='*', sign='×', symmetric=True),
  Operation('max', jnp.maximum, 'jnp.maximum', symmetric=True),
)
ACTIVATIONS = (
  Operation('identity', lambda x: x, 'lambda x: x'),
  Operation('tanh', jnp.tanh, 'jnp.tanh'),
  Operation('sigmoid', jax.nn.sigmoid, 'jax.nn.sigmoid', sign='σ', rescaled=Rescaled(jnp.tanh, 0.5, 0.5, 0.5)),
  Operation('relu', jax.nn.relu, 'jax.nn.relu'),
  Operation('sin', jnp.sin, 'jnp.sin'),
)

# The ids of the operations that the code refers to by name.
ADD, MULT, MAX = range(3)
IDENTITY, TANH, SIGMOID, RELU, SIN = range(5)


class Operations(NamedTuple):
  """The operations that an architecture may hold. A built-in one may be given by its name."""

  combine: tuple[Operation | str, ...] = COMBINATIONS
  activate: tuple[Operation | str, ...] = ACTIVATIONS


BUILT_IN = Operations()

# These have finite derivatives at all finite values. See `_applied`.
_FINITE = [operation.function for operation in (*COMBINATIONS[: MAX + 1], *ACTIVATIONS[: SIN + 1])]


def _built_in(kind: str, name: str) -> Operation:
  """Returns a built-in operation by its name."""
  return next(operation for operation in getattr(BUILT_IN, kind) if operation.name == name)


def by_id(kind: str, given: Sequence[Operation | str]) -> dict[int, Operation]:
  """Returns the given operations by their ids, in the order given.

  Args:
    kind: 'combine' or 'activate'.
    given: names of built-in operations, and operations of the user's own.

  Raises:
    ValueError: there is no operation, one is unknown or given twice, or one of the user's own cannot be used.
  """
  built_in = {operation.name: operation for operation in getattr(BUILT_IN, kind)}
  found = [built_in.get(entry, entry) if isinstance(entry, str) else entry for entry in given]
  own = [entry for entry in found if isinstance(entry, Operation) and entry not in built_in.values()]
  for operation in own:
    _check(kind, operation)
  table = [*built_in.values(), *own]
  names = tuple(entry.name if isinstance(entry, Operation) else entry for entry in found)
  operations = [entry for entry in found if isinstance(entry, Operation)]
  if not names or len(operations) < len(found) or len(set(names)) < len(names):
    known = tuple(operation.name for operation in table)
    raise ValueError(
      f'{kind} (={names}) must name at least one of {known}, each once; hand in one of your own as an Operation.'
    )
  return {table.index(operation): operation for operation in operations}


def check(operations: Operations) -> None:
  """Raises ValueError if a combination and an activation have the same name, as source files define both by name.

  Built-in operations, which may be given by their names, have different ones.
  """
  names = [{one.name for one in kind if isinstance(one, Operation)} for kind in operations]
  if both := sorted(names[0] & names[1]):
    raise ValueError(f'a combination and an activation are both called {both[0]!r}: give one of them another name.')


def with_built_in(operations: Operations) -> Operations:
  """Returns these operations and all built-in ones, with unchanged ids. Raises ValueError as `check` and `by_id`."""
  check(operations)
  kinds = zip(Operations._fields, BUILT_IN, operations, strict=True)
  return Operations(*(tuple((by_id(kind, known) | by_id(kind, given)).values()) for kind, known, given in kinds))


def find(kind: str, operations: Operations, chosen: int) -> Operation:
  """Returns the operation that an id in a static architecture stands for.

  Args:
    kind: 'combine' or 'activate'.
    operations: the user's own operations; the built-in ones are always known.
    chosen: the id.

  Raises:
    ValueError: no operation has this id.
  """
  table = by_id(kind, getattr(with_built_in(operations), kind))
  if chosen not in table:
    known = ', '.join(f'{operation.name} {i}' for i, operation in table.items())
    raise ValueError(
      f'{kind} {chosen} in an architecture is none of {known}: hand in the operations of its space, '
      'as operations=space.operations.'
    )
  return table[chosen]


def combine(operations: Operations, chosen: int | Array, a: Array, b: Array) -> Array:
  """Combines two values by the operation with a given id.

  With an int only that operation is computed. With an array all `operations` are computed, and the result is selected.

  Args:
    operations: the operations to select from; for an int, see `find`.
    chosen: an id, or an array of ids that broadcasts with the values.
    a: an array of any shape.
    b: an array of the same shape.
  """
  if not isinstance(chosen, jax.Array | np.ndarray):
    return find('combine', operations, chosen).function(a, b)
  possible = by_id('combine', operations.combine)
  return _choose(chosen, {i: _applied(operation.function, chosen, (i,), a, b) for i, operation in possible.items()})


def activate(operations: Operations, chosen: int | Array, x: Array) -> Array:
  """Applies the activation with a given id to a value. The arguments are those of `combine`.

  With an array every possible activation is computed. Activations that are rescaled versions of one function, such as
  tanh and sigmoid(x) = (1 + tanh(x / 2)) / 2, share one call of it; its input is scaled as the chosen id requires.
  """
  if not isinstance(chosen, jax.Array | np.ndarray):
    return find('activate', operations, chosen).function(x)
  possible = by_id('activate', operations.activate)
  rescaled = {i: operation.rescaled for i, operation in possible.items() if operation.rescaled}
  shared = dict.fromkeys(how.function for how in rescaled.values())
  alone = {i: f.function for i, f in possible.items() if i not in rescaled and f.function not in shared}
  values = {i: _applied(function, chosen, (i,), x) for i, function in alone.items()}
  for function in shared:
    users = {i: how for i, how in rescaled.items() if how.function == function}
    inner: Any = 1.0
    for i, how in users.items():
      inner = jnp.where(chosen == i, how.inner, inner)
    plain = [i for i, operation in possible.items() if i not in rescaled and operation.function == function]
    value = _applied(function, chosen, (*plain, *users), inner.astype(x.dtype) * x)
    values |= dict.fromkeys(plain, value)
    values |= {i: how.shift + how.scale * value for i, how in users.items()}
  return _choose(chosen, values)


def _applied(function: Callable[..., Array], chosen: Array, ids: Sequence[int], *values: Array) -> Array:
  """Applies the function of the operations with these ids to values, where one of them is chosen.

  Elsewhere the function gets 0.5, and its result has no meaning. The gradient of `_choose` multiplies the derivative of
  an operation that was not chosen by 0, which is NaN if the derivative is infinite, as that of a square root at 0.
  """
  if function not in _FINITE:
    here = functools.reduce(operator.or_, [chosen == i for i in ids])
    values = tuple(jnp.where(here, value, 0.5) for value in values)
  return function(*values)


def _choose(chosen: Array, values: dict[int, Array]) -> Array:
  (_, value), *rest = values.items()
  for i, other in rest:
    value = jnp.where(chosen == i, other, value)
  return value


def _is_infix(sign: str) -> bool:
  """Says whether Python reads `sign` between two values as one operator."""
  try:
    found = ast.parse(f'a {sign} b', mode='eval').body
  except (SyntaxError, ValueError):
    return False
  return isinstance(found, ast.BinOp) and all(isinstance(part, ast.Name) for part in (found.left, found.right))


def _check(kind: str, operation: Operation) -> None:
  """Raises ValueError if an operation of the user's own has a name, sign, function or source of no use."""
  name, source, taken = operation.name, operation.source, [one.name for one in (*COMBINATIONS, *ACTIVATIONS)]
  if not isinstance(name, str) or not name.isidentifier() or keyword.iskeyword(name) or name in taken:
    raise ValueError(f'{kind} {name!r} must have a name that is a Python identifier and none of {", ".join(taken)}.')
  if operation.infix and not _is_infix(operation.infix):
    raise ValueError(f'{kind} {name!r} has the infix {operation.infix!r}: want an operator of Python, or none.')
  if not callable(operation.function):
    raise ValueError(f'{kind} {name!r} has the function {operation.function!r}: want one of arrays to an array.')
  try:
    nodes = list(ast.walk(ast.parse(source, mode='eval')))
  except (SyntaxError, TypeError, ValueError):
    raise ValueError(f'{kind} {name!r} has the source {source!r}: want a Python expression such as jnp.tanh.') from None
  words = [node for node in nodes if isinstance(node, ast.Name)]
  bound = {node.arg for node in nodes if isinstance(node, ast.arg)}
  bound |= {word.id for word in words if isinstance(word.ctx, ast.Store)}
  if missing := sorted({word.id for word in words} - bound - {'jax', 'jnp'} - set(dir(builtins))):
    raise ValueError(f'{kind} {name!r} has the source {source!r}, which reads {missing[0]}: it may read jax and jnp.')
