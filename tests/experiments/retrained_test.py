"""The table of `tests/tools/retrained.py`."""

import json

import pytest
from tools import retrained


def row(name, test):
  return {
    'name': name, 'size': '+0', 'parameters': 9, 'curve': [[1.0]], 'seconds': 1.0, 'epochs': 1, 'repeats': 2,
    'valid': [], 'test': test,
  }  # fmt: skip


def test_each_search_counts_once(tmp_path):
  """Three searches: the found network is better by 0.1, 0.2 and 0.3."""
  for k in (1, 2, 3):
    (tmp_path / str(k)).mkdir()
    pair = [row('found', [0.4 - k / 10, 0.6 - k / 10]), row('found', [9.0, 9.0]), row('random', [0.45, 0.55])]
    (tmp_path / str(k) / 'result.json').write_text(json.dumps({'rows': pair, 'setting': ''}))
  folders = [str(tmp_path / str(k)) for k in (1, 2, 3)]
  each = [retrained.scores(folder) for folder in folders]
  assert [one[0] for one in each] == [(9, pytest.approx(0.5 - k / 10)) for k in (1, 2, 3)]
  last = retrained.rows(folders, each)[-1]
  assert last[2::2][:2] == pytest.approx((0.3, 0.5))
  assert last[5:] == pytest.approx((-0.2, 0.1 / 3**0.5, 0.0742), abs=1e-4)  # t = -3.46 with two degrees of freedom
  assert retrained.rows(folders[:1], each[:1]) == [retrained.rows(folders, each)[0]]  # one search has no spread
  with pytest.raises(SystemExit, match='no results of two architectures'):
    retrained.scores(str(tmp_path))


def test_a_training_that_failed_is_left_out_of_the_mean(tmp_path, capsys):
  path = tmp_path / 'result.json'
  path.write_text(json.dumps({'rows': [row('found', [3.0, None]), row('random', [4.0, 5.0])], 'setting': ''}))
  assert retrained.scores(str(tmp_path)) == [(9, 3.0), (9, 4.5)]
  printed = capsys.readouterr().out
  assert 'found against random' in printed and '1 of 2 trainings of found failed, left out' in printed
  path.write_text(json.dumps({'rows': [row('found', [None, None]), row('random', [4.0, 5.0])], 'setting': ''}))
  with pytest.raises(SystemExit, match='cannot be compared'):
    retrained.scores(str(tmp_path))
