"""The best different architectures of a search in one file."""

import json
import shlex

import pytest
import testing

from experiments import retrain
from experiments.common import arch_files, arguments, prepare_search, reports, systems, top, workdirs
from nas_jax import space
from nas_jax.report import rankings
from nas_jax.search import journal
from nas_jax.systems import cell, conv, retrain_conv

CFG = conv.smoke()
MADE = conv.make_space(CFG)


def record(number, tokens, accuracy, reward=None, failed=None):
  line = {'id': number, 'tokens': tokens, 'reward': accuracy if reward is None else reward, 'accuracy': accuracy}
  return line | {'failed': failed, 'seconds': 1.0}


# Tokens of this space: for each layer height, width, filters, and then the link.
A, B, C = [0, 0, 0, 0, 0, 0, 1], [1, 0, 1, 1, 0, 1, 1], [0, 0, 1, 0, 0, 1, 0]
RECORDS = [
  record(0, A, 0.5, 0.9), record(1, B, 0.7, 0.8), record(2, B, 0.6, 0.1), record(3, C, 0.9, failed='too long'),
  record(4, C, 0.1, 0.85),
]  # fmt: skip


@pytest.fixture
def workdir(tmp_path):
  """The workdir of a search of before there was a top.json, or costs in the journal."""
  folder = tmp_path / 'run'
  workdirs.open_config(str(folder), CFG)
  command = ['x', '--preset=smoke', '--data_dir=/my data']
  workdirs.note_origin(str(folder), 'conv_search', command, CFG, kind='conv', sha256='5ad')
  journal.writer(str(folder / 'children.jsonl'))(RECORDS)
  (folder / 'best.json').write_text(rankings.best_json(MADE, RECORDS[0]))
  return folder


def archs(path):
  return list(arch_files.read_archs(str(path)).values())


def test_the_best_of_each_architecture_best_first(workdir):
  assert top.write(str(workdir), systems.CONV, CFG, 2) == 2
  assert archs(workdir / 'top.json') == [MADE.decode(B), MADE.decode(A)]
  assert [one['id'] for one in json.loads((workdir / 'top.json').read_text())] == [1, 0]
  assert top.write(str(workdir), systems.CONV, CFG, 9) == 3 and len(archs(workdir / 'top.json')) == 3
  # Where the cost shapes the reward, the reward decides.
  shaped = conv.smoke()
  shaped.cost, shaped.cost_target = 'weights', 100
  top.write(str(workdir), systems.CONV, shaped, 9)
  assert archs(workdir / 'top.json') == [MADE.decode(A), MADE.decode(C), MADE.decode(B)]
  assert top.write(str(workdir), systems.CONV, CFG, 0) == 0 and not (workdir / 'top.json').exists()


def test_the_command_that_is_printed_trains_them(workdir):
  top.write(str(workdir), systems.CONV, CFG, 2)
  said = top.said(str(workdir), systems.CONV, CFG)
  assert said.startswith(f'the best 2 different networks are in {workdir}/top.json; to train them to the end:\n')
  command = shlex.split(said.splitlines()[1])
  assert command[:3] == ['python', '-m', 'experiments.retrain'] and '--data_dir=/my data' in command
  values = arguments.parse(command[2:], '', retrain.own_flags, {'': retrain_conv.PRESETS})
  assert values.preset == 'smoke' and values.arch == [str(workdir / 'top.json')]
  assert retrain.system_of(values.arch[0]) is systems.CONV
  named = arch_files.named_archs(values.arch[0], retrain.known_archs())
  assert named == {f'{workdir}/top.json 1': MADE.decode(B), f'{workdir}/top.json 2': MADE.decode(A)}


def test_the_command_names_the_data_of_the_search(workdir):
  other = conv.smoke()
  other.dataset, other.resize = 'cifar10', 16
  command = top.retrain_command('--arch=F', systems.CONV, other, {'command': 'python -m x --preset small --resize=16'})
  own = retrain_conv.PRESETS['small']()
  assert command.startswith('python -m experiments.retrain --preset=small --arch=F')
  assert ('--dataset' in command) == (own.dataset != 'cifar10') and ('--resize' in command) == (own.resize != 16)
  assert '--dataset=cifar10' in top.retrain_command('--arch=F', systems.CONV, other, {})  # the preset is demo
  other.whiten, other.valid_share, other.pad, other.max_examples = 'channel', 0.3, 2, 50
  command = top.retrain_command('--arch=F', systems.CONV, other, {})
  assert all(word in command for word in ('--whiten=channel', '--valid_share=0.3', '--pad=2'))
  assert '--max_examples' not in command
  words = cell.demo()
  words.dataset, words.level, words.min_count, words.max_vocabulary = 'text', 'word', 2, 100
  command = top.retrain_command('--arch=F', systems.CELL, words, {'command': 'x --preset=demo'})
  assert command.endswith('--preset=demo --arch=F --dataset=text --level=word --min_count=2 --max_vocabulary=100')


def test_the_command_builds_the_networks_of_the_search():
  command = shlex.split(top.retrain_command('--arch=F', systems.CONV, conv.paper_v3(), {'command': 'x'}))
  values = arguments.parse(command[2:], '', retrain.own_flags, {'': retrain_conv.PRESETS})
  cfg = arguments.configure(values, retrain_conv.PRESETS)
  assert (cfg.block, cfg.pool_at, cfg.norm_first) == (3, (13, 24), True)
  other = conv.smoke()
  other.norm_first = False
  command = shlex.split(top.retrain_command('--arch=F', systems.CONV, other, {'command': 'x --preset=smoke'}))
  values = arguments.parse(command[2:], '', retrain.own_flags, {'': retrain_conv.PRESETS})
  assert not arguments.configure(values, retrain_conv.PRESETS).norm_first


def test_a_variant_with_a_recipe_of_its_own_is_trained_by_it():
  for system, preset in ((systems.MACRO, 'paper_macro'), (systems.MICRO, 'paper')):
    command = top.retrain_command('--arch=F', system, system.presets['paper'](), {'command': 'x --preset=paper'})
    assert f' --preset={preset} ' in command


def test_the_report_of_a_search_of_before(workdir):
  page = reports.make(str(workdir))
  assert 'Pareto' not in page and 'top.json' not in page and 'multiply-adds' not in page
  reports.write_top(str(workdir), 3)
  page = reports.make(str(workdir))
  assert 'Train the best 3 different networks to the end' in page and '<a href="top.json">' in page
  (workdir / 'children.jsonl').unlink()
  with pytest.raises(ValueError, match=r'top \(=3\): no child'):
    reports.write_top(str(workdir), 3)


@pytest.mark.parametrize(
  ('text', 'words'),
  [
    ('[]', 'empty list'),
    ('[{"kind": "conv"}]', 'arch'),
    ('[3]', 'F.json: '),
    ('[{"kind": "tree_cell", "arch": {}}]', 'want conv'),
  ],
)
def test_a_list_that_is_none_of_architectures_is_one_line(tmp_path, text, words):
  path = tmp_path / 'F.json'
  path.write_text(text)
  with pytest.raises(ValueError, match=words) as error:
    arch_files.named_archs(str(path), {}, 'conv')
  assert '\n' not in str(error.value) and 'F.json' in str(error.value)


def test_architectures_of_two_kinds_in_one_file_are_refused(tmp_path):
  path, cells = tmp_path / 'F.json', cell.make_space(testing.cell_config())
  tree = cells.to_json(cells.decode([0] * cells.length))
  path.write_text(f'[{MADE.to_json(MADE.decode(A))}, {tree}]')
  with pytest.raises(ValueError, match="of kind 'conv' and 'tree_cell': want one of"):
    retrain.system_of(str(path))
  assert space.kind_of(tree) == 'tree_cell'


@pytest.mark.parametrize(('system', 'flag'), [(systems.CELL, 'max_weights'), (systems.MACRO, 'cost')])
def test_bounds_that_mean_nothing_are_refused_in_one_line(system, flag):
  others = systems.ENAS if system is systems.MACRO else (system,)
  with pytest.raises(ValueError, match=f'no flag --{flag} here, it is one of conv_search and per_layer') as error:
    prepare_search.prepare(others, '', ['x', f'--{flag}=5'])
  assert '\n' not in str(error.value)
