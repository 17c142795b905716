"""Images of a user: a folder with a sub-folder for each class, or an .npz of arrays."""

import os

import numpy as np

from nas_jax.datasets import image_files, npz, splits
from nas_jax.datasets import labels as labels_lib
from nas_jax.datasets.npz import SPLITS
from nas_jax.datasets.splits import Size, Source, Split

FOLDER = 'folder'  # the name of the data set in a folder
LAYOUT = (
  "arrays 'images' [n, H, W, C] uint8 and 'labels' [n], perhaps 'valid_images', 'valid_labels', 'test_images' and "
  "'test_labels', and 'class_names'"
)


def of_folder(folder: str, resize: Size = 0) -> tuple[dict[str, Source], tuple[str, ...]]:
  """Returns the splits of a folder of images, and the names of its classes.

  The folder has a sub-folder for each class, with the name of the class. A sub-folder holds the images of its class,
  directly or in further sub-folders. Alternatively, the folder has a folder 'train', and optionally
  'valid' (or 'val', 'validation') and 'test', each of which has a sub-folder for each class.

  Args:
    folder: its path.
    resize: the size to bring images to.

  Raises:
    ValueError: in one line that names the problem: there is no such folder, class or image, or another split has a
      class that the training images lack. A file that is no image raises an error only when it is read.
  """
  if not os.path.isdir(folder):
    raise ValueError(f'dataset {FOLDER!r} is read from a folder, and data_dir (={folder!r}) is none: name it.')
  inside = folders(folder)
  named = {name: os.path.join(folder, name) for name in inside if name in SPLITS}
  if 'train' not in named:
    if named:
      raise ValueError(
        f'{folder} has a folder {next(iter(named))} and no folder train: want both, with classes in them.'
      )
    named = {'train': folder}
  elif others := [name for name in inside if name not in SPLITS]:
    raise ValueError(f'{folder} has a folder {others[0]} beside its splits: want train, valid and test alone.')
  paths, labels = dict[str, list[str]](), dict[str, np.ndarray]()
  for name, path in named.items():
    split = SPLITS[name]
    if split in paths:
      raise ValueError(f'{folder} has several folders for the validation split: want one.')
    paths[split], labels[split] = by_class(path)
  numbers, names = labels_lib.numbered(labels)

  def source(split: str) -> Source:
    def read(places: np.ndarray) -> Split:
      return Split(image_files.read([paths[split][place] for place in places], resize), numbers[split][places])

    return Source(len(paths[split]), read)

  return {split: source(split) for split in paths}, names


def by_class(folder: str) -> tuple[list[str], np.ndarray]:
  """Returns the paths of n images in the sub-folders of a folder, and for each the name of its sub-folder, [n].

  Raises:
    ValueError: there is no sub-folder, a sub-folder holds no image, or an image is in no sub-folder.
  """
  if loose := image_files.inside(folder):
    raise ValueError(f'{loose[0]} is in no folder of a class: move it into one.')
  if not folders(folder):
    raise ValueError(f'{folder} has no sub-folders: want one for each class, with its images.')
  files = {name: image_files.below(os.path.join(folder, name)) for name in folders(folder)}
  return [path for some in files.values() for path in some], np.repeat(list(files), list(map(len, files.values())))


def folders(folder: str) -> list[str]:
  """Returns the names of the folders in a folder, in order; hidden folders are left out."""
  return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith('.'))


def of_npz(path: str, resize: Size = 0, numbers: bool = False) -> tuple[dict[str, Source], tuple[str, ...]]:
  """Returns the splits of an .npz of images, and the names of its classes.

  Its arrays are `images`, uint8 [n, H, W, C] or, if they are grey, [n, H, W]; and `labels` [n], ints or words. Other
  splits are in `valid_images`, `valid_labels`, `test_images` and `test_labels`. `class_names` [K] names the labels 0 to
  K - 1; without it the name of a class is its label. Names of arrays may also begin with `train_` or `val_`.

  Args:
    path: the path of the file.
    resize: the size to bring images to.
    numbers: whether labels are numbers to predict, so that there are no classes.

  Raises:
    ValueError: in one line that names the problem: the file cannot be read or takes too much memory; an array is
      missing or has another name; or labels are not of classes.
  """
  # The arrays of a file are read whole; image files are counted, cut and scaled one by one.
  found = npz.read(path, LAYOUT, 'take a folder of image files with a resize or max_examples, or fewer images')
  names = found.pop('class_names', None)
  images, labels = dict[str, np.ndarray](), dict[str, np.ndarray]()
  for split, arrays in npz.by_split(path, found, ('images', 'labels'), LAYOUT).items():
    image, label = arrays['images'], arrays['labels']
    images[split] = image[..., None] if image.ndim == 3 else image
    labels[split] = label[:, 0] if label.shape[1:] == (1,) else label
    splits.check_shapes(split, images[split], labels[split])
  labels, classes = labels_lib.of_npz(path, labels, names, numbers)

  def source(split: str) -> Source:
    def read(places: np.ndarray) -> Split:
      some = images[split][places]
      return Split(splits.resized(some, resize) if resize else some, labels[split][places])

    return Source(len(images[split]), read)

  return {split: source(split) for split in images}, classes
