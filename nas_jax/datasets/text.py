"""Texts as arrays. Nothing is downloaded: the default text is part of Python, others are read from a folder."""

import collections
from collections.abc import Iterable, Mapping
import gzip
import hashlib
import os
from typing import NamedTuple
import zlib

import numpy as np

from nas_jax import config
from nas_jax.datasets import tfds

SPLITS = ('train', 'valid', 'test')
UNKNOWN, END = '<unk>', '<eos>'
LARGEST = 2**29  # most bytes of a file; a text as a list of tokens takes many times its bytes


class Text(NamedTuple):
  """A text in three splits. Each token is a number, its place in `vocabulary`."""

  train: np.ndarray  # [n] int32
  valid: np.ndarray  # [n] int32
  test: np.ndarray  # [n] int32
  vocabulary: tuple[str, ...]  # the different tokens of the training split, and <unk> if other splits need it
  sha256: str  # of the whole text, to be named in results; the default text differs by Python version

  def unknown(self, split: str) -> float:
    """Returns the share of the tokens of 'train', 'valid' or 'test' that are <unk>."""
    number = self.vocabulary.index(UNKNOWN) if UNKNOWN in self.vocabulary else -1
    return float(np.mean(getattr(self, split) == number))


def load_text(
  dataset: str = 'pydoc',
  data_dir: str = '',
  level: str = 'char',
  min_count: int = 0,
  max_vocabulary: int = 0,
  seed: int = 0,
) -> Text:
  """Reads a text.

  Args:
    dataset: 'pydoc' is the help text of Python itself (`pydoc_data.topics`), split 90 / 5 / 5 by position.
      'tiny_shakespeare' is the set of TensorFlow Datasets, prepared in `data_dir`. Anything else is the prefix of three
      files in that folder, each of which may be compressed: 'ptb' reads ptb.train.txt, ptb.valid.txt and ptb.test.txt
      or their .gz; 'text' stands for no prefix.
    data_dir: the folder of those files; not used by 'pydoc'.
    level: what a token is. 'char': every character. 'word': every word between white space, and <eos> at the end of
      each line.
    min_count: tokens that occur fewer times than this in the training split are replaced by <unk>. 0 means 2 for words
      of your own text if other splits need <unk> and it would otherwise never be trained; else 1.
    max_vocabulary: how many different tokens there may be, <unk> included; the most frequent ones are kept, and of
      equally frequent ones the first in the order of the alphabet. 0 for no limit.
    seed: the seed of the place at which reading begins, see `rotated`; 0 for the beginning. The splits of 'pydoc',
      which are defined here, depend on it; the vocabulary does not.

  Raises:
    ValueError: there is no such text, or one of its files is missing, empty, too large or not UTF-8; or as
      `tfds.prepared`.
  """
  if dataset == 'pydoc':
    parts = _pydoc()
  elif dataset == 'tiny_shakespeare':
    source = tfds.prepared(dataset, data_dir, "or take dataset 'text' with three files of your own")
    parts = [source[name][0]['text'].decode('utf-8') for name in ('train', 'validation', 'test')]
  else:
    parts = _files(dataset, data_dir)
  tokens = [split(part, level) for part in parts]
  counts = collections.Counter(tokens[0])
  untrained = UNKNOWN not in counts and any(not counts.keys() >= set(part) for part in tokens[1:])
  least = min_count or (2 if untrained and level == 'word' and dataset != 'pydoc' else 1)
  words = _frequent(counts, least, max_vocabulary, untrained)
  replaced = len(words) < len(counts)
  # A text with replaced words gets another hash, so that no search on the full text is resumed with it.
  parts += [f'{UNKNOWN} {" ".join(sorted(words))}'] * replaced
  digest = hashlib.sha256('\0'.join(parts).encode()).hexdigest()
  vocabulary = tuple(sorted(words | {UNKNOWN} if untrained or replaced else words))
  number = {word: i for i, word in enumerate(vocabulary)}
  unknown = number.get(UNKNOWN, -1)
  train, valid, test = (np.array([number.get(word, unknown) for word in part], np.int32) for part in tokens)
  return rotated(Text(train, valid, test, vocabulary, digest), seed, both=dataset == 'pydoc')


def rotated(text: Text, seed: int, both: bool = False) -> Text:
  """Returns the text with its training split rotated: it starts at a random place, and its old end meets its old start.

  Training then cuts the split into other streams. A seed of 0 leaves the text as it is.

  Args:
    text: the text in its original order.
    seed: seed of the random place.
    both: whether the training and validation splits are joined, rotated together, and split again.
  """
  if not seed:
    return text
  ring = np.concatenate([text.train, text.valid]) if both else text.train
  ring = np.roll(ring, -int(np.random.default_rng(seed).integers(len(ring))))
  train, valid = np.split(ring, [len(text.train)])
  return text._replace(train=train, valid=valid if both else text.valid)


def split(text: str, level: str) -> list[str]:
  """Returns the tokens of a text: its characters, or its words with <eos> at the end of each line."""
  return list(text) if level == 'char' else text.replace('\n', f' {END} ').split()


def joined(tokens: Iterable[str], level: str) -> str:
  """Returns the text of some tokens, the inverse of `split` except for white space between words."""
  return ''.join(tokens) if level == 'char' else ' '.join(tokens).replace(f' {END}', '\n').replace('\n ', '\n')


def _frequent(counts: Mapping[str, int], least: int, most: int, untrained: bool) -> set[str]:
  """Returns the tokens that a vocabulary keeps: see `load_text`. An <unk> of the text itself is always kept.

  `untrained` says whether a token outside the training split needs an <unk>, which then counts among the `most`.
  """
  words = sorted((word for word in counts if word != UNKNOWN and counts[word] >= least), key=lambda w: (-counts[w], w))
  own = {UNKNOWN} & counts.keys()
  unknown = bool(own) or untrained or len(words) < len(counts)
  if most and len(words) + unknown > most:
    words = words[: most - 1]
  return set(words) | own


def _pydoc() -> list[str]:
  from pydoc_data.topics import topics

  text = '\n'.join(topics[name] for name in sorted(topics))
  cuts = [int(len(text) * share) for share in (0.9, 0.95)]
  return [text[: cuts[0]], text[cuts[0] : cuts[1]], text[cuts[1] :]]


def _files(dataset: str, data_dir: str) -> list[str]:
  """Returns the texts of the three files with the prefix `dataset`, each of which may be compressed."""
  names = [f'{split}.txt' if dataset == 'text' else f'{dataset}.{split}.txt' for split in SPLITS]
  there = set(os.listdir(data_dir)) if os.path.isdir(data_dir) else set()
  missing = [name for name in names if not {name, f'{name}.gz'} & there]
  if missing == names:
    near = config.did_you_mean(dataset, ('pydoc', 'tiny_shakespeare'))
    raise ValueError(
      f"dataset (={dataset!r}) is not a text known here{near}: take 'pydoc', which needs no folder, 'tiny_shakespeare' "
      f'of TensorFlow Datasets, or the prefix of three files in data_dir (={data_dir!r}), where {", ".join(names)} are '
      'missing.'
    )
  if missing:
    raise ValueError(f'{missing[0]} (or {missing[0]}.gz) is not in data_dir (={data_dir!r}): want {", ".join(names)}.')
  return [read(os.path.join(data_dir, name)) for name in names]


def read(path: str) -> str:
  """Returns the text of a file, or of the compressed file PATH.gz if it is missing, without a byte-order mark.

  Raises:
    ValueError: the file cannot be read, or is empty, larger than LARGEST or not UTF-8.
  """
  try:
    with open(path, 'rb') if os.path.exists(path) else gzip.open(f'{path}.gz') as file:
      content = file.read(LARGEST + 1)
    if len(content) > LARGEST:
      raise ValueError(f'{path} has more than {LARGEST} bytes: take a part of it.')
    text = content.decode('utf-8-sig')
  except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
    raise ValueError(f'{path} cannot be read as UTF-8 text ({error}): convert or replace it.') from None
  if not text.strip():
    raise ValueError(f'{path} is empty: want some text.')
  return text
