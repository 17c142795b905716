"""The shapes that `tests/tools/shapes.py` counts in networks."""

from tools import shapes

from nas_jax import published, space


def test_windows_and_skips_by_hand():
  """Four layers, of which the second is a pool: three windows, one of them rectangular.

  Layer 1 reads 0; layer 2 reads 0; layer 3 reads 0 and 2.
  """
  arch = space.ConvArch(
    (0, 1, 0, 0), (3, 0, 1, 5), (3, 0, 3, 5), (), (), (2, 0, 2, 2), (0, 2, 0, 0), (1, 1, 0, 1, 0, 1), ()
  )
  found = shapes.count([arch])
  assert found == shapes.Shapes(rectangular=(1, 3), near=(2, 3), one_step=(1, 2), longer=(1, 1))
  assert shapes.count([arch, arch]).near == (4, 6)
  assert shapes.shares(found) == [1 / 3, 2 / 3, 0.5, 1.0]


def test_figure_7():
  """Each layer reads the one before it, and 11 of 13 read the one before that."""
  found = shapes.count([published.FIGURE_7])
  assert (found.near, found.one_step) == ((14, 14), (11, 13)) and found.rectangular[1] == 15
  assert sum(of for _, of in found[1:]) == 15 * 14 // 2
