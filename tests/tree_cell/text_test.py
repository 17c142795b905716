"""Cells written out as Python files."""

import ast
import re
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nas_jax import space, tree_cell
from nas_jax.space import tree_cell_space

IN, H = 3, 4


def random_archs(count, base=4):
  rng, cells = np.random.default_rng(0), tree_cell_space(base, space.COMBINE, space.ACTIVATE)
  return [cells.decode(rng.integers(0, [slot.width for slot in cells.slots])) for _ in range(count)]


def load(arch):
  module = {}
  exec(tree_cell.to_source(arch), module)
  return module


@pytest.mark.parametrize('bias', [False, True])
@pytest.mark.parametrize('arch', [tree_cell.NASCELL, tree_cell.LSTM, *random_archs(6)])
def test_the_file_is_the_cell(x64, arch, bias):
  module = load(arch)
  params = tree_cell.init(jax.random.key(0), arch, IN, H, bias=bias, scale=1.0)
  if bias:
    params['bias'] = jnp.linspace(-1, 1, len(params['bias']))
  carry, xs = (jnp.ones((2, H)), jnp.full((2, H), 0.5)), jax.random.normal(jax.random.key(1), (5, 2, IN))
  with jax.numpy_rank_promotion('allow'):
    found = module['unroll'](params, carry, xs)
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(tree_cell.unroll(params, arch, carry, xs)), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-12)


def parts_written_twice(statements):
  """Returns the calls, sums, differences and products that stand more than once in assignments in Python."""
  kinds = ast.Call | ast.BinOp
  parts = [ast.unparse(part) for part in ast.walk(ast.parse(statements)) if isinstance(part, kinds)]
  return {part for part in parts if parts.count(part) > 1}


@pytest.mark.parametrize('base', [2, 4])
def test_nothing_is_computed_twice(base):
  """In the equations W0 x and U0 h are read as names; in the file they are entries x[0] and h[0]."""
  assert parts_written_twice('a0 = tanh(x0 + h0)\nh_t = tanh(x0 + h0)') == {'x0 + h0', 'tanh(x0 + h0)'}
  for arch in [tree_cell.NASCELL, tree_cell.LSTM, *random_archs(200, base)]:
    lines = re.sub(r'\b([WU])(\d+) ([xh])\b', r'\3\2', tree_cell.equations(arch))
    assert not parts_written_twice(lines), (arch, lines)
    step = re.search(r"get\('bias'.*?\n(.*?)\n  return", tree_cell.to_source(arch), re.DOTALL)[1]
    assert not parts_written_twice(textwrap.dedent(step)), (arch, step)
    names = [line.split(' = ')[0] for line in lines.splitlines()]
    assert len(set(names)) == len(names) and len(names) <= len(arch.combine) + 1


def test_its_weights_are_those_of_tree_cell():
  mine = tree_cell.init(jax.random.key(3), tree_cell.NASCELL, IN, H)
  jax.tree.map(np.testing.assert_array_equal, load(tree_cell.NASCELL)['init'](jax.random.key(3), IN, H), mine)


def test_the_file_needs_only_jax(tmp_path):
  (tmp_path / 'cell.py').write_text(tree_cell.to_source(tree_cell.NASCELL))
  code = (
    'import sys, jax, jax.numpy as jnp, cell; p = cell.init(jax.random.key(0), 3, 4); z = jnp.zeros((1, 4));'
    'print(cell.unroll(p, (z, z), jnp.ones((2, 1, 3)))[1].shape, [m for m in ("flax", "nas_jax") if m in sys.modules])'
  )
  done = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True, env={'PATH': ''})
  assert done.stdout.strip() == '(2, 1, 4) []', done.stderr
