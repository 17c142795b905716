"""The comparison of algorithms: names, statistics by hand, peers that answer from a script, and the command."""

import json
import os
import sys

import jax
import numpy as np
import pytest
from scipy import stats
from testing import cell_config, one_line, random_tokens

from experiments.common import launch, systems, workdirs
from experiments.compare import __main__ as compare
from experiments.compare import peers, runs, show, statistics, variants
from nas_jax import config, search
from nas_jax.search import journal
from nas_jax.systems import benchmarks, table

OPS = np.array([[0, 0], [0, 2], [1, 0], [1, 1]])
REWARD = np.array([0.5, 0.25, -1.0, 2.0])


# names


def test_settings_belong_to_the_algorithm_before_them():
  given = 'reinforce,random:m=3,reinforce:m=4,controller_lr=0.02,normalize_advantage=false,tpe'
  found = variants.parse(given.split(','))
  assert [one.name for one in found] == [
    'reinforce',
    'random:m=3',
    'reinforce:m=4,controller_lr=0.02,normalize_advantage=false',
    'tpe',
  ]
  plain, random, changed, tpe = (one.cfg for one in found)
  assert plain == table.Config() and tpe is None
  assert (random.algorithm, random.m) == ('random', 3)
  assert changed == table.Config(m=4, controller_lr=0.02, normalize_advantage=False)


@pytest.mark.parametrize(
  ('given', 'words'),
  [
    ('', 'empty'),
    ('reinforced', 'did you mean reinforce'),
    ('random,random', 'twice'),
    ('reinforce:m', 'field=value'),
    ('reinforce:m=0', 'm (=0)'),
    ('reinforce:m=two', "not 'two'"),
    ('reinforce:normalize_advantage=1', 'true or false'),
    ('reinforce:units=4', 'no setting'),
    ('reinforce:seed=4', 'no setting'),
    ('tpe:m=4', 'takes no settings'),
  ],
)
def test_names_that_mean_nothing_are_refused(given, words):
  with pytest.raises(ValueError) as error:
    variants.parse(given.split(',') if given else [])
  assert words in one_line(error)


def test_a_library_that_is_missing_is_named(monkeypatch):
  monkeypatch.setitem(peers._LIBRARIES, 'tpe', 'no_such_library')
  with pytest.raises(ImportError, match='tpe needs no_such_library.*peers.*or leave') as error:
    peers.check(['tpe'])
  one_line(error)


# statistics


def _found(best, different=1.0):
  best = np.asarray(best, float)
  return runs.Found(best, None, np.full(len(best), different), 12.0)


def test_a_curve_by_hand():
  curve = statistics.curve(_found([[1, 2, 5], [3, 4, 4]]), [1, 3])
  assert curve.mean == [2, 3, 4.5] and curve.at == [[1, 3], [5, 4]] and curve.test == [None, None]
  np.testing.assert_allclose(curve.error, [1, 1, 0.5])  # half the distance of two values
  assert curve.seconds == 2  # 12 seconds for 6 evaluations
  tested = statistics.curve(_found([[1, 2], [3, 4]])._replace(test=np.array([[np.nan, 2], [6, 4]])), [1, 2])
  assert tested.test == [6, 3]


def test_a_comparison_by_hand():
  first = statistics.curve(_found([[1, 4, 4], [2, 2, 6], [0, 3, 5]]), [2, 3])  # means 1, 3, 5
  other = statistics.curve(_found([[2, 5, 7], [3, 5, 6], [4, 5, 8]]), [2, 3])  # means 3, 5, 7
  row = statistics.compare(other, first, 0, 2)
  assert (row.mean, row.error, row.difference, row.reaches) == (5, 0, 2, 1)
  row = statistics.compare(other, first, 1, 3)
  pairs = stats.ttest_rel([7, 6, 8], [4, 6, 5])
  assert row.p == pytest.approx(pairs.pvalue) and row.difference / row.difference_error == pytest.approx(
    pairs.statistic
  )
  assert row.reaches == 2
  back = statistics.compare(first, other, 1, 3)
  assert (back.difference, back.p, back.reaches) == (-2, pytest.approx(row.p), None)
  own = statistics.compare(first, first, 1, 3)
  assert own.difference == 0 and np.isnan(own.p) and own.reaches == 3


@pytest.mark.parametrize('seeds', [2, 3, 100])
def test_equal_differences_have_no_p(seeds):
  """The mean of equal numbers is not always that number: of three times 0.1 it is 0.10000000000000002."""
  ahead, zero = (statistics.curve(_found([[value]] * seeds), [1]) for value in (0.1, 0.0))
  row = statistics.compare(ahead, zero, 0, 1)
  assert row.difference == pytest.approx(0.1) and np.isnan(row.p)
  assert np.isnan(statistics.paired(np.array([0.3 - 0.2, 0.4 - 0.3, 0.5 - 0.4]))[2])


def test_pairs_are_the_seeds_that_both_have():
  first = statistics.curve(_found([[1], [2], [30], [40]]), [1])
  few = statistics.curve(_found([[2], [5]]), [1])
  row = statistics.compare(few, first, 0, 1)
  assert (row.mean, row.difference, row.reaches) == (3.5, 2, None)  # the first's mean is that of all four


def test_the_table_says_what_was_found():
  curves = {
    'a': statistics.curve(_found([[1, 2], [3, 4]]), [1, 2]),
    'b': statistics.curve(_found([[3, 3], [4, 4]]), [1, 2]),
  }
  lines = [line.split() for line in show.table(curves, [1, 2]).splitlines()]
  assert lines[1] == ['a', '1', '2.00000', '1.00000', '2']
  assert lines[4][:3] == ['b', '2', '3.50000'] and lines[4][-3:] == ['1', '(2.0x)', '2']
  assert show.costs(curves).splitlines()[1].split() == ['a', '1', '3000.00']


# searches


def test_our_own_find_what_a_search_in_the_table_finds():
  keys, cfg = jax.random.split(jax.random.key(3), 4), table.Config(m=2, algorithm='random')
  found = runs.ours(benchmarks.of_table(table.distinct(OPS, REWARD)), cfg, keys, 5)
  _, (tokens, outcomes) = search.run_seeds(table.build(cfg, OPS, REWARD), keys, 3)
  best, _ = table.best_so_far(outcomes, 5)
  np.testing.assert_array_equal(found.best, np.where(np.isfinite(best), best, -1.0))
  drawn = np.asarray(tokens).reshape(4, 6, 2)[:, :5]
  assert found.different.tolist() == [len({tuple(row) for row in each.tolist()}) for each in drawn]


def test_a_peer_is_told_what_a_search_of_our_own_is_told(monkeypatch):
  told, script = [], [[1, 2], [0, 0], [1, 0], [0, 1], [1, 1]]

  def scripted(widths, evaluations, seed):
    assert widths == [2, 3] and evaluations == 5
    rewards = []
    told.append((seed, rewards))
    return peers.Peer(lambda: script[len(rewards)], rewards.append)

  monkeypatch.setitem(peers.PEERS, 'scripted', scripted)
  benchmark = benchmarks.of_table(table.distinct(OPS, REWARD, REWARD * 10))
  checks = []
  found = runs.peer(benchmark, 'scripted', jax.random.split(jax.random.key(0), 2), 7, 5, lambda: checks.append(1))
  # The first and the fourth are not in the table; what fails earns 0, or the worst reward so far if that is less.
  assert told == [(7, [0, 0.5, -1, -1, 2]), (8, [0, 0.5, -1, -1, 2])] and len(checks) == 2
  np.testing.assert_array_equal(found.best, [[-1, 0.5, 0.5, 0.5, 2]] * 2)
  np.testing.assert_array_equal(found.test[:, 1:], [[5, 5, 5, 20]] * 2)
  assert found.different.tolist() == [5, 5]


def test_a_peer_looks_for_what_a_search_of_our_own_looks_for(monkeypatch):
  benchmark, keys = benchmarks.hidden_cell(base=2), jax.random.split(jax.random.key(5), 2)
  seen = []

  def scripted(widths, evaluations, seed):
    return peers.Peer(lambda: [0] * len(widths), seen.append)

  monkeypatch.setitem(peers.PEERS, 'scripted', scripted)
  found = runs.peer(benchmark, 'scripted', keys, 0, 1, lambda: None)
  s = benchmarks.build(benchmark, table.Config(algorithm='random'))
  targets = [np.asarray(s.ask(s.init(key)).extra) for key in keys]
  np.testing.assert_allclose(found.best[:, 0], [(target == 0).mean() for target in targets], rtol=1e-6)
  np.testing.assert_allclose(seen, found.best[:, 0])


@pytest.mark.parametrize('name', list(peers.PEERS))
def test_peers_that_are_installed_search(name):
  pytest.importorskip(peers._LIBRARIES[name])
  began, rewards = peers.PEERS[name]([3, 2, 4, 3, 4, 2], 100, 0), []
  for _ in range(100):
    tokens = began.ask()
    assert len(tokens) == 6 and all(0 <= token < width for token, width in zip(tokens, [3, 2, 4, 3, 4, 2], strict=True))
    rewards.append(float(sum(tokens)))
    began.tell(rewards[-1])
  assert np.mean(rewards[70:]) > np.mean(rewards[:20]) + 0.5  # of 12, and 6 at random


# the command


def _run(monkeypatch, *args):
  monkeypatch.setattr(launch, 'set_up_jax', lambda: None)  # JAX has devices already
  monkeypatch.setattr(sys, 'argv', ['compare', *args])
  launch.main(compare.prepare)


def test_the_same_command_goes_on_where_it_stopped(monkeypatch, capsys, tmp_path):
  path, out = tmp_path / 't.npz', tmp_path / 'out.json'
  np.savez(path, ops=OPS, reward=REWARD)
  args = [f'--table={path}', '--seeds=2', '--evaluations=2,6', f'--json={out}']
  _run(monkeypatch, *args, '--algorithms=random', f'--picture={tmp_path}/out.svg')
  shown = capsys.readouterr().out
  assert 'best 2.00000' in shown and (tmp_path / 'out.svg').read_text().count('<svg') == 1
  (result,) = json.loads(out.read_text())['results'].values()
  assert len(result['mean']) == 6 and np.shape(result['at']) == (2, 2)
  measured = []

  def ours(benchmark, cfg, keys, evaluations):
    measured.append(cfg.m)
    return _found(np.ones((2, 6)))

  monkeypatch.setattr(runs, 'ours', ours)
  _run(monkeypatch, *args, '--algorithms=random,random:m=2')
  assert measured == [2]
  assert capsys.readouterr().out.splitlines()[3].split()[:3] == shown.splitlines()[3].split()[:3]
  _run(monkeypatch, *args, '--algorithms=random', '--seed=1')
  np.savez(path, ops=OPS, reward=2 * REWARD)
  _run(monkeypatch, *args, '--algorithms=random')
  assert measured == [2, 1, 1]  # another seed, and another table in the same file


def test_another_seed_gives_peers_other_seeds(monkeypatch, tmp_path):
  path, out, seeds = tmp_path / 't.npz', tmp_path / 'out.json', []
  np.savez(path, ops=OPS, reward=REWARD)

  def scripted(widths, evaluations, seed):
    seeds.append(seed)
    return peers.Peer(lambda: [0, 0], lambda reward: None)

  monkeypatch.setitem(peers.PEERS, 'tpe', scripted)
  monkeypatch.setattr(peers, 'check', lambda names: None)
  args = [f'--table={path}', '--algorithms=tpe', '--peer_seeds=3', '--evaluations=1', f'--json={out}']
  _run(monkeypatch, *args)
  assert seeds == [0, 1, 2]
  ((first, result),) = json.loads(out.read_text())['results'].items()
  assert json.loads(first)['seed'] == 0  # as earlier versions wrote it, which had these seeds with every --seed
  out.write_text(json.dumps({'results': {first: result, first.replace('"seed": 0', '"seed": 1'): result}}))
  for seed in (0, 1, 2, 1, config.LAST_SEED):
    _run(monkeypatch, *args, f'--seed={seed}')
  assert len(set(seeds)) == len(seeds) == 12 and all(0 <= seed < 2**32 for seed in seeds)
  used = {(peers.first_seed(seed) + n) % 2**32 for seed in range(1000) for n in range(100)}
  assert len(used) == 100_000


@pytest.mark.parametrize(
  ('args', 'words'),
  [
    ([], '--table, --benchmarks or --surrogate'),
    (['--benchmarks=made7'], 'did you mean made'),
    (['--table=nothing.npz'], 'nothing.npz'),
    (['--surrogate=/dev/null'], 'config.json'),
    (['--benchmarks=made5', '--evaluations=0,5'], 'evaluations'),
    (['--benchmarks=made5', '--evaluations=few'], 'evaluations'),
    (['--benchmarks=made5', '--seeds=1'], 'seeds'),
    (['--benchmarks=made5', '--json=/dev/null/x.json'], 'no folder'),
    (['--benchmarks=made5', '--picture=x.gif'], '.svg'),
    (['--benchmarks=made5', '--algorithms=none'], 'none'),
  ],
)
def test_wrong_calls_are_one_line(monkeypatch, capsys, args, words):
  with pytest.raises(SystemExit) as left:
    _run(monkeypatch, *args)
  error = capsys.readouterr().err
  assert left.value.code == 2 and words in error and len(error.splitlines()) == 1


def test_a_surrogate_is_a_model_of_the_children_of_both_searches(tmp_path, capsys):
  cfg = cell_config()
  made = systems.CELL.make_space(cfg)
  workdirs.open_config(str(tmp_path), cfg)
  workdirs.note_origin(str(tmp_path), 'cell_search', [], cfg, kind='tree_cell')
  for folder, seed in (('', 0), ('control', 1)):
    os.makedirs(tmp_path / folder, exist_ok=True)
    tokens = random_tokens(made, 30, seed)
    records = [
      {'id': k, 'tokens': t.tolist(), 'reward': float(t.mean()), 'failed': None, 'seconds': 0.1}
      for k, t in enumerate(tokens)
    ]
    journal.writer(str(tmp_path / folder / 'children.jsonl'))(records)
  task = compare._of_workdir(str(tmp_path))
  assert '60 children' in task.about and task.benchmark.space.length == made.length
  with pytest.raises(ValueError, match='no workdir of a search') as error:
    compare._of_workdir(str(tmp_path / 'control'))
  one_line(error)


def test_seeds_are_the_same_however_many_there_are():
  few, many = (jax.random.split(jax.random.key(7), count) for count in (3, 50))
  assert (few == many[:3]).all()


def test_a_file_of_something_else_is_not_written_over(tmp_path):
  path = tmp_path / 'mine.json'
  path.write_text('{"a": 1}')
  with pytest.raises(ValueError, match='holds something else') as error:
    compare._saved(str(path))
  one_line(error)
  assert compare._saved(str(tmp_path / 'new.json')) == compare._saved('') == {}
