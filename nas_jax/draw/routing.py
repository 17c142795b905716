"""Columns of boxes, and the arrows from a box to the boxes above that read it.

An arrow to the next box goes straight up. Arrows to other boxes go beside the column, in a lane of one colour for each
source, which branches to each reader. Arrows cross only at right angles.
"""

from collections.abc import Mapping, Sequence
import itertools
from typing import Any, NamedTuple

from nas_jax.draw import pen as pen_lib

# The colours of lanes. Each is visible on a light page and on a dark one.
COLORS = ('#2f7fc1', '#d2593b', '#2b9160', '#9466c9', '#a87f1d', '#c9508f', '#7a838d')

# Lengths in points.
WIDTH, HEIGHT = 104.0, 22.0  # of a box
GAP, WIDE_GAP = 16.0, 28.0  # between boxes; between boxes with a mark between them
PORT, LANE, NEAR = 7.0, 8.0, 18.0  # from arrow to arrow at a box; from lane to lane; from the boxes to the first lane
BEND, EDGE = 7.0, 10.0  # the radius of a corner; the margin
_WORDS, _LINE, _SHIFT = 10.0, 6.0, 7.0  # font size; half the distance of two lines; offset of the text from the number

Side = Mapping[int, Sequence[int]]  # the arrows on one side of a column: the readers of each source, lowest first


class Box(NamedTuple):
  """A box with text in it."""

  word: str
  number: str = ''  # on the left
  note: str = ''  # a second line of text
  round: bool = False
  shaded: bool = False
  height: float = HEIGHT
  width: float = WIDTH
  x: float = 0.0  # of its middle
  y: float = 0.0  # of its lower edge

  @property
  def top(self) -> float:
    """The y of its upper edge."""
    return self.y + self.height


class Arrow(NamedTuple):
  """An arrow from a box to a box that reads it."""

  source: int  # index of the box that is read
  target: int  # index of the box that reads it
  color: int  # index into COLORS for an arrow in a lane, else -1
  # From the source to the target. In a lane: the ends and corners; else: a line, or a Bezier curve of four points.
  points: tuple[tuple[float, float], ...]


class Words(NamedTuple):
  """Text outside of the boxes."""

  x: float
  y: float
  text: str
  line: float = 0.0  # y of a broken line below the text across the whole drawing; 0 for none


class Layout(NamedTuple):
  """The positions of all parts of a drawing, with y upwards."""

  width: float
  height: float
  boxes: tuple[Box, ...]
  arrows: tuple[Arrow, ...]  # those of one source are sorted by target
  words: tuple[Words, ...] = ()


def column(boxes: Sequence[Box], reads: Sequence[Sequence[int]], marks: Mapping[int, str]) -> Layout:
  """Lays out boxes one above the other.

  Args:
    boxes: the lowest first; as high as their text needs.
    reads: for each box the indices of the boxes that it reads, all below it.
    marks: text between a box and the one below it.
  """
  beside = {j: [i for i, row in enumerate(reads) if j in row and i > j + 1] for j in range(len(boxes))}
  both = sides({source: targets for source, targets in beside.items() if targets})
  lanes, tints = [lanes_of(side) for side in both], colors(both)
  ports = [[ports_of(i, side, lane) for i in range(len(boxes))] for side, lane in zip(both, lanes, strict=True)]
  widths = [lanes_width(lane) for lane in lanes]
  middle = EDGE + widths[0] + WIDTH / 2
  placed, words, y = list[Box](), list[Words](), EDGE
  for i, box in enumerate(boxes):
    if i in marks:
      words.append(Words(middle + 6, y - GAP + 17, marks[i], y - GAP + 10))
      y += WIDE_GAP - GAP
    crowd = max(len(side[i]) for side in ports)
    placed.append(box._replace(x=middle, y=y, height=max(box.height, (crowd + 1) * PORT)))
    y = placed[-1].top + GAP

  def level(side: int, i: int, source: int) -> float:
    """Returns the y at which the lane of a source meets a box."""
    found = ports[side][i]
    return placed[i].y + placed[i].height * (found.index(source) + 1) / (len(found) + 1)

  arrows = list[Arrow]()
  for target, row in enumerate(reads):
    for source in row:
      if source == target - 1:
        arrows.append(Arrow(source, target, -1, ((middle, placed[source].top), (middle, placed[target].y))))
        continue
      side = 0 if source in lanes[0] else 1
      edge, outwards = middle + (side - 0.5) * WIDTH, 2 * side - 1
      along = edge + outwards * (NEAR + lanes[side][source] * LANE)
      low, high = level(side, source, source), level(side, target, source)
      arrows.append(Arrow(source, target, tints[source], ((edge, low), (along, low), (along, high), (edge, high))))
  return Layout(middle + WIDTH / 2 + widths[1] + EDGE, y - GAP + EDGE, tuple(placed), tuple(arrows), tuple(words))


def sides(beside: Side, fixed: Mapping[int, int] | None = None) -> tuple[dict[int, list[int]], dict[int, list[int]]]:
  """Assigns each source to the left (0) or right (1) side. `fixed` decides first; other sources go to the side where
  their readers have fewer arrows.
  """
  found: tuple[dict[int, list[int]], dict[int, list[int]]] = ({}, {})
  readers = list(itertools.chain(*beside.values()))
  crowds = [dict.fromkeys(readers, 0) for _ in found]
  for source, targets in beside.items():
    _, _, side = min((sum(crowds[k][i] for i in targets), len(found[k]), k) for k in (0, 1))
    side = (fixed or {}).get(source, side)
    found[side][source] = list(targets)
    for i in targets:
      crowds[side][i] += 1
  return found


def lanes_of(side: Side) -> dict[int, int]:
  """Assigns lanes: sources with short arrows and many readers get inner lanes, where branches cross fewer arrows."""
  lanes = dict[int, int]()
  for source in sorted(side, key=lambda source: ((side[source][-1] - source) / len(side[source]), source)):
    taken = {lane for other, lane in lanes.items() if other < side[source][-1] and source < side[other][-1]}
    lanes[source] = next(lane for lane in range(len(side)) if lane not in taken)
  return lanes


def lanes_width(lanes: Mapping[int, int]) -> float:
  """Returns the width that lanes need beside the boxes."""
  return NEAR + max(lanes.values()) * LANE if lanes else 0.0


def colors(both: Sequence[Side]) -> dict[int, int]:
  """Returns a colour for each source: the one longest unused, if possible other than those of the lanes beside it."""
  found, latest = dict[int, int](), [-1] * len(COLORS)
  for source in sorted(itertools.chain(*both)):
    side = both[0] if source in both[0] else both[1]
    met = {found[other] for other in side if other < source <= side[other][-1]}
    found[source] = min(range(len(COLORS)), key=lambda color: (color in met, latest[color]))
    latest[found[source]] = source
  return found


def ports_of(place: int, side: Side, lanes: Mapping[int, int]) -> list[int]:
  """Returns the sources whose lanes meet a box, lowest first: inner lanes, outer lanes, and the box itself on top."""
  found = sorted((source for source, targets in side.items() if place in targets), key=lambda source: lanes[source])
  return found + [place] * (place in side)


def figure(place: Layout, ink: str) -> Any:
  """Returns a matplotlib figure."""
  pen = pen_lib.Pen(place.width, place.height, ink)
  last = {arrow.source: arrow for arrow in place.arrows if arrow.color >= 0}
  for words in place.words:
    if words.line:
      pen.line((EDGE / 2, words.line), (place.width - EDGE / 2, words.line), dashed=True)
    pen.text(words.x, words.y, words.text, align='left' if words.line else 'center', size=pen_lib.SMALL)
  for arrow in place.arrows:
    if arrow.color < 0:
      pen.line(*arrow.points, arrow=True)
      continue
    corners = arrow.points
    if arrow != last[arrow.source]:  # the part that it shares with the last arrow is drawn once
      x, y = corners[2]
      corners = ((x, y - BEND), *corners[2:])
    pen.bends(corners, BEND, COLORS[arrow.color], arrow=True)
  for box in place.boxes:
    middle, radius = box.y + box.height / 2, min(HEIGHT, box.height) / 2 if box.round else 3.0
    pen.box(box.x, box.y, box.width, box.height, radius, fill=0.12 if box.shaded else 0.0)
    inset = 8 if box.round else 4
    pen.text(box.x - box.width / 2 + inset, middle, box.number, align='left', size=pen_lib.SMALL, alpha=0.7)
    shift = 0.0 if box.round else _SHIFT * bool(box.number)
    pen.text(box.x + shift, middle + _LINE * bool(box.note), box.word, size=_WORDS)
    if box.note:
      pen.text(box.x + _SHIFT, middle - _LINE, box.note, size=pen_lib.SMALL)
  return pen.figure
