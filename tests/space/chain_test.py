"""Chains of layers."""

import pytest

from nas_jax import space
from nas_jax.space import chain


def test_24_layers_15_deep():
  made = space.chain_space()
  assert made.size() == 24**15 and made.length == 15 and made.size(2) == 24**2
  assert len(set(chain.default_layers())) == 24


def test_a_chain_by_hand():
  made = space.chain_space(('conv 32 3 1', 'residual 128 3 1', 'max pool 2 2'), 4)
  arch = made.decode([1, 2, 0, 0], 3)
  assert arch == chain.ChainArch((112831, 300022, 3231))
  assert [chain.layer_of(code) for code in arch.layers] == [(1, 128, 3, 1), (3, 0, 2, 2), (0, 32, 3, 1)]
  assert made.describe(arch) == 'layer 0: residual 128 3 1\nlayer 1: max pool 2 2\nlayer 2: conv 32 3 1'
  assert made.encode(arch).tolist() == [1, 2, 0, 0] and made.from_json(made.to_json(arch)) == arch


@pytest.mark.parametrize('word', chain.default_layers())
def test_a_code_is_a_layer(word):
  layer = chain.parse(word)
  assert chain.layer_of(chain.code(layer)) == layer
  channels = f'{layer.channels} ' if layer.channels else ''
  assert f'{chain.KINDS[layer.kind]} {channels}{layer.kernel} {layer.stride}' == word


WRONG = (
  'conv',
  'conv 3 1',
  'conv 0 3 1',
  'conv 32 3 1 1',
  'max pool 2',
  'max pool 2 10',
  'conv x 3 1',
  'convolve 1 1 1',
)


@pytest.mark.parametrize('word', WRONG)
def test_words_that_are_no_layer(word):
  with pytest.raises(ValueError, match='is no layer: want conv or residual') as error:
    space.chain_space((word,))
  assert '\n' not in str(error.value)


@pytest.mark.parametrize(
  ('wrong', 'words'),
  [
    ({'layers': ()}, 'at least one'),
    ({'layers': ('conv 32 3 1', 'conv 32 3 1')}, 'each once'),
    ({'max_depth': 0}, 'max_depth .=0. must be'),
  ],
)
def test_what_is_no_space(wrong, words):
  with pytest.raises(ValueError, match=words):
    space.chain_space(**wrong)
