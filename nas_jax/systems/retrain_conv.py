"""How convolutional networks are retrained: as image classifiers, Zoph & Le (2017) Sec. 4.1."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import numpy as np

from nas_jax import config, export, published
from nas_jax.children import conv
from nas_jax.config import field
from nas_jax.datasets import image_batches
from nas_jax.datasets import images as images_lib
from nas_jax.space.network import Arch
from nas_jax.systems import classifier, equal_weights, retrain
from nas_jax.training import child as child_lib
from nas_jax.training import full_training, metrics
from nas_jax.types import PyTree
from nas_jax.words import counted

KNOWN = {'FIGURE_7': published.FIGURE_7, 'XU_CIFAR10': published.XU_CIFAR10}


@dataclasses.dataclass
class Config(classifier.BlockConfig, retrain.Config):
  """The images and the training of `classifier.BlockConfig`, one or more widths, and the four lists of a grid."""

  epochs: int = retrain.epochs_field(50)
  add_filters: tuple[int, ...] = field(
    (0,),
    'sizes to train: filters added to every layer, 40 in the third experiment; the grid is trained at the first size',
    low=0,
    budget=True,
    first=True,
  )
  weights: tuple[str, ...] = field(
    (),
    'sizes to train, instead of numbers of filters: numbers of weights as 100k or 4.65M. In each network, every layer '
    'gets or loses the same number of filters, so that the number of weights comes nearest',
    budget=True,
    first=True,
  )
  lr: tuple[float, ...] = field((0.1,), 'learning rates to try', above=0.0)
  decay_epoch: tuple[float, ...] = field(
    (150.0,), 'numbers of epochs to try before the learning rate decays; 150 of 300 in Huang et al.', low=0.0
  )
  weight_decay: tuple[float, ...] = field((1e-4,), 'weight decays of kernels and classifier to try', low=0.0)
  epsilon: tuple[float, ...] = field((1e-5,), 'epsilons of batch norm to try', above=0.0)
  train_on_all: bool = field(
    True, 'after the grid, train on the validation images too and test the weights of the last epoch'
  )


def paper() -> Config:
  """CIFAR-10 by the recipe of Huang et al. (2016), which Sec. 4.1 follows; never run here at this size.

  The paper names the four hyperparameters of its grid but not the values it tried; give them as lists by the flags.
  """
  return Config(dataset='cifar10', upsample=4, flip=True, epochs=300)


def small() -> Config:
  """All of CIFAR-10 at 16 x 16, as in the search preset `small`: ten minutes a network on one core."""
  return Config(dataset='cifar10', resize=16, flip=True, batch=64, epochs=8, schedule='cosine')


def demo() -> Config:
  """Takes minutes on a laptop, without a download: scikit-learn's digits."""
  return Config(
    valid_share=0.25, batch=16, epochs=10, schedule='cosine', lr=(0.1, 0.3), weight_decay=(1e-4, 1e-3), grid_epochs=3,
    repeats=2,
  )  # fmt: skip


def smoke() -> Config:
  """Takes seconds: a test that everything runs."""
  return Config(
    max_examples=200, batch=30, epochs=2, lr=(0.05, 0.1), add_filters=(0, 1), grid_epochs=1, schedule='cosine'
  )


PRESETS = {'paper': paper, 'small': small, 'demo': demo, 'smoke': smoke}


class Point(NamedTuple):
  """One entry of the grid; the fields are those of `Config`."""

  lr: float
  decay_epoch: float
  weight_decay: float
  epsilon: float


def describe(point: Point) -> str:
  """Returns a point in words. They are part of the keys of trainings.json: if they change, all is trained again."""
  return (
    f'lr {point.lr:g}, decay after {point.decay_epoch:g}, weight decay {point.weight_decay:g}, epsilon '
    f'{point.epsilon:g}'
  )


def hyperparameters(points: Sequence[Point]) -> conv.Hyperparameters:
  """Returns the hyperparameters of m points, each as an array [m]."""
  return conv.Hyperparameters(*map(jnp.array, zip(*points, strict=True)))


def check(cfg: Config) -> None:
  """Raises ValueError, naming the field, on an impossible value."""
  config.check(cfg)
  check_weights(cfg, 'add_filters')
  check_restarts(cfg)


def check_restarts(cfg: Config) -> None:
  """Raises ValueError if the first fall of the learning rate, in the schedule 'restarts', takes no time."""
  if cfg.schedule == 'restarts' and 0 in cfg.decay_epoch:
    raise ValueError(f"decay_epoch (={cfg.decay_epoch}) must be above 0 in the schedule 'restarts'.")


def check_weights(cfg: Config, other: str) -> None:
  """Raises ValueError if `weights` has an impossible entry, or is given beside sizes of the field `other`."""
  default = getattr(type(cfg)(), other)
  if cfg.weights and getattr(cfg, other) != default:
    raise ValueError(
      f'weights (={cfg.weights}) and {other} (={getattr(cfg, other)}) both name sizes: leave {other} at {default}, or '
      'leave weights out.'
    )
  for size in cfg.weights:
    weights = retrain.parse_weights(size)
    if weights is None:
      raise ValueError(f'weights: {size!r} must be a number of weights, as 500k or 4.65M.')
    child_lib.check_weights(weights, 'fewer weights.')


def sizes(cfg: Config) -> list[str]:
  """Returns the sizes to train at: numbers of weights such as '100k' if there are any, else of filters to add."""
  return list(cfg.weights) or [str(add) for add in cfg.add_filters]


def validate(cfg: Config, images: images_lib.Images, arch: Arch) -> None:
  """Raises ValueError, before anything compiles, if there is no such network or module, or the data do not fit."""
  check_images(cfg, images)
  added = [added_filters(cfg, images, arch, size) for size in sizes(cfg)]
  child_lib.check_weights(equal_weights.weights(cfg, images, arch, max(added)), 'a smaller add_filters.')
  check_module(images, arch, _options(cfg, images, added[0], cfg.epsilon[0]))


def added_filters(cfg: Config, images: images_lib.Images, arch: Arch, size: str) -> int:
  """Returns the number of filters that are added to every layer of a network of this size, negative if taken away.

  A `size` of weights, such as '100k', is the number that brings the network nearest to so many weights and leaves each
  layer a filter. Nothing is compiled.

  Raises:
    ValueError: the network has no filters, or more weights even with as few filters as possible.
  """
  wanted = retrain.parse_weights(size)
  if wanted is None:
    return int(size)
  least = equal_weights.least(arch)
  if least > 0:
    raise ValueError(f'weights (={size}): the network has no convolution to which filters can be added.')
  return nearest_size(lambda add: equal_weights.weights(cfg, images, arch, add), size, wanted, least)


def nearest_size(count: Callable[[int], int], size: str, wanted: int, least: int) -> int:
  """Returns `child.nearest_size`. Raises ValueError if the network has more weights than `size` at the least size."""
  fewest = count(least)
  if fewest > wanted:
    raise ValueError(
      f'weights (={size}): with as few filters as possible the network has {fewest}; ask for at least as many.'
    )
  return child_lib.nearest_size(count, wanted, least)


def check_images(cfg: Config, images: images_lib.Images) -> None:
  """Raises ValueError if the images cannot be trained on, whitened and tested on with this config."""
  classifier.check_test_split(cfg.dataset, len(images.test.labels))
  classifier.check_memory(cfg, images)
  classifier.inputs(cfg, images)  # raises ValueError if the metric or the class weights do not fit the labels
  image_batches.check_whitening(cfg.whiten, images.shape)


def task(
  cfg: Config,
  images: images_lib.Images,
  arch: Arch,
  size: str,
  epochs: int,
  final: bool = False,
  mesh: Mesh | None = None,
) -> full_training.Task:
  """Returns the task of training a network of a size, as `added_filters` takes it; see `training`."""
  add = added_filters(cfg, images, arch, size)
  network = conv.build(classifier.inputs(cfg, images), classifier.network_options(cfg, add))
  return training(
    cfg, images, network, arch, f'{add:+d}', equal_weights.weights(cfg, images, arch, add), epochs, final, mesh
  )


def training(
  cfg: Config,
  images: images_lib.Images,
  network: child_lib.Child,
  arch: PyTree,
  size: str,
  weights: int,
  epochs: int,
  final: bool,
  mesh: Mesh | None,
  decayed: Callable[[PyTree], PyTree] | None = None,
  least: float = 0.0,
) -> full_training.Task:
  """Returns the task of training a network of a static architecture for `epochs` passes over the images.

  A training of the grid keeps the weights after the epoch that scored best on validation. With `cfg.train_on_all`, a
  `final` training also trains on the validation images. No images are then left to choose an epoch: the weights after
  the last epoch are kept, and the curve has the scores of images that were trained on.

  Args:
    cfg: the config.
    images: the data set.
    network: the child network.
    arch: the static architecture.
    size: the size of the network in words, for the table.
    weights: the number of weights, for the table.
    epochs: passes over the images.
    final: whether the network is tested afterwards; if not, the training is one of the grid.
    mesh: the devices to train on; all devices by default.
    decayed: as in `classifier.set_up`.
    least: as in `classifier.set_up`.
  """
  everything = final and cfg.train_on_all
  train = trained_on(cfg, images) if final else images.train
  setup = classifier.set_up(cfg, images, train, images.valid, images.test, decayed=decayed, least=least)
  data, test = setup.data
  own = child_lib.bind_arch(network, lambda hyperparameters: conv.ChildSpec(arch, hyperparameters))
  programs = classifier.fitter(setup, own, lambda hyperparameters: hyperparameters, epochs * setup.pass_steps, mesh)
  return full_training.Task(
    size, weights, programs, data, test, lambda scores: 1.0 - scores[cfg.metric], not everything
  )


def trained_on(cfg: Config, images: images_lib.Images) -> images_lib.Split:
  """Returns the training images of networks that are tested: with `train_on_all`, the validation images too."""
  if not cfg.train_on_all:
    return images.train
  return images_lib.Split(*(np.concatenate(parts) for parts in zip(images.train, images.valid, strict=True)))


def setting(cfg: Config, images: images_lib.Images) -> str:
  """Returns in words what all trainings have in common."""
  trained = 'training and validation images' if cfg.train_on_all else 'training images'
  chosen = 'last epoch' if cfg.train_on_all else 'best epoch by validation'
  weighed = ', classes of equal weight' if cfg.class_weights == 'balanced' else ''
  return (
    f'{metrics.NAMES[cfg.metric][1]} of {counted(cfg.epochs, "epoch")} on the {trained}{weighed}, {chosen}; '
    f'validation is of the grid; {cfg.dataset}, sha256 {images.sha256[:12]}; '
    f'{counted(len(images.test.labels), "image")} to test; {config.seeds_in_words(cfg)}; means over the trainings'
  )


def card(cfg: Config, images: images_lib.Images, arch: Arch, size: str, point: Point) -> export.Card:
  """Returns the description of a trained network, which is stored with its weights."""
  options = _options(cfg, images, added_filters(cfg, images, arch, size), point.epsilon)
  return export.Card(arch, options, image_inputs(cfg, images))


def _options(cfg: Config, images: images_lib.Images, add: int, epsilon: float) -> dict[str, Any]:
  """Returns the options of the Flax module."""
  own = {'classes': images.classes, 'epsilon': epsilon, 'norm_first': cfg.norm_first}
  return own | classifier.network_options(cfg, add)._asdict()


def check_module(images: images_lib.Images, arch: PyTree, options: Mapping[str, Any]) -> None:
  """Raises ValueError, before anything is trained, if no Flax module can be built for the network."""
  export.cost(export.module(arch, **options), jax.ShapeDtypeStruct((1, *images.shape), jnp.float32))


def image_inputs(cfg: Config, images: images_lib.Images) -> export.ImageInputs:
  """Returns the description of the images that tested networks read."""
  whitening = image_batches.fit_whitening(cfg.whiten, trained_on(cfg, images).images)
  return export.ImageInputs(
    images.shape, images.class_names, whitening, bool(cfg.resize), images.scale, images.numbered
  )


RECIPE = retrain.Recipe(
  Config,
  PRESETS,
  KNOWN,
  metric='error',
  point=Point,
  check=check,
  validate=validate,
  sizes=sizes,
  task=task,
  hyperparameters=hyperparameters,
  describe=describe,
  setting=setting,
  card=card,
)
