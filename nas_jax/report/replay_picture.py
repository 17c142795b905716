"""Replay trees as pictures: the root left, a column a layer, a box a node, shaded by its mean reward.

Of a large tree the nodes that strings went through most are shown, and in each how many come after it that are not.
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

_SHADE, _WIRE = '#2f7fc1', '#7a838d'  # each to be told from a light page and from a dark one
_FILL = 0.55  # of the best; words stay clear on it

# Lengths in points.
_HEIGHT, _ROW = 27.0, 36.0  # of a box; from one to the next
_GAP, _EDGE = 26.0, 10.0  # between columns; the margin
_WORDS, _LINE, _PAD = 9.5, 5.5, 6.0  # size of letters; half way from line to line; beside words
_LETTER = 0.62  # width of most letters, by their size
_FOOT = 13.0  # from line to line below the tree


class Box(NamedTuple):
  """A node; the root, which is the first, has no words."""

  x: float  # its middle
  y: float  # its lower edge
  parent: int  # place of its parent's box; the root's is its own
  word: str  # its layer
  mean: str  # its mean reward, or that it was never trained
  more: str  # how many come after it that are not shown, or ''
  shade: float  # from 0 for the least reward to 1 for the greatest; -1 if it was never trained


class Layout(NamedTuple):
  """Where everything is; y goes up."""

  width: float
  height: float
  wide: float  # of all boxes
  boxes: tuple[Box, ...]  # parents before their children
  foot: tuple[str, ...]  # lines of words below the tree


def draw(tree: Tree, labels: Sequence[str], path: str | os.PathLike[str], most: int = 40) -> None:
  """Draws a replay tree into a file, dark on white; the format is the path's ending.

  A box has the label of its layer, the mean reward of the network that ends there and, as +n, the number of nodes that
  come after it but are not shown.

  Args:
    tree: what to draw.
    labels: [K] what each token is called.
    path: ends in .svg, .png or .pdf.
    most: how many nodes to show, those that strings went through most often, of equals the better.

  Raises:
    ValueError: the path has another ending, there are not as many labels as choices, or `most` is below 1.
  """
  pen_lib.write(functools.partial(_figure, layout(tree, labels, most)), path, 'replay tree')


def svg(tree: Tree, labels: Sequence[str], most: int = 40) -> str:
  """The same drawing as an <svg> element to put into HTML; one tree is always one text.

  It is in the text colour of the page, as `pen.element` says. Raises ValueError as `draw`.
  """
  place = layout(tree, labels, most)
  widest = f'min(100%, {place.width:g}pt)'
  return pen_lib.element(functools.partial(_figure, place), 'replay', tuple(place), 'replay tree', widest)


def layout(tree: Tree, labels: Sequence[str], most: int = 40) -> Layout:
  """Where the parts of a replay tree are drawn, in points. Raises ValueError as `draw`."""
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
  """The mean reward of a node in words."""
  if not tree.trained[node]:
    return 'untrained'
  return f'{tree.reward[node]:#.3g}' if np.isfinite(tree.reward[node]) else 'failed'


def _next(tree: Tree, node: int) -> list[int]:
  """The children of a node in the order of their tokens."""
  return [child for child in tree.children[node].tolist() if child]


def _chosen(tree: Tree, most: int) -> list[int]:
  """The root and the most used nodes, parents before their children."""
  shown, waiting = list[int](), [(0, 0.0, 0)]
  while waiting and len(shown) <= most:
    shown.append(heapq.heappop(waiting)[-1])
    for child in _next(tree, shown[-1]):
      heapq.heappush(waiting, (-int(tree.used[child]), -float(np.nan_to_num(tree.reward[child])), child))
  return shown


def _hidden(tree: Tree, shown: Sequence[int]) -> dict[int, int]:
  """How many nodes that are not shown come after each that is, counted at the last one before them."""
  hidden, last = dict.fromkeys(shown, 0), {node: node for node in shown}
  for node in range(1, int(tree.size)):  # parents come first
    if node not in last:
      last[node] = last[int(tree.parent[node])]
      hidden[last[node]] += 1
  return hidden


def _rows(tree: Tree, shown: Sequence[int]) -> dict[int, float]:
  """How far each node is below the top: the last ones one under another, others in the middle of theirs."""
  rows, kept, below = dict[int, float](), set(shown), itertools.count()

  def visit(node: int) -> float:
    after = [visit(child) for child in _next(tree, node) if child in kept]
    rows[node] = (after[0] + after[-1]) / 2 if after else next(below) * _ROW
    return rows[node]

  visit(0)
  return rows


def _trained(tree: Tree, shown: Sequence[int]) -> np.ndarray:
  """Rewards of those nodes that were trained and did not fail."""
  return np.array([tree.reward[node] for node in shown if tree.trained[node] and np.isfinite(tree.reward[node])])


def _shades(tree: Tree, shown: Sequence[int]) -> list[float]:
  """By reward, the least above 0 being the lightest: children that failed must not press all others together."""
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
  """What must be said below."""
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
  """A matplotlib figure of a tree."""
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
