"""Augmented search: chains of layers, every prefix a child."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import testing

from experiments.common import retraining, search_flow, workdirs
from experiments.common.systems import CHAIN
from nas_jax import space
from nas_jax.children import conv as child_conv
from nas_jax.search import journal, per_layer
from nas_jax.systems import chain, classifier, retrain_conv
from nas_jax.training import child as child_lib
from nas_jax.training import evaluators, fit, layout

IMAGES = testing.pictures()


def test_the_papers_space():
  made = chain.make_space(chain.paper_cifar10())
  assert made.size() == 24**15 and made.layers == 15 and chain.paper_mnist().max_children == 437


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    ({'layers': ('conv 4 3',)}, "'conv 4 3' is no layer"),
    ({'layers': ('max pool 2 2', 'max pool 2 2')}, 'each once'),
    ({'depth_start': 3}, r'depth_start \(=3\) is more than max_depth \(=2\)'),
    ({'last_epochs': 3}, r'last_epochs \(=3\).*must not fall'),
    ({'epochs_start': 5}, r'epochs_start \(=5\).*must not fall'),
    ({'rungs': 2, 'warm_start': True}, r'rungs \(=2\) compare children that train alike.*warm_start does not'),
    ({'rungs': 2, 'epochs_start': 1}, r'rungs \(=2\) compare children that train alike.*epochs_start \(=1\)'),
    ({'rungs': 3}, r'rungs \(=3\) of rung_factor \(=3\) want a search of at least 9 children'),
    ({'replay': 1.0}, r'replay \(=1.0\).*at most 0.95'),
    ({'gamma': -0.1}, 'gamma .*at least 0'),
    ({'returns': 'forward'}, 'returns .*past, to go'),
    ({'train_again': 'often'}, 'train_again .*never, longer, always'),
  ],
)
def test_what_cannot_be_is_one_line(changes, words):
  with pytest.raises(ValueError, match=words) as error:
    chain.build(testing.chain_config(**changes), IMAGES)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('preset', chain.PRESETS)
def test_presets_are_sound(preset):
  cfg = dataclasses.replace(chain.PRESETS[preset](), dataset='digits')
  chain.check(cfg)


def test_epochs_grow_with_children():
  cfg = testing.chain_config(epochs_start=1, epochs=3, epochs_every=4)
  assert [int(chain.epochs_of(cfg, n)) for n in (0, 3, 4, 8, 100)] == [1, 1, 2, 3, 3]
  assert int(chain.epochs_of(testing.chain_config(epochs=2), 100)) == 2
  assert (
    chain.length(cfg) == '1 to 3 epochs' and chain.length(chain.scale_budget(testing.chain_config(), 5)) == '10 epochs'
  )


@pytest.mark.long
def test_a_search_to_its_page_and_on(tmp_path, capsys):
  """Each record is the network of a prefix, and the best one can be retrained."""
  cfg = testing.chain_config(max_children=3, reliability_children=0, yardstick_repeats=0)
  workdir = tmp_path / 'search'
  workdirs.open_config(str(workdir), cfg)
  search_flow.run(CHAIN, cfg, IMAGES, str(workdir))
  shown = capsys.readouterr().out
  for words in ('best chain (child', 'classifier: reads', 'validation accuracy, 2 epochs', 'first layer', 'layers'):
    assert words in shown, words
  records = journal.read(str(workdir / 'children.jsonl'))
  assert sorted(records) == list(range(len(records))) and len(records) >= 3
  for record in records.values():
    assert record['tokens'][record['depth'] :] == [0] * (2 - record['depth'])
    assert record['reward'] == pytest.approx(record['accuracy']) and record['epochs'] == 2 and record['failed'] is None
  paths = [tuple(record['tokens'][: record['depth']]) for record in records.values()]
  assert len(set(paths)) == len(paths)
  tree = json.loads((workdir / 'replay.json').read_text())
  labels = chain.make_space(cfg).slots[0].labels
  for node in tree['next']:
    (record,) = (r for r, path in zip(records.values(), paths, strict=True) if path == (labels.index(node['layer']),))
    assert node['reward'] == pytest.approx(record['reward']) and node['trained'] == 1
  page = (workdir / 'report.html').read_text()
  assert 'What was tried' in page and 'What the chains have in common' in page and 'max pool' in page
  best = json.loads((workdir / 'best.json').read_text())
  arch = space.from_json(json.dumps(best))
  assert len(arch.layers) == records[best['id']]['depth']
  few = retrain_conv.Config(batch=9, epochs=1, score_batch=4, schedule='constant', lr=(0.05,))
  retraining.run(CHAIN, few, IMAGES, {'mine': arch}, str(tmp_path))
  assert 'test error' in capsys.readouterr().out


@pytest.mark.long
def test_a_prefix_is_trained_as_the_network_that_it_is():
  """The accuracy of each prefix of a sequence equals that of a training written out."""
  cfg = testing.chain_config()
  s = chain.build(cfg, IMAGES)
  state = s.init(jax.random.key(4))
  batch = s.ask(state)
  (group, *_) = s.parts.split(batch)
  outcome = s.train(group)
  setup = classifier.set_up(cfg, IMAGES)
  settings = child_conv.Hyperparameters(cfg.lr, cfg.decay_epoch, cfg.weight_decay, cfg.epsilon)
  steps, mesh = cfg.epochs * (len(IMAGES.train.labels) // cfg.batch), layout.child_mesh(jax.devices()[:1])
  for k, depth in enumerate(group.depth.tolist()):
    arch = s.space.decode(group.tokens[k], depth)
    plan = child_conv.ChildSpec(arch, settings)
    child = child_lib.bind_arch(child_conv.build(setup.inputs), lambda _, plan=plan: plan)
    programs = classifier.fitter(setup, child, lambda _: settings, steps, mesh)
    found = fit.fit(programs, (), group.keys[k : k + 1], setup.data[0])
    assert outcome.metrics['accuracy'][k] == pytest.approx(float(found['accuracy'][0]))
  assert (outcome.metrics['string'] == group.extra.string).all() and (outcome.metrics['epochs'] == 2).all()
  assert isinstance(group.extra, per_layer.Group) and np.isfinite(outcome.reward).all()


@pytest.mark.long
def test_a_warm_start_is_from_the_weights_of_the_prefix_before():
  """Without training, a prefix has the layers of the one before it, and a new one on top."""
  cfg = testing.chain_config(warm_start=True, replay=0.0, lr=1e-9, weight_decay=0.0, max_depth=3)
  s = chain.build(cfg, IMAGES)
  batch = s.ask(s.init(jax.random.key(4)))
  (group,) = s.parts.split(batch)
  setup = classifier.set_up(cfg, IMAGES)
  settings = child_conv.Hyperparameters(cfg.lr, cfg.decay_epoch, cfg.weight_decay, cfg.epsilon)
  child, mesh, trained = child_conv.build(setup.inputs), layout.child_mesh(jax.devices()[:1]), []

  def programs(arch, mesh):
    planned = child_lib.bind_arch(child, lambda _: child_conv.ChildSpec(arch, settings))
    return classifier.fitter(setup, planned, lambda _: settings, 2, mesh)

  def warm_start(fresh, old):
    start = child_conv.warm_start_params(fresh, old)
    trained.append(jax.tree.map(np.array, (fresh, old, start)))  # copies: training uses its weights up
    return start

  outcome = evaluators.warm_started(
    programs, setup.data[0], lambda found: found['accuracy'], warm_start, jax.devices()[0]
  )(group)
  assert len(trained) == len(group.ids) - 1 == 2 and (outcome.metrics['failed'] == 0).all()
  for k, (fresh, old, start) in enumerate(trained, 1):
    assert len(start['layers']) == k + 1 == len(old['layers']) + 1
    jax.tree.map(np.testing.assert_array_equal, start['layers'][:k], old['layers'])
    jax.tree.map(np.testing.assert_array_equal, start['layers'][k], fresh['layers'][k])
    np.testing.assert_array_equal(start['softmax'], fresh['softmax'])
  assert mesh.size == 1 and np.isfinite(s.train(group).reward).all()
