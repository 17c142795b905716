"""Draws static tree cells as in Zoph & Le (2017) Fig. 8: x_t and h_(t-1) below, h_t on top.

matplotlib is imported when something is drawn.
"""

from collections.abc import Iterator
import functools
import itertools
import os
from typing import Any, NamedTuple

from nas_jax.draw import pen as pen_lib
from nas_jax.operations import BUILT_IN, IDENTITY, Operations, find
from nas_jax.space.checks import check_static
from nas_jax.space.tree import TreeArch, leaves

_MEMORY = '#d2593b'  # the colour of c, visible on a light page and on a dark one

# Lengths in points.
_WIDTH, _HEIGHT, _WIRE = 36.0, 20.0, 11.0  # of the box of an operation; of the line between two boxes of a node
_STUB, _RISE = 14.0, 26.0  # the straight part of a line out of a level; the curve to the parent
_APART = 7.0  # from the middle of a box to where a line enters
_ARROW, _SIDE, _EDGE = 18.0, 48.0, 10.0  # the arrows of c; the width of these with their names; the margin


class Box(NamedTuple):
  """One operation."""

  x: float  # of its middle
  y: float  # of its lower edge
  word: str
  combines: bool  # true for a combination, false for an activation
  injects: bool  # whether it belongs to Cell Inject


class Layout(NamedTuple):
  """The positions of all parts of a drawing, with y upwards."""

  width: float
  height: float
  foot: float  # height of the space for the inputs below the leaves
  nodes: tuple[tuple[Box, ...], ...]  # [N] the operations of each node, lowest first
  ceilings: tuple[float, ...]  # [N] y up to which the line out of each node is straight


def draw(arch: TreeArch, path: str | os.PathLike[str], operations: Operations = BUILT_IN) -> None:
  """Draws a static cell as a tree into a file, dark on white. The ending of the path decides the format.

  The leaves, at the bottom, combine W_i x and U_i h. A node has its combination and, above it, its activation if that
  is not the identity. The values a0, a1, ... are named as in `equations`. The operations of Cell Inject with
  their c_(t-1), and c_t at its node, are coloured.

  Args:
    arch: a static architecture.
    path: the path of the file.
    operations: your own operations, if the cell holds any; `Space.operations` has them.

  Raises:
    ValueError: the path does not end in .svg, .png or .pdf; or `arch` is no cell or traced: for example, it holds an
      operation that is neither built in nor among `operations`.

  >>> import os, tempfile
  >>> from nas_jax import tree_cell
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   tree_cell.draw(tree_cell.NASCELL, os.path.join(folder, 'cell.svg'))
  ...   os.listdir(folder)
  ['cell.svg']
  """
  pen_lib.write(functools.partial(_figure, arch, operations=operations), path, 'cell')


def svg(arch: TreeArch, operations: Operations = BUILT_IN) -> str:
  """Returns the drawing as an <svg> element for an HTML page. The same cell gives the same bytes.

  It has the text colour of the page, see `pen.element`.
  """
  make = functools.partial(_figure, arch, operations=operations)
  return pen_lib.element(make, 'cell', tuple(map(tuple, arch)), 'recurrent cell')


def layout(arch: TreeArch, operations: Operations = BUILT_IN) -> Layout:
  """Returns the positions of the parts of a static cell, in points. Raises ValueError for an invalid cell."""
  check_static(arch, TreeArch, operations=operations)
  n = leaves(arch)
  column, foot = (84.0, 34.0) if n <= 8 else (45.0, 50.0)
  gives, takes = arch.index
  edge, across = _EDGE, []
  for leaf in range(n):
    edge += _SIDE if leaf == takes else 0.0
    across.append(edge + column / 2)
    edge += column + (_SIDE if leaf == gives else 0.0)
  nodes: list[tuple[Box, ...]] = []
  ceilings: list[float] = []
  bottom = _EDGE + foot
  while True:
    level = [tuple(_boxes(arch, operations, len(nodes) + k, x, bottom)) for k, x in enumerate(across)]
    ceiling = max(boxes[-1].y for boxes in level) + _HEIGHT + _STUB
    nodes += level
    ceilings += [ceiling] * len(level)
    if len(level) == 1:
      return Layout(edge + _EDGE, ceiling + 2 * _EDGE, foot, tuple(nodes), tuple(ceilings))
    bottom = ceiling + _RISE
    across = [(left + right) / 2 for left, right in zip(across[::2], across[1::2], strict=True)]


def _boxes(arch: TreeArch, operations: Operations, node: int, x: float, y: float) -> Iterator[Box]:
  """Yields the boxes of one node, lowest first."""
  pairs = [(arch.combine[node], arch.activate[node], False)]
  if node == arch.index[1]:
    pairs.append((arch.inject[0], arch.inject[1], True))
  for combine, activate, injects in pairs:
    yield Box(x, y, find('combine', operations, combine).label, True, injects)
    y += _HEIGHT + _WIRE
    if activate != IDENTITY:
      yield Box(x, y, find('activate', operations, activate).label, False, injects)
      y += _HEIGHT + _WIRE


def _figure(arch: TreeArch, ink: str, operations: Operations = BUILT_IN) -> Any:
  """Returns a matplotlib figure of a cell."""
  place = layout(arch, operations)
  pen = pen_lib.Pen(place.width, place.height, ink)
  n = leaves(arch)
  for node, (boxes, ceiling) in enumerate(zip(place.nodes, place.ceilings, strict=True)):
    first, last = boxes[0], boxes[-1]
    if node < n:
      _inputs(pen, node, first, place.foot)
    for below, above in itertools.pairwise(boxes):
      pen.line((below.x, below.y + _HEIGHT), (above.x, above.y))
    for box in boxes:
      _operation(pen, box)
    if node == arch.index[1]:
      entry = next(box for box in boxes if box.injects)
      y = entry.y + _HEIGHT / 2
      pen.line((entry.x - _WIDTH / 2 - _ARROW, y), (entry.x - _WIDTH / 2, y), color=_MEMORY, arrow=True)
      pen.text(entry.x - _WIDTH / 2 - _ARROW - 3, y, '$c_{t-1}$', align='right')
    if node == arch.index[0]:
      y = first.y + _HEIGHT + _WIRE / 2
      pen.line((first.x, y), (first.x + _WIDTH / 2 + _ARROW, y), color=_MEMORY, arrow=True)
      pen.dot(first.x, y, _MEMORY)
      pen.text(first.x + _WIDTH / 2 + _ARROW + 3, y, '$c_t$', align='left')
    root = node == 2 * n - 2
    pen.line((last.x, last.y + _HEIGHT), (last.x, ceiling), arrow=root)
    if root:
      pen.text(last.x, ceiling + 9, '$h_t$')
    else:
      pen.text(last.x + 4, ceiling - _STUB / 2, f'a{node}', align='left', size=pen_lib.SMALL, alpha=0.7)
      parent = place.nodes[n + node // 2][0]
      pen.rise((last.x, ceiling), (parent.x + (_APART if node % 2 else -_APART), parent.y))
  return pen.figure


def _operation(pen: pen_lib.Pen, box: Box) -> None:
  """Draws a combination with round ends, or an activation shaded."""
  radius = _HEIGHT / 2 if box.combines else 3.0
  color = _MEMORY if box.injects else None
  pen.box(box.x, box.y, _WIDTH, _HEIGHT, radius, color, fill=0.0 if box.combines else 0.12)
  pen.text(box.x, box.y + _HEIGHT / 2, box.word, size=pen_lib.fitting(box.word, _WIDTH - 4))


def _inputs(pen: pen_lib.Pen, leaf: int, box: Box, foot: float) -> None:
  """Draws the inputs of a leaf, side by side, or in narrow columns one below the other."""
  for side, depth, word in ((-1, 34.0, 'W_{%d} x'), (1, foot, 'U_{%d} h')):
    x = box.x + side * (18.0 if foot < 40 else 10.0)
    pen.rise((x, box.y - depth + 15), (box.x + side * _APART, box.y))
    pen.text(x, box.y - depth + 6, f'${word % leaf}$')
