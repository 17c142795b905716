"""Trainings that are continued for more epochs than they had."""

import json
import math
import os
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import testing

from experiments.common import epochs, models, retraining, workdirs
from experiments.common.systems import CELL
from nas_jax import files, load, space
from nas_jax.systems import retrain
from nas_jax.training import checkpoint, fit, full_training, layout
from nas_jax.training.child import Child
from nas_jax.training.recovery import Stopped

ARCH = space.TreeArch((0, 1, 0), (1, 2, 1), (0, 1), (2, 0))


def train(folder, count, check=lambda: None, **changes):
  cfg = testing.retrain_config(lr=(0.1,), epochs=count, **changes)
  epochs.open_results(str(folder), cfg)
  retraining.run(CELL, cfg, testing.text(), {'cell': ARCH}, str(folder), check)
  (entries,) = folder.glob('cell-*/trainings.json')
  return [{**entry, 'seconds': 0} for entry in json.loads(entries.read_text()).values()]


@pytest.mark.long
def test_it_ends_as_one_of_so_many_epochs_from_the_start(tmp_path, capsys, monkeypatch):
  """Also if it is stopped, and resumed with a still larger number of epochs."""
  monkeypatch.setattr(full_training, 'CALL_STEPS', 100)  # one call an epoch
  whole = train(tmp_path / 'whole', 5)
  train(tmp_path / 'longer', 2)
  left = [None]

  def check():
    if not left:
      raise Stopped
    left.pop()

  with pytest.raises(Stopped):
    train(tmp_path / 'longer', 4, check)  # after one more epoch
  assert train(tmp_path / 'longer', 5) == whole
  assert 'cell: 4: goes on after epoch 2, to epoch 5' in capsys.readouterr().out
  one, other = (load(tmp_path / name) for name in ('whole', 'longer'))
  np.testing.assert_array_equal(*(model.variables['params']['softmax']['kernel'] for model in (one, other)))
  assert one.about == other.about
  (row,) = json.loads((tmp_path / 'longer' / 'result.json').read_text())['rows']
  assert row['epochs'] == 5 and len(row['curve'][0]) == 5
  with pytest.raises(ValueError, match=r'epochs \(=3\) are fewer than the 5'):
    train(tmp_path / 'longer', 3)


def test_killed_after_its_weights_are_kept_nothing_is_trained_again(tmp_path, monkeypatch):
  """The process ends before it writes the entry of trainings.json; then the weights are written again."""

  def write(path, content):
    if path.endswith('trainings.json'):
      raise KeyboardInterrupt
    files.write(path, content)

  monkeypatch.setattr(workdirs, 'write', write)
  with pytest.raises(KeyboardInterrupt):
    train(tmp_path, 2)
  monkeypatch.undo()
  (kept,) = tmp_path.glob('cell-*/model-4-0')
  test = load(kept).about['scores']['test']
  for path in kept.glob('weights/*/digest/*'):
    path.unlink()  # damaged by the same accident
  fit = full_training.run

  def run(task, progress, *rest):
    assert int(progress.done) == 2
    return fit(task, progress, *rest)

  monkeypatch.setattr(full_training, 'run', run)
  (entry,) = train(tmp_path, 2)
  assert entry['test'] == [test] == [load(kept).about['scores']['test']]


@pytest.mark.parametrize(
  ('schedule', 'why'), [('cosine', 'all rates of the schedule'), ('constant', 'its state was not kept')]
)
def test_it_starts_anew_where_it_cannot_go_on(tmp_path, monkeypatch, capsys, schedule, why):
  """The schedule depends on the number of epochs, or an earlier version kept no state."""
  begun = []

  def stage(subject, stage, running):
    begun.append(os.path.isdir(running))
    return {
      'size': '4',
      'parameters': 1,
      'curve': [[1.0] * stage.epochs],
      'valid': [1.0],
      'test': [1.0],
      'seconds': 0.0,
    }

  monkeypatch.setattr(retraining, 'train_stage', stage)
  train(tmp_path, 2, schedule=schedule)
  (folder,) = tmp_path.glob('cell-*')
  if schedule == 'cosine':
    (folder / 'running-01234567').mkdir()  # of a training that was stopped: its rates were those of two epochs
  (entry,) = train(tmp_path, 3, schedule=schedule)
  assert begun == [False, False] and len(entry['curve'][0]) == 3 and not list(folder.glob('running*'))
  assert f'cell: 4: trained anew for 3 epochs and not 2: {why}' in capsys.readouterr().out
  assert json.loads((tmp_path / 'config.json').read_text())['epochs'] == 3


RATES, KEYS = jnp.array([0.1, 0.2, 0.3]), jax.random.split(jax.random.key(0), 3)


def of_devices(devices):
  """Returns the task of bringing a weight to 1 at three rates, and its untrained state on so many devices."""
  child = Child(
    init=lambda arch, key: jax.random.normal(key, ()),
    carry=lambda params: (),
    batch=lambda data, key, step: (),
    loss=lambda params, arch, carry, batch, key: (jnp.square(params - 1), carry),
    score=lambda params, arch, carry, data: {'off': jnp.square(params - 1)},
  )
  programs = fit.fitter(child, optax.sgd, 9, 3, layout.child_mesh(jax.devices()[:devices]))
  task = full_training.Task('', 1, programs, (), (), lambda scores: scores['off'])
  return task, full_training.start(task, RATES, KEYS, 3)


@pytest.mark.parametrize('now', [1, 2, 4])
@pytest.mark.parametrize('then', [1, 4])
def test_a_training_goes_on_with_another_number_of_devices(tmp_path, recwarn, then, now):
  """Three trainings, stopped after two of three epochs."""
  task, start = of_devices(then)
  save, close = checkpoint.saver(str(tmp_path), keep=1)

  def keep(progress):
    if int(progress.done) == 2:
      save(2, epochs.saved(progress, 3))

  whole = full_training.run(task, *start, keep)
  close()
  # Orbax restores an array of devices to these devices alone, which another process may lack.
  ended = epochs.saved(whole, 3)
  assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves((ended.states, ended.best)))
  task, (fresh, archs, keys) = of_devices(now)
  found = epochs.restored(str(tmp_path), fresh, 3)
  assert int(found.done) == 2 and not [said for said in recwarn if 'damaged' in str(said.message)]
  assert (found.states.failed[3:] == fit.Status.PADDING).all()
  ended = full_training.run(task, found, archs, keys)
  np.testing.assert_allclose(ended.curve[:, :3], whole.curve[:, :3], rtol=1e-6)
  np.testing.assert_allclose(full_training.score(task, ended, archs, 3), whole.curve[:, :3].min(0), rtol=1e-6)


def test_a_state_of_an_earlier_version_is_gone_on_with(monkeypatch):
  """It has the padding of four devices, and in the earliest one the curve has the full length. m is 3."""
  fresh = full_training.Progress(jnp.zeros(4), jnp.zeros(4), jnp.full((4, 4), jnp.nan), jnp.zeros((), jnp.int32))
  done = fresh._replace(states=jnp.arange(4.0), best=jnp.arange(4.0), done=jnp.asarray(2, jnp.int32))
  whole = done._replace(curve=fresh.curve.at[:2].set(7.0))
  for state in (whole, whole._replace(curve=whole.curve[:2]), epochs.saved(whole, 3)):

    def restore(folder, like, older, state=state):
      layouts = [(like(2), lambda same: same), *older(like(2))]
      shapes = jax.tree.map(np.shape, state)
      return next(convert(state) for layout, convert in layouts if jax.tree.map(np.shape, layout) == shapes)

    monkeypatch.setattr(checkpoint, 'restore', restore)
    found = epochs.restored('', fresh, 3)
    assert found.curve.shape == (4, 4) and int(found.done) == 2
    np.testing.assert_array_equal(found.curve[:2, :3], [[7.0] * 3] * 2)
    np.testing.assert_array_equal(found.states, [0.0, 1.0, 2.0, 0.0])  # the padding is that of `fresh`
    assert np.isnan(found.curve[2:]).all()
  monkeypatch.setattr(checkpoint, 'restore', lambda *args: None)
  assert epochs.restored('', fresh, 3) is fresh


def without_scores(entry):
  del entry['valid'], entry['test']


DAMAGES = {
  'no curve': lambda entry: entry.update(curve=[]),
  'empty curves': lambda entry: entry.update(curve=[[], []]),
  'curves of two lengths': lambda entry: entry['curve'][0].pop(),
  'a validation score too few': lambda entry: entry['valid'].pop(),
  'a test score too many': lambda entry: entry['test'].append(1.0),
  'no scores': without_scores,
  'a training too few': lambda entry: [entry[name].pop() for name in ('curve', 'valid', 'test')],
}


@pytest.mark.parametrize('name', DAMAGES)
@pytest.mark.parametrize('at', [0, 1])
@pytest.mark.filterwarnings('ignore:.*is damaged')
def test_a_damaged_entry_is_trained_again(tmp_path, monkeypatch, name, at):
  """The grid is of two points and the final stage of two repeats; all trainings fail, so that their losses are null."""
  began = []

  def stage(subject, stage, running):
    began.append(stage.name)
    losses = [math.inf] * len(stage.points)
    found = {'size': '4', 'parameters': 1, 'curve': [[loss] * stage.epochs for loss in losses], 'valid': losses}
    return found | {'seconds': 0.0, 'test': list(losses)}

  monkeypatch.setattr(retraining, 'train_stage', stage)
  cfg = testing.retrain_config(lr=(0.1, 0.2), epochs=2, repeats=2)
  subject = retraining.Subject(CELL.retrain, cfg, None, 'cell', ARCH, str(tmp_path))
  rows = retraining.retrain_arch(subject)
  assert retraining.retrain_arch(subject) == rows and began == ['cell: grid', 'cell: 4']
  path = tmp_path / 'trainings.json'
  sound = path.read_text()
  assert 'null' in sound
  entries = json.loads(sound)
  DAMAGES[name](list(entries.values())[at])
  path.write_text(json.dumps(entries))
  assert retraining.retrain_arch(subject) == rows and path.read_text() == sound
  # An entry of another number of trainings is replaced; a file that fits no stage is moved aside as a whole.
  again = [['cell: grid'], ['cell: 4']][at] if name == 'a training too few' else ['cell: grid', 'cell: 4']
  assert began[2:] == again


def test_a_training_that_fails_leaves_no_network_of_fewer_epochs(tmp_path):
  cfg = testing.retrain_config()
  (point,) = retrain.grid(CELL.retrain.point, cfg)
  (tmp_path / 'model-4-0').mkdir()
  models.keep(str(tmp_path), CELL.retrain, cfg, testing.text(), 'LSTM', '4', point, (), {'test': [math.inf]})
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('choose', [True, False])
def test_a_training_that_fails_before_its_last_epoch(tmp_path, monkeypatch, choose):
  """Where the best epoch is chosen it has the result of that epoch, and where the last one counts it has none."""
  task, start = of_devices(1)
  curve = jnp.array([[3.0, 3.0, 3.0], [2.0, jnp.inf, 2.0]])
  monkeypatch.setattr(full_training, 'start', lambda *_: start)
  monkeypatch.setattr(full_training, 'run', lambda task, progress, *_: progress._replace(curve=curve))
  monkeypatch.setattr(full_training, 'score', lambda *_: np.array([0.5, 0.6, 0.7]))
  kept = []
  monkeypatch.setattr(
    retraining.models, 'keep', lambda *args: kept.append(args[-1]['test']) or types.SimpleNamespace(multiply_adds=1)
  )
  recipe = CELL.retrain._replace(task=lambda *_: task._replace(choose=choose), hyperparameters=lambda points: RATES)
  subject = retraining.Subject(recipe, testing.retrain_config(), None, 'cell', ARCH, str(tmp_path))
  stage = retraining.Stage('cell: 4', '4', 2, [None] * 3, 0, True)
  found = retraining.train_stage(subject, stage, str(tmp_path / 'running'))
  assert kept == [found['test']] == [[0.5, 0.6 if choose else math.inf, 0.7]]
