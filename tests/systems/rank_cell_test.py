"""Short trainings of children against full ones: what is trained, how it is resumed, and the comparison."""

import dataclasses
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import testing

from experiments import rank_children as launcher
from experiments.common import launch, workdirs
from nas_jax import space
from nas_jax.children import language_model
from nas_jax.datasets import text_batches
from nas_jax.report import rankings, reliability
from nas_jax.search import journal
from nas_jax.systems import cell, language, rank_cell
from nas_jax.systems.rank_cell import FINAL, SEARCH
from nas_jax.training import fit, schedules
from nas_jax.training.child import bind_arch
from nas_jax.training.recovery import Stopped

compare = launcher.compared
ARCHS = {
  'product': space.TreeArch((0, 1, 0), (1, 2, 1), (0, 1), (2, 0)),
  'sum': space.TreeArch((0, 0, 0), (1, 2, 1), (0, 1), (2, 0)),
  'gate': space.TreeArch((0, 0, 1), (1, 2, 0), (1, 0), (2, 0)),
}


def config(**changes):
  small = dataclasses.asdict(testing.retrain_config(lr=(0.03, 0.1), schedule='cosine', epochs=2, repeats=1))
  return rank_cell.Config(**(small | {'budgets': (3, 6), 'search_preset': 'smoke', 'scorings': 3} | changes))


def programs(cfg):
  return {name: rank_cell.programs(cfg, name, testing.text(), ARCHS) for name in (FINAL, SEARCH)}


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """A whole run, its second batch cut off and begun again."""
  path, cfg = str(tmp_path_factory.mktemp('ranked') / 'trainings.jsonl'), config(recipes=(FINAL,))
  made, calls = {FINAL: programs(cfg)[FINAL]}, 0

  def check():
    nonlocal calls
    calls += 1
    if calls == 8:
      raise Stopped

  with pytest.raises(Stopped):
    launcher.train_all(cfg, made, ARCHS, {}, path, 4, check)
  before = launcher.read(path)
  done = launcher.read(path)
  launcher.train_all(cfg, made, ARCHS, done, path, 4, lambda: None)
  return cfg, made, path, before, done


def test_what_was_cut_off_goes_on_with_what_is_missing(trained, monkeypatch):
  cfg, made, path, before, done = trained
  assert len(before) == 4
  # Three cells: a grid of two rates, two budgets of two rates, a repeat.
  assert len(done) == 3 * (2 + 4 + 1) and launcher.read(path).keys() == done.keys()
  with open(path) as file:
    assert len(file.readlines()) == len(done)
  monkeypatch.setattr(rank_cell, 'train', None)  # would fail
  launcher.train_all(cfg, made, ARCHS, done, path, 4, lambda: None)
  assert made[FINAL].fitter.compilations() == 3


def test_a_training_is_that_of_the_trainer(trained):
  cfg, _, _, _, done = trained
  (job,) = [job for job in done if job[1] == 'sum' and job.point.startswith('lr 0.1') and job.steps == 6]
  text, hidden = testing.text(), 4
  network = language.build(cfg, text, language_model.tree(), hidden)
  hyperparameters = language_model.Hyperparameters(0.1, 4.0, 0.1, 0.1)
  plan = language_model.ChildSpec(ARCHS['sum'], hyperparameters)
  child = bind_arch(network, lambda _: plan)
  data = text_batches.lay_out(text, cfg.batch, cfg.bptt, cfg.score_batch)
  programs = language.fitter(cfg, data, child, lambda _: hyperparameters, 6, 6)
  key = jax.random.fold_in(jax.random.key(cfg.seed), rank_cell.CHILD)
  found = fit.fit(programs, (), key[None], data)
  np.testing.assert_allclose(done[job]['perplexity'], found['perplexity'][0], rtol=1e-4)


def test_the_full_training_has_a_curve_and_children_have_one_score(trained):
  cfg, made, _, _, done = trained
  full = rank_cell.full_steps(cfg, made[FINAL].epoch)
  assert {len(line['curve']) for job, line in done.items() if job.steps == full} == {6}
  assert {len(line['curve']) for job, line in done.items() if job.steps != full} == {1}
  for line in done.values():
    assert line['failed'] is None and line['perplexity'] == min(line['curve'])


def test_repeats_take_the_best_settings_of_each_cell_and_decide_its_score(trained):
  cfg, made, _, _, done = trained
  jobs = rank_cell.repeat_jobs(cfg, made[FINAL], ARCHS, done)
  grid = rank_cell.grid_jobs(cfg, made[FINAL], ARCHS)
  for job in jobs:
    of_cell = {other.point: done[other]['perplexity'] for other in grid if other.cell == job.cell}
    assert job.point == min(of_cell, key=of_cell.get)
  assert rank_cell.full_scores(cfg, made[FINAL], ARCHS, done).tolist() == [done[job]['perplexity'] for job in jobs]


def test_candidates_and_summary(trained):
  cfg, made, _, _, done = trained
  found = rank_cell.candidates(cfg, made, ARCHS, done)
  assert len(found) == 2 * (2 + 2) + 6
  by_name = {(one.points, one.steps): one for one in found}
  alone = [one.scores for one in found if one.steps == 3 and one.trainings == 1]
  np.testing.assert_array_equal(by_name['best', 3].scores, np.min(alone, 0))
  mean = np.mean(np.array(alone) ** -2, 0)
  np.testing.assert_allclose(by_name['mean reward', 3].scores ** -2, mean)
  table = launcher.compared(cfg, made, ARCHS, done)
  scores = dict(zip(ARCHS, rank_cell.full_scores(cfg, made[FINAL], ARCHS, done)))
  assert table['best'] == [{'cell': name, 'perplexity': scores[name]} for name in sorted(scores, key=scores.get)]
  chosen = min(ARCHS, key=lambda name: found[0].scores[list(ARCHS).index(name)])
  assert table['rows'][0]['regret'] == pytest.approx(scores[chosen] / min(scores.values()) - 1)
  said = launcher.summary(table)
  assert '3 cells: the grid of 0 is not finished, 0 failed' in said and 'mean reward' in said
  assert 'no cell' in launcher.summary(launcher.compared(cfg, made, ARCHS, {}))


def test_failed_trainings_rank_last_and_a_cell_that_always_fails_is_counted_apart(trained):
  cfg, made, _, _, done = trained
  lost = {job: line | {'perplexity': None, 'curve': [None] * 6} for job, line in done.items() if job.cell == 'sum'}
  damaged = done | lost
  assert not np.isfinite(rank_cell.full_scores(cfg, made[FINAL], ARCHS, damaged)[1])
  assert all(not np.isfinite(one.scores[1]) for one in rank_cell.candidates(cfg, made, ARCHS, damaged))
  assert not [job for job in rank_cell.repeat_jobs(cfg, made[FINAL], ARCHS, damaged) if job.cell == 'sum']
  table = launcher.compared(cfg, made, ARCHS, damaged)
  assert 'the grid of 0 is not finished, 1 failed' in launcher.summary(table) and len(table['best']) == 2


def test_a_rate_that_cannot_work_fails_its_training_alone():
  cfg = config(lr=(0.1, 1e30))
  made = programs(cfg)[FINAL]
  good, bad = rank_cell.train(cfg, made, ARCHS, [job for job in rank_cell.grid_jobs(cfg, made, ARCHS)[::3]], 2)
  assert good['failed'] is None and bad['failed'] == 'loss or gradient not finite'
  assert bad['curve'][-1] is None and json.loads(json.dumps(bad)) == bad


def test_the_recipe_of_the_search():
  cfg = config(search_lr=(0.01, 0.1))
  made = rank_cell.programs(cfg, SEARCH, testing.text(), ARCHS)
  assert made.recipe.hidden == 8 and made.recipe.points == ('lr 0.01', 'lr 0.1')
  jobs = rank_cell.child_jobs(cfg, SEARCH, made, ARCHS)
  assert [job.steps for job in jobs] == [3] * 6 + [6] * 6
  lines = rank_cell.train(cfg, made, ARCHS, jobs[:2], 2)
  assert all(line['perplexity'] < 6 for line in lines)


@pytest.mark.parametrize('name', rank_cell.PRESETS)
def test_presets_compare_the_recipe_of_their_search(name):
  cfg = rank_cell.PRESETS[name]()
  assert cfg.search_lr == (cell.PRESETS[cfg.search_preset]().lr,)


def test_the_recipe_of_a_search_has_the_width_of_that_search():
  """The preset `paper` gives a number of weights, and not a width."""
  text, arch = testing.text(), ARCHS['sum']
  made = rank_cell.recipe(config(search_preset='paper'), SEARCH, text, arch)
  network = language.build(made.cfg, text, language_model.tree(), made.hidden)
  spec = language_model.ChildSpec(arch, made.hyperparameters)
  assert language.weights(network, spec.arch) == pytest.approx(made.cfg.parameters, rel=0.05)


def test_agreement():
  sure = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, np.inf])
  same = reliability.agreement(sure, sure)
  assert same == (0, 1.0, 1.0, 0.0, 0.0)
  cheap = np.array([np.inf, 2.0, 1.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 20.0])
  found = reliability.agreement(sure, cheap)
  assert found.failed == 1 and found.quarter == -1.0 and (found.regret, found.regret5) == (2.0, 1.0)
  assert found.all < 1
  wrong = reliability.agreement(sure, np.where(np.isfinite(sure), 1.0, 0.0))
  assert wrong.regret == np.inf and np.isnan(wrong.all)
  assert np.isnan(reliability.agreement(np.full(3, np.inf), np.ones(3)).regret)


@pytest.mark.parametrize('least', [0.0, 0.01])
def test_a_cosine_over_a_number_of_steps_that_is_an_array(least):
  rate = schedules.rate('cosine', 0.1, jnp.asarray(40), 10, least=least)
  expected = optax.cosine_decay_schedule(0.1, 40, least / 0.1)
  steps = jnp.arange(50)
  np.testing.assert_allclose(rate(steps), expected(steps), atol=1e-8)


def test_cells_are_taken_once_and_read_back(tmp_path):
  path = tmp_path / 'cells.json'
  path.write_text(json.dumps({name: json.loads(launcher.arch_json(arch)) for name, arch in ARCHS.items()}))
  assert launcher.read_cells(str(path)) == ARCHS
  path.write_text('[]')
  with pytest.raises(ValueError, match='cells.json'):
    launcher.read_cells(str(path))


def test_searches_whose_folders_have_the_same_name_keep_their_cells(monkeypatch):
  """Child 7 of each of three searches is another cell."""
  archs = dict(zip(('seed0/demo', 'seed1/demo/', 'runs/other'), ARCHS.values()))
  monkeypatch.setattr(launcher.retrain, 'best_of', lambda folder, top, system: {'child 7': archs[folder]})
  values = types.SimpleNamespace(random=0, workdirs=list(archs), top=1, arch=[])
  found = launcher.gather(config(), values)
  assert list(found) == ['seed0/demo child 7', 'seed1/demo/ child 7', 'other child 7']
  assert list(found.values()) == list(ARCHS.values())


@pytest.mark.long
def test_the_comparison_stands_in_the_reports_of_the_searches(trained, tmp_path, monkeypatch, capsys):
  cfg, made, _, _, done = trained
  monkeypatch.setattr(launch, 'set_up_jax', lambda: None)  # JAX runs already
  monkeypatch.setattr(launcher, 'compared', lambda *given: compared)
  compared = compare(cfg, made, ARCHS, done)
  workdir, search = str(tmp_path / 'mine'), cell.smoke()
  made_space = cell.make_space(search)
  record = {
    'id': 0,
    'tokens': [0] * made_space.length,
    'reward': 1.0,
    'failed': None,
    'perplexity': 9.0,
    'seconds': 1.0,
  }
  workdirs.open_config(workdir, search)
  workdirs.write_config(workdir, search)
  journal.writer(f'{workdir}/children.jsonl')([record])
  workdirs.write(f'{workdir}/best.json', rankings.best_json(made_space, record))
  flags = ['x', '--preset=smoke', f'--workdirs={workdir}', '--top=1', '--random=1', f'--results={tmp_path}/out']
  launcher.prepare([*flags, '--arch=', '--notrain'])(lambda: None)
  assert list(json.loads((tmp_path / 'out' / 'cells.json').read_text())) == ['random 0', 'mine child 0']
  written = json.loads((tmp_path / 'out' / 'ranking.json').read_text())
  assert written == workdirs.peek(f'{workdir}/ranking.json') and "'search'" in written['setting']
  assert written['best'] == compared['best'] and written['rows'][0]['regret'] == compared['rows'][0]['regret']
  with open(f'{workdir}/report.html') as page:
    assert 'Short training against full training' in page.read()


def test_flags_to_results(tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(launch, 'set_up_jax', lambda: None)  # JAX runs already
  arch = tmp_path / 'cell.json'
  arch.write_text(launcher.arch_json(ARCHS['sum']))
  flags = ['rank_children', '--preset=smoke', f'--arch={arch},{arch}', '--random=2', f'--results={tmp_path}/out']
  launcher.prepare([*flags, '--notrain'])(lambda: None)
  assert 'no cell is trained' in capsys.readouterr().out
  assert len(json.loads((tmp_path / 'out' / 'cells.json').read_text())) == 3
  with pytest.raises(ValueError, match='other cells'):
    launcher.prepare([*flags, '--notrain', '--random=3'])
  with pytest.raises(ValueError, match='single one'):
    launcher.prepare([*flags, '--notrain', '--sizes=8,12'])
  with pytest.raises(ValueError, match='recipes'):
    launcher.prepare([*flags, '--notrain', '--recipes=best'])
