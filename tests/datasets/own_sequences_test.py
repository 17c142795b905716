"""Sequences of a user in folders of files, and series in one file."""

import contextlib
import re

import numpy as np
import pytest
from testing import one_line

from nas_jax.datasets import sequence_files, splits
from nas_jax.datasets.sequences import load_sequences

RNG = np.random.default_rng(0)
CLASSES = ('cat', 'dog')


def recordings(folder, count=10, steps=5):
  """Writes sequences of 1 to `steps` steps of two features in three kinds of files. Returns them in order, by class."""
  written = {name: [RNG.normal(size=(1 + k % steps, 2)) for k in range(count)] for name in CLASSES}
  for name, some in written.items():
    (folder / name).mkdir(parents=True, exist_ok=True)
    for k, one in enumerate(some):
      lines = [','.join(map(repr, row)) for row in one.tolist()]
      if k % 3 == 0:
        np.save(folder / name / f'{k}.npy', one)
      elif k % 3 == 1:
        (folder / name / f'{k}.csv').write_text('\n'.join(['heat,load', *lines]) + '\n\n')
      else:
        (folder / name / f'{k}.TSV').write_bytes('\r\n'.join(lines).replace(',', '\t').encode('utf-8-sig'))
  return written


def as_arrays(written, steps=5):
  """Returns the same sequences as arrays of an .npz."""
  every = [one for some in written.values() for one in some]
  padded = [np.pad(one, ((0, steps - len(one)), (0, 0))) for one in every]
  labels = np.repeat(CLASSES, [len(some) for some in written.values()])
  return {'sequences': np.array(padded), 'lengths': np.array(list(map(len, every))), 'labels': labels}


def complaint(dataset, data_dir='', **settings):
  with pytest.raises(ValueError) as error:
    load_sequences(str(dataset), str(data_dir), **settings)
  return one_line(error)


def same(one, other):
  """Compares two sets, the hash of what was read included."""
  assert one.sha256 == other.sha256 and one.names == other.names
  for part, again in zip(one[:3], other[:3], strict=True):
    for array, wanted in zip(part, again, strict=True):
      np.testing.assert_array_equal(array, wanted)


@pytest.mark.parametrize(
  'settings', [{}, {'test_share': 0.2, 'valid_share': 0.25, 'seed': 3}, {'max_examples': 12, 'valid_share': 0.5}]
)
def test_a_folder_is_what_the_npz_of_its_sequences_is(tmp_path, settings):
  """Files are read in the order of their names, of which ten have one digit."""
  np.savez(tmp_path / 'same.npz', **as_arrays(recordings(tmp_path / 'a')))
  found = load_sequences('folder', str(tmp_path / 'a'), **settings)
  assert found.names == CLASSES and found.shape == (5, 2)
  same(found, load_sequences(str(tmp_path / 'same.npz'), **settings))


def test_splits_of_a_folder_may_differ_in_their_longest_sequence(tmp_path):
  counts = {'test': 3, 'train': 10, 'valid': 2}  # the folders in order, as the hash takes them
  parts = {f'{split}_': recordings(tmp_path / split, count) for split, count in counts.items()}
  found = load_sequences('folder', str(tmp_path))
  assert [len(part.labels) for part in found[:3]] == [20, 4, 6] and found.valid.sequences.shape == (4, 5, 2)
  assert found.valid.lengths.tolist() == [1, 2, 1, 2]
  arrays = {before + name: array for before, some in parts.items() for name, array in as_arrays(some).items()}
  np.savez(tmp_path / 'same.npz', **arrays)
  shorter = {name: array[:, :3] if name == 'test_sequences' else array for name, array in arrays.items()}
  np.savez(tmp_path / 'shorter.npz', **shorter)  # an .npz may have fewer steps in a split, too
  for name in ('same', 'shorter'):
    same(found, load_sequences(str(tmp_path / f'{name}.npz')))


@pytest.mark.parametrize('name', ['series.csv', 'series.tsv', 'series.npy'])
def test_a_file_is_the_series_that_it_is_in_an_npz(tmp_path, name):
  series = RNG.normal(size=(60, 2)).cumsum(0)
  np.savez(tmp_path / 'series.npz', series=series)
  if name.endswith('.npy'):
    np.save(tmp_path / name, series)
  else:
    separator = ',' if name.endswith('.csv') else '\t'
    np.savetxt(tmp_path / name, series, '%.17g', separator, header=f'heat{separator}load', comments='')
  options = {'data_dir': str(tmp_path), 'numbers': True, 'window': 4, 'horizon': 3, 'test_share': 0.2}
  found = load_sequences(name, **options)
  assert (
    found.horizon == 3 and found.outputs == 6 and found.columns == (() if name.endswith('.npy') else ('heat', 'load'))
  )
  same(found, load_sequences('series.npz', **options))
  assert 'take --metric=r2' in complaint(name, tmp_path)
  assert 'as --window=32' in complaint(name, tmp_path, numbers=True)


@pytest.mark.parametrize(
  ('text', 'says'),
  [
    ('', 'it has no steps'),
    ('heat,load\n', 'it has no steps'),
    ('heat,load\n1,2\n3,\n', "line 3, column 2: '' is no number"),
    ('heat,load\n1,2\n3,NA\n', "line 3, column 2: 'NA' is no number"),
    ('1,2\nnan,3\n', 'line 2, column 1: nan is not finite'),
    ('heat,load\n1,2\n3,4\n5,inf\n', 'line 4, column 2: inf is not finite'),
    ('1,2\n3\n', 'line 2 has 1 column and the first line 2'),
    ('heat\n1,2\n', 'line 2 has 2 columns and the first line 1'),
    ('1,2\n\n3,4\n', 'line 2 is empty'),
    ('\n1,2\n', 'line 1 is empty'),
    (',heat,load\n0,1,2\n', "line 1, column 1: '' is no name of a column"),  # as pandas writes row numbers
    ('NA\n1\n', "line 1, column 1: 'NA' is no name of a column"),
    ('1,,2\n', "line 1, column 2: '' is no number"),
    ('day,heat\n2026-01-01,3\n', "line 2, column 1: '2026-01-01' is no number"),
    ('heat;load\n1;2\n', "line 2, column 1: '1;2' is no number"),
    ('1\n"2\n' + '3\n' * 90_000, 'field larger than field limit'),
    (b'1,2\n\xff\n', "'utf-8' codec can't decode byte 0xff"),
    (b'1,2\n\x00,2\n', 'line'),
    (None, 'Is a directory'),
  ],
)
def test_a_table_that_cannot_be_read_is_one_line(tmp_path, text, says):
  path = tmp_path / 'x.csv'
  if text is None:
    path.mkdir()
  else:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
  said = complaint(path, numbers=True, window=1)
  assert said.startswith(f'{path} cannot be read (') and f'({says}' in said and 'want a row of numbers' in said


@pytest.mark.parametrize(
  ('array', 'says'),
  [
    (np.zeros((2, 3, 4)), r'shape \(2, 3, 4\) and type float64'),
    (np.zeros((0, 3)), r'shape \(0, 3\)'),
    (np.array(5.0), r'shape \(\)'),
    (np.array(['a']), 'type <U1'),
    (np.array([{}]), 'Object arrays'),
    (np.array([[0.0, 1.0], [2.0, np.nan]]), 'step 1 has a number that is not finite'),
  ],
)
def test_an_array_that_cannot_be_read_is_one_line(tmp_path, array, says):
  np.save(tmp_path / 'x.npy', array)
  said = complaint(tmp_path / 'x.npy', numbers=True, window=1)
  assert re.search(rf'x.npy cannot be read \(.*{says}.*want an .npy with numbers', said)


def test_an_npy_is_trusted_no_more_than_an_npz(tmp_path):
  """Its header may ask for any size, and its bytes may be anything."""
  np.save(tmp_path / 'x.npy', np.zeros((2, 3)))
  sound = (tmp_path / 'x.npy').read_bytes()
  (tmp_path / 'x.npy').write_bytes(sound.replace(b'(2, 3)', b'(99999999, 3)'))
  assert 'it has a header of shape (99999999, 3) and only 183 bytes' in complaint(tmp_path / 'x.npy', numbers=True)
  rng = np.random.default_rng(0)
  for _ in range(100):
    content = bytearray(sound)
    for _ in range(rng.integers(1, 4)):
      content[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
    (tmp_path / 'x.npy').write_bytes(content)
    with contextlib.suppress(ValueError):
      assert np.isfinite(sequence_files.table(str(tmp_path / 'x.npy')).values).all()


def write(folder, name, text):
  (folder / name).parent.mkdir(parents=True, exist_ok=True)
  (folder / name).write_text(text)


@pytest.mark.parametrize(
  ('change', 'says'),
  [
    (lambda folder: write(folder, 'cat/x.csv', 'a,b\n1,2\n3,x\n'), "cat/x.csv cannot be read .line 3, column 2: 'x'"),
    (lambda folder: write(folder, 'cat/x.csv', '1,2,3\n'), 'cat/0.npy has 2 features and .*cat/x.csv 3: want the same'),
    (
      lambda folder: write(folder, 'cat/x.csv', 'load,heat\n1,2\n'),
      'cat/1.csv has the columns heat, load and .*cat/x.csv load, heat: want the same names in one order',
    ),
    (
      lambda folder: write(folder, 'hen/x.txt', '1 2'),
      'hen holds no sequence: want files that end in .csv, .npy, .tsv',
    ),
    (lambda folder: (folder / 'hen').mkdir(), 'hen holds no sequence'),
    (lambda folder: write(folder, 'x.csv', '1,2'), 'x.csv is in no folder of a class'),
    (lambda folder: write(folder, 'test/cat/x.csv', '1,2'), 'a folder test and no folder train'),
  ],
)
def test_what_is_wrong_in_a_folder_is_one_line(tmp_path, change, says):
  recordings(tmp_path, 4)
  change(tmp_path)
  assert re.search(says, complaint('folder', tmp_path)), complaint('folder', tmp_path)


def test_other_folders_that_are_refused(tmp_path):
  assert "data_dir (='') is none" in complaint('folder')
  assert 'has no sub-folders: want one for each class, with its sequences' in complaint('folder', tmp_path)
  recordings(tmp_path)
  assert "dataset 'folder' has classes: take a FILE.npz of numbers" in complaint('folder', tmp_path, numbers=True)
  assert 'window (=4) and horizon (=1) are for a series' in complaint('folder', tmp_path, window=4)
  assert "dataset (='x.txt') must be 'digits', 'folder'" in complaint('x.txt', tmp_path)
  assert 'nowhere.csv cannot be read (No such file' in complaint('nowhere.csv', tmp_path)
  for split in ('train', 'test'):
    recordings(tmp_path / 'more' / split)
  for path in (tmp_path / 'more' / 'test').rglob('*.*'):
    np.save(path.with_suffix('.npy'), np.zeros((2, 3)))
  for path in [*(tmp_path / 'more' / 'test').rglob('*.csv'), *(tmp_path / 'more' / 'test').rglob('*.TSV')]:
    path.unlink()
  assert '(5, 2) in train and (5, 3) in test: want one shape' in complaint('folder', tmp_path / 'more')


def test_sequences_that_do_not_fit_into_memory_are_named_with_their_size(tmp_path, monkeypatch):
  """One long sequence of 20: padded, all are as long. It is found before the others are read."""
  recordings(tmp_path)
  np.save(tmp_path / 'cat' / '00.npy', np.zeros((70_000, 2)))  # 1.07 MiB, and 22.4 MiB for 21 of them
  monkeypatch.setattr(splits, 'memory', lambda: 30 * 2**20)
  said = complaint('folder', tmp_path)
  assert '21 sequences padded to 70,000 steps of 2 features take 0.0219 GiB: want at most 0.00977 GiB' in said
  assert 'take fewer or shorter sequences' in said
  monkeypatch.setattr(splits, 'memory', lambda: 3 * 2**20)
  assert f'{tmp_path}/cat/00.npy take 0.00104 GiB' in complaint('folder', tmp_path)
  (tmp_path / 'long.csv').write_text('1,2\n' * 70_000)
  assert f'the numbers of {tmp_path}/long.csv take 0.00104 GiB' in complaint(tmp_path / 'long.csv', numbers=True)


def test_other_files_are_left_out_with_a_word(tmp_path):
  recordings(tmp_path)
  (tmp_path / 'dog' / 'notes.txt').write_text('')
  with pytest.warns(UserWarning, match='1 files, as notes.txt, are left out: they do not end in .csv, .npy, .tsv'):
    assert len(load_sequences('folder', str(tmp_path)).train.labels) == 18


def test_hidden_files_are_no_examples():
  """Macs leave a hidden `._1.csv` beside `1.csv` on other file systems."""
  assert [sequence_files.KIND.holds(f'walk/{name}') for name in ('1.csv', '2.NPY', '._1.csv', 'notes.txt')] == [
    True, True, False, False
  ]  # fmt: skip
