"""A user's own sequences and time series: from a search to a class and a forecast."""

import contextlib
import gc
import json

import numpy as np
import pytest
import testing

from experiments import predict, retrain, sequence_search
from experiments.common import launch, recovery_files, reports, retraining, systems, top, workdirs
from nas_jax import export, published, space
from nas_jax.systems import sequence

CLASSES = ('down', 'level', 'up')
SEARCHED = ['--preset=smoke', '--reliability_children=0', '--yardstick_repeats=0', '--nocontrol', '--max_children=2']


@pytest.fixture(autouse=True)
def set_up(monkeypatch):
  """The tests have set up JAX already, and pytest records crashes."""
  monkeypatch.setattr(launch, 'set_up_jax', lambda count=None: None)
  monkeypatch.setattr(recovery_files, 'recording_crashes', lambda workdir: contextlib.nullcontext())


def run(launcher, *flags):
  launcher.prepare([launcher.__name__, *flags])(lambda: None)
  gc.collect()  # the lock of the folder is released with what holds it


def children(workdir):
  return [json.loads(line) for line in (workdir / 'children.jsonl').read_text().splitlines()]


def write(path, count=90, seed=0):
  """Writes sequences of three classes and various lengths to an .npz."""
  part = testing.waves(count, seed=seed)
  np.savez(path, sequences=part.sequences, lengths=part.lengths, labels=np.array(CLASSES)[part.labels])
  return [f'--dataset={path}', '--test_share=0.2']


def write_folder(folder, count=90, seed=0):
  """Writes such sequences to files, in a folder for each class."""
  for k, (rows, length, label) in enumerate(zip(*testing.waves(count, seed=seed), strict=True)):
    path = folder / CLASSES[label] / f'{k:02}.csv'
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savetxt(path, rows[:length], delimiter=',', header='level,noise', comments='')
  return ['--dataset=folder', f'--data_dir={folder}', '--test_share=0.2']


@pytest.mark.long
def test_from_sequences_to_the_name_of_a_class(tmp_path, capsys):
  data, workdir = write_folder(tmp_path / 'mine'), tmp_path / 'run'
  goal = ['--metric=f1', '--class_weights=balanced', '--batch=9']
  run(sequence_search, *SEARCHED, f'--workdir={workdir}', *data, *goal)
  assert 'validation macro F1' in capsys.readouterr().out
  found = children(workdir)
  assert all(child['reward'] == pytest.approx(child['f1'] ** 3) and child['weights'] for child in found)
  assert 'macro F1^3' in (workdir / 'report.html').read_text() and 'TreeCell' in (workdir / 'report.html').read_text()
  command = next(line for line in (workdir / 'summary.txt').read_text().splitlines() if 'experiments.retrain' in line)
  assert '--system=sequence' in command and '--dataset=folder' in command and '--metric=f1' in command
  assert f'--data_dir={tmp_path}/mine' in command and '--test_share=0.2' in command
  run(sequence_search, *SEARCHED[:-1], '--max_children=4', f'--workdir={workdir}', *data, *goal)  # it goes on
  assert children(workdir)[:2] == found and len(children(workdir)) == 4
  longer = ['--epochs=20', '--lr=0.03', '--sizes=8,1k']
  run(retrain, '--preset=smoke', f'--workdir={workdir}', '--arch=LSTM', *data, *goal, *longer)
  shown = capsys.readouterr().out
  assert 'test 1 - macro F1' in shown and '18 to test' in shown
  rows = json.loads((workdir / 'retrain-smoke' / 'result.json').read_text())['rows']
  assert [row['size'] for row in rows][::2] == ['8', '8'] and all(
    abs(row['parameters'] - 1000) < 50 for row in rows[1::2]
  )
  model = export.load(workdir)
  assert model.classes == CLASSES and model.about['scores']['test'] < 0.4
  write_folder(tmp_path / 'fresh', 30, seed=1)
  run(predict, f'--model={workdir}', f'--sequences={tmp_path}/fresh', '--json')
  found = json.loads(capsys.readouterr().out)
  assert found['accuracy'] > 0.6 and set(found['sequences'][0]['probabilities']) == set(CLASSES)


@pytest.mark.long
def test_from_a_series_to_a_forecast(tmp_path, capsys):
  series = np.sin(np.arange(300) * 0.7)[:, None] * [2.0, -30.0]
  np.savetxt(tmp_path / 'series.csv', series, delimiter=',', header='a,b', comments='')
  data = [f'--dataset={tmp_path}/series.csv', '--metric=r2', '--window=3', '--horizon=2', '--test_share=0.2']
  workdir = tmp_path / 'run'
  run(sequence_search, *SEARCHED, f'--workdir={workdir}', *data, '--epochs=5')
  assert 'windows of' in capsys.readouterr().out and all('r2' in child for child in children(workdir))
  run(retrain, '--preset=smoke', f'--workdir={workdir}', '--arch=LSTM', *data, '--epochs=60', '--lr=0.03', '--sizes=8')
  assert 'of the changes from the last value' in capsys.readouterr().out
  model = export.load(workdir)
  assert isinstance(model, export.Forecaster) and model.about['scores']['test'] < 0.3
  assert model.inputs.columns == ('a', 'b')
  # Beside repeating the last value, in the end of the series, the networks' error is that of their test.
  np.save(tmp_path / 'past.npy', series[:280])
  run(predict, f'--model={workdir}', f'--sequences={tmp_path}/past.npy', '--json')
  ahead = np.array(json.loads(capsys.readouterr().out)['forecast'])
  assert ahead.shape == (2, 2) and np.abs(ahead - series[280:282]).sum() < np.abs(series[279] - series[280:282]).sum()


def complaint(launcher, *flags):
  with pytest.raises(ValueError) as error:
    run(launcher, *flags)
  return testing.one_line(error)


def test_what_is_wrong_is_said_in_one_line(tmp_path):
  """Nothing is trained before; each launcher says how to correct the input."""
  data, folder_data = write(tmp_path / 'mine.npz'), write_folder(tmp_path / 'mine')
  (tmp_path / 'bad.csv').write_text('heat,load\n1,2\n3,\n')
  lstm = ['--preset=smoke', '--arch=LSTM', f'--results={tmp_path}/results', '--system=sequence']
  for launcher, flags, words in (
    (sequence_search, ['--dataset=ptb'], "must be 'digits', 'folder', a FILE.npz"),
    (sequence_search, ['--max_weights=9'], '--max_weights here, it is one of conv_search'),
    (sequence_search, [*data, '--metric=r2'], 'labels of type <U5: metric r2 wants numbers'),
    (sequence_search, [*data, '--batch=99'], 'batch (=99) is more than the'),
    (sequence_search, [*folder_data, '--metric=r2'], "dataset 'folder' has classes: take a FILE.npz of numbers"),
    (sequence_search, ['--dataset=folder', f'--data_dir={tmp_path}/no'], 'is no folder: name one that exists'),
    (sequence_search, [f'--dataset={tmp_path}/bad.csv', '--metric=r2'], "bad.csv cannot be read (line 3, column 2: ''"),
    (retrain, [*lstm, *folder_data[:2]], "dataset 'folder' has no test split"),
    (retrain, [*lstm, data[0]], 'has no test split'),
    (retrain, [*lstm, '--bptt=3'], '--bptt is for cells of cell_search'),
    (retrain, [*lstm, '--dropout=0:0.1'], 'must be one rate'),
    (retrain, [*lstm, '--sizes=0.05k'], 'parameters (=50) cannot be met'),
    (retrain, [*lstm[:-1], '--system=conv'], 'system (=conv) does not train LSTM, a cell of cell_search'),
    (retrain, [*lstm, '--arch=LSTM,FIGURE_7'], 'FIGURE_7 is a network of conv_search, LSTM a cell'),
  ):
    folder = [f'--workdir={tmp_path}/run'] if launcher is sequence_search else []
    assert words in complaint(launcher, '--preset=smoke', *folder, *flags), (flags, words)


def test_cells_are_retrained_as_what_searched_for_them(tmp_path, monkeypatch):
  """The system is that of the workdir, or the one that is named, or else that of language models."""
  seen = []
  monkeypatch.setattr(retraining, 'run', lambda system, cfg, data, archs, *_: seen.append((system.name, list(archs))))
  monkeypatch.setattr(reports, 'make', lambda workdir: '')
  path = tmp_path / 'best.json'
  path.write_text(space.tree_cell_space().to_json(published.NASCELL))
  given = ['--preset=smoke', f'--arch={path},LSTM']
  run(retrain, *given, f'--results={tmp_path}/a')
  run(retrain, *given, f'--results={tmp_path}/b', '--system=sequence')
  assert [name for name, _ in seen] == ['cell', 'sequence'] and seen[0][1] == seen[1][1]
  cfg = sequence.Config(dataset='x.npz', metric='r2', window=8, horizon=2)
  command = top.retrain_command(f'--arch={path}', systems.SEQUENCE, cfg, {})
  assert '--system=sequence --dataset=x.npz --metric=r2 ' in command and command.endswith('--window=8 --horizon=2')
  assert '--system' not in top.retrain_command(f'--arch={path}', systems.CELL, systems.CELL.config(), {})


def test_a_workdir_of_cells_for_sequences_is_told_from_one_of_language_models(tmp_path):
  for system in (systems.CELL, systems.SEQUENCE):
    folder = str(tmp_path / system.name)
    workdirs.open_config(folder, system.presets['smoke']())
    workdirs.note_origin(folder, system.launcher, [], system.presets['smoke'](), kind=system.kind)
    assert retrain.searched_by(folder) == system.name
  error = complaint(sequence_search, '--preset=smoke', f'--workdir={tmp_path}/cell')
  assert 'holds a search of cell_search' in error
