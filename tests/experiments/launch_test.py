"""Launchers: flags from configs, workdirs, and one clear line for whatever is wrong."""

import dataclasses
import errno
import json
import logging
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from experiments import (
  cell_search,
  conv_search,
  enas_search,
  per_layer_search,
  rank_children,
  sequence_search,
  table_search,
)
from experiments import retrain as retrain_launcher
from experiments.common import arguments, launch, retraining, systems, usage, workdirs
from nas_jax import config, files
from nas_jax.hosts import Ended
from nas_jax.published import ENAS_RNN, NASCELL
from nas_jax.report import rankings
from nas_jax.space import RnnArch, enas_rnn_space, tree_cell_space
from nas_jax.systems import cell, chain, conv, enas_images, enas_rnn, retrain_cell, retrain_conv, retrain_enas, table

ROOT = str(pathlib.Path(__file__).parents[2])


def leave(monkeypatch, capsys, caplog, launcher, *args):
  """Runs a launcher that must refuse its input, without compiling. Returns its one line on stderr."""
  monkeypatch.setattr(sys, 'argv', [launcher.__name__, *args])
  with jax.log_compiles(), caplog.at_level(logging.WARNING), pytest.raises(SystemExit) as left:
    launch.main(launcher.prepare)
  assert left.value.code == 2
  del left  # and with it the frames of the launcher, which hold the lock of its folder
  assert not [line for line in caplog.messages if 'Finished XLA' in line]
  error = capsys.readouterr().err
  assert error.count('\n') == 1 and 'Traceback' not in error
  return error


@pytest.fixture
def refuse(monkeypatch, capsys, caplog):
  # The backend of the tests runs already, with devices of its own.
  monkeypatch.setattr(launch, 'set_up_jax', lambda at_most=None, processes=1: None)
  return lambda launcher, *args: leave(monkeypatch, capsys, caplog, launcher, *args)


def test_a_home_folder_in_a_flag_is_expanded(monkeypatch):
  monkeypatch.setenv('HOME', '/home/someone')
  monkeypatch.setenv('USERPROFILE', '/home/someone')

  def own(values):
    launch.flags.DEFINE_string('workdir', '', 'folder', flag_values=values)
    launch.flags.DEFINE_list('arch', [], 'files', flag_values=values)

  values = arguments.parse(['x', '--workdir=~/runs', '--arch=~/a.json,LSTM'], '', own)
  assert values.workdir == '/home/someone/runs' and values.arch == ['/home/someone/a.json', 'LSTM']
  assert arguments.parse(['x', '~/b.json', 'c~'], '', own, words='arch').arch == ['/home/someone/b.json', 'c~']
  assert arguments.parse(['x'], '', own).workdir == ''


def test_a_field_that_did_not_exist_yet_is_at_its_default():
  saved = config.as_json(cell.smoke())
  del saved['min_count'], saved['max_vocabulary']
  assert not config.differences(saved, cell.smoke())
  assert config.differences(saved, dataclasses.replace(cell.smoke(), min_count=3)) == ['min_count (0 -> 3)']


def test_cores_are_counted_on_every_system(monkeypatch):
  assert launch.cores() >= 1
  monkeypatch.delattr(os, 'sched_getaffinity', raising=False)
  assert launch.cores() == os.cpu_count()


@pytest.mark.parametrize(
  ('flag', 'words'),
  [
    ('--base=65536', ('base (=65536)', 'power of two from 2 to 512')),
    ('--hidden=1000000', ('weights', 'GiB')),
    ('--seed=9223372036854775808', ('seed', 'at most 4294967295')),
    ('--seed=4294967296', ('seed (=4294967296)', 'at most 4294967295')),
    ('--controller_lr=inf', ('controller_lr (=inf)', 'at most 1e+30')),
    ('--entropy_weight=1e308', ('entropy_weight (=1e+308)', 'at most 1e+30')),
    ('--base=6', ('base (=6)', 'power of two')),
    ('--base=0', ('base (=0)', 'at least 2')),
    ('--combine=add,plus', ('combine', 'mult')),
    ('--activate=tanh,tanh', ('activate', 'once')),
    ('--activate=', ('activate', 'at least one')),
    ('--m=0', ('m (=0)', 'at least 1')),
    ('--m=two', ('m=two',)),
    ('--lr=-1', ('lr (=-1', 'greater than 0')),
    ('--lr=nan', ('lr', 'greater than 0')),
    ('--baseline_decay=1.5', ('baseline_decay', 'at most 1')),
    ('--algorithm=evolve', ('algorithm (=evolve)', 'reinforce, random')),
    ('--preset=huge', ('preset', 'demo')),
    ('--hiden=3', ('hiden',)),
    ('stray', ('stray', '--name=value')),
    ('--data_dir=/nowhere', ('data_dir', '/nowhere')),
    ('--dataset=ptb', ('data_dir', 'ptb')),
    ('--dataset=mnist', ("'mnist') is not a text", 'pydoc', 'tiny_shakespeare')),
    ('--batch=100000', ('batch (=100000)', 'bptt')),
    ('--workdir=/dev/null/runs', ('workdir', '/dev/null/runs')),
  ],
)
def test_a_wrong_flag_is_one_line(refuse, tmp_path, flag, words):
  args = ['--preset=smoke', f'--workdir={tmp_path}', flag]
  error = refuse(cell_search, *args)
  assert all(word in error for word in words)
  assert not os.listdir(tmp_path)  # nothing was begun


@pytest.mark.parametrize(
  ('change', 'words'),
  [
    ({'index': [12]}, ("'index' has 1 entry", 'wants 2')),
    ({'index': [12, 15]}, ("'index', entry 1", '15')),
    ({'combine': [0] * 14}, ("'combine' has 14 entries", 'power of two')),
    ({'inject': [0, 1.5]}, ("'inject', entry 1", 'float')),
    ({'activate': None}, ("'activate' is None", 'list')),
    ({'speed': [1]}, ('speed', 'want')),
  ],
)
def test_a_wrong_architecture_is_one_line(refuse, tmp_path, change, words):
  path = tmp_path / 'arch.json'
  found = json.loads(tree_cell_space(8).to_json(NASCELL))
  path.write_text(json.dumps(found | {'arch': found['arch'] | change}))
  error = refuse(cell_search, '--preset=smoke', f'--workdir={tmp_path}/run', f'--beside={path}')
  assert 'arch.json' in error and all(word in error for word in words)


@pytest.mark.parametrize(
  'text', ['', '{', '[]', '{"kind": "conv", "arch": {}}', '{"arch": {"combine": [0, 0, 0]}}', '\xff']
)
def test_what_is_no_architecture_is_one_line(refuse, tmp_path, text):
  (tmp_path / 'arch.json').write_text(text)
  args = ('--preset=smoke', f'--workdir={tmp_path}/run')
  assert 'arch.json' in refuse(cell_search, *args, f'--beside={tmp_path}/arch.json')
  assert 'none.json' in refuse(cell_search, *args, f'--beside={tmp_path}/none.json')


@pytest.mark.parametrize('missing', ['train', 'valid', 'test'])
def test_a_missing_or_empty_text_is_named(refuse, tmp_path, missing):
  for name in ('train', 'valid', 'test'):
    (tmp_path / f'{name}.txt').write_text('some text ' * 50)
  args = ('--preset=smoke', '--dataset=text', f'--data_dir={tmp_path}', f'--workdir={tmp_path}/run')
  (tmp_path / f'{missing}.txt').write_text('')
  assert f'{missing}.txt is empty' in refuse(cell_search, *args)
  (tmp_path / f'{missing}.txt').unlink()
  assert f'{missing}.txt' in refuse(cell_search, *args)


@pytest.mark.parametrize(
  ('split', 'says'), [('valid', 'validation split has 1 token'), ('test', 'test split has 1 tok')]
)
def test_a_split_of_one_character_is_one_line_before_a_retraining(refuse, tmp_path, split, says):
  for name in ('train', 'valid', 'test'):
    (tmp_path / f'{name}.txt').write_text('a' if name == split else 'some text ' * 50)
  args = ('--preset=smoke', '--dataset=text', f'--data_dir={tmp_path}', '--batch=4', '--bptt=5')
  assert says in refuse(retrain_launcher, *args, '--arch=NASCELL', f'--results={tmp_path}/run')


@pytest.mark.parametrize(
  ('flag', 'words'),
  [
    ('--resize=2147483648', ('resize (=2147483648)', 'at most 4096')),
    ('--filter_heights=2,3', ('filter_heights', 'odd')),
    ('--filter_widths=0', ('filter_widths', 'at least 1')),
    ('--filters=many', ('filters', 'ints')),
    ('--strides=1,9', ('strides', '9 is more than', '8 x 8')),
    ('--layer_types=conv,fold', ('layer_types', 'average pool')),
    ('--depth_start=7', ('depth_start (=7)', 'max_depth (=2)')),
    ('--last_epochs=2', ('last_epochs (=2)', 'epochs (=1)')),
    ('--resize=3', ('3 x 3', '4 x 4')),
    ('--max_examples=1', ('valid_share', 'examples')),
    ('--batch=2000', ('batch (=2000)', 'training images')),
    ('--dataset=cifar10', ('data_dir', 'cifar10')),
    ('--dataset=cifar11', ('no set of TensorFlow Datasets', 'did you mean', 'cifar10')),
    ('--beside=none.json', ('none.json',)),
  ],
)
def test_a_wrong_flag_of_a_conv_search_is_one_line(refuse, tmp_path, flag, words):
  error = refuse(conv_search, '--preset=smoke', f'--workdir={tmp_path}', flag)
  assert all(word in error for word in words), error


@pytest.mark.parametrize(
  ('launcher', 'flags', 'words'),
  [
    (conv_search, '--max_depth=100000', ('max_depth (=100000)', '1 to 128')),
    (conv_search, '--filters=1000000', ('weights', 'GiB', 'fewer filters')),
    (conv_search, '--filter_heights=99999 --filter_widths=99999', ('weights', 'GiB', 'smaller ones')),
    (conv_search, '--upsample=1000000', ('upsample (=1000000)', 'at most 4096')),
    (conv_search, '--block=1000000', ('block (=1000000)', 'at most 128')),
    (conv_search, '--m=1000000000', ('m (=1000000000)', 'at most 65536')),
    (conv_search, '--controller_units=1000000', ('controller_units (=1000000)', 'at most 8192')),
    (conv_search, '--controller_layers=1000000', ('controller_layers (=1000000)', 'at most 64')),
    (conv_search, '--reliability_children=1000000000', ('reliability_children', 'at most 10000')),
    (conv_search, '--yardstick_repeats=1000000000', ('yardstick_repeats', 'at most 1000')),
    (per_layer_search, '--max_depth=1000000', ('max_depth (=1000000)', '1 to 128')),
    (per_layer_search, '--max_depth=128 --layers=conv_999_9_1', ('weights', 'GiB', 'fewer channels')),
    (enas_search, '--variant=macro --layers=100000', ('layers (=100000)', '1 to 128')),
    (enas_search, '--variant=macro --filters=1000000', ('weights', 'GiB', 'fewer filters')),
    (enas_search, '--variant=micro --filters=1000000', ('weights', 'GiB', 'fewer filters')),
    (enas_search, '--variant=micro --cells=100000', ('cells (=100000)', 'at most 128')),
    (enas_search, '--variant=micro --blocks=100000', ('blocks (=100000)', '1 to 128')),
    (enas_search, '--variant=recurrent --nodes=100000', ('nodes (=100000)', '1 to 128')),
    (enas_search, '--variant=recurrent --rank_children=1000000000', ('rank_children', 'at most 10000')),
    (cell_search, '--layers=1000000', ('layers (=1000000)', 'at most 128')),
    (retrain_launcher, '--arch=FIGURE_7 --add_filters=1000000', ('weights', 'GiB', 'add_filters')),
    (retrain_launcher, '--arch=ENAS_MICRO --filters=100000', ('weights', 'GiB', 'fewer filters')),
    (retrain_launcher, '--arch=ENAS_MICRO --cells=100000', ('cells (=100000)', 'at most 128')),
  ],
)
def test_a_size_that_is_too_large_is_one_line(refuse, tmp_path, launcher, flags, words):
  place = '--results' if launcher is retrain_launcher else '--workdir'
  flags = [flag.replace('_', ' ') if flag.startswith('--layers=conv') else flag for flag in flags.split()]
  error = refuse(launcher, '--preset=smoke', f'{place}={tmp_path}/run', *flags)
  assert all(word in error for word in words), error
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
  ('flag', 'words'),
  [
    ('--add_filters=-1', ('add_filters (=-1)', 'at least 0')),
    ('--weight_decay=much', ('weight_decay', 'floats')),
    ('--preset=zaremba_small', ('zaremba_small', 'none for networks')),
    ('--tied', ('--tied', 'for cells')),
    ('--weights=100k', ('FIGURE_7 cannot', 'weights (=100k)', 'has 132267')),
    ('--weights=1M --add_filters=1', ('weights', 'both name sizes', 'leave add_filters at (0,)')),
    ('--weights=1M', ()),  # which the preset's own add_filters does not forbid
  ],
)
def test_a_wrong_flag_of_retraining_a_network_is_one_line(refuse, tmp_path, flag, words):
  args = [] if 'preset' in flag else ['--preset=smoke']
  args += ['--arch=FIGURE_7', f'--results={tmp_path}/run', *flag.split()]
  if words:
    error = refuse(retrain_launcher, *args)
    assert all(word in error for word in words), error
  else:
    retrain_launcher.prepare(['retrain', *args])


@pytest.mark.parametrize(
  ('flag', 'words'),
  [
    ('--lr=', ('lr', 'empty list')),
    ('--lr=0.1,fast', ('lr', 'floats')),
    ('--lr=0.1,-1', ('lr (=-1.0)', 'greater than 0')),
    ('--sizes=', ('sizes', 'empty list')),
    ('--sizes=78823', ('weights', 'GiB', '500k')),
    ('--sizes=8,big', ('sizes', "'big'", '4.65M')),
    ('--sizes=0', ('sizes', "'0'")),
    ('--sizes=100', ('tied', 'embedding (=7)')),
    ('--sizes=50', ()),
    ('--dropout=0:0.5', ('dropout', 'embedding:input:recurrent:output')),
    ('--dropout=1', ('dropout', '0.95')),
    ('--sizes=1k', ('parameters (=1000)', 'width 3')),
    ('--vocabulary=9', ('vocabulary (=9)', 'different chars')),
    ('--epochs=0', ('epochs', 'at least 1')),
    ('--arch=', ('--arch', '--workdir')),
    ('--arch=nothing.json', ('nothing.json',)),
    ('--workdir=/nowhere', ('/nowhere/best.json',)),
    ('--results=/dev/null/x', ('results (=', '/dev/null/x')),
    ('--arch=NASCEL', ('NASCEL is neither', 'did you mean NASCELL?', 'ENAS_RNN', 'FIGURE_7', 'ENAS_MICRO')),
    ('--arch=enas_rnn', ('did you mean ENAS_RNN', 'LSTM')),
    ('--preset=char', ('data_dir', 'ptb.char')),
    ('--preset=paper', ('paper', 'none for cells')),
    ('--add_filters=3', ('--add_filters', 'networks')),
    ('--weights=1M', ('--weights', 'networks')),
    ('--weight_decay=1,2', ('weight_decay (=1,2)', 'one float')),
    ('--arch=NASCELL,FIGURE_7', ('FIGURE_7 is a network', 'NASCELL a cell')),
    ('--arch=ENAS_MICRO,FIGURE_7', ('FIGURE_7 is a network of conv_search', 'ENAS_MICRO a network of enas_search')),
    ('--arch=ENAS_RNN,LSTM,XU_CIFAR10', ('XU_CIFAR10 is a network', 'ENAS_RNN a cell')),
  ],
)
def test_a_wrong_flag_of_retrain_is_one_line(refuse, tmp_path, flag, words):
  args = ('--preset=smoke', '--arch=NASCELL', f'--results={tmp_path}/run')
  if 'tied' in words:
    args += ('--tied', '--embedding=7')
  if words:
    error = refuse(retrain_launcher, *args, flag)
    assert all(word in error for word in words), error
  else:
    retrain_launcher.prepare(['retrain', *args, flag])  # the same without a mistake


def test_architectures_of_systems_that_one_module_retrains(refuse, monkeypatch, tmp_path):
  """Each file is read by its own system; known names may belong to several."""
  (tmp_path / 'rnn.json').write_text(enas_rnn_space(2).to_json(RnnArch((1, 3), (0,))))
  (tmp_path / 'tree.json').write_text(tree_cell_space().to_json(NASCELL))
  both = f'{tmp_path}/rnn.json,{tmp_path}/tree.json'
  seen = []
  monkeypatch.setattr(retraining, 'run', lambda system, cfg, data, archs, results, check: seen.append(archs))
  args = ('--preset=smoke', f'--results={tmp_path}/run')
  retrain_launcher.prepare(['retrain', *args, f'--arch={both},ENAS_RNN,LSTM'])(lambda: None)
  assert list(seen[0].values()) == [RnnArch((1, 3), (0,)), NASCELL, ENAS_RNN, 'LSTM']
  error = refuse(retrain_launcher, *args, f'--arch={both},FIGURE_7')
  assert f'FIGURE_7 is a network of conv_search, {tmp_path}/rnn.json a cell of enas_search' in error


def test_other_architectures_given_to_retrain(refuse, tmp_path):
  path = tmp_path / 'conv.json'
  path.write_text('{"kind": "conv", "arch": {"filters": [24]}}')
  assert 'conv.json' in refuse(retrain_launcher, '--preset=smoke', f'--arch={path}', f'--results={tmp_path}/run')
  # A search with fewer sound cells than asked for.
  cell_space = tree_cell_space(2)
  record = {'id': 0, 'tokens': [0] * cell_space.length, 'reward': 1.0, 'perplexity': 9.0, 'failed': None, 'seconds': 1}
  (tmp_path / 'best.json').write_text(rankings.best_json(cell_space, record))
  (tmp_path / 'children.jsonl').write_text(json.dumps(record) + '\n')
  args = ('--preset=smoke', f'--workdir={tmp_path}', f'--results={tmp_path}/run')
  assert 'only 1 different' in refuse(retrain_launcher, *args, '--top=2')
  retrain_launcher.prepare(['retrain', *args])


def test_a_workdir_of_another_system_is_refused(refuse, tmp_path):
  """Whether it was made before origin.json named the system, or since."""
  workdirs.open_config(str(tmp_path / 'old'), cell.smoke())
  workdirs.open_config(str(tmp_path / 'new'), cell.smoke())
  workdirs.note_origin(str(tmp_path / 'new'), 'cell_search', ['x'], cell.smoke(), kind='tree_cell')
  for name in ('old', 'new'):
    error = refuse(conv_search, '--preset=smoke', f'--workdir={tmp_path / name}')
    assert f"{name}') holds a search of cell_search (kind tree_cell): name another --workdir" in error


def test_what_origin_names_is_believed_before_the_fields():
  saved = config.as_json(cell.smoke())
  assert systems.system_of(saved, {}) is systems.CELL
  assert systems.system_of(saved, {'kind': 'conv'}) is systems.CONV
  assert systems.system_of(saved, {'kind': 'tree_cell', 'system': 'sequence'}) is systems.SEQUENCE
  assert systems.system_of(saved, {'kind': 'of a later version'}) is systems.CELL
  assert systems.system_of({'wings': 2}, {}) is None
  for system in systems.SYSTEMS:  # as all were told before
    assert systems.system_of(config.as_json(system.config()), {}) is system


def test_a_folder_of_other_results_is_refused_by_retrain(refuse, tmp_path):
  folder = str(tmp_path / 'run')
  workdirs.open_config(folder, retrain_conv.smoke())
  args = ('--preset=smoke', '--arch=NASCELL', f'--results={folder}')
  error = refuse(retrain_launcher, *args)
  assert 'results (=' in error and 'results of another kind' in error and error.rstrip().endswith('another --results.')
  assert error.count(',') < 5
  workdirs.open_config(str(tmp_path / 'cells'), retrain_cell.smoke())
  args = ('--preset=smoke', '--arch=NASCELL', f'--results={tmp_path}/cells', '--batch=200')
  error = refuse(retrain_launcher, *args)
  assert 'batch (400 -> 200)' in error and '--results' in error and 'workdir' not in error
  other = str(tmp_path / 'other')  # a launcher that was refused may still hold the lock of its folder in this process
  with workdirs.lock(other):
    error = refuse(retrain_launcher, *args[:2], f'--results={other}')
  assert 'in use' in error and '--results' in error and 'workdir' not in error


@pytest.mark.parametrize(
  ('launcher', 'flag', 'more'),
  [
    (cell_search, 'workdir', ['--final_children=0']),
    (retrain_launcher, 'results', ['--arch=NASCELL', '--batch=4', '--bptt=5']),
    (rank_children, 'results', ['--random=3', '--arch=', '--batch=4', '--bptt=5']),
  ],
)
def test_results_of_other_data_are_refused(refuse, tmp_path, launcher, flag, more):
  """The config is the same, but the text in the folder has changed since."""
  data, folder = tmp_path / 'data', tmp_path / 'run'
  data.mkdir()
  flags = ('--preset=smoke', '--dataset=text', f'--data_dir={data}', f'--{flag}={folder}', *more)
  for name in ('train', 'valid', 'test'):
    (data / f'{name}.txt').write_text('abcab' * 200)
  work = launcher.prepare(['x', *flags])
  del work  # and with it the lock of the folder
  (data / 'train.txt').write_text('abcba' * 200)
  said = refuse(launcher, *flags)
  assert 'holds results of other data' in said and f'name another --{flag}' in said


def test_a_workdir_of_another_config_is_refused(refuse, tmp_path):
  workdirs.open_config(str(tmp_path), cell.smoke())
  error = refuse(cell_search, '--preset=smoke', f'--workdir={tmp_path}', '--m=3', '--lr=0.5')
  assert 'm (2 -> 3)' in error and 'lr (0.01 -> 0.5)' in error
  # A budget may change.
  workdirs.open_config(str(tmp_path), dataclasses.replace(cell.smoke(), max_children=99, max_seconds=5.0))


@pytest.mark.parametrize('cfg', [chain.smoke(), enas_images.smoke_macro()])
def test_a_workdir_with_fields_that_were_removed_since_is_resumed(tmp_path, cfg):
  path = tmp_path / 'config.json'
  path.write_text(json.dumps(config.as_json(cfg) | {'block': 1, 'pool_at': [0]}))
  assert workdirs.open_config(str(tmp_path), cfg) == cfg
  saved = json.loads(path.read_text())
  system = systems.system_of(saved, {})
  assert system.config is type(cfg) and config.from_json(system.config, saved) == cfg
  # It was another search if they were not at their defaults.
  path.write_text(json.dumps(config.as_json(cfg) | {'block': 3, 'pool_at': [0]}))
  with pytest.raises(ValueError, match='settings such as block: name another'):
    workdirs.open_config(str(tmp_path), cfg)
  # Where such a field still exists, its default is nothing special.
  path.write_text(json.dumps(config.as_json(conv.smoke())))
  with pytest.raises(ValueError, match=r'block \(1 -> 3\)'):
    workdirs.open_config(str(tmp_path), dataclasses.replace(conv.smoke(), block=3))


@pytest.mark.parametrize(
  'cfg', [enas_images.demo_macro(), enas_images.small_micro(), cell.Config(m=4), chain.demo(), retrain_enas.demo()]
)
def test_a_workdir_without_fields_that_were_added_since_is_resumed(tmp_path, cfg):
  """It is resumed if the config has the values that earlier versions used without a choice."""
  new = ('skip_penalty', 'decay_norms', 'decay_before_clip', 'lr_min', 'known', 'proposals', 'population', 'tournament')
  new += ('queue', 'queue_weight', 'ppo_clip', 'ppo_batches')
  saved = {name: value for name, value in config.as_json(cfg).items() if name not in new}
  assert len(saved) < len(config.as_json(cfg))
  (tmp_path / 'config.json').write_text(json.dumps(saved))
  assert workdirs.open_config(str(tmp_path), cfg) == cfg and config.from_json(type(cfg), saved) == cfg


def test_a_workdir_without_fields_that_were_added_since_is_refused_if_they_matter(tmp_path):
  """It is not resumed with other values; the message names the fields and their earlier values."""
  cfg = enas_images.paper_macro()
  new = {'skip_penalty': 'sum', 'decay_norms': False, 'decay_before_clip': False}
  saved = {name: value for name, value in config.as_json(cfg).items() if name not in new}
  (tmp_path / 'config.json').write_text(json.dumps(saved))
  with pytest.raises(ValueError, match=r'skip_penalty \(sum -> mean\)') as error:
    workdirs.open_config(str(tmp_path), cfg)
  for name in ('decay_norms', 'decay_before_clip'):
    assert f'{name} (False -> True)' in str(error.value)
  old = dataclasses.replace(cfg, **new)
  assert workdirs.open_config(str(tmp_path), old) == old


@pytest.mark.parametrize(
  ('arrays', 'words'),
  [
    ({'ops': np.zeros((3, 2), int), 'reward': np.zeros(2)}, ('reward', '3 rows')),
    ({'ops': np.zeros((2, 2), int), 'reward': np.array([0.0, np.nan])}, ('reward', 'nan', 'row 1')),
    ({'reward': np.zeros(2)}, ('ops',)),
  ],
)
def test_a_wrong_table_is_one_line(refuse, tmp_path, arrays, words):
  np.savez(tmp_path / 't.npz', **arrays)
  error = refuse(table_search, f'--table={tmp_path}/t.npz')
  assert all(word in error for word in words)


def test_other_wrong_calls_of_table_search(refuse, tmp_path):
  assert '--table' in refuse(table_search)
  assert 'nothing.npz' in refuse(table_search, f'--table={tmp_path}/nothing.npz')
  np.savez(tmp_path / 't.npz', ops=np.array([[0, 1]]), reward=np.ones(1))
  args = (f'--table={tmp_path}/t.npz', '--seeds=2', '--evaluations=2')
  assert 'evaluations' in refuse(table_search, *args, '--evaluations=0')
  assert 'm (=0)' in refuse(table_search, *args, '--m=0')
  assert 'json' in refuse(table_search, *args, '--json=/dev/null/x.json')


def test_table_search_writes_what_it_found(monkeypatch, capsys, tmp_path):
  np.savez(tmp_path / 't.npz', ops=np.array([[0, 0], [0, 2], [1, 1]]), reward=np.array([0.1, 0.9, 0.5]))
  out = tmp_path / 'out.json'
  args = [f'--table={tmp_path}/t.npz', '--seeds=4', '--evaluations=64', f'--json={out}', '--algorithm=random']
  monkeypatch.setattr(sys, 'argv', ['table_search', *args])
  launch.main(table_search.prepare)
  found = json.loads(out.read_text())
  assert found['reward_mean'] == pytest.approx(0.9) and found['reward_std'] == 0
  assert len(found['curve']) == 64 and found['curve'] == sorted(found['curve'])
  assert found['test_mean'] is None
  assert '0.90000' in capsys.readouterr().out


def help_of(monkeypatch, capsys, launcher):
  """Returns the output of --help as {group: {flag: entry}}."""
  monkeypatch.setattr(sys, 'argv', ['x', '--help'])
  with pytest.raises(SystemExit) as left:
    launch.main(launcher.prepare)
  assert left.value.code == 0
  _, *parts = re.split(f'({"|".join(usage.GROUPS)}):\n\n', capsys.readouterr().out)
  return {
    group: {
      title.removeprefix('[no]'): ' '.join(text.split())
      for title, text in re.findall(r'  --(\S+)\n((?: {6}.*\n)*)', part)
    }
    for group, part in zip(parts[::2], parts[1::2], strict=True)
  }


@pytest.mark.parametrize(
  ('launcher', 'configs'),
  [
    (cell_search, [cell.Config]),
    (table_search, [table.Config]),
    (retrain_launcher, [retrain_cell.Config, retrain_conv.Config]),
    (conv_search, [conv.Config]),
    (enas_search, [enas_images.MacroConfig, enas_rnn.Config]),
    (per_layer_search, [chain.Config]),
    (sequence_search, [systems.SEQUENCE.config]),
  ],
)
def test_every_field_is_a_flag_with_its_help(capsys, monkeypatch, launcher, configs):
  shown = {name: text for flags in help_of(monkeypatch, capsys, launcher).values() for name, text in flags.items()}
  for item in (item for config_class in configs for item in dataclasses.fields(config_class)):
    assert item.metadata['help'] in shown[item.name]


def test_help_is_grouped_and_shows_what_fits_and_what_presets_have(capsys, monkeypatch):
  shown = help_of(monkeypatch, capsys, cell_search)
  assert list(shown) == list(usage.GROUPS)
  assert list(shown[usage.FIRST])[:4] == ['preset', 'workdir', 'data_dir', 'control']
  assert shown[usage.FIRST]['preset'].endswith('(one of demo, paper, small, smoke) [demo]')
  assert shown[usage.CHILDREN]['optimizer'].endswith('(one of adam, sgd) [paper, small: sgd; demo, smoke: adam]')
  assert shown[usage.CHILDREN]['tied'].endswith('[false]')
  assert shown[usage.CONTROLLER]['baseline_decay'].endswith('(at least 0 and at most 1) [0.95]')
  assert shown[usage.LIMITS]['child_starts'].endswith('(at least 0) [3]')
  # One flag of several configs: what differs is said of each.
  layers = help_of(monkeypatch, capsys, enas_search)[usage.CHILDREN]['layers']
  assert layers.startswith('macro: ') and ' recurrent: ' in layers


@pytest.mark.parametrize(
  ('given', 'near'),
  [
    ('--children=40', '(did you mean --max_children or'),
    ('--hiden=3', '(did you mean --hidden?)'),
    ('--learning_rate=0.1', '(did you mean --lr'),
    ('--nocontroll', '(did you mean --control?)'),
    ('--xyz', 'no flag --xyz: --help lists all'),
  ],
)
def test_an_unknown_flag_is_answered_with_those_like_it(refuse, given, near):
  assert near in refuse(cell_search, given)


def test_flags_lie_over_the_preset():
  define = arguments.search_flags(cell.PRESETS, 'cell_search')
  values = arguments.parse(['x', '--preset=smoke', '--m=7', '--combine=max,add'], '', define, {'': cell.PRESETS})
  cfg = arguments.configure(values, cell.PRESETS)
  assert cfg == dataclasses.replace(cell.smoke(), m=7, combine=('max', 'add'))


@pytest.mark.parametrize(
  ('given', 'wanted'),
  [
    ([], ('reinforce', 'guided', 'avoid')),
    (['--m=2'], ('reinforce', 'guided', 'avoid')),
    (['--algorithm=reinforce'], ('reinforce', 'policy', 'train')),
    (['--algorithm=random', '--known=reuse'], ('random', 'policy', 'reuse')),
    (['--algorithm=pqt', '--proposals=guided'], ('pqt', 'guided', 'train')),
  ],
)
def test_an_algorithm_that_is_named_searches_by_itself(given, wanted):
  presets = {'demo': lambda: cell.Config(proposals='guided', known='avoid')}
  values = arguments.parse(['x', *given], '', arguments.search_flags(presets, 'cell_search'), {'': presets})
  cfg = arguments.configure(values, presets)
  assert (cfg.algorithm, cfg.proposals, cfg.known) == wanted


@pytest.mark.long
def test_searches_in_tables_are_guided_unless_an_algorithm_is_named(monkeypatch, capsys, tmp_path):
  ops = np.array([[i, j, k] for i in range(3) for j in range(3) for k in range(3)])
  np.savez(tmp_path / 't.npz', ops=ops, reward=ops @ [1.0, 2.0, 3.0])
  best = []
  for given in ([], ['--algorithm=random']):
    args = [f'--table={tmp_path}/t.npz', '--seeds=20', '--evaluations=14', f'--json={tmp_path}/out.json', *given]
    monkeypatch.setattr(sys, 'argv', ['table_search', *args])
    launch.main(table_search.prepare)
    best.append(json.loads((tmp_path / 'out.json').read_text()))
  assert [one['proposals'] for one in best] == ['guided', 'policy']
  assert best[0]['reward_mean'] > best[1]['reward_mean'] + 0.5  # 14 of 27 by chance: the second best on average


@pytest.mark.parametrize('preset', cell.PRESETS)
def test_presets_are_sound(preset):
  config.check(cell.PRESETS[preset]())


def test_an_int_is_a_float_but_a_bool_is_no_int():
  config.check(cell.Config(lr=1))
  with pytest.raises(ValueError, match='m '):
    config.check(cell.Config(m=True))
  with pytest.raises(ValueError, match='combine'):
    config.check(cell.Config(combine='add'))


@pytest.mark.parametrize(
  ('error', 'code', 'words'),
  [
    (KeyboardInterrupt(), 130, 'stopped by SIGINT'),
    (OSError(errno.EBUSY, 'Device or resource busy'), 2, 'a file cannot be used'),
  ],
)
def test_what_ends_it_in_start_up_is_one_line(monkeypatch, capsys, error, code, words):
  def prepare(argv):
    raise error

  with pytest.raises(SystemExit) as left:
    launch.main(prepare)
  said = capsys.readouterr().err
  assert left.value.code == code and words in said and said.count('\n') == 1


def test_sigterm_in_start_up_is_one_line(capsys):
  """So that it can be told to other hosts."""

  def prepare(argv):
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(20)

  with pytest.raises(SystemExit) as left:
    launch.main(prepare)
  assert left.value.code == 143 and capsys.readouterr().err.endswith('stopped by SIGTERM before anything was begun.\n')
  assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.parametrize(
  ('error', 'code'),
  [
    (files.Unusable('other results'), 2),
    (OSError(errno.ESTALE, 'Stale file handle'), 74),
    (OSError(errno.ENOSPC, 'No space left on device'), 74),
    (Ended(1, 'host 1: RuntimeError: it failed'), 1),  # that host prints the traceback
  ],
)
def test_what_ends_the_work_is_one_line(monkeypatch, capsys, error, code):
  def work(check):
    raise error

  monkeypatch.setattr(os, '_exit', sys.exit)
  with pytest.raises(SystemExit) as left:
    launch.main(lambda argv: work)
  said = capsys.readouterr().err
  assert left.value.code == code and said.count('\n') == 1 and str(error.args[-1]) in said


def test_ctrl_c_during_imports_is_one_line(tmp_path):
  """A fake of the first package that a launcher imports prints that it is being imported, and waits."""
  (tmp_path / 'absl').mkdir()
  (tmp_path / 'absl' / '__init__.py').write_text("import time\nprint('here', flush=True)\ntime.sleep(60)\n")
  env = os.environ | {'PYTHONPATH': os.pathsep.join((str(tmp_path), ROOT))}
  command = [sys.executable, '-m', 'experiments.cell_search']
  pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE}
  with subprocess.Popen(command, cwd=ROOT, env=env, text=True, **pipes) as process:
    assert process.stdout.readline() == 'here\n'
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
  assert process.returncode == 130 and said == 'stopped by SIGINT before anything was begun.\n'


def test_a_program_that_cannot_be_read_is_removed(tmp_path):
  names = ('jit_a-1-cache', 'jit_a-1-atime', 'jit_a-2-cache', 'jit_ab-1-cache')
  for name in names:
    (tmp_path / name).write_text('')
  warning = "Error reading persistent compilation cache entry for 'jit_a': XlaRuntimeError: torn"
  before = getattr(jax.config, launch.CACHE)
  jax.config.update(launch.CACHE, str(tmp_path))
  try:
    assert launch.drop_damaged_programs('another warning') == ''
    assert sorted(os.listdir(tmp_path)) == sorted(names)
    assert launch.drop_damaged_programs(warning) == 'jit_a'
  finally:
    jax.config.update(launch.CACHE, before)
  assert os.listdir(tmp_path) == ['jit_ab-1-cache']


COMPILED = """
import jax, sys
from experiments.common import launch
jax.config.update('jax_compilation_cache_dir', sys.argv[1])
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
def work(check):
  assert jax.jit(lambda x: x + 1)(2) == 3
launch.main(lambda argv: work)
"""


@pytest.mark.long
def test_a_torn_program_is_kept_anew(tmp_path):
  def run():
    env = os.environ | {'JAX_ENABLE_COMPILATION_CACHE': 'true'}
    done = subprocess.run(
      [sys.executable, '-c', COMPILED, str(tmp_path)], cwd=ROOT, env=env, capture_output=True, text=True, check=True
    )
    (entry,) = tmp_path.glob('*lambda*-cache')
    return entry, done.stderr

  entry, said = run()
  whole = entry.read_bytes()
  assert not said
  entry.write_bytes(whole[: len(whole) // 2])
  entry, said = run()
  assert 'kept anew' in said and said.count('\n') == 1 and len(entry.read_bytes()) > len(whole) // 2
  assert run()[1] == ''


def test_a_full_disk_is_no_wrong_flag(monkeypatch, capsys):
  def prepare(argv):
    raise OSError(errno.ENOSPC, 'No space left on device', 'config.json.part')

  monkeypatch.setattr(os, '_exit', sys.exit)
  with pytest.raises(SystemExit) as left:
    launch.main(prepare)
  assert left.value.code == 74 and 'config.json.part cannot be written' in capsys.readouterr().err
