"""Draws charts as SVG elements for an HTML page, in the colours of that page.

Text has the text colour of the page; its CSS variables `--search`, `--control` and `--grid` are the other colours. Each
function returns one `<svg>` element; the same data give the same bytes. The attribute `data-points` of the element is a
list of [x, y, words], with x and y in units of the drawing. The script of the page shows these words.
"""

from collections.abc import Callable, Sequence
import html
import io
import json
import math
import re
from typing import Any, NamedTuple

import numpy as np

# Matplotlib draws in the colours on the left, which the page replaces by those on the right.
_COLOURS = {
  '#010101': 'currentColor',
  '#010102': 'var(--grid)',
  '#010103': 'var(--search)',
  '#010104': 'var(--control)',
}
_INK, _GRID, *_SIDES = _COLOURS
_STYLES, _MARKERS, _CAPS = ('-', '--'), ('o', 's'), ('round', 'projecting')
_RC: dict[Any, Any] = {
  'svg.hashsalt': 'nas_jax',
  'svg.fonttype': 'none',
  'path.simplify': False,
  'text.parse_math': False,  # names are not formulas
  'font.size': 12,
}


_LONG = re.compile(r'-?\d+\.\d{2,}')
_SIZE = (6.2, 4.0)  # inches
_MOST = 2000  # most points of a chart that have words
_POINTS = 72  # units of the drawing in an inch

Point = tuple[float, float, str]  # x and y in the units of the data, and the words for them


class Line(NamedTuple):
  """The values of one search in a chart. Of several lines the first is the search, the second random search."""

  name: str
  x: Sequence[float] | np.ndarray
  y: Sequence[float] | np.ndarray  # NaN for no value


def rewards(name: str, label: str, lines: Sequence[Line], baseline: Line) -> str:
  """Draws rewards: a point for each child, the moving mean over 5 % of them (at least 10), and the baseline."""

  def draw(axes: Any) -> list[Point]:
    for side, line in enumerate(lines):
      _points(axes, side, line)
    for side, line in enumerate(lines):
      _curve(axes, side, line._replace(y=moving_mean(line.y, max(10, len(line.y) // 20))))
    if len(baseline.x):
      axes.plot(baseline.x, baseline.y, color=_INK, linestyle=':', linewidth=1.6, label=baseline.name)
    axes.autoscale_view()
    _name_axes(axes, 'children', 'reward')
    return [point for line in lines for point in _named(line, 'reward')]

  return _svg(name, label, draw)


def progress(
  name: str, label: str, ylabel: str, best: Sequence[Line], top: Sequence[Line], xlabel: str = 'children'
) -> str:
  """Draws the best score so far and, as thinner lines, the mean of the best few. The y axis may be logarithmic."""

  def draw(axes: Any) -> list[Point]:
    for side, line in enumerate(best):
      _curve(axes, side, line, drawstyle='steps-post')
    for side, few in enumerate(top):
      _curve(axes, side, few._replace(name=''), drawstyle='steps-post', linewidth=0.9)
    _name_axes(axes, xlabel, ylabel)
    # The axis ignores the first 5 % of the children: their scores vary so much that the rest would look flat.
    _scale(axes, np.concatenate([np.asarray(line.y, float)[len(line.y) // 20 :] for line in (*best, *top)]))
    return [point for line in best for point in _named(_steps(line), 'best so far', xlabel)]

  return _svg(name, label, draw)


def quarters(name: str, label: str, ylabel: str, lines: Sequence[Line]) -> str:
  """Draws the scores of each quarter of a search: median, middle 50 % (thick line) and middle 80 % (thin line)."""

  def draw(axes: Any) -> list[Point]:
    shown, points = list[float](), list[Point]()
    for side, line in enumerate(lines):
      for quarter, part in enumerate(np.array_split(np.asarray(line.y, float), 4)):
        part = part[np.isfinite(part)]
        if len(part):
          low, first, middle, third, high = np.quantile(part, (0.1, 0.25, 0.5, 0.75, 0.9))
          x, colour = quarter + 0.16 * (2 * side - len(lines) + 1), _SIDES[side]
          axes.plot([x, x], [low, high], color=colour, linewidth=1.5)
          axes.plot([x, x], [first, third], color=colour, linewidth=6, alpha=0.5, solid_capstyle='butt')
          name = line.name if not quarter else None
          axes.plot([x], [middle], color=colour, marker=_MARKERS[side], markersize=7, linestyle='', label=name)
          shown += [low, high]
          points.append((x, middle, f'{line.name}: median {middle:.4g}, middle half {first:.4g} to {third:.4g}'))
    axes.set_xticks(range(4), ['first quarter', 'second', 'third', 'last'])
    axes.set_xlim(-0.6, 3.6)
    axes.set(ylabel=ylabel)
    _scale(axes, shown)
    return points

  return _svg(name, label, draw)


def entropy(name: str, label: str, lines: Sequence[Line]) -> str:
  """Draws the entropy of the controller. The axis begins at 0 nats."""

  def draw(axes: Any) -> list[Point]:
    for side, line in enumerate(lines):
      _curve(axes, side, line)
    _name_axes(axes, 'children', 'nats')
    axes.set_ylim(bottom=0)
    return [point for line in lines for point in _named(line, 'entropy in nats')]

  return _svg(name, label, draw)


def against_cost(
  name: str,
  label: str,
  xlabel: str,
  ylabel: str,
  children: Sequence[Line],
  fronts: Sequence[Line],
  points: Sequence[Point],
) -> str:
  """Draws scores over costs: a point for each child, and the front of each search as steps with marks.

  Args:
    name: as in `_svg`.
    label: as in `_svg`.
    xlabel: the cost.
    ylabel: the score.
    children: the costs and scores of each search.
    fronts: for each search, the children that no other child beats, by cost.
    points: the words for each child.
  """

  def draw(axes: Any) -> Sequence[Point]:
    for side, line in enumerate(children):
      _points(axes, side, line)
    for side, line in enumerate(fronts):
      _curve(axes, side, line, drawstyle='steps-post', linewidth=1.4, marker=_MARKERS[side], markersize=5)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    _scale(axes, np.concatenate([np.asarray(line.y, float) for line in children]))
    _scale(axes, np.concatenate([np.asarray(line.x, float) for line in children]), 'x')
    return points

  return _svg(name, label, draw)


def moving_mean(values: Sequence[float] | np.ndarray, window: int) -> np.ndarray:
  """Returns for each value the mean of the last `window` values up to it, fewer at the start. NaNs are left out."""
  found = np.asarray(values, float)
  finite = np.isfinite(found)
  total = np.cumsum(np.concatenate([[0.0], np.where(finite, found, 0.0)]))
  count = np.cumsum(np.concatenate([[0], finite]))
  start = np.maximum(np.arange(1, len(found) + 1) - window, 0)
  with np.errstate(invalid='ignore'):
    return (total[1:] - total[start]) / (count[1:] - count[start])


def _named(line: Line, what: str, xlabel: str = 'children') -> list[Point]:
  """Returns the points of a line that have a value, with words for each."""
  return [
    (float(x), float(y), f'{line.name}, after {float(x):.4g} {xlabel}: {what} {float(y):.4g}')
    for x, y in zip(line.x, line.y, strict=True)
    if np.isfinite(y)
  ]


def _steps(line: Line) -> Line:
  """Returns the points of a line at which its value changes."""
  y = np.asarray(line.y, float)
  changes = np.flatnonzero(np.diff(y, prepend=np.nan) != 0)
  return line._replace(x=np.asarray(line.x)[changes], y=y[changes])


def _name_axes(axes: Any, xlabel: str, ylabel: str) -> None:
  """Names the axes of a chart. Children are counted in whole numbers."""
  from matplotlib import ticker

  axes.set(xlabel=xlabel, ylabel=ylabel)
  if xlabel == 'children':
    axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True, steps=(1, 2, 5, 10)))


def _curve(axes: Any, side: int, line: Line, **style: Any) -> None:
  style = {'linewidth': 2.0, 'marker': _MARKERS[side] if len(line.x) == 1 else None} | style
  axes.plot(line.x, line.y, color=_SIDES[side], linestyle=_STYLES[side], label=line.name or None, **style)


def _points(axes: Any, side: int, line: Line) -> None:
  """Draws dots or squares as one path of strokes without length, so that a point takes only a few bytes."""
  from matplotlib.patches import PathPatch
  from matplotlib.path import Path

  places = np.stack([np.asarray(line.x, float), np.asarray(line.y, float)], 1)
  places = places[np.isfinite(places).all(1)]
  if len(places):
    codes = np.tile([Path.MOVETO, Path.LINETO], len(places))
    style = {'fill': False, 'linewidth': 3.5 - side, 'alpha': 0.3, 'capstyle': _CAPS[side]}
    axes.add_patch(PathPatch(Path(np.repeat(places, 2, 0), codes), edgecolor=_SIDES[side], **style))


def _scale(axes: Any, values: Sequence[float] | np.ndarray, side: str = 'y') -> None:
  """Sets limits around `values`, and a logarithmic scale with round numbers if they span more than a factor of 2.

  Args:
    axes: the axes of the chart.
    values: finite ones count.
    side: 'y', or 'x' for an axis of large numbers, which has words such as 20k and 1.5M.
  """
  from matplotlib import ticker

  finite = np.asarray(values, float)
  finite = finite[np.isfinite(finite)]
  if not len(finite):
    return
  low, high, axis = finite.min(), finite.max(), axes.yaxis if side == 'y' else axes.xaxis
  if low > 0 and high > 2 * low:
    margin = (high / low) ** 0.06
    axes.set(**{f'{side}scale': 'log', f'{side}lim': (low / margin, high * margin)})
    steps = (1,) if high > 300 * low else (1, 2, 5) if high > 20 * low else (1, 1.5, 2, 3, 4, 5, 7)
    axis.set_major_locator(ticker.LogLocator(subs=steps, numticks=20))
    axis.set_major_formatter(ticker.FormatStrFormatter('%g'))
    axis.set_minor_locator(ticker.NullLocator())
  elif high > low:
    axes.set(**{f'{side}lim': (low - 0.06 * (high - low), high + 0.06 * (high - low))})
  if side == 'x':
    axis.set_major_formatter(ticker.EngFormatter(sep=''))


def _svg(name: str, label: str, draw: Callable[[Any], Sequence[Point]]) -> str:
  """Returns an <svg> element of what `draw` draws on axes. It also holds the points that `draw` returns.

  The ids of the element begin with `name`; `label` is for screen readers.
  """
  import matplotlib
  from matplotlib.figure import Figure

  with matplotlib.rc_context(_RC):
    figure = Figure(figsize=_SIZE, dpi=_POINTS)
    axes = figure.add_axes((0.155, 0.14, 0.825, 0.74))
    points = draw(axes)
    axes.grid(axis='y', color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(color=_GRID, labelcolor=_INK, length=3)
    axes.spines[['top', 'right', 'left']].set_visible(False)
    axes.spines['bottom'].set_color(_GRID)
    axes.xaxis.label.set_color(_INK)
    axes.yaxis.label.set_color(_INK)
    if axes.get_legend_handles_labels()[0]:
      axes.legend(loc='lower left', bbox_to_anchor=(-0.02, 1.0), ncols=3, frameon=False, labelcolor=_INK)
    file = io.StringIO()
    figure.savefig(file, format='svg', transparent=True, metadata={'Date': None, 'Creator': None})
  return _themed(file.getvalue(), name, label, _placed(axes, points))


def _placed(axes: Any, points: Sequence[Point]) -> str:
  """Returns points as JSON, with their positions in the drawing. Points outside of the axes are left out.

  If there are more than `_MOST` points, only every second, third, ... is kept, so that the page stays small.
  """
  (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
  inside = [point for point in points if left <= point[0] <= right and low <= point[1] <= high]
  if not inside:
    return '[]'
  inside = inside[:: math.ceil(len(inside) / _MOST)]
  places = axes.transData.transform(np.array([point[:2] for point in inside]))
  places[:, 1] = _SIZE[1] * _POINTS - places[:, 1]
  return json.dumps([[*place, words] for place, (_, _, words) in zip(places.round().astype(int).tolist(), inside)])


def _rounded(number: re.Match[str]) -> str:
  return f'{float(number[0]):.2f}'.rstrip('0').rstrip('.')


def _themed(svg: str, name: str, label: str, points: str) -> str:
  view = re.search(r'viewBox="([^"]*)"', svg)
  body = svg[svg.index('<defs>') :] if '<metadata' not in svg else svg[svg.index('</metadata>') + 11 :]
  body = re.sub(r'<style.*?</style>|<!--.*?-->', '', body, flags=re.DOTALL)
  body = re.sub(r' ?font-family: [^;"]*;', '', body)  # the page sets the font
  body = re.sub(r'\b(id="|href="#|url\(#)', rf'\g<1>{name}-', body.replace('xlink:href', 'href'))
  body = re.sub(r'<[^>]*>', lambda tag: _LONG.sub(_rounded, tag[0]), body)  # numbers in text are not rounded
  for sentinel, colour in _COLOURS.items():
    body = body.replace(sentinel, colour)
  label = html.escape(label)
  head = (
    f'<svg class="chart" role="img" viewBox="{view[1] if view else ""}" aria-label="{label}" '
    f'data-points="{html.escape(points)}">'
  )
  return head + re.sub(r'\s*\n\s*', '\n', body).strip()
