"""Images as arrays."""

import io
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest

from nas_jax.datasets import image_batches, images, splits
from nas_jax.datasets.images import Split
from nas_jax.systems import classifier

RNG = np.random.default_rng(0)


def some(count, size=(5, 4, 1), classes=3):
  return Split(RNG.integers(0, 256, size=(count, *size)).astype(np.uint8), np.arange(count) % classes)


def test_digits_need_no_file():
  found = images.load_images()
  assert found.shape == (8, 8, 1) and found.classes == 10
  assert [len(part.labels) for part in found[:3]] == [1294, 144, 359]
  assert found.train.images.max() == 240 and found.train.images.dtype == np.uint8
  assert sorted(set(found.valid.labels)) == list(range(10)) and found.sha256 == images.load_images().sha256
  together = np.concatenate([part.images.reshape(len(part.images), -1) for part in found[:3]])
  assert len(np.unique(together, axis=0)) > 1790  # no image stands in two splits
  other = images.load_images(seed=1, max_examples=100, resize=4)
  assert [len(part.labels) for part in other[:3]] == [90, 10, 100] and other.shape == (4, 4, 1)


def test_resized_as_jax_does_it():
  digits, small = images.load_images(), images.load_images(resize=5)
  want = jax.image.resize(digits.train.images.astype(np.float32), (len(digits.train.labels), 5, 5, 1), 'linear')
  np.testing.assert_allclose(small.train.images, want, atol=1.5)  # of 255


def test_a_split_is_drawn_from_the_training_images():
  train, test = some(40), some(10)
  found = images.split_images(train, test, 3, valid_share=0.25, seed=3)
  assert len(found.valid.labels) == 10 and len(found.train.labels) == 30
  rows = np.concatenate([found.train.images, found.valid.images]).reshape(40, -1)
  np.testing.assert_array_equal(np.unique(rows, axis=0), np.unique(train.images.reshape(40, -1), axis=0))
  np.testing.assert_array_equal(found.test.images, test.images)
  assert not np.array_equal(found.valid.images, images.split_images(train, test, 3, 0.25, seed=4).valid.images)


def test_orders_and_draws_depend_on_the_seed():
  train, test = some(40), some(10)
  first, same, other = (image_batches.lay_out(train, [test], 5, seed=seed)[0] for seed in (0, 0, 1))
  plain = image_batches.lay_out(train, [test], 5)[0]
  for name in ('orders', 'draws'):
    np.testing.assert_array_equal(getattr(first, name), getattr(same, name))
    np.testing.assert_array_equal(getattr(first, name), getattr(plain, name))
    assert not np.array_equal(getattr(first, name), getattr(other, name))
  np.testing.assert_array_equal(first.images, other.images)


@pytest.mark.parametrize(
  ('change', 'says'),
  [
    (lambda part: part._replace(images=part.images[:, :3]), '3 x 4 pixels'),
    (lambda part: part._replace(images=np.where(part.images == part.images[2, 0, 0, 0], np.nan, 1.0)), 'not finite'),
    (lambda part: part._replace(images=part.images / 255), 'float64'),
    (lambda part: part._replace(labels=part.labels + 1), 'labels from 1 to 3: want 0 to 2'),
    (lambda part: part._replace(labels=part.labels * 0), '1 of 3 classes'),
    (lambda part: part._replace(labels=np.eye(3, dtype=int)[part.labels]), r'labels \(\d+, 3\).*argmax\(1\)'),
    (lambda part: part._replace(labels=part.labels[:, None]), r'take labels\[:, 0\]'),
    (
      lambda part: part._replace(labels=part.labels + 0.5),
      'float64, as for regression, which takes metric r2: want ints',
    ),
    (lambda part: part._replace(labels=np.where(part.labels == 2, np.nan, part.labels)), 'labels of type float64'),
    (lambda part: part._replace(labels=part.labels[:-1]), r'want \[n, H, W, C\]'),
    (lambda part: Split(part.images[:0], part.labels[:0]), 'n > 0'),
  ],
)
def test_bad_images_are_refused(change, says):
  for train, test in ((change(some(40)), some(10)), (some(40), change(some(10)))):
    with pytest.raises(ValueError, match=says) as error:
      images.split_images(train, test, 3)
    assert '\n' not in str(error.value)


def test_unequal_shapes_and_shares_that_leave_nothing():
  with pytest.raises(ValueError, match='one shape'):
    images.split_images(some(40), some(10, (6, 4, 1)), 3)
  with pytest.raises(ValueError, match=r'valid_share \(=0.0\)'):
    images.split_images(some(40), some(10), 3, valid_share=0.0)


def test_a_validation_split_of_ones_own_is_used():
  train, test, valid = some(40), some(10), some(7)
  found = images.split_images(train, test, 3, valid=valid)
  assert len(found.train.labels) == 40
  assert {image.tobytes() for image in found.valid.images} == {image.tobytes() for image in valid.images}
  with pytest.raises(ValueError, match='the validation split has labels from 1 to 3'):
    images.split_images(train, test, 3, valid=valid._replace(labels=valid.labels + 1))
  assert found.sha256 != images.split_images(train, test, 3).sha256


def test_a_search_needs_no_test_split():
  found = images.split_images(some(40), None, 3)
  assert found.test.images.shape == (0, 5, 4, 1) and [len(part.labels) for part in found[:2]] == [36, 4]
  with pytest.raises(ValueError, match='no test split'):
    classifier.check_test_split('digits', len(found.test.labels))


def test_images_of_several_sizes_are_resized_and_need_it(monkeypatch):
  rows = [{'image': some(1, (5 + k, 4, 1)).images[0], 'label': k % 3} for k in range(6)]

  class Source(list):
    dataset_info = type(
      'Info', (), {'features': {'image': None, 'label': type('Label', (), {'num_classes': 3, 'names': 'abc'})}}
    )

    def __getitems__(self, places):
      return [self[place] for place in places]

  source = {'train': Source(rows)}
  part = images._prepared(source, 'train', 'mine', resize=4).read(np.arange(6))
  assert part.images.shape == (6, 4, 4, 1)
  with pytest.raises(ValueError, match=r"of 'mine' has images of 6 shapes .*: set resize") as error:
    images._prepared(source, 'train', 'mine', resize=0).read(np.arange(6))
  assert '\n' not in str(error.value)
  monkeypatch.setattr(images, 'AT_ONCE', 4)  # in two parts, of which the second is smaller
  again = images._prepared(source, 'train', 'mine', resize=4).read(np.arange(5, -1, -1))
  np.testing.assert_array_equal(again.images, part.images[::-1])
  assert again.labels.tolist() == part.labels[::-1].tolist()
  monkeypatch.setattr(splits, 'memory', lambda: 1000)
  read = []
  monkeypatch.setattr(Source, '__getitems__', lambda self, places: read.extend(places) or [self[k] for k in places])
  with pytest.raises(ValueError, match='6 train images of mine of 40 x 30 pixels take'):
    images._prepared(source, 'train', 'mine', resize=(40, 30)).read(np.arange(6))
  assert read == [0]


def test_what_would_not_fit_into_memory_is_refused():
  with pytest.raises(ValueError, match='3 images of 2147483647 x 2147483647 pixels take 1.29e'):
    images.resized(some(3).images, 2**31 - 1)
  with pytest.raises(ValueError, match=r"whiten \(='zca'\) needs a matrix of 150528 x 150528 .* 84 GiB"):
    image_batches.zca(np.zeros((2, 224, 224, 3), np.uint8))


def prepare(folder, train, test, dataset='mnist'):
  """Writes a data set in the format of TensorFlow Datasets."""
  from array_record.python.array_record_module import ArrayRecordWriter
  from PIL import Image
  import tensorflow_datasets as tfds

  home = folder / dataset / '3.0.1'
  home.mkdir(parents=True)
  features = tfds.features.FeaturesDict(
    {'image': tfds.features.Image(shape=train.images.shape[1:]), 'label': tfds.features.ClassLabel(num_classes=3)}
  )
  features.save_config(str(home))
  splits = []
  for split, part in (('train', train), ('test', test)):
    writer = ArrayRecordWriter(str(home / f'{dataset}-{split}.array_record-00000-of-00001'), 'group_size:1')
    for image, label in zip(*part, strict=True):
      file = io.BytesIO()
      Image.fromarray(image[..., 0]).save(file, format='png')
      row = features.encode_example({'image': file.getvalue(), 'label': int(label)})
      writer.write(features.serialize_example(row))
    writer.close()
    name = '{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}'
    count = str(len(part.labels))
    splits.append({'name': split, 'numBytes': '9', 'shardLengths': [count], 'filepathTemplate': name})
  info = {'name': dataset, 'version': '3.0.1', 'fileFormat': 'array_record', 'splits': splits}
  (home / 'dataset_info.json').write_text(json.dumps(info))
  return str(folder)


def test_a_prepared_set_of_tensorflow_datasets(tmp_path):
  train, test = some(20), some(6)
  found = images.load_images('mnist', prepare(tmp_path, train, test), valid_share=0.1)
  assert found.classes == 10 and found.shape == (5, 4, 1) and len(found.valid.labels) == 2
  np.testing.assert_array_equal(found.test.images, test.images)
  np.testing.assert_array_equal(found.test.labels, test.labels)
  named = images.load_images('mnist:3.0.1', str(tmp_path), valid_share=0.1)
  np.testing.assert_array_equal(named.train.images, found.train.images)


def test_a_set_may_have_a_folder_for_each_configuration(tmp_path):
  made = pathlib.Path(prepare(tmp_path / 'made', some(20), some(6)))
  (tmp_path / 'own' / 'mnist' / 'small').mkdir(parents=True)
  shutil.move(made / 'mnist' / '3.0.1', tmp_path / 'own' / 'mnist' / 'small' / '3.0.1')
  found = images.load_images('mnist/small', str(tmp_path / 'own'), valid_share=0.1)
  assert len(found.train.labels) == 18


def test_a_set_of_ones_own_need_not_be_known(tmp_path):
  train, test = some(20), some(6)
  found = images.load_images('my_own_images', prepare(tmp_path, train, test, 'my_own_images'))
  np.testing.assert_array_equal(found.test.images, test.images)
  with pytest.raises(ValueError, match='no set of TensorFlow Datasets'):  # where it does not lie
    images.load_images('my_own_images', str(tmp_path / 'elsewhere'))


def test_a_set_not_prepared_is_said_how(tmp_path):
  with pytest.raises(ValueError, match='download_and_prepare.*digits'):
    images.load_images('cifar10', str(tmp_path))
  with pytest.raises(ValueError, match='data_dir'):
    images.load_images('cifar10', '/nowhere')


@pytest.mark.parametrize('folder', ['', '/nowhere', None])
def test_a_set_that_does_not_exist_is_told_the_nearest(tmp_path, folder):
  with pytest.raises(
    ValueError, match=r"'cifar11'\) is no set of TensorFlow Datasets \(did you mean .*cifar10 .*digits"
  ) as error:
    images.load_images('cifar11', str(tmp_path) if folder is None else folder)
  assert 'download' not in str(error.value) and '\n' not in str(error.value)
