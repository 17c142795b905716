"""Boxes and the arrows between them, in columns: a box gives to those above it.

To the next box it gives straight up; to all others beside the boxes, in one lane of one colour, of which each reader
has a branch: an arrow a read, and arrows cross but at right angles.
"""

from collections.abc import Mapping, Sequence
import itertools
from typing import Any, NamedTuple

from nas_jax.draw import pen as pen_lib

# Of lanes; each to be told from a light page and from a dark one.
COLORS = ('#2f7fc1', '#d2593b', '#2b9160', '#9466c9', '#a87f1d', '#c9508f', '#7a838d')

# Lengths in points.
WIDTH, HEIGHT = 104.0, 22.0  # of a box
GAP, WIDE_GAP = 16.0, 28.0  # between boxes, and where a mark is between them
PORT, LANE, NEAR = 7.0, 8.0, 18.0  # between arrows at a box, between lanes, from the boxes to the first lane
BEND, EDGE = 7.0, 10.0  # the radius of a corner; the margin
_WORDS, _LINE, _SHIFT = 10.0, 6.0, 7.0  # size of letters; half way from line to line; words right of the number

Side = Mapping[int, Sequence[int]]  # what goes beside the boxes at one side: the readers of each source, upwards


class Box(NamedTuple):
  """A box with a word in it."""

  word: str
  number: str = ''  # at the left
  note: str = ''  # under the word
  round: bool = False
  shaded: bool = False
  height: float = HEIGHT
  width: float = WIDTH
  x: float = 0.0  # its middle
  y: float = 0.0  # its lower edge

  @property
  def top(self) -> float:
    """Its upper edge."""
    return self.y + self.height


class Arrow(NamedTuple):
  """One read."""

  source: int  # place of the box that is read
  target: int
  color: int  # into COLORS, of an arrow in a lane; -1 for the ink
  # From the source to the target: in a lane the corners between them, else a line or a Bezier curve of four points.
  points: tuple[tuple[float, float], ...]


class Words(NamedTuple):
  """Words outside of the boxes."""

  x: float
  y: float
  text: str
  line: float = 0.0  # where, if anywhere, a broken line under them crosses the whole drawing


class Layout(NamedTuple):
  """Where everything is; y goes up."""

  width: float
  height: float
  boxes: tuple[Box, ...]
  arrows: tuple[Arrow, ...]  # of one source: upwards
  words: tuple[Words, ...] = ()


def column(boxes: Sequence[Box], reads: Sequence[Sequence[int]], marks: Mapping[int, str]) -> Layout:
  """Boxes one above the other.

  Args:
    boxes: in order, the lowest first; as high as their words need.
    reads: the places that each of them reads, below its own.
    marks: words between a box and the one below it.
  """
  beside = {j: [i for i, row in enumerate(reads) if j in row and i > j + 1] for j in range(len(boxes))}
  both = sides({source: targets for source, targets in beside.items() if targets})
  lanes, tints = [lanes_of(side) for side in both], colors(both)
  ports = [[ports_of(i, side, lane) for i in range(len(boxes))] for side, lane in zip(both, lanes, strict=True)]
  rooms = [room(lane) for lane in lanes]
  middle = EDGE + rooms[0] + WIDTH / 2
  placed, words, y = list[Box](), list[Words](), EDGE
  for i, box in enumerate(boxes):
    if i in marks:
      words.append(Words(middle + 6, y - GAP + 17, marks[i], y - GAP + 10))
      y += WIDE_GAP - GAP
    crowd = max(len(side[i]) for side in ports)
    placed.append(box._replace(x=middle, y=y, height=max(box.height, (crowd + 1) * PORT)))
    y = placed[-1].top + GAP

  def level(side: int, i: int, source: int) -> float:
    """How high the lane of a source meets a box."""
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
  return Layout(middle + WIDTH / 2 + rooms[1] + EDGE, y - GAP + EDGE, tuple(placed), tuple(arrows), tuple(words))


def sides(beside: Side, fixed: Mapping[int, int] | None = None) -> tuple[dict[int, list[int]], dict[int, list[int]]]:
  """What goes left and what goes right, but for the `fixed` sources to where fewer arrows meet the readers."""
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
  """The lane of each source: inside, where branches cross the fewest others, those with many for their length."""
  lanes = dict[int, int]()
  for source in sorted(side, key=lambda source: ((side[source][-1] - source) / len(side[source]), source)):
    taken = {lane for other, lane in lanes.items() if other < side[source][-1] and source < side[other][-1]}
    lanes[source] = next(lane for lane in range(len(side)) if lane not in taken)
  return lanes


def room(lanes: Mapping[int, int]) -> float:
  """What lanes take beside the boxes."""
  return NEAR + max(lanes.values()) * LANE if lanes else 0.0


def colors(both: Sequence[Side]) -> dict[int, int]:
  """The colour of each source: if it can, none that its lane meets on its side; of those the one longest unused."""
  found, latest = dict[int, int](), [-1] * len(COLORS)
  for source in sorted(itertools.chain(*both)):
    side = both[0] if source in both[0] else both[1]
    met = {found[other] for other in side if other < source <= side[other][-1]}
    found[source] = min(range(len(COLORS)), key=lambda color: (color in met, latest[color]))
    latest[found[source]] = source
  return found


def ports_of(place: int, side: Side, lanes: Mapping[int, int]) -> list[int]:
  """The sources whose lanes meet a box, lowest first: inner lanes below outer ones, and its own on top."""
  found = sorted((source for source, targets in side.items() if place in targets), key=lambda source: lanes[source])
  return found + [place] * (place in side)


def figure(place: Layout, ink: str) -> Any:
  """A matplotlib figure."""
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
    if arrow != last[arrow.source]:  # what it shares with the last is drawn once
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
