"""A workdir of a search with asynchronous replicas: stopped, damaged, or of a version without replicas."""

import json

import jax
import jax.numpy as jnp
import pytest
import testing

from experiments import enas_search, per_layer_search
from experiments.common import run_search
from nas_jax import config, replicas, search
from nas_jax.systems import cell, conv
from nas_jax.training.recovery import NO_RECOVERY, Stopped
from nas_jax.types import Outcome

CHILDREN = 18


@pytest.fixture(scope='module')
def s():
  """Three replicas with two children each, an update from two gradients; rewards are a function of tokens and keys."""

  def evaluate(batch):
    reward = jnp.sin(batch.tokens @ jnp.array([1.7, 0.3, 2.1]) + jax.vmap(jax.random.uniform)(batch.keys))
    return Outcome(reward, {'loss': 2 * reward})

  made = search.build(testing.SPACES['choice'], testing.search_config(m=2, controller_clip=0.0), evaluate)
  return replicas.simulated(replicas.build(made, 3, 2, 2))


def left(folder):
  """Returns the journal of a search in order, without times, and the digest of its last state."""
  lines = [json.loads(line) for line in (folder / 'children.jsonl').read_text().splitlines()]
  newest = max((folder / 'checkpoints').glob('*/digest/metadata'), key=lambda path: int(path.parts[-3]))
  return [{**line, 'seconds': 0, 'crc32': ''} for line in lines], newest.parts[-3], newest.read_text()


@pytest.fixture(scope='module')
def unbroken(s, tmp_path_factory):
  folder = tmp_path_factory.mktemp('unbroken')
  run_search.run(folder, s, 0, search.Budget(CHILDREN))
  return left(folder)


def stopping_after(updates):
  seen = []

  def check():
    seen.append(0)
    if len(seen) == updates:
      raise Stopped

  return NO_RECOVERY._replace(check=check)


def test_stopped_and_gone_on_with_it_is_as_if_unbroken(s, unbroken, tmp_path):
  """If the journal is ahead of the state, as after a kill, its children are not trained again."""
  trained = []
  counted = s._replace(evaluate=lambda batch: trained.extend(batch.ids.tolist()) or s.evaluate(batch))
  for updates in (2, 3):
    with pytest.raises(Stopped):
      run_search.run(tmp_path, counted, 0, search.Budget(CHILDREN), recovery=stopping_after(updates))
  newest = max((tmp_path / 'checkpoints').iterdir(), key=lambda path: int(path.name))
  newest.rename(tmp_path / 'lost')
  found = run_search.run(tmp_path, counted, 0, search.Budget(CHILDREN))
  assert left(tmp_path) == unbroken and len(trained) == len(set(trained)) == CHILDREN
  order = [line['id'] for line in unbroken[0]]
  assert [line['id'] for line in found] == sorted(order) != order


def test_a_damaged_line_is_trained_again_where_it_stood(s, unbroken, tmp_path):
  run_search.run(tmp_path, s, 0, search.Budget(12))
  path = tmp_path / 'children.jsonl'
  lines = path.read_text().splitlines(keepends=True)
  path.write_text(''.join([*lines[:4], lines[4].replace('"id"', '"ie"'), *lines[5:]]))
  with pytest.warns(UserWarning, match='damaged line|ahead of the journal'):
    run_search.run(tmp_path, s, 0, search.Budget(CHILDREN))
  found, wanted = left(tmp_path), unbroken
  assert sorted(found[0], key=lambda line: line['id']) == sorted(wanted[0], key=lambda line: line['id'])
  assert found[1:] == wanted[1:]


def test_the_papers_presets_have_its_replicas():
  """The numbers are those of Zoph & Le (2017), Sec. 4.1 and 4.2."""
  found = [
    (cfg.replicas, cfg.m, cfg.accumulate, cfg.shards) for cfg in (cell.paper(), conv.paper_v1(), conv.paper_v3())
  ]
  assert found == [(400, 1, 10, 20), (100, 8, 1, 20), (100, 8, 1, 20)]


def test_workdirs_from_before_are_of_synchronous_searches():
  for cfg in (cell.demo(), conv.small()):
    before = {
      name: value for name, value in config.as_json(cfg).items() if name not in ('replicas', 'accumulate', 'shards')
    }
    assert config.differences(before, cfg) == []
    cfg.replicas = 4
    assert config.differences(before, cfg) == ['replicas (0 -> 4)']


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'accumulate': 10}, r'accumulate \(=10\).*replicas is 0.*--replicas=1'),
    ({'replicas': 2, 'known': 'reuse'}, 'known.*--known=train'),
    ({'replicas': 2, 'proposals': 'guided'}, 'proposals.*--proposals=policy'),
    ({'replicas': 2, 'shards': 10**6}, r'shards \(=1000000\) is more than the controller has parameters.*take fewer'),
  ],
)
def test_settings_that_do_not_go_together_are_refused(changes, message):
  for make, problem, data in (
    (testing.cell_config, cell.make_problem, testing.text()),
    (testing.conv_config, conv.make_problem, testing.pictures()),
  ):
    with pytest.raises(ValueError, match=message) as error:
      problem(make(**changes), data)
    testing.one_line(error)


@pytest.mark.parametrize('launcher', [per_layer_search, enas_search])
def test_searches_that_depend_on_all_before_have_no_replicas(launcher):
  with pytest.raises(ValueError, match='no flag --replicas') as error:
    launcher.prepare(['search', '--replicas=4'])
  testing.one_line(error)
