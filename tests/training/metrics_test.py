"""The metrics of image classifiers, and their class weights."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics
from sklearn.utils import class_weight
import testing

from experiments.common.systems import CONV, MACRO, for_config
from nas_jax.children import conv
from nas_jax.datasets import image_batches
from nas_jax.systems import cell, chain, classifier, enas_images, sequence
from nas_jax.systems import conv as conv_system
from nas_jax.training import evaluators, metrics, rewards

RNG = np.random.default_rng(0)


def found(said, labels, classes):
  counts = metrics.count(jnp.asarray(said), jnp.asarray(labels), classes)
  return {name: float(value) for name, value in metrics.scores(counts).items()}


def test_scores_by_hand():
  """Of class 0 three of four are recognised, of class 1 one of one, of class 2 none of one; class 3 is not there.

  F1 is 2 * 3 / (4 + 4), 2 * 1 / (1 + 1) and 0: one image of class 2 is said to be of class 0, one of 0 of class 2.
  """
  labels, said = [0, 0, 0, 0, 1, 2, -1, -1], [0, 0, 0, 2, 1, 0, 0, 3]
  assert found(said, labels, 4) == pytest.approx(
    {'accuracy': 4 / 6, 'balanced_accuracy': (3 / 4 + 1 + 0) / 3, 'f1': (6 / 8 + 1 + 0) / 3}
  )
  assert found([3, 0], [0, 0], 4)['f1'] == pytest.approx((2 / 3 + 0) / 2)  # class 3 is said and not there


@pytest.mark.parametrize('seed', range(4))
@pytest.mark.filterwarnings('ignore:y_pred contains classes')
def test_scores_as_those_of_scikit_learn(seed):
  rng = np.random.default_rng(seed)
  labels, said = rng.integers(5, size=30) // 2 * 2, rng.integers(5, size=30)
  assert found(said, labels, 6) == pytest.approx(
    {
      'accuracy': sklearn_metrics.accuracy_score(labels, said),
      'balanced_accuracy': sklearn_metrics.balanced_accuracy_score(labels, said),
      'f1': sklearn_metrics.f1_score(labels, said, average='macro'),
    }
  )


def test_balanced_class_weights():
  labels = np.array([0] * 6 + [1] * 3 + [3])
  weights = metrics.balanced(labels, 4)
  np.testing.assert_allclose(weights, [10 / 18, 10 / 9, 0, 10 / 3])
  want = class_weight.compute_class_weight('balanced', classes=np.array([0, 1, 3]), y=labels)
  np.testing.assert_allclose(np.array(weights)[[0, 1, 3]], want)
  assert np.mean(np.array(weights)[labels]) == pytest.approx(1.0)


def child(**how):
  """A classifier whose logits are the first three pixels of an image."""

  def forward(params, stats, spec, x, key):
    return x.reshape(len(x), -1)[:, :3] * params, stats

  inputs = conv.InputSpec(**({'image': (2, 2, 1), 'classes': 3, 'batch': 5, 'score_batch': 4} | how))
  return conv.classifier(lambda spec, key: jnp.ones(()), lambda params: (), forward, lambda params: [], inputs)


SPEC = conv.ChildSpec((), conv.Hyperparameters(0.1, 1.0, 0.0, 1e-5))


def test_losses_are_weighed_by_class():
  images = jnp.asarray(RNG.normal(size=(5, 2, 2, 1)), jnp.float32)
  labels = jnp.array([0, 1, 2, 2, 1])
  log_p = jax.nn.log_softmax(images.reshape(5, -1)[:, :3])
  each = -np.asarray(log_p)[np.arange(5), labels]
  for weights in ((), (0.5, 3.0, 0.0)):
    loss, _ = child(class_weights=weights).loss(jnp.ones(()), SPEC, (), (images, labels), jax.random.key(0))
    assert loss == pytest.approx(np.mean(each * (np.array(weights)[labels] if weights else 1.0)), rel=1e-6)


def test_a_child_is_scored_over_all_batches_and_nothing_else():
  """11 images in batches of 4; the images that fill up the last batch do not count."""
  images = RNG.normal(size=(12, 2, 2, 1)).astype(np.float32)
  labels = np.array([0, 1, 2, 2, 2, 1, 0, 2, 2, 0, 2, -1])
  data = image_batches.Data(*(jnp.zeros(()),) * 2, jnp.asarray(images), jnp.asarray(labels), *(jnp.zeros(()),) * 2)
  said = images.reshape(12, -1)[:, :3].argmax(-1)
  whole = child(metric='f1').score(jnp.ones(()), SPEC, (), data)
  assert {name: float(value) for name, value in whole.items()} == pytest.approx(found(said[:11], labels[:11], 3))
  alone = child().score(jnp.ones(()), SPEC, (), data)
  assert set(alone) == {'accuracy'} and alone['accuracy'] == whole['accuracy']


def test_numbers_to_predict():
  """Labels 1, 2, 3 and 6 have mean 3 and squares 4 + 1 + 0 + 9; errors 1, 0, 1 and 2 have squares 1 + 0 + 1 + 4."""
  images = np.zeros((6, 2, 2, 1), np.float32)
  images[:, 0, 0, 0] = [2, 2, 2, 4, 7, 7]
  labels = np.array([1, 2, 3, 6, np.nan, np.nan], np.float32)
  data = image_batches.Data(*(jnp.zeros(()),) * 2, jnp.asarray(images), jnp.asarray(labels), *(jnp.zeros(()),) * 2)
  found = child(metric='r2', score_batch=3).score(jnp.ones(()), SPEC, (), data)
  assert set(found) == {'r2'} and found['r2'] == pytest.approx(1 - 6 / 14)
  assert found['r2'] == pytest.approx(sklearn_metrics.r2_score(labels[:4], images[:4, 0, 0, 0]))
  drawn = jnp.asarray(images[:4]), jnp.asarray(labels[:4])
  loss, _ = child(metric='r2').loss(jnp.ones(()), SPEC, (), drawn, jax.random.key(0))
  assert loss == pytest.approx(6 / 4)
  worse = np.array([-1e6, -3.0, 0.0, 0.5, 1.0])
  np.testing.assert_allclose(rewards.of_r2(worse, 2.0)[1:], [1 / 25, 1 / 4, 4 / 9, 1])
  assert (np.diff(rewards.of_r2(worse)) > 0).all() and rewards.of_r2(worse)[0] > 0
  assert rewards.accuracy_formula(3.0, 'r2') == '(1 / (2 - R2))^3'


def test_a_config_decides_metric_weights_and_words():
  images = testing.pictures()
  cfg = testing.conv_config(metric='f1', class_weights='balanced')
  spec = classifier.inputs(cfg, images)
  assert spec.metric == 'f1' and len(spec.class_weights) == 3 and min(spec.class_weights) > 0.5
  assert conv_system.make_problem(cfg, images).metric == 'f1'
  assert enas_images.make_problem(testing.macro_config(metric='f1'), images).shared_metric == 'shared_f1'
  assert for_config(CONV, cfg).metric == ('f1', 'validation macro F1', False)
  shared = for_config(MACRO, testing.macro_config(metric='balanced_accuracy'))
  assert shared.metric == ('shared_balanced_accuracy', 'shared-weight validation balanced accuracy', False)
  assert shared.retrain.metric == 'balanced error' and for_config(CONV, testing.conv_config()) is CONV
  assert CONV.reward(dataclasses.replace(cfg, reward_power=3.0)) == 'macro F1^3'
  assert classifier.inputs(testing.conv_config(), images) == conv.InputSpec((6, 5, 1), 3, 9, 4)


@pytest.mark.parametrize(
  ('system', 'cfg', 'where', 'name'),
  [
    (conv_system, testing.conv_config(), evaluators, 'build'),
    (chain, testing.chain_config(), chain, 'build_evaluator'),
    (cell, testing.cell_config(), evaluators, 'build'),
    (sequence, testing.sequence_config(reward_power=3.0), evaluators, 'build'),
  ],
)
def test_a_reward_of_ones_own_is_that_of_the_children(system, cfg, where, name, monkeypatch):
  problems, metric = [], 'perplexity' if system is cell else 'accuracy'
  monkeypatch.setattr(where, name, lambda problem, mesh, recovery: problems.append(problem))
  for own in (lambda scores: 2 - scores[metric], None):
    system.build(cfg, {cell: testing.text, sequence: testing.sequences}.get(system, testing.pictures)(), reward=own)
  mine, default = (problem.own_reward({metric: np.array([0.5])}).tolist() for problem in problems)
  assert mine == [1.5] and default == [80 / 0.5**2 if system is cell else 0.5**cfg.reward_power]


@pytest.mark.long
def test_a_reward_of_ones_own():
  images, mine = testing.pictures(), dict[str, np.ndarray]()

  def reward(scores):
    mine.update(scores)
    return scores['f1'] - 2 * scores['accuracy']

  cfg = testing.conv_config(metric='f1', child_program='generic')
  s = conv_system.build(cfg, images, reward=reward)
  outcome = s.evaluate(s.ask(s.init(jax.random.key(0))))
  np.testing.assert_allclose(outcome.reward, mine['f1'] - 2 * mine['accuracy'], rtol=1e-6)
  assert {'accuracy', 'balanced_accuracy', 'f1', 'loss', 'failed'} <= set(mine) and (mine['f1'] > 0).any()


def test_a_reward_of_ones_own_by_shared_weights_sees_plain_names():
  problem = enas_images.make_problem(testing.macro_config(), testing.pictures())
  own = problem._replace(reward_of=lambda scores: scores['accuracy'] ** 2 + 1)
  assert own.shared_reward({'shared_accuracy': np.array([0.5])}).tolist() == [1.25]


def test_a_wrong_reward_is_told():
  scores = {'accuracy': np.array([0.5, np.nan]), 'failed': np.array([0, 2])}
  assert np.isnan(rewards.checked(lambda scores: scores['accuracy'], scores)[1])  # of a child that failed
  with pytest.raises(ValueError, match=r'the reward of 2 children is of shape \(\): want \(2,\)'):
    rewards.checked(lambda scores: np.mean(scores['accuracy']), scores)
  with pytest.raises(ValueError, match=r'the reward of a child is inf: .* accuracy 0.5, failed 0'):
    rewards.checked(lambda scores: scores['accuracy'] + np.inf, scores)


@pytest.mark.long
def test_a_search_by_shared_weights_with_a_reward_of_ones_own():
  cfg = testing.macro_config(metric='f1')
  s = enas_images.build(cfg, testing.pictures(), reward=lambda scores: jnp.exp(scores['f1']) + scores['accuracy'])
  state = s.init(jax.random.key(0))
  batch = s.ask(state)
  outcome = s.evaluate(batch)
  scores = outcome.metrics
  np.testing.assert_allclose(outcome.reward, np.exp(scores['shared_f1']) + scores['shared_accuracy'], rtol=1e-5)
