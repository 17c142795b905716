"""Draws static architectures of ENAS: networks as columns of boxes, recurrent cells as trees."""

from collections.abc import Sequence
import functools
import os
from typing import Any

from nas_jax.draw import enas_micro as draw_enas_micro
from nas_jax.draw import pen, routing
from nas_jax.draw.routing import EDGE, GAP, HEIGHT, Arrow, Box, Layout
from nas_jax.operations import BUILT_IN, Operations, find
from nas_jax.space import enas
from nas_jax.space.checks import check_static
from nas_jax.space.enas import MACRO_OPERATIONS, MacroArch, MicroArch, RnnArch

Arch = MacroArch | MicroArch | RnnArch

# Lengths in points.
_SUM = 16.0  # the height of a sum
_NODE, _COLUMN, _RISE = 70.0, 78.0, 26.0  # the width of a node; from column to column; from rank to rank
_STATE, _BESIDE, _ENTRY = 32.0, 18.0, 7.0  # width of x and h; distance of these, and of their arrows, from the middle


def draw(arch: Arch, path: str | os.PathLike[str], operations: Operations = BUILT_IN) -> None:
  """Draws an architecture into a file, dark on white. The ending of the path decides the format.

  Layers and blocks have the numbers that `space.enas.describe` uses. Convolutions are white, pools and identities are
  shaded, sums are round.

  * A network has the image below and the softmax on top. A + adds the skips to the result of an operation. A broken
    line shows where all outputs so far are halved. The first convolution, which every network has, is not shown.
  * A micro architecture is its normal cell and its reduction cell. `concat` reads the nodes that no block reads.
  * In a recurrent cell node 0 reads x_t and h_(t-1), and h_t is the mean of the nodes that no node reads.

  Args:
    arch: a static architecture.
    path: the path of the file.
    operations: your own activations, if a recurrent cell holds any; `Space.operations` has them.

  Raises:
    ValueError: the path does not end in .svg, .png or .pdf; or `arch` is no architecture or traced: for example, a
      recurrent cell holds an activation that is neither built in nor among `operations`.
  """
  pen.write(functools.partial(_figure, arch, operations=operations), path, _noun(arch))


def svg(arch: Arch, operations: Operations = BUILT_IN) -> str:
  """Returns the drawing as an <svg> element for an HTML page. The same architecture gives the same bytes.

  It has the text colour of the page, see `pen.element`.
  """
  widest = f'min(100%, {layout(arch, operations).width:g}pt)'
  make = functools.partial(_figure, arch, operations=operations)
  return pen.element(make, 'enas', (type(arch).__name__, *arch), _noun(arch), widest)


def layout(arch: Arch, operations: Operations = BUILT_IN) -> Layout:
  """Returns the positions of the parts of a drawing, in points. Raises ValueError for an invalid `arch`."""
  check_static(arch, MacroArch, MicroArch, RnnArch, operations=operations)
  if isinstance(arch, MacroArch):
    return _macro(arch)
  return draw_enas_micro.layout(arch) if isinstance(arch, MicroArch) else _recurrent(arch, operations)


def _figure(arch: Arch, ink: str, operations: Operations = BUILT_IN) -> Any:
  return routing.figure(layout(arch, operations), ink)


def _noun(arch: Arch) -> str:
  return {MacroArch: 'convolutional network', MicroArch: 'pair of cells', RnnArch: 'recurrent cell'}[type(arch)]


def _macro(arch: MacroArch) -> Layout:
  """Returns a column of operations, each with a sum above it if the layer has skips."""
  boxes, reads, marks = [Box('image', round=True)], list[Sequence[int]]([()]), dict[int, str]()
  outputs = list[int]()  # the box with the output of each layer
  for i, (operation, skips) in enumerate(zip(arch.operation, enas.skips_of(arch), strict=True)):
    if i in enas.cuts(len(arch.operation)):
      marks[len(boxes)] = 'half the size'
    word = MACRO_OPERATIONS[operation]
    reads.append((len(boxes) - 1,))
    boxes.append(Box(word, str(i), shaded='conv' not in word))
    if skips:
      reads.append((*(outputs[j] for j in skips), len(boxes) - 1))
      boxes.append(Box('+', round=True, height=_SUM))
    outputs.append(len(boxes) - 1)
  return routing.column([*boxes, Box('softmax', round=True)], [*reads, (len(boxes) - 1,)], marks)


def _recurrent(arch: RnnArch, operations: Operations) -> Layout:
  """Returns a tree with its root at the bottom. Each node is above the node that it reads; the mean is at the top."""
  nodes = len(arch.activate)
  readers = [[i for i, j in enumerate(arch.previous, 1) if j == node] for node in range(nodes)]
  ranks, across, ends = [0] * nodes, [0.0] * nodes, list[int]()
  for node, previous in enumerate(arch.previous, 1):
    ranks[node] = ranks[previous] + 1

  def place(node: int) -> None:
    for reader in readers[node]:
      place(reader)
    if not readers[node]:
      ends.append(node)
    above = [across[reader] for reader in readers[node]] or [EDGE + _NODE / 2 + (len(ends) - 1) * _COLUMN]
    across[node] = (above[0] + above[-1]) / 2

  place(0)
  foot, step = EDGE + HEIGHT + _RISE, HEIGHT + _RISE
  boxes = [
    Box(activation.name, str(i), shaded=True, width=_NODE, x=across[i], y=foot + ranks[i] * step)
    for i, activation in enumerate(find('activate', operations, chosen) for chosen in arch.activate)
  ]
  first, last = across[ends[0]], across[ends[-1]]
  mean = Box('mean', round=True, width=last - first + _NODE, x=(first + last) / 2, y=foot + (max(ranks) + 1) * step)
  x = Box('$x_t$', round=True, width=_STATE, x=across[0] - _BESIDE, y=EDGE)
  boxes += [mean, x, x._replace(word='$h_{t-1}$', x=across[0] + _BESIDE)]
  boxes.append(x._replace(word='$h_t$', x=mean.x, y=mean.top + GAP))

  def rise(source: int, target: int, x: float) -> Arrow:
    """Returns an arrow that leaves and arrives vertically."""
    (x0, y0), y1 = (boxes[source].x, boxes[source].top), boxes[target].y
    points = ((x0, y0), (x0, (y0 + y1) / 2), (x, (y0 + y1) / 2), (x, y1))
    return Arrow(source, target, -1, points if x0 != x else (points[0], points[-1]))

  arrows = [rise(previous, node, across[node]) for node, previous in enumerate(arch.previous, 1)]
  arrows += [rise(node, nodes, across[node]) for node in ends]
  arrows += [
    rise(nodes + 1, 0, across[0] - _ENTRY),
    rise(nodes + 2, 0, across[0] + _ENTRY),
    rise(nodes, nodes + 3, mean.x),
  ]
  return Layout(last + _NODE / 2 + EDGE, boxes[-1].top + EDGE, tuple(boxes), tuple(arrows))
