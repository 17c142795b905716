"""Networks of ENAS alone, trained to the end."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import testing

from nas_jax import published, space
from nas_jax.children import enas_layers
from nas_jax.datasets.images import Images, Scale, Split
from nas_jax.systems import retrain, retrain_conv, retrain_enas
from nas_jax.training import fit, full_training, layout, schedules

IMAGES = testing.pictures()
MACRO = space.MacroArch((5, 4, 5), (1, 0, 1))
NETWORK = space.ChainArch((231,))  # conv 2 3 1


def config(**changes):
  small = {'batch': 9, 'epochs': 3, 'score_batch': 4, 'schedule': 'constant', 'lr': (0.05, 0.01), 'filters': (4, 5)}
  return retrain_enas.Config(**(small | {'cells': 1, 'keep': 0.9} | changes))


@pytest.fixture(scope='module')
def task():
  return retrain_enas.task(config(), IMAGES, MACRO, '4', 3, mesh=layout.child_mesh(jax.devices()[:1]))


def test_a_network_is_trained_at_every_point_of_the_grid(task):
  points = retrain_conv.hyperparameters(retrain.grid(retrain_conv.Point, config()))
  progress, archs, keys = full_training.start(task, points, jax.random.split(jax.random.key(0), 2), 3)
  first = jax.tree.map(np.asarray, progress.states.params)
  assert task.weights == sum(leaf[0].size for leaf in jax.tree.leaves(first))
  assert retrain_enas.RECIPE.sizes(config()) == ['4', '5'] and task.size == '4'
  progress = full_training.run(task, progress, archs, keys)
  assert np.isfinite(progress.curve).all() and not progress.states.failed.any()
  stem = np.asarray(progress.states.params['stem']['kernel'])
  assert not np.allclose(stem[0], stem[1]) and not np.allclose(stem[0], first['stem']['kernel'][0])


def test_the_optimizer_decays_kernels_and_the_classifier(task):
  params = {'stem': enas_layers.zero_unit(3, 1, 2, True), 'softmax': np.zeros(3), 'softmax_bias': np.zeros(3)}
  assert enas_layers.decayed(params) == {
    'stem': {'kernel': True, 'depthwise': True, 'scale': False, 'shift': False},
    'softmax': True,
    'softmax_bias': False,
  }
  # A step on the same gradients with and without: kernels lose lr * decay * (1 + momentum) of themselves besides.
  points = retrain_conv.hyperparameters([retrain_conv.Point(0.05, 1.0, decay, 1e-3) for decay in (0.0, 0.1)])
  keys = jnp.repeat(jax.random.split(jax.random.key(0), 1), 2)
  progress, archs, keys = full_training.start(task, points, keys, 1)
  first = jax.tree.map(np.asarray, progress.states.params)
  after = task.programs.chunk(task.data, jnp.asarray(1), progress.states, archs, keys).params
  for one, two, kernel in zip(*map(jax.tree.leaves, (first, after, enas_layers.decayed(first))), strict=True):
    np.testing.assert_allclose(two[1] - two[0], -0.05 * 0.1 * 1.9 * one[0] * kernel, atol=1e-6)


def test_weight_decay_may_act_on_batch_norm_too():
  params = {'stem': enas_layers.zero_unit(3, 1, 2, True), 'softmax': np.zeros(3), 'softmax_bias': np.zeros(3)}
  assert all(jax.tree.leaves(enas_layers.decayed(params, norms=True)))
  task = retrain_enas.task(config(decay_norms=True), IMAGES, MACRO, '4', 3, mesh=layout.child_mesh(jax.devices()[:1]))
  points = retrain_conv.hyperparameters([retrain_conv.Point(0.05, 1.0, decay, 1e-3) for decay in (0.0, 0.1)])
  keys = jnp.repeat(jax.random.split(jax.random.key(0), 1), 2)
  progress, archs, keys = full_training.start(task, points, keys, 1)
  first = jax.tree.map(np.asarray, progress.states.params)
  after = task.programs.chunk(task.data, jnp.asarray(1), progress.states, archs, keys).params
  for one, two in zip(*map(jax.tree.leaves, (first, after)), strict=True):
    np.testing.assert_allclose(two[1] - two[0], -0.05 * 0.1 * 1.9 * one[0], atol=1e-6)


def test_cosines_end_at_lr_min(monkeypatch):
  """In the released code at 0.0001 for networks of cells and at 0.001 for whole networks."""
  assert (retrain_enas.paper().lr_min, retrain_enas.paper_macro().lr_min) == (1e-4, 1e-3)
  asked = []
  rate = schedules.rate
  monkeypatch.setattr(schedules, 'rate', lambda *args: asked.append(args) or rate(*args))
  cfg = config(schedule='cosine', lr_min=0.001, lr=(0.05,))
  task = retrain_enas.task(cfg, IMAGES, MACRO, '4', 2, mesh=layout.child_mesh(jax.devices()[:1]))
  points = retrain_conv.hyperparameters(retrain.grid(retrain_conv.Point, cfg))
  fit.shapes(task.programs, points, jax.random.split(jax.random.key(0), 1))
  (schedule, _, steps, *more), *_ = asked
  found = rate(schedule, 0.05, steps, *more)
  assert float(found(0)) == pytest.approx(0.05) and float(found(steps)) == pytest.approx(0.001)


@pytest.mark.parametrize(
  'preset',
  [pytest.param(name, marks=pytest.mark.long if 'paper' in name else ()) for name in retrain_enas.PRESETS],
)
def test_presets_are_sound(preset):
  cfg = retrain_enas.PRESETS[preset]()
  retrain_enas.check(cfg)
  if preset in ('paper', 'paper_macro'):  # lambda is 2e-4 in both scripts, times the sum of squares
    assert cfg.weight_decay == (4e-4,) and cfg.decay_norms and cfg.whiten == 'channel'
  for arch in (MACRO, published.ENAS_MICRO):
    retrain_enas.validate(cfg, IMAGES, arch)


LARGE = IMAGES._replace(
  **{name: Split(np.zeros((9, 150, 150, 1), np.uint8), np.arange(9, dtype=np.int32) % 3) for name in Images._fields[:3]}
)
NUMBERS = IMAGES._replace(classes=1, scale=Scale(0.0, 1.0))


@pytest.mark.parametrize(
  'make, words',
  [
    (lambda: retrain_enas.check(config(add_filters=(2,))), r'add_filters \(=\(2,\)\) .*leave \(0,\)'),
    (lambda: retrain_enas.check(config(keep=0.0)), 'keep'),
    (lambda: retrain_enas.validate(config(), IMAGES, MACRO._replace(operation=(0, 1, 9))), 'is 9'),
    (lambda: retrain_enas.validate(config(whiten='zca'), LARGE, MACRO), 'matrix of 22500 x 22500'),
    (lambda: retrain_conv.validate(retrain_conv.Config(whiten='zca'), LARGE, NETWORK), 'matrix of 22500 x 22500'),
    (
      lambda: retrain_conv.validate(retrain_conv.Config(metric='r2', class_weights='balanced'), NUMBERS, NETWORK),
      r'class_weights \(=balanced\) are for classes',
    ),
  ],
)
def test_what_cannot_be_is_one_line(make, words):
  with pytest.raises(ValueError, match=words) as error:
    make()
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('recipe', [retrain_conv, retrain_enas])
def test_a_fall_of_the_rate_that_takes_no_time_is_refused(recipe):
  cfg = recipe.Config(schedule='restarts', decay_epoch=(10.0, 0.0))
  with pytest.raises(ValueError, match="decay_epoch .* must be above 0 in the schedule 'restarts'") as error:
    recipe.check(cfg)
  testing.one_line(error)
  recipe.check(recipe.Config(schedule='twice', decay_epoch=(0.0,)))
