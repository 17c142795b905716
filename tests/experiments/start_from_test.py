"""Searches that start from files of all kinds: architectures are told or trained first, and recorded once."""

import dataclasses
import json
import os
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from testing import cell_config, conv_config, one_line, random_tokens, sequence_config

from experiments.common import search_flow, stages, start_from, systems, workdirs
from nas_jax import files, published
from nas_jax.report import rankings
from nas_jax.search import journal
from nas_jax.systems import cell
from nas_jax.training.recovery import NO_RECOVERY

CFG = cell_config(activate=('tanh', 'relu'))
SHA = 'ab' * 32


def target(cfg=CFG, most=2, sha256=SHA, system=systems.CELL):
  return start_from.Target(system, cfg, sha256, system.make_space(cfg), most)


@pytest.fixture
def other(tmp_path):
  """The workdir of a search with `CFG`: six children; the second failed, the last repeats the first's tokens."""
  folder = tmp_path / 'other'
  workdirs.open_config(str(folder), CFG)
  workdirs.note_origin(str(folder), 'cell_search', [], CFG, kind='tree_cell', sha256=SHA)
  tokens = random_tokens(target().space, 6)
  tokens[5] = tokens[0]
  records = [
    {'id': k, 'tokens': t.tolist(), 'reward': r, 'perplexity': 1 / r, 'failed': None, 'seconds': 0.5}
    for k, (t, r) in enumerate(zip(tokens, (0.1, 0.6, 0.5, 0.3, 0.2, 0.4), strict=True))
  ]
  records[1] |= {'reward': 0.0, 'failed': 'loss became NaN'}
  journal.writer(str(folder / 'children.jsonl'))(records)
  return folder


def read(*paths, to=None):
  return start_from._read([str(path) for path in paths], to or target())


def rows(folder):
  return [record['tokens'] for record in journal.read(str(folder / 'children.jsonl')).values()]


@pytest.mark.parametrize(
  'changes', [{}, {'controller_lr': 0.1, 'm': 3, 'seed': 9}, {'max_children': 99, 'yardstick_repeats': 7}]
)
def test_children_that_were_trained_alike_are_told(other, changes):
  found = read(other, to=target(dataclasses.replace(CFG, **changes)))
  assert [record['tokens'] for record in found.told] == rows(other) and not found.first
  assert [record['failed'] is None for record in found.told] == [True, False, True, True, True, True]
  assert 'told of 6 children' in found.said[0]
  measured = start_from.measured(found)
  assert list(measured) == [-6, -5, -4, -3, -2, -1] and measured[-4]['perplexity'] == 2
  assert sum(record['seconds'] for record in measured.values()) == 0


@pytest.mark.parametrize(
  ('changes', 'sha256', 'words'),
  [({'steps': 77}, SHA, 'steps'), ({'lr': 0.5}, SHA, 'lr'), ({}, 'cd' * 32, 'other data')],
)
def test_of_children_that_were_trained_otherwise_the_best_are_trained_first(other, changes, sha256, words):
  found = read(other, to=target(dataclasses.replace(CFG, **changes), sha256=sha256))
  tokens = rows(other)
  assert not found.told and found.first == [tokens[2], tokens[5]]  # 0.5 and 0.4; what failed is none of the best
  assert words in found.said[0] and 'best 2' in found.said[0]
  many = read(other, to=target(dataclasses.replace(CFG, **changes), sha256=sha256, most=9))
  assert many.first == [tokens[k] for k in (2, 5, 3, 4)]  # the first has the tokens of the sixth


def test_children_of_the_random_search_are_told_too(other, tmp_path):
  """Earlier versions noted no data for them. Then they may be of any data, which is said."""
  cfg, control = CFG, dataclasses.replace(CFG, algorithm='random')
  begun = stages.Run(systems.CELL, cfg, SimpleNamespace(sha256=SHA), None, str(tmp_path), NO_RECOVERY, {}, None, None)
  folder = search_flow.open_control(begun, control)
  assert folder == search_flow.open_control(begun, control) == str(tmp_path / 'control')
  shutil.copy(other / 'children.jsonl', folder)
  assert [record['tokens'] for record in read(folder).told] == rows(other)
  assert 'other data' in read(folder, to=target(sha256='cd' * 32)).said[0]
  os.remove(os.path.join(folder, 'origin.json'))
  found = read(folder)
  assert not found.told and 'data not recorded' in found.said[0]


def test_cells_of_language_models_are_trained_first_to_read_sequences(other):
  """Even with equal data the rewards are not comparable, as those of language models come from perplexities."""
  cfg = sequence_config(activate=CFG.activate, max_children=6)
  found, tokens = read(other, to=target(cfg, system=systems.SEQUENCE)), rows(other)
  assert not found.told and found.first == [tokens[2], tokens[5]] and 'by cell_search' in found.said[0]


def test_the_same_architectures_in_a_larger_and_in_a_smaller_space(other):
  larger = target(dataclasses.replace(CFG, activate=('sigmoid', 'relu', 'identity', 'tanh')))
  found, small = read(other, to=larger), target().space
  archs = [small.decode(tokens) for tokens in rows(other)]
  assert [larger.space.decode(record['tokens']) for record in found.told] == archs
  assert 'told of 6' in found.said[0]
  smaller = target(dataclasses.replace(CFG, activate=('tanh',)))
  with pytest.raises(ValueError, match='no child of this space .child 0: arch field') as error:
    read(other, to=smaller)
  one_line(error)
  mixed = target(dataclasses.replace(CFG, combine=('add',)))
  within = [all(code == 0 for code in (*arch.combine, arch.inject[0])) for arch in archs]
  if any(within):
    assert f'{within.count(False)} are not of this space' in read(other, to=mixed).said[0]


def test_a_file_and_what_is_published_are_trained_first(tmp_path):
  made, tokens = target().space, random_tokens(target().space, 1)[0]
  best = tmp_path / 'best.json'
  best.write_text(rankings.best_json(made, {'id': 3, 'tokens': tokens.tolist(), 'reward': 9.0}))
  found = read(best)
  assert found.first == [tokens.tolist()] and not found.told
  large = target(dataclasses.replace(CFG, base=8, activate=cell.Config().activate))
  found = read('published', to=large)
  assert [large.space.decode(tokens) for tokens in found.first] == [published.NASCELL, published.LSTM]
  assert found.said == ['published: NASCELL, LSTM trained first']
  assert read('LSTM', to=large).first == found.first[1:]
  for path, words in (('published', 'nothing that this search can train'), (tmp_path / 'none.json', 'none.json')):
    with pytest.raises(ValueError, match=words) as error:
      read(path)
    one_line(error)
  best.write_text('{"kind": "conv", "arch": {}}')
  with pytest.raises(ValueError, match=r'best.json: kind is .conv'):
    read(best)


def test_what_comes_after_children_have_grown_deeper_is_left_out_and_said(tmp_path):
  cfg = conv_config(m=2, depth_start=1, depth_step=1, depth_every=2)
  to, path = target(cfg, system=systems.CONV), tmp_path / 'top.json'
  tokens = np.zeros((3, to.space.length), int)
  tokens[1, 0] = tokens[2, 2] = 1
  records = [{'id': k, 'tokens': row.tolist(), 'reward': 1.0, 'depth': 1} for k, row in enumerate(tokens)]
  path.write_text(f'[{",".join(rankings.best_json(to.space, record) for record in records)}]')
  assert read(path, to=to).first == tokens.tolist()
  for _ in range(2):  # from the file, and from start.json, which earlier versions wrote with all of them as well
    found = start_from.open_start(str(tmp_path), [str(path)], to)
    assert found.first == tokens[:2].tolist()
    assert found.said == [
      f'{path}: trained first',
      'only 2 of 3 architectures: they have 1 layer, and later children have more; with --depth_every=3 all are '
      'trained first',
    ]
  start_from.begin(systems.CONV.alone.search(to.space, cfg, lambda batch: None), found)
  (tmp_path / 'start.json').unlink()
  enough = to._replace(cfg=dataclasses.replace(cfg, depth_every=3))
  assert start_from.open_start(str(tmp_path), [str(path)], enough).first == tokens.tolist()


def test_what_is_told_is_not_trained_first_again(other, tmp_path):
  best = tmp_path / 'best.json'
  best.write_text(rankings.best_json(target().space, {'id': 2, 'tokens': rows(other)[2], 'reward': 0.5}))
  found = read(other, best)
  assert len(found.told) == 6 and not found.first and len(found.files) == 2
  with pytest.raises(ValueError, match='twice'):
    read(best, best)


def test_a_journal_of_something_else_is_refused(other, tmp_path):
  conv = systems.CONV
  with pytest.raises(ValueError, match='kind tree_cell.: want the workdir of a search of kind conv') as error:
    read(other, to=start_from.Target(conv, conv.config(), SHA, conv.make_space(conv.config()), 2))
  one_line(error)
  with pytest.raises(ValueError, match='no config.json'):
    read(tmp_path)
  with pytest.raises(ValueError, match='without replicas'):
    read(other, to=target(dataclasses.replace(CFG, replicas=2)))
  with pytest.raises(ValueError, match='each layer has one'):
    read(other, to=start_from.Target(systems.CHAIN, systems.CHAIN.config(), SHA, target().space, 2))


def test_damaged_lines_are_said(other):
  with open(other / 'children.jsonl', 'a', encoding='utf-8') as file:
    file.write('{"id": 7, "tok\n')
  assert '1 line is damaged' in read(other).said[0]


def test_it_is_noted_once_and_only_that_counts(other, tmp_path):
  folder, paths = str(tmp_path / 'new'), [str(other)]
  workdirs.open_config(folder, CFG)
  found = start_from.open_start(folder, paths, target())
  workdirs.note_origin(folder, 'cell_search', [], CFG, start_from=found.files)
  origin = json.loads((tmp_path / 'new' / 'origin.json').read_text())
  assert list(origin['start_from']) == paths and len(origin['start_from'][paths[0]]) == 64
  shutil.rmtree(other)
  assert start_from.open_start(folder, paths, target()) == found
  for wrong in ([], ['published']):
    with pytest.raises(ValueError, match='started from .*other, not from') as error:
      start_from.open_start(folder, wrong, target())
    one_line(error)
  noted = tmp_path / 'new' / 'start.json'
  noted.write_text(noted.read_text().replace('0.5', '0.7', 1))
  with pytest.raises(files.Unusable, match='damaged'):
    start_from.open_start(folder, paths, target())
  noted.unlink()
  with pytest.raises(files.Unusable, match='missing'):
    start_from.open_start(folder, paths, target())


def test_a_search_that_began_from_nothing_does_not_start_anew(other):
  assert start_from.open_start(str(other), [], target()) == start_from.NOTHING
  with pytest.raises(ValueError, match='started from nothing, not from published'):
    start_from.open_start(str(other), ['published'], target())
  assert not os.path.exists(other / 'start.json')


def test_the_search_has_what_was_read(other):
  found = read(other)._replace(first=[[0] * target().space.length])
  s = start_from.begin(systems.CELL.alone.search(target().space, CFG, lambda batch: None), found)
  assert s.told == 6
  assert start_from.begin(s, start_from.NOTHING) is s
  known = [start_from._row(record, s.space) for record in found.told]
  assert [row[3] for row in known] == [False, True, False, False, False, False]
  np.testing.assert_allclose([row[2] for row in known], [0.1, 0, 0.5, 0.3, 0.2, 0.4])
