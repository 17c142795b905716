"""The table of `tests/tools/figure6.py`."""

import dataclasses

import numpy as np
import pytest
from tools import figure6, shapes

from experiments.common import systems, workdirs
from nas_jax.search import journal
from nas_jax.systems import conv


def test_each_search_counts_once():
  """Three searches, of which two are ahead of random search after 10 children: by 1, 2 and -3, then by 1, 2 and 3."""
  found = np.array([[[1.0] * 3, [1.0] * 3], [[2.0] * 3, [2.0] * 3], [[-3.0] * 3, [3.0] * 3]])
  rows = figure6.rows(found, 10)
  assert [row[:3] for row in rows] == [(n, k, 3) for n in (10, 20) for k in (1, 5, 15)]
  assert rows[0][3:] == pytest.approx((0.0, (14 / 2 / 3) ** 0.5, 1.0, 2))
  assert rows[3][3:] == pytest.approx((2.0, 3**-0.5, 0.0742, 3), abs=1e-4)  # t = 3.46 with two degrees of freedom


def test_searches_are_compared_by_the_metric_that_they_name(tmp_path):
  """Both searches train the same two networks. By macro F1, which the config names, the order is not that of accuracy.

  The journal has both scores. Child 0 of the search is the best by F1, child 1 that of random search by accuracy.
  """
  cfg = dataclasses.replace(conv.smoke(), metric='f1')
  tokens = [0, 0, 0, 0, 0, 0, 1], [1, 0, 1, 1, 0, 1, 1]
  scores = {'': [(0.5, 0.8), (0.9, 0.2)], 'control': [(0.5, 0.3), (0.6, 0.1)]}
  workdirs.write_config(str(tmp_path), cfg)
  workdirs.note_origin(str(tmp_path), 'conv_search', ['x'], cfg, kind='conv', system='conv')
  for folder, each in scores.items():
    (tmp_path / folder).mkdir(exist_ok=True)
    lines = [
      {'id': k, 'tokens': tokens[k], 'reward': f1**3, 'accuracy': accuracy, 'f1': f1, 'failed': None, 'seconds': 1.0}
      for k, (accuracy, f1) in enumerate(each)
    ]
    journal.writer(str(tmp_path / folder / 'children.jsonl'))(lines)
  np.testing.assert_allclose(figure6.gains(str(tmp_path), 1)[:, 0], [0.5, 0.5])
  made = systems.CONV.make_space(cfg)
  assert list(shapes.of_search(str(tmp_path), 1).values())[:2] == [[made.decode(tokens[0])]] * 2
