"""The table of `tests/tools/figure6.py`."""

import numpy as np
import pytest
from tools import figure6


def test_each_search_counts_once():
  """Three searches, of which two are ahead of random search after 10 children: by 1, 2 and -3, then by 1, 2 and 3."""
  found = np.array([[[1.0] * 3, [1.0] * 3], [[2.0] * 3, [2.0] * 3], [[-3.0] * 3, [3.0] * 3]])
  rows = figure6.rows(found, 10)
  assert [row[:3] for row in rows] == [(n, k, 3) for n in (10, 20) for k in (1, 5, 15)]
  assert rows[0][3:] == pytest.approx((0.0, (14 / 2 / 3) ** 0.5, 1.0, 2))
  assert rows[3][3:] == pytest.approx((2.0, 3**-0.5, 0.0742, 3), abs=1e-4)  # t = 3.46 with two degrees of freedom
