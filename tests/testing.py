"""Helpers that several tests share: small configs and data, spaces that can be enumerated, checks of drawings."""

import ctypes
import itertools
from typing import NamedTuple

import jax
import numpy as np

from nas_jax import search
from nas_jax.datasets import images, own_sequences
from nas_jax.datasets import sequences as sequences_lib
from nas_jax.datasets.text import Text
from nas_jax.draw import routing
from nas_jax.draw.conv import layout
from nas_jax.space.base import Kind, Slot, Space
from nas_jax.space.choice import choice_space
from nas_jax.space.conv import conv_space
from nas_jax.systems import cell, chain, conv, enas_images, enas_rnn, retrain_cell, sequence


def drop_programs() -> None:
  """Frees the memory of all compiled programs. A program that is called again is compiled again."""
  jax.clear_caches()
  libc = ctypes.CDLL(None)
  if hasattr(libc, 'malloc_trim'):  # glibc returns much of the freed memory only on this call
    libc.malloc_trim(0)


def text(length: int = 600, vocabulary: int = 5) -> Text:
  """Returns a text that can be learned: 0 1 2 3 4 0 1 ..., with noise."""
  rng = np.random.default_rng(0)
  tokens = (np.arange(length) + (rng.random(length) < 0.1)) % vocabulary
  train, valid, test = np.split(tokens.astype(np.int32), [length // 2, length * 3 // 4])
  return Text(train, valid, test, tuple('abcdefghij'[:vocabulary]), 'none')


def retrain_config(**changes) -> retrain_cell.Config:
  """Returns a config whose trainings take milliseconds."""
  small = {
    'sizes': ('4',),
    'batch': 3,
    'bptt': 5,
    'epochs': 3,
    'score_batch': 4,
    'test_batch': 1,
    'schedule': 'constant',
  }
  return retrain_cell.Config(**(small | changes))


def search_config(**changes) -> search.Config:
  """Returns the config of a search by a controller with few weights, three children at a time."""
  small = {'m': 3, 'controller_units': 4, 'controller_layers': 1, 'controller_init': 1.0, 'controller_lr': 0.01}
  return search.Config(**(small | {'controller_clip': 2.0} | changes))


def cell_config(**changes) -> cell.Config:
  """Returns a config whose children train in milliseconds and whose programs compile in seconds."""
  small = {'m': 2, 'base': 2, 'hidden': 4, 'batch': 3, 'bptt': 5, 'steps': 6, 'score_batch': 4, 'controller_units': 4}
  return cell.Config(**(small | {'max_children': 6} | changes))


def pictures(count: int = 60, shape: tuple[int, int, int] = (6, 5, 1)) -> images.Images:
  """Returns images of three classes: bright in the upper half, in the lower half, in the left half."""
  rng = np.random.default_rng(0)
  labels = np.arange(count) % 3
  pixels = rng.integers(0, 60, size=(count, *shape))
  pixels[labels == 0, : shape[0] // 2] += 120
  pixels[labels == 1, shape[0] // 2 :] += 120
  pixels[labels == 2, :, : shape[1] // 2] += 120
  pixels, labels, part = pixels.astype(np.uint8), labels.astype(np.int32), count // 4
  train, test = images.Split(pixels[part:], labels[part:]), images.Split(pixels[:part], labels[:part])
  return images.split_images(train, test, 3, 0.2)


def conv_config(**changes) -> conv.Config:
  """A search whose children train in milliseconds."""
  space = {'max_depth': 2, 'filter_heights': (1, 3), 'filter_widths': (3,), 'filters': (2, 3)}
  small = {'m': 2, 'batch': 9, 'epochs': 2, 'last_epochs': 1, 'score_batch': 4, 'controller_units': 4, 'lr': (0.05,)}
  return conv.Config(**(space | small | {'max_children': 4} | changes))


def waves(count: int = 60, steps: int = 7, seed: int = 0) -> own_sequences.Split:
  """Returns sequences of two features and various lengths. The class of a sequence shifts its first feature."""
  rng = np.random.default_rng(seed)
  labels, lengths = np.arange(count) % 3, rng.integers(4, steps + 1, count)
  x = rng.normal(0.0, 0.3, (count, steps, 2))
  x[..., 0] += 1.5 * (labels - 1)[:, None]
  return own_sequences.Split(*own_sequences.checked('waves', x, lengths), labels)


def sequences(count: int = 60) -> sequences_lib.Sequences:
  """Returns `waves` in three splits: of 60 sequences, 40 for training, 8 for validation and 12 for the test."""
  part = waves(count)
  cut = count // 5
  parts = {
    'train': own_sequences.Split(*(x[cut:] for x in part)),
    'test': own_sequences.Split(*(x[:cut] for x in part)),
  }
  return sequences_lib.split_sequences(parts, ('a', 'b', 'c'), valid_share=1 / 6)


def sequence_config(**changes) -> sequence.Config:
  """A search whose children train in milliseconds."""
  small = {'m': 2, 'base': 2, 'hidden': 4, 'batch': 9, 'epochs': 2, 'score_batch': 4, 'controller_units': 4}
  return sequence.Config(**(small | {'max_children': 4} | changes))


def chain_config(**changes) -> chain.Config:
  """Returns a config whose children train in milliseconds, each with its own program."""
  layers = ('conv 2 3 1', 'residual 3 3 2', 'max pool 2 2')
  small = {'m': 1, 'max_depth': 2, 'layers': layers, 'batch': 9, 'epochs': 2, 'score_batch': 4, 'controller_units': 4}
  return chain.Config(**(small | {'lr': 0.05, 'schedule': 'cosine', 'max_children': 4} | changes))


_SHARED = {'m': 2, 'controller_units': 4, 'controller_layers': 1, 'passes': 2, 'controller_updates': 2, 'epochs': 1}
_AFTER = {'derive_children': 3, 'rank_children': 3}


def macro_config(**changes) -> enas_images.MacroConfig:
  """Returns a small config of a search for networks of two layers with shared weights."""
  network = {'layers': 2, 'operations': ('conv 3', 'max pool 3'), 'filters': 2, 'skip_weight': 0.0}
  small = {'batch': 9, 'score_batch': 4, 'lr': 0.05, 'schedule': 'cosine'}
  return enas_images.MacroConfig(**(_SHARED | _AFTER | network | small | changes))


def micro_config(**changes) -> enas_images.MicroConfig:
  """Returns a small config of a search for cells of one block; networks of one cell have no reduction."""
  network = {'blocks': 1, 'cells': 1, 'operations': ('identity', 'sepconv 3'), 'filters': 2, 'drop_path': 1.0}
  small = {'batch': 9, 'score_batch': 4, 'lr': 0.05, 'schedule': 'cosine'}
  return enas_images.MicroConfig(**(_SHARED | _AFTER | network | small | changes))


def rnn_config(**changes) -> enas_rnn.Config:
  """Returns a small config of a search for recurrent cells of three nodes with shared weights."""
  small = {'nodes': 3, 'hidden': 4, 'batch': 3, 'bptt': 5, 'score_batch': 4, 'optimizer': 'adam', 'lr': 0.01}
  return enas_rnn.Config(**(_SHARED | _AFTER | small | changes))


def one_search(system):
  """Returns a system whose search is built and compiled once for each algorithm.

  It suits tests that continue a finished search: no child is trained any more, so the first evaluator will do.
  """
  build, made = system.alone.search, {}

  def once(space, cfg, evaluate):
    return made.setdefault(cfg.algorithm, build(space, cfg, evaluate))

  return system._replace(alone=system.alone._replace(search=once))


def random_variables(module, example):
  """Returns random variables of a Flax module. Unlike `init`, this compiles nothing."""
  rng = np.random.default_rng(0)
  shapes = jax.eval_shape(module.init, jax.random.key(0), example)
  return jax.tree.map(lambda leaf: rng.uniform(0.1, 1.0, leaf.shape).astype(leaf.dtype), shapes)


# -- spaces small enough to enumerate --------------------------------------------------------------------------------


class TinyArch(NamedTuple):
  size: tuple[int, ...]
  link: tuple[int, ...]
  pick: tuple[int, ...]


class TypedArch(NamedTuple):
  kind: tuple[int, ...]
  size: tuple[int, ...]
  pool: tuple[int, ...]
  link: tuple[int, ...]


def _typed_layer(i: int) -> list[Slot]:
  """Returns the slots of a layer of one of three types: 0 has a choice of three sizes, 1 of two pools, 2 has none."""
  group = f'layer {i}'
  return [
    Slot(group, 'kind', Kind.CHOICE, 3, 'kind', head='kind', layer=i, selects=True),
    Slot(group, 'size', Kind.CHOICE, 3, 'size', (4, 5, 6), head='size', layer=i, active_if=(0,)),
    Slot(group, 'pool', Kind.CHOICE, 2, 'pool', (7, 8), head='pool', layer=i, active_if=(1,)),
    Slot(group, 'reads', Kind.LINK, i, 'link', anchor=True, layer=i),
  ]


def _layer(i: int) -> list[Slot]:
  group = f'layer {i}'
  slots = [
    Slot(group, 'size', Kind.CHOICE, 2, 'size', (1, 3), ('1', '3'), head='size', layer=i),
    Slot(group, 'reads', Kind.LINK, i, 'link', anchor=True, layer=i),
  ]
  return [*slots, Slot(group, 'gates', Kind.POINTER, i, 'pick', layer=i)] if i else slots


# The spaces are small enough to enumerate, and together have every kind of slot: choices of unequal widths; layers,
# with links of width 0, 1 and 2 and one head for all sizes; candidates that start after the first anchor; and slots
# that exist only for some types of their layer.
SPACES = {
  'choice': choice_space({'a': 'xy', 'b': 'xyz', 'c': 'xy'}),
  'layered': Space('layered', {}, TinyArch, (*_layer(0), *_layer(1), *_layer(2))),
  'pointer': Space(
    'pointer',
    {},
    TinyArch,
    (
      Slot('node 0', 'size', Kind.CHOICE, 2, 'size', head='a', anchor=True),
      Slot('node 1', 'size', Kind.CHOICE, 3, 'size', head='b', anchor=True),
      Slot('node 2', 'reads', Kind.POINTER, 2, 'pick', anchor=True),
      Slot('node 3', 'reads', Kind.POINTER, 2, 'pick', start=1),
      Slot('node 3', 'adds', Kind.LINK, 2, 'link', start=1),
    ),
  ),
}
SPACES['typed'] = Space('typed', {}, TypedArch, tuple(slot for i in range(2) for slot in _typed_layer(i)))
SPACES['conv'] = conv_space(2, (1, 3), (3,), (2, 4))
SIZES = {'choice': 2 * 3 * 2, 'layered': 2 * (2 * 2 * 1) * (2 * 4 * 2), 'pointer': 2 * 3 * 2 * 2 * 4}
SIZES['typed'] = (3 + 2 + 1) * (3 + 2 + 1) * 2  # by type of layer; the second has a link
SIZES['conv'] = (2 * 2) * (2 * 2 * 2)  # the second layer has a link
LAYERED = SPACES['layered']


def strings(space: Space, depth: int | None = None) -> np.ndarray:
  """Returns all token sequences [size, T] of `space` at `depth` in lexicographic order, with zeros beyond the depth."""
  widths = [2 if slot.kind == Kind.LINK else slot.width for slot in space.slots]
  found = np.array(list(itertools.product(*(range(widths[i]) for i in space.owner))), np.int32)
  return found[np.all(np.where(space.exists(found, depth), 0, found) == 0, axis=1)]


def random_tokens(space: Space, count: int, seed: int = 0) -> np.ndarray:
  """Returns uniform random token sequences [count, T] of a space of choices."""
  return np.random.default_rng(seed).integers([slot.width for slot in space.slots], size=(count, space.length))


def one_line(error) -> str:
  """Returns the message of a caught error, and asserts that it is a single line."""
  message = str(error.value)
  assert message and '\n' not in message
  return message


# -- drawings ----------------------------------------------------------------------------------------------------


def sound(made):
  """Returns the layout of a drawing and asserts that nothing overlaps, and that each read is one upward arrow."""
  place = layout(made)
  boxes, left, right = place.boxes, *(place.boxes[0].x + side * routing.WIDTH / 2 for side in (-1, 1))
  assert len({box.x for box in boxes}) == 1 and len(boxes) == len(made.layers) + 2
  assert all(below.y + below.height < above.y for below, above in itertools.pairwise(boxes))
  assert boxes[0].y > 0 and boxes[-1].y + boxes[-1].height < place.height
  reads = [*(layer.reads for layer in made.layers), made.ends]
  wanted = [(j + 1, target) for target, row in enumerate(reads, 1) for j in row]
  assert sorted((arrow.source, arrow.target) for arrow in place.arrows) == sorted(wanted)
  levels, upright = [], {}
  for arrow in place.arrows:
    (x0, y0), (x1, y1) = arrow.points[0], arrow.points[-1]
    source, target = boxes[arrow.source], boxes[arrow.target]
    assert y0 < y1 and all(0 < x < place.width for x, _ in arrow.points)
    if arrow.target == arrow.source + 1:
      assert arrow.points == ((source.x, source.y + source.height), (target.x, target.y)) and arrow.color == -1
      continue
    assert x0 == x1 and x0 in (left, right)
    assert source.y < y0 < source.y + source.height and target.y < y1 < target.y + target.height
    (_, low), (beside, _), (also, _), (_, high) = arrow.points
    assert low == y0 and high == y1 and beside == also and (beside < left if x0 == left else beside > right)
    levels.append((x0, y1))
    upright.setdefault((beside, arrow.source), set()).update((y0, y1))
    levels += [(x0, y0)] * (arrow.target == max(a.target for a in place.arrows if a.source == arrow.source))
  # Arrows that enter a box keep a distance from each other, and no two arrows share a lane at the same height.
  assert all(one[0] < other[0] or one[1] + 6.9 < other[1] for one, other in itertools.pairwise(sorted(levels)))
  taken = sorted((beside, min(ys), max(ys), source) for (beside, source), ys in upright.items())
  assert len({lane[3] for lane in taken}) == len(taken)
  for one, next_one in itertools.pairwise(taken):
    assert one[0] + 6 < next_one[0] or (one[0] == next_one[0] and one[2] < next_one[1])
  return place
