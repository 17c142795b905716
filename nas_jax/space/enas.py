"""The three spaces of ENAS, Pham et al. (2018): macro, micro and recurrent."""

from collections.abc import Iterator, Sequence
import json
from typing import NamedTuple

from nas_jax import operations as operations_lib
from nas_jax.operations import BUILT_IN, Operation, Operations
from nas_jax.space.base import Kind, Slot, Space, check_layers
from nas_jax.space.checks import check_arch, check_fields, check_static
from nas_jax.space.tree import ids_of, operation_slot

# Ids are indices into these tuples.
MACRO_OPERATIONS = ('conv 3', 'sepconv 3', 'conv 5', 'sepconv 5', 'average pool 3', 'max pool 3')
MICRO_OPERATIONS = ('sepconv 3', 'sepconv 5', 'average pool 3', 'max pool 3', 'identity')
INPUT_NAMES = ('h[k-2]', 'h[k-1]')  # inputs of a micro cell: the outputs of the two cells before it
INPUTS = len(INPUT_NAMES)


class MacroArch(NamedTuple):
  """A network of L layers. Each applies its operation to the layer before it and adds the layers that `links` names."""

  operation: tuple[int, ...]  # [L] ids into MACRO_OPERATIONS
  links: tuple[int, ...]  # [L (L - 1) / 2] whether layer 1 adds 0, layer 2 adds 0, 1, layer 3 ...


class MicroArch(NamedTuple):
  """Two cells of B blocks. Nodes 0 and 1 are the inputs of a cell; node 2 + b is block b, the sum of two operations."""

  normal_input: tuple[int, ...]  # [2 B] the node that each operation reads
  normal_operation: tuple[int, ...]  # [2 B] ids into MICRO_OPERATIONS
  reduction_input: tuple[int, ...]
  reduction_operation: tuple[int, ...]


class RnnArch(NamedTuple):
  """A recurrent cell of N nodes. Node 0 reads x and h, every other node reads an earlier one."""

  activate: tuple[int, ...]  # [N] ids of activations, see `nas_jax.operations`
  previous: tuple[int, ...]  # [N - 1] the nodes that node 1, 2, ... read


def enas_macro_space(layers: int = 12, operations: Sequence[str] = MACRO_OPERATIONS) -> Space:
  """Returns the space of whole networks: 6^L 2^(L (L - 1) / 2) of them, 1.6e29 at 12 layers.

  Args:
    layers: L.
    operations: names from MACRO_OPERATIONS, in the order of their tokens.

  Raises:
    ValueError: an argument has an invalid value; the message names it and says what fits.

  >>> from nas_jax import space
  >>> sp = space.enas_macro_space(layers=3, operations=('conv 3', 'max pool 3'))
  >>> sp.size()
  64
  >>> print(sp.describe(sp.decode([0, 1, 1, 0, 0, 1])))
  layer 0: operation conv 3
  layer 1: operation max pool 3, skips 0
  layer 2: operation conv 3, skips 1
  """
  ids = ids_of('operations', operations, MACRO_OPERATIONS)
  check_layers('layers', layers, 'the layers of a network')
  slots = []
  for i in range(layers):
    slots.append(_choice(f'layer {i}', 'operation', 'operation', ids, operations, 'operation'))
    slots.append(Slot(f'layer {i}', 'skips', Kind.LINK, i, 'links', head='skips', anchor=True))
  return Space('enas_macro', {'layers': layers, 'operations': list(operations)}, MacroArch, tuple(slots))


def enas_micro_space(blocks: int = 5, operations: Sequence[str] = MICRO_OPERATIONS) -> Space:
  """Returns the space of a normal cell and a reduction cell.

  The tokens of a block are two nodes to read and then two operations. There are (5^B (B + 1)!)^4 token sequences,
  2.6e25 for 5 blocks. The paper counts too few: (5 (B - 2)!)^4 for B nodes including the inputs, 1.3e11 for 7 nodes.

  Args:
    blocks: B, blocks of each cell.
    operations: names from MICRO_OPERATIONS, in the order of their tokens.

  Raises:
    ValueError: an argument has an invalid value; the message names it and says what fits.

  >>> from nas_jax import space
  >>> sp = space.enas_micro_space(blocks=1)
  >>> sp.size()
  10000
  >>> sp.decode([0, 1, 0, 2, 0, 1, 3, 3])
  MicroArch(normal_input=(0, 1), normal_operation=(0, 2), reduction_input=(0, 1), reduction_operation=(3, 3))
  """
  ids = ids_of('operations', operations, MICRO_OPERATIONS)
  check_layers('blocks', blocks, 'the blocks of a cell')

  def cell(name: str, start: int) -> Iterator[Slot]:
    for i in range(INPUTS):  # not a decision, but an anchor to point at
      yield Slot(f'{name} input {i}', '', Kind.LINK, 0, f'{name}_input', head='input', anchor=True)
    for b in range(blocks):
      group = f'{name} block {b}'
      for side in ('left', 'right'):
        slot = Slot(
          group, f'{side} reads', Kind.POINTER, INPUTS + b, f'{name}_input', head=f'{name} reads', start=start
        )
        yield slot._replace(labels=tuple(map(node_name, range(INPUTS + b))))
      for side in ('left', 'right'):
        slot = _choice(group, f'{side} operation', f'{name}_operation', ids, operations, f'{name} operation')
        yield slot._replace(anchor=side == 'right')

  slots = (*cell('normal', 0), *cell('reduction', INPUTS + blocks))
  return Space('enas_micro', {'blocks': blocks, 'operations': list(operations)}, MicroArch, slots)


def enas_rnn_space(
  nodes: int = 12, activate: Sequence[Operation | str] = ('tanh', 'relu', 'identity', 'sigmoid')
) -> Space:
  """Returns the space of recurrent cells: 4^N (N - 1)!, 6.7e14 at 12 nodes. (The paper counts 4^N N!, "about 1e15".)

  Args:
    nodes: N.
    activate: activations in the order of their tokens: names of built-in ones, and operations of your own.

  Raises:
    ValueError: an argument has an invalid value; the message names it and says what fits.

  >>> from nas_jax import space
  >>> sp = space.enas_rnn_space(nodes=3)
  >>> sp.size()
  128
  >>> print(sp.describe(sp.decode([0, 0, 1, 1, 3])))
  node 0: activate tanh
  node 1: reads 0, activate relu
  node 2: reads 1, activate sigmoid
  """
  table = operations_lib.by_id('activate', activate)
  check_layers('nodes', nodes, 'the nodes of a cell')
  slots = []
  for i in range(nodes):
    if i:
      slots.append(Slot(f'node {i}', 'reads', Kind.POINTER, i, 'previous', head='previous'))
    slots.append(operation_slot(f'node {i}', 'activate', 'activate', table, 'activate')._replace(anchor=True))
  spec = {'nodes': nodes, 'activate': [operation.name for operation in table.values()]}
  return Space('enas_rnn', spec, RnnArch, tuple(slots), Operations(activate=tuple(table.values())))


def rnn_from_json(text: str, operations: Operations = BUILT_IN) -> RnnArch:
  """Reads and checks a cell from JSON. Arguments and errors are those of `tree_from_json`."""
  known = operations_lib.with_built_in(operations)
  return enas_rnn_space(_length(text, 'activate'), known.activate).from_json(text)


@check_arch.register
def check_rnn(arch: RnnArch, operations: Operations | None = BUILT_IN) -> None:
  """Checks a cell of any number of nodes where it is used: see `check_arch`."""
  static, nodes = check_fields(arch, RnnArch), len(arch.activate)
  if not nodes or len(arch.previous) != nodes - 1:
    raise ValueError(
      f"arch fields 'activate' and 'previous' have {nodes} and {len(arch.previous)} entries: want N and N - 1, N the "
      'number of nodes.'
    )
  for node, read in enumerate(arch.previous if static else (), 1):
    if not 0 <= read < node:
      raise ValueError(
        f"arch field 'previous', entry {node - 1} is {read}: want the number of a node before node {node}, 0 to "
        f'{node - 1}.'
      )
  if static and operations:
    for activate in set(arch.activate):
      operations_lib.find('activate', operations, int(activate))


def loose_ends(inputs: Sequence[int], nodes: int) -> tuple[int, ...]:
  """Returns the nodes below `nodes` that no node reads (they are not in `inputs`). They make the cell's output."""
  return tuple(i for i in range(nodes) if i not in inputs)


def cuts(count: int) -> tuple[int, ...]:
  """Returns how many of `count` layers or cells come before each of the two reductions; () for fewer than 3."""
  return (count // 3, 2 * count // 3) if count >= 3 else ()


def skips_of(arch: MacroArch) -> list[tuple[int, ...]]:
  """Returns, for each layer, the earlier layers whose outputs are added to its own."""
  rows = [arch.links[i * (i - 1) // 2 : i * (i + 1) // 2] for i in range(len(arch.operation))]
  return [tuple(j for j, link in enumerate(row) if link) for row in rows]


def cells_of(arch: MicroArch) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
  """Returns the inputs and the operations of each cell, by its name."""
  return {
    'normal': (arch.normal_input, arch.normal_operation),
    'reduction': (arch.reduction_input, arch.reduction_operation),
  }


def macro_from_json(text: str) -> MacroArch:
  """Reads and checks a network from JSON. Raises ValueError as `Space.from_json` does."""
  return enas_macro_space(_length(text, 'operation')).from_json(text)


def micro_from_json(text: str) -> MicroArch:
  """Reads and checks cells from JSON. Raises ValueError as `Space.from_json` does."""
  return enas_micro_space(_length(text, 'normal_operation', each=2)).from_json(text)


@check_arch.register
def check_macro(arch: MacroArch, operations: Operations | None = None) -> None:
  """Checks a network of any depth where it is used: see `check_arch`."""
  del operations
  if check_fields(arch, MacroArch):
    enas_macro_space(max(len(arch.operation), 1)).check(arch)


@check_arch.register
def check_micro(arch: MicroArch, operations: Operations | None = None) -> None:
  """Checks cells of any number of blocks where they are used: see `check_arch`."""
  del operations
  if check_fields(arch, MicroArch):
    enas_micro_space(max(len(arch.normal_operation) // 2, 1)).check(arch)


def describe(arch: MacroArch | MicroArch) -> str:
  """Describes a network or its cells in words: a line for each layer or block, and the reductions or outputs.

  (`Space.describe` lists the decisions of the controller.) Raises ValueError as `check_static`.
  """
  check_static(arch, MacroArch, MicroArch)
  return '\n'.join(_macro_lines(arch) if isinstance(arch, MacroArch) else _micro_lines(arch))


def _macro_lines(arch: MacroArch) -> Iterator[str]:
  halved = cuts(len(arch.operation))
  for i, (operation, skips) in enumerate(zip(arch.operation, skips_of(arch), strict=True)):
    adds = f', adds {" ".join(map(str, skips))}' if skips else ''
    if i in halved:
      yield 'reduction: all outputs so far to half their height and width'
    yield f'layer {i}: {MACRO_OPERATIONS[operation]}{adds}'


def node_name(node: int) -> str:
  """Returns the name of a node of a micro cell: the name of an input, or 'block' and its number."""
  return INPUT_NAMES[node] if node < INPUTS else f'block {node - INPUTS}'


def _micro_lines(arch: MicroArch) -> Iterator[str]:
  for name, (inputs, operations) in cells_of(arch).items():
    terms = [f'{MICRO_OPERATIONS[k]} of {node_name(i)}' for i, k in zip(inputs, operations, strict=True)]
    for b, (left, right) in enumerate(zip(terms[::2], terms[1::2], strict=True)):
      yield f'{name} block {b}: {left} + {right}'
    ends = map(node_name, loose_ends(inputs, INPUTS + len(terms) // 2))
    yield f'{name} output: {", ".join(ends)}'


def _length(text: str, field: str, each: int = 1) -> int:
  """Returns the number of layers or blocks in JSON; 1 if it cannot be read, so that `from_json` raises the error."""
  try:
    return max(len(json.loads(text)['arch'][field]) // each, 1)
  except (ValueError, TypeError, KeyError, RecursionError):
    return 1


def _choice(group: str, name: str, field: str, ids: tuple[int, ...], words: Sequence[str], head: str) -> Slot:
  return Slot(group, name, Kind.CHOICE, len(ids), field, ids, tuple(words), head)
