"""Sequences with labels, and windows of a series."""

import numpy as np
import pytest
import testing

from nas_jax import export
from nas_jax.datasets import own_sequences
from nas_jax.datasets.sequences import load_sequences

RNG = np.random.default_rng(0)


def given(count=20, **more):
  x = RNG.normal(size=(count, 5, 2))
  return {'sequences': x, 'labels': np.array(['cat', 'dog'])[np.arange(count) % 2], **more}


def save(folder, **arrays):
  np.savez(folder / 'mine.npz', **arrays)
  return str(folder / 'mine.npz')


def test_digits_are_read_row_by_row():
  found = load_sequences()
  assert found.shape == (8, 8) and found.outputs == 10 and found.names == tuple('0123456789')
  assert [len(part.labels) for part in found[:3]] == [1294, 144, 359]
  assert found.train.sequences.max() == 16 and (found.train.lengths == 8).all() and found.scale is None


def test_whether_the_file_numbers_its_classes_is_kept_for_trained_models(tmp_path):
  labels = np.arange(20) % 2
  for names in ({}, {'class_names': np.array(['1', '0'])}):
    found = load_sequences(save(tmp_path, **given(labels=labels[:, None], **names)))
    assert found.names == (('1', '0') if names else ('0', '1'))
    assert export.SequenceInputs.of(found).numbered == bool(names)


def test_labels_lengths_and_splits(tmp_path):
  """Values after the end of a sequence are ignored; statistics include only the values before."""
  lengths = np.arange(20) % 5 + 1
  x = given()['sequences']
  x[np.arange(5) >= lengths[:, None]] = np.nan
  test = {'test_sequences': x[:3], 'test_labels': np.array(['dog', 'dog', 'cat']), 'test_lengths': lengths[:3]}
  path = save(tmp_path, **given(sequences=x, lengths=lengths, **test))
  found = load_sequences(path, valid_share=0.4, seed=3)
  assert [len(part.labels) for part in found[:3]] == [12, 8, 3] and found.names == ('cat', 'dog')
  assert found.test.labels.tolist() == [1, 1, 0] and found.test.lengths.tolist() == [1, 2, 3]
  read = np.concatenate([one[:n] for one, n in zip(found.train.sequences, found.train.lengths, strict=True)])
  np.testing.assert_allclose(found.standard, (read.mean(0), read.std(0)))
  assert np.isfinite(read).all() and not found.test.sequences[0, 1:].any()
  again, other = (load_sequences(path, valid_share=0.4, seed=seed) for seed in (3, 4))
  assert (again.valid.sequences == found.valid.sequences).all() and again.sha256 == other.sha256 == found.sha256
  assert not np.array_equal(other.valid.sequences, found.valid.sequences)
  assert load_sequences(path, valid_share=0.5, max_examples=18).train.labels.shape == (9,)


def test_one_feature_and_numbers_to_predict(tmp_path):
  labels = np.stack([np.arange(20.0), 5.0 - 2.0 * np.arange(20)], 1)
  path = save(tmp_path, sequences=RNG.integers(9, size=(20, 4)), labels=labels)
  found = load_sequences(path, numbers=True, valid_share=0.25, test_share=0.2)
  assert found.shape == (4, 1) and found.outputs == 2 and found.names == () and found.train.labels.shape == (12, 2)
  np.testing.assert_allclose(found.scale, (found.train.labels.mean(0), found.train.labels.std(0)), rtol=1e-6)
  path = save(tmp_path, sequences=RNG.integers(9, size=(20, 4)), labels=labels[:, 0])
  assert load_sequences(path, numbers=True).train.labels.shape == (18, 1)


def test_a_feature_that_does_not_vary_keeps_its_unit(tmp_path):
  """The mean of many 0.1 is not 0.1, so their standard deviation as computed is about 1e-17 instead of 0."""
  x = given(40)['sequences']
  x[..., 1] = 0.1
  assert x.reshape(-1, 2).std(0)[1] > 0.0
  found = load_sequences(save(tmp_path, **given(40, sequences=x)))
  assert found.standard.deviation[1] == 1.0 and 0.5 < found.standard.deviation[0] < 2.0


@pytest.mark.parametrize(
  ('change', 'words'),
  [
    ({'labels': None}, 'has no labels of the train split: want arrays'),
    ({'wings': np.zeros(3)}, "has an array 'wings': want arrays"),
    ({'labels': np.zeros(19, int)}, r'labels \(19,\) of 20 sequences: want \[20\]'),
    ({'labels': np.linspace(0, 1, 20)}, 'labels of type float64, as for regression, which takes metric r2'),
    ({'labels': np.zeros(20, int)}, '1 of 1 classes'),
    ({'labels': np.arange(20) % 3, 'class_names': np.array(['a', 'b'])}, 'labels from 0 to 2: want 0 to 1'),
    ({'class_names': np.array(['a', 'b'])}, 'labels that are words beside'),
    ({'sequences': np.zeros((20, 5, 2, 1))}, r'sequences \(20, 5, 2, 1\): want \[n, T, F\]'),
    ({'sequences': np.full((20, 5), 'x')}, 'sequences of type <U1: want numbers'),
    ({'sequences': np.where(np.arange(5) == 3, np.nan, 0.0) * np.ones((20, 1))}, 'first in sequence 0, step 3'),
    (
      {'sequences': np.arange(100).reshape(20, 5) * 1e200},
      r'up to 9\.\de\+201, too large or too small',
    ),
    ({'sequences': np.arange(100).reshape(20, 5) * 1e-200}, 'too large or too small'),
    ({'lengths': np.arange(20)}, r'lengths \(20,\) from 0 to 19: want ints \[20\] from 1 to 5'),
    ({'lengths': np.ones(20)}, 'lengths .* want ints'),
    ({'valid_sequences': np.zeros((2, 5, 3)), 'valid_labels': np.array(['cat', 'dog'])}, 'want one shape'),
    ({'valid_sequences': np.zeros((2, 5, 2)), 'valid_labels': np.array(['cat', 'hen'])}, "class 'hen'"),
    ({'series': np.zeros(9)}, "an array 'labels' beside 'series'"),
  ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path, change, words):
  arrays = {name: array for name, array in (given() | change).items() if array is not None}
  with pytest.raises(ValueError, match=words) as error:
    load_sequences(save(tmp_path, **arrays))
  testing.one_line(error)


def test_other_things_that_are_wrong(tmp_path):
  named = given(class_names=np.array(['a']), labels=np.arange(20.0))
  for arrays, options, words in (
    ('words', {}, "must be 'digits', 'folder', a FILE.npz"),
    ('digits', {'numbers': True}, "dataset 'digits' has classes"),
    (str(tmp_path / 'none.npz'), {}, 'none.npz cannot be read (No such file'),
    ({'series': np.arange(99.0)}, {}, 'take --metric=r2'),
    ({'series': np.arange(99.0)}, {'numbers': True}, 'a forecast is made from, as --window=32'),
    (given(), {'window': 4}, 'window (=4) and horizon (=1) are for a series'),
    ({'series': np.arange(99.0)}, {'numbers': True, 'window': 90}, 'no train window of 90 steps with 1'),
    ({'series': np.zeros((2, 3, 4))}, {'numbers': True, 'window': 2}, 'want [T, F] or [T]'),
    ({'series': np.array([])}, {'numbers': True, 'window': 2}, 'series (0,)'),
    (given(), {'numbers': True}, 'labels of type <U3: metric r2 wants numbers'),
    (named, {'numbers': True}, 'leave them out'),
  ):
    with pytest.raises(ValueError) as error:
      load_sequences(arrays if isinstance(arrays, str) else save(tmp_path, **arrays), **options)
    assert words in testing.one_line(error)


def test_windows_by_hand():
  """Ten steps of two features. The targets of each split lie in it; their windows are the steps just before."""
  series = np.stack([np.arange(10.0) ** 2, -np.arange(10.0)], 1)
  sources = own_sequences.windows(series, window=2, horizon=2, valid_share=0.25, test_share=0.2)
  read = {name: source.read(np.arange(source.size)) for name, source in sources.items()}
  # Testing has steps 8 and 9, validation 6 and 7.
  assert {name: len(part.labels) for name, part in read.items()} == {'train': 3, 'validation': 1, 'test': 1}
  np.testing.assert_array_equal(read['train'].sequences[0], series[:2])
  np.testing.assert_array_equal(read['train'].labels[0], [3, -1, 8, -2])  # 4 - 1, -2 + 1, 9 - 1, -3 + 1
  np.testing.assert_array_equal(read['train'].sequences[-1], series[2:4])
  np.testing.assert_array_equal(read['validation'].sequences[0], series[4:6])
  np.testing.assert_array_equal(read['test'].sequences[0], series[6:8])
  np.testing.assert_array_equal(read['test'].labels[0], [64 - 49, -1, 81 - 49, -2])
  assert list(own_sequences.windows(series, 2, 2, 0.25)) == ['train', 'validation']


def test_a_series_is_split_by_time_whatever_the_seed(tmp_path):
  path = save(tmp_path, series=np.cumsum(RNG.normal(size=60)))
  options = {'numbers': True, 'window': 4, 'horizon': 3, 'valid_share': 0.2, 'test_share': 0.25}
  found, other = (load_sequences(path, seed=seed, **options) for seed in (0, 1))
  assert found.horizon == 3 and found.outputs == 3 and found.shape == (4, 1)
  assert [len(part.labels) for part in found[:3]] == [30, 7, 13]  # targets in steps 4 to 35, 36 to 44, 45 to 59
  for part in range(1, 3):
    np.testing.assert_array_equal(found[part].sequences, other[part].sequences)
  assert load_sequences(path, max_examples=5, **options).train.labels.shape == (5, 3)
