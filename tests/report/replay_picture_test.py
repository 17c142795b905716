"""Replay trees drawn."""

import itertools
import re
import xml.etree.ElementTree

import jax
import jax.numpy as jnp
from matplotlib import colors
from matplotlib.backends.backend_agg import FigureCanvasAgg
import numpy as np
import pytest

from nas_jax.report import replay_picture
from nas_jax.search import replay_tree
from nas_jax.space.chain import default_layers

WORDS = default_layers()
insert_all = jax.jit(replay_tree.insert_all)


def planted(paths, labels='abc'):
  """A tree of strings of up to three labels, each with the reward of its last node, None where that was not trained."""
  tokens = [[labels.index(label) for label in path.ljust(3, labels[0])] for path, _ in paths]
  depths = jnp.array([len(path) for path, _ in paths], jnp.int32)
  fresh = [[i == len(path) - 1 and reward is not None for i in range(3)] for path, reward in paths]
  rewards = jnp.array([[reward or 0.0] * 3 for _, reward in paths])
  return insert_all(replay_tree.empty(3, 20), jnp.array(tokens, jnp.int32), depths, rewards, jnp.array(fresh), 1)


def random_tree(seed, m=50, T=6):
  """Returns a tree of sequences with common prefixes, failed children, and some that were not trained."""
  rng = np.random.default_rng(seed)
  tokens = np.where(rng.random((m, T)) < 0.5, 18 + rng.integers(0, 3, (m, T)), rng.integers(0, len(WORDS), (m, T)))
  rewards = rng.random((m, T)) * (rng.random((m, T)) > 0.1)
  args = jnp.array(tokens, jnp.int32), jnp.array(rng.integers(1, T + 1, m), jnp.int32), jnp.array(rewards)
  return insert_all(replay_tree.empty(len(WORDS), 400), *args, jnp.array(rng.random((m, T)) > 0.1), 1)


TREES = [
  *((random_tree(seed), most) for seed, most in ((0, 40), (1, 40), (2, 5), (3, 400))),
  (replay_tree.empty(24, 1), 40),
]


def written(place):
  """(words, rectangle in points) of what is written in a figure."""
  figure = replay_picture._figure(place, 'black')
  FigureCanvasAgg(figure).draw()
  scale = figure.bbox.width / place.width
  boxes = [(text.get_text(), text.get_window_extent()) for text in figure.texts if text.get_text()]
  return [(words, box.x0 / scale, box.y0 / scale, box.x1 / scale, box.y1 / scale) for words, box in boxes]


@pytest.mark.parametrize('number', range(len(TREES)))
def test_a_drawing_is_sound(number):
  """Nothing lies on anything, parents are left of their children and in the middle, all that is missing is counted."""
  tree, most = TREES[number]
  place = replay_picture.layout(tree, WORDS, most)
  root, *boxes = place.boxes
  half, high, size = place.wide / 2, replay_picture._HEIGHT, int(tree.size) - 1
  assert len(boxes) == min(most, size) and root.parent == 0
  for one, other in itertools.combinations(boxes, 2):
    assert abs(one.x - other.x) > place.wide + 5 or abs(one.y - other.y) > high + 5
  for place_of, box in enumerate(boxes, 1):
    parent = place.boxes[box.parent]
    assert box.parent < place_of and parent.x + (half if box.parent else 0) + 5 < box.x - half
    assert 0 < box.x - half and box.x + half < place.width and 0 < box.y and box.y + high < place.height
  for place_of, box in enumerate(place.boxes):
    heights = [other.y for other in boxes if other.parent == place_of]
    if heights and boxes:
      assert box.y == pytest.approx((max(heights) + min(heights)) / 2)
  hidden = sum(int(box.more or 0) for box in place.boxes)
  assert hidden == size - len(boxes)
  assert place.foot[0] == (f'{size} nodes, the {most} most used shown' if hidden else f'{size} nodes')
  assert (f'+n: n of the {hidden} not shown come after it' in place.foot) == (hidden > 0)
  # Words: apart from each other, within the page, and those of a box within it; nothing else reaches into a box.
  words = written(place)
  expected = [w for w in (root.more, *(w for box in boxes for w in (box.word, box.mean, box.more))) if w]
  assert [each[0] for each in words] == expected + list(reversed(place.foot))
  for (_, x0, y0, x1, y1), (_, u0, v0, u1, v1) in itertools.combinations(words, 2):
    assert x1 < u0 or u1 < x0 or y1 < v0 or v1 < y0
  for _, x0, y0, x1, y1 in words:
    assert 0 < x0 and x1 < place.width and 0 < y0 and y1 < place.height
  for box in boxes:
    left, right, low, top = box.x - half, box.x + half, box.y, box.y + high
    inside = [w for w, x0, y0, x1, y1 in words if left < x0 and x1 < right and low < y0 and y1 < top]
    touching = [w for w, x0, y0, x1, y1 in words if left < x1 and x0 < right and low < y1 and y0 < top]
    assert inside == touching == [w for w in (box.word, box.mean, box.more) if w]


def test_the_most_used_are_shown():
  tree = TREES[0][0]
  shown = replay_picture._chosen(tree, 40)
  used, parent, reward = (np.asarray(x).tolist() for x in (tree.used, tree.parent, tree.reward))
  out = set(range(int(tree.size))) - set(shown)
  assert shown[0] == 0 and all(parent[node] in shown[:place] for place, node in enumerate(shown[1:], 1))
  assert min(used[node] for node in shown[1:]) >= max(used[node] for node in out)
  # Of those that could be shown next, none is better than the last.
  last = [node for node in shown[1:] if used[node] == min(used[n] for n in shown[1:])][-1]
  assert all(reward[node] <= reward[last] for node in out if parent[node] in shown[:-1] and used[node] == used[last])


def test_a_small_tree_by_hand():
  # b was used three times, ba twice, baa and a once each; c, of the same use as a, earned less.
  tree = planted([('c', 0.25), ('b', 0.0), ('ba', None), ('baa', 0.75), ('a', 0.5)])
  place = replay_picture.layout(tree, 'abc', 4)
  root = place.boxes[0]
  assert (root.word, root.mean, root.more) == ('', '', '+1')
  assert sorted((box.word, box.mean, box.more, place.boxes[box.parent].word) for box in place.boxes[1:]) == [
    ('a', '0.500', '', ''),
    ('a', '0.750', '', 'a'),
    ('a', 'untrained', '', 'b'),
    ('b', '0.00', '', ''),
  ]
  # The least that earned anything is the lightest, and a failed child no darker.
  assert {box.mean: box.shade for box in place.boxes[1:]} == {'0.500': 0, '0.750': 1, 'untrained': -1, '0.00': 0}
  assert place.foot == (
    '5 nodes, the 4 most used shown',
    '+n: n of the 1 not shown come after it',
    'shade: mean reward, 0.00 to 0.750',
  )
  # Children are in the order of tokens, from the top.
  heights = {box.word: box.y for box in replay_picture.layout(tree, 'abc').boxes if box.parent == 0}
  assert heights['a'] > heights['b'] > heights['c']
  alike = replay_picture.layout(planted([('a', 0.5)]), 'abc')
  assert alike.boxes[1].shade == 1 and alike.foot == ('1 node', 'shade: mean reward, 0.500 to 0.500')
  failed = replay_picture.layout(planted([('a', 0.0), ('b', 0.0)]), 'abc')
  assert [box.shade for box in failed.boxes[1:]] == [0, 0]
  assert replay_picture.layout(planted([('ab', None)]), 'abc').foot == ('2 nodes',)


def luminance(rgb):
  linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb]
  return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


def contrast(one, other):
  least, most = sorted((luminance(one), luminance(other)))
  return (most + 0.05) / (least + 0.05)


@pytest.mark.parametrize('page, ink', [('#fff', '#1d2125'), ('#15181b', '#e3e6e9')])
def test_it_can_be_read_in_light_and_in_dark(page, ink):
  page, ink, shade = (np.array(colors.to_rgb(color)) for color in (page, ink, replay_picture._SHADE))
  for color in (replay_picture._SHADE, replay_picture._WIRE):
    assert contrast(colors.to_rgb(color), page) > 3
  darkest = replay_picture._FILL * shade + (1 - replay_picture._FILL) * page
  assert contrast(ink, darkest) > 4.5 and contrast(page, darkest) > 1.5


@pytest.mark.parametrize('name, start', [('a.svg', b'<?xml'), ('b.PNG', b'\x89PNG'), ('c.pdf', b'%PDF')])
def test_the_ending_says_the_format(tmp_path, name, start):
  tree = planted([('ab', 0.5)])
  replay_picture.draw(tree, 'abc', tmp_path / name)
  first = (tmp_path / name).read_bytes()
  replay_picture.draw(tree, 'abc', str(tmp_path / name))
  assert first.startswith(start) and (tmp_path / name).read_bytes() == first
  with pytest.raises(ValueError, match=r"^cannot draw a replay tree into '.*bmp': want a name that ends in \.svg, "):
    replay_picture.draw(tree, 'abc', tmp_path / 'tree.bmp')


def test_svgs_can_stand_in_one_page():
  tree = TREES[0][0]
  drawn = [
    replay_picture.svg(tree, WORDS),
    replay_picture.svg(tree, WORDS, 10),
    replay_picture.svg(replay_tree.empty(24, 1), WORDS),
  ]
  assert replay_picture.svg(replay_tree.grow(tree, 500), WORDS) == drawn[0]
  taken = set()
  for text in drawn:
    assert xml.etree.ElementTree.fromstring(text).tag.endswith('svg')
    found = set(re.findall(r'(?:fill|stroke): ?([^;"]+)', text))
    assert found <= {'none', 'currentColor', replay_picture._SHADE, replay_picture._WIRE} and 'currentColor' in found
    ids = set(re.findall(r'\bid="([^"]+)"', text))
    assert set(re.findall(r'href="#([^"]+)"', text)) <= ids and not ids & taken
    taken |= ids


def test_complaints():
  with pytest.raises(ValueError, match=r'^most .=0. must be at least 1'):
    replay_picture.svg(replay_tree.empty(3, 1), 'abc', 0)
  with pytest.raises(ValueError, match=r'^2 labels for a tree of 3 choices'):
    replay_picture.svg(replay_tree.empty(3, 1), 'ab')
