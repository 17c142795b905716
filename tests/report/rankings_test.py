"""Rankings and tables."""

import json
import math

import numpy as np
import pytest

from nas_jax import published, space
from nas_jax.report import rankings

SPACE = space.tree_cell_space(2)
SWAPPED = space.TreeArch((1, 0, 0), (1, 0, 2), (0, 1), (1, 0))
TWIN = space.TreeArch((0, 1, 0), (0, 1, 2), (0, 1), (0, 1))  # its leaves exchanged
OTHER = space.TreeArch((0, 0, 0), (0, 1, 2), (0, 1), (0, 1))


def record(number, arch, perplexity, failed=None):
  tokens = SPACE.encode(arch).tolist()
  return {'id': number, 'tokens': tokens, 'reward': 1 / (perplexity or 9), 'perplexity': perplexity, 'failed': failed}


RECORDS = [record(0, SWAPPED, 7.0), record(1, OTHER, 8.0), record(2, TWIN, 6.0), record(3, OTHER, None, 'loss')]


def test_one_network_is_ranked_once_by_its_best_training():
  assert [line['id'] for line in rankings.ranking(RECORDS, SPACE, 'perplexity')] == [2, 1]
  assert [line['id'] for line in rankings.ranking(RECORDS, SPACE, 'perplexity', lower=False)] == [1, 0]


def test_standing_by_hand():
  at = rankings.standing(RECORDS, SPACE, 'perplexity')
  assert (at.best, at.children, at.unique, at.failed) == (6.0, 4, 2, 1)
  assert math.isnan(at.top5)  # two networks are no five


def test_progress_by_hand():
  nan = float('nan')
  assert rankings.progress(RECORDS, SPACE, 'perplexity') == [7, 7, 6, 6]
  # The third child is the first one's network: with k of 2 its 6 takes the place of the 7.
  np.testing.assert_equal(rankings.progress(RECORDS, SPACE, 'perplexity', k=2), [nan, 7.5, 7, 7])
  np.testing.assert_equal(rankings.progress(RECORDS, SPACE, 'perplexity', lower=False, k=2), [nan, 7.5, 7.5, 7.5])


def test_standings_by_hand():
  rows = rankings.standings({'reinforce': RECORDS}, {'known': [3.0, 2.0]}, SPACE, 'perplexity')
  assert [row[:2] for row in rows] == [('reinforce', 6.0), ('known', 2.0)]
  assert [row[-1] for row in rows] == ['4 children, 2 different, 1 failed', '2 trainings, mean 2.500']
  assert rankings.standings({}, {'known': [3.0, 2.0]}, SPACE, 'perplexity', lower=False)[0][1] == 3.0


def test_trainings_that_failed_are_counted_and_do_not_win():
  rows = rankings.standings({}, {'some': [None, 3.0, math.inf], 'all': [None, math.nan]}, SPACE, 'perplexity')
  assert rows[0] == ('some', 3.0, '', '', '3 trainings, 2 failed, mean 3.000')
  assert math.isnan(rows[1][1]) and rows[1][4] == '2 trainings, 2 failed'
  lines = [{'failed': None, 'perplexity': 2.0}, {'failed': 'loss not finite', 'perplexity': None}]
  assert rankings.derived('own', lines, 'perplexity') == [
    ('own, derived', 2.0, '', '', '2 samples, 1 failed, mean 2.000')
  ]
  assert rankings.derived('own', lines[1:], 'perplexity')[0][4] == '1 sample, 1 failed'


def test_best_json_is_an_architecture():
  base8 = space.tree_cell_space(8)
  line = {'id': 3, 'tokens': base8.encode(published.NASCELL).tolist(), 'reward': 0.5}
  text = rankings.best_json(base8, line)
  assert base8.from_json(text) == published.NASCELL
  found = json.loads(text)
  assert set(found) == {'kind', 'space', 'arch', 'tokens', 'reward', 'id'}
  assert space.tree_cell_space(**found['space']).size() == base8.size()


def test_a_table_by_hand():
  text = rankings.table(('name', 'x'), [('a', 1.23456), ('longer', float('nan')), ('c', 7)])
  assert text == 'name        x\na       1.235\nlonger      -\nc           7'


def test_a_mean_and_its_deviation_by_hand():
  assert [rankings.spread(scores) for scores in ([1.0, 2.0, 3.0], [2.0], [])] == ['2.000 ± 1.000', '2.000', '-']
  assert [rankings.spread(scores) for scores in ([1.0, math.inf], [math.inf] * 2)] == ['-', '-']


@pytest.mark.parametrize('records', [[], RECORDS[3:]])
def test_nothing_sound(records):
  assert rankings.ranking(records, SPACE, 'perplexity') == []
  assert math.isnan(rankings.standing(records, SPACE, 'perplexity').best)


def test_numbers_agree_with_their_nouns():
  rows = rankings.standings({'search': RECORDS[:1]}, {'known': [2.5]}, SPACE, 'perplexity')
  assert [row[-1] for row in rows] == ['1 child, 1 different, 0 failed', '1 training, mean 2.500']
