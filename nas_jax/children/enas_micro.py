"""The networks of cells of ENAS (Pham et al. 2018, Sec. 2.4), each by itself or all with shared weights.

A network begins with a 3 x 3 convolution. Normal cells follow. After a third and after two thirds of them, a
reduction cell halves height and width and doubles the filters. A cell reads the outputs of the two cells before it.
ReLU, a 1 x 1 convolution and batch norm bring each of them to the filters of the cell; a factorised reduction does so
if it is too large. So a reduction cell halves its inputs, and its operations have stride 1, as in the search of the
released code. In the paper its operations have stride 2. In the released code the newer input stays unchanged if its
size fits.

A separable convolution is ReLU, convolution and batch norm, twice. The output of a cell consists of the nodes,
including inputs, that no operation reads: they are concatenated, and ReLU, a 1 x 1 convolution and batch norm follow.
In the released code a network that is trained by itself has no such convolution.
"""

from collections.abc import Sequence
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nas_jax.children import conv, enas_layers
from nas_jax.nn import image_ops
from nas_jax.space.base import is_static
from nas_jax.space.enas import INPUTS, MICRO_OPERATIONS, MicroArch, cuts, enas_micro_space, loose_ends
from nas_jax.training.child import Child
from nas_jax.training.costs import Count
from nas_jax.types import Array, Key, PyTree

IDENTITY = MICRO_OPERATIONS.index('identity')


class NetworkOptions(NamedTuple):
  """What all networks have in common. The paper's search has 6 cells, 20 filters and keep = 0.9."""

  cells: int  # number of normal cells
  filters: int  # of the first cells
  blocks: int = 5
  operations: tuple[str, ...] = MICRO_OPERATIONS  # that architectures may have
  keep: float = 1.0  # share of the classifier's features that dropout keeps in training
  drop_path: float = 1.0  # probability in training that an operation of the last cell (not identity) is kept
  norm: str = 'moving'  # statistics that batch norm uses in scoring: 'moving', or 'batch', those of the scored images


class Cell(NamedTuple):
  """One cell of a network."""

  kind: str  # 'normal' or 'reduction'
  filters: int
  channels: tuple[int, int]  # of its inputs, the older one first
  halved: tuple[bool, bool]  # whether each input must be halved


def build(inputs: conv.InputSpec, options: NetworkOptions) -> Child:
  """Returns the child of these networks, trained each by itself or with shared weights, as in `enas_macro.build`.

  Shared separable convolutions have weights of their own for each node that they may read.

  Args:
    inputs: as in `conv.build`; in a cell batch norm always comes after the ReLU.
    options: what all networks have in common.

  Returns:
    A child whose arch is a `conv.ChildSpec` of a static or traced `MicroArch`.

  Raises:
    ValueError: `options` has an invalid value; or, in its functions, a static arch is not of the space.
  """
  space = enas_micro_space(options.blocks, options.operations)
  if options.cells < 1:
    raise ValueError(f'cells (={options.cells}) must be at least 1.')

  return enas_layers.child(inputs, options, space, lambda: _zeros(inputs, options), own, run)


def cells_of(options: NetworkOptions) -> tuple[Cell, ...]:
  """Returns the cells of a network in order."""
  found = list[Cell]()
  before = [(options.filters, 0)] * INPUTS  # channels of each input of the next cell, and how often it was halved
  for kind in _kinds(options.cells):
    level = before[-1][1] + (kind == 'reduction')
    (older, far), (newer, near) = before
    found.append(Cell(kind, options.filters * 2**level, (older, newer), (far < level, near < level)))
    before = [before[-1], (found[-1].filters, level)]
  return tuple(found)


def _kinds(cells: int) -> list[str]:
  """Returns the kinds of the cells in order, of which `cells` are normal."""
  found = ['normal'] * cells
  for cut in reversed(cuts(cells)):
    found.insert(cut, 'reduction')
  return found


def counter(inputs: conv.InputSpec, options: NetworkOptions) -> Count:
  """Returns a function that counts what the network of one static architecture costs."""
  halved = [kind == 'reduction' for kind in _kinds(options.cells)]
  return enas_layers.counter(
    inputs.image, lambda: _zeros(inputs, options), own, lambda part, place: sum(halved[: place + 1])
  )


def own(tree: PyTree, arch: MicroArch) -> PyTree:
  """Selects the part of the shared weights (or statistics, or gradients) that one static architecture uses."""

  def side(part, reads, operation):
    name = MICRO_OPERATIONS[operation]
    return {name: jax.tree.map(lambda leaf: leaf[reads], part[name])}

  found, count = [], len(tree['cells'])
  for kind, cell in zip(_kinds(count if count < 3 else count - 2), tree['cells'], strict=True):
    reads, operations = _decided(arch, kind)
    blocks = [
      [side(part, reads[2 * b + k], operations[2 * b + k]) for k, part in enumerate(block)]
      for b, block in enumerate(cell['blocks'])
    ]
    found.append(cell | {'blocks': blocks, 'ends': enas_layers.own_joined(cell['ends'], _ends(reads))})
  return tree | {'cells': found}


def run(
  params: PyTree, stats: PyTree, arch: MicroArch, options: NetworkOptions, x: Array, epsilon: Any, key: Key | None
) -> tuple[Array, PyTree]:
  """Returns logits [B, classes] of images [B, H, W, C], and the moving statistics; a key means training."""
  how, cells, after = enas_layers.mode(options.norm, key), cells_of(options), []
  dropout, paths = (None, None) if key is None else jax.random.split(key)
  x, stem = enas_layers.unit(x, params['stem'], stats['stem'], epsilon, how)
  older = newer = x
  for i, (cell, own, moving) in enumerate(zip(cells, params['cells'], stats['cells'], strict=True)):
    reads, operations = _decided(arch, cell.kind)
    keep, acts = 1.0 - (i + 1) / len(cells) * (1.0 - options.drop_path), None
    if paths is not None and keep < 1.0:
      acts = jax.random.bernoulli(jax.random.fold_in(paths, i), keep, (len(reads), len(x))) / keep
    y, new = _cell(options, cell, how, epsilon, (older, newer), reads, operations, acts, own, moving)
    older, newer = newer, y
    after.append(new)
  return enas_layers.classified(params, jax.nn.relu(newer), options.keep, dropout), {'stem': stem, 'cells': after}


def _cell(options, cell, how, epsilon, before, reads, operations, acts, own, moving):
  """Returns the output of a cell and its statistics; `acts` [2 B, images] are factors of its operations."""
  nodes, inputs, blocks = [], [], []
  for image, halved, part, old in zip(before, cell.halved, own['inputs'], moving['inputs'], strict=True):
    bring = enas_layers.reduced if halved else enas_layers.unit
    y, new = bring(jax.nn.relu(image), part, old, epsilon, how)
    nodes.append(y)
    inputs.append(new)
  for b, parts in enumerate(zip(own['blocks'], moving['blocks'], strict=True)):
    sides = []
    for p, part, old in zip((2 * b, 2 * b + 1), *parts, strict=True):
      y, new = _side(options, how, epsilon, nodes, reads[p], operations[p], part, old)
      if acts is not None:
        y *= jnp.where(jnp.asarray(operations[p]) == IDENTITY, 1.0, acts[p]).astype(y.dtype)[:, None, None, None]
      sides.append((y, new))
    (left, right), new = zip(*sides, strict=True)
    nodes.append(left + right)
    blocks.append(list(new))
  y, ends = enas_layers.joined(nodes, _ends(reads), own['ends'], moving['ends'], epsilon, how)
  return y, {'inputs': inputs, 'blocks': blocks, 'ends': ends}


def _side(options, how, epsilon, nodes, reads, operation, own, moving):
  """Applies one operation of a block to the node that it reads. Also returns the new statistics."""
  x = enas_layers.choose(reads, [functools.partial(_pick, j) for j in range(len(nodes))], *nodes)
  branches = [functools.partial(_branch, name, how) for name in options.operations]
  k = enas_layers.place(operation, [MICRO_OPERATIONS.index(name) for name in options.operations])
  if is_static(reads):
    return enas_layers.choose(k, branches, x, own, moving, epsilon)
  weights, old = jax.tree.map(lambda leaf: leaf[reads], (own, moving))
  y, new = enas_layers.choose(k, branches, x, weights, old, epsilon)
  return y, jax.tree.map(lambda leaf, value: leaf.at[reads].set(value), moving, new)


def _pick(j: int, *nodes: Array) -> Array:
  return nodes[j]


def _branch(name: str, how: str, x: Array, own: PyTree, moving: PyTree, epsilon: Array) -> tuple[Array, PyTree]:
  """Computes one operation. Also returns the statistics of all operations, in which those of this one are new."""
  found = list[PyTree]()
  for part, old in zip(own[name], moving[name], strict=True):
    x, new = enas_layers.unit(jax.nn.relu(x), part, old, epsilon, how)
    found.append(new)
  if 'pool' in name:
    kind, size = name.rsplit(maxsplit=1)
    x = image_ops.pool_around(x, int(size), kind == 'max pool')
  return x, moving | {name: found}


def _decided(arch: MicroArch, kind: str) -> tuple[Any, Any]:
  """Returns the nodes that the operations of a kind of cell read, and the operations, [2 B] each."""
  if kind == 'normal':
    return arch.normal_input, arch.normal_operation
  return arch.reduction_input, arch.reduction_operation


def _ends(reads: Any) -> Sequence[Any]:
  """Returns [2 + B], whether no operation reads a node."""
  nodes = INPUTS + len(reads) // 2
  if is_static(reads):
    return [int(node in loose_ends(reads, nodes)) for node in range(nodes)]
  return [(reads != node).all().astype(jnp.int32) for node in range(nodes)]


def _zeros(inputs: conv.InputSpec, options: NetworkOptions) -> PyTree:
  """Returns zeros in the shapes of all weights."""

  def side(filters, nodes):
    def twice(name):
      return [enas_layers.zero_unit(int(name.split()[1]), filters, filters, True, (nodes,)) for _ in range(2)]

    return {name: twice(name) if name.startswith('sepconv') else [] for name in options.operations}

  cells = [
    {
      'inputs': [enas_layers.zero_unit(1, channels, cell.filters) for channels in cell.channels],
      'blocks': [[side(cell.filters, INPUTS + b) for _ in range(2)] for b in range(options.blocks)],
      'ends': enas_layers.zero_joined(INPUTS + options.blocks, cell.filters),
    }
    for cell in cells_of(options)
  ]
  return {
    'stem': enas_layers.zero_unit(3, inputs.image[2], options.filters),
    'cells': cells,
    'softmax': jnp.zeros((cells_of(options)[-1].filters, inputs.classes)),
    'softmax_bias': jnp.zeros(inputs.classes),
  }
