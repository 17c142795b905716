"""The benchmark: its arithmetic by hand, and every section with tiny shapes."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from experiments.bench import machine, searches, show, timing
from experiments.bench.timing import Row, Setup, at_least, at_most

ROOT = pathlib.Path(__file__).parent.parent
SMALL = Setup(repeats=2, small=True)


def test_ratios_are_taken_within_a_repeat():
  """Twice as slow in the second of three repeats, both ways: the ratio does not notice, medians of each would not."""
  taken = iter([2.0, 1.0, 6.0, 2.0, 2.0, 1.0])
  ways = {'old': lambda: next(taken), 'new': lambda: next(taken)}
  found = timing.alternating(ways, 3)
  np.testing.assert_array_equal(found['old'], [2.0, 6.0, 2.0])
  row = timing.row('old against new', found['old'] / found['new'], bar=at_least(2.0))
  assert row.value == 2.0 and row.spread == (2.0, 3.0) and row.met


def test_bars():
  assert Row('', 2.0, bar=at_most(2.0)).met and not Row('', 2.1, bar=at_most(2.0)).met
  assert not Row('', 1.9, bar=at_least(2.0)).met and Row('', 1.0).met is None
  assert show.beyond(at_least(2.0), 3.0) == 1.5 and show.beyond(at_most(2.0), 4.0) == 0.5
  assert not Row('', float('nan'), bar=at_least(2.0)).met and not Row('', float('nan'), bar=at_most(2.0)).met


def test_what_is_shown(tmp_path):
  rows = [Row('one', 12.345, 'ms', at_most(10.0), (11.0, 14.0)), Row('two', 0.98765, note='a note')]
  text = show.table({'part': rows})
  assert 'PART' in text and '12.3 ms' in text and '11.0 to 14.0' in text and '<= 10' in text and 'MISSED' in text
  assert '0.988 x' in text and 'a note' in text
  read = json.loads(show.as_json({'part': rows}, {'repeats': 3}))
  assert read['repeats'] == 3 and read['rows'][0]['bar'] == {'sign': '<=', 'limit': 10.0} and not read['rows'][0]['met']
  for name in ('a.svg', 'b.svg'):
    show.picture({'part': rows}, str(tmp_path / name))
  assert (tmp_path / 'a.svg').read_bytes() == (tmp_path / 'b.svg').read_bytes()


@pytest.mark.parametrize(('value', 'shown'), [(1234.5, '1,234'), (0.04321, '0.0432'), (0.0, '0'), (-2.5, '-2.50')])
def test_figures(value, shown):
  assert show.figure_of(value) == shown


def test_the_table_of_searches_is_additive():
  ops, reward = searches.additive(3, 2)
  assert ops.shape == (8, 3) and len(set(map(tuple, ops))) == 8
  lookup = {tuple(string): value for string, value in zip(ops, reward, strict=True)}
  assert np.isclose(lookup[0, 1, 0] + lookup[1, 0, 1], lookup[0, 0, 0] + lookup[1, 1, 1])


def test_compilations_are_counted():
  import jax
  import jax.numpy as jnp

  def anew(x):
    return jnp.tanh(x) + 1.0

  x, program = jnp.ones(3), jax.jit(anew)
  with timing.compilations() as found:
    program(x), program(x), program(jnp.ones(4))
  assert [each.name for each in found].count('jit(anew)') == 2 and all(each.seconds > 0 for each in found)
  with timing.compilations() as after:
    program(x)
  assert after == [] and len([each for each in found if each.name == 'jit(anew)']) == 2


def test_the_ceilings():
  dense, copying = machine.rows(SMALL)
  assert 0 < dense.value < 1e5 and 0 < copying.value < 1e4
  work, flops = machine.product(8)
  assert flops == 2 * 8**3 * 4 and work() > 0  # four devices


def bench(*args):
  command = [sys.executable, '-m', 'experiments.bench', *args]
  return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_end_to_end(tmp_path):
  path, picture = tmp_path / 'out.json', tmp_path / 'out.png'
  done = bench('searches', '--small', '--repeats=1', f'--json={path}', f'--picture={picture}')
  assert done.returncode == 0, done.stderr
  assert 'MACHINE' in done.stdout and 'SEARCHES' in done.stdout
  found = {row['name']: row for row in json.loads(path.read_text())['rows']}
  assert found['compilations of these']['value'] == 1.0 and found['compilations of these']['section'] == 'searches'
  assert picture.stat().st_size > 1000


def test_what_is_no_section():
  done = bench('celz')
  assert done.returncode == 2 and "bench: there is no section 'celz'" in done.stderr
