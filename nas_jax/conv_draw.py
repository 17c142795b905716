"""Static convolutional networks as pictures, in the manner of Zoph & Le (2017) Fig. 7: the image below, softmax on top.

What a layer gives goes straight up to the layer after it. To all that read it later it goes beside the boxes, in one
lane of one colour, of which each of them has a branch: an arrow a read, and arrows cross but at right angles.
"""

from collections.abc import Mapping, Sequence
import functools
import itertools
import os
from typing import Any, NamedTuple

from nas_jax import drawing
from nas_jax.space.conv import CONV, NORM
from nas_jax.space.layers import NAMES, Arch, Form, Layer, Network, network, stride_words

# Of lanes; each to be told from a light page and from a dark one.
_COLORS = ('#2f7fc1', '#d2593b', '#2b9160', '#9466c9', '#a87f1d', '#c9508f', '#7a838d')

# Lengths in points.
_WIDTH, _HEIGHT, _HIGH = 104.0, 22.0, 32.0  # of a box, and the least height of one of two lines
_GAP = 16.0  # between boxes
_PORT, _LANE, _NEAR = 7.0, 8.0, 18.0  # between arrows at a box, between lanes, from the boxes to the first lane
_BEND, _EDGE = 7.0, 10.0  # the radius of a corner; the margin
_WORDS, _LINE, _SHIFT = 10.0, 6.0, 7.0  # size of letters; half way from line to line; words right of the number


class Box(NamedTuple):
  """A layer, the image or the classifier."""

  x: float  # its middle
  y: float  # its lower edge
  height: float
  number: str  # of the layer
  word: str
  note: str  # under the word, or ''
  round: bool  # the image and the classifier
  shaded: bool  # what does not convolve


class Arrow(NamedTuple):
  """One read."""

  source: int  # place of the box that is read
  target: int
  color: int  # into _COLORS; -1 for the ink, of an arrow between neighbours
  points: tuple[tuple[float, float], ...]  # from the source to the target, its corners between them


class Layout(NamedTuple):
  """Where everything is; y goes up."""

  width: float
  height: float
  boxes: tuple[Box, ...]  # the image, the layers in order, the classifier
  arrows: tuple[Arrow, ...]


def draw(arch: Arch, path: str | os.PathLike[str], form: Form = Form()) -> None:  # noqa: B008 - cannot change
  """Draws a static network into a file, dark on white; the format is the path's ending.

  A convolution shows its window, height by width, and its number of filters, a residual block the same with its name
  below; the numbers are those that `describe` calls layers by. What no layer reads goes to the classifier.

  Raises:
    ValueError: the path ends in none of .svg, .png, .pdf.
  """
  drawing.write(functools.partial(_figure, network(arch, form)), path, 'network')


def svg(arch: Arch, form: Form = Form()) -> str:  # noqa: B008 - cannot change
  """The same drawing as an <svg> element to put into HTML; one network is always one text.

  It is in the text colour of the page, as `drawing.element` says.
  """
  made = network(arch, form)
  widest = f'min(100%, {layout(made).width:g}pt)'  # a page would make a narrow drawing far too high
  return drawing.element(functools.partial(_figure, made), 'net', tuple(made), 'convolutional network', widest)


def layout(made: Network) -> Layout:
  """Where the parts of a network are drawn, in points."""
  # Places: 0 is the image, i + 1 layer i, the last the classifier.
  reads = [(), *(tuple(j + 1 for j in layer.reads) for layer in made.layers), tuple(j + 1 for j in made.ends)]
  sides = _sides(reads)
  lanes, colors = [_lanes(side) for side in sides], _colors(sides)
  ports = [[_ports(place, side, lane) for place in range(len(reads))] for side, lane in zip(sides, lanes, strict=True)]
  rooms = [_NEAR + max(lane.values()) * _LANE if lane else 0.0 for lane in lanes]
  middle = _EDGE + rooms[0] + _WIDTH / 2
  boxes, y = list[Box](), _EDGE
  for place in range(len(reads)):
    box = _box(made, place, middle, y)
    crowd = max(len(side[place]) for side in ports)
    boxes.append(box._replace(height=max(box.height, (crowd + 1) * _PORT)))
    y += boxes[-1].height + _GAP

  def level(side: int, place: int, source: int) -> float:
    """How high the lane of a source meets a box."""
    found = ports[side][place]
    return boxes[place].y + boxes[place].height * (found.index(source) + 1) / (len(found) + 1)

  arrows = list[Arrow]()
  for target, row in enumerate(reads):
    for source in row:
      if source == target - 1:
        points = ((middle, boxes[source].y + boxes[source].height), (middle, boxes[target].y))
        arrows.append(Arrow(source, target, -1, points))
        continue
      side = 0 if source in lanes[0] else 1
      lane, outwards = lanes[side][source], 2 * side - 1
      edge, beside = (middle + outwards * (_WIDTH / 2 + away) for away in (0.0, _NEAR + lane * _LANE))
      low, high = level(side, source, source), level(side, target, source)
      arrows.append(Arrow(source, target, colors[source], ((edge, low), (beside, low), (beside, high), (edge, high))))
  return Layout(middle + _WIDTH / 2 + rooms[1] + _EDGE, y - _GAP + _EDGE, tuple(boxes), tuple(arrows))


def _sides(reads: Sequence[Sequence[int]]) -> tuple[dict[int, list[int]], dict[int, list[int]]]:
  """What goes left and what goes right: the places that read each source from beyond its neighbour."""
  sides: tuple[dict[int, list[int]], dict[int, list[int]]] = ({}, {})
  crowds = [[0] * len(reads) for _ in sides]
  for source in range(len(reads)):
    targets = [place for place, row in enumerate(reads) if source in row and place > source + 1]
    if targets:
      _, _, side = min((sum(crowds[k][place] for place in targets), len(sides[k]), k) for k in (0, 1))
      sides[side][source] = targets
      for place in targets:
        crowds[side][place] += 1
  return sides


def _lanes(side: Mapping[int, Sequence[int]]) -> dict[int, int]:
  """The lane of each source: inside, where branches cross the fewest others, those with many for their length."""
  lanes = dict[int, int]()
  for source in sorted(side, key=lambda source: ((side[source][-1] - source) / len(side[source]), source)):
    taken = {lane for other, lane in lanes.items() if other < side[source][-1] and source < side[other][-1]}
    lanes[source] = next(lane for lane in range(len(side)) if lane not in taken)
  return lanes


def _colors(sides: Sequence[Mapping[int, Sequence[int]]]) -> dict[int, int]:
  """The colour of each source: if it can, none that its lane meets on its side; of those the one longest unused."""
  colors, latest = dict[int, int](), [-1] * len(_COLORS)
  for source in sorted(itertools.chain(*sides)):
    side = sides[0] if source in sides[0] else sides[1]
    met = {colors[other] for other in side if other < source <= side[other][-1]}
    colors[source] = min(range(len(_COLORS)), key=lambda color: (color in met, latest[color]))
    latest[colors[source]] = source
  return colors


def _ports(place: int, side: Mapping[int, Sequence[int]], lanes: Mapping[int, int]) -> list[int]:
  """The sources whose lanes meet a box, lowest first: inner lanes below outer ones, and its own on top."""
  found = sorted((source for source, targets in side.items() if place in targets), key=lambda source: lanes[source])
  return found + [place] * (place in side)


def _box(made: Network, place: int, x: float, y: float) -> Box:
  """A box as high as its words."""
  if place in (0, len(made.layers) + 1):
    return Box(x, y, _HEIGHT, '', 'softmax' if place else 'image', '', round=True, shaded=False)
  layer = made.layers[place - 1]
  word, note = _words(layer)
  return Box(x, y, _HIGH if note else _HEIGHT, str(place - 1), word, note, round=False, shaded=not layer.filters)


def _words(layer: Layer) -> tuple[str, str]:
  """What a box says, and under it."""
  name, stride = NAMES[layer.kind], stride_words(layer, '×')
  if not layer.filters:
    return name if layer.kind == NORM else f'{name} {layer.window[0]}', stride
  notes = ['' if layer.kind == CONV else name, stride]
  return f'{layer.window[0]}×{layer.window[1]}, {layer.filters}', ', '.join(filter(None, notes))


def _figure(made: Network, ink: str) -> Any:
  """A matplotlib figure of a network."""
  place = layout(made)
  pen = drawing.Pen(place.width, place.height, ink)
  last = {arrow.source: arrow for arrow in place.arrows if arrow.color >= 0}
  for arrow in place.arrows:
    if arrow.color < 0:
      pen.line(*arrow.points, arrow=True)
      continue
    corners = arrow.points
    if arrow != last[arrow.source]:  # what it shares with the last is drawn once
      x, y = corners[2]
      corners = ((x, y - _BEND), *corners[2:])
    pen.bends(corners, _BEND, _COLORS[arrow.color], arrow=True)
  for box in place.boxes:
    middle = box.y + box.height / 2
    pen.box(box.x, box.y, _WIDTH, box.height, _HEIGHT / 2 if box.round else 3.0, fill=0.12 if box.shaded else 0.0)
    pen.text(box.x - _WIDTH / 2 + 4, middle, box.number, align='left', size=drawing.SMALL, alpha=0.7)
    pen.text(box.x + _SHIFT * bool(box.number), middle + _LINE * bool(box.note), box.word, size=_WORDS)
    if box.note:
      pen.text(box.x + _SHIFT, middle - _LINE, box.note, size=drawing.SMALL)
  return pen.figure
