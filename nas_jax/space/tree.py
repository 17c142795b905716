"""Recurrent cells written as trees, Zoph & Le (2017) Sec. 3.4."""

from collections.abc import Mapping, Sequence
import json
from typing import NamedTuple

from nas_jax import operations as operations_lib
from nas_jax.operations import ACTIVATIONS, BUILT_IN, COMBINATIONS, IDENTITY, Operation, Operations
from nas_jax.space.base import Kind, Slot, Space, canonical
from nas_jax.space.checks import check_arch, check_fields, check_static
from nas_jax.words import counted

# The names of the built-in operations; the index of a name is its id.
COMBINE = tuple(operation.name for operation in COMBINATIONS)
ACTIVATE = tuple(operation.name for operation in ACTIVATIONS)

MOST_LEAVES = 512  # of a cell; the two indices then have 2046 labels, and a program has some thousand operations


class TreeArch(NamedTuple):
  """A cell of n leaves and N = 2n - 1 nodes: leaves first, root last. Node n + k combines nodes 2k and 2k + 1."""

  combine: tuple[int, ...]  # [N] ids of combinations, see `nas_jax.operations`
  activate: tuple[int, ...]  # [N] ids of activations
  inject: tuple[int, ...]  # [2] (combine, activate) of Cell Inject
  index: tuple[int, ...]  # type: ignore[assignment]  # [2] (node whose value before activation is c_t, node that takes c_(t-1))


def tree_cell_space(
  base: int = 8,
  combine: Sequence[Operation | str] = ('add', 'mult'),
  activate: Sequence[Operation | str] = ('identity', 'tanh', 'sigmoid', 'relu'),
) -> Space:
  """Returns the space of all cells of `base` leaves. A cell has 4 * base + 2 tokens, 34 for base 8.

  The tokens, in the paper's order, are: combination and activation of each node, leaves first and root last;
  combination and activation of Cell Inject; the node that gives c_t; the node that takes c_(t-1). At base 8 there are
  8^16 * 15^2 = 6.3e16 token sequences (the paper: 6e16).

  Args:
    base: leaves, a power of two from 2.
    combine: combinations in the order of their tokens: names from COMBINE, or operations of your own. The paper's
      control experiment adds 'max'.
    activate: activations in the order of their tokens: names from ACTIVATE, or operations of your own. The control
      experiment adds 'sin'.

  Raises:
    ValueError: `base` is no power of two or is too large, or an operation is unknown, given twice or cannot be used, or
      there is none.

  >>> from nas_jax import published, space
  >>> sp = space.tree_cell_space(base=8)
  >>> sp.length, sp.size() == 8**16 * 15**2
  (34, True)
  >>> sp.decode(sp.encode(published.NASCELL)) == published.NASCELL
  True
  """
  if not isinstance(base, int) or not 2 <= base <= MOST_LEAVES or base & (base - 1):
    raise ValueError(f'base (={base!r}) must be an int, a power of two from 2 to {MOST_LEAVES}: 2, 4, 8, 16, ...')
  operations_lib.check(Operations(tuple(combine), tuple(activate)))
  by_id = {
    'combine': operations_lib.by_id('combine', combine),
    'activate': operations_lib.by_id('activate', activate),
  }
  nodes = 2 * base - 1

  def operation(group: str, name: str, field: str, head: str) -> Slot:
    return operation_slot(group, name, field, by_id[name], head)

  def index(name: str) -> Slot:
    numbers = tuple(range(nodes))
    return Slot('cell index', name, Kind.CHOICE, nodes, 'index', numbers, tuple(map(str, numbers)), name)

  slots = [operation(f'node {i}', name, name, f'{name} {i}') for i in range(nodes) for name in ('combine', 'activate')]
  slots += [operation('cell inject', name, 'inject', f'inject {name}') for name in ('combine', 'activate')]
  slots += [index('c_t from node'), index('c_(t-1) into node')]
  spec = {'base': base} | {kind: [operation.name for operation in table.values()] for kind, table in by_id.items()}
  held = Operations(*(tuple(table.values()) for table in by_id.values()))
  return Space('tree_cell', spec, TreeArch, tuple(slots), held)


def operation_slot(group: str, kind: str, field: str, table: Mapping[int, Operation], head: str) -> Slot:
  """Returns the slot that chooses an operation of one kind, 'combine' or 'activate', from a table by ids."""
  built_in = getattr(BUILT_IN, kind)
  labels = tuple(operation.name for operation in table.values())
  own = tuple(operation.name for operation in table.values() if operation not in built_in)
  return Slot(group, kind, Kind.CHOICE, len(table), field, tuple(table), labels, head, own=own)


def tree_from_json(text: str, operations: Operations = BUILT_IN) -> TreeArch:
  """Reads and checks a cell of any base from JSON.

  Args:
    text: as `Space.to_json` writes it, or a best.json.
    operations: your own operations, which the cell may hold by name; the built-in ones are always known.

  Raises:
    ValueError: as `Space.from_json` does.
  """
  try:
    nodes = len(json.loads(text)['arch']['combine'])
  except (ValueError, TypeError, KeyError, RecursionError):
    nodes = 3  # not a cell: the check of the smallest space says what is wrong
  if nodes < 3 or (nodes + 1) & nodes:
    found = counted(nodes, 'entry', 'entries')
    raise ValueError(f"arch field 'combine' has {found}: want 2 n - 1, n a power of two: 3, 7, 15, 31, ...")
  return tree_cell_space((nodes + 1) // 2, *operations_lib.with_built_in(operations)).from_json(text)


@check_arch.register
def check_tree(arch: TreeArch, operations: Operations | None = BUILT_IN) -> None:
  """Checks a cell of any base where it is used: see `check_arch`."""
  static, nodes = check_fields(arch, TreeArch), len(arch.combine)
  if nodes < 3 or (nodes + 1) & nodes:
    found = counted(nodes, 'entry', 'entries')
    raise ValueError(f"arch field 'combine' has {found}: want 2 n - 1, n a power of two: 3, 7, 15, 31, ...")
  for name, want in (('activate', nodes), ('inject', 2), ('index', 2)):
    if len(getattr(arch, name)) != want:
      found = counted(len(getattr(arch, name)), 'entry', 'entries')
      raise ValueError(f'arch field {name!r} has {found}: want {want}.')
  if static and operations:
    _check_entries(arch, operations)


def _check_entries(arch: TreeArch, operations: Operations) -> None:
  """Raises ValueError, in one line, if an entry of a static architecture is out of range."""
  held = operations_lib.with_built_in(operations)
  kinds = {'combine': ('combine',) * len(arch.combine), 'activate': ('activate',) * len(arch.activate)}
  kinds |= {'inject': ('combine', 'activate'), 'index': ('index', 'index')}
  known = {kind: operations_lib.by_id(kind, getattr(held, kind)) for kind in Operations._fields}
  for name, values in arch._asdict().items():
    for entry, (kind, value) in enumerate(zip(kinds[name], values, strict=True)):
      if kind == 'index' and not 0 <= value < len(arch.combine):
        raise ValueError(
          f'arch field {name!r}, entry {entry} is {value}: want the number of a node, 0 to {len(arch.combine) - 1}.'
        )
      if kind != 'index' and value not in known[kind]:
        operations_lib.find(kind, operations, int(value))  # raises the error


def leaves(arch: TreeArch) -> int:
  """Returns n, the number of leaves of a cell."""
  return (len(arch.combine) + 1) // 2


@canonical.register
def _canonical_tree(arch: TreeArch) -> TreeArch:
  check_static(arch, TreeArch, operations=None)
  return canonical_with_leaves(arch)[0]


def canonical_with_leaves(arch: TreeArch) -> tuple[TreeArch, tuple[int, ...]]:
  """Returns the canonical form of a cell, and for each of its leaves the leaf of `arch` with the same weights.

  If a combination is symmetric (`Operation.symmetric`), the two subtrees of a node can be swapped. If a child has the
  same combination as its parent and the identity as activation, and is neither read for c_t nor injected, it only
  continues the sum or product of its parent. Then subtrees of equal height below the parent can be exchanged.

  Cells that differ only in these ways compute the same values up to rounding, if the weights of their leaves are
  exchanged too. A user's own combination counts as not symmetric, because an architecture holds only its id.
  """
  n = leaves(arch)

  def children(node: int) -> list[int]:
    return [2 * (node - n), 2 * (node - n) + 1]

  def symmetric(node: int) -> bool:
    return arch.combine[node] < len(COMBINATIONS) and COMBINATIONS[arch.combine[node]].symmetric

  def passes_on(node: int, combine: int) -> bool:
    return node >= n and arch.combine[node] == combine and arch.activate[node] == IDENTITY and node not in arch.index

  def sort(node: int) -> tuple[tuple, tuple]:
    """Returns (signature, nested (node, left, right)). Subtrees of one height are equal if their signatures are."""
    own = (arch.combine[node], arch.activate[node], node == arch.index[0], node == arch.index[1])
    if node < n:
      return own, (node,)
    levels, row = [], children(node)
    while row:
      passing = [child for child in row if symmetric(node) and passes_on(child, arch.combine[node])]
      terms = [sort(child) for child in row if child not in passing]
      if symmetric(node):
        terms.sort(key=lambda pair: pair[0])
      levels.append((terms, passing))
      row = [grandchild for child in passing for grandchild in children(child)]
    below: list[tuple] = []
    for terms, passing in reversed(levels):
      pairs = zip(passing, below[::2], below[1::2], strict=True)
      below = [tree for _, tree in terms] + list(pairs)
    return (own, *((len(passing), *(term[0] for term in terms)) for terms, passing in levels)), (node, *below)

  rows = [[sort(2 * n - 2)[1]]]
  while len(rows[0]) < n:
    rows.insert(0, [child for tree in rows[0] for child in tree[1:]])
  renamed = [tree[0] for row in rows for tree in row]
  new = TreeArch(
    combine=tuple(arch.combine[old] for old in renamed),
    activate=tuple(arch.activate[old] for old in renamed),
    inject=tuple(arch.inject),
    index=tuple(renamed.index(old) for old in arch.index),
  )
  return new, tuple(renamed[:n])


def ids_of(field: str, names: Sequence[str], known: tuple[str, ...]) -> tuple[int, ...]:
  """Returns the indices of names in `known`. Raises ValueError, naming the field, if a name is not there."""
  unknown = [name for name in names if name not in known]
  if unknown or not names or len(set(names)) < len(names):
    raise ValueError(f'{field} (={tuple(names)}) must name at least one of {known}, each once.')
  return tuple(known.index(name) for name in names)
