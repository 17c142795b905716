"""Draws replay trees: the root on the left, a column for each layer, a box for each node, shaded by its mean reward.

Of a large tree only the nodes that were reached most often are shown, with the number of hidden nodes after each.
"""

from collections.abc import Sequence
import functools
import heapq
import itertools
import os
from typing import Any, NamedTuple

import jax
import numpy as np

from nas_jax.draw import pen as pen_lib
from nas_jax.search.replay_tree import Tree, names

_SHADE, _WIRE = '#2f7fc1', '#7a838d'  # both visible on a light page and on a dark one
_FILL = 0.55  # opacity for the best reward; text is legible on it

# Lengths in points.
_HEIGHT, _ROW = 27.0, 36.0  # of a box; from one to the next
_GAP, _EDGE = 26.0, 10.0  # between columns; the margin
_WORDS, _LINE, _PAD = 9.5, 5.5, 6.0  # font size; half the distance of two lines; margin beside text
_LETTER = 0.62  # width of most letters, relative to the font size
_FOOT = 13.0  # from line to line below the tree


class Box(NamedTuple):
  """A node. The root, which comes first, has no text."""

  x: float  # of its middle
  y: float  # of its lower edge
  parent: int  # index of the box of its parent; the root is its own parent
  word: str  # its layer
  mean: str  # its mean reward, or 'untrained'
  more: str  # number of hidden nodes after it, or ''
  shade: float  # from 0 for the least reward to 1 for the greatest; -1 if it was not trained


class Layout(NamedTuple):
  """The positions of all parts of a drawing, with y upwards."""

  width: float
  height: float
  wide: float  # width of a box
  boxes: tuple[Box, ...]  # parents before their children
  foot: tuple[str, ...]  # lines of text below the tree


def draw(tree: Tree, labels: Sequence[str], path: str | os.PathLike[str], most: int = 40) -> None:
  """Draws a replay tree into a file, dark on white. The ending of the path decides the format.

  A box has the label of its layer, the mean reward of the network that ends there and, as +n, the number of hidden
  nodes after it.

  Args:
    tree: what to draw.
    labels: [K] the name of each token.
    path: ends in .svg, .png or .pdf.
    most: how many nodes to show: those reached most often, and in a tie those with better rewards.

  Raises:
    ValueError: the path has another ending, there are not as many labels as choices, or `most` is below 1.
  """
  pen_lib.write(functools.partial(_figure, layout(tree, labels, most)), path, 'replay tree')


def svg(tree: Tree, labels: Sequence[str], most: int = 40) -> str:
  """Returns the drawing as an <svg> element for an HTML page. The same tree gives the same bytes.

  It has the text colour of the page, see `pen.element`. Raises ValueError as `draw`.
  """
  place = layout(tree, labels, most)
  widest = f'min(100%, {place.width:g}pt)'
  return pen_lib.element(functools.partial(_figure, place), 'replay', tuple(place), 'replay tree', widest)


def layout(tree: Tree, labels: Sequence[str], most: int = 40) -> Layout:
  """Returns the positions of the parts of a drawing, in points. Raises ValueError as `draw`."""
  if most < 1:
    raise ValueError(f'most (={most}) must be at least 1: how many nodes to show.')
  called, tree = names(tree, labels), jax.device_get(tree)
  shown = _chosen(tree, most)
  hidden = _hidden(tree, shown)
  layers = [called[node] for node in shown]
  means = ['', *(_mean(tree, node) for node in shown[1:])]
  more = [f'+{hidden[node]}' if hidden[node] else '' for node in shown]
  rewards = [f'{mean}  {rest}' for mean, rest in zip(means, more, strict=True)]
  wide = 2 * _PAD + max(
    _wide(words, size) for size, lines in ((_WORDS, layers), (pen_lib.SMALL, rewards)) for words in lines
  )
  rows, shades, foot = _rows(tree, shown), _shades(tree, shown), _foot(tree, shown)
  top = 1.5 * _EDGE + len(foot) * _FOOT + max(rows.values()) + _HEIGHT
  start = _EDGE + (_wide(more[0], pen_lib.SMALL) + _PAD if more[0] else 0.0)
  boxes = [Box(start, top - _HEIGHT - rows[0], 0, '', '', more[0], shades[0])]
  for place, node in enumerate(shown[1:], 1):
    parent = shown.index(int(tree.parent[node]))
    x = boxes[parent].x + _GAP + wide * (1.0 if parent else 0.5)
    boxes.append(Box(x, top - _HEIGHT - rows[node], parent, layers[place], means[place], more[place], shades[place]))
  right = max(box.x + wide / 2 * (place > 0) for place, box in enumerate(boxes))
  below = max(_wide(line, pen_lib.SMALL) for line in foot)
  return Layout(max(right, _EDGE + below) + _EDGE, top + _EDGE, wide, tuple(boxes), foot)


def _mean(tree: Tree, node: int) -> str:
  """Returns the mean reward of a node in words."""
  if not tree.trained[node]:
    return 'untrained'
  return f'{tree.reward[node]:#.3g}' if np.isfinite(tree.reward[node]) else 'failed'


def _next(tree: Tree, node: int) -> list[int]:
  """Returns the children of a node in the order of their tokens."""
  return [child for child in tree.children[node].tolist() if child]


def _chosen(tree: Tree, most: int) -> list[int]:
  """Returns the root and the nodes that were reached most often, parents before their children."""
  shown, waiting = list[int](), [(0, 0.0, 0)]
  while waiting and len(shown) <= most:
    shown.append(heapq.heappop(waiting)[-1])
    for child in _next(tree, shown[-1]):
      heapq.heappush(waiting, (-int(tree.used[child]), -float(np.nan_to_num(tree.reward[child])), child))
  return shown


def _hidden(tree: Tree, shown: Sequence[int]) -> dict[int, int]:
  """Returns the number of hidden nodes after each shown node; each counts only at its nearest shown ancestor."""
  hidden, last = dict.fromkeys(shown, 0), {node: node for node in shown}
  for node in range(1, int(tree.size)):  # parents come first
    if node not in last:
      last[node] = last[int(tree.parent[node])]
      hidden[last[node]] += 1
  return hidden


def _rows(tree: Tree, shown: Sequence[int]) -> dict[int, float]:
  """Returns how far below the top each node is, in points: a row for each leaf, others amid their children."""
  rows, kept, below = dict[int, float](), set(shown), itertools.count()

  def visit(node: int) -> float:
    after = [visit(child) for child in _next(tree, node) if child in kept]
    rows[node] = (after[0] + after[-1]) / 2 if after else next(below) * _ROW
    return rows[node]

  visit(0)
  return rows


def _trained(tree: Tree, shown: Sequence[int]) -> np.ndarray:
  """Returns the rewards of the nodes that were trained and did not fail."""
  return np.array([tree.reward[node] for node in shown if tree.trained[node] and np.isfinite(tree.reward[node])])


def _shades(tree: Tree, shown: Sequence[int]) -> list[float]:
  """Returns shades by reward. The lightest shade is for the least reward above 0, as failed children have 0."""
  earned = _trained(tree, shown)
  earned = earned[earned > 0]
  least, greatest = (float(earned.min()), float(earned.max())) if len(earned) else (0.0, 0.0)

  def shade(node: int) -> float:
    reward = float(tree.reward[node])
    if not tree.trained[node] or not reward > 0:
      return 0.0 if tree.trained[node] else -1.0
    return (reward - least) / (greatest - least) if greatest > least else 1.0

  return [shade(node) for node in shown]


def _foot(tree: Tree, shown: Sequence[int]) -> tuple[str, ...]:
  """Returns the lines of text below the tree."""
  nodes, earned = int(tree.size) - 1, _trained(tree, shown)
  hidden = nodes - len(shown) + 1
  count = f'{nodes} node' + 's' * (nodes != 1)
  lines = [f'{count}, the {nodes - hidden} most used shown' if hidden else count]
  lines += [f'+n: n of the {hidden} not shown come after it'] * bool(hidden)
  if len(earned):
    lines.append(f'shade: mean reward, {earned.min():#.3g} to {earned.max():#.3g}')
  return tuple(lines)


def _wide(words: str, size: float) -> float:
  return _LETTER * size * len(words)


def _figure(place: Layout, ink: str) -> Any:
  """Returns a matplotlib figure of a tree."""
  pen = pen_lib.Pen(place.width, place.height, ink)
  root, *others = place.boxes
  half = place.wide / 2
  for box in others:
    parent = place.boxes[box.parent]
    x0, x1 = parent.x + (half if parent != root else 0.0), box.x - half
    y0, y1, middle = parent.y + _HEIGHT / 2, box.y + _HEIGHT / 2, (x0 + x1) / 2
    pen.line((x0, y0), (middle, y0), (middle, y1), (x1, y1), color=_WIRE)
  pen.dot(root.x, root.y + _HEIGHT / 2, pen.ink)
  pen.text(root.x - _PAD, root.y + _HEIGHT / 2, root.more, align='right', size=pen_lib.SMALL, alpha=0.8)
  for box in others:
    pen.box(box.x, box.y, place.wide, _HEIGHT, 3.0, _SHADE if box.shade >= 0 else _WIRE, fill=_FILL * max(box.shade, 0))
    y = box.y + _HEIGHT / 2
    pen.text(box.x - half + _PAD, y + _LINE, box.word, align='left', size=_WORDS)
    pen.text(box.x - half + _PAD, y - _LINE, box.mean, align='left', size=pen_lib.SMALL, alpha=0.8)
    pen.text(box.x + half - _PAD, y - _LINE, box.more, align='right', size=pen_lib.SMALL, alpha=0.8)
  for line, words in enumerate(reversed(place.foot)):
    pen.text(_EDGE, _EDGE / 2 + (line + 0.5) * _FOOT, words, align='left', size=pen_lib.SMALL, alpha=0.7)
  return pen.figure
