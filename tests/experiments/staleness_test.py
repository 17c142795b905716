"""The study of stale gradients: the numbers that it reports."""

import json

import numpy as np
import pytest
import testing

from experiments import staleness
from experiments.staleness import Case, Table


def test_when_the_level_is_reached_and_how_it_ends():
  """One seed of 300 children, two at a time: first they earn 0.5, the mean of the table, then 1.0."""
  table = Table(np.array([0.0, 0.5, 0.5, 1.0]))
  reward = np.where(np.arange(300) < 150, 0.5, 1.0).reshape(1, 150, 2)
  found = staleness.summary(table, reward, 10.0 + np.arange(150)[None])
  # The mean of the last hundred is 0.6 of the way when sixty of them earn 1.0: after 210 children, which are 105 pairs.
  assert found['children'] == 210 and found['time'] == 114.0
  assert found['end'] == pytest.approx(0.75) and found['spread'] == 0.0
  assert found['curve']['children'][-1] == 300 and found['curve']['share'][-1] == pytest.approx(1.0)
  never = staleness.summary(table, np.full((1, 150, 2), 0.5), np.arange(150.0)[None])
  assert never['children'] is None and never['time'] is None and never['end'] == 0.0


def test_made_tables_have_the_best_at_one_and_noise_as_large_as_they_vary():
  tables = staleness.made()
  for one in tables.values():
    assert one.reward.shape == (3**8,) and one.reward.min() == 0.0 and one.reward.max() == 1.0
  assert tables['pairs, noise'].noise == pytest.approx(tables['pairs'].reward.std())
  assert tables['pairs'].noise == tables['sum'].noise == 0.0


def test_another_table_is_refused(tmp_path):
  np.savez(tmp_path / 'table.npz', ops=np.array([[0, 1], [1, 0]]), reward=np.array([0.1, 0.2]))
  with pytest.raises(ValueError, match='eight|8 tokens') as error:
    staleness.prepare(['staleness', f'--table={tmp_path}/table.npz'])
  testing.one_line(error)
  with pytest.raises(ValueError, match='sum.npz.* has the name of a made one') as error:
    staleness.prepare(['staleness', f'--table={tmp_path}/sum.npz'])
  testing.one_line(error)
  with pytest.raises(ValueError, match='json') as error:
    staleness.prepare(['staleness', f'--json={tmp_path}/none/found.json'])
  testing.one_line(error)


@pytest.mark.long
def test_a_study_learns_and_is_drawn(tmp_path):
  """A synchronous search, and one with late shards."""
  cases = Case(1, 1), Case(5, 1, 2, (0, 3), 'late')
  found = [staleness.study(case, staleness.made(), 2, 1200) for case in cases]
  for each in found:
    assert each['tables']['sum']['end'] > 0.5 and each['tables']['sum']['time'] > 1.0
  assert found[0]['tables']['sum']['staleness'] == 0.0 < found[1]['tables']['sum']['staleness']
  assert staleness.as_table(found).count('\n') == 3 and json.loads(json.dumps(found))
  staleness.draw(found, str(tmp_path / 'picture.svg'))
  assert (tmp_path / 'picture.svg').read_text().endswith('</svg>\n')
