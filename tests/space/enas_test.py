"""The spaces of ENAS."""

import math

import jax
import numpy as np
import pytest

from nas_jax import published, space
from nas_jax.controller import lstm_controller, uniform_controller
from nas_jax.space import enas


def test_sizes():
  assert space.enas_macro_space().size() == 6**12 * 2**66 and f'{6**12 * 2**66:.1e}' == '1.6e+29'
  assert space.enas_micro_space().size() == (5**5 * math.factorial(6)) ** 4
  assert (
    space.enas_rnn_space().size() == 4**12 * math.factorial(11) and f'{4**12 * math.factorial(11):.1e}' == '6.7e+14'
  )
  # The formulas of the paper, which count other things.
  assert f'{(5 * math.factorial(5)) ** 4:.1e}' == '1.3e+11' and f'{4**12 * math.factorial(12):.1e}' == '8.0e+15'


def test_a_macro_network_by_hand():
  made = space.enas_macro_space(3, ('sepconv 3', 'max pool 3'))
  arch = made.decode([1, 0, 1, 1, 0, 1])
  assert arch == space.MacroArch((5, 1, 5), (1, 0, 1))
  assert made.describe(arch) == (
    'layer 0: operation max pool 3\nlayer 1: operation sepconv 3, skips 0\nlayer 2: operation max pool 3, skips 1'
  )


def test_a_recurrent_cell_by_hand():
  made = space.enas_rnn_space(3)
  arch = made.decode([0, 0, 1, 1, 3])
  assert arch == space.RnnArch((1, 3, 2), (0, 1))
  assert (
    made.describe(arch) == 'node 0: activate tanh\nnode 1: reads 0, activate relu\nnode 2: reads 1, activate sigmoid'
  )


def test_published_cells_are_of_the_spaces():
  micro, rnn = space.enas_micro_space(), space.enas_rnn_space()
  for made, arch in ((micro, published.ENAS_MICRO), (rnn, published.ENAS_RNN)):
    assert made.decode(made.encode(arch)) == arch and made.from_json(made.to_json(arch)) == arch
  released = [int(token) for token in '0 0 0 1 1 2 1 2 0 2 0 5 1 1 0 6 1 8 1 8 1 8 1'.split()]
  assert rnn.encode(published.ENAS_RNN).tolist() == released
  assert enas.loose_ends(published.ENAS_RNN.previous, 12) == (3, 4, 7, 9, 10, 11)
  assert enas.loose_ends(published.ENAS_MICRO.normal_input, 7) == (2, 3, 4, 5, 6)
  assert enas.loose_ends(published.ENAS_MICRO.reduction_input, 7) == (2, 4, 5, 6)


@pytest.mark.parametrize('made', [space.enas_macro_space(4), space.enas_micro_space(2), space.enas_rnn_space(4)])
def test_a_controller_writes_any_of_it(made):
  keys = jax.random.split(jax.random.key(0), 64)
  theta = lstm_controller(made, 8, 1).init(keys[0])
  tokens = jax.vmap(lambda key: lstm_controller(made, 8, 1).sample(theta, key))(keys)
  for row in np.asarray(tokens):
    made.check(made.decode(row))
  assert (np.asarray(tokens).max(0) > 0).sum() >= made.length - 1  # but for a pointer with nowhere else to point
  log_prob = uniform_controller(made).log_prob((), tokens[0]).sum()
  np.testing.assert_allclose(log_prob, -math.log(made.size()), rtol=1e-5)


@pytest.mark.parametrize(
  ('make', 'words'),
  [
    (lambda: space.enas_macro_space(0), r'layers \(=0\)'),
    (lambda: space.enas_macro_space(2, ('conv 9',)), 'operations .*conv 3'),
    (lambda: space.enas_micro_space(-1), 'blocks'),
    (lambda: space.enas_rnn_space(2, ('tanh', 'tanh')), 'activate .*each once'),
    (
      lambda: space.enas_rnn_space(1).from_json('{"kind": "enas_rnn", "arch": {"activate": [9], "previous": []}}'),
      'is 9',
    ),
  ],
)
def test_what_cannot_be_is_one_line(make, words):
  with pytest.raises(ValueError, match=words) as error:
    make()
  assert '\n' not in str(error.value)


def test_what_a_block_reads_is_called_by_its_name():
  made = space.enas_micro_space(blocks=2)
  arch = made.decode([0, 1, 0, 2, 2, 1, 3, 4, 1, 0, 4, 4, 0, 2, 1, 1])
  assert made.describe(arch).splitlines() == [
    'normal block 0: left reads h[k-2], right reads h[k-1], left operation sepconv 3, right operation average pool 3',
    'normal block 1: left reads block 0, right reads h[k-1], left operation max pool 3, right operation identity',
    'reduction block 0: left reads h[k-1], right reads h[k-2], left operation identity, right operation identity',
    'reduction block 1: left reads h[k-2], right reads block 0, left operation sepconv 5, right operation sepconv 5',
  ]
