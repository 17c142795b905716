"""The networks of ENAS for images as Flax modules, Pham et al. (2018) Sec. 2.3 and 2.4.

Dropout and drop path, which act in training alone, are left out.
"""

from collections.abc import Iterator

import flax.linen as nn
import jax.numpy as jnp

from nas_jax.children import enas_micro
from nas_jax.export import layers
from nas_jax.space import enas
from nas_jax.space.checks import check_static
from nas_jax.space.enas import MACRO_OPERATIONS, MICRO_OPERATIONS, MacroArch, MicroArch
from nas_jax.types import Array, PyTree

SIDES = ('left', 'right')  # of a block


class MacroNetwork(nn.Module):
  """A whole network of ENAS: images [B, H, W, C] to logits [B, classes], as `children.enas_macro` computes them.

  Layer i has the units layer_I_a and, if it is a convolution, layer_I_b; layer_I_join follows the skips. Reduction r of
  the output of layer i is reduction_R_layer_I.

  Attributes:
    arch: a static architecture.
    classes: their number.
    filters: the filters of the first layers.
    double: twice the filters after each reduction.
    concat: concatenate the skips, then ReLU and a 1 x 1 convolution; else add them.
    epsilon: added to the variance in batch norm.
  """

  arch: MacroArch
  classes: int = 10
  filters: int = 36
  double: bool = False
  concat: bool = False
  epsilon: float = 1e-5

  @nn.compact
  def __call__(self, images: Array, train: bool = False) -> Array:
    """Returns logits of whitened images. With `train`, apply it with mutable='batch_stats'.

    Raises ValueError if the architecture is invalid or traced.
    """
    check_static(self.arch, MacroArch)
    norm, filters, count = layers.Norm(self.epsilon, train), self.filters, len(self.arch.operation)
    x, outputs = norm(layers.convolved(images, 'stem', filters, (3, 3)), 'stem'), dict[int, Array]()
    for i, skips in enumerate(enas.skips_of(self.arch)):
      x = _operation(x, f'layer_{i}', MACRO_OPERATIONS[self.arch.operation[i]], filters, norm)
      x = _joined([*(outputs[j] for j in skips), x], f'layer_{i}_join', filters if self.concat else 0, norm)
      outputs[i] = x
      if i + 1 in enas.cuts(count):
        filters *= 1 + self.double
        number = enas.cuts(count).index(i + 1)
        outputs = {
          j: layers.reduced(outputs[j], f'reduction_{number}_layer_{j}', filters, norm)
          for j in read_later(self.arch, i + 1)
        }
        x = outputs[i]
    return nn.Dense(self.classes, name='classifier')(x.mean((1, 2)))


def read_later(arch: MacroArch, cut: int) -> list[int]:
  """Returns the layers before `cut` that layers from `cut` on read; the last one is always read."""
  skips = enas.skips_of(arch)[cut:]
  return [j for j in range(cut) if j == cut - 1 or any(j in row for row in skips)]


def _operation(x, name, operation, filters, norm):
  kind, size = operation.rsplit(maxsplit=1)
  x = nn.relu(norm(layers.convolved(x, f'{name}_a', filters, (1, 1)), f'{name}_a'))
  if 'pool' in kind:
    return layers.pooled_around(x, int(size), kind == 'max pool')
  if kind not in ('conv', 'sepconv'):
    raise ValueError(f'{name} has the operation {operation!r}, which exported networks do not have.')
  window = int(size), int(size)
  x = layers.convolved(x, f'{name}_b', filters, window, separable=kind == 'sepconv')
  return nn.relu(norm(x, f'{name}_b'))


def _joined(images, name, filters, norm):
  """Concatenates images, then ReLU, 1 x 1 convolution and batch norm; or, with 0 filters, batch norm of their sum."""
  if filters:
    return norm(layers.convolved(nn.relu(jnp.concatenate(images, -1)), name, filters, (1, 1)), name)
  return norm(sum(images[1:], images[0]), name)


def macro_variables(arch: MacroArch, params: PyTree, stats: PyTree) -> PyTree:
  """Returns the variables of `MacroNetwork` from those of the child; see `export.variables`."""

  def units() -> Iterator[layers.Unit]:
    yield 'stem', params['stem'], stats['stem']
    for i, (own, old) in enumerate(zip(params['layers'], stats['layers'], strict=True)):
      branch = MACRO_OPERATIONS[arch.operation[i]]
      for part, unit, moving in zip('ab', own['branches'][branch], old['branches'][branch], strict=False):
        yield f'layer_{i}_{part}', unit, moving
      yield f'layer_{i}_join', own['join'], old['join']

  def reductions() -> Iterator[layers.Unit]:
    for number, parts in enumerate(zip(params['reductions'], stats['reductions'], strict=True)):
      for j, (unit, moving) in enumerate(zip(*parts, strict=True)):
        if unit:
          yield f'reduction_{number}_layer_{j}', unit, moving

  return layers.variables(units(), reductions(), params)


class MicroNetwork(nn.Module):
  """A network of ENAS cells: images [B, H, W, C] to logits [B, classes], as `children.enas_micro` computes them.

  Cell k has cell_K_input_0 and cell_K_input_1, cell_K_ends, and for block b cell_K_block_B_left and
  cell_K_block_B_right, each with two parts a and b if it is a separable convolution.

  Attributes:
    arch: a static architecture.
    classes: their number.
    filters: the filters of the first cells.
    cells: number of normal cells.
    epsilon: added to the variance in batch norm.
  """

  arch: MicroArch
  classes: int = 10
  filters: int = 36
  cells: int = 15
  epsilon: float = 1e-5

  @nn.nowrap
  def stack(self) -> tuple[enas_micro.Cell, ...]:
    """Returns the cells of the network in order."""
    return enas_micro.cells_of(enas_micro.NetworkOptions(self.cells, self.filters))

  @nn.compact
  def __call__(self, images: Array, train: bool = False) -> Array:
    """Returns logits of whitened images. With `train`, apply it with mutable='batch_stats'.

    Raises ValueError if the architecture is invalid or traced.
    """
    check_static(self.arch, MicroArch)
    norm, kinds = layers.Norm(self.epsilon, train), enas.cells_of(self.arch)
    older = newer = norm(layers.convolved(images, 'stem', self.filters, (3, 3)), 'stem')
    for k, cell in enumerate(self.stack()):
      older, newer = newer, _cell((older, newer), f'cell_{k}', cell, *kinds[cell.kind], norm)
    return nn.Dense(self.classes, name='classifier')(nn.relu(newer).mean((1, 2)))


def _cell(before, name, cell, reads, operations, norm):
  nodes = []
  for i, (x, halved) in enumerate(zip(before, cell.halved, strict=True)):
    x, own = nn.relu(x), f'{name}_input_{i}'
    if halved:
      nodes.append(layers.reduced(x, own, cell.filters, norm))
    else:
      nodes.append(norm(layers.convolved(x, own, cell.filters, (1, 1)), own))
  for b in range(len(reads) // 2):
    left, right = (
      _side(nodes[reads[2 * b + k]], f'{name}_block_{b}_{side}', MICRO_OPERATIONS[operations[2 * b + k]], norm)
      for k, side in enumerate(SIDES)
    )
    nodes.append(left + right)
  ends = enas.loose_ends(reads, len(nodes))
  return _joined([nodes[i] for i in ends], f'{name}_ends', cell.filters, norm)


def _side(x, name, operation, norm):
  if operation == 'identity':
    return x
  kind, size = operation.rsplit(maxsplit=1)
  if 'pool' in kind:
    return layers.pooled_around(x, int(size), kind == 'max pool')
  if kind != 'sepconv':
    raise ValueError(f'{name} has the operation {operation!r}, which exported networks do not have.')
  for part in 'ab':
    own, window = f'{name}_{part}', (int(size), int(size))
    x = norm(layers.convolved(nn.relu(x), own, x.shape[-1], window, separable=True), own)
  return x


def micro_variables(arch: MicroArch, params: PyTree, stats: PyTree) -> PyTree:
  """Returns the variables of `MicroNetwork` from those of the child; see `export.variables`."""
  units, reductions = [('stem', params['stem'], stats['stem'])], list[layers.Unit]()
  cells = zip(params['cells'], stats['cells'], strict=True)
  count = len(params['cells'])
  stack = enas_micro.cells_of(enas_micro.NetworkOptions(count if count < 3 else count - 2, 1))
  for k, (cell, (own, old)) in enumerate(zip(stack, cells, strict=True)):
    _, operations = enas.cells_of(arch)[cell.kind]
    for i, halved in enumerate(cell.halved):
      (reductions if halved else units).append((f'cell_{k}_input_{i}', own['inputs'][i], old['inputs'][i]))
    for p, operation in enumerate(operations):
      branches = (tree['blocks'][p // 2][p % 2][MICRO_OPERATIONS[operation]] for tree in (own, old))
      for part, unit, moving in zip('ab', *branches, strict=False):
        units.append((f'cell_{k}_block_{p // 2}_{SIDES[p % 2]}_{part}', unit, moving))
    units.append((f'cell_{k}_ends', own['ends'], old['ends']))
  return layers.variables(units, reductions, params)
