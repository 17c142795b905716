"""The final choice of a search: candidates trained to convergence, one of each search chosen, nothing trained twice."""

import dataclasses
import json
import shutil

import pytest
import testing

from experiments.common import final_choice, reports, retraining, search_flow, workdirs
from experiments.common.systems import CELL
from nas_jax import config, space
from nas_jax.report import headline, page
from nas_jax.systems import cell, retrain_cell
from nas_jax.systems.retrain import FinalChoice
from nas_jax.training import full_training
from nas_jax.training.recovery import Stopped

TEXT = testing.text()
CFG = testing.cell_config(final_children=2, reliability_children=0, yardstick_repeats=0)
RECIPE = testing.retrain_config(lr=(0.003, 0.1), epochs=2, repeats=2)
ALONE = CELL.alone._replace(final=lambda cfg, text: FinalChoice(RECIPE, {'LSTM': 'LSTM'}))
SYSTEM = testing.one_search(CELL._replace(alone=ALONE))


def searched(workdir, cfg=CFG, check=lambda: None):
  workdirs.open_config(str(workdir), cfg)
  search_flow.run(SYSTEM, cfg, TEXT, str(workdir), check=check)


def result(workdir):
  found = json.loads((workdir / 'final' / 'result.json').read_text())
  return found | {'rows': [{k: v for k, v in row.items() if k != 'seconds'} for row in found['rows']]}


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('whole')
  searched(workdir)
  return workdir


def test_the_best_of_each_search_by_validation_stands_beside_the_reference(whole):
  found = result(whole)
  assert list(found['candidates']) == ['reinforce', 'random', 'LSTM']
  assert [len(losses) for losses in found['candidates'].values()] == [2, 2, 1]
  best = [min(losses, key=losses.get) for losses in found['candidates'].values()]
  assert [row['name'] for row in found['rows']] == best
  assert all(len(row['test']) == len(row['valid']) == 2 for row in found['rows'])
  number = json.loads((whole / 'final' / 'best.json').read_text())['id']
  assert best[0] == f'reinforce child {number}'


def with_recipe(**changes):
  """Returns the system, with changes of the recipe of its final choice."""
  recipe = dataclasses.replace(RECIPE, **changes)
  return SYSTEM._replace(alone=ALONE._replace(final=lambda cfg, text: FinalChoice(recipe, {'LSTM': 'LSTM'})))


def test_another_number_of_repeats_is_refused_once_the_final_choice_has_begun(whole):
  with pytest.raises(ValueError, match=r'repeats .2 -> 3.* Or leave it out: --final_children=0') as error:
    final_choice.check(with_recipe(repeats=3), CFG, TEXT, str(whole))
  testing.one_line(error)


def test_a_final_choice_that_was_begun_by_another_recipe_is_refused(whole, tmp_path):
  system = with_recipe(epochs=3, optimizer='sgd')
  with pytest.raises(ValueError, match='another config: .*optimizer .*Or leave it out: --final_ch') as error:
    final_choice.check(system, CFG, TEXT, str(whole))
  testing.one_line(error)
  final_choice.check(system, dataclasses.replace(CFG, final_children=0), TEXT, str(whole))
  final_choice.check(system, CFG, TEXT, str(tmp_path))  # not begun


@pytest.mark.long
def test_its_numbers_are_those_of_retrain(whole, tmp_path):
  row = result(whole)['rows'][0]
  arch = space.from_json((whole / 'final' / 'best.json').read_text(), CELL.kind)
  retraining.run(CELL, RECIPE, TEXT, {row['name']: arch, 'LSTM': 'LSTM'}, str(tmp_path))
  alone, reference = json.loads((tmp_path / 'result.json').read_text())['rows']
  for mine, other in ((row, alone), (result(whole)['rows'][2], reference)):
    assert mine == {name: value for name, value in other.items() if name != 'seconds'}


def test_its_table_comes_first(whole):
  summary, found = (whole / 'summary.txt').read_text(), reports.read(str(whole))
  assert summary.startswith('Trained to convergence') and summary.index('test perplexity') < summary.index(
    'best cell ('
  )
  for row in result(whole)['rows']:
    assert f'{sum(row["test"]) / 2:.3f} ± ' in summary

  first, *others = result(whole)['rows']
  assert f'{sum(first["test"]) / 2:.3f} ± ' in headline.headline(found)
  for row in others:
    assert f'{sum(row["test"]) / 2:.3f} ± ' in headline.lede(found)[0]
  text = page.render(found)
  assert text.index('<h2>Trained to convergence') < text.index('<h2>How the search went')
  assert headline.in_the_search(found) in text


def test_what_is_over_is_not_trained_again(whole, monkeypatch):
  monkeypatch.setattr(retraining, 'train_stage', lambda *args: pytest.fail('trained again'))
  before = (whole / 'summary.txt').read_text()
  searched(whole)
  assert (whole / 'summary.txt').read_text() == before


@pytest.mark.long
def test_stopped_within_it_goes_on_from_the_epoch_before(whole, tmp_path, monkeypatch):
  shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
  shutil.rmtree(tmp_path / 'final')
  epochs, choose = [], full_training._choose

  def count(*args):  # called once an epoch
    epochs.append(None)
    return choose(*args)

  monkeypatch.setattr(full_training, '_choose', count)

  def stop_after(wanted):
    def check():
      if len(epochs) >= wanted:
        raise Stopped

    return check

  stages = sum(len(json.loads(path.read_text())) for path in (whole / 'final').glob('*/trainings.json'))
  for wanted in (1, 4):  # within the grid of the first child, then between two
    with pytest.raises(Stopped):
      searched(tmp_path, check=stop_after(wanted))
  searched(tmp_path)
  assert result(tmp_path) == result(whole)
  assert len(epochs) == 2 * stages  # each epoch of each stage once


def test_an_architecture_of_two_groups_is_trained_once(tmp_path, monkeypatch):
  trained = []

  def train_stage(subject, stage, running):
    trained.append((subject.arch, stage.final))
    scores = {'curve': [[2.0, 2.0], [2.0, 1.0]], 'valid': [2.0, 1.0], 'test': [1.5, 1.5]}
    return {'size': '4', 'parameters': 9, 'seconds': 0.0, **scores}

  monkeypatch.setattr(retraining, 'train_stage', train_stage)
  groups = {'reinforce': {'mine': 'LSTM'}, 'random': {'theirs': 'LSTM'}, 'none': {}}
  found = retraining.choose(CELL, RECIPE, TEXT, groups, str(tmp_path))
  assert trained == [('LSTM', False), ('LSTM', True)]
  assert [row['name'] for row in found['rows']] == ['mine', 'theirs'] and 'lr 0.1,' in found['rows'][0]['settings']
  # After more children of the search, another one may be the best of this architecture.
  again = retraining.choose(CELL, RECIPE, TEXT, {'reinforce': {'another': 'LSTM'}}, str(tmp_path))
  assert len(trained) == 2 and again['rows'] == [found['rows'][0] | {'name': 'another'}]


@pytest.mark.parametrize('preset', ['demo', 'smoke'])
def test_references_have_as_many_weights_as_the_cells(preset):
  cfg = cell.PRESETS[preset]()
  text = CELL.load(cfg, '')
  choice = final_choice.of(CELL, cfg, text)
  made = cell.make_space(cfg)
  weights = retrain_cell.weights(choice.cfg, text, made.decode([0] * made.length), choice.cfg.sizes[0])
  assert list(choice.references) == ['NASCELL', 'LSTM']
  for arch in choice.references.values():
    assert abs(retrain_cell.weights(choice.cfg, text, arch, choice.cfg.sizes[0]) / weights - 1) < 0.05
  if preset == 'demo':
    assert retrain_cell.width(choice.cfg, text, made.decode([0] * made.length), choice.cfg.sizes[0]) == 64


def test_a_choice_that_cannot_be_made_says_how_to_leave_it_out():
  with pytest.raises(ValueError, match='--final_children=0'):
    final_choice.of(CELL, dataclasses.replace(CFG, final_preset='zaremba_small'), TEXT)


def test_a_search_from_before_there_was_a_final_choice_resumes():
  saved = {name: value for name, value in config.as_json(cell.demo()).items() if not name.startswith('final_')}
  assert config.differences(saved, cell.demo()) == []


def test_children_of_small_are_trained_by_the_recipe_that_judges_them():
  children, judged = cell.small(), retrain_cell.PRESETS[cell.small().final_preset]()
  for name in ('dataset', 'level', 'layers', 'batch', 'bptt', 'optimizer', 'schedule', 'sum_over_time', 'clip'):
    assert getattr(children, name) == getattr(judged, name), name
  assert children.lr in judged.lr and (children.cell_init,) == (children.init_scale,) == judged.init_scale
