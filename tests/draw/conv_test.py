"""Convolutional networks drawn, and in words."""

import itertools
import re
import xml.etree.ElementTree

from matplotlib import colors
from matplotlib.backends.backend_agg import FigureCanvasAgg
import numpy as np
import pytest
from testing import sound

from nas_jax import published, space
from nas_jax.draw import conv as draw_conv
from nas_jax.draw import routing
from nas_jax.draw.conv import layout
from nas_jax.space.chain import ChainArch
from nas_jax.space.conv import AVERAGE_POOL, CONV, IMAGE, NORM, ConvArch, conv_space
from nas_jax.space.network import NetworkOptions, describe, network

# 0 and 2 read the image, 1 a pool of 0, 3 reads 1 and 2, 4 reads 3 and 0.
TYPED = ConvArch(
  layer_type=(CONV, AVERAGE_POOL, CONV, NORM, CONV),
  filter_height=(3, 0, 1, 0, 7),
  filter_width=(5, 0, 1, 0, 1),
  stride_height=(2, 0, 1, 0, 1),
  stride_width=(1, 0, 3, 0, 1),
  filters=(6, 0, 2, 0, 64),
  pool=(0, 2, 0, 0, 0),
  links=(1, 0, 0, 0, 1, 1, 1, 0, 0, 1),
  rate=(100_000,),
)
SPACES = (conv_space(15), conv_space(6, strides=(1, 2), layer_types=space.LAYER_TYPES), conv_space(4, skips=False))


def random_arch(seed):
  rng, convs = np.random.default_rng(seed), SPACES[seed % len(SPACES)]
  widths = [2 if slot.kind == space.Kind.LINK else slot.width for slot in convs.slots]
  return convs.decode(rng.integers(0, np.array(widths)[convs.owner]), 1 + seed % convs.layers)


NETWORKS = [
  (TYPED, NetworkOptions()),
  (published.FIGURE_7, NetworkOptions()),
  (published.FIGURE_7, NetworkOptions(block=3, pools=(13, 24))),
  (published.XU_CIFAR10, NetworkOptions()),
  (ChainArch((199_999, 200_089, 99_999) * 5), NetworkOptions()),  # the longest words, and numbers of two digits
  *((random_arch(seed), NetworkOptions()) for seed in range(60)),
  *((random_arch(seed), NetworkOptions(block=2, pools=(2, 5), add_filters=9)) for seed in range(12)),
]


@pytest.mark.parametrize('number', range(len(NETWORKS)))
def test_a_drawing_is_sound(number):
  sound(network(*NETWORKS[number]))


def test_a_small_network_by_hand():
  place = sound(network(TYPED))
  assert [(box.number, box.word, box.note) for box in place.boxes] == [
    ('', 'image', ''),
    ('0', '3×5, 6', 'stride 2×1'),
    ('1', 'average pool 2', ''),
    ('2', '1×1, 2', 'stride 1×3'),
    ('3', 'norm', ''),
    ('4', '7×1, 64', ''),
    ('', 'softmax', ''),
  ]
  assert [box.shaded for box in place.boxes] == [False, False, True, False, True, False, False]
  assert [box.round for box in place.boxes] == [True] + [False] * 5 + [True]
  # Neighbours: image 0, 0 1, 2 3, 3 4, 4 softmax. Beside: image 2, 0 4, 1 3.
  beside = {(arrow.source, arrow.target): arrow for arrow in place.arrows if arrow.color >= 0}
  assert set(beside) == {(0, 3), (1, 5), (2, 4)} and len(place.arrows) == 8
  # The image's goes left, 0's where there is none yet, 1's left again, beside the image's, which has not ended.
  right, left = place.boxes[0].x + routing.WIDTH / 2, place.boxes[0].x - routing.WIDTH / 2
  assert [beside[pair].points[0][0] for pair in ((0, 3), (1, 5), (2, 4))] == [left, right, left]
  assert beside[2, 4].points[1][0] != beside[0, 3].points[1][0]


def test_sources_have_colours_of_their_own():
  place = sound(network(published.FIGURE_7))
  assert len(place.arrows) == 66 and sum(arrow.color >= 0 for arrow in place.arrows) == 50
  last = {arrow.source: arrow for arrow in place.arrows if arrow.color >= 0}  # by target, the last is the farthest
  for one, other in itertools.combinations(last.values(), 2):
    if one.points[0][0] == other.points[0][0] and one.source <= other.target and other.source <= one.target:
      assert one.color != other.color
  # Arrows come evenly from both sides: one box of nine reads is no higher than five arrows need.
  assert max(box.height for box in place.boxes) <= 6 * routing.PORT


def luminance(color):
  linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colors.to_rgb(color)]
  return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


def test_arrows_stand_out_in_light_and_in_dark():
  for color in routing.COLORS:
    assert 1.05 / (luminance(color) + 0.05) > 3 and (luminance(color) + 0.05) / (luminance('#15181b') + 0.05) > 3, color


@pytest.mark.parametrize('number', [0, 1, 2, 3, 4])
def test_words_fit_their_boxes(number):
  made = network(*NETWORKS[number])
  figure, place = draw_conv._figure(made, 'black'), layout(made)
  FigureCanvasAgg(figure).draw()
  scale = figure.bbox.width / place.width
  written = [(text.get_text(), text.get_window_extent()) for text in figure.texts if text.get_text()]
  assert [words for words, _ in written] == [w for box in place.boxes for w in (box.number, box.word, box.note) if w]
  for (words, box), (_, another) in itertools.pairwise(written):
    assert not box.overlaps(another), words
  for words, box in written:
    x, y = (box.x0 + box.x1) / 2 / scale, (box.y0 + box.y1) / 2 / scale
    (own,) = (b for b in place.boxes if b.y < y < b.y + b.height)
    assert own.y < box.y0 / scale and box.y1 / scale < own.y + own.height, words
    assert abs(x - own.x) + box.width / scale / 2 < routing.WIDTH / 2, words


@pytest.mark.parametrize('name, start', [('a.svg', b'<?xml'), ('b.PNG', b'\x89PNG'), ('c.pdf', b'%PDF')])
def test_the_ending_says_the_format(tmp_path, name, start):
  draw_conv.draw(TYPED, tmp_path / name)
  first = (tmp_path / name).read_bytes()
  draw_conv.draw(TYPED, str(tmp_path / name))
  assert first.startswith(start) and (tmp_path / name).read_bytes() == first
  with pytest.raises(ValueError, match=r"^cannot draw a network into '.*bmp': want a name that ends in \.svg, "):
    draw_conv.draw(TYPED, tmp_path / 'net.bmp')


def test_svgs_can_stand_in_one_page():
  drawn = [draw_conv.svg(TYPED), draw_conv.svg(TYPED, NetworkOptions(block=2)), draw_conv.svg(published.FIGURE_7)]
  assert draw_conv.svg(ConvArch(*TYPED)) == drawn[0]
  taken = set()
  for text in drawn:
    assert xml.etree.ElementTree.fromstring(text).tag.endswith('svg')
    found = set(re.findall(r'(?:fill|stroke): ?([^;"]+)', text))
    assert found <= {'none', 'currentColor', *routing.COLORS} and 'currentColor' in found and len(found) > 3
    ids = set(re.findall(r'\bid="([^"]+)"', text))
    assert set(re.findall(r'href="#([^"]+)"', text)) <= ids and not ids & taken
    taken |= ids
  # A lane, of two corners, is drawn once, and a branch, of one, for each of the other reads.
  ways = re.findall(r'<path d="([^"]*)"[^>]*style="fill: none; stroke: #', drawn[2])
  sources = {arrow.source for arrow in layout(network(published.FIGURE_7)).arrows if arrow.color >= 0}
  assert len(ways) == 50 and sum(way.count('Q') for way in ways) == 50 + len(sources)


def test_a_network_in_words():
  assert describe(TYPED).splitlines() == [
    'training: learning rate 0.1',
    'layer 0: conv 3x5, 6 filters, stride 2x1, reads image',
    'layer 1: average pool 2, reads 0',
    'layer 2: conv 1x1, 2 filters, stride 1x3, reads image',
    'layer 3: norm, reads 1 2',
    'layer 4: conv 7x1, 64 filters, reads 0 3',
    'classifier: reads 4',
  ]
  loose = TYPED._replace(links=(1, *[0] * 9), rate=())
  assert describe(loose).splitlines()[-2:] == [
    'layer 4: conv 7x1, 64 filters, reads image',
    'classifier: reads 1 2 3 4',
  ]
  # Words and boxes call layers by the same numbers, blocks and pools included.
  form = NetworkOptions(block=2, pools=(3,), add_filters=4)
  made, lines = network(published.FIGURE_7, form), describe(published.FIGURE_7, form).splitlines()
  numbers = [line.split(':')[0].removeprefix('layer ') for line in lines[:-1]]
  assert numbers == [box.number for box in layout(made).boxes[1:-1]]
  assert lines[1] == 'layer 1: conv 3x3, 40 filters, reads image 0' and lines[2] == 'layer 2: max pool 2, reads 0'
  assert made.layers[1].reads == (IMAGE, 0)
