"""Text as arrays. Nothing is downloaded: the default text is part of Python, others are read from a folder."""

from collections.abc import Mapping
import glob
import gzip
import hashlib
import json
import os
from typing import Any, NamedTuple

import numpy as np

SPLITS = ('train', 'valid', 'test')
UNKNOWN, END = '<unk>', '<eos>'


class Text(NamedTuple):
  """A text in three splits, as numbers into `vocabulary`, which is made of the training split."""

  train: np.ndarray  # [n] int32
  valid: np.ndarray  # [n] int32
  test: np.ndarray  # [n] int32
  vocabulary: tuple[str, ...]
  sha256: str  # of the whole text, for results: the default one differs by Python version


def load_text(dataset: str = 'pydoc', data_dir: str = '', level: str = 'char') -> Text:
  """Reads a text.

  Args:
    dataset: 'pydoc' is the help text of Python itself (`pydoc_data.topics`), split 90 / 5 / 5 by position;
      'tiny_shakespeare' the data set of TensorFlow Datasets, prepared in `data_dir`. Anything else is a prefix of files
      there: 'ptb' reads ptb.train.txt, ptb.valid.txt and ptb.test.txt, each perhaps with .gz; 'text' reads train.txt,
      valid.txt and test.txt.
    data_dir: the folder of those files; not used by 'pydoc'.
    level: 'char' takes every character, 'word' what stands between white space, with <eos> at each line end.

  Raises:
    ValueError: a file is missing, empty or not UTF-8, or the data set is not prepared.
  """
  if dataset == 'pydoc':
    parts = _pydoc()
  elif dataset == 'tiny_shakespeare':
    source = prepared(dataset, data_dir, ', or take dataset text with three files')
    parts = [source[split][0]['text'].decode('utf-8') for split in ('train', 'validation', 'test')]
  else:
    _want_folder(dataset, data_dir)
    parts = [_read(dataset, data_dir, split) for split in SPLITS]
  digest = hashlib.sha256('\0'.join(parts).encode()).hexdigest()
  tokens = [list(part) if level == 'char' else part.replace('\n', f' {END} ').split() for part in parts]
  words = set(tokens[0])
  if any(not words.issuperset(part) for part in tokens[1:]):
    words.add(UNKNOWN)
  vocabulary = tuple(sorted(words))
  number = {word: i for i, word in enumerate(vocabulary)}
  unknown = number.get(UNKNOWN, -1)
  train, valid, test = (np.array([number.get(word, unknown) for word in part], np.int32) for part in tokens)
  return Text(train, valid, test, vocabulary, digest)


def _pydoc() -> list[str]:
  from pydoc_data.topics import topics

  text = '\n'.join(topics[name] for name in sorted(topics))
  cuts = [int(len(text) * share) for share in (0.9, 0.95)]
  return [text[: cuts[0]], text[cuts[0] : cuts[1]], text[cuts[1] :]]


def prepared(dataset: str, data_dir: str, instead: str = '') -> Mapping[str, Any]:
  """The splits of a set of TensorFlow Datasets. Read as array_record, it needs no TensorFlow.

  Raises:
    ValueError: it does not lie in `data_dir` as array_record; says how to prepare it, and what to do `instead`.
  """
  _want_folder(dataset, data_dir)
  infos = glob.glob(os.path.join(data_dir, dataset, '*', 'dataset_info.json'))
  formats = []
  for path in infos:
    with open(path, encoding='utf-8') as file:
      formats.append(json.load(file).get('fileFormat'))
  if 'array_record' not in formats:
    call = f"tfds.builder('{dataset}', data_dir='{data_dir}', file_format='array_record').download_and_prepare()"
    raise ValueError(
      f'{dataset} is not prepared as array_record in data_dir (={data_dir!r}): where TensorFlow is installed, run '
      f'python -c "import tensorflow_datasets as tfds; {call}"{instead}.'
    )
  import tensorflow_datasets as tfds

  return tfds.data_source(dataset, data_dir=data_dir, download=False)


def _want_folder(dataset: str, data_dir: str) -> None:
  if not os.path.isdir(data_dir):
    raise ValueError(f'data_dir (={data_dir!r}) is no folder: dataset {dataset!r} is read from one, name it.')


def _read(dataset: str, data_dir: str, split: str) -> str:
  name = f'{split}.txt' if dataset == 'text' else f'{dataset}.{split}.txt'
  path = os.path.join(data_dir, name)
  try:
    if os.path.exists(path):
      with open(path, 'rb') as file:
        content = file.read()
    elif os.path.exists(path + '.gz'):
      with gzip.open(path + '.gz') as file:
        content = file.read()
    else:
      raise ValueError(f'{name} (or {name}.gz) is not in data_dir (={data_dir!r}): want train, valid and test files.')
    text = content.decode('utf-8')
  except (OSError, EOFError, UnicodeDecodeError) as error:
    raise ValueError(f'{path} cannot be read as UTF-8 text ({error}): convert or replace it.') from None
  if not text.strip():
    raise ValueError(f'{path} is empty: want some text in each of train, valid and test.')
  return text
