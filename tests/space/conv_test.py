"""The space of convolutional networks: counting, reading, sizes."""

import re

import numpy as np
import pytest
from testing import one_line, strings

from nas_jax import published, space
from nas_jax.space.conv import CONV, IMAGE, MAX_POOL, NORM, ConvArch, conv_space
from nas_jax.space.network import Layer, NetworkOptions, layers_of, network

TYPED = conv_space(
  2, (1, 3), (3,), (4,), strides=(1, 2), layer_types=('norm', 'conv', 'max pool'), pools=(2, 3), rates=(0.1, 0.01)
)


def test_sizes_of_the_papers_spaces():
  assert conv_space().size() == 2**195  # 64 convolutions a layer, 2^(15 * 14 / 2) sets of skips
  assert [conv_space().size(depth) for depth in (1, 2, 6)] == [64, 64**2 * 2, 64**6 * 2**15]
  assert conv_space(strides=(1, 2, 3)).size() == (64 * 9) ** 15 * 2**105
  assert conv_space(3, skips=False).size() == 64**3
  assert conv_space().length == 3 * 15 + 105
  # Norm: 1. Convolution: 2 heights, 4 strides. Pool: 2. Two rates and, at depth 2, a link.
  assert [TYPED.size(depth) for depth in (1, 2)] == [2 * 11, 2 * 11 * 11 * 2]


@pytest.mark.parametrize('depth', [1, 2])
def test_every_string_is_a_network_of_its_own(depth):
  tokens = strings(TYPED, depth)
  archs = [TYPED.decode(row, depth) for row in tokens]
  assert len(set(archs)) == len(tokens) == TYPED.size(depth)
  assert [TYPED.encode(arch).tolist() for arch in archs] == tokens.tolist()
  assert all(TYPED.from_json(TYPED.to_json(arch)) == arch for arch in archs[::7])
  traced = TYPED.decode_batch(np.asarray(tokens), depth)
  assert space.unstack(traced) == archs
  for arch in archs[::11]:
    assert space.count(arch, (5, 4, 1), 3).params > 0


def test_tokens_in_the_papers_order():
  slots = conv_space(2, strides=(1, 2)).slots
  names = ['filter height', 'filter width', 'stride height', 'stride width', 'filters', 'reads']
  assert [slot.name for slot in slots] == names * 2
  assert [slot.anchor for slot in slots] == [name == 'reads' for name in names * 2]
  assert TYPED.slots[0].name == 'learning rate' and TYPED.slots[1].selects


def test_figure_7_has_the_weights_of_the_paper():
  """4.2M in Table 1; 4,119,228 of convolutions by the figure's sizes and arrows."""
  found = space.count(published.FIGURE_7)
  assert found.conv_weights == 4_119_228
  # Batch norm after each of 648 filters in all; 48 features to 10 classes.
  assert found.params == 4_119_228 + 2 * sum(published.FIGURE_7.filters) + 49 * 10
  assert found.macs == 4_119_228 * 32 * 32 + 480
  assert found.shapes[-1] == (32, 32, 48)
  assert conv_space().check(published.FIGURE_7) == 15
  # All arrows or a plain chain would be far off.
  dense = published.FIGURE_7._replace(links=(1,) * 105)
  chain = published.FIGURE_7._replace(links=())
  assert round(space.count(dense).conv_weights, -4) == 6_630_000
  assert round(space.count(chain).conv_weights, -4) == 810_000


def test_the_three_rules_by_hand():
  # Layer 0 reads nothing: the image. 1 is a pool of 0. 2 reads nothing: the image. 3 joins 1 and 2.
  arch = ConvArch(
    layer_type=(CONV, MAX_POOL, CONV, NORM),
    filter_height=(3, 0, 1, 0),
    filter_width=(5, 0, 1, 0),
    stride_height=(2, 0, 1, 0),
    stride_width=(1, 0, 3, 0),
    filters=(6, 0, 2, 0),
    pool=(0, 2, 0, 0),
    links=(1, 0, 0, 0, 1, 1),
    rate=(),
  )
  layers = layers_of(arch)
  assert layers[0] == Layer(CONV, (IMAGE,), (3, 5), (2, 1), 6)
  assert layers[1] == Layer(MAX_POOL, (0,), (2, 2), (2, 2), 0)
  assert [layer.reads for layer in layers] == [(IMAGE,), (0,), (IMAGE,), (1, 2)]
  assert network(arch).ends == (3,)
  found = space.count(arch, (7, 8, 3), 10)
  # 7 x 8 by strides (2, 1) is 4 x 8; pooled 2 x 4; the image by strides (1, 3) is 7 x 3; joined as large as either.
  assert found.shapes == ((4, 8, 6), (2, 4, 6), (7, 3, 2), (7, 4, 8))
  assert found.conv_weights == 3 * 5 * 3 * 6 + 3 * 2
  assert found.macs == 3 * 5 * 3 * 6 * (4 * 8) + 3 * 2 * (7 * 3) + 8 * 10
  assert found.params == found.conv_weights + 2 * 6 + 2 * 2 + 2 * 8 + 9 * 10
  # What nothing reads is joined at the end: without the last links layers 1, 2 and 3.
  assert network(arch._replace(links=(1, 0, 0, 0, 0, 0))).ends == (1, 2, 3)


def test_blocks_and_pools_by_hand():
  # Two convolutions, of 3 and of 5 filters, the second reading the first, as blocks of two: layers 0, 1 and 2, 3.
  arch = conv_space(2, (3,), (3,), (3, 5)).decode([0, 0, 0, 0, 0, 1, 1])
  plain = [(IMAGE,), (IMAGE, 0), (0, 1), (0, 1, 2)]
  assert [layer.reads for layer in network(arch, NetworkOptions(block=2)).layers] == plain
  assert network(arch, NetworkOptions(block=2)).ends == (2, 3)  # all of what a block gives
  # From the third layer on, what comes from before is pooled: 2 and 3 are the pools of 0 and 1.
  made = network(arch, NetworkOptions(block=2, pools=(3,)))
  pool = Layer(MAX_POOL, (0,), (2, 2), (2, 2), 0)
  assert made.layers[2:4] == (pool, pool._replace(reads=(1,)))
  assert [layer.reads for layer in made.layers] == [(IMAGE,), (IMAGE, 0), (0,), (1,), (2, 3), (2, 3, 4)]
  found = space.count(arch, (8, 6, 1), 2, NetworkOptions(block=2, pools=(3,), add_filters=4))
  assert found.shapes == ((8, 6, 7), (8, 6, 7), (4, 3, 7), (4, 3, 7), (4, 3, 9), (4, 3, 9))
  assert found.conv_weights == 9 * (1 * 7 + 8 * 7 + 14 * 9 + 23 * 9)
  # What the end joins from before a pool is pooled too, and the image where it is read after one.
  alone = conv_space(2, (3,), (3,), (3, 5)).decode([0, 0, 0, 0, 0, 1, 0])
  made = network(alone, NetworkOptions(pools=(2,)))
  assert [layer.reads for layer in made.layers] == [(IMAGE,), (IMAGE,), (1,), (0,)] and made.ends == (3, 2)


def test_without_skips_layers_read_the_one_before():
  chain = conv_space(3, skips=False)
  arch = chain.decode(np.zeros(chain.length, int))
  assert [layer.reads for layer in layers_of(arch)] == [(IMAGE,), (0,), (1,)]
  # With skips and none taken, each reads the image.
  skipping = conv_space(3)
  alone = skipping.decode(np.zeros(skipping.length, int))
  assert [layer.reads for layer in layers_of(alone)] == [(IMAGE,)] * 3


@pytest.mark.parametrize(
  ('wrong', 'says'),
  [
    ({'filter_heights': (1, 4)}, 'filter_heights .* odd'),
    ({'filter_widths': (0,)}, 'filter_widths'),
    ({'filters': ()}, 'filters'),
    ({'filters': (24, 24)}, 'filters .* different'),
    ({'strides': (0, 1)}, 'strides'),
    ({'max_depth': 0}, 'max_depth'),
    ({'layer_types': ('conv', 'fold')}, 'layer_types .*average pool'),
    ({'rates': (-0.1,)}, 'rates'),
  ],
)
def test_what_is_no_space_is_refused(wrong, says):
  with pytest.raises(ValueError, match=says) as error:
    conv_space(**wrong)
  one_line(error)


def test_a_hyperparameter_that_a_layer_does_not_have_must_be_0():
  arch = TYPED.decode(strings(TYPED, 1)[0], 1)
  assert TYPED.describe(arch).splitlines() == ['training: learning rate 0.1', 'layer 0: type norm']
  with pytest.raises(ValueError, match=re.escape('layer 0 pool) is 2: this space allows 0')):
    TYPED.check(arch._replace(pool=(2,)))
