"""The architectures of ENAS drawn, in words, and from files."""

import itertools
import json
import re
import xml.etree.ElementTree

from matplotlib.backends.backend_agg import FigureCanvasAgg
import numpy as np
import pytest

from nas_jax import published, space
from nas_jax.draw import enas as draw_enas
from nas_jax.draw import routing
from nas_jax.space import MacroArch, MicroArch, RnnArch, enas

SPACES = (
  *(space.enas_macro_space(layers) for layers in (1, 2, 4, 12, 24)),
  *(space.enas_micro_space(blocks) for blocks in (1, 2, 5, 9)),
  *(space.enas_rnn_space(nodes) for nodes in (1, 4, 12, 20)),
)
MACRO = MacroArch((0, 4, 3, 5), (1, 0, 0, 1, 0, 1))
# Block 1 of the normal cell reads both inputs, block 2 blocks 0 and 1; the reduction cell never reads its first input.
MICRO = MicroArch((0, 0, 1, 0, 3, 2), (0, 4, 1, 2, 3, 0), (1, 1, 2, 1, 2, 2), (0, 1, 2, 3, 4, 0))
RNN = RnnArch((1, 3, 0, 2), (0, 0, 1))


def random_arch(made, seed):
  rng = np.random.default_rng(seed)
  widths = [2 if slot.kind == space.Kind.LINK else slot.width for slot in made.slots]
  return made.decode(rng.integers(0, np.array(widths)[made.owner]))


ARCHS = [published.ENAS_MICRO, published.ENAS_RNN, MACRO, MICRO, RNN, RnnArch((0,) * 12, (0,) * 11)]
ARCHS += [random_arch(made, seed) for made in SPACES for seed in range(4)]


def pairs(arch):
  """Returns the arrows that a drawing must show, as pairs of names; a sum has the name of its layer or block."""
  if isinstance(arch, MacroArch):
    last = 'image'
    for i, skips in enumerate(enas.skips_of(arch)):
      yield last, f'operation {i}'
      last = f'layer {i}' if skips else f'operation {i}'
      if skips:
        yield f'operation {i}', last
      for j in skips:
        yield f'layer {j}' if enas.skips_of(arch)[j] else f'operation {j}', last
    yield last, 'softmax'
  elif isinstance(arch, MicroArch):
    for name, (inputs, operations) in enas.cells_of(arch).items():
      nodes = [f'{name} {word}' for word in ('h[k-2]', 'h[k-1]', *range(len(inputs) // 2))]
      for place, (node, operation) in enumerate(zip(inputs, operations, strict=True)):
        own = f'{name} {place // 2} {enas.MICRO_OPERATIONS[operation]}'
        yield nodes[node], own
        yield own, f'{name} {place // 2}'
      for node in enas.loose_ends(inputs, len(nodes)):
        yield nodes[node], f'{name} concat'
  else:
    yield from (('$x_t$', '0'), ('$h_{t-1}$', '0'), ('mean', '$h_t$'))
    yield from ((str(j), str(i)) for i, j in enumerate(arch.previous, 1))
    yield from ((str(i), 'mean') for i in enas.loose_ends(arch.previous, len(arch.activate)))


def called(arch, place):
  """The names of the boxes of a drawing, as `pairs` says them."""
  names, cells, cell = list[str](), iter(('normal', 'reduction')), ''
  for i, box in enumerate(place.boxes):
    if isinstance(arch, MacroArch):
      sums = f'layer {place.boxes[i - 1].number}'
      names.append(sums if box.word == '+' else f'operation {box.number}' if box.number else box.word)
    elif isinstance(arch, MicroArch):
      cell = next(cells) if box.word == 'h[k-2]' else cell
      block = next((b.number for b in place.boxes[i:] if b.word == '+'), '')
      round_name = box.number if box.word == '+' else box.word
      names.append(f'{cell} {round_name}' if box.round else f'{cell} {block} {box.word}')
    else:
      names.append(box.number or box.word)
  return names


def inside(box, x, y):
  return (abs(x - box.x) < box.width / 2 - 0.01) & (box.y + 0.01 < y) & (y < box.top - 0.01)


def curve(arrow):
  """Points along an arrow."""
  points = np.array(arrow.points)
  if arrow.color < 0 and len(points) == 4:
    t = np.linspace(0, 1, 40)[:, None]
    return sum(c * t**k * (1 - t) ** (3 - k) * p for k, (c, p) in enumerate(zip((1, 3, 3, 1), points, strict=True)))
  return np.concatenate([np.linspace(a, b, 40) for a, b in itertools.pairwise(points)])


@pytest.mark.parametrize('number', range(len(ARCHS)))
def test_a_drawing_is_sound(number):
  """There is a box for each node and an upward arrow for each read, and nothing overlaps or is outside."""
  arch = ARCHS[number]
  place = draw_enas.layout(arch)
  names = called(arch, place)
  shown = [(names[arrow.source], names[arrow.target]) for arrow in place.arrows]
  assert sorted(shown) == sorted(pairs(arch))
  if not isinstance(arch, MicroArch):  # there, two operations of a block may have one name
    assert len(set(names)) == len(names)
  for one, other in itertools.combinations(place.boxes, 2):
    apart = abs(one.x - other.x) >= (one.width + other.width) / 2 + 3
    assert apart or one.top < other.y or other.top < one.y
  for box in place.boxes:
    assert box.width / 2 < box.x < place.width - box.width / 2 and 0 < box.y and box.top < place.height
  for arrow in place.arrows:
    source, target, points = place.boxes[arrow.source], place.boxes[arrow.target], curve(arrow)
    assert points[0, 1] < points[-1, 1] and (points > 0).all() and (points < (place.width, place.height)).all()
    for (x, y), box in ((points[0], source), (points[-1], target)):
      assert abs(x - box.x) <= box.width / 2 + 0.01 and box.y - 0.01 <= y <= box.top + 0.01
    assert not any(inside(box, *points.T).any() for box in place.boxes)


@pytest.mark.parametrize('number', range(len(ARCHS)))
def test_arrows_of_different_sources_never_run_together(number):
  place, straight = draw_enas.layout(ARCHS[number]), list[tuple[int, float, float, float, int]]()
  for arrow in place.arrows:
    if arrow.color < 0 and len(arrow.points) == 4:
      continue  # curves of a tree, whose readers are side by side
    for (x0, y0), (x1, y1) in itertools.pairwise(arrow.points):
      assert x0 == x1 or y0 == y1
      axis = int(x0 == x1)
      fixed, low, high = (x0, y0, y1) if axis else (y0, *sorted((x0, x1)))
      straight.append((axis, fixed, low, high, arrow.source))
  for one, other in itertools.combinations(straight, 2):
    if one[0] == other[0] and abs(one[1] - other[1]) < 5 and one[4] != other[4]:
      assert one[3] <= other[2] or other[3] <= one[2]


def test_a_network_by_hand():
  place = draw_enas.layout(MACRO)
  assert [(box.word, box.number, box.round, box.shaded) for box in place.boxes] == [
    ('image', '', True, False),
    ('conv 3', '0', False, False),
    ('average pool 3', '1', False, True),
    ('+', '', True, False),
    ('sepconv 5', '2', False, False),
    ('max pool 3', '3', False, True),
    ('+', '', True, False),
    ('softmax', '', True, False),
  ]
  # Four layers: after the first and the second, each line between the boxes.
  lines = [words.line for words in place.words]
  assert [words.text for words in place.words] == ['half the size'] * 2
  assert place.boxes[1].top < lines[0] < place.boxes[2].y and place.boxes[3].top < lines[1] < place.boxes[4].y
  assert [enas.cuts(layers) for layers in (1, 2, 3, 4, 12)] == [(), (), (1, 2), (1, 2), (4, 8)]


def test_a_cell_by_hand():
  place = draw_enas.layout(MICRO)
  assert [box.word for box in place.boxes[:12]] == [
    *('h[k-2]', 'h[k-1]', 'sepconv 3', 'identity', '+', 'average pool 3', 'sepconv 5', '+', 'sepconv 3', 'max pool 3'),
    *('+', 'concat'),
  ]
  assert [words.text for words in place.words] == ['normal cell', 'reduction cell']
  # Block 2 reads block 1 from straight below, and block 0 from beside: the operation is on the side it comes from.
  beside = next(arrow for arrow in place.arrows if arrow.source == 4 and arrow.target in (8, 9))
  below = next(arrow for arrow in place.arrows if arrow.source == 7 and arrow.target in (8, 9))
  assert len(below.points) == 2 and len(beside.points) == 5 and place.boxes[beside.target].word == 'sepconv 3'
  assert (beside.points[0][0] < place.boxes[4].x) == (beside.target == 8)


def test_loose_ends_of_a_recurrent_cell_have_columns_of_their_own():
  place = draw_enas.layout(published.ENAS_RNN)
  mean = next(i for i, box in enumerate(place.boxes) if box.word == 'mean')
  over = [arrow for arrow in place.arrows if arrow.target == mean]
  assert [arrow.source for arrow in over] == [3, 4, 9, 10, 11, 7] and all(len(arrow.points) == 2 for arrow in over)
  assert len({place.boxes[i].y for i in (3, 4, 5)}) == 1 and len({place.boxes[i].y for i in (9, 10, 11)}) == 1


@pytest.mark.parametrize('arch', [published.ENAS_MICRO, MACRO, MICRO, RnnArch((2,) * 12, tuple(range(11)))])
def test_words_fit_their_boxes(arch):
  figure, place = draw_enas._figure(arch, 'black'), draw_enas.layout(arch)
  FigureCanvasAgg(figure).draw()
  scale = figure.bbox.width / place.width
  written = [(text.get_text(), text.get_window_extent()) for text in figure.texts if text.get_text()]
  for (words, one), (_, other) in itertools.combinations(written, 2):
    assert not one.overlaps(other), words
  assert all(extent.x0 > 0 and extent.x1 < figure.bbox.width for _, extent in written)
  for words, extent in written[len(place.words) :]:
    (own,) = (box for box in place.boxes if inside(box, extent.x0 / scale, (extent.y0 + extent.y1) / 2 / scale))
    assert extent.x1 / scale < own.x + own.width / 2 - 1 and words in (own.word, own.number)


@pytest.mark.parametrize('name, start', [('a.svg', b'<?xml'), ('c.pdf', b'%PDF')])
def test_the_ending_says_the_format(tmp_path, name, start):
  draw_enas.draw(RNN, tmp_path / name)
  assert (tmp_path / name).read_bytes().startswith(start)
  with pytest.raises(ValueError, match=r"^cannot draw a pair of cells into '.*bmp': want a name"):
    draw_enas.draw(MICRO, tmp_path / 'net.bmp')


def test_svgs_can_stand_in_one_page():
  drawn, taken = [draw_enas.svg(arch) for arch in (MACRO, MICRO, RNN)], set()
  assert draw_enas.svg(MicroArch(*MICRO)) == drawn[1]
  for text in drawn:
    root = xml.etree.ElementTree.fromstring(text)
    assert root.tag.endswith('svg') and float(root.get('width')) > 0
    found = set(re.findall(r'(?:fill|stroke): ?([^;"]+)', text))
    assert found <= {'none', 'currentColor', *routing.COLORS} and 'currentColor' in found
    ids = set(re.findall(r'\bid="([^"]+)"', text))
    assert set(re.findall(r'href="#([^"]+)"', text)) <= ids and not ids & taken
    taken |= ids
  assert [text.count('stroke-dasharray') for text in drawn] == [2, 0, 0]


def test_in_words():
  assert enas.describe(MACRO).splitlines() == [
    'layer 0: conv 3',
    'reduction: all outputs so far to half their height and width',
    'layer 1: average pool 3, adds 0',
    'reduction: all outputs so far to half their height and width',
    'layer 2: sepconv 5',
    'layer 3: max pool 3, adds 0 2',
  ]
  assert enas.describe(MICRO).splitlines() == [
    'normal block 0: sepconv 3 of h[k-2] + identity of h[k-2]',
    'normal block 1: sepconv 5 of h[k-1] + average pool 3 of h[k-2]',
    'normal block 2: max pool 3 of block 1 + sepconv 3 of block 0',
    'normal output: block 2',
    'reduction block 0: sepconv 3 of h[k-1] + sepconv 5 of h[k-1]',
    'reduction block 1: average pool 3 of block 0 + max pool 3 of h[k-1]',
    'reduction block 2: identity of block 0 + sepconv 3 of block 0',
    'reduction output: h[k-2], block 1, block 2',
  ]


@pytest.mark.parametrize('made', SPACES[:9])
def test_files_of_any_size_are_read(made):
  read = space.enas.macro_from_json if made.kind == 'enas_macro' else space.enas.micro_from_json
  arch = random_arch(made, 3)
  assert read(made.to_json(arch)) == arch


def damaged(arch, **fields):
  kind = 'enas_macro' if isinstance(arch, MacroArch) else 'enas_micro'
  return json.dumps({'kind': kind, 'arch': arch._asdict() | fields})


@pytest.mark.parametrize(
  ('read', 'text', 'words'),
  [
    (space.enas.macro_from_json, '', 'not JSON'),
    (space.enas.macro_from_json, '[' * 100_000, 'not JSON'),
    (space.enas.macro_from_json, '[]', 'not an architecture'),
    (space.enas.macro_from_json, '{"kind": "enas_macro", "arch": {"operation": 4}}', 'fields'),
    (space.enas.macro_from_json, damaged(MACRO, operation=[]), "'operation' has 0 entries.*wants 1"),
    (space.enas.macro_from_json, damaged(MACRO, operation='conv'), "'operation' is 'conv'"),
    (space.enas.macro_from_json, damaged(MACRO, links=[1]), "'links' has 1 entry.*wants 6"),
    (space.enas.macro_from_json, damaged(MACRO, operation=[0, 6, 0, 0]), r'layer 1 operation\) is 6'),
    (space.enas.macro_from_json, damaged(MICRO), "kind is 'enas_micro'"),
    (space.enas.micro_from_json, '{"kind": "enas_micro"}', 'not an architecture'),
    (space.enas.micro_from_json, damaged(MICRO, normal_operation=[0] * 5), "'normal_.*' has . entries"),
    (space.enas.micro_from_json, damaged(MICRO, reduction_input=[0, 0, 0, 3, 0, 0]), 'reduction block 1 .* is 3'),
    (space.enas.micro_from_json, damaged(MICRO, normal_input=[0, True, 0, 0, 0, 0]), 'is True, a bool'),
    (space.enas.micro_from_json, damaged(MICRO, normal_input=None), 'is None'),
  ],
)
def test_what_is_no_architecture_is_one_line(read, text, words):
  with pytest.raises(ValueError, match=words) as error:
    read(text)
  assert '\n' not in str(error.value)
