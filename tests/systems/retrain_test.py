"""Retraining after a search: grids, sizes, full training, and resuming."""

import dataclasses
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import testing

from experiments.common import epochs, launch, retraining
from experiments.common.systems import CELL
from nas_jax import space
from nas_jax.children import language_model
from nas_jax.datasets import text_batches
from nas_jax.datasets.sequences import load_sequences
from nas_jax.published import LSTM
from nas_jax.systems import classifier, language, retrain_sequence
from nas_jax.systems import retrain_cell as retrain
from nas_jax.systems.retrain import grid
from nas_jax.training import checkpoint, full_training, layout
from nas_jax.training.child import bind_arch
from nas_jax.training.recovery import Stopped

ARCH = space.TreeArch((0, 1, 0), (1, 2, 1), (0, 1), (2, 0))
CELLS = {'mine': ARCH}
POINTS = [
  retrain.Point(0.3, 2.0, 0.5, '0'),
  retrain.Point(0.1, 1.0, 0.5, '0'),
  retrain.Point(0.3, 2.0, 0.1, '0:0.4:0:0'),
]
DECAYING = testing.retrain_config(optimizer='sgd', schedule='epochs', lr_decay=0.5)


@pytest.fixture(scope='module')
def made():
  return retrain.task(DECAYING, testing.text(), ARCH, '4', 3)


def begun(made, points, epochs):
  return full_training.start(
    made, retrain.hyperparameters(points), jax.random.split(jax.random.key(0), len(points)), epochs
  )


def finished(made, keep=lambda progress: None):
  progress, archs, keys = begun(made, POINTS, 3)
  return full_training.run(made, progress, archs, keys, keep), archs


@pytest.fixture(scope='module')
def whole(made):
  return finished(made)


def test_one_program_trains_all_points_as_each_would_alone(made, whole):
  """Rates, scales and decay as arrays give the results of programs that have them as constants."""
  keys = jax.random.split(jax.random.key(0), len(POINTS))
  for k, point in enumerate(POINTS[:2]):
    settings = language_model.Hyperparameters(point.lr, point.decay_epoch, point.init_scale, point.init_scale)
    network = language.build(DECAYING, testing.text(), language_model.tree(), 4)
    epoch = len(made.data.train)
    alone = bind_arch(network, lambda _, settings=settings: language_model.ChildSpec(ARCH, settings))
    programs = language.fitter(DECAYING, made.data, alone, lambda _, settings=settings: settings, 3 * epoch, epoch)
    task = made._replace(programs=programs)
    progress = full_training.run(task, *full_training.start(task, (), keys[k : k + 1], 3))
    np.testing.assert_allclose(progress.curve[:, 0], whole[0].curve[:, k], rtol=1e-5)


@pytest.mark.parametrize('steps', [4, 1000])
def test_an_epoch_has_all_its_steps_in_however_many_calls(made, whole, monkeypatch, steps):
  monkeypatch.setattr(full_training, 'CALL_STEPS', steps)
  progress, _ = finished(made)
  np.testing.assert_array_equal(progress.states.step[: len(POINTS)], 3 * len(made.data.train))
  np.testing.assert_array_equal(progress.curve, whole[0].curve)


def test_a_training_too_large_for_a_device_is_refused_before_it_starts(monkeypatch, tmp_path):
  monkeypatch.setattr(layout, 'memory_limit', lambda mesh: 1000)
  monkeypatch.setattr(full_training, 'run', None)  # would fail
  with pytest.raises(
    ValueError, match='2 trainings do not fit into the .* GiB of a device, .*: give a smaller'
  ) as error:
    cells = {'mine': ARCH}
    retraining.run(CELL, testing.retrain_config(lr=(0.1, 0.3)), testing.text(), cells, str(tmp_path))
  testing.one_line(error)
  assert launch.ending(error.value) == (2, str(error.value))  # it is found in the work, and is no bug


def test_the_rate_decays_by_epochs_as_by_hand():
  make = language.optimizer(DECAYING, steps=50, epoch=10)
  optimizer = make(language_model.Hyperparameters(jnp.array(8.0), jnp.array(2.0), 0.0, 0.0))
  state, rates = optimizer.init(jnp.zeros(())), []
  for _ in range(50):
    update, state = optimizer.update(jnp.ones(()), state)
    rates.append(-float(update))
  assert rates[::10] == [8.0, 8.0, 4.0, 2.0, 1.0] and rates[9::10] == rates[::10]


def test_the_weights_kept_are_those_that_scored_best(made, whole):
  progress, archs = whole
  curve = np.asarray(progress.curve)[:, : len(POINTS)]
  assert np.isfinite(curve).all()
  again = full_training.score(made, progress, archs, len(POINTS), made.data)
  np.testing.assert_allclose(again, curve.min(0), rtol=1e-6)


def test_a_later_worse_epoch_does_not_replace_the_best(made):
  """At a rate that never decays and far too high, some epoch is worse than the one before."""
  cfg = testing.retrain_config(optimizer='sgd', clip=1e6, epochs=8)
  wild = retrain.task(cfg, testing.text(), ARCH, '4', 8)
  points = [retrain.Point(lr, 1.0, 0.5, '0') for lr in (6.0, 12.0, 20.0, 30.0)]
  progress, archs, keys = begun(wild, points, 8)
  progress = full_training.run(wild, progress, archs, keys)
  curve = np.asarray(progress.curve)
  assert (curve[-1] > curve.min(0) * 1.001).any()
  again = full_training.score(wild, progress, archs, 4, wild.data)
  np.testing.assert_allclose(again, curve.min(0), rtol=1e-6)


def test_cut_off_and_restored_it_ends_the_same(made, whole, tmp_path):
  class Cut(Exception):
    pass

  save, close = checkpoint.saver(str(tmp_path))

  def cut(progress):
    save(int(progress.done), progress)
    if int(progress.done) == 2:
      raise Cut

  with pytest.raises(Cut):
    finished(made, cut)
  close()
  fresh, archs, keys = begun(made, POINTS, 3)
  restored = checkpoint.restore(str(tmp_path), fresh)
  assert int(restored.done) == 2
  ended = full_training.run(made, restored, archs, keys)
  jax.tree.map(np.testing.assert_array_equal, ended, whole[0])


def test_stopped_within_an_epoch_it_goes_on_from_the_one_before(made, whole, tmp_path, monkeypatch):
  """Epochs in calls of two steps; it is stopped before the third call of the second epoch."""
  monkeypatch.setattr(full_training, 'CALL_STEPS', 2)
  save, close = checkpoint.saver(str(tmp_path))
  asked = []

  def check():
    asked.append(None)
    if len(asked) == made.programs.steps_per_call // 2 + 3:
      raise Stopped

  start = begun(made, POINTS, 3)
  with pytest.raises(Stopped):
    full_training.run(made, *start, lambda progress: save(int(progress.done), progress), check)
  close()
  fresh, archs, keys = begun(made, POINTS, 3)
  restored = checkpoint.restore(str(tmp_path), fresh)
  assert int(restored.done) == 1
  jax.tree.map(np.testing.assert_array_equal, full_training.run(made, restored, archs, keys), whole[0])


@pytest.mark.parametrize(
  'parameters, tied, hidden',
  [(20_000_000, False, 538), (20_000_000, True, 650), (32_000_000, False, 735), (54_000_000, True, 1152)],
)
def test_the_width_for_a_number_of_weights(parameters, tied, hidden):
  """Two layers, base 8, 10,000 words: 32 h^2 + 2 V h weights untied, 32 h^2 + V h tied, and V biases."""
  cfg = language.Config(vocabulary=10_000, layers=2, tied=tied)
  found = language.width(cfg, testing.text(), language_model.tree(), LSTM, parameters)
  assert abs(found - hidden) <= 1
  network = language.build(cfg, testing.text(), language_model.tree(), found)
  assert language.weights(network, LSTM) == 32 * found**2 + (1 if tied else 2) * 10_000 * found + 10_000


@pytest.mark.parametrize('preset, units', [('zaremba_small', 200), ('zaremba_medium', 650)])
def test_zaremba_sizes_are_his_numbers_of_lstm_units(preset, units):
  cfg = dataclasses.replace(retrain.PRESETS[preset](), vocabulary=10_000)
  assert retrain.width(cfg, testing.text(), 'LSTM', cfg.sizes[0]) == units


def test_the_embedding_may_be_narrower_than_the_cells():
  network = language_model.build(5, 4, 2, 3, language_model.tree(), embedding=3)
  plan = language_model.ChildSpec(ARCH, language_model.Hyperparameters(0.1, 0.0, 0.5, 0.5))
  params = network.init(plan, jax.random.key(0))
  assert params['embedding'].shape == (5, 3) and params['softmax'].shape == (4, 5)
  assert [cell['kernel'].shape for cell in params['cells']] == [(3, 8), (4, 8)]
  assert np.isfinite(network.score(params, plan, (), text_batches.lay_out(testing.text(), 3, 5, 4))['perplexity'])


def test_grid_sizes_and_rates_by_hand():
  cfg = testing.retrain_config(lr=(0.1, 0.2), dropout=('0', '0.5'), decay_epoch=(1.0,))
  assert [(p.lr, p.dropout) for p in grid(retrain.Point, cfg)] == [(0.1, '0'), (0.1, '0.5'), (0.2, '0'), (0.2, '0.5')]
  assert [retrain.parse_size(size) for size in ('200', '4.65M', '12k')] == [(200, 0), (0, 4_650_000), (0, 12_000)]
  assert retrain.parse_dropout('0.5') == language_model.Dropout(0.0, 0.5, 0.0, 0.5)
  # The final cell of Pham et al. in the released code, which keeps 0.79, 0.25, 0.75 and 0.24.
  (final,) = retrain.enas().dropout
  assert retrain.parse_dropout(final)._asdict() == {'embedding': 0.21, 'input': 0.75, 'recurrent': 0.25, 'output': 0.76}
  assert retrain.parse_dropout('0:.1:.2:.3') == language_model.Dropout(0.0, 0.1, 0.2, 0.3)
  settings = retrain.hyperparameters(POINTS)
  assert settings.dropout.recurrent is None and np.allclose(settings.dropout.input, [0, 0, 0.4])


@pytest.mark.parametrize('preset', retrain.PRESETS)
def test_presets_are_sound(preset):
  retrain.check(retrain.PRESETS[preset]())


def run(folder, cells=CELLS, **changes):
  cfg = testing.retrain_config(lr=(0.1, 0.0001), grid_epochs=1, repeats=2, epochs=2, **changes)
  retraining.run(CELL, cfg, testing.text(), cells, str(folder))
  return json.loads((folder / 'result.json').read_text())


def test_grid_then_winner_at_every_size(tmp_path, capsys):
  found = run(tmp_path, sizes=('4', '6'))
  assert [(row['name'], row['size'], row['repeats']) for row in found['rows']] == [('mine', '4', 2), ('mine', '6', 2)]
  for row in found['rows']:
    assert row['settings'].startswith('lr 0.1,')  # the higher rate is better in one epoch
    assert len(row['valid']) == len(row['test']) == 2 and row['valid'][0] != row['valid'][1]
    assert max(row['test']) < 5  # of five words
  assert 'mine' in capsys.readouterr().out
  (folder,) = tmp_path.glob('mine-*')
  # By these names a workdir of any version finds what is trained.
  assert folder.name == 'mine-0626aaa4' and list(json.loads((folder / 'trainings.json').read_text())) == [
    'grid at 4',
    '4, lr 0.1, decay after 4, init 0.1, dropout 0',
    '6, lr 0.1, decay after 4, init 0.1, dropout 0',
  ]
  models = [f'model-{size}-{k}' for size in (4, 6) for k in (0, 1)]
  others = sorted(path.name for path in folder.iterdir() if not path.name.startswith('ended-'))
  assert others == [*models, 'trainings.json']  # nothing half done is left


@pytest.mark.parametrize(
  ('best', 'more', 'tried', 'chosen'),
  [
    (0.02, 4, [0.01, 0.02, 0.04], 0.02),  # the greatest of two is an end, the middle of three is none
    (0.09, 4, [0.01, 0.02, 0.04, 0.08, 0.16], 0.08),
    (0.001, 2, [0.01, 0.02, 0.005, 0.0025], 0.0025),  # no more than that
    (0.09, 0, [0.01, 0.02], 0.02),
    (None, 4, [0.01, 0.02], 0.01),  # all fail: no rate is known to be better
  ],
)
def test_a_grid_goes_on_while_its_best_rate_is_at_an_end(tmp_path, monkeypatch, best, more, tried, chosen):
  rates = list[float]()

  def stage(subject, stage, running):
    rates.extend(point.lr for point in stage.points)
    losses = [math.inf if best is None else abs(math.log(point.lr / best)) for point in stage.points]
    curve = [[loss] * stage.epochs for loss in losses]
    return {'size': '4', 'parameters': 1, 'valid': losses, 'curve': curve, 'seconds': 0.0}

  monkeypatch.setattr(retraining, 'train_stage', stage)
  cfg = testing.retrain_config(lr=(0.01, 0.02), extend_grid=more)
  for _ in range(2):  # the second time all of it is known
    subject = retraining.Subject(CELL.retrain, cfg, None, 'cell', None, str(tmp_path))
    point, _ = retraining.extend_grid(subject, retraining.train_grid(subject))
    assert point.lr == pytest.approx(chosen)
    np.testing.assert_allclose(rates, tried)
  text = (tmp_path / 'trainings.json').read_text()
  json.loads(text, parse_constant=lambda name: pytest.fail(f'{name} is not JSON'))
  assert ('null' in text) == (best is None)


@pytest.mark.long
def test_cells_of_several_kinds_side_by_side(tmp_path):
  rnn = space.RnnArch((1, 3, 2), (0, 0))
  cells = {'rnn': rnn, 'LSTM': 'LSTM'}
  cfg = testing.retrain_config(dropout=('0:0:0.1:0',), tied=True, epochs=4, lr=(0.03,))
  retraining.run(CELL, cfg, testing.text(), cells, str(tmp_path))
  rows = json.loads((tmp_path / 'result.json').read_text())['rows']
  embedding, h = 5 * 4 + 5, 4
  assert [(row['name'], row['parameters'] - embedding) for row in rows] == [
    ('rnn', 4 * 2 * h * h),  # x, h and two nodes
    ('LSTM', 2 * 4 * h * h + 4 * h),
  ]
  assert all(max(row['test']) < 4 and row['curve'][0][-1] < row['curve'][0][0] for row in rows)


@pytest.mark.long
def test_what_was_finished_is_not_trained_again(tmp_path, monkeypatch):
  first = run(tmp_path)
  other = run(tmp_path, {'other': 'LSTM'})
  assert [row['name'] for row in other['rows']] == ['mine', 'other'] and other['rows'][0] == first['rows'][0]
  wider = run(tmp_path, sizes=('6', '4'))
  assert [(row['name'], row['size']) for row in wider['rows']] == [('mine', '6'), ('mine', '4'), ('other', '4')]
  monkeypatch.setattr(full_training, 'run', None)  # would fail
  again = run(tmp_path)['rows']
  assert [(row['name'], row['size']) for row in again] == [('mine', '6'), ('mine', '4'), ('other', '4')]
  assert again[1] == first['rows'][0] and again[0] == wider['rows'][0]


@pytest.mark.long
def test_killed_in_the_middle_of_a_training_it_resumes_as_if_unbroken(tmp_path):
  (tmp_path / 'cell.json').write_text(space.tree_cell_space(2).to_json(ARCH))

  def command(folder):
    flags = ('--preset=smoke', '--lr=0.01', '--sizes=8', '--epochs=8', f'--arch={tmp_path}/cell.json')
    return [sys.executable, '-m', 'experiments.retrain', *flags, f'--results={folder}']

  subprocess.run(command(tmp_path / 'unbroken'), check=True, capture_output=True, timeout=300)
  process = subprocess.Popen(command(tmp_path / 'broken'), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
  limit = time.monotonic() + 240
  while process.poll() is None and time.monotonic() < limit:
    if any(name.isdigit() for path in (tmp_path / 'broken').glob('cell*/running-*') for name in os.listdir(path)):
      process.send_signal(signal.SIGKILL)
    time.sleep(0.01)
  assert process.wait() == -signal.SIGKILL
  subprocess.run(command(tmp_path / 'broken'), check=True, capture_output=True, timeout=300)
  results = [json.loads((tmp_path / name / 'result.json').read_text()) for name in ('unbroken', 'broken')]
  one, other = ([{**row, 'seconds': 0} for row in found['rows']] for found in results)
  assert one == other


@pytest.mark.parametrize('older', [False, True])
def test_cut_off_between_a_stage_and_the_next_none_is_lost_or_mixed_up(tmp_path, monkeypatch, older):
  """The process ends after each step in turn that changes files; an earlier version's state is gone on with."""
  began, removed = [], []

  def stage(subject, stage, running):
    began.append((stage.name, os.path.isdir(running)))
    os.makedirs(running, exist_ok=True)
    each = [1.0] * len(stage.points)
    curve = [[1.0] * 3 for _ in each]
    return {'size': '4', 'parameters': 1, 'curve': curve, 'valid': each, 'test': each, 'seconds': 0.0}

  def remove(path):
    removed.append(path)
    if len(removed) == 1:
      raise KeyboardInterrupt  # the process ends here
    shutil.rmtree(path, ignore_errors=True)

  monkeypatch.setattr(retraining, 'train_stage', stage)
  monkeypatch.setattr(epochs, 'files', types.SimpleNamespace(remove=remove))
  cfg = testing.retrain_config(lr=(0.1, 0.2))

  def run():
    return retraining.retrain_arch(retraining.Subject(CELL.retrain, cfg, None, 'cell', None, str(tmp_path)))

  if older:
    (tmp_path / 'running' / '1').mkdir(parents=True)
  with pytest.raises(KeyboardInterrupt):
    run()
  assert list(json.loads((tmp_path / 'trainings.json').read_text())) == ['grid at 4']
  run()
  assert began == [('cell: grid', older), ('cell: 4', False)] and not list(tmp_path.glob('running*'))


def test_sequences_that_are_too_large_for_a_device_are_refused_before_training(monkeypatch):
  data, cfg = load_sequences(max_examples=50), retrain_sequence.smoke()
  retrain_sequence.validate(cfg, data, ARCH)
  monkeypatch.setattr(classifier.layout, 'memory_limit', lambda mesh: 1000)
  with pytest.raises(ValueError, match=r'sequences of \(8, 8\) take .* of a device') as error:
    retrain_sequence.validate(cfg, data, ARCH)
  testing.one_line(error)
