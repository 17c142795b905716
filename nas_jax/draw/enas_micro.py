"""The layout of a picture of ENAS's micro cells: two columns of blocks, with arrows as in `routing`.

A block is two operations side by side, and their sum above them.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from nas_jax.draw import routing
from nas_jax.draw.routing import EDGE, GAP, HEIGHT, Arrow, Box, Layout, Words
from nas_jax.space import enas
from nas_jax.space.enas import INPUT_NAMES, INPUTS, MICRO_OPERATIONS, MicroArch

# Lengths in points.
_OPERATION, _BETWEEN, _SUM = 84.0, 8.0, 16.0  # the width of an operation; between two of them; the height of their sum
_BLOCK = 2 * _OPERATION + _BETWEEN
_CHANNEL, _STUB = 30.0, 11.0  # below a block, for the arrows to it; from the operations to their sum
_TURNS = 13.0, 20.0  # how far below an operation its arrow turns upwards; for an arrow below another
_TITLE, _APART = 18.0, 10.0  # the space for the name of a cell; between the cells

Block = Sequence[tuple[int, str]]  # the nodes that its two operations read, and their names


def layout(arch: MicroArch) -> Layout:
  """Returns both cells side by side.

  The boxes of a cell are its inputs, for each block its two operations and its sum, and `concat`. The operation whose
  arrow comes from the left is drawn on the left, since the order of two summands does not matter.
  """
  cells, left, first = list[Layout](), 0.0, 0
  for name, (inputs, operations) in enas.cells_of(arch).items():
    terms = [(i, MICRO_OPERATIONS[k]) for i, k in zip(inputs, operations, strict=True)]
    cell = _cell(name, [terms[i : i + 2] for i in range(0, len(terms), 2)])
    cells.append(_moved(cell, left, first))
    left, first = cells[-1].width + _APART, first + len(cell.boxes)
  return Layout(
    cells[-1].width,
    max(cell.height for cell in cells),
    tuple(box for cell in cells for box in cell.boxes),
    tuple(arrow for cell in cells for arrow in cell.arrows),
    tuple(words for cell in cells for words in cell.words),
  )


def _moved(cell: Layout, right: float, first: int) -> Layout:
  """Moves a cell to the right, and numbers its boxes from `first`."""
  return Layout(
    cell.width + right,
    cell.height,
    tuple(box._replace(x=box.x + right) for box in cell.boxes),
    tuple(
      Arrow(arrow.source + first, arrow.target + first, arrow.color, tuple((x + right, y) for x, y in arrow.points))
      for arrow in cell.arrows
    ),
    tuple(words._replace(x=words.x + right) for words in cell.words),
  )


class _Wires(NamedTuple):
  """How arrows go from nodes to their readers. A reader is the node of a block or, after the last block, `concat`."""

  upright: Sequence[set[int]]  # [B + 3] the nodes whose arrows reach each reader from straight below
  both: Sequence[routing.Side]  # the arrows on the left and on the right of the blocks
  lanes: Sequence[Mapping[int, int]]  # the lane of each source on the left and on the right

  def order(self, reader: int, node: int) -> tuple[int, int]:
    """Returns a key that sorts the nodes that a block reads by the side, -1 or 1, and the lane of their arrows."""
    if node in self.upright[reader]:
      return 0, node
    return (1, self.lanes[1][node]) if node in self.lanes[1] else (-1, -self.lanes[0][node])


def _wires(blocks: Sequence[Block]) -> _Wires:
  """Routes the arrows of a cell. Those of the first input go left, those of the second go right."""
  end = INPUTS + len(blocks)
  reads = [*(set[int]() for _ in range(INPUTS)), *({node for node, _ in block} for block in blocks)]
  reads.append(set(enas.loose_ends(list(set.union(*reads)), end)))
  # Arrows go straight up from the inputs to the first block, if it reads both, and from each block to the next.
  upright = [row & {i - 1} if i > INPUTS else row if len(row) == INPUTS else set() for i, row in enumerate(reads)]
  beside = {j: [i for i in range(INPUTS, end + 1) if j in reads[i] - upright[i]] for j in range(end)}
  both = routing.sides({j: readers for j, readers in beside.items() if readers}, fixed={0: 0, 1: 1})
  return _Wires(upright, both, [routing.lanes_of(side) for side in both])


def _cell(name: str, blocks: Sequence[Block]) -> Layout:
  """Returns the layout of a cell, with its name below."""
  wires = _wires(blocks)
  blocks = [sorted(block, key=lambda term: wires.order(i, term[0])) for i, block in enumerate(blocks, INPUTS)]
  widths = [routing.lanes_width(lane) for lane in wires.lanes]
  middle = EDGE + widths[0] + _BLOCK / 2
  boxes, arrows = _boxes(blocks, wires, middle), list[Arrow]()
  tints, end = routing.colors(wires.both), INPUTS + len(blocks)
  outputs = [*range(INPUTS), *range(INPUTS + 2, len(boxes) - 1, 3)]  # the box that gives each node

  def read(node: int, target: int, *way: tuple[float, float]) -> None:
    """Adds an arrow along the lane of a node, up to the height where the rest of the arrow begins."""
    side, box = 0 if node in wires.lanes[0] else 1, boxes[outputs[node]]
    edge, outwards = middle + (side - 0.5) * _BLOCK, 2 * side - 1
    along, low = edge + outwards * (routing.NEAR + routing.LANE * wires.lanes[side][node]), box.y + box.height / 2
    arrows.append(Arrow(outputs[node], target, tints[node], ((edge, low), (along, low), (along, way[0][1]), *way)))

  for i, block in enumerate(blocks, INPUTS):
    come = [wires.order(i, node)[0] for node, _ in block]
    for k, (node, _) in enumerate(block):
      target = outputs[i] - 2 + k
      x, y = boxes[target].x, boxes[target].y
      if not come[k]:
        arrows.append(Arrow(outputs[node], target, -1, ((x, boxes[outputs[node]].top), (x, y))))
      else:
        # If both arrows come from one side, the one to the farther operation passes below the other.
        passes = come[0] == come[1] == (-1 if k else 1) and block[0][0] != block[1][0]
        read(node, target, (x, y - _TURNS[passes]), (x, y))
      arrows.append(Arrow(target, outputs[i], -1, ((x, boxes[target].top), (x, boxes[outputs[i]].y))))
  last = boxes[-1]
  arrows.append(Arrow(outputs[-1], len(boxes) - 1, -1, ((middle, boxes[-2].top), (middle, last.y))))
  for side in (0, 1):
    ports = routing.ports_of(end, wires.both[side], wires.lanes[side])
    for k, node in enumerate(ports, 1):
      read(node, len(boxes) - 1, (middle + (side - 0.5) * _BLOCK, last.y + last.height * k / (len(ports) + 1)))
  right = middle + _BLOCK / 2 + widths[1] + EDGE
  return Layout(right, last.top + EDGE, tuple(boxes), tuple(arrows), (Words(middle, EDGE + 4, f'{name} cell'),))


def _boxes(blocks: Sequence[Block], wires: _Wires, middle: float) -> list[Box]:
  """Returns the boxes of a cell; `concat` is high enough for all its arrows."""
  across = [middle + side * (_OPERATION + _BETWEEN) / 2 for side in (-1, 1)]
  boxes = [
    Box(word, round=True, width=_OPERATION, x=x, y=EDGE + _TITLE) for word, x in zip(INPUT_NAMES, across, strict=True)
  ]
  for b, block in enumerate(blocks):
    y = boxes[-1].top + _CHANNEL
    for (_, word), x in zip(block, across, strict=True):
      boxes.append(Box(word, shaded='conv' not in word, width=_OPERATION, x=x, y=y))
    boxes.append(Box('+', str(b), round=True, height=_SUM, width=_BLOCK, x=middle, y=y + HEIGHT + _STUB))
  crowd = max(
    len(routing.ports_of(INPUTS + len(blocks), side, lane)) for side, lane in zip(wires.both, wires.lanes, strict=True)
  )
  height = max(HEIGHT, (crowd + 1) * routing.PORT)
  boxes.append(Box('concat', round=True, height=height, width=_BLOCK, x=middle, y=boxes[-1].top + GAP))
  return boxes
