"""Successive halving after a search: promoted children, lengths of training, and interruptions."""

import contextlib
import dataclasses
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import testing

from experiments import retrain
from experiments.common import from_scratch, reports, rung_stage, search_flow, stages, workdirs
from experiments.common.progress import Progress
from experiments.common.systems import CELL, CHAIN, CONV
from nas_jax import config, space
from nas_jax.report import page
from nas_jax.search import journal
from nas_jax.systems import cell
from nas_jax.training import fit
from nas_jax.training.recovery import NO_RECOVERY, Stopped
from nas_jax.types import Outcome

TEXT = testing.text()
CFG = testing.cell_config(
  algorithm='evolution', m=3, max_children=12, rungs=3, rung_factor=2, child_timeout=7.0, reliability_children=0,
  yardstick_repeats=0,
)  # fmt: skip
MADE = cell.make_space(CFG)
NEVER = 10**9


class Trainings:
  """Fake trainings, which are counted. A score depends on the cell, its key and the length of training."""

  def __init__(self, stop_after=NEVER):
    self.seen, self.stop_after = [], stop_after

  def evaluator(self, problem, mesh, recovery):
    def evaluate(batch):
      wanted = np.ones(len(batch.ids), bool) if batch.repeats is None else ~np.asarray(batch.repeats.known)
      if len(self.seen) >= self.stop_after:
        raise Stopped
      assert len(batch.ids) == CFG.m
      self.seen += [(problem.steps, recovery.timeout, number) for number in np.asarray(batch.ids)[wanted].tolist()]
      noise = jax.vmap(jax.random.uniform)(batch.keys)
      perplexity = 2 + (batch.tokens @ jnp.arange(batch.tokens.shape[1]) % 11 + 9 * noise) / problem.steps
      failed = batch.tokens[:, 0] + batch.tokens[:, 1] == 0
      metrics = {'perplexity': perplexity, 'failed': jnp.where(failed, fit.Status.NOT_FINITE, fit.Status.OK)}
      return Outcome(1 / perplexity, metrics, failed=failed)

    return evaluate


def system_of(trainings):
  return CELL._replace(alone=CELL.alone._replace(evaluator=trainings.evaluator, references=lambda *_: {}))


def stage(folder, records, cfg=CFG, trainings=None):
  """Trains the rungs after a search with the children `records`, and returns the trainings."""
  trainings = trainings or Trainings()
  system, problem = system_of(trainings), cell.make_problem(cfg, TEXT)
  recovery = NO_RECOVERY._replace(timeout=7.0)
  run = stages.Run(system, cfg, TEXT, problem, str(folder), recovery, {}, lambda cfg: TEXT, Progress())
  train = from_scratch.local_evaluators(system, cfg, TEXT, problem, recovery, run.reload)
  search = types.SimpleNamespace(replicas=None)
  rung_stage.run(run, train, cfg, stages.Found(str(folder), search, records))
  return trainings.seen


def lines(path, wanted=journal.child_of_rung):
  return [{**line, 'seconds': 0.0} for line in journal.read_lines(str(path), wanted(MADE))]


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """A search of twelve children and its random-search baseline, in three rungs of factor 2: 12, 6 and 3."""
  workdir, trainings = tmp_path_factory.mktemp('whole'), Trainings()
  workdirs.open_config(str(workdir), CFG)
  search_flow.run(system_of(trainings), CFG, TEXT, str(workdir))
  return workdir, trainings.seen


@pytest.fixture
def records(whole):
  return lines(whole[0] / 'children.jsonl', journal.child_of)


def best_different(records, count):
  """Returns the best children by perplexity, without failed ones and with one child for each network."""
  found, seen = [], set()
  for one in sorted((one for one in records if not one['failed']), key=lambda one: one['perplexity']):
    form = space.canonical(MADE.decode(one['tokens']))
    if form not in seen:
      found, seen = [*found, one['id']], seen | {form}
  return found[:count]


def test_the_best_half_is_trained_twice_as_long_and_of_these_the_best_half_again(whole):
  workdir, seen = whole
  for folder, part in (workdir, seen[:21]), (workdir / 'control', seen[21:]):
    children, longer = lines(folder / 'children.jsonl', journal.child_of), lines(folder / 'rungs.jsonl')
    second, third = best_different(children, 6), best_different(longer[:6], 3)
    assert part[:12] == [(CFG.steps, 7.0, k) for k in range(12)]
    assert part[12:18] == [(2 * CFG.steps, 14.0, k) for k in second]
    assert part[18:] == [(4 * CFG.steps, 28.0, k) for k in third]
    assert [(line['rung'], line['id']) for line in longer] == [(2, k) for k in second] + [(3, k) for k in third]
    assert all(line['tokens'] == children[line['id']]['tokens'] for line in longer)


def test_the_longest_rung_decides_all_that_follows(whole):
  workdir, _ = whole
  longer = lines(workdir / 'rungs.jsonl')
  second, third = longer[:6], longer[6:]
  order = best_different(third, 3)
  assert len({order[0], second[0]['id'], best_different(second, 1)[0]}) > 1  # the rungs do not agree: it matters
  assert json.loads((workdir / 'best.json').read_text())['id'] == order[0]
  left = [line for line in second if line['id'] not in order]
  assert list(retrain.best_of(str(workdir), 5, CELL)) == [f'child {n}' for n in (order + best_different(left, 6))[:5]]
  best = next(line['perplexity'] for line in third if line['id'] == order[0])
  found, summary = reports.read(str(workdir), CFG), (workdir / 'summary.txt').read_text()
  assert f'(child {order[0]}, validation perplexity {best:.3f} after {4 * CFG.steps} steps)' in summary
  assert found.winners[0].title == f'1. Child {order[0]}, validation perplexity {best:.3f} after {4 * CFG.steps} steps'
  assert [row[:3] for row in found.rungs[1]] == [
    (f'{name}, rung {rung}', f'{2 ** (rung - 1) * CFG.steps} steps', n)
    for name in ('evolution', 'random')
    for rung, n in ((1, 12), (2, 6), (3, 3))
  ]
  assert all(str(row[0]) in summary for row in found.rungs[1])
  assert '<h2>Trained for longer</h2>' in page.render(found)


@pytest.mark.parametrize('after', [0, 3, 6])
def test_killed_it_goes_on_and_trains_nothing_twice(whole, records, tmp_path, after):
  workdir, seen = whole
  first = Trainings(stop_after=after)
  with pytest.raises(Stopped):
    stage(tmp_path, records, trainings=first)
  assert first.seen + stage(tmp_path, records) == seen[12:21]
  assert lines(tmp_path / 'rungs.jsonl') == lines(workdir / 'rungs.jsonl')
  assert (tmp_path / 'best.json').read_text() == (workdir / 'best.json').read_text()
  assert stage(tmp_path, records) == []


def test_of_children_with_the_greatest_reward_the_one_with_the_best_score_is_the_best(records, tmp_path):
  """With a limit on rewards, the first child to reach it is not the best one."""
  limited = [record | {'reward': 2.0} for record in records]
  stage(tmp_path, limited, dataclasses.replace(CFG, rungs=1))
  (best,) = best_different(limited, 1)
  assert best != 0 and json.loads((tmp_path / 'best.json').read_text())['id'] == best


def test_a_damaged_line_is_had_again(whole, records, tmp_path):
  workdir, seen = whole
  path = tmp_path / 'rungs.jsonl'
  path.write_bytes((workdir / 'rungs.jsonl').read_bytes()[:-9])  # of the last child of the last rung
  with pytest.warns(UserWarning, match=r'rungs.jsonl: 1 damaged line, moved to .*; what was lost is trained again'):
    assert stage(tmp_path, records) == seen[20:21]
  assert lines(path) == lines(workdir / 'rungs.jsonl')


def test_a_search_that_goes_on_keeps_what_was_trained(whole, records, tmp_path):
  workdir, seen = whole
  stage(tmp_path, records[:9], dataclasses.replace(CFG, rungs=1))
  assert lines(tmp_path / 'rungs.jsonl') == []
  trained = stage(tmp_path, records[:9], dataclasses.replace(CFG, rungs=2)) + stage(tmp_path, records)
  assert set(trained) >= set(seen[12:21]) and len(set(trained)) == len(trained)
  found = {(line['rung'], line['id']): line for line in lines(tmp_path / 'rungs.jsonl')}
  assert all(found[line['rung'], line['id']] == line for line in lines(workdir / 'rungs.jsonl'))
  assert (tmp_path / 'best.json').read_text() == (workdir / 'best.json').read_text()


def test_another_factor_is_another_search(whole):
  with pytest.raises(ValueError, match=r'another config: rung_factor \(2 -> 3\)'):
    workdirs.open_config(str(whole[0]), dataclasses.replace(CFG, rung_factor=3))


def test_a_search_from_before_there_were_rungs_resumes():
  for made in (testing.cell_config(), testing.conv_config(), testing.chain_config()):
    saved = {name: value for name, value in config.as_json(made).items() if not name.startswith('rung')}
    assert config.differences(saved, dataclasses.replace(made, rungs=2)) == []
    assert config.differences(saved, dataclasses.replace(made, rung_factor=2))


def test_children_of_different_depths_are_trained_apart_and_none_twice():
  made = CONV.make_space(testing.conv_config())
  records = [{'id': k, 'tokens': [0] * made.length, 'depth': depth} for k, depth in enumerate((2, 1, 2, 2, 1, 2))]
  found = list(rung_stage._batches(made, records, jax.random.key(0), 3))
  assert [(batch.depth, batch.ids.tolist(), count) for batch, count in found] == [
    (1, [1, 4, 4], 2),
    (2, [0, 2, 3], 3),
    (2, [5, 5, 5], 1),
  ]
  assert found[0][0].repeats.known.tolist() == [False, False, True] and found[1][0].repeats is None
  assert found[0][0].archs.filters.shape == (3, 1)


REAL = {
  'cells': (CELL, testing.cell_config(max_children=4, rungs=2, rung_factor=2), TEXT),
  'networks that grow deeper': (
    CONV,
    testing.conv_config(depth_start=1, depth_step=1, depth_every=2, rungs=2, rung_factor=2, child_program='generic'),
    testing.pictures(),
  ),
  'chains': (CHAIN, testing.chain_config(rungs=2, rung_factor=2), testing.pictures()),
}


@pytest.mark.long
@pytest.mark.parametrize('name', REAL)
def test_real_trainings_that_are_stopped_end_as_unbroken_ones(name, tmp_path):
  system, cfg, data = REAL[name]
  cfg = dataclasses.replace(cfg, reliability_children=0, yardstick_repeats=0)
  system = system._replace(alone=system.alone._replace(references=lambda *_: {}))

  def ending(folder, stops):
    checks = iter(range(NEVER))

    def check():
      if stops and next(checks) == stops[0]:
        stops.pop(0)
        raise Stopped

    workdirs.open_config(str(folder), cfg)
    search_flow.run(system, cfg, data, str(folder), with_control=False, check=check)
    found = journal.read_lines(str(folder / 'rungs.jsonl'), journal.child_of_rung(system.make_space(cfg)))
    return [{**line, 'seconds': 0.0} for line in found], (folder / 'best.json').read_text()

  wanted, stops = ending(tmp_path / 'whole', []), [1, 3, 2, 0, 1]
  assert len(wanted[0]) == 2 and all(line['failed'] is None for line in wanted[0])
  found = None
  while found is None:
    with contextlib.suppress(Stopped):
      found = ending(tmp_path / 'stopped', stops)
  assert found == wanted and len(stops) <= 3  # of five, as there are not always so many checks
