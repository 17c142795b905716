"""Image classifiers: what searches for networks have in common with the full training of the networks they find."""

from collections.abc import Callable
import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
from jax.sharding import Mesh
import numpy as np
import optax

from nas_jax import config
from nas_jax.children import conv
from nas_jax.config import field
from nas_jax.datasets import image_batches, splits
from nas_jax.datasets import images as images_lib
from nas_jax.nn.precision import PRECISION_HELP, PRECISIONS
from nas_jax.space import Kind, Space
from nas_jax.space.network import NetworkOptions
from nas_jax.training import child as child_lib
from nas_jax.training import fit, layout, metrics, rewards, schedules
from nas_jax.training.child import Child
from nas_jax.training.problem import Problem
from nas_jax.types import PyTree
from nas_jax.words import counted


@dataclasses.dataclass
class Config(config.DataSeed):
  """The images and the training of networks on them, without what may differ by child: `conv.Hyperparameters`."""

  dataset: str = field(
    'digits',
    "images: 'digits', which come with scikit-learn; 'folder', files in data_dir, in a sub-folder for each class; "
    "FILE.npz, arrays images and labels; or a set of TensorFlow Datasets in data_dir, as 'cifar10'",
    first=True,
  )
  resize: int | tuple[int, int] = field(
    0,
    'pixels to resize images to, 64 for squares or 48,64 for height and width; 0 to leave them as they are',
    low=0,
    high=4096,
    pair=True,
  )
  max_examples: int = field(0, 'images to take for training and validation together; 0 for all', low=0)
  valid_share: float = field(
    0.1, 'share of the training images to validate with; 5,000 of 50,000 in Sec. 4.1', above=0.0
  )
  test_share: float = field(
    0.0,
    'share of the training images to test with, if the set has no test split. Retraining needs a test split: give the '
    'search before it the same share, so that the search does not see these images',
    low=0.0,
    high=0.9,
  )
  whiten: str = field(
    'image',
    "'image': each image is scaled to mean 0 and variance 1; 'channel': each channel, by its mean and deviation in the "
    "training images, as in the code of Pham et al. (2018); 'zca': ZCA whitening fitted on the training images. "
    'Zoph & Le (2017), Sec. 4.1, do not say which',
    choices=image_batches.WHITENINGS,
  )
  upsample: int = field(
    0,
    'pixels by which training images are upsampled before a random crop to their size, Sec. 4.1; 0 for none',
    low=0,
    high=4096,
  )
  flip: bool = field(False, 'flip training images left to right at random, Sec. 4.1')
  pad: int = field(
    0,
    'zeros put around training images before a random crop to their size, as Pham et al. (2018); 0 for none',
    low=0,
    high=4096,
  )
  norm_first: bool = field(True, 'batch norm before the ReLU; if false, after it')
  batch: int = field(64, 'images in a training step (batch size), as Huang et al. (2016)', low=1)
  epochs: int = field(50, 'passes over the training images, Sec. 4.1', low=1)
  momentum: float = field(0.9, 'Nesterov momentum, Sec. 4.1', low=0.0, high=1.0)
  schedule: str = field(
    'twice',
    "schedule of the learning rate. 'twice': it decays after decay_epoch epochs and again after half as many more; "
    "'epochs': it decays after each epoch from decay_epoch on; 'cosine': it falls to 0 at the end; 'restarts': it "
    'falls in cosines of decay_epoch epochs, twice as many, four times as many, ...',
    choices=schedules.SCHEDULES,
  )
  lr_decay: float = field(0.1, 'factor by which the learning rate decays, as Huang et al. (2016)', above=0.0, high=1.0)
  score_batch: int = field(500, 'images in a validation step', low=1)
  precision: str = field('float32', PRECISION_HELP, choices=PRECISIONS)
  metric: str = field(
    'accuracy',
    "what networks are scored by: 'accuracy'; 'balanced_accuracy', the mean over classes of the share that is "
    "recognised; 'f1', the mean over classes of F1 (macro F1); or 'r2' for labels that are numbers (regression): the "
    'share of their variance that is explained. Where a text says accuracy, this score is meant',
    choices=tuple(metrics.NAMES),
  )
  class_weights: str = field(
    'none',
    "weights of the losses of training images: 'none', or 'balanced', which makes all classes weigh the same however "
    'many images they have',
    choices=metrics.CLASS_WEIGHTS,
  )

  # See `config.with_added`.
  added: ClassVar[dict[str, Any]] = {
    'precision': 'float32', 'test_share': 0.0, 'metric': 'accuracy', 'class_weights': 'none',
  }  # fmt: skip
  removed: ClassVar[dict[str, Any]] = {'block': 1, 'pool_at': [0]}  # see `config.without_removed`


@dataclasses.dataclass
class BlockConfig(Config):
  """`Config`, and how a network of `space.conv_space` is built from the predicted layers."""

  block: int = field(
    1,
    'densely connected layers that each predicted layer stands for; 3 in the third experiment of Sec. 4.1',
    low=1,
    high=128,
  )
  pool_at: tuple[int, ...] = field(
    (0,),
    'layers before which features are max pooled by 2; 13,24 in the third experiment of Sec. 4.1, 0 for none',
    low=0,
  )


def load(cfg: Config, data_dir: str = '') -> images_lib.Images:
  """Returns the images that `cfg` names.

  Raises:
    ValueError: as `images.load_images`, or there are fewer training images than a batch has.
  """
  found = images_lib.load_images(
    cfg.dataset,
    data_dir,
    cfg.valid_share,
    cfg.resize,
    cfg.max_examples,
    config.data_seed(cfg),
    cfg.test_share,
    numbers=cfg.metric == 'r2',
  )
  if len(found.train.labels) < cfg.batch:
    there = counted(len(found.train.labels), 'training image')
    raise ValueError(f'batch (={cfg.batch}) is more than the {there}: take fewer.')
  return found


def check_memory(cfg: Config, images: images_lib.Images) -> None:
  """Raises ValueError if a device has too little memory for all images in the form in which the network reads them."""
  every = [part.images for part in images[:3]]
  needed = sum(part.size for part in every) * (1 if cfg.whiten == 'image' else 4)
  needed += image_batches.ORDERS * 8 * len(images.train.labels)
  way_out = 'take a smaller resize, fewer max_examples, or whiten=image, which needs a quarter of the others'
  check_device(f'{sum(map(len, every))} images of {images.shape}', needed, way_out)


def check_test_split(dataset: str, count: int) -> None:
  """Raises ValueError if a data set has no test examples. Only retraining needs them, a search does not."""
  if not count:
    raise ValueError(
      f'dataset {dataset!r} has no test split, on which a network trained to the end is scored: give test_share, to '
      'this and to the search, as --test_share=0.1.'
    )


def check_device(what: str, needed: int, way_out: str) -> None:
  """Raises ValueError if a device has less than `needed` bytes for data; `what` names them, `way_out` a remedy."""
  limit = min(layout.memory_limit(layout.child_mesh()), splits.memory() / len(jax.local_devices()))
  if needed > limit:
    raise ValueError(f'{what} take {needed / 2**30:.3g} GiB of a device that has {limit / 2**30:.3g}: {way_out}.')


def widest(space: Space) -> PyTree:
  """Returns a network with about the most weights in a space.

  It has all links and the greatest label of each choice, but the least strides. If the space has types of layers, all
  layers are convolutions.
  """
  tokens = list[int]()
  for slot in space.slots:
    values, least = slot.values or range(slot.width), slot.field.startswith(('stride', 'layer_type'))
    best = min if least else max
    tokens += [1] * slot.width if slot.kind == Kind.LINK else [list(values).index(best(values))]
  return space.decode(np.array(tokens, int))


def network_options(cfg: BlockConfig, add_filters: int = 0) -> NetworkOptions:
  """Returns how a network is built from the predicted layers."""
  return NetworkOptions(cfg.block, tuple(place for place in cfg.pool_at if place), add_filters)


class Setup(NamedTuple):
  """The images and the training that a config describes, ready for any network.

  Attributes:
    inputs: the properties of the images that a network depends on.
    data: for each split to score, the arrays of the training images and of that split.
    pass_steps: training steps of a pass over the training images.
    optimizer: (training steps) -> (hyperparameters) -> the optimizer of a child.
  """

  inputs: conv.InputSpec
  data: tuple[image_batches.Data, ...]
  pass_steps: int
  optimizer: Callable[[int], Callable[[Any], optax.GradientTransformation]]


def inputs(cfg: Config, images: images_lib.Images) -> conv.InputSpec:
  """Returns the properties of images that a network depends on.

  A validation step takes no more images than the validation split has.
  """
  augment = image_batches.Augment(cfg.upsample, cfg.flip, cfg.pad)
  size = min(cfg.score_batch, len(images.valid.labels))
  check_metric(cfg.metric, cfg.class_weights, images.scale is not None)
  weights = metrics.balanced(images.train.labels, images.classes) if cfg.class_weights == 'balanced' else ()
  return conv.InputSpec(
    images.shape, images.classes, cfg.batch, size, augment, cfg.norm_first, cfg.precision, cfg.metric, weights
  )


def check_metric(metric: str, class_weights: str, numbers: bool) -> None:
  """Raises ValueError if the metric or the class weights do not fit labels: `numbers` to predict, or classes."""
  if (metric == 'r2') != numbers:
    raise ValueError(f'metric (={metric}) does not fit labels that are {"numbers" if numbers else "classes"}.')
  if numbers and class_weights != 'none':
    raise ValueError(f'class_weights (={class_weights}) are for classes, and metric r2 predicts numbers.')


def scaled(labels: np.ndarray, scale: splits.Scale) -> np.ndarray:
  """Returns numbers to predict as networks learn them."""
  return ((labels - scale.mean) / scale.deviation).astype(np.float32)


def learned(images: images_lib.Images, part: images_lib.Split) -> images_lib.Split:
  """Returns a split with labels as networks learn them: numbers to predict are scaled, see `Scale`."""
  if images.scale is None:
    return part
  return part._replace(labels=scaled(part.labels, images.scale))


def set_up(
  cfg: Config,
  images: images_lib.Images,
  train: images_lib.Split | None = None,
  *scored: images_lib.Split,
  decayed: Callable[[PyTree], PyTree] | None = None,
  least: float = 0.0,
) -> Setup:
  """Lays images out for training and makes the optimizer.

  Args:
    cfg: the config of the images and the training.
    images: as `load` returns them.
    train: the images to train on; the training split by default.
    *scored: the splits to score; the validation split by default.
    decayed: (params) -> a bool for each weight, whether the optimizer decays it. Give it for a child whose loss has no
      weight decay; it does not work with `quick` of `fitter`.
    least: the learning rate at which cosine schedules end.

  Raises:
    ValueError: as `check_memory`.
  """
  check_memory(cfg, images)
  spec = inputs(cfg, images)
  first, *others = (learned(images, part) for part in (train or images.train, *(scored or (images.valid,))))
  data = image_batches.lay_out(first, others, spec.score_batch, cfg.whiten, config.data_seed(cfg))
  pass_steps = len(data[0].labels) // cfg.batch

  def optimizer(steps: int) -> Callable[[conv.Hyperparameters], optax.GradientTransformation]:
    def of(own: conv.Hyperparameters) -> optax.GradientTransformation:
      rate = schedules.rate(cfg.schedule, own.lr, steps, pass_steps, own.decay_epoch, cfg.lr_decay, least)
      descent = optax.sgd(rate, momentum=cfg.momentum, nesterov=True)
      return optax.chain(optax.add_decayed_weights(own.weight_decay, decayed), descent) if decayed else descent

    return of

  return Setup(spec, tuple(data), pass_steps, optimizer)


def make_problem(
  setup: Setup,
  space: Space,
  network: Child,
  hyperparameters: Callable[[PyTree], Any],
  epochs: int,
  last_epochs: int = 1,
  reward_power: float = 1.0,
  sized: Callable[[PyTree], PyTree] = lambda arch: arch,
) -> Problem:
  """Returns the problem of a search for networks, each of which is trained by a program of its own.

  Args:
    setup: the images and the training.
    space: the space of the architectures.
    network: the child, whose arch is a `conv.ChildSpec`.
    hyperparameters: (arch) -> the hyperparameters of its child.
    epochs: passes over the training images that train a child.
    last_epochs: how many of the last epochs are scored; the best score counts.
    reward_power: the exponent of that score in the reward.
    sized: (arch) -> the architecture that is trained, which may have other numbers of filters.
  """

  def spec(arch: PyTree) -> conv.ChildSpec:
    return conv.ChildSpec(sized(arch), hyperparameters(arch))

  def optimizer(steps: int) -> Callable[[PyTree], optax.GradientTransformation]:
    make = setup.optimizer(steps)
    return lambda arch: make(hyperparameters(arch))

  make_reward = rewards.of_r2 if setup.inputs.metric == 'r2' else rewards.of_accuracy
  return Problem(
    space,
    child_lib.bind_arch(network, spec),
    setup.data[0],
    optimizer,
    steps=epochs * setup.pass_steps,
    pass_steps=setup.pass_steps,
    steps_per_call=setup.pass_steps,
    metric=setup.inputs.metric,
    reward=lambda score: make_reward(score, reward_power),
    scored=last_epochs,
    program='specialised',
    quick=True,
  )


def fitter(
  setup: Setup,
  child: Child,
  hyperparameters: Callable[[PyTree], Any],
  steps: int,
  mesh: Mesh | None = None,
  quick: bool = False,
) -> fit.Fit:
  """Returns the programs that train `child`, one epoch in a call.

  Args:
    setup: the images and the training.
    child: the network.
    hyperparameters: (arch of `child`) -> the hyperparameters of that child.
    steps: training steps of a child.
    mesh: as in `fit.fitter`.
    quick: as in `fit.fitter`.
  """
  optimizer = setup.optimizer(steps)
  return fit.fitter(child, lambda arch: optimizer(hyperparameters(arch)), steps, setup.pass_steps, mesh, quick=quick)
