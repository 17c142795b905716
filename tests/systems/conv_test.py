"""Convolutional search and the retraining of what it found."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import testing

from experiments.common import retraining, search_flow, workdirs
from experiments.common.systems import CONV
from nas_jax import published, space
from nas_jax.children import conv as child_conv
from nas_jax.space.network import network
from nas_jax.systems import cell, classifier, conv, retrain, retrain_conv
from nas_jax.training import child as child_lib
from nas_jax.training import evaluators, fit, full_training, layout, timing

IMAGES = testing.pictures()
ARCH = space.conv_space(2, (3,), (3,), (2, 3)).decode([0, 0, 0, 0, 0, 1, 1])


def test_the_papers_spaces():
  v1, v2, v3 = (conv.make_space(conv.PRESETS[name]()) for name in ('paper_v1', 'paper_v2', 'paper_v3'))
  assert v1.size() == 64**15 * 2**105
  assert v2.size() == (64 * 9) ** 20 * 2**190
  assert v3.size() == 64**13 * 2**78
  v1.check(published.FIGURE_7)
  third = network(v3.decode(np.zeros(v3.length, int)), classifier.network_options(conv.paper_v3()))
  assert sum(layer.filters > 0 for layer in third.layers) == 39  # the depth in Table 1


def test_a_rate_of_its_own_for_each_child():
  cfg = testing.conv_config(lr=(0.1, 0.025))
  made = conv.make_space(cfg)
  tokens = np.zeros(made.length, int)
  rates = [conv.hyperparameters(cfg, made.decode([token, *tokens[1:]])).lr for token in (0, 1)]
  assert rates == [0.1, 0.025] and made.slots[0].name == 'learning rate'
  assert conv.hyperparameters(testing.conv_config(lr=(0.3,)), made.decode(tokens)._replace(rate=())).lr == 0.3


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    ({'filter_heights': (2, 3)}, r'filter_heights .*odd'),
    ({'filter_widths': (-1,)}, 'filter_widths .*at least 1'),
    ({'strides': (1, 6)}, 'strides .*6 is more than .*6 x 5'),
    ({'layer_types': ('conv', 'max pool'), 'pools': (2, 9)}, 'pools .*9 is more than'),
    ({'layer_types': ('conv', 'fold')}, 'layer_types .*average pool'),
    ({'depth_start': 3}, r'depth_start \(=3\) is more than max_depth \(=2\)'),
    ({'child_program': 'generic', 'strides': (1, 2)}, 'child_program .*strides.*take specialised'),
    ({'child_program': 'generic', 'layer_types': ('conv', 'norm')}, 'child_program .*types of layers.*specialised'),
    ({'child_program': 'generic', 'pool_at': (2,)}, 'child_program .*pools .*take specialised'),
    ({'last_epochs': 3}, r'last_epochs \(=3\) is more than epochs \(=2\)'),
    ({'lr': (0.1, 0.1)}, 'rates .*different'),
    ({'filters': ()}, 'filters .*empty'),
  ],
)
def test_what_cannot_be_is_one_line(changes, words):
  with pytest.raises(ValueError, match=words) as error:
    conv.build(testing.conv_config(**changes), IMAGES)
  assert '\n' not in str(error.value)


def test_more_in_a_batch_than_there_is():
  with pytest.raises(ValueError, match=r'batch \(=9999\) is more than the 1,2.. training images'):
    classifier.load(testing.conv_config(batch=9999))


@pytest.mark.parametrize('preset', conv.PRESETS)
def test_presets_are_sound(preset):
  cfg = dataclasses.replace(conv.PRESETS[preset](), dataset='digits')
  conv.check(cfg, classifier.load(dataclasses.replace(cfg, resize=0)))


def test_the_reward_is_the_best_accuracy_of_the_last_epochs_cubed():
  cfg = testing.conv_config(epochs=4, last_epochs=2)
  batch = evaluators.random_batch(conv.make_space(cfg), jax.random.key(3), 1)
  outcome = evaluators.build(conv.make_problem(cfg, IMAGES))(batch)
  setup = classifier.set_up(cfg, IMAGES)
  (data,) = setup.data
  for k, arch in enumerate(space.unstack(batch.archs)):
    plan = child_conv.ChildSpec(arch, conv.hyperparameters(cfg, arch))
    child = child_lib.bind_arch(child_conv.build(setup.inputs), lambda _, plan=plan: plan)
    epoch = len(data.labels) // cfg.batch
    mesh = layout.child_mesh(jax.devices()[:1])
    programs = classifier.fitter(setup, child, lambda _, plan=plan: plan.hyperparameters, 4 * epoch, mesh)
    states, archs, keys = fit.begin(programs, (), batch.keys[k : k + 1])
    accuracies = []
    for _ in range(4):
      states = programs.chunk(data, jnp.asarray(epoch), states, archs, keys)
      accuracies.append(float(programs.score(data, states, archs)['accuracy'][0]))
    assert outcome.metrics['accuracy'][k] == pytest.approx(max(accuracies[2:]))
    assert outcome.reward[k] == pytest.approx(max(accuracies[2:]) ** 3)


def random_archs(made, count=20):
  tokens = evaluators.random_batch(made, jax.random.key(0), count).tokens
  return [made.decode(row, 1 + k % made.layers) for k, row in enumerate(np.asarray(tokens))]


@pytest.mark.parametrize(
  'made',
  [
    space.conv_space(3),
    space.conv_space(3, skips=False, strides=(1, 2)),
    space.conv_space(3, layer_types=space.LAYER_TYPES, strides=(2, 3), rates=(0.1, 0.01)),
    space.conv_space(2, layer_types=('max pool', 'norm'), pools=(2,)),
  ],
)
def test_a_network_is_read_without_its_space(made):
  for arch in random_archs(made):
    text = made.to_json(arch)
    assert space.conv.conv_from_json(text) == arch and space.kind_of(text) == 'conv'
  best = json.dumps({**json.loads(made.to_json(arch)), 'space': dict(made.spec)})
  assert space.space_of(best).slots == made.slots


@pytest.mark.parametrize(
  ('text', 'words'),
  [
    ('{', 'not JSON'),
    ('[]', 'not an architecture'),
    ('{"kind": "conv", "arch": {"filters": [24]}}', 'fields'),
    ('{"kind": "tree_cell", "arch": {}}', "kind is 'tree_cell'"),
    (space.conv_space(1).to_json(space.conv_space(1).decode([0, 0, 0])).replace('[1]', '[2]'), 'odd'),
    (space.conv_space(1).to_json(space.conv_space(1).decode([0, 0, 0])).replace('[24]', '["x"]'), 'want an int'),
  ],
)
def test_what_is_no_network_is_one_line(text, words):
  with pytest.raises(ValueError, match=words) as error:
    space.conv.conv_from_json(text)
  assert '\n' not in str(error.value)


def retrain_config(**changes):
  small = {'batch': 9, 'epochs': 3, 'score_batch': 4, 'schedule': 'constant', 'lr': (0.05,)}
  return retrain_conv.Config(**(small | changes))


def test_a_final_training_has_all_images_and_keeps_the_last_weights():
  cfg = retrain_config()
  grid, final = (retrain_conv.task(cfg, IMAGES, ARCH, '0', 3, final) for final in (False, True))
  assert len(grid.data.labels) == len(IMAGES.train.labels) and grid.choose
  assert len(final.data.labels) == len(IMAGES.train.labels) + len(IMAGES.valid.labels) and not final.choose
  np.testing.assert_array_equal(final.test.valid_labels[: len(IMAGES.test.labels)], IMAGES.test.labels)
  settings = retrain_conv.hyperparameters(retrain.grid(retrain_conv.Point, cfg))
  progress = full_training.run(final, *full_training.start(final, settings, jax.random.split(jax.random.key(0), 1), 3))
  jax.tree.map(np.testing.assert_array_equal, progress.best, (progress.states.params, progress.states.carry))
  assert retrain_conv.task(retrain_config(train_on_all=False), IMAGES, ARCH, '0', 3, True).data is not final.data
  assert retrain_conv.task(retrain_config(train_on_all=False), IMAGES, ARCH, '0', 3, True).choose


@pytest.mark.long
def test_grid_then_winner_at_every_width(tmp_path, capsys):
  cfg = retrain_config(lr=(0.05, 1e-6), add_filters=(0, 2), grid_epochs=2, repeats=2)
  retraining.run(CONV, cfg, IMAGES, {'mine': ARCH}, str(tmp_path))
  rows = json.loads((tmp_path / 'result.json').read_text())['rows']
  assert [(row['size'], row['repeats']) for row in rows] == [('+0', 2), ('+2', 2)]
  wide = ARCH._replace(filters=tuple(n + 2 for n in ARCH.filters))
  assert [row['parameters'] for row in rows] == [space.count(a, IMAGES.shape, 3).params for a in (ARCH, wide)]
  (folder,) = tmp_path.glob('mine-*')
  grid = json.loads((folder / 'trainings.json').read_text())['grid at 0']
  better = cfg.lr[int(np.argmin(grid['valid']))]
  assert all(row['settings'].startswith(f'lr {better:g},') and len(row['test']) == 2 for row in rows)
  # Validation is the grid's, of the width it was at: the final trainings saw those images.
  assert rows[0]['valid'] == [min(grid['valid'])] and rows[1]['valid'] == [] and 'test' not in grid
  shown = capsys.readouterr().out
  assert 'validation error' in shown and 'test error' in shown and 'accuracy' not in shown


@pytest.mark.long
def test_a_search_to_its_page(tmp_path, capsys):
  cfg = testing.conv_config(max_children=2, reliability_children=0, yardstick_repeats=1, child_program='generic')
  workdirs.open_config(str(tmp_path), cfg)
  search_flow.run(CONV, cfg, IMAGES, str(tmp_path), {'mine': ARCH})
  shown = capsys.readouterr().out
  for words in (
    'best network (child',
    'classifier: reads',
    'validation accuracy, 2 epochs',
    '2 layers of 3 3x3',
    'mine',
  ):
    assert words in shown, words
  page = (tmp_path / 'report.html').read_text()
  assert 'Search for a network' in page and 'softmax' in page
  best = json.loads((tmp_path / 'best.json').read_text())
  assert best['kind'] == 'conv' and space.from_json(json.dumps(best))


@pytest.mark.long
def test_one_program_for_each_depth():
  cfg = testing.conv_config(child_program='generic', depth_start=1, depth_step=1, depth_every=2, controller_lr=1e-3)
  s = conv.build(cfg, IMAGES)
  state, depths = s.init(jax.random.key(0)), []
  for _ in range(3):
    batch = s.ask(state)
    outcome = s.evaluate(batch)
    assert set(np.asarray(outcome.metrics['failed'])) == {0}
    depths.append(int(batch.depth))
    state, _ = s.tell(state, batch, outcome)
  assert depths == [1, 2, 2]


def test_what_a_program_for_all_cannot_train():
  cfg = testing.conv_config(child_program='generic')
  assert conv.why_unsupported(cfg, ARCH) == ''
  assert 'filter_height 5 is none of' in conv.why_unsupported(cfg, ARCH._replace(filter_height=(3, 5)))
  assert 'filters 9 is none of' in conv.why_unsupported(cfg, ARCH._replace(filters=(2, 9)))
  assert 'strides' in conv.why_unsupported(cfg, ARCH._replace(stride_height=(1, 1), stride_width=(1, 1)))
  assert conv.why_unsupported(testing.conv_config(), ARCH._replace(filters=(2, 9))) == ''
  assert 'no anchor points, and skips is True' in conv.why_unsupported(cfg, ARCH._replace(links=()))
  assert 'skips is False' in conv.why_unsupported(dataclasses.replace(cfg, skips=False), ARCH)
  few = testing.cell_config(activate=('identity', 'tanh'))
  assert 'sigmoid is none of identity, tanh' in cell.why_unsupported(few, published.LSTM)
  assert cell.why_unsupported(testing.cell_config(), published.LSTM) == ''


def test_a_space_of_strides_has_one_way_to_compile(monkeypatch):
  monkeypatch.setattr(timing, 'time_programs', lambda build, batch, steps, children, kinds: kinds)

  def kinds(**changes):
    problem = conv.make_problem(testing.conv_config(child_program='auto', **changes), IMAGES)
    return timing.of_problem(problem, jax.random.key(0), 1, 1)

  assert kinds(strides=(1, 2)) == kinds(block=2) == ('specialised',)
  assert kinds() == ('generic', 'specialised')
