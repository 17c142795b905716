"""What all drawings share: a pen that draws in points, and functions that write files and SVG elements.

matplotlib is imported when something is drawn.
"""

from collections.abc import Callable, Sequence
import hashlib
import io
import math
import os
import pathlib
import re
from typing import Any

from nas_jax import lazy

FONT, SMALL = 12.0, 8.5  # points
LEGIBLE = 9.0  # CSS pixels, the least height of letters on a page

_ENDINGS = ('.svg', '.png', '.pdf')
_INK = '#010203'  # in an element, the text colour of the page replaces it

Make = Callable[[str], Any]  # (colour of lines and text) -> a matplotlib figure


def fitting(word: str, width: float, size: float = FONT) -> float:
  """Returns the font size in points, at most `size`, at which a word is at most about `width` wide."""
  return min(size, width / (0.62 * max(len(word), 1)))  # a letter is about 0.62 as wide as its size


def write(make: Make, path: str | os.PathLike[str], noun: str) -> None:
  """Draws into a file, dark on white. The ending of the path decides the format.

  Raises:
    ValueError: the path does not end in .svg, .png or .pdf.
  """
  ending = pathlib.Path(path).suffix.lower()
  if ending not in _ENDINGS:
    raise ValueError(f'cannot draw a {noun} into {os.fspath(path)!r}: want a name that ends in {", ".join(_ENDINGS)}.')
  pathlib.Path(path).write_bytes(_render(make, ending[1:], ink='#1a1a1a', page='white'))


def element(make: Make, prefix: str, key: tuple[Any, ...], label: str, widest: str = '100%') -> str:
  """Returns a drawing as an <svg> element for an HTML page. The same `key` gives the same bytes.

  The element is wide enough for its smallest letters to be `LEGIBLE` high; on a narrow page the reader scrolls it.
  The background is transparent, and lines and text have the text colour of the page (`currentColor`). Letters are
  paths, so they look the same everywhere. Ids begin with the prefix and a hash of the key, so that a page can have many
  drawings.

  Args:
    make: makes the figure.
    prefix: the prefix of ids.
    key: everything that determines the drawing.
    label: describes the drawing, for screen readers.
    widest: the greatest width, as a CSS length.
  """
  text = _render(make, 'svg', _INK, page='none').decode()
  text = text[text.index('<svg') :].replace(_INK, 'currentColor')
  text = re.sub(r' *<style.*?</style>\n', '', text, flags=re.DOTALL)  # it would apply to the whole page
  name = prefix + hashlib.sha256(repr(key).encode()).hexdigest()[:10]
  text = re.sub(r'(\bid="|href="#|url\(#)', rf'\1{name}-', text)

  smallest = _smallest(text)

  def head(size: re.Match[str]) -> str:
    least = f'{math.ceil(float(size[1]) * LEGIBLE / smallest)}px'
    style = f'max-width: max({widest}, {least}); min-width: {least}; height: auto; stroke-linejoin: round'
    return f'width="{size[1]}" height="{size[2]}" style="{style}" role="img" aria-label="{label}"'

  return re.sub(r'width="([\d.]+)pt" height="([\d.]+)pt"', head, text, count=1)


def _smallest(svg: str) -> float:
  """Returns the size in points of the smallest letters of a drawing, subscripts included; at most `SMALL`."""
  sizes = [SMALL]
  for scale, letters in re.findall(r'scale\(([\d.]+) -[\d.]+\)">(.*?)</g>', svg, re.DOTALL):
    subscripts = [float(each) for each in re.findall(r'<use [^>]*scale\(([\d.]+)\)', letters)]
    sizes.append(100 * float(scale) * min([1.0, *subscripts]))  # matplotlib draws letters at 100 points
  return min(sizes)


def _render(make: Make, kind: str, ink: str, page: str) -> bytes:
  """Returns the bytes of a file; the same figure gives the same bytes."""
  lazy.require('matplotlib', 'a drawing')
  import matplotlib

  with matplotlib.rc_context():
    matplotlib.rcdefaults()
    matplotlib.rcParams.update({'svg.hashsalt': 'nas_jax', 'mathtext.fontset': 'dejavuserif'})
    dated = {'svg': ('Date', 'Creator', 'Format', 'Type'), 'pdf': ('CreationDate', 'Creator', 'Producer'), 'png': ()}
    file = io.BytesIO()
    metadata = dict.fromkeys(dated[kind])
    make(ink).savefig(file, format=kind, dpi=200, facecolor=page, metadata=metadata)
  return file.getvalue()


class Pen:
  """Draws on a new `figure`, in points, with y upwards."""

  def __init__(self, width: float, height: float, ink: str):
    from matplotlib.figure import Figure
    from matplotlib.transforms import Affine2D

    self.figure, self.ink = Figure(figsize=(width / 72, height / 72)), ink
    self._points = Affine2D().scale(1 / 72) + self.figure.dpi_scale_trans

  def line(
    self, *points: tuple[float, float], color: str | None = None, arrow: bool = False, dashed: bool = False
  ) -> None:
    """Draws a straight line through two points, or a Bezier curve with four."""
    from matplotlib.path import Path

    self._stroke(points, [Path.LINETO if len(points) == 2 else Path.CURVE4] * (len(points) - 1), color, arrow, dashed)

  def rise(self, below: tuple[float, float], above: tuple[float, float]) -> None:
    """Draws a curve that leaves and arrives vertically."""
    (x0, y0), (x1, y1) = below, above
    middle = (y0 + y1) / 2
    self.line(below, (x0, middle), (x1, middle), above)

  def bends(
    self, points: Sequence[tuple[float, float]], radius: float, color: str | None = None, arrow: bool = False
  ) -> None:
    """Draws straight lines from point to point with rounded corners."""
    from matplotlib.path import Path

    def towards(start: tuple[float, float], end: tuple[float, float]) -> tuple[float, float]:
      (x0, y0), (x1, y1) = start, end
      part = radius / math.hypot(x1 - x0, y1 - y0)
      return x0 + part * (x1 - x0), y0 + part * (y1 - y0)

    vertices, codes = [points[0]], list[Any]()
    for before, corner, after in zip(points, points[1:], points[2:], strict=False):
      vertices += [towards(corner, before), corner, towards(corner, after)]
      codes += [Path.LINETO, Path.CURVE3, Path.CURVE3]
    self._stroke([*vertices, points[-1]], [*codes, Path.LINETO], color, arrow)

  def box(
    self,
    x: float,
    y: float,
    width: float,
    height: float,
    radius: float,
    color: str | None = None,
    fill: float = 0.0,
  ) -> None:
    """Draws a box with rounded corners. (x, y) is the middle of its lower edge, `fill` the opacity of its shade."""
    from matplotlib.patches import FancyBboxPatch

    style = f'round,pad=0,rounding_size={radius}'
    self._add(FancyBboxPatch((x - width / 2, y), width, height, style, lw=1.1, **self._colors(color, fill)))

  def dot(self, x: float, y: float, color: str) -> None:
    """Draws a dot, where a line branches off."""
    from matplotlib.patches import Circle

    self._add(Circle((x, y), 2.2, lw=0, **self._colors(color, fill=1.0)))

  def text(self, x: float, y: float, words: str, align: str = 'center', size: float = FONT, alpha: float = 1.0) -> None:
    """Writes text beside a point, or centred on it."""
    place: dict[str, Any] = {'transform': self._points, 'ha': align, 'va': 'center_baseline'}
    self.figure.text(x, y, words, fontsize=size, color=self.ink, alpha=alpha, **place)

  def _stroke(
    self,
    points: Sequence[tuple[float, float]],
    codes: Sequence[Any],
    color: str | None,
    arrow: bool,
    dashed: bool = False,
  ) -> None:
    from matplotlib.patches import FancyArrowPatch
    from matplotlib.path import Path

    path = Path(points, [Path.MOVETO, *codes])
    style = '-|>,head_length=5,head_width=2.2' if arrow else '-'
    look: dict[str, Any] = {
      'arrowstyle': style,
      'capstyle': 'round',
      'lw': 1.1,
      'linestyle': (0, (3, 3)) if dashed else '-',
    }
    self._add(FancyArrowPatch(path=path, **look, **self._colors(color, fill=1.0)))

  def _colors(self, color: str | None, fill: float) -> dict[str, Any]:
    color = color or self.ink
    return {'edgecolor': color, 'facecolor': (color, fill)}

  def _add(self, patch: Any) -> None:
    patch.set_transform(self._points)
    self.figure.add_artist(patch)
