"""Images of a user: folders of files, and .npz files."""

import dataclasses
import re

import jax
import numpy as np
from PIL import Image
import pytest
import testing

from nas_jax import config
from nas_jax.datasets import image_files, splits
from nas_jax.datasets import labels as labels_lib
from nas_jax.datasets.images import load_images
from nas_jax.systems import classifier, conv, retrain_conv

RNG = np.random.default_rng(0)
COLOURS = {'blue': (0, 0, 200), 'green': (0, 200, 0), 'red': (200, 0, 0)}


def draw(path, size=(6, 5), colour=(200, 0, 0), **how):
  """Writes an image of one colour, of `size` (height, width)."""
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.new('RGB', size[::-1], colour).save(path, **how)


def photographs(folder, count=10, size=(6, 5)):
  """Writes a folder of images of three classes, and returns its path as flags take it."""
  for name, colour in COLOURS.items():
    for k in range(count):
      draw(folder / name / f'{k}.png', size, tuple(min(255, part + k) for part in colour))
  return str(folder)


def complaint(dataset, data_dir='', **settings):
  with pytest.raises(ValueError) as error:
    load_images(dataset, str(data_dir), **settings)
  return testing.one_line(error)


def test_a_folder_with_a_folder_for_each_class(tmp_path):
  found = load_images('folder', photographs(tmp_path), valid_share=0.2)
  assert found.class_names == ('blue', 'green', 'red') and found.shape == (6, 5, 3)
  assert [len(part.labels) for part in found[:3]] == [24, 6, 0]
  for images, labels in found[:2]:
    assert (images[:, 0, 0].argmax(-1) == 2 - labels).all()  # blue is the last channel, and the first class
  assert load_images('folder', str(tmp_path), max_examples=10).train.images.shape == (9, 6, 5, 3)


@pytest.mark.parametrize('valid', ['valid', 'val', 'validation'])
def test_a_folder_with_splits(tmp_path, valid):
  for split, count in (('train', 4), (valid, 3), ('test', 2)):
    photographs(tmp_path / split, count)
  found = load_images('folder', str(tmp_path))
  assert [len(part.labels) for part in found[:3]] == [12, 9, 6]
  assert (found.test.images[:, 0, 0].argmax(-1) == 2 - found.test.labels).all()


def test_sizes_that_differ_are_brought_to_one(tmp_path):
  photographs(tmp_path)
  draw(tmp_path / 'red' / 'deeper' / 'large.jpg', (8, 16))
  said = complaint('folder', tmp_path)
  assert '8 x 16' in said and '6 x 5' in said and '--resize=48,64' in said
  assert load_images('folder', str(tmp_path), resize=8).shape == (8, 8, 3)
  found = load_images('folder', str(tmp_path), resize=(4, 8))
  assert found.shape == (4, 8, 3) and sum(len(part.labels) for part in found[:2]) == 31
  assert 'above 0' in complaint('folder', tmp_path, resize=(0, 8))


def test_an_image_stands_as_its_camera_noted(tmp_path):
  """Value 6 of tag 274 means a turned camera: stored columns are rows, and the stored left side is up."""
  pixels = np.zeros((6, 8, 3), np.uint8)
  pixels[:, :4] = 255
  how = Image.Exif()
  how[274] = 6
  Image.fromarray(pixels).save(tmp_path / 'turned.png', exif=how)
  found = image_files.decoded(str(tmp_path / 'turned.png'), 3)
  assert found.shape == (8, 6, 3) and (found[:4] == 255).all() and not found[4:].any()


def test_other_files_are_said_and_hidden_ones_are_not(tmp_path):
  photographs(tmp_path)
  for name in ('notes.txt', '.DS_Store'):
    (tmp_path / 'red' / name).write_text('')
  (tmp_path / '.cache').mkdir()
  with pytest.warns(UserWarning, match='1 files, as notes.txt, are left out') as warned:
    found = load_images('folder', str(tmp_path))
  assert len(warned) == 1 and found.classes == 3


def damaged(folder):
  draw(folder / 'red' / 'cut.jpg', (64, 64))
  whole = (folder / 'red' / 'cut.jpg').read_bytes()
  (folder / 'red' / 'cut.jpg').write_bytes(whole[: len(whole) - 40])


def deep(folder):
  Image.fromarray(np.full((6, 5), 999, np.uint16)).save(folder / 'red' / 'deep.png')


def moving(folder):
  frames = [Image.new('RGB', (5, 6), (k, 0, 0)) for k in range(3)]
  frames[0].save(folder / 'red' / 'moving.gif', save_all=True, append_images=frames[1:])


@pytest.mark.parametrize(
  ('change', 'says'),
  [
    (lambda folder: (folder / 'red' / 'none.png').write_text('text'), 'none.png cannot be read as an image'),
    (damaged, 'cut.jpg cannot be read as an image'),
    (deep, 'deep.png cannot be .*pixels of type I;16, want 8 bits'),
    (moving, 'moving.gif cannot be .*has 3 images, want a file for each'),
    (lambda folder: Image.new('L', (5, 6)).save(folder / 'red' / 'x.png'), 'x.png is grey and .*png in colour'),
    (lambda folder: (folder / 'amber').mkdir(), 'amber holds no image: want files that end in .bmp'),
    (lambda folder: draw(folder / 'loose.png'), 'loose.png is in no folder of a class'),
    (lambda folder: (folder / 'test').mkdir(), 'a folder test and no folder train'),
    (lambda folder: draw(folder / 'train' / 'red' / 'x.png'), 'a folder blue beside its splits'),
  ],
)
def test_what_is_wrong_in_a_folder(tmp_path, change, says):
  photographs(tmp_path)
  change(tmp_path)
  assert re.search(says, complaint('folder', tmp_path))


def test_folders_that_are_none(tmp_path):
  assert 'has no sub-folders' in complaint('folder', tmp_path)
  assert "data_dir (='') is none" in complaint('folder')
  draw(tmp_path / 'red' / 'x.png')
  draw(tmp_path / 'red' / 'y.png')
  assert 'has 1 of 1 classes: want at least two' in complaint('folder', tmp_path, valid_share=0.5)
  for split, names in (('train', ('a', 'b')), ('val', ('a', 'c'))):
    for name in names:
      draw(tmp_path / 'more' / split / name / 'x.png')
  assert "the validation split has class 'c', and no training example is of it" in complaint(
    'folder', tmp_path / 'more'
  )
  (tmp_path / 'more' / 'valid').mkdir()
  assert 'several folders for the validation split' in complaint('folder', tmp_path / 'more')


def test_folders_of_splits_may_have_other_common_names(tmp_path):
  for split, count in (('Training', 6), ('Validation', 4), ('Testing', 3)):
    for name in ('cat', 'dog'):
      for k in range(count):
        draw(tmp_path / split / name / f'{k}.png')
  found = load_images('folder', data_dir=str(tmp_path))
  assert found.class_names == ('cat', 'dog') and [len(part.labels) for part in found[:3]] == [12, 8, 6]


def test_images_of_a_validation_split_are_not_in_the_order_of_their_classes(tmp_path):
  """Shared weights are scored on parts of it, normalised by the statistics of each part."""
  labels = np.arange(60) // 30
  valid = {'val_images': arrays(60, [])['images'], 'val_labels': labels}
  path = save(tmp_path / 'x.npz', **arrays(20, np.arange(20) % 2), **valid)
  one, other = (load_images(path, seed=seed) for seed in (0, 1))
  np.testing.assert_array_equal(one.valid.images, other.valid.images)
  assert sorted(one.valid.labels) == labels.tolist() and 3 <= one.valid.labels[:20].sum() <= 17
  rows = {image.tobytes(): label for image, label in zip(valid['val_images'], labels, strict=True)}
  assert all(rows[image.tobytes()] == label for image, label in zip(one.valid.images, one.valid.labels, strict=True))


def test_images_that_are_too_many_for_the_memory(tmp_path, monkeypatch):
  """20 images of 600 x 500 pixels are 17.2 MiB; files of one colour have a few hundred bytes."""
  monkeypatch.setattr(splits, 'memory', lambda: 30 * 2**20)
  monkeypatch.setattr(image_files, 'decoded', None)  # nothing is decoded before
  for name in ('a', 'b'):
    for k in range(10):
      draw(tmp_path / name / f'{k}.png', (600, 500))
  assert '20 images take 0.0168 GiB: want at most 0.00977 GiB' in complaint('folder', tmp_path)
  assert '20 images of 700 x 400 pixels take' in complaint('folder', tmp_path, resize=(700, 400))
  np.savez_compressed(tmp_path / 'many.npz', images=np.zeros((20, 600, 500, 3), np.uint8), labels=np.arange(20))
  many = complaint(str(tmp_path / 'many.npz'), resize=8, max_examples=10)
  assert many.startswith(f'the arrays of {tmp_path}/many.npz take 0.0168 GiB') and 'a folder of image files' in many


def arrays(count, labels, **more):
  return {'images': RNG.integers(256, size=(count, 5, 4, 3), dtype=np.uint8), 'labels': np.asarray(labels), **more}


def save(path, **named):
  np.savez(path, **named)
  return str(path)


@pytest.mark.parametrize(
  ('kinds', 'names'),
  [
    ((30, 7, -2), ('-2', '7', '30')),
    (('owl', 'cat', 'dog'), ('cat', 'dog', 'owl')),
    ((b'owl', b'cat', b'dog'), ('cat', 'dog', 'owl')),
    ((True, False), ('False', 'True')),
  ],
)
def test_labels_of_any_kind(tmp_path, kinds, names):
  labels = np.array(kinds)[np.arange(20) % len(kinds)]
  given = arrays(20, labels, test_images=arrays(4, [])['images'], test_labels=labels[:4])
  found = load_images('mine.npz', save(tmp_path / 'mine.npz', **given)[: -len('/mine.npz')])
  assert found.class_names == names and [len(part.labels) for part in found[:3]] == [18, 2, 4] and not found.numbered
  words = [kind.decode() if isinstance(kind, bytes) else str(kind) for kind in kinds]
  assert [found.class_names[number] for number in found.test.labels] == [words[k % len(kinds)] for k in range(4)]
  np.testing.assert_array_equal(found.test.images, given['test_images'])


def test_an_npz_as_other_people_write_them(tmp_path):
  """Array names with train_ and val_, grey images without a channel axis, labels [n, 1], and given class names."""
  grey = RNG.integers(256, size=(9, 5, 4), dtype=np.uint8)
  given = {'train_images': grey, 'train_labels': np.arange(9)[:, None] % 3, 'val_images': grey[:6]}
  given |= {'val_labels': np.arange(6)[:, None] % 3, 'class_names': np.array(['cat', 'dog', 'owl', 'yak'])}
  found = load_images(save(tmp_path / 'x.npz', **given), resize=(4, 6))
  assert found.shape == (4, 6, 1) and found.class_names == ('cat', 'dog', 'owl', 'yak') and found.numbered
  assert retrain_conv.image_inputs(retrain_conv.Config(), found).numbered
  assert sorted(found.valid.labels) == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize(
  ('change', 'says'),
  [
    (lambda given: given.pop('labels'), 'has no labels of the train split: want arrays'),
    (lambda given: given.pop('images'), 'has no images of the train split'),
    (lambda given: given.update(test_images=given['images']), 'has no labels of the test split'),
    (lambda given: given.update(pictures=given['images']), "has an array 'pictures'"),
    (lambda given: given.update(train_images=given['images']), "has an array 'train_images'"),
    (lambda given: given.update(labels=given['labels'][1:]), r'images \(6, 5, 4, 3\) and labels \(5,\)'),
    (lambda given: given.update(labels=np.eye(3)[given['labels']]), r'labels \(6, 3\).*one-hot'),
    (lambda given: given.update(labels=given['labels'] / 2), 'labels of type float64, as for regression'),
    (lambda given: given.update(labels=np.array([{}] * 6)), 'Object arrays cannot be loaded'),
    (lambda given: given.update(labels=given['labels'] * 0), '1 of 1 classes'),
    (lambda given: given.update(images=np.where(given['images'] < 9, np.nan, 1.0)), 'pixels that are not finite'),
    (lambda given: given.update(images=given['images'] / 255), 'pixels of type float64: want uint8'),
    (lambda given: given.update(class_names=np.array(['a', 'b'])), 'labels from 0 to 2: want 0 to 1'),
    (lambda given: given.update(class_names=np.array(['a', 'b', 'a'])), "'a' twice in 'class_names'"),
    (lambda given: given.update(class_names=np.arange(3)), "'class_names' \\(3,\\) of type int64: want words"),
    (lambda given: given.update(val_images=given['images'], val_labels=np.arange(6)), "split has class '3'"),
    (
      lambda given: given.update(val_images=given['images'], val_labels=np.array(['a'] * 6)),
      'the validation split has labels of type <U1, and train int64',
    ),
    (
      lambda given: given.update(val_images=given['images'][:, :4], val_labels=given['labels']),
      r'\(5, 4, 3\) in train and \(4, 4, 3\) in validation: want one shape',
    ),
  ],
)
def test_what_is_wrong_in_an_npz(tmp_path, change, says):
  given = arrays(6, np.arange(6) % 3)
  change(given)
  assert re.search(says, complaint(save(tmp_path / 'x.npz', **given), valid_share=0.5))


def test_labels_that_are_numbers_to_predict(tmp_path):
  labels = np.linspace(-3.0, 5.0, 20)
  path = save(tmp_path / 'x.npz', **arrays(20, labels, test_images=arrays(4, [])['images'], test_labels=np.arange(4)))
  found = load_images(path, numbers=True)
  assert found.classes == 1 and found.class_names == () and found.train.labels.dtype == np.float64
  np.testing.assert_allclose(found.scale, (found.train.labels.mean(), found.train.labels.std()), rtol=1e-5)
  np.testing.assert_array_equal(found.test.labels, [0, 1, 2, 3])
  cfg = classifier.Config(metric='r2', batch=3, whiten='image')
  train, valid = (classifier.learned(found, part).labels for part in found[:2])
  assert train.mean() == pytest.approx(0, abs=1e-6) and train.std() == pytest.approx(1, rel=1e-5)
  np.testing.assert_allclose(valid * found.scale.deviation + found.scale.mean, found.valid.labels, rtol=1e-5)
  data = classifier.set_up(cfg, found).data[0]
  np.testing.assert_array_equal(data.labels, train)
  far = load_images(save(tmp_path / 'far.npz', **arrays(20, 1.7e9 + labels)), numbers=True)  # as seconds since 1970
  np.testing.assert_allclose(classifier.learned(far, far.train).labels, train, atol=1e-6)
  for wrong, says in (
    (np.where(labels > 4, np.nan, labels), 'labels that are not finite: metric r2 wants numbers'),
    (np.array(['a', 'b'] * 10), 'labels of type <U1: metric r2 wants numbers'),
    (labels * 0 + 2, 'the label 2.0 alone: metric r2 wants numbers that differ'),
  ):
    assert says in complaint(save(tmp_path / 'y.npz', **arrays(20, wrong)), numbers=True)
  more = arrays(20, labels, class_names=np.array(['a']))
  assert 'metric r2 takes labels that are numbers' in complaint(save(tmp_path / 'y.npz', **more), numbers=True)
  assert "dataset 'digits' has classes: take a FILE.npz" in complaint('digits', numbers=True)
  with pytest.raises(ValueError, match=r'metric \(=accuracy\) does not fit labels that are numbers'):
    classifier.inputs(classifier.Config(), found)
  with pytest.raises(ValueError, match='class_weights .* predicts numbers'):
    classifier.inputs(dataclasses.replace(cfg, class_weights='balanced'), found)


def test_files_that_are_no_npz(tmp_path):
  assert 'nowhere.npz cannot be read (No such file or directory)' in complaint('nowhere.npz', tmp_path)
  (tmp_path / 'x.npz').write_text('text')
  assert 'cannot be read (File is not a zip file): want an .npz' in complaint('x.npz', tmp_path)


def test_a_test_split_is_drawn_that_no_seed_changes(tmp_path):
  path = save(tmp_path / 'x.npz', **arrays(40, np.arange(40) % 3))
  one, other = (load_images(path, test_share=0.25, seed=seed) for seed in (0, 1))
  assert [len(part.labels) for part in one[:3]] == [27, 3, 10]
  np.testing.assert_array_equal(one.test.images, other.test.images)
  assert not np.array_equal(one.valid.images, other.valid.images)
  few, others = (load_images(path, test_share=0.25, max_examples=5, valid_share=0.2, seed=seed) for seed in (0, 1))
  np.testing.assert_array_equal(few.test.images, others.test.images)
  assert not np.array_equal(few.train.images, others.train.images)
  rows = {image.tobytes() for image in one.test.images}
  assert [len(part.labels) for part in few[:3]] == [4, 1, 5]
  assert all(image.tobytes() not in rows for part in few[:2] for image in part.images)
  assert all(image.tobytes() in rows for image in few.test.images)
  assert 'test_share (=0.01) of 40 examples leaves a split' in complaint(path, test_share=0.01)
  given = arrays(40, np.arange(40) % 3, test_images=arrays(6, [])['images'], test_labels=np.arange(6) % 3)
  assert len(load_images(save(tmp_path / 'y.npz', **given), test_share=0.25).test.labels) == 6  # it has one


def test_one_size_or_two():
  for size in (8, (8, 16)):
    cfg = conv.Config(resize=size)
    config.check(cfg)
    saved = config.as_json(cfg)
    assert config.from_json(conv.Config, saved) == cfg and not config.differences(saved, cfg)
    assert config.differences(saved, dataclasses.replace(cfg, resize=9))
  for size in ((8,), (8, 8, 8), (8, 'a'), (-1, 8)):
    with pytest.raises(ValueError, match='resize'):
      config.check(conv.Config(resize=size))


def test_an_older_workdir_has_no_test_share():
  saved = {name: value for name, value in config.as_json(conv.Config()).items() if name != 'test_share'}
  assert not config.differences(saved, conv.Config())
  assert config.differences(saved, conv.Config(test_share=0.5)) == ['test_share (0.0 -> 0.5)']


def test_images_that_are_too_many_for_a_device(monkeypatch):
  cfg = classifier.Config(max_examples=100, batch=10)
  found = classifier.load(cfg)
  classifier.check_memory(cfg, found)
  monkeypatch.setattr(splits, 'memory', lambda: 80_000 * jax.device_count())
  classifier.check_memory(cfg, found)  # 200 images of 64 bytes, and 512 more for each of 90 to train on: 58,880
  with pytest.raises(ValueError, match=r'200 images of \(8, 8, 1\) take 9.06e-05 GiB of a device.*whiten=image'):
    classifier.check_memory(dataclasses.replace(cfg, whiten='zca'), found)


def test_classes_are_sorted_and_named_once():
  numbers, names = labels_lib.numbered({'train': np.array(['b', 'a', 'b']), 'test': np.array(['b'])})
  assert names == ('a', 'b') and numbers['train'].tolist() == [1, 0, 1] and numbers['test'].tolist() == [1]
