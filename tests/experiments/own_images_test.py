"""A user's own photographs: from a search to the class of a new image."""

import contextlib
import json
import re

import numpy as np
from PIL import Image
import pytest

from experiments import conv_search, enas_search, per_layer_search, predict, retrain
from experiments.common import launch, recovery_files
from nas_jax import export

CLASSES = ('cat', 'dog', 'owl')
RNG = np.random.default_rng(0)


def photographs(count):
  """Returns images of two sizes and their classes. Each of the three classes is brightest in another colour."""
  labels = np.arange(count) % 3
  images = [RNG.integers(120, size=((12, 16, 3), (16, 12, 3))[k // 3 % 2], dtype=np.uint8) for k in range(count)]
  for image, label in zip(images, labels, strict=True):
    image[..., label] += 120
  return images, labels


def write(folder, count=90):
  for k, (image, label) in enumerate(zip(*photographs(count), strict=True)):
    path = folder / CLASSES[label] / f'{k}.png'
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)
  return ['--dataset=folder', f'--data_dir={folder}', '--resize=12,8', '--test_share=0.2']


def write_npz(folder, count=90):
  """Writes such photographs of one size to an .npz."""
  images, labels = photographs(count)
  square = np.stack([image[:12, :12] for image in images])
  np.savez(folder / 'mine.npz', images=square, labels=np.array(CLASSES)[labels])
  return ['--dataset=mine.npz', f'--data_dir={folder}', '--resize=12,8', '--test_share=0.2']


@pytest.fixture(autouse=True)
def set_up(monkeypatch):
  """The tests have set up JAX already, and pytest records crashes."""
  monkeypatch.setattr(launch, 'set_up_jax', lambda count=None: None)
  monkeypatch.setattr(recovery_files, 'recording_crashes', lambda workdir: contextlib.nullcontext())


def run(launcher, *flags):
  launcher.prepare([launcher.__name__, *flags])(lambda: None)


@pytest.mark.long
@pytest.mark.parametrize('make', [write, write_npz])
def test_from_a_folder_to_the_name_of_a_class(tmp_path, capsys, make):
  (tmp_path / 'photos').mkdir()
  data, workdir = make(tmp_path / 'photos'), tmp_path / 'run'
  goal = ['--metric=f1', '--class_weights=balanced', '--batch=9']
  searched = ['--max_children=2', '--reliability_children=0', '--yardstick_repeats=0', '--nocontrol']
  run(conv_search, '--preset=smoke', f'--workdir={workdir}', *data, *goal, *searched)
  assert 'validation macro F1' in capsys.readouterr().out
  children = [json.loads(line) for line in (workdir / 'children.jsonl').read_text().splitlines()]
  assert all(child['reward'] == pytest.approx(child['f1'] ** 3) and 'accuracy' in child for child in children)
  assert 'macro F1^3' in (workdir / 'report.html').read_text()
  run(retrain, '--preset=smoke', f'--workdir={workdir}', *data, *goal, '--epochs=12', '--lr=0.1', '--add_filters=4')
  shown = capsys.readouterr().out
  assert 'test 1 - macro F1' in shown and 'classes of equal weight' in shown and '18 images to test' in shown
  model = export.load(workdir)
  assert model.classes == CLASSES and model.inputs.shape == (12, 8, 3)
  assert model.about['scores']['metric'] == '1 - macro F1' and model.about['scores']['test'] < 0.2
  fresh = tmp_path / 'fresh'
  write(fresh, 6)
  run(predict, f'--model={workdir}', f'--images={fresh}', '--json')
  found = json.loads(capsys.readouterr().out)
  assert [(image['image'], image['class']) for image in found['images']] == [
    (f'{CLASSES[k % 3]}/{k}.png', CLASSES[k % 3]) for k in (0, 3, 1, 4, 2, 5)
  ]
  assert found['accuracy'] == 1.0
  run(conv_search, '--preset=smoke', f'--workdir={workdir}', *data, *goal, *searched)  # nothing is left to be done
  assert (workdir / 'children.jsonl').read_text().count('\n') == 2


@pytest.mark.long
def test_from_numbers_to_a_number(tmp_path, capsys):
  """The label of an image is the brightness added to its upper half."""
  images = RNG.integers(120, size=(80, 8, 8), dtype=np.uint8)
  above = RNG.integers(120, size=80, dtype=np.uint8)
  images[:, :4] += above[:, None, None]
  np.savez(tmp_path / 'mine.npz', images=images[:60], labels=above[:60] / 10.0, test_images=images[60:],
           test_labels=above[60:] / 10.0)  # fmt: skip
  data, workdir = ['--dataset=mine.npz', f'--data_dir={tmp_path}', '--metric=r2', '--whiten=channel'], tmp_path / 'run'
  searched = ['--max_children=2', '--reliability_children=0', '--yardstick_repeats=0', '--nocontrol']
  run(conv_search, '--preset=smoke', f'--workdir={workdir}', *data, *searched)
  assert 'validation R2' in capsys.readouterr().out
  children = [json.loads(line) for line in (workdir / 'children.jsonl').read_text().splitlines()]
  assert all(child['reward'] == pytest.approx((1 / (2 - child['r2'])) ** 3) for child in children)
  run(retrain, '--preset=smoke', f'--workdir={workdir}', *data, '--epochs=40', '--lr=0.02', '--add_filters=6')
  assert 'test 1 - R2' in capsys.readouterr().out
  model = export.load(workdir)
  assert isinstance(model, export.Regressor)
  found = np.asarray(model(images[60:, :, :, None]))
  wanted = above[60:] / 10.0
  left = np.mean((found - wanted) ** 2) / wanted.var()
  assert left == pytest.approx(model.about['scores']['test'], rel=1e-3) and left < 0.9


@pytest.mark.parametrize('launcher', [conv_search, per_layer_search, enas_search, retrain])
@pytest.mark.parametrize(
  ('flags', 'says'),
  [
    ([], 'pixels and .* give resize, as --resize=64 or --resize=48,64'),
    (['--resize=12,8,3'], r'resize \(=12,8,3\) must be one int, or two'),
    (['--resize=0,8'], r'resize \(=\(0, 8\)\) must be one size, or height and width, above 0'),
    (['--metric=auc'], r'metric \(=auc\) must be one of accuracy, balanced_accuracy, f1, r2'),
    (['--metric=r2'], "metric r2 predicts numbers, and dataset 'folder' has classes"),
    (['--dataset=other.npz'], 'other.npz cannot be read'),
  ],
)
def test_every_launcher_says_what_is_wrong(tmp_path, launcher, flags, says):
  own = ['--arch=XU_CIFAR10', f'--results={tmp_path}/run'] if launcher is retrain else [f'--workdir={tmp_path}/run']
  write(tmp_path / 'photos', 30)
  with pytest.raises(ValueError) as error:
    run(launcher, '--preset=smoke', '--dataset=folder', f'--data_dir={tmp_path}/photos', *own, *flags)
  assert re.search(says, str(error.value)) and '\n' not in str(error.value)


def test_a_network_without_a_test_split_cannot_be_retrained(tmp_path):
  with pytest.raises(
    ValueError, match=r"dataset 'folder' has no test split.*give test_share, to this and to the search"
  ):
    flags = write(tmp_path / 'photos', 60)[:-1]
    run(retrain, '--preset=smoke', '--arch=XU_CIFAR10', f'--results={tmp_path}/run', *flags)
