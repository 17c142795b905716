"""Static tree cells as pictures, in the manner of Zoph & Le (2017) Fig. 8: x_t and h_(t-1) below, h_t on top.

matplotlib is brought in when something is drawn, not before.
"""

from collections.abc import Iterator
import hashlib
import io
import itertools
import os
import pathlib
import re
from typing import Any, NamedTuple

from nas_jax.space.tree import ACTIVATE, COMBINE, IDENTITY, TreeArch, leaves

_SIGNS = {'add': '+', 'mult': '×', 'sigmoid': 'σ'}
_MEMORY = '#d2593b'  # the way of c, to be told from the ink on a light page and on a dark one
_ENDINGS = ('.svg', '.png', '.pdf')

# Lengths in points.
_FONT, _SMALL = 12.0, 8.5
_WIDTH, _HEIGHT, _WIRE = 36.0, 20.0, 11.0  # of an operation's box, and of the wire between two boxes of a node
_STUB, _RISE = 14.0, 26.0  # what leaves a level goes straight up, then over to its parent
_APART = 7.0  # from the middle of a box to where a wire enters
_ARROW, _SIDE, _EDGE = 18.0, 48.0, 10.0  # the arrows of c; the room that they and their names take; the margin


class Box(NamedTuple):
  """One operation."""

  x: float  # its middle
  y: float  # its lower edge
  word: str
  combines: bool  # or activates
  injects: bool  # belongs to Cell Inject


class Layout(NamedTuple):
  """Where everything is; y goes up."""

  width: float
  height: float
  foot: float  # how deep the inputs of the leaves reach below them
  nodes: tuple[tuple[Box, ...], ...]  # [N] the operations of each node, lowest first
  ceilings: tuple[float, ...]  # [N] up to where the wire out of each node is straight


def draw(arch: TreeArch, path: str | os.PathLike[str]) -> None:
  """Draws a static cell as a tree into a file, dark on white; the format is the path's ending.

  The leaves, below, combine W_i x and U_i h. Each node shows its combination and, above it, its activation if that is
  not the identity; a0, a1, ... are the values that `equations` calls so. In colour: c_(t-1) with the operations of Cell
  Inject, and c_t where it leaves its node.

  Raises:
    ValueError: the path ends in none of .svg, .png, .pdf.
  """
  ending = pathlib.Path(path).suffix.lower()
  if ending not in _ENDINGS:
    raise ValueError(f'cannot draw a cell into {os.fspath(path)!r}: want a name that ends in {", ".join(_ENDINGS)}.')
  pathlib.Path(path).write_bytes(_render(arch, ending[1:], ink='#1a1a1a', page='white'))


def svg(arch: TreeArch) -> str:
  """The same drawing as an <svg> element to put into HTML; one cell is always one text.

  It is transparent and in the text colour of the page (`currentColor`), light or dark, and no wider than its place. Its
  letters are paths, the same everywhere. Its ids begin with a hash of the cell, so that a page can hold many.
  """
  ink = '#010203'
  text = _render(arch, 'svg', ink, page='none').decode()
  text = text[text.index('<svg') :].replace(ink, 'currentColor')
  text = re.sub(r' *<style.*?</style>\n', '', text, flags=re.DOTALL)  # it would rule the whole page
  name = 'cell' + hashlib.sha256(repr(tuple(map(tuple, arch))).encode()).hexdigest()[:10]
  text = re.sub(r'(\bid="|href="#|url\(#)', rf'\1{name}-', text)
  style = 'max-width: 100%; height: auto; stroke-linejoin: round'
  head = rf'width="\1" height="\2" style="{style}" role="img" aria-label="recurrent cell"'
  return re.sub(r'width="([\d.]+)pt" height="([\d.]+)pt"', head, text, count=1)


def layout(arch: TreeArch) -> Layout:
  """Where the parts of a static cell are drawn, in points."""
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
    level = [tuple(_boxes(arch, len(nodes) + k, x, bottom)) for k, x in enumerate(across)]
    ceiling = max(boxes[-1].y for boxes in level) + _HEIGHT + _STUB
    nodes += level
    ceilings += [ceiling] * len(level)
    if len(level) == 1:
      return Layout(edge + _EDGE, ceiling + 2 * _EDGE, foot, tuple(nodes), tuple(ceilings))
    bottom = ceiling + _RISE
    across = [(left + right) / 2 for left, right in zip(across[::2], across[1::2], strict=True)]


def _boxes(arch: TreeArch, node: int, x: float, y: float) -> Iterator[Box]:
  """The operations of one node, lowest first."""
  pairs = [(arch.combine[node], arch.activate[node], False)]
  if node == arch.index[1]:
    pairs.append((arch.inject[0], arch.inject[1], True))
  for combine, activate, injects in pairs:
    names = [(COMBINE[combine], True)] + [(ACTIVATE[activate], False)] * (activate != IDENTITY)
    for name, combines in names:
      yield Box(x, y, _SIGNS.get(name, name), combines, injects)
      y += _HEIGHT + _WIRE


# -- with matplotlib --------------------------------------------------------------------------------------------------


def _render(arch: TreeArch, kind: str, ink: str, page: str) -> bytes:
  """The bytes of a file, the same for the same cell."""
  import matplotlib

  with matplotlib.rc_context():
    matplotlib.rcdefaults()
    matplotlib.rcParams.update({'svg.hashsalt': 'nas_jax', 'mathtext.fontset': 'dejavuserif'})
    dated = {'svg': ('Date', 'Creator', 'Format', 'Type'), 'pdf': ('CreationDate', 'Creator', 'Producer'), 'png': ()}
    file = io.BytesIO()
    metadata = dict.fromkeys(dated[kind])
    _figure(arch, ink).savefig(file, format=kind, dpi=200, facecolor=page, metadata=metadata)
  return file.getvalue()


def _figure(arch: TreeArch, ink: str) -> Any:
  """A matplotlib figure of a cell."""
  from matplotlib.figure import Figure

  place = layout(arch)
  figure = Figure(figsize=(place.width / 72, place.height / 72))
  pen = _Pen(figure, ink)
  n = leaves(arch)
  for node, (boxes, ceiling) in enumerate(zip(place.nodes, place.ceilings, strict=True)):
    first, last = boxes[0], boxes[-1]
    if node < n:
      _inputs(pen, node, first, place.foot)
    for below, above in itertools.pairwise(boxes):
      pen.line((below.x, below.y + _HEIGHT), (above.x, above.y))
    for box in boxes:
      pen.box(box)
    if node == arch.index[1]:
      entry = next(box for box in boxes if box.injects)
      y = entry.y + _HEIGHT / 2
      pen.line((entry.x - _WIDTH / 2 - _ARROW, y), (entry.x - _WIDTH / 2, y), color=_MEMORY, arrow=True)
      pen.text(entry.x - _WIDTH / 2 - _ARROW - 3, y, '$c_{t-1}$', align='right')
    if node == arch.index[0]:
      y = first.y + _HEIGHT + _WIRE / 2
      pen.line((first.x, y), (first.x + _WIDTH / 2 + _ARROW, y), color=_MEMORY, arrow=True)
      pen.dot(first.x, y)
      pen.text(first.x + _WIDTH / 2 + _ARROW + 3, y, '$c_t$', align='left')
    root = node == 2 * n - 2
    pen.line((last.x, last.y + _HEIGHT), (last.x, ceiling), arrow=root)
    if root:
      pen.text(last.x, ceiling + 9, '$h_t$')
    else:
      pen.text(last.x + 4, ceiling - _STUB / 2, f'a{node}', align='left', size=_SMALL, alpha=0.7)
      parent = place.nodes[n + node // 2][0]
      pen.rise((last.x, ceiling), (parent.x + (_APART if node % 2 else -_APART), parent.y))
  return figure


def _inputs(pen: '_Pen', leaf: int, box: Box, foot: float) -> None:
  """What a leaf takes: two words side by side, or in narrow columns one lower than the other."""
  for side, depth, word in ((-1, 34.0, 'W_{%d} x'), (1, foot, 'U_{%d} h')):
    x = box.x + side * (18.0 if foot < 40 else 10.0)
    pen.rise((x, box.y - depth + 15), (box.x + side * _APART, box.y))
    pen.text(x, box.y - depth + 6, f'${word % leaf}$')


class _Pen:
  """Draws on a figure in points."""

  def __init__(self, figure: Any, ink: str):
    from matplotlib.transforms import Affine2D

    self.figure, self.ink = figure, ink
    self.points = Affine2D().scale(1 / 72) + figure.dpi_scale_trans

  def line(self, *points: tuple[float, float], color: str | None = None, arrow: bool = False) -> None:
    """Two points: a straight line. Four: a Bezier curve."""
    from matplotlib.patches import FancyArrowPatch
    from matplotlib.path import Path

    path = Path(points, [Path.MOVETO] + [Path.LINETO if len(points) == 2 else Path.CURVE4] * (len(points) - 1))
    style = '-|>,head_length=5,head_width=2.2' if arrow else '-'
    self._add(FancyArrowPatch(path=path, arrowstyle=style, capstyle='round', lw=1.1, **self._colors(color, fill=1.0)))

  def rise(self, below: tuple[float, float], above: tuple[float, float]) -> None:
    """A curve that leaves and arrives upright."""
    (x0, y0), (x1, y1) = below, above
    middle = (y0 + y1) / 2
    self.line(below, (x0, middle), (x1, middle), above)

  def box(self, box: Box) -> None:
    """A combination has round ends; an activation is shaded."""
    from matplotlib.patches import FancyBboxPatch

    radius = _HEIGHT / 2 if box.combines else 3.0
    colors = self._colors(_MEMORY if box.injects else None, fill=0.0 if box.combines else 0.12)
    corner = box.x - _WIDTH / 2, box.y
    self._add(FancyBboxPatch(corner, _WIDTH, _HEIGHT, f'round,pad=0,rounding_size={radius}', lw=1.1, **colors))
    self.text(box.x, box.y + _HEIGHT / 2, box.word)

  def dot(self, x: float, y: float) -> None:
    """Where a wire is tapped."""
    from matplotlib.patches import Circle

    self._add(Circle((x, y), 2.2, lw=0, **self._colors(_MEMORY, fill=1.0)))

  def text(
    self, x: float, y: float, words: str, align: str = 'center', size: float = _FONT, alpha: float = 1.0
  ) -> None:
    """Words beside or around a point."""
    place = {'transform': self.points, 'ha': align, 'va': 'center_baseline'}
    self.figure.text(x, y, words, fontsize=size, color=self.ink, alpha=alpha, **place)

  def _colors(self, color: str | None, fill: float) -> dict[str, Any]:
    color = color or self.ink
    return {'edgecolor': color, 'facecolor': (color, fill)}

  def _add(self, patch: Any) -> None:
    patch.set_transform(self.points)
    self.figure.add_artist(patch)
