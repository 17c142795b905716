"""The benchmark: its arithmetic by hand, and every section with tiny shapes."""

import json
import os
import pathlib
import subprocess
import sys
import types

from absl import flags
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from testing import one_line

from experiments.bench import __main__ as bench_main
from experiments.bench import (
  cells,
  controller,
  conv,
  devices,
  gpu,
  gpu_parts,
  machine,
  precision,
  presets,
  rivals,
  searches,
  show,
  timing,
  trained,
)
from experiments.bench.timing import Row, Setup, at_least, at_most
from experiments.common import arguments
from nas_jax import space, tree_cell
from nas_jax.space.conv import ConvArch
from nas_jax.space.network import NetworkOptions
from nas_jax.systems import conv as conv_system

ROOT = pathlib.Path(__file__).parents[2]
SMALL = Setup(repeats=1, small=True)


def test_ratios_are_taken_within_a_repeat():
  """In the second of three repeats both ways are twice as slow, which does not change the ratio."""
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
  def anew(x):
    return jnp.tanh(x) + 1.0

  x, program = jnp.ones(3), jax.jit(anew)
  with timing.compilations() as found:
    program(x), program(x), program(jnp.ones(4))
  assert [each.name for each in found].count('jit(anew)') == 2 and all(each.seconds > 0 for each in found)
  with timing.compilations() as after:
    program(x)
    jax.monitoring.record_event_duration_secs('/jax/core/compile/jaxpr_trace_duration', 100.0)
    jax.jit(lambda x: x - 1.0)(x)
  assert len(after) == 1 and 100 < after[0].seconds < 200  # tracing is part of it
  assert len([each for each in found if each.name == 'jit(anew)']) == 2


@pytest.mark.skipif(not hasattr(os, 'sched_setaffinity'), reason='no such call here')
def test_one_core_to_itself():
  before = os.sched_getaffinity(0)
  assert devices.on_one_core(lambda: len(os.sched_getaffinity(0))) == 1
  assert os.sched_getaffinity(0) == before


def test_the_ceilings():
  dense, copying = machine.rows(SMALL)
  assert 0 < dense.value < 1e5 and 0 < copying.value < 1e4
  work, flops = machine.product(8)
  assert flops == 2 * 8**3 * 4 and work() > 0  # four devices


def named(rows, words):
  """The one row with these words in its name."""
  (row,) = [row for row in rows if words in row.name]
  return row


@pytest.fixture(scope='module')
def torch_python():
  pytest.importorskip('torch')
  return sys.executable


@pytest.mark.long
def test_cells_in_all_ways(torch_python):
  """Rivals raise an error if their losses differ."""
  rows = cells.compared(cells.SMALL, SMALL._replace(torch_python=torch_python))
  assert all(np.isfinite(row.value) and row.value > 0 for row in rows)
  assert named(rows, 'against PyTorch eager').unit == named(rows, 'run alone').unit == 'x'
  assert 's of compiling a child' in named(rows, 'against naive JAX').note


@pytest.fixture(scope='module')
def tiny():
  """A task, and two children of it."""
  own = cells.task(cells.SMALL)
  return own, trained.group(own.programs(), *own.children(2), own.data, 2)


@pytest.mark.long
def test_convolutions_in_all_ways(torch_python):
  """Weight decay, momentum and batch norm agree in all implementations, or the losses would differ."""
  rows = list(conv.rows(SMALL._replace(torch_python=torch_python)))
  assert all(np.isfinite(row.value) and row.value > 0 for row in rows)
  assert named(rows, 'against PyTorch eager').value > 0 and named(rows, 'different ones').value == 1.0
  assert named(rows, 'small CIFAR-10').unit == '%'


def test_a_rival_that_does_something_else_is_refused(tmp_path, torch_python, tiny):
  own, group = tiny
  params = jax.tree.map(lambda x: x[0], group.params)
  params['softmax_bias'] = params['softmax_bias'] + (np.arange(7) == 3).astype(np.float32)
  settings = {'layers': 2, 'batch': 3, 'hidden': 4, 'lr': own.cfg.lr, 'clip': own.cfg.clip}
  static = space.unstack(own.children(2)[0])[:1]
  rivals.write(str(tmp_path), static, [params], [own.data.train], kind='cell', steps=2, hyperparameters=settings)
  with pytest.raises(ValueError, match='does not train the same'):
    rivals.ways(str(tmp_path), SMALL._replace(torch_python=torch_python), group.losses[:1])['torch']()


def test_operations_by_hand():
  """2 streams, 3 steps, H = 4, base 2, V = 5: h U is [6, 4] @ [4, 8], the softmax [6, 4] @ [4, 5].

  x W is [5, 4] @ [4, 8].
  """
  size = cells.Size(4, 5, base=2, batch=2, bptt=3)
  assert cells.flops_of(size) == 3 * (2 * 6 * 4 * 8 + 2 * 6 * 4 * 5 + 2 * 5 * 4 * 8)
  of_two = 3 * (3 * 2 * 6 * 4 * 8 + 2 * 6 * 4 * 9 + 2 * 6 * 4 * 8)  # six words of nine
  assert cells.flops_of(size._replace(layers=2, vocabulary=9)) == of_two
  assert cells.products(cells.SMALL)() > 0


def test_bytes_by_hand():
  """32 x 32 pixels. The first layer reads 3 channels and writes 2; the second reads these and writes 5."""
  arch = ConvArch((), (1, 3), (1, 1), (), (), (2, 5), (), (1,), ())
  assert presets.moved(arch, NetworkOptions()) == 4 * 32 * 32 * (7 * (3 + 2) + 11 * (2 + 5))


def test_the_tree_cell_stands_beside_flax():
  rows = list(cells.in_flax(cells.SMALL, SMALL))
  assert [row.unit for row in rows] == ['ms', 'x', 'x', 'x', 'x'] and all(row.value > 0 for row in rows)
  of_tree, of_flax = (  # an LSTM as a tree has twice the products
    sum(leaf.size for leaf in jax.tree.leaves(cell.init(jax.random.key(0), carry, jnp.ones((1, 3)))) if leaf.ndim == 2)
    for cell in (tree_cell.TreeCell(4, tree_cell.LSTM), nn.OptimizedLSTMCell(4))
    for carry in [cell.initialize_carry(jax.random.key(0), (1, 3))]
  )
  assert of_tree == 2 * of_flax


@pytest.mark.long
def test_one_program_for_all_cells(tiny):
  own, _ = tiny
  row = trained.compiled('', own.programs(), *own.children(8), own.data, 2)
  assert row.value == 1.0 and row.met and '8 different' in row.name


def test_a_child_that_cannot_be_timed(tiny):
  own, group = tiny
  assert group.losses.shape == (2, trained.CHECKED) and group.further() > 0
  bad = own.programs()._replace(chunk=lambda data, count, states, *rest: states._replace(failed=states.failed * 0 + 2))
  with pytest.raises(ValueError, match='child 0 failed .loss or gradient not finite.: it cannot be timed'):
    trained.group(bad, *own.children(2), own.data, 2).further()


@pytest.mark.long
def test_devices(tiny):
  own, group = tiny
  each, ratio = devices.memory(own, (1, 2, 4, 8))
  weights = sum(leaf[0].size for leaf in jax.tree.leaves(group.params))
  assert each.value * 2**20 > 4 * weights and 0.5 < ratio.value < 2.0
  alone, against = devices.doubled(own, 1)
  assert alone.value > 0 and against.value > 0


def test_rewards_in_another_precision_are_those_of_the_same_children(monkeypatch):
  """The child that fails in bfloat16 has the least reward in float32. The others earn the same in both."""
  earned = {'float32': [0.1, 0.5, 0.7, 0.6], 'bfloat16': [np.nan, 0.5, 0.7, 0.6]}
  monkeypatch.setattr(precision.reliability, 'rewards', lambda space, evaluate, *_: np.array(earned[evaluate]))
  system = types.SimpleNamespace(
    noun='network',
    presets={'smoke': conv_system.smoke},
    load=lambda cfg, data_dir: None,
    make_problem=lambda cfg, data: types.SimpleNamespace(space=None, precision=cfg.precision),
    alone=types.SimpleNamespace(evaluator=lambda problem, mesh, recovery: problem.precision),
  )
  assert named(precision.ranks(system, SMALL), 'mean reward').value == 1.0


@pytest.mark.long
def test_the_presets():
  rows = list(presets.rows(SMALL))
  assert all(np.isfinite(row.value) and row.value > 0 for row in rows)
  assert named(rows, 'conv.smoke: children').unit == 'an hour'


@pytest.mark.long
def test_the_controller():
  sequences, demo = controller.rows(SMALL)
  assert sequences.unit == 'ms' and sequences.value > 0 and 0 < demo.value < 100


def bench(*args):
  command = [sys.executable, '-m', 'experiments.bench', *args]
  return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


@pytest.mark.long
def test_end_to_end(tmp_path):
  path, picture = tmp_path / 'out.json', tmp_path / 'out.png'
  done = bench('searches', '--small', '--repeats=1', f'--json={path}', f'--picture={picture}')
  assert done.returncode == 0, done.stderr
  assert 'MACHINE' in done.stdout and 'SEARCHES' in done.stdout
  found = {row['name']: row for row in json.loads(path.read_text())['rows']}
  assert found['compilations of these']['value'] == 1.0 and found['compilations of these']['section'] == 'searches'
  assert picture.stat().st_size > 1000


def test_words_beside_flags():
  def own(values):
    flags.DEFINE_list('what', 'all', 'sections', flag_values=values)
    flags.DEFINE_integer('repeats', 5, 'of each', flag_values=values)

  for argv in (
    ['x', 'cells', 'conv', '--repeats=3'],
    ['x', '--repeats=3', 'cells', 'conv'],
    ['x', '--what=cells,conv'],
  ):
    assert arguments.parse(argv, '', own, words='what').what == ['cells', 'conv']
  assert arguments.parse(['x', 'cells', '--repeats=3'], '', own, words='what').repeats == 3
  assert arguments.parse(['x'], '', own, words='what').what == ['all']
  with pytest.raises(ValueError, match="'cells' is no flag"):
    arguments.parse(['x', 'cells'], '', own)


def test_without_pytorch_it_says_so(capsys):
  assert bench_main.with_torch('/nowhere/python') == ''
  assert '/nowhere/python has no PyTorch' in capsys.readouterr().out


def test_what_is_no_section():
  done = bench('celz')
  assert done.returncode == 2 and "bench: there is no section 'celz'" in done.stderr


@pytest.mark.long
def test_one_accelerator_in_parts(tmp_path, monkeypatch, capsys):
  """A finished part is not measured again. A part that hangs is stopped, and its figures are kept."""
  path = str(tmp_path / 'gpu.json')
  parts = {'ask and tell': gpu.PARTS['ask and tell'], 'unknown': gpu.PARTS['paper']}
  monkeypatch.setattr(gpu, 'PARTS', parts)
  gpu.run(SMALL, 0.0, path, {'small': True}, lambda: None)
  found = gpu.read(path)
  assert found['ask and tell'].how == gpu.DONE and found['ask and tell'].rows[0].met
  assert found['unknown'].how == gpu.FAILED and "KeyError: 'unknown'" in found['unknown'].why
  assert json.loads((tmp_path / 'gpu.json').read_text())['small']
  parts['ask and tell'] = gpu_parts.Part(gpu_parts.asking, 0.0)
  monkeypatch.setattr(gpu, 'PARTS', {'ask and tell': parts['ask and tell']})
  capsys.readouterr()
  gpu.run(SMALL, 0.0, path, {}, lambda: None)
  assert capsys.readouterr().out == 'ask and tell: measured before\n'
  gpu.run(SMALL, 0.0, '', {}, lambda: None)
  assert 'ask and tell: stopped' in capsys.readouterr().out
  gpu.run(SMALL, 0.01, '', {}, lambda: None)
  assert capsys.readouterr().out == 'ask and tell: no time is left\n'


@pytest.mark.long
@pytest.mark.parametrize(
  ('flags', 'why'),
  [
    ('--xla_no_such_flag=1', 'Unknown flag in XLA_FLAGS: --xla_no_such_flag=1'),
    ('--xla_gpu_enable_command_buffer=+NONE_SUCH', "Illegal value for --xla_gpu_enable_command_buffer 'NONE_SUCH'"),
  ],
)
def test_flags_that_xla_does_not_know(flags, why, monkeypatch):
  """XLA ends the process of the part, and the result says why."""
  part = gpu.PARTS['ask and tell']._replace(flags=flags)
  monkeypatch.setattr(gpu, 'PARTS', {'ask and tell': part})
  ended = gpu.measured('ask and tell', SMALL, 60.0, lambda _: None)
  assert ended.how == gpu.FAILED and why in ended.why and not ended.rows


def test_what_a_part_says_is_read_back(tmp_path):
  rows = [Row('one', 2.0, 'ms', at_most(3.0), (1.0, 3.0), 'a note'), Row('two', 1.0)]
  ended = {'part': gpu.Ended(gpu.STOPPED, 1.5, rows)}
  gpu.write(str(tmp_path / 'file'), ended, {'jax': '0'})
  assert gpu.read(str(tmp_path / 'file')) == ended and gpu.read('') == {}


def test_figures_of_tiny_shapes_do_not_count_as_those_of_a_measurement(tmp_path):
  """Or a file would say of them that they are not `small`: the parts in it are not measured again."""
  path = str(tmp_path / 'gpu.json')
  facts = {'torch': '', 'repeats': 5, 'small': True, 'jax': jax.__version__}
  gpu.write(path, {name: gpu.Ended(gpu.DONE, 1.0, [Row('one', 2.0)]) for name in gpu.PARTS}, facts)
  flags = ['bench', 'gpu', f'--json={path}', '--torch_python=/nowhere/python']
  bench_main.prepare([*flags, '--small'])
  for other, words in (([], 'small True'), (['--small', '--repeats=3'], 'repeats 5')):
    with pytest.raises(ValueError, match=f'has figures of {words}: give the same flags to go on') as error:
      bench_main.prepare([*flags, *other])
    one_line(error)


def test_a_part_that_gets_less_far_than_before(tmp_path, monkeypatch):
  """The figures of before are kept, unless the part is now done."""
  path, rows = str(tmp_path / 'gpu.json'), [Row('one', 1.0), Row('two', 2.0)]
  attempts = [
    gpu.Ended(gpu.STOPPED, 9.0, rows), gpu.Ended(gpu.FAILED, 1.0, rows[:1], 'why'), gpu.Ended(gpu.DONE, 2.0, rows[:1])
  ]  # fmt: skip
  monkeypatch.setattr(gpu, 'PARTS', {'part': gpu.PARTS['paper']})
  found = []
  for attempt in attempts:
    monkeypatch.setattr(gpu, 'measured', lambda *_, attempt=attempt: attempt)
    gpu.run(SMALL, 0.0, path, {}, lambda: None)
    found.append(gpu.read(path)['part'])
  assert found == [attempts[0], attempts[1]._replace(rows=rows), attempts[2]]


@pytest.mark.long
@pytest.mark.parametrize('name', gpu.PARTS)
def test_each_part_of_one_accelerator(name):
  rows = list(gpu.PARTS[name].rows(SMALL))
  # Networks as tiny as these may all earn the same, and then there is no rank correlation.
  assert rows and all(np.isfinite(row.value) or 'Spearman' in row.name for row in rows)


@pytest.mark.long
def test_one_accelerator_is_measured_alone():
  done = bench('gpu', 'cells')
  assert done.returncode == 2 and 'gpu is measured alone' in done.stderr
