"""Numbers in words."""

from nas_jax import words


def test_numbers_agree_with_their_nouns():
  assert [words.counted(n, 'training') for n in (0, 1, 32)] == ['0 trainings', '1 training', '32 trainings']
  assert words.counted(1, 'child', 'children') == '1 child'
  assert words.counted(1296, 'child', 'children') == '1,296 children'
  assert words.counted(8**16 * 225, 'cell') == '6.33e+16 cells'
