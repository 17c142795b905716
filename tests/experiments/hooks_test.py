"""The logs of a search: updates.jsonl, TensorBoard events and the report made from them."""

import dataclasses
import json
import shutil
import struct
import sys
from xml.etree import ElementTree

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from experiments import report
from experiments.common import launch, reports, run_search, search_flow, workdirs
from nas_jax import draw, search, space
from nas_jax.report import page
from nas_jax.search import journal
from nas_jax.systems import cell
from nas_jax.types import Outcome

SPACE = space.tree_cell_space(2)
CONFIG = cell.smoke()


def evaluate(batch):
  """An evaluator that rewards a sequence by its tokens; one child in five fails."""
  failed = np.asarray(batch.ids) % 5 == 4
  perplexity = np.where(failed, np.inf, 2.0 + np.asarray(batch.tokens).sum(1))
  reward = jnp.where(failed, 0.0, jnp.asarray(1 / perplexity)).astype(jnp.float32)
  return Outcome(reward, {'perplexity': perplexity, 'failed': failed.astype(np.int32)})


@pytest.fixture(scope='module')
def s():
  return search.build(SPACE, dataclasses.replace(CONFIG, controller_lr=0.05), evaluate)


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
  monkeypatch.setenv('TQDM_DISABLE', '1')


@pytest.fixture(scope='module')
def unbroken(s, tmp_path_factory):
  folder = tmp_path_factory.mktemp('unbroken')
  run_search.run(str(folder), s, 0, search.Budget(20))
  return folder


def without_clock(folder):
  found = journal.read(str(folder / 'children.jsonl'))
  return {number: {**record, 'seconds': 0} for number, record in found.items()}


def updates(folder):
  return journal.read(str(folder / 'updates.jsonl'), by='step')


def points(folder):
  """Returns {tag: [(step, value)]} of all event files as TensorBoard shows them: a restart drops later points."""
  found = {}
  for path in sorted((folder / 'events').iterdir()):
    data, at = path.read_bytes(), 0
    while at < len(data):  # length, its checksum, the event, its checksum
      (length,) = struct.unpack('<Q', data[at : at + 8])
      event = Event.FromString(data[at + 12 : at + 12 + length])
      at += 16 + length
      if event.session_log.status == 1:
        found = {tag: [point for point in line if point[0] < event.step] for tag, line in found.items()}
      for value in event.summary.value:
        found.setdefault(value.tag, []).append((event.step, value.simple_value))
  return {tag: line for tag, line in found.items() if line}


def test_nothing_noted_disturbs_the_search(s, unbroken):
  lines = []
  search.run(s, s.init(jax.random.key(0)), [search.Hook(children=lines.extend)], search.Budget(20))
  assert without_clock(unbroken) == {line['id']: {**line, 'seconds': 0} for line in lines}


def test_every_update_is_a_line(s, unbroken):
  found = updates(unbroken)
  children = without_clock(unbroken)
  assert sorted(found) == list(range(1, 11))
  baseline = best = None
  for step, line in found.items():
    rewards = [children[2 * step - 2]['reward'], children[2 * step - 1]['reward']]
    mean, best = np.mean(rewards), max(rewards if best is None else [best, *rewards])
    baseline = mean if baseline is None else 0.95 * baseline + 0.05 * mean
    assert line['children'] == 2 * step and line['gradient_norm'] > 0
    assert (line['reward'], line['baseline'], line['best']) == pytest.approx((mean, baseline, best), rel=1e-6)
    assert [len(row) for row in line['probabilities']] == [slot.width for slot in SPACE.slots]
    assert all(sum(row) == pytest.approx(1, abs=1e-3) for row in line['probabilities'])
  # It begins all but uniform; what it learns since takes entropy away, by what it prefers.
  uniform = sum(np.log(slot.width) for slot in SPACE.slots)
  assert found[1]['entropy'] == pytest.approx(uniform, abs=0.1)
  probable = [-sum(p * np.log(p) for p in row if p) for row in found[10]['probabilities']]
  assert found[10]['entropy'] < found[1]['entropy']
  # The entropy of the whole is at most that of its parts taken alone.
  assert found[10]['entropy'] <= sum(probable) + 1e-2


@pytest.mark.long
def test_a_long_run_notes_probabilities_now_and_then(s, tmp_path):
  run_search.run(str(tmp_path), s, 0, search.Budget(602))
  noted = [step for step, line in updates(tmp_path).items() if 'probabilities' in line]
  assert noted[0] == 1 and noted[-1] == 301 and 100 <= len(noted) <= 102 and max(np.diff(noted)) <= 4


def test_events_are_the_records(unbroken):
  found = points(unbroken)
  lines, children = updates(unbroken), without_clock(unbroken)
  for name in ('reward', 'baseline', 'best', 'entropy', 'gradient_norm'):
    wanted = [(line['children'], line[name]) for line in lines.values()]
    assert found[f'update/{name}'] == [(at, pytest.approx(value, rel=1e-6)) for at, value in wanted]
  for name in ('reward', 'perplexity'):
    wanted = [(number + 1, record[name]) for number, record in children.items() if not record['failed']]
    assert len(wanted) == 16
    assert found[f'child/{name}'] == [(at, pytest.approx(value, rel=1e-6)) for at, value in wanted]


@pytest.mark.parametrize('keep_checkpoint', [True, False])
def test_resumed_all_is_as_unbroken(s, unbroken, tmp_path, keep_checkpoint):
  run_search.run(str(tmp_path), s, 0, search.Budget(10))
  # As if killed in the middle of a line, and with the last checkpoint some steps behind.
  if not keep_checkpoint:
    shutil.rmtree(tmp_path / 'checkpoints')
  for name in ('updates', 'children'):
    with open(tmp_path / f'{name}.jsonl', 'a') as file:
      file.write('{"step": 6, "id": 10, "chi')
  with pytest.warns(UserWarning, match=r'children.jsonl: 1 damaged line, moved to .*damaged; what was lost'):
    run_search.run(str(tmp_path), s, 0, search.Budget(20))
  assert without_clock(tmp_path) == without_clock(unbroken)
  assert updates(tmp_path) == updates(unbroken)
  found, wanted = points(tmp_path), points(unbroken)
  assert found.keys() == wanted.keys()
  assert all(found[tag] == wanted[tag] for tag in wanted if tag != 'child/seconds')


def test_a_finished_search_writes_nothing_more(s, unbroken):
  before = sorted(path.name for path in (unbroken / 'events').iterdir()), (unbroken / 'updates.jsonl').read_bytes()
  run_search.run(str(unbroken), s, 0, search.Budget(20))
  after = sorted(path.name for path in (unbroken / 'events').iterdir()), (unbroken / 'updates.jsonl').read_bytes()
  assert before == after


def test_the_search_goes_on_where_nothing_can_be_noted(s, tmp_path, unbroken):
  (tmp_path / 'updates.jsonl').mkdir()
  with pytest.warns(UserWarning, match='the search goes on'):
    run_search.run(str(tmp_path), s, 0, search.Budget(20))
  assert without_clock(tmp_path) == without_clock(unbroken)


# -- the page -----------------------------------------------------------------------------------------------------


def launched(monkeypatch, *args):
  monkeypatch.setattr(sys, 'argv', ['report', *map(str, args)])
  launch.main(report.prepare)


@pytest.fixture
def workdir(unbroken, tmp_path):
  shutil.copytree(unbroken, tmp_path / 'run')
  with pytest.warns(UserWarning, match='config.json is missing: taken from the flags'):
    workdirs.open_config(str(tmp_path / 'run'), CONFIG)
  return tmp_path / 'run'


def retraining(workdir, folder='retrain', **changes):
  row = {'name': 'found', 'size': '650', 'parameters': 20_000_000, 'epochs': 2, 'repeats': 1}
  result = {'rows': [{**row, 'valid': [91.5], 'test': [88.25]} | changes], 'setting': 'as in Table 2'}
  (workdir / folder).mkdir()
  (workdir / folder / 'result.json').write_text(json.dumps(result))


def test_the_page_of_a_workdir(workdir, monkeypatch, capsys):
  (workdir / 'reliability.json').write_text('{"seeds": 0.625, "budget": NaN, "children": 8}')
  (workdir / 'yardsticks.json').write_text(
    '{"LSTM": [3.5, 4.5], "mine/best.json": {"arch": "0a1b2c", "scores": [5.25, null]}}'
  )
  retraining(workdir)
  retraining(workdir, 'retrain-2', name='other')
  (workdir / 'retrain-3').mkdir()
  (workdir / 'retrain-3' / 'result.json').write_text('{"rows": [], "setting": "just begun"}')
  workdirs.note_origin(
    str(workdir), 'cell_search', ['x', '--seed=0', '--beside=a b'], cell.smoke(), sha256='5ad', max_children=20
  )
  launched(monkeypatch, f'--workdir={workdir}')
  assert str(workdir / 'report.html') in capsys.readouterr().out
  text = (workdir / 'report.html').read_text()
  best = min(record['perplexity'] for record in without_clock(workdir).values() if not record['failed'])
  for words in (
    f'In 20 children (4 failed) the search found a cell of validation perplexity {best:.3f}.',
    'h_t = ',
    '<td class="n">0.625</td>',
    'could not be measured',
    '2 trainings, mean 4.000',
    'mine/best.json</td><td class="n">5.250</td>',
    '20,000,000',
    '88.250',
    'other',
    'As in Table 2.',
    '<dt>sha256 of the data</dt><dd>5ad</dd>',
    '80 / perplexity^2',
    'best.json&#x27;).read())',
    'python -m experiments.cell_search --seed=0 &#x27;--beside=a b&#x27;',
    'c_t from node',
  ):
    assert words in text, words
  assert ' is at ' not in text  # of the 20 that were asked for, whatever config.json was begun with
  assert 'just begun' not in text


def test_pictures_of_a_search_stand_alone(workdir, monkeypatch, capsys):
  shutil.copytree(workdir, workdir / 'control', ignore=shutil.ignore_patterns('control'))
  pictures = workdir / 'pictures'
  pictures.mkdir()
  launched(monkeypatch, f'--workdir={workdir}', f'--pictures={pictures}')
  assert str(pictures / 'best.svg') in capsys.readouterr().out
  for name, word in (('best.svg', 'recurrent cell'), ('search.svg', 'random search')):
    text = (pictures / name).read_text()
    root = ElementTree.fromstring(text)
    assert root.tag == '{http://www.w3.org/2000/svg}svg'
    assert word in text and 'var(' not in text and 'currentColor' not in text  # there is no page to take colours from
    # Nor one to be as wide as: cairo shows nothing of a file whose root has the style `height: auto`.
    assert [root.get(side) for side in ('width', 'height')] == root.get('viewBox').split()[2:]
    assert 'style' not in root.attrib


def test_two_searches_are_compared(tmp_path, workdir, monkeypatch, capsys):
  shutil.copytree(workdir, tmp_path / 'second')
  launched(monkeypatch, str(workdir), str(tmp_path / 'second'))
  path = workdir / 'beside-second.html'
  assert str(path) in capsys.readouterr().out
  assert 'All settings are the same.' in path.read_text() and 'both have found' in path.read_text()
  for args in ((str(workdir),), (str(workdir), f'--workdir={workdir}'), ('a', 'b', 'c')):
    with pytest.raises(SystemExit) as left:
      launched(monkeypatch, *args)
    error = capsys.readouterr().err
    assert left.value.code == 2 and error.count('\n') == 1 and 'folders of two searches' in error


def test_the_page_of_a_running_search_is_written_once_a_minute(workdir, monkeypatch):
  now = iter([0.0, 59.0, 61.0, 61.0, 100.0])
  hook = reports.refresher(str(workdir))
  path = workdir / 'report.html'
  path.unlink(missing_ok=True)
  monkeypatch.setattr(reports.time, 'monotonic', lambda: next(now))
  hook = reports.refresher(str(workdir))
  hook.step(None, {})
  assert not path.exists()
  hook.step(None, {})
  assert 'http-equiv="refresh"' in path.read_text()
  path.unlink()
  hook.step(None, {})
  assert not path.exists()


def test_pictures_want_a_folder_and_a_child(tmp_path, workdir, monkeypatch, capsys):
  workdirs.open_config(str(tmp_path / 'empty'), CONFIG)
  for args, word in (
    ((f'--workdir={workdir}', f'--pictures={tmp_path}/nowhere'), 'nowhere'),
    ((f'--workdir={tmp_path}/empty', f'--pictures={tmp_path}'), 'nothing to draw'),
  ):
    with pytest.raises(SystemExit) as left:
      launched(monkeypatch, *args)
    error = capsys.readouterr().err
    assert left.value.code == 2 and error.count('\n') == 1 and word in error


def test_the_page_of_a_search_just_begun(tmp_path, monkeypatch):
  workdirs.open_config(str(tmp_path), CONFIG)
  launched(monkeypatch, f'--workdir={tmp_path}')
  assert 'No child has been trained yet.' in (tmp_path / 'report.html').read_text()


def test_the_page_of_a_search_from_before_a_field_was_added(workdir):
  saved = json.loads((workdir / 'config.json').read_text())
  del saved['tied']
  (workdir / 'config.json').write_text(json.dumps(saved))
  assert reports.read(str(workdir)).config == saved


def test_a_drawing_is_on_the_page(workdir, monkeypatch):
  def drawn(arch, operations):
    return f'<svg><title>{len(arch.combine)} nodes</title></svg>'

  drawn.registry = draw.svg.registry
  monkeypatch.setattr(draw, 'svg', drawn)
  assert page.render(reports.read(str(workdir))).count('<title>3 nodes</title>') == 3


@pytest.mark.parametrize(
  ('spoil', 'words'),
  [
    (lambda workdir: (workdir / 'config.json').unlink(), 'holds no search'),
    (lambda workdir: (workdir / 'config.json').write_text('{"m": '), 'config.json cannot be read'),
    (lambda workdir: (workdir / 'config.json').write_text('{"wings": 2}'), 'wings'),
    (lambda workdir: (workdir / 'reliability.json').write_text('\0'), 'reliability.json cannot be read'),
    (lambda workdir: retraining(workdir, valid='91'), 'retrain/result.json cannot be read'),
    (lambda workdir: retraining(workdir, parameters='many'), 'retrain/result.json cannot be read'),
  ],
)
def test_a_workdir_without_a_report_is_one_line(workdir, monkeypatch, capsys, spoil, words):
  spoil(workdir)
  with pytest.raises(SystemExit) as left:
    launched(monkeypatch, f'--workdir={workdir}')
  error = capsys.readouterr().err
  assert left.value.code == 2 and error.count('\n') == 1 and words in error
  assert not (workdir / 'report.html').exists()


def test_a_report_wants_a_workdir(monkeypatch, capsys):
  for args in ((), ('--workdir=/nowhere',)):
    with pytest.raises(SystemExit) as left:
      launched(monkeypatch, *args)
    assert left.value.code == 2 and '--workdir' in capsys.readouterr().err.replace('workdir (', '--workdir (')


def test_a_reward_that_several_children_share_is_said():
  """Children at the limit of the reward cannot be ranked."""
  lines = [
    {'reward': reward, 'failed': failed} for reward, failed in ((2.0, None), (2.0, None), (1.9, None), (2.0, 'x'))
  ]
  cfg = cell.demo()
  assert '2 children earned the reward_limit (=2)' in search_flow.at_limit(cfg, lines)
  assert search_flow.at_limit(cfg, lines[1:]) == ''  # a single best child is known
  cfg.reward_limit = 0.0
  assert search_flow.at_limit(cfg, lines) == ''
