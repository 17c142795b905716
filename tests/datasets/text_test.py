"""Texts as arrays."""

import gzip
import json

import numpy as np
import pytest

from nas_jax.datasets import text as text_lib
from nas_jax.datasets import text_batches
from nas_jax.systems import language


def write(folder, train='a b\nc\n', valid='b c\n', test='a z\n', prefix=''):
  for name, text in (('train', train), ('valid', valid), ('test', test)):
    if text is not None:
      (folder / f'{prefix}{name}.txt').write_bytes(text if isinstance(text, bytes) else text.encode())
  return str(folder)


def test_the_default_text_needs_no_file():
  text = text_lib.load_text()
  total = len(text.train) + len(text.valid) + len(text.test)
  assert total > 400_000 and len(text.train) == int(0.9 * total)
  assert text.train.max() < len(text.vocabulary) and text.valid.min() >= 0
  assert text.sha256 == text_lib.load_text().sha256


def test_a_seed_turns_the_training_split_round(tmp_path):
  folder = write(tmp_path, train='a b c d e\n', valid='b c', test='a')
  plain, rotated = (text_lib.load_text('text', folder, 'word', seed=seed) for seed in (0, 3))
  first = int(np.random.default_rng(3).integers(6))
  assert first and rotated.train.tolist() == [*plain.train[first:], *plain.train[:first]]
  for name in ('valid', 'test', 'vocabulary', 'sha256'):
    np.testing.assert_array_equal(getattr(plain, name), getattr(rotated, name))


def test_a_seed_splits_the_default_text_anew():
  plain, rotated = text_lib.load_text(), text_lib.load_text(seed=3)
  assert (rotated.vocabulary, rotated.sha256) == (plain.vocabulary, plain.sha256)
  np.testing.assert_array_equal(rotated.test, plain.test)
  ring = np.concatenate([plain.train, plain.valid])
  first = int(np.random.default_rng(3).integers(len(ring)))
  np.testing.assert_array_equal(np.concatenate([rotated.train, rotated.valid]), np.roll(ring, -first))
  assert len(rotated.valid) == len(plain.valid) and not np.array_equal(rotated.valid, plain.valid)


def test_words_by_hand(tmp_path):
  text = text_lib.load_text('text', write(tmp_path), 'word', min_count=1)
  # 'z' is not in the training split: <unk> joins the vocabulary.
  assert text.vocabulary == ('<eos>', '<unk>', 'a', 'b', 'c')
  assert text.train.tolist() == [2, 3, 0, 4, 0]
  assert text.valid.tolist() == [3, 4, 0]
  assert text.test.tolist() == [2, 1, 0]


def test_rare_training_words_stand_for_unknown_ones(tmp_path):
  folder = write(tmp_path, train='a b\na c\n', valid='a z\n', test='c\n')
  text = text_lib.load_text('text', folder, 'word')
  assert text.vocabulary == ('<eos>', '<unk>', 'a')  # b and c are there once
  assert text.train.tolist() == [2, 1, 0, 2, 1, 0] and text.valid.tolist() == [2, 1, 0] and text.test.tolist() == [1, 0]
  assert text.unknown('valid') == text.unknown('train') == pytest.approx(1 / 3)
  whole = text_lib.load_text('text', folder, 'word', min_count=1)
  assert (whole.unknown('train'), whole.sha256 == text.sha256) == (0.0, False)
  # A text whose other splits know all words, or that has <unk> itself, is left as it is.
  assert text_lib.load_text('text', write(tmp_path, valid='b', test='c'), 'word').vocabulary == ('<eos>', 'a', 'b', 'c')
  own = text_lib.load_text('text', write(tmp_path, train='a <unk>\n', valid='z', test='a'), 'word')
  assert own.vocabulary == ('<eos>', '<unk>', 'a') and own.train.tolist() == [2, 1, 0] and own.valid.tolist() == [1]


def test_a_vocabulary_has_a_cap(tmp_path):
  folder = write(tmp_path, train='a a a b b c c d\n\n\n\n', valid='a d\n', test='c')
  for most, words in ((7, '<eos> a b c d'), (5, '<eos> a b c d'), (4, '<eos> <unk> a b'), (3, '<eos> <unk> a')):
    text = text_lib.load_text('text', folder, 'word', max_vocabulary=most)
    assert text.vocabulary == tuple(words.split())
  assert text.unknown('valid') == pytest.approx(1 / 3) and text.test.tolist() == [1]
  assert text_lib.load_text('text', folder, 'word', min_count=3).vocabulary == ('<eos>', '<unk>', 'a')
  # An <unk> that rare words need, or words of another split, is counted too.
  text = text_lib.load_text('text', folder, 'word', min_count=2, max_vocabulary=4)
  assert text.vocabulary == ('<eos>', '<unk>', 'a', 'b')
  folder = write(tmp_path, train='a a a b b c c d\n\n\n\n', valid='z\n', test='c')
  text = text_lib.load_text('text', folder, 'word', min_count=1, max_vocabulary=5)
  assert text.vocabulary == ('<eos>', '<unk>', 'a', 'b', 'c')


def test_a_byte_order_mark_is_not_part_of_a_word(tmp_path):
  text = text_lib.load_text('text', write(tmp_path, train=b'\xef\xbb\xbfa b\n', valid='a', test='b'), 'word')
  assert text.vocabulary == ('<eos>', 'a', 'b')


def test_what_is_unknown_is_said(tmp_path):
  cfg = language.Children(dataset='text', level='word')
  folder = write(tmp_path, train='a b\na c\n', valid='a z\n', test='c\n')
  assert language.about(cfg, language.load(cfg, folder)) == (
    'text, 3 different words, 33.33% of the validation split unknown'
  )
  cfg.min_count = 1
  said = language.about(cfg, language.load(cfg, folder))
  assert said.endswith('unknown and never trained (--min_count trains it)')
  assert language.about(language.Children(), language.load(language.Children())).endswith('different chars')


@pytest.mark.parametrize('tokens', [[], [3]])
def test_a_split_of_one_token_cannot_be_scored(tokens):
  with pytest.raises(ValueError, match='at least 2') as error:
    text_batches.windows(np.array(tokens, np.int32), 4, 5)
  assert '\n' not in str(error.value)


def test_a_file_that_unpacks_to_more_than_the_bound_is_refused(tmp_path, monkeypatch):
  monkeypatch.setattr(text_lib, 'LARGEST', 1000)
  write(tmp_path)
  (tmp_path / 'train.txt').unlink()
  for content, words in ((gzip.compress(b'a ' * 10_000), 'more than 1000 bytes'), (None, 'cannot be read')):
    if content is None:  # a flipped bit
      content = bytearray(gzip.compress(bytes(range(97, 123)) * 30))
      content[len(content) // 2] ^= 16
    (tmp_path / 'train.txt.gz').write_bytes(content)
    with pytest.raises(ValueError, match=words) as error:
      text_lib.load_text('text', str(tmp_path), 'word')
    assert '\n' not in str(error.value)


def test_characters_by_hand(tmp_path):
  text = text_lib.load_text('text', write(tmp_path, train='ab\n', valid='ba', test='b'))
  assert text.vocabulary == ('\n', 'a', 'b')
  assert text.train.tolist() == [1, 2, 0] and text.valid.tolist() == [2, 1]


def test_a_prefix_and_gzip(tmp_path):
  write(tmp_path, prefix='ptb.')
  (tmp_path / 'ptb.valid.txt').unlink()
  (tmp_path / 'ptb.valid.txt.gz').write_bytes(gzip.compress(b'c c\n'))
  assert text_lib.load_text('ptb', str(tmp_path), 'word', min_count=1).valid.tolist() == [4, 4, 0]


@pytest.mark.parametrize(
  ('files', 'words'),
  [
    ({'valid': None}, 'valid.txt'),
    ({'test': ' \n'}, 'is empty'),
    ({'train': b'\xff\xfe\x00'}, 'UTF-8'),
  ],
)
def test_bad_files_are_named(tmp_path, files, words):
  with pytest.raises(ValueError, match=words) as error:
    text_lib.load_text('text', write(tmp_path, **files))
  assert '\n' not in str(error.value)


def test_a_torn_gzip_is_named(tmp_path):
  write(tmp_path, test=None)
  (tmp_path / 'test.txt.gz').write_bytes(gzip.compress(b'abc' * 100)[:20])
  with pytest.raises(ValueError, match='test.txt.gz|test.txt'):
    text_lib.load_text('text', str(tmp_path))


def prepare(folder, file_format='array_record'):
  """Writes tiny_shakespeare in the format of TensorFlow Datasets."""
  from array_record.python.array_record_module import ArrayRecordWriter
  import tensorflow_datasets as tfds

  home = folder / 'tiny_shakespeare' / '1.0.0'
  home.mkdir(parents=True)
  features = tfds.features.FeaturesDict({'text': tfds.features.Text()})
  features.save_config(str(home))
  splits = []
  for split, text in (('train', 'to be\n'), ('validation', 'be\n'), ('test', 'or\n')):
    writer = ArrayRecordWriter(str(home / f'tiny_shakespeare-{split}.array_record-00000-of-00001'), 'group_size:1')
    writer.write(features.serialize_example(features.encode_example({'text': text})))
    writer.close()
    name = '{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}'
    splits.append({'name': split, 'numBytes': '9', 'shardLengths': ['1'], 'filepathTemplate': name})
  info = {'name': 'tiny_shakespeare', 'version': '1.0.0', 'fileFormat': file_format, 'splits': splits}
  (home / 'dataset_info.json').write_text(json.dumps(info))
  return str(folder)


def test_a_prepared_set_of_tensorflow_datasets(tmp_path):
  text = text_lib.load_text('tiny_shakespeare', prepare(tmp_path))
  assert text.vocabulary == ('\n', ' ', '<unk>', 'b', 'e', 'o', 't')
  assert text.valid.tolist() == [3, 4, 0] and text.test.tolist() == [5, 2, 0]


@pytest.mark.parametrize('file_format', ['tfrecord', None])
def test_a_set_not_prepared_so_is_said_how(tmp_path, file_format):
  folder = prepare(tmp_path, file_format) if file_format else str(tmp_path)
  with pytest.raises(ValueError, match='download_and_prepare') as error:
    text_lib.load_text('tiny_shakespeare', folder)
  assert folder in str(error.value) and '\n' not in str(error.value)


def test_files_in_the_current_folder_are_not_taken_for_those_of_no_folder(tmp_path, monkeypatch):
  monkeypatch.chdir(write(tmp_path))
  with pytest.raises(ValueError, match=r"data_dir \(=''\)"):
    text_lib.load_text('text')


def test_what_is_no_text_is_told_the_texts(tmp_path):
  for folder in ('', '/nowhere', str(tmp_path)):
    with pytest.raises(
      ValueError, match=r"'mnist'\) is not a text .*'pydoc'.*'tiny_shakespeare'.*mnist.train.txt"
    ) as error:
      text_lib.load_text('mnist', folder)
    assert f'data_dir (={folder!r})' in str(error.value) and '\n' not in str(error.value)
  with pytest.raises(ValueError, match=r'did you mean tiny_shakespeare\?'):
    text_lib.load_text('shakespeare')
