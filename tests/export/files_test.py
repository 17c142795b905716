"""Trained models on disk: they are read as written, whole or not at all, and applied as in training."""

import json
import shutil

import jax
import numpy as np
import pytest
import testing

from experiments.common import retraining
from experiments.common.systems import CELL, CHAIN
from nas_jax import export, files, load, space
from nas_jax.datasets import image_batches
from nas_jax.operations import Operation, Operations
from nas_jax.systems import retrain_conv

TREE = space.TreeArch((0, 1, 0), (1, 2, 1), (0, 1), (2, 0))
CHAIN_ARCH = space.chain_space(('conv 2 3 1', 'residual 3 3 2'), 2).decode([0, 1])
IMAGES = testing.pictures()
SWISH = Operation('swish', jax.nn.silu, 'jax.nn.silu')


@pytest.fixture(scope='module')
def text_results(tmp_path_factory):
  """A cell and an LSTM, each trained twice."""
  cfg = testing.retrain_config(repeats=2, epochs=2, lr=(0.1,))
  folder = tmp_path_factory.mktemp('text')
  retraining.run(CELL, cfg, testing.text(), {'mine': TREE, 'LSTM': 'LSTM'}, str(folder))
  return folder


@pytest.fixture(scope='module')
def image_results(tmp_path_factory):
  small = {'batch': 9, 'epochs': 2, 'score_batch': 4, 'schedule': 'constant', 'grid_epochs': 1, 'whiten': 'zca'}
  cfg = retrain_conv.Config(**small, lr=(0.05, 0.001), epsilon=(1e-3,), add_filters=(1,))
  folder = tmp_path_factory.mktemp('images')
  retraining.run(CHAIN, cfg, IMAGES, {'chain': CHAIN_ARCH}, str(folder))
  return folder


def rows(folder):
  return json.loads((folder / 'result.json').read_text())['rows']


def test_a_language_model_scores_the_test_split_as_retraining_did(text_results):
  """This holds for each training of each cell; `load` takes the one with the best validation score."""
  text = testing.text()
  for row in rows(text_results):
    for k, (valid, test) in enumerate(zip(row['valid'], row['test'], strict=True)):
      (path,) = text_results.glob(f'{row["name"]}-*/model-{row["size"]}-{k}')
      model = load(path)
      scored = model(''.join(text.vocabulary[i] for i in text.test))
      np.testing.assert_allclose(scored.perplexity, test, rtol=1e-5)
      assert model.about['scores'] == {'metric': 'perplexity', 'valid': valid, 'test': test}
      weights = sum(leaf.size for leaf in jax.tree.leaves(model.variables['params']))
      assert row['parameters'] == model.about['weights'] == weights
      assert row['multiply_adds'] == model.about['multiply_adds']
  best = load(text_results)
  assert best.about['scores']['valid'] == min(valid for row in rows(text_results) for valid in row['valid'])
  (mine,) = text_results.glob('mine-*')
  assert load(mine).arch == TREE and load(mine).vocabulary == text.vocabulary


def test_text_is_read_in_windows_and_continued(text_results, monkeypatch):
  """A text of one window and of several has the same log-probabilities; what follows a prompt is drawn by them."""
  model, text = load(text_results), testing.text()
  words = ''.join(text.vocabulary[i] for i in text.test[:41])
  whole = model(words)
  monkeypatch.setattr(export.model, 'WINDOW', 8)  # five of them
  np.testing.assert_allclose(model(words).log_prob, whole.log_prob, rtol=1e-5)
  assert whole.tokens == tuple(words) and whole.log_prob.shape == (40,)
  # Nearly greedily: each token is the likeliest one after those before it.
  drawn = model.sample('abc', 6, temperature=1e-3)
  assert len(drawn) == 6 and drawn == model.sample('abc', 6, jax.random.key(7), temperature=1e-3)
  last = {token: float(model(f'abc{drawn[:-1]}{token}').log_prob[-1]) for token in text.vocabulary}
  assert drawn[-1] == max(last, key=last.get)
  with pytest.raises(ValueError, match=r"token 1 of the text is 'z'"):
    model('azb')
  with pytest.raises(ValueError, match='1 token: want at least 2'):
    model('a')
  with pytest.raises(ValueError, match='at least one token'):
    model.sample('', 3)


@pytest.mark.long
def test_a_classifier_scores_the_test_split_as_retraining_did(image_results):
  """Whitened by ZCA fitted on training and validation images; the grid's score is the one to choose by."""
  model, (row,) = load(image_results), rows(image_results)
  probabilities = model(IMAGES.test.images)
  np.testing.assert_allclose(probabilities.sum(-1), 1.0, rtol=1e-5)
  error = np.mean(np.asarray(probabilities.argmax(-1)) != IMAGES.test.labels)
  np.testing.assert_allclose(error, row['test'][0], rtol=1e-5)
  assert model.about['scores']['valid'] == row['valid'][0] and model.classes == ('0', '1', '2')
  assert model.arch == CHAIN_ARCH and model.module.add_filters == 1 and model.module.epsilon == 1e-3
  np.testing.assert_allclose(model(IMAGES.test.images.astype(float)), probabilities, atol=1e-6)
  for wrong in (IMAGES.test.images[:, :3], IMAGES.test.images / 255.0, IMAGES.test.images - 1.0):
    with pytest.raises(ValueError, match='want'):
      model(wrong)


@pytest.mark.parametrize('whiten', image_batches.WHITENINGS)
def test_images_are_whitened_as_in_training(tmp_path, whiten):
  train = IMAGES.train.images
  inputs = export.ImageInputs(IMAGES.shape, ('one', 'two', 'three'), image_batches.fit_whitening(whiten, train))
  module = export.module(CHAIN_ARCH, classes=3)
  variables = testing.random_variables(module, inputs.example)
  card = export.Card(CHAIN_ARCH, {'classes': 3}, inputs)
  export.save(str(tmp_path / 'model'), card, variables, scores={'metric': 'error', 'valid': None, 'test': 0.5})
  model = load(tmp_path)
  data = image_batches.lay_out(IMAGES.train, (IMAGES.valid,), 4, whiten)[0]
  np.testing.assert_allclose(model.whiten(train), image_batches.whitened(data.images), rtol=1e-6, atol=1e-6)
  np.testing.assert_allclose(model.whiten(train.astype(float)), model.whiten(train), rtol=1e-5, atol=1e-5)
  assert model.classes == ('one', 'two', 'three')
  jax.tree.map(np.testing.assert_array_equal, dict(model.variables), dict(variables))


@pytest.mark.parametrize(
  'arch',
  [TREE._replace(activate=(1, 5, 1)), TREE._replace(combine=(0, 3, 0)), space.RnnArch((1, 5), (0,)), TREE],
  ids=['activation', 'combination', 'ENAS cell', 'options'],
)
def test_operations_of_ones_own_are_refused_before_anything_is_written(tmp_path, arch):
  """Weights that `load` could never read are not saved; the module can be built from them all the same."""
  own = Operations(('add', 'mult', Operation('minus', jax.numpy.subtract, 'jnp.subtract')), ('tanh', 'relu', SWISH))
  options = {'vocabulary': 3, 'features': 4}
  inputs = export.TextInputs('char', ('a', 'b', '\n'))
  variables = testing.random_variables(export.module(arch, **options, operations=own), inputs.example)
  card = export.Card(arch, options | ({'operations': own} if arch == TREE else {}), inputs)
  with pytest.raises(ValueError, match=r'(5|3|hold operations).*export\.module\(arch, \.\.\., operations=') as error:
    export.save(str(tmp_path / 'model'), card, variables)
  testing.one_line(error)
  assert not list(tmp_path.iterdir())


def test_of_a_workdir_the_final_choice_is_taken(text_results, tmp_path):
  """The chosen architecture is taken although a reference scored better."""
  shutil.copytree(text_results, tmp_path / 'final')
  best = load(text_results).arch
  for arch, kind in ((TREE, 'tree_cell'), ('LSTM', 'LSTM')):
    fields = {} if isinstance(arch, str) else arch._asdict()
    (tmp_path / 'final' / 'best.json').write_text(json.dumps({'kind': kind, 'arch': fields}))
    assert load(tmp_path).arch == arch
  assert best in (TREE, 'LSTM')
  for text in ('{kind', '[]', '{"kind": "LSTM"}'):
    (tmp_path / 'final' / 'best.json').write_text(text)
    with pytest.raises(
      ValueError, match=r'final/best\.json cannot be read \(.*give the command of the search'
    ) as error:
      load(tmp_path)
    testing.one_line(error)


def test_what_cannot_be_loaded_is_said_in_one_line(text_results, tmp_path):
  def complaint(folder):
    with pytest.raises(ValueError) as error:
      load(folder)
    return testing.one_line(error)

  assert 'holds no trained model' in complaint(tmp_path / 'nowhere')
  (mine,) = text_results.glob('mine-*')
  older = tmp_path / 'older' / mine.name
  shutil.copytree(mine, older, ignore=lambda folder, names: [name for name in names if name.startswith('model')])
  assert 'holds trainings without weights' in complaint(tmp_path / 'older')
  # Several models, none of which has a validation score.
  unscored = tmp_path / 'unscored'
  for name in ('a/model-4-0', 'b/model-4-0'):
    shutil.copytree(mine / 'model-4-0', unscored / name)
    card = json.loads((unscored / name / 'model.json').read_text())
    card['scores']['valid'] = None
    files.write(str(unscored / name / 'model.json'), json.dumps(card))
  assert 'without validation scores: name one of' in complaint(unscored)
  # Damage of every file of a model.
  damaged = tmp_path / 'damaged'
  shutil.copytree(mine / 'model-4-0', damaged)
  card = json.loads((damaged / 'model.json').read_text())
  shutil.rmtree(damaged / 'weights' / '0' / 'state')
  assert 'weights cannot be read' in complaint(damaged)
  (damaged / 'model.json').write_text(json.dumps(card | {'options': {'width': 3}}))
  assert 'describes no network' in complaint(damaged)
  (damaged / 'model.json').write_text('{"kind": "tree_cell"}')
  assert 'model.json cannot be read' in complaint(damaged)
  (damaged / 'model.json').write_text(json.dumps(card))
  shutil.rmtree(damaged / 'weights')
  assert 'holds no weights' in complaint(damaged)
