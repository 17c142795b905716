"""The rungs of successive halving, by hand."""

import math

import numpy as np
import pytest

from nas_jax import space
from nas_jax.report import model, rungs
from nas_jax.training import halving

SPACE = space.tree_cell_space(2)
METRIC = model.Metric('perplexity', 'perplexity')


def arch(k):
  """One of nine cells that mean different networks."""
  return space.TreeArch((k % 2, k // 2 % 2, 0), (k // 4, 1, 2), (0, 1), (0, 1))


def record(number, perplexity, cell=None, **more):
  tokens = SPACE.encode(arch(number if cell is None else cell)).tolist()
  failed = 'loss' if perplexity is None else None
  return {'id': number, 'tokens': tokens, 'perplexity': perplexity, 'failed': failed, 'seconds': 1.0} | more


# By perplexity: 7, 5, 3, 8, 1, ...; 2 has failed, and 6 is the cell of 7, which did better.
SEARCH = [record(k, p) for k, p in enumerate((9.0, 6.0, None, 4.0, 8.0, 3.0))]
SEARCH += [record(6, 2.5, cell=7), record(7, 2.0), record(8, 5.0)]


def ids(records):
  return [one['id'] for one in records]


@pytest.mark.parametrize(('children', 'sizes'), [(9, [9, 3, 1]), (300, [300, 100, 33]), (8, [8, 2, 1])])
def test_sizes_by_hand(children, sizes):
  assert [halving.size(children, rung, 3) for rung in (1, 2, 3)] == sizes
  assert [halving.longer(rung, 3) for rung in (1, 2, 3)] == [1, 3, 9]


def test_a_third_goes_on_and_of_these_a_third():
  assert ids(rungs.promoted([SEARCH], 3, SPACE, METRIC)) == [7, 5, 3]
  second = [record(7, 1.9), record(5, None), record(3, 1.5)]
  assert ids(rungs.promoted([SEARCH, second], 3, SPACE, METRIC)) == [3]
  higher = model.Metric('perplexity', 'a score', lower=False)
  assert ids(rungs.promoted([SEARCH], 3, SPACE, higher)) == [0, 4, 1]


def test_the_rungs_are_those_of_a_search_that_was_as_long_from_the_start():
  trained = {(2, k): record(k, p) for k, p in ((7, 1.9), (5, 1.8), (3, 1.5))} | {(3, 3): record(3, 1.2)}
  assert [ids(rung) for rung in rungs.of(SEARCH, trained, 3, SPACE, METRIC)] == [list(range(9)), [7, 5, 3], [3]]
  # Three more children, two of them better: 5 and 3 go on no longer, so neither does 3 to the third rung.
  longer = [*SEARCH, record(9, 1.0), record(10, 1.1), record(11, 9.0)]
  found = [ids(rung) for rung in rungs.of(longer, trained | {(2, 9): record(9, 3.0)}, 3, SPACE, METRIC)]
  assert found == [list(range(12)), [9, 7, 5], []]
  assert rungs.of(SEARCH, {}, 3, SPACE, METRIC) == [SEARCH]


def test_the_best_are_of_the_longest_rung():
  each = [SEARCH, [record(7, 1.9), record(5, None), record(3, 9.5)], [record(7, 9.9)]]
  found = rungs.best_first(each, SPACE, METRIC)
  # 5 has failed in its longest training; 8, 1, ... were trained in the search alone.
  assert [(rung, one['id']) for rung, one in found] == [(3, 7), (2, 3), (1, 8), (1, 1), (1, 4), (1, 0)]


def test_the_table_by_hand():
  second = [record(7, 1.0), record(5, 3.0), record(3, 2.0)]  # were 2, 3, 4: the order 1 2 3 becomes 1 3 2
  rows = rungs.rows({'mine': [SEARCH, second, second[:1]]}, lambda rung: f'{3**rung} steps', SPACE, METRIC)
  assert [row[:5] for row in rows] == [
    ('mine, rung 1', '3 steps', 9, 1, 2.0),
    ('mine, rung 2', '9 steps', 3, 0, 1.0),
    ('mine, rung 3', '27 steps', 1, 0, 1.0),
  ]
  np.testing.assert_allclose(rows[1][5], 1 - 6 * (0 + 1 + 1) / (3 * 8))
  assert math.isnan(rows[0][5]) and math.isnan(rows[2][5])  # of one child there is no order
  assert rungs.rows({'mine': [SEARCH]}, str, SPACE, METRIC) == []


def test_too_many_rungs_are_refused():
  cfg = halving.Config(rungs=3, rung_factor=3)
  halving.check(cfg, 9)
  with pytest.raises(ValueError, match=r'rungs \(=3\) of rung_factor \(=3\) want a search of at least 9 children'):
    halving.check(cfg, 8)
