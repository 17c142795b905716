"""Cells drawn as trees."""

import itertools
import pathlib
import re
import xml.etree.ElementTree

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
import numpy as np
import pytest

from nas_jax import space, tree_cell
from nas_jax.draw import tree as draw_tree
from nas_jax.tree_cell import LSTM, NASCELL, TreeArch

# Sec. 3.4, the worked example of base 2; c_t and c_(t-1) at neighbours.
EXAMPLE = TreeArch(combine=(0, 1, 1), activate=(1, 3, 2), inject=(0, 3), index=(1, 0))


def random_arch(base, index):
  rng, cells = np.random.default_rng(0), space.tree_cell_space(base, space.COMBINE, space.ACTIVATE)
  return cells.decode(rng.integers(0, [slot.width for slot in cells.slots]))._replace(index=index)


CELLS = [
  NASCELL,
  LSTM,
  EXAMPLE,
  EXAMPLE._replace(index=(2, 2)),
  random_arch(4, (4, 5)),
  random_arch(8, (2, 3)),
  random_arch(8, (3, 3)),
  random_arch(16, (0, 15)),
  random_arch(16, (14, 15)),
  random_arch(16, (16, 17)),
  random_arch(16, (30, 30)),
]


def texts(arch):
  """(words, rectangle in points) of everything that is written in a figure, and the figure's own rectangle."""
  figure = draw_tree._figure(arch, 'black')
  FigureCanvasAgg(figure).draw()
  boxes = [(text.get_text(), text.get_window_extent()) for text in figure.texts]
  return boxes, figure.bbox


@pytest.mark.parametrize('arch', CELLS)
def test_nothing_lies_on_anything(arch):
  written, page = texts(arch)
  for (name, box), (other, another) in itertools.combinations(written, 2):
    assert not box.overlaps(another), f'{name} lies on {other}'
  for name, box in written:
    assert page.x0 < box.x0 and box.x1 < page.x1 and page.y0 < box.y0 and box.y1 < page.y1, name
  # A word fits its box, and what is beside a box does not reach into it.
  scale = page.width / draw_tree.layout(arch).width
  for operation in itertools.chain(*draw_tree.layout(arch).nodes):
    left, right = ((operation.x + side * draw_tree._WIDTH / 2) * scale for side in (-1, 1))
    low, high = operation.y * scale, (operation.y + draw_tree._HEIGHT) * scale
    inside = [
      (name, box) for name, box in written if box.x0 < right and box.x1 > left and box.y0 < high and box.y1 > low
    ]
    ((name, box),) = inside
    assert name == operation.word and left < box.x0 and box.x1 < right and low < box.y0 and box.y1 < high


def test_a_drawing_says_what_the_cell_does():
  place = draw_tree.layout(NASCELL)
  assert [[box.word for box in boxes] for boxes in place.nodes] == [
    *([sign, word] for sign, word in zip('+++×++++', ('σ', 'relu', 'σ', 'relu', 'tanh', 'σ', 'tanh', 'σ'))),
    *(['×', 'tanh', '+', 'tanh'], ['+', 'tanh'], ['×', 'tanh'], ['+', 'σ'], ['×'], ['+', 'tanh'], ['×', 'tanh']),
  ]
  assert [box.injects for box in place.nodes[8]] == [False, False, True, True]
  names = [name for name, _ in texts(NASCELL)[0] if name[0] in '$a']
  leaves = [name for i in range(8) for name in (f'$W_{{{i}}} x$', f'$U_{{{i}}} h$')]
  assert sorted(names) == sorted([*leaves, *(f'a{i}' for i in range(14)), '$c_{t-1}$', '$c_t$', '$h_t$'])
  # A node stands over the middle of its children, above them.
  for node in range(8, 15):
    left, right, own = (place.nodes[i][0] for i in (2 * (node - 8), 2 * (node - 8) + 1, node))
    assert own.x == (left.x + right.x) / 2 and own.y > max(left.y, right.y)


def test_c_goes_in_and_out_beside_its_nodes():
  # Node 1 gives c_t before its relu, node 0 takes c_(t-1) after its tanh.
  place, (written, page) = draw_tree.layout(EXAMPLE), texts(EXAMPLE)
  where = {name: (box.x0 + box.width / 2, box.y0 + box.height / 2) for name, box in written}
  scale = page.width / place.width
  multiply, relu = place.nodes[1]
  x, y = where['$c_t$']
  assert x / scale > multiply.x + draw_tree._WIDTH / 2 and multiply.y < y / scale < relu.y + draw_tree._HEIGHT
  entry = place.nodes[0][2]
  x, y = where['$c_{t-1}$']
  assert x / scale < entry.x - draw_tree._WIDTH / 2 and entry.y < y / scale < entry.y + draw_tree._HEIGHT


@pytest.mark.parametrize('name, start', [('a.svg', b'<?xml'), ('b.PNG', b'\x89PNG'), ('c.pdf', b'%PDF')])
def test_the_ending_says_the_format(tmp_path, name, start):
  tree_cell.draw(EXAMPLE, tmp_path / name)
  first = (tmp_path / name).read_bytes()
  assert first.startswith(start)
  tree_cell.draw(EXAMPLE, str(tmp_path / name))
  assert (tmp_path / name).read_bytes() == first


@pytest.mark.parametrize('name', ['cell.bmp', 'cell', 'cell.svg.txt'])
def test_an_unknown_ending_is_said_so(tmp_path, name):
  with pytest.raises(
    ValueError, match=r"^cannot draw a cell into '.*': want a name that ends in \.svg, \.png, \.pdf\.$"
  ):
    tree_cell.draw(EXAMPLE, tmp_path / name)
  assert not list(pathlib.Path(tmp_path).iterdir())


def test_svgs_can_stand_in_one_page():
  first, second = draw_tree.svg(EXAMPLE), draw_tree.svg(LSTM)
  assert draw_tree.svg(TreeArch(*EXAMPLE)) == first
  for text in (first, second):
    root = xml.etree.ElementTree.fromstring(text)
    assert root.tag.endswith('svg') and not root.findall('.//{*}style') and not root.findall('.//{*}metadata')
    # The page's colour and that of c, nothing else.
    assert set(re.findall(r'(?:fill|stroke): ?([^;"]+)', text)) == {'none', 'currentColor', draw_tree._MEMORY}
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(set(ids)) == len(ids)
    assert set(re.findall(r'href="#([^"]+)"', text)) <= set(ids)
  ids = [set(re.findall(r'\bid="([^"]+)"', text)) for text in (first, second)]
  assert not ids[0] & ids[1]


def test_what_the_user_set_neither_matters_nor_changes():
  plain = draw_tree.svg(EXAMPLE)
  with matplotlib.rc_context({'font.size': 30, 'svg.fonttype': 'none', 'savefig.bbox': 'tight'}):
    assert draw_tree.svg(EXAMPLE) == plain
    assert matplotlib.rcParams['font.size'] == 30
