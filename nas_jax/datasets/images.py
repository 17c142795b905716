"""Images as arrays. Nothing is downloaded: the digits are part of scikit-learn, other sets are read from a folder."""

from collections.abc import Mapping
import hashlib
import os
from typing import NamedTuple

import numpy as np

from nas_jax import lazy
from nas_jax.datasets import npz, own_images, splits, tfds
from nas_jax.datasets.class_folders import FOLDER
from nas_jax.datasets.splits import Scale, Size, Source, Split, resized
from nas_jax.words import counted

AT_ONCE = 1000  # images of a prepared set that are decoded before they are scaled


class Images(NamedTuple):
  """A set of images in three splits."""

  train: Split
  valid: Split
  test: Split  # without images if the set has no test split: a search does not need one
  classes: int  # number of outputs of a network: that of the classes, or 1 if labels are numbers to predict
  sha256: str  # of the images and labels as read, to be named in results
  names: tuple[str, ...] = ()  # of the classes; () for '0', '1', ...
  scale: Scale | None = None  # of the training labels if they are numbers to predict; None for classes
  numbered: bool = False  # whether the set numbers its classes and names them elsewhere; else a label is its name

  @property
  def class_names(self) -> tuple[str, ...]:
    """The name of each class; () if labels are numbers to predict."""
    return () if self.scale else self.names or tuple(map(str, range(self.classes)))

  @property
  def shape(self) -> tuple[int, int, int]:
    """Height, width and channels of an image."""
    return self.train.images.shape[1:]


def load_images(
  dataset: str = 'digits',
  data_dir: str = '',
  valid_share: float = 0.1,
  resize: Size = 0,
  max_examples: int = 0,
  seed: int = 0,
  test_share: float = 0.0,
  numbers: bool = False,
) -> Images:
  """Reads a set of images.

  The validation split is that of the set. If there is none, it is drawn at random from the training images (Sec. 4.1).

  Args:
    dataset: 'digits' is the set of scikit-learn: 1,797 images of 8 x 8 pixels, a fifth of them for testing. 'folder' is
      the folder `data_dir` of image files, see `own_images.of_folder`. A name that ends in .npz is a file of arrays,
      in `data_dir` if that is given, see `own_images.of_npz`. Anything else is the name of a set of TensorFlow Datasets
      with images and labels, as 'cifar10', prepared in `data_dir`.
    data_dir: the folder that the set is read from; not used by 'digits'.
    valid_share: share of the training images to validate with, if the set has no validation split of its own; a tenth
      is the paper's 5,000 of 50,000.
    resize: pixels to scale the images to, of a square or (height, width); 0 leaves them.
    max_examples: how many training images to take, those to validate with included, and at most as many of the other
      splits of the set; 0 takes all.
    seed: the seed of the random choice of the images to take and to validate with.
    test_share: share of the training images that become the test split if the set has none; 0 for no test split. These
      images do not depend on the seed.
    numbers: whether labels are numbers to predict instead of classes; only for an .npz.

  Raises:
    ValueError: as `tfds.prepared`, `own_images` and `split_images`, or `resize` has a 0 in a pair.
  """
  if resize and min(splits.height_and_width(resize)) < 1:
    raise ValueError(f'resize (={resize}) must be one size, or height and width, above 0.')
  if numbers and not dataset.endswith(npz.ENDING):
    raise ValueError(f'metric r2 predicts numbers, and dataset {dataset!r} has classes: take a FILE.npz of numbers.')
  numbered = False
  if dataset == 'digits':
    parts, classes, class_names = digits(), 10, tuple[str, ...]()
    if resize:
      parts = {name: part._replace(images=resized(part.images, resize)) for name, part in parts.items()}
  else:
    sources, class_names, numbered = _sources(dataset, data_dir, resize, numbers)
    parts, classes = splits.read(sources, max_examples, test_share, seed), len(class_names)
  found = split_images(
    parts['train'],
    parts.get('test'),
    None if numbers else classes,
    valid_share,
    max_examples,
    seed,
    parts.get('validation'),
  )
  return found._replace(names=class_names, numbered=numbered)


def _sources(
  dataset: str, data_dir: str, resize: Size, numbers: bool
) -> tuple[dict[str, Source], tuple[str, ...], bool]:
  """Returns the splits of a set, the names of its classes, and whether the set numbers the classes itself."""
  if dataset == FOLDER:
    return *own_images.of_folder(data_dir, resize), False
  if dataset.endswith(npz.ENDING):
    return own_images.of_npz(os.path.join(data_dir, os.path.expanduser(dataset)), resize, numbers)
  instead = f"or take dataset {FOLDER!r}, a file FILE.npz, or 'digits', which needs no folder"
  source = tfds.prepared(dataset, data_dir, instead)
  names = ['train', *(name for name in ('test', 'validation') if name in source)]
  found = {name: _prepared(source, name, dataset, resize) for name in names}
  return found, tuple(source['train'].dataset_info.features['label'].names), True


def split_images(
  train: Split,
  test: Split | None,
  classes: int | None,
  valid_share: float = 0.1,
  max_examples: int = 0,
  seed: int = 0,
  valid: Split | None = None,
) -> Images:
  """Makes `Images` from your own images.

  Args:
    train: the images to train with.
    test: the images to test with; None if there are none, since a search needs none.
    classes: number of classes; None if labels are numbers to predict.
    valid_share: as in `load_images`.
    max_examples: as in `load_images`.
    seed: as in `load_images`.
    valid: the images to validate with; None to draw them from the training images.

  Raises:
    ValueError: in one line: pixels are not finite or not uint8; labels are not ints [n] or are out of range; there are
      fewer than two classes; numbers to predict are not finite or all the same; images are smaller than 4 x 4 or of
      different shapes; or a split has no images.
  """
  given = {'train': train, 'test': test, 'validation': valid}
  parts = {name: part for name, part in given.items() if part is not None}
  for name, part in parts.items():
    _check(name, part, classes)
    if train.images.shape[1:] != part.images.shape[1:]:
      shapes = f'{train.images.shape[1:]} in train and {part.images.shape[1:]} in {name}'
      raise ValueError(f'the images are {shapes}: want one shape.')
  held, left = splits.held_out(len(train.labels), None if valid else valid_share, max_examples, seed)
  digest = hashlib.sha256()
  for part in parts.values():
    digest.update(part.images.tobytes())
    digest.update(part.labels.tobytes())

  def taken(part: Split, at: np.ndarray | slice) -> Split:
    return Split(part.images[at], part.labels[at].astype(np.float64 if classes is None else np.int32))

  some = slice(max_examples or None)
  # Files are often sorted by class. Shared weights are scored on parts of this split, each normalised by itself.
  mixed = np.random.default_rng(0).permutation(len(valid.labels))[some] if valid else held
  chosen = taken(valid or train, mixed)
  kept = taken(test, some) if test else taken(train, slice(0))
  rest = taken(train, left)
  if classes is None:
    for name, part in (('train', rest), ('validation', chosen)):
      splits.check_numbers(name, part.labels)
    scale = Scale(float(rest.labels.mean(dtype=np.float64)), float(rest.labels.std(dtype=np.float64)))
    return Images(rest, chosen, kept, 1, digest.hexdigest(), scale=scale)
  return Images(rest, chosen, kept, classes, digest.hexdigest())


def _check(name: str, part: Split, classes: int | None) -> None:
  images, labels = part
  where = f'the {name} split'
  splits.check_shapes(name, images, labels)
  if min(images.shape[1:3]) < 4:
    raise ValueError(f'{where} has images of {images.shape[1]} x {images.shape[2]} pixels: want at least 4 x 4.')
  if not np.isfinite(images).all():
    first = np.argwhere(~np.isfinite(images))[0][0]
    raise ValueError(f'{where} has pixels that are not finite, first in image {first}: want numbers.')
  if images.dtype != np.uint8:
    raise ValueError(f'{where} has pixels of type {images.dtype}: want uint8, 0 to 255.')
  if classes is None:
    splits.check_numbers(name, labels)
    return
  splits.check_type(name, labels)
  if not np.issubdtype(labels.dtype, np.integer):
    raise ValueError(f'{where} has labels of type {labels.dtype}: want ints, 0 to {classes - 1}.')
  if classes < 2 or len(np.unique(labels)) < 2:
    raise ValueError(f'{where} has {len(np.unique(labels))} of {classes} classes: want at least two to tell apart.')
  if labels.min() < 0 or labels.max() >= classes:
    raise ValueError(f'{where} has labels from {labels.min()} to {labels.max()}: want 0 to {classes - 1}.')


def digits() -> dict[str, Split]:
  """Returns the digits of scikit-learn, a fifth of them for testing."""
  lazy.require('sklearn', "dataset 'digits'")
  from sklearn.datasets import load_digits

  images, labels = load_digits(return_X_y=True)
  images = (images.reshape(-1, 8, 8, 1) * 15).astype(np.uint8)  # 0 to 16 in the set
  order = np.random.default_rng(0).permutation(len(labels))
  cut = len(labels) // 5
  return {
    'test': Split(images[order[:cut]], labels[order[:cut]]),
    'train': Split(images[order[cut:]], labels[order[cut:]]),
  }


def _prepared(source: Mapping, name: str, dataset: str, resize: Size) -> Source:
  if name not in source or not {'image', 'label'} <= set(source[name].dataset_info.features):
    raise ValueError(f'dataset {dataset!r} has no {name} split with image and label: want a set for classification.')

  def read(places: np.ndarray) -> Split:
    (first,) = source[name].__getitems__(places[:1].tolist())  # one image, to know what all of them take
    height, width = splits.height_and_width(resize) if resize else first['image'].shape[:2]
    what = f'{counted(len(places), f"{name} image")} of {dataset} of {height} x {width} pixels'
    splits.check_memory(what, len(places) * height * width * first['image'].shape[2])
    images, labels = list[np.ndarray](), list[int]()
    for some in np.array_split(places, -(-len(places) // AT_ONCE)):
      rows = source[name].__getitems__(some.tolist())
      found = [row['image'] for row in rows]
      images += list(resized(found, resize)) if resize else found
      labels += [row['label'] for row in rows]
    if len(shapes := {image.shape for image in images}) > 1:
      few = ', '.join(map(str, sorted(shapes)[:3]))
      raise ValueError(f'the {name} split of {dataset!r} has images of {len(shapes)} shapes ({few}): set resize.')
    return Split(np.stack(images), np.array(labels))

  return Source(len(source[name]), read)
