"""Images of a user: a folder with a sub-folder for each class, or an .npz of arrays."""

import numpy as np

from nas_jax.datasets import class_folders, image_files, npz, splits
from nas_jax.datasets import labels as labels_lib
from nas_jax.datasets.splits import Size, Source, Split

LAYOUT = (
  "arrays 'images' [n, H, W, C] uint8 and 'labels' [n], perhaps 'valid_images', 'valid_labels', 'test_images' and "
  "'test_labels', and 'class_names'"
)


def of_folder(folder: str, resize: Size = 0) -> tuple[dict[str, Source], tuple[str, ...]]:
  """Returns the splits of a folder of images, and the names of its classes.

  Its layout is that of `class_folders.sources`.

  Args:
    folder: its path.
    resize: the size to bring images to.

  Raises:
    ValueError: as `class_folders.sources`. A file that is no image raises an error only when it is read.
  """

  def read(paths: list[str], labels: np.ndarray) -> Split:
    return Split(image_files.read(paths, resize), labels)

  return class_folders.sources(folder, image_files.KIND, read)


def of_npz(path: str, resize: Size = 0, numbers: bool = False) -> tuple[dict[str, Source], tuple[str, ...], bool]:
  """Returns the splits of an .npz of images, the names of its classes, and whether it has 'class_names'.

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
    labels[split] = labels_lib.plain(label)
    splits.check_shapes(split, images[split], labels[split])
  labels, classes = labels_lib.of_npz(path, labels, names, numbers)

  def source(split: str) -> Source:
    def read(places: np.ndarray) -> Split:
      some = images[split][places]
      return Split(splits.resized(some, resize) if resize else some, labels[split][places])

    return Source(len(images[split]), read)

  return {split: source(split) for split in images}, classes, names is not None
