"""A trained network applied from the command line."""

import json

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest
import testing

from experiments import predict
from experiments.common import launch, pictures
from nas_jax import export, space
from nas_jax.datasets import splits
from nas_jax.datasets import text as text_lib
from nas_jax.datasets.image_batches import Whitening
from nas_jax.datasets.splits import Scale

CHAIN = space.chain_space(('max pool 2 2',), 1).decode([0])
TREE = space.TreeArch((0, 1, 0), (1, 2, 1), (0, 1), (2, 0))


def save(folder, arch, options, inputs):
  variables = testing.random_variables(export.module(arch, **options), inputs.example)
  export.save(
    str(folder), export.Card(arch, options, inputs), variables, scores={'metric': '', 'valid': None, 'test': 1.0}
  )
  return export.load(folder)


@pytest.fixture(scope='module')
def classifier(tmp_path_factory):
  """The folder of a classifier with random weights that takes grey images of 4 x 4 pixels."""
  inputs = export.ImageInputs((4, 4, 1), ('cat', 'dog', 'owl'), Whitening('image'))
  folder = tmp_path_factory.mktemp('classifier')
  return folder / 'model', save(folder / 'model', CHAIN, {'classes': 3}, inputs)


@pytest.fixture(scope='module')
def language(tmp_path_factory):
  folder = tmp_path_factory.mktemp('language')
  options = {'vocabulary': 3, 'features': 4}
  return folder / 'model', save(folder / 'model', TREE, options, export.TextInputs('char', ('a', 'b', '\n')))


@pytest.fixture(autouse=True)
def set_up(monkeypatch):
  """The tests have set up JAX already."""
  monkeypatch.setattr(launch, 'set_up_jax', lambda count: None)


def run(*flags):
  predict.prepare(['predict', *flags])(lambda: None)


def complaint(*flags):
  with pytest.raises(ValueError) as error:
    run(*flags)
  return testing.one_line(error)


def test_what_cannot_be_predicted_is_said_before_work_begins(classifier, language, tmp_path):
  np.savez(tmp_path / 'floats.npz', images=np.random.default_rng(0).random((3, 4, 4, 1)))
  np.savez(tmp_path / 'words.npz', images=np.full((3, 4, 4, 1), 'x'))
  (tmp_path / 'one.txt').write_text('a')
  (tmp_path / 'two.txt').write_text('ab')
  for flags, wanted in (
    ((f'--model={classifier[0]}', f'--images={tmp_path}/floats.npz'), 'want 0 to 255, as in training'),
    ((f'--model={classifier[0]}', f'--images={tmp_path}/words.npz'), 'pixels of type <U1: want numbers'),
    ((f'--model={language[0]}', f'--text={tmp_path}/one.txt'), 'the text has 1 token: want at least 2'),
    (
      (f'--model={language[0]}', f'--text={tmp_path}/two.txt', '--sample=2', '--temperature=nan'),
      'temperature (=nan) must be a finite number',
    ),
  ):
    with pytest.raises(ValueError) as error:
      predict.prepare(['predict', *flags])
    assert wanted in testing.one_line(error)


def test_flags_that_change_nothing_are_refused(classifier, language, tmp_path):
  np.savez(tmp_path / 'x.npz', images=np.zeros((1, 4, 4, 1), np.uint8))
  np.savez(tmp_path / 'y.npz', sequences=np.zeros((1, 3, 2)))
  (tmp_path / 'two.txt').write_text('ab')
  read_sequences(tmp_path, 'numbers', scale=SCALE)
  images = f'--model={classifier[0]}', f'--images={tmp_path}/x.npz'
  text = f'--model={language[0]}', f'--text={tmp_path}/two.txt'
  numbers = f'--model={tmp_path}/numbers', f'--sequences={tmp_path}/y.npz'
  for flags, wanted in (
    ((*images, '--sample=200'), '--sample is for models of text'),
    ((*images, '--temperature=0.3'), '--temperature is for --sample'),
    ((*images, '--top=2', '--json'), '--top is for tables of classes'),
    ((*text, '--seed=0'), '--seed is for --sample'),
    ((*text, '--resize'), '--resize is for models of images'),
    ((*numbers, '--top=2'), '--top is for tables of classes'),
  ):
    assert f'{wanted}, and means nothing here: leave it out' in complaint(*flags)
  for flags in ((*images, '--resize', '--top=2'), (*text, '--sample=1', '--temperature=2', '--seed=1')):
    predict.prepare(['predict', *flags])


def test_pixels_are_checked_in_all_images_together(classifier, tmp_path, capsys):
  """The last of many images are as dark as if their pixels ranged from 0 to 1."""
  path, model = classifier
  images = np.random.default_rng(5).uniform(2, 255, size=(300, 4, 4, 1))
  images[256:] = 1.0
  np.savez(tmp_path / 'some.npz', images=images)
  run(f'--model={path}', f'--images={tmp_path}/some.npz', '--json')
  found = [list(one['probabilities'].values()) for one in json.loads(capsys.readouterr().out)['images']]
  logits = model.module.apply(model.variables, model.whiten(images))
  np.testing.assert_allclose(found, jax.nn.softmax(logits), rtol=1e-5)


def test_images_of_a_folder(classifier, tmp_path, capsys):
  """A grey image, and a colour image of another size. Other files are ignored."""
  path, model = classifier
  pixels = np.random.default_rng(0).integers(256, size=(4, 4), dtype=np.uint8)
  Image.fromarray(pixels).save(tmp_path / 'b.png')
  Image.fromarray(pixels).convert('RGB').resize((8, 8), Image.Resampling.NEAREST).save(tmp_path / 'a.png')
  (tmp_path / 'notes.txt').write_text('no image')
  assert 'image a.png is 8 x 8: the model takes 4 x 4; --resize' in complaint(f'--model={path}', f'--images={tmp_path}')
  run(f'--model={path}', f'--images={tmp_path}', '--resize', '--json')
  found = json.loads(capsys.readouterr().out)
  assert [entry['image'] for entry in found['images']] == ['a.png', 'b.png'] and found['model'] == str(path)
  wanted = np.asarray(model(pixels[None, :, :, None]))[0]
  shown = found['images'][1]
  np.testing.assert_allclose(list(shown['probabilities'].values()), wanted, rtol=1e-6)
  assert shown['class'] == ('cat', 'dog', 'owl')[wanted.argmax()] and list(shown['probabilities']) == [
    'cat',
    'dog',
    'owl',
  ]
  run(f'--model={path}', f'--images={tmp_path / "b.png"}', '--top=2')
  line = capsys.readouterr().out.splitlines()[-1].split()
  best, second = np.argsort(-wanted)[:2]
  assert line == ['b.png', model.classes[best], f'{wanted[best]:.3f}', model.classes[second], f'{wanted[second]:.3f}']


@pytest.mark.parametrize('named', [False, True])
def test_images_of_an_npz_with_labels(classifier, tmp_path, capsys, named):
  path, model = classifier
  images = np.random.default_rng(1).integers(256, size=(5, 4, 4), dtype=np.uint8)
  right = np.asarray(model(images[..., None]).argmax(-1))
  labels = np.where(np.arange(5) < 3, right, (right + 1) % 3)  # three of five
  np.savez(tmp_path / 'some.npz', images=images, labels=np.array(model.classes)[labels] if named else labels)
  run(f'--model={path}', f'--images={tmp_path / "some.npz"}')
  assert 'accuracy: 0.6000 of 5 images' in capsys.readouterr().out


def test_images_in_folders_of_their_classes(classifier, tmp_path, capsys):
  path, model = classifier
  pixels = np.random.default_rng(2).integers(256, size=(4, 4, 4), dtype=np.uint8)
  labels = np.asarray(model(pixels[..., None]).argmax(-1)).copy()
  labels[3] = (labels[3] + 1) % 3  # three of four are right
  for k, number in enumerate(labels):
    (tmp_path / model.classes[number]).mkdir(exist_ok=True)
    Image.fromarray(pixels[k]).save(tmp_path / model.classes[number] / f'{k}.png')
  run(f'--model={path}', f'--images={tmp_path}')
  assert 'accuracy: 0.7500 of 4 images' in capsys.readouterr().out
  (tmp_path / 'hen').mkdir()
  Image.fromarray(pixels[0]).save(tmp_path / 'hen' / 'x.png')
  assert "'hen', which is no class" in complaint(f'--model={path}', f'--images={tmp_path}')


def test_labels_are_numbers_of_classes_or_their_names():
  labels = np.array([10, 30, 20])
  assert pictures.class_numbers(labels, ('10', '20', '30')).tolist() == [0, 2, 1]
  assert pictures.class_numbers(labels // 10 - 1, ('cat', 'dog', 'owl')).tolist() == [0, 2, 1]
  with pytest.raises(ValueError, match="'10', which is no class"):
    pictures.class_numbers(labels, ('0', '1', '2'))
  assert pictures.class_numbers(np.array([0, 2, 1]), ('2', '0', '1')).tolist() == [1, 0, 2]
  assert pictures.class_numbers(np.array([0, 2, 1]), ('2', '0', '1'), numbered=True).tolist() == [0, 2, 1]


@pytest.mark.parametrize('kind', ['images', 'sequences'])
def test_labels_are_read_as_in_training(tmp_path, capsys, kind):
  """Classes with the names 2, 0 and 1, in this order: labels that are ints number them, and words name them."""
  names, rng = ('2', '0', '1'), np.random.default_rng(4)
  if kind == 'images':
    inputs = export.ImageInputs((4, 4, 1), names, Whitening('image'), numbered=True)
    model, x = save(tmp_path / 'model', CHAIN, {'classes': 3}, inputs), rng.integers(256, size=(9, 4, 4, 1))
  else:
    inputs = export.SequenceInputs(3, names, SCALE, numbered=True)
    options = {'outputs': 3, 'features': 4, 'layers': 2}
    model, x = save(tmp_path / 'model', TREE, options, inputs), rng.normal(size=(9, 3, 2))
  assert model.inputs.numbered
  right = np.asarray(model(x)).argmax(-1)
  labels = np.where(np.arange(9) < 6, right, (right + 1) % 3)  # six of nine
  words, order = np.array(names)[labels], np.array(['0', '1', '2'])

  def accuracy(**arrays):
    np.savez(tmp_path / 'x.npz', **{kind: x, **arrays})
    run(f'--model={tmp_path}/model', f'--{kind}={tmp_path}/x.npz', '--json')
    return json.loads(capsys.readouterr().out)['accuracy']

  for given in (labels, labels[:, None], words, words.astype('S'), words[:, None]):
    assert accuracy(labels=given) == pytest.approx(2 / 3)
  # The names of the file count, whatever the order of the classes in training.
  assert accuracy(labels=words.astype(int), class_names=order) == pytest.approx(2 / 3)
  for given, wanted in (
    ({'labels': labels[:8]}, 'has labels (8,): want (9,)'),
    ({'labels': labels.reshape(1, 9)}, 'has labels (1, 9): want (9,)'),
    ({'labels': np.arange(9) % 3, 'class_names': order[:2]}, 'labels other than 0 to 1'),
    ({'labels': np.arange(9) % 3 / 1, 'class_names': order}, 'labels of type float64: want integers'),
    ({'labels': labels, 'class_names': np.array(['a', 'b', 'a'])}, "'a' twice in 'class_names'"),
    ({'class_names': order}, "has 'class_names' and no 'labels'"),
  ):
    np.savez(tmp_path / 'x.npz', **{kind: x, **given})
    assert wanted in complaint(f'--model={tmp_path}/model', f'--{kind}={tmp_path}/x.npz')
  # A model that was saved before this was noted: labels that are numbers name their classes.
  card = json.loads((tmp_path / 'model' / 'model.json').read_text())
  del card[kind]['numbered']
  (tmp_path / 'model' / 'model.json').write_text(json.dumps(card))
  assert accuracy(labels=words.astype(int)) == pytest.approx(2 / 3)


def test_numbers_to_compare_with_have_the_shape_of_the_predicted(tmp_path):
  read_sequences(tmp_path, 'model', scale=SCALE)
  np.savez(tmp_path / 'x.npz', sequences=np.zeros((3, 3, 2)), labels=np.zeros((2, 3)))
  assert 'has labels (2, 3): want (3, 2)' in complaint(f'--model={tmp_path}/model', f'--sequences={tmp_path}/x.npz')


def test_numbers_of_images(tmp_path, capsys):
  inputs = export.ImageInputs((4, 4, 1), (), Whitening('image'), scale=splits.Scale(10.0, 2.0))
  model = save(tmp_path / 'model', CHAIN, {'classes': 1}, inputs)
  assert isinstance(model, export.Regressor) and model.inputs == inputs and model.classes == ()
  images = np.random.default_rng(3).integers(256, size=(5, 4, 4, 1), dtype=np.uint8)
  numbers = np.asarray(model(images))
  outputs = model.module.apply(model.variables, model.whiten(images))
  np.testing.assert_allclose(numbers, 10 + 2 * outputs[:, 0], rtol=1e-6)
  np.savez(tmp_path / 'some.npz', images=images, labels=numbers + np.array([0, 0, 0, 1, -3]))
  flags = f'--model={tmp_path / "model"}', f'--images={tmp_path / "some.npz"}'
  run(*flags)
  shown = capsys.readouterr().out
  assert 'root mean squared error: 1.414 of 5 images' in shown and f'{numbers[0]:.3f}' in shown
  run(*flags, '--json')
  found = json.loads(capsys.readouterr().out)
  assert [line['number'] for line in found['images']] == pytest.approx(numbers.tolist())
  np.savez(tmp_path / 'some.npz', images=images[:1], labels=numbers[:1] + 2)
  run(*flags)  # a single label is enough
  assert 'root mean squared error: 2 of 1 image' in capsys.readouterr().out
  np.savez(tmp_path / 'some.npz', images=images[:2], labels=np.array(['cat', 'hen']))
  assert 'predicts numbers: give finite numbers, or no labels' in complaint(*flags)


def test_images_are_scaled_to_what_is_no_square(tmp_path):
  Image.new('L', (6, 9), 7).save(tmp_path / 'x.png')
  wanted = export.ImageInputs((4, 8, 1), ('cat', 'dog'), Whitening('image'), True)
  assert pictures.read([str(tmp_path)], wanted).images.shape == (1, 4, 8, 1)


def test_a_text(language, tmp_path, capsys):
  path, _ = language
  (tmp_path / 'text.txt').write_text('abba\nab')
  run(f'--model={path}', f'--text={tmp_path / "text.txt"}', '--sample=4', '--seed=3', '--json')
  found = json.loads(capsys.readouterr().out)
  assert found['tokens'] == 7 and len(found['log_prob']) == 6 and len(found['sample']) == 4
  np.testing.assert_allclose(found['perplexity'], np.exp(-np.mean(found['log_prob'])), rtol=1e-6)
  np.testing.assert_allclose(2 ** found['bits'], found['perplexity'], rtol=1e-6)
  run(f'--model={path}', f'--text={tmp_path / "text.txt"}')
  assert capsys.readouterr().out.splitlines()[-1].split()[:3] == ['text.txt', '7', f'{found["perplexity"]:.3f}']


def test_a_text_is_read_as_in_training(tmp_path, capsys):
  """Line ends of other systems are tokens, and a byte-order mark is none."""
  for split, words in (('train', 'ab\r\nb\na'), ('valid', 'a'), ('test', 'a\r\nb\r\n')):
    (tmp_path / f'{split}.txt').write_bytes(b'\xef\xbb\xbf' + words.encode())
  text = text_lib.load_text('text', str(tmp_path))
  options = {'vocabulary': len(text.vocabulary), 'features': 4}
  model = save(tmp_path / 'model', TREE, options, export.TextInputs('char', text.vocabulary))
  run(f'--model={tmp_path}/model', f'--text={tmp_path}/test.txt', '--json')
  found = json.loads(capsys.readouterr().out)
  wanted = model(''.join(text.vocabulary[number] for number in text.test))
  assert found['tokens'] == len(text.test) == 6
  np.testing.assert_allclose(found['log_prob'], wanted.log_prob, rtol=1e-6)


SCALE = Scale(np.array([1.0, 2.0]), np.array([0.5, 4.0]))


def read_sequences(tmp_path, name, classes=(), scale=None, horizon=0, columns=()):
  """A network with random weights for sequences of two features."""
  outputs = len(classes) or np.size(scale.mean)
  options = {'outputs': outputs, 'features': 4, 'layers': 2}
  return save(tmp_path / name, TREE, options, export.SequenceInputs(3, classes, SCALE, scale, horizon, columns))


def test_classes_of_sequences(tmp_path, capsys):
  """Sequences of full length, and sequences that end earlier."""
  model = read_sequences(tmp_path, 'model', classes=('cat', 'dog', 'owl'))
  x, lengths = np.random.default_rng(0).normal(size=(300, 5, 2)), np.arange(300) % 5 + 1
  np.savez(tmp_path / 'x.npz', sequences=x, lengths=lengths, labels=np.array(['dog'] * 300))
  run(f'--model={tmp_path}/model', f'--sequences={tmp_path}/x.npz', '--json')
  found = json.loads(capsys.readouterr().out)
  wanted = np.asarray(model(x, lengths))
  np.testing.assert_allclose([list(one['probabilities'].values()) for one in found['sequences']], wanted, rtol=1e-5)
  assert found['accuracy'] == np.mean(wanted.argmax(-1) == 1)
  np.testing.assert_allclose(wanted[1], np.asarray(model(x[1:2, :2]))[0], rtol=1e-5)
  standard = (x[:2] - [1.0, 2.0]) / [0.5, 4.0]
  logits = model.module.apply(model.variables, jnp.asarray(standard, jnp.float32))
  np.testing.assert_allclose(model(x[:2]), jax.nn.softmax(logits), rtol=1e-5)


def test_files_of_sequences(tmp_path, capsys):
  """A folder for each class gives labels; files, or one file, have none. Shorter sequences end where their files do."""
  model = read_sequences(tmp_path, 'model', classes=('cat', 'dog', 'owl'))
  x, folder = np.random.default_rng(0).normal(size=(4, 5, 2)), tmp_path / 'new'
  names = ('cat/1.csv', 'cat/2.csv', 'dog/1.npy', 'owl/9.csv')
  for k, name in enumerate(names):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, x[k, : k + 2]) if name.endswith('.npy') else np.savetxt(path, x[k, : k + 2], '%.17g', ',')
  wanted = np.asarray(model(x, np.arange(2, 6)))

  def shown(path):
    run(f'--model={tmp_path}/model', f'--sequences={path}', '--json')
    found = json.loads(capsys.readouterr().out)
    return found, {one['sequence']: list(one['probabilities'].values()) for one in found['sequences']}

  found, probabilities = shown(folder)
  assert list(probabilities) == list(names)
  np.testing.assert_allclose(list(probabilities.values()), wanted, rtol=1e-5)
  assert found['accuracy'] == np.mean(wanted.argmax(-1) == [0, 0, 1, 2])
  for path, rows in (
    (folder / 'cat', {'1.csv': wanted[0], '2.csv': wanted[1]}),
    (folder / names[2], {'1.npy': wanted[2]}),
  ):
    found, probabilities = shown(path)
    assert 'accuracy' not in found and list(probabilities) == list(rows)
    np.testing.assert_allclose(list(probabilities.values()), list(rows.values()), rtol=1e-5)
  run(f'--model={tmp_path}/model', f'--sequences={folder}')
  assert 'cat/2.csv' in capsys.readouterr().out


def test_numbers_of_sequences_and_a_forecast(tmp_path, capsys):
  scale = Scale(np.array([10.0, -3.0]), np.array([2.0, 5.0]))
  model, x = read_sequences(tmp_path, 'numbers', scale=scale), np.random.default_rng(0).normal(size=(4, 3, 2))
  np.savez(tmp_path / 'x.npz', sequences=x, labels=model(x) + np.array([3.0, 4.0]))
  run(f'--model={tmp_path}/numbers', f'--sequences={tmp_path}/x.npz')
  shown = capsys.readouterr().out.splitlines()
  assert shown[1].split() == ['sequence', 'number', '1', 'number', '2'] and shown[-1].startswith('root mean squared')
  np.testing.assert_allclose(float(shown[-1].split()[4]), 12.5**0.5, rtol=1e-3)
  np.testing.assert_allclose(model(x), scale.mean + scale.deviation * np.asarray(model.outputs(x)), rtol=1e-6)
  ahead = read_sequences(tmp_path, 'ahead', scale=scale, horizon=1)  # one step of two features
  series = np.random.default_rng(1).normal(size=(7, 2))
  np.savez(tmp_path / 'series.npz', series=series)
  run(f'--model={tmp_path}/ahead', f'--sequences={tmp_path}/series.npz', '--json')
  found = json.loads(capsys.readouterr().out)['forecast']
  # The last three steps decide how the last value changes.
  np.testing.assert_allclose(found, series[-1:] + ahead.numbers(series[None, -3:]), rtol=1e-6)
  np.savetxt(tmp_path / 'series.csv', series, '%.17g', ',', header='heat,load', comments='')
  run(f'--model={tmp_path}/ahead', f'--sequences={tmp_path}/series.csv', '--json')
  assert json.loads(capsys.readouterr().out)['forecast'] == found


def test_columns_of_a_forecast_have_their_names(tmp_path, capsys):
  read_sequences(tmp_path, 'named', scale=SCALE, horizon=1, columns=('heat', 'load'))
  read_sequences(tmp_path, 'unnamed', scale=SCALE, horizon=1)
  for header in ('heat,load', 'load,heat', ''):
    (tmp_path / f'x{header}.csv').write_text(f'{header}\n1,2\n3,4\n5,6\n'.lstrip())
  run(f'--model={tmp_path}/named', f'--sequences={tmp_path}/xheat,load.csv')
  shown = capsys.readouterr().out
  run(f'--model={tmp_path}/named', f'--sequences={tmp_path}/x.csv')
  assert capsys.readouterr().out == shown and shown.splitlines()[1].split() == ['step', 'heat', 'load']
  run(f'--model={tmp_path}/unnamed', f'--sequences={tmp_path}/xload,heat.csv')
  assert capsys.readouterr().out.splitlines()[1].split() == ['step', 'feature', '1', 'feature', '2']
  said = complaint(f'--model={tmp_path}/named', f'--sequences={tmp_path}/xload,heat.csv')
  assert 'has the columns load, heat: want heat, load, as in training' in said


def test_what_is_wrong_with_sequences_is_said_in_one_line(classifier, tmp_path):
  read_sequences(tmp_path, 'model', classes=('a', 'b'))
  read_sequences(tmp_path, 'ahead', scale=SCALE, horizon=1)
  x = np.zeros((2, 3, 2))
  for model, arrays, words in (
    ('model', {'sequences': x[..., :1]}, 'want [n, T, 2], as in training'),
    ('model', {'sequences': x, 'labels': np.array(['a', 'c'])}, "'c', which is no class"),
    ('model', {'sequences': x, 'labels': np.array(['a'])}, 'has labels (1,)'),
    ('model', {'sequences': x, 'lengths': np.array([0, 1])}, 'ints [2] from 1 to 3'),
    ('model', {'series': x[0]}, "has arrays series: want arrays 'sequences'"),
    ('ahead', {'sequences': x}, "has arrays sequences: want one array 'series'"),
    ('ahead', {'series': x[0, :2]}, 'want at least 3, the window'),
    ('ahead', {'series': x[0] + np.nan}, 'not finite'),
  ):
    np.savez(tmp_path / 'x.npz', **arrays)
    said = complaint(f'--model={tmp_path}/{model}', f'--sequences={tmp_path}/x.npz')
    assert words in said, said
  read_sequences(tmp_path, 'numbers', scale=Scale(np.array([0.0]), np.array([1.0])))
  for name, text in (('cat/1.csv', '1,2\n3,4'), ('x.csv', '1,2\n3,'), ('y.csv', '1,2,3'), ('x.txt', '1 2')):
    (tmp_path / 'new' / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / 'new' / name).write_text(text)
  (tmp_path / 'labelled' / 'cat').mkdir(parents=True)
  np.save(tmp_path / 'labelled' / 'cat' / '1.npy', np.zeros((3, 2)))
  for model, path, words in (
    ('model', 'labelled', "'cat', which is no class of the model: want a, b"),
    ('numbers', 'labelled', 'the labels are of type <U3, and the model predicts numbers'),
    ('ahead', 'labelled', 'is a folder, and the model forecasts one series'),
    ('model', 'new', "x.csv cannot be read (line 2, column 2: '' is no number)"),
    ('model', 'new/y.csv', 'has sequences (1, 1, 3): want [n, T, 2], as in training'),
    ('model', 'new/x.txt', "want an .npz with arrays 'sequences'"),
    ('ahead', 'new/cat/1.csv', 'the series has 2 steps: want at least 3, the window of the training'),
    ('model', 'nowhere', 'nowhere cannot be read (No such file'),
  ):
    said = complaint(f'--model={tmp_path}/{model}', f'--sequences={tmp_path}/{path}')
    assert words in said, said
  assert 'takes sequences: give --sequences' in complaint(f'--model={tmp_path}/model', '--text=x.txt')
  assert 'takes images: give --images' in complaint(f'--model={classifier[0]}', f'--sequences={tmp_path}/x.npz')


def test_what_is_wrong_is_said_in_one_line(classifier, language, tmp_path):
  images, text = classifier[0], language[0]
  (tmp_path / 'text.txt').write_text('abc')
  (tmp_path / 'no.png').write_text('no image')
  (tmp_path / 'empty').mkdir()
  np.savez(tmp_path / 'other.npz', images=np.zeros((2, 4, 4, 3), np.uint8))
  np.savez(tmp_path / 'labels.npz', images=np.zeros((2, 4, 4, 1), np.uint8), labels=np.array(['cat', 'hen']))
  np.savez(tmp_path / 'none.npz', pictures=np.zeros((2, 4, 4, 1), np.uint8))
  for flags, words in (
    ((), '--model is missing'),
    ((f'--model={images}',), 'one of --images, --text and --sequences'),
    ((f'--model={images}', f'--text={tmp_path / "text.txt"}'), 'takes images: give --images'),
    ((f'--model={text}', f'--text={tmp_path / "text.txt"}'), "token 2 of the text is 'c'"),
    ((f'--model={text}', f'--text={tmp_path / "nowhere.txt"}'), 'cannot be read'),
    ((f'--model={images}', f'--images={tmp_path / "no.png"}'), 'cannot be read as an image'),
    ((f'--model={images}', f'--images={tmp_path / "empty"}'), 'holds no image'),
    ((f'--model={images}', f'--images={tmp_path / "other.npz"}'), 'want [4, 4, 1]'),
    ((f'--model={images}', f'--images={tmp_path / "labels.npz"}'), "'hen', which is no class"),
    ((f'--model={images}', f'--images={tmp_path / "none.npz"}'), "an array 'images'"),
  ):
    assert words in complaint(*flags)
  with pytest.raises(ValueError, match='labels are from 0 to 3'):
    pictures.class_numbers(np.array([0, 3]), ('cat', 'dog', 'owl'))
