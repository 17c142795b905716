"""A user's folder of files, one for each example, with a sub-folder for each class."""

from collections.abc import Callable, Sequence
import os
from typing import NamedTuple
import warnings

import numpy as np

from nas_jax.datasets import labels as labels_lib
from nas_jax.datasets.npz import SPLITS
from nas_jax.datasets.splits import Part, Source

FOLDER = 'folder'  # the name of the data set in a folder
_NAMES = {'training': 'train', 'testing': 'test'}  # of folders of splits, beside those of `SPLITS`, in small letters


class Kind(NamedTuple):
  """The files that hold the examples."""

  noun: str  # of an example, such as 'image'
  endings: tuple[str, ...]  # of the names of the files, in small letters

  def holds(self, name: str) -> bool:
    """Says whether a file of this name holds an example. Hidden files do not."""
    return not os.path.basename(name).startswith('.') and name.lower().endswith(self.endings)

  @property
  def wanted(self) -> str:
    """Says in words which files are read."""
    return f'files that end in {", ".join(self.endings)}'


def sources(
  folder: str, kind: Kind, read: Callable[[list[str], np.ndarray], Part]
) -> tuple[dict[str, Source[Part]], tuple[str, ...]]:
  """Returns the splits of a folder of files, and the names of its classes.

  The folder has a sub-folder for each class, with the name of the class. A sub-folder holds the files of its class,
  directly or in further sub-folders. Alternatively, the folder has a folder 'train', and optionally
  'valid' (or 'val', 'validation') and 'test', each of which has a sub-folder for each class.

  Args:
    folder: its path.
    kind: the files to read.
    read: (paths [k], numbers of their classes [k]) -> these examples. Raises ValueError if a file cannot be read.

  Raises:
    ValueError: in one line that names the problem: there is no such folder, class or file, or another split has a
      class that the training examples lack. A file with other content raises an error only when it is read.
  """
  if not os.path.isdir(folder):
    raise ValueError(f'dataset {FOLDER!r} is read from a folder, and data_dir (={folder!r}) is none: name it.')
  inner = folders(folder)
  splits = {name: split for name in inner if (split := SPLITS.get(_NAMES.get(name.lower(), name.lower())))}
  named = {name: os.path.join(folder, name) for name in splits}
  if 'train' not in splits.values():
    if named:
      raise ValueError(
        f'{folder} has a folder {next(iter(named))} and no folder train: want both, with classes in them.'
      )
    named, splits = {folder: folder}, {folder: 'train'}
  elif others := [name for name in inner if name not in splits]:
    raise ValueError(f'{folder} has a folder {others[0]} beside its splits: want train, valid and test alone.')
  paths, labels = dict[str, list[str]](), dict[str, np.ndarray]()
  for name, path in named.items():
    split = splits[name]
    if split in paths:
      raise ValueError(f'{folder} has several folders for the {split} split: want one.')
    paths[split], labels[split] = by_class(path, kind)
  numbers, classes = labels_lib.numbered(labels)

  def source(split: str) -> Source[Part]:
    def some(places: np.ndarray) -> Part:
      return read([paths[split][place] for place in places], numbers[split][places])

    return Source(len(paths[split]), some)

  return {split: source(split) for split in paths}, classes


def labelled(folder: str, kind: Kind) -> tuple[list[str], np.ndarray | None]:
  """Returns the paths of n files of a folder, and the name of the class of each, [n], if it has sub-folders of classes.

  If the folder itself holds such files, only these are taken, and there are no classes.

  Raises:
    ValueError: there is no such file, or as `by_class`.
  """
  found = inside(folder, kind)
  if found or not folders(folder):
    return found or below(folder, kind), None
  return by_class(folder, kind)


def names(paths: Sequence[str], labels: np.ndarray | None) -> tuple[str, ...]:
  """Returns the names of n files for tables: without their folders, but behind the names of their classes [n]."""
  words = map(os.path.basename, paths)
  return tuple(words if labels is None else map(os.path.join, labels, words))


def by_class(folder: str, kind: Kind) -> tuple[list[str], np.ndarray]:
  """Returns the paths of n files in the sub-folders of a folder, and for each the name of its sub-folder, [n].

  Raises:
    ValueError: there is no sub-folder, a sub-folder holds no such file, or a file is in no sub-folder.
  """
  if loose := inside(folder, kind):
    raise ValueError(f'{loose[0]} is in no folder of a class: move it into one.')
  if not folders(folder):
    raise ValueError(f'{folder} has no sub-folders: want one for each class, with its {kind.noun}s.')
  files = {name: below(os.path.join(folder, name), kind) for name in folders(folder)}
  return [path for some in files.values() for path in some], np.repeat(list(files), list(map(len, files.values())))


def folders(folder: str) -> list[str]:
  """Returns the names of the folders in a folder, in order; hidden folders are left out."""
  return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith('.'))


def inside(folder: str, kind: Kind) -> list[str]:
  """Returns the paths of the files of a kind in a folder, in order. Hidden files are left out."""
  return [os.path.join(folder, name) for name in sorted(os.listdir(folder)) if kind.holds(name)]


def below(folder: str, kind: Kind) -> list[str]:
  """Returns the paths of the files of a kind in a folder and in its sub-folders, in order.

  Hidden files and folders are left out. So are files with another ending; a warning gives their number.

  Raises:
    ValueError: there is no such file.
  """
  found, others = list[str](), list[str]()
  for here, inner, names in os.walk(folder):
    inner[:] = [name for name in inner if name[0] != '.']
    found += inside(here, kind)
    others += [name for name in names if name[0] != '.' and not kind.holds(name)]
  if not found:
    raise ValueError(f'{folder} holds no {kind.noun}: want {kind.wanted}.')
  if others:
    warnings.warn(
      f'{folder}: {len(others)} files, as {sorted(others)[0]}, are left out: they do not end in '
      f'{", ".join(kind.endings)}.',
      stacklevel=2,
    )
  return sorted(found)
