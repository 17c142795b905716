"""Image classifiers: what a search for networks and the training of a found one have in common."""

from collections.abc import Callable
import dataclasses
from typing import Any, ClassVar, NamedTuple

from jax.sharding import Mesh
import optax

from nas_jax.children import conv
from nas_jax.config import field
from nas_jax.datasets import image_batches
from nas_jax.datasets import images as images_lib
from nas_jax.space import Space
from nas_jax.space.network import NetworkOptions
from nas_jax.training import child as child_lib
from nas_jax.training import fit, rewards, schedules
from nas_jax.training.child import Child
from nas_jax.training.problem import Problem
from nas_jax.types import PyTree


@dataclasses.dataclass
class Config:
  """Images, and how networks for them are trained, but for what may differ by child (`conv.Hyperparameters`)."""

  dataset: str = field(
    'digits', "images: 'digits', part of scikit-learn, or a set of TensorFlow Datasets in data_dir, as 'cifar10'"
  )
  resize: int = field(0, 'height and width to make the images, 0 to leave them', low=0)
  max_examples: int = field(0, 'training images to take, validation included, 0 for all', low=0)
  valid_share: float = field(0.1, 'of the training images, to validate with; 5,000 of 50,000, Sec. 4.1', above=0.0)
  whiten: str = field(
    'image', "'image': each has mean 0 and variance 1; 'zca': all by the training images; Sec. 4.1 says neither",
    choices=image_batches.WHITENINGS,
  )  # fmt: skip
  upsample: int = field(0, 'pixels that images grow by before a random crop of their size, Sec. 4.1; 0: neither', low=0)
  flip: bool = field(False, 'turn images left to right at random, Sec. 4.1')
  pad: int = field(0, 'pixels of zeros around images before a random crop of their size, as Pham et al. (2018)', low=0)
  norm_first: bool = field(True, 'batch norm before the ReLU, else after it')
  batch: int = field(64, 'images of a training step, as Huang et al. (2016)', low=1)
  epochs: int = field(50, 'passes over the training images, Sec. 4.1', low=1)
  momentum: float = field(0.9, "Nesterov's, Sec. 4.1", low=0.0, high=1.0)
  schedule: str = field(
    'twice',
    "of the learning rate: 'twice' decays after decay_epoch epochs and after half as many more, 'epochs' after each "
    "from there on, 'cosine' to 0 at the end, 'restarts' in cosines of decay_epoch epochs, twice as many, ...",
    choices=schedules.SCHEDULES,
  )
  lr_decay: float = field(0.1, 'factor of each decay, as Huang et al. (2016)', above=0.0, high=1.0)
  score_batch: int = field(500, 'images of a validation step', low=1)

  removed: ClassVar[dict[str, Any]] = {'block': 1, 'pool_at': [0]}  # see `config.without_removed`


@dataclasses.dataclass
class BlockConfig(Config):
  """The same for networks of `space.conv_space`, and what such a network makes of the layers that are predicted."""

  block: int = field(1, 'layers, densely connected, that a predicted one stands for; 3 in the third experiment', low=1)
  pool_at: tuple[int, ...] = field((0,), 'from these layers on all is max pooled by 2; 13 and 24 there; 0: none', low=0)


def load(cfg: Config, data_dir: str = '') -> images_lib.Images:
  """The images that `cfg` names. Raises ValueError as `images.load_images`, and if there is not one whole batch."""
  found = images_lib.load_images(cfg.dataset, data_dir, cfg.valid_share, cfg.resize, cfg.max_examples)
  if len(found.train.labels) < cfg.batch:
    raise ValueError(f'batch (={cfg.batch}) is more than the {len(found.train.labels)} training images: take fewer.')
  return found


def network_options(cfg: BlockConfig, add_filters: int = 0) -> NetworkOptions:
  """What a network makes of the layers that are predicted."""
  return NetworkOptions(cfg.block, tuple(place for place in cfg.pool_at if place), add_filters)


class Setup(NamedTuple):
  """What a config makes of images and of training on them, whatever the network."""

  inputs: conv.InputSpec  # what a network must know of the images
  data: tuple[image_batches.Data, ...]  # the training images, with each split that is scored
  pass_steps: int  # training steps of a pass
  optimizer: Callable[[int], Callable[[conv.Hyperparameters], optax.GradientTransformation]]  # (training steps)


def inputs(cfg: Config, images: images_lib.Images) -> conv.InputSpec:
  """What a network must know of its images. A validation step has no more of them than there are."""
  augment = image_batches.Augment(cfg.upsample, cfg.flip, cfg.pad)
  size = min(cfg.score_batch, len(images.valid.labels))
  return conv.InputSpec(images.shape, images.classes, cfg.batch, size, augment, cfg.norm_first)


def set_up(
  cfg: Config,
  images: images_lib.Images,
  train: images_lib.Split | None = None,
  *scored: images_lib.Split,
  decayed: Callable[[PyTree], PyTree] | None = None,
) -> Setup:
  """All that training takes but a network.

  Args:
    cfg: of the images and the training.
    images: as `load` returns them.
    train: the images to train on; those of the training split by default.
    *scored: the splits to score, each in turn where validation stands; the validation split by default.
    decayed: (params) -> a bool for each weight, whether the optimizer decays it; for a child without weight decay in
      its loss. It cannot be had together with the argument `quick` of `fitter`.
  """
  spec = inputs(cfg, images)
  data = image_batches.lay_out(train or images.train, scored or (images.valid,), spec.score_batch, cfg.whiten)
  pass_steps = len(data[0].labels) // cfg.batch

  def optimizer(steps: int) -> Callable[[conv.Hyperparameters], optax.GradientTransformation]:
    def of(own: conv.Hyperparameters) -> optax.GradientTransformation:
      rate = schedules.rate(cfg.schedule, own.lr, steps, pass_steps, own.decay_epoch, cfg.lr_decay)
      descent = optax.sgd(rate, momentum=cfg.momentum, nesterov=True)
      return optax.chain(optax.add_decayed_weights(own.weight_decay, decayed), descent) if decayed else descent

    return of

  return Setup(spec, tuple(data), pass_steps, optimizer)


def problem(
  setup: Setup,
  space: Space,
  network: Child,
  hyperparameters: Callable[[PyTree], conv.Hyperparameters],
  epochs: int,
  last_epochs: int = 1,
  reward_power: float = 1.0,
) -> Problem:
  """The problem of a search for networks, each of which has a program of its own.

  Args:
    setup: the images and the training.
    space: of the architectures.
    network: the child, whose arch is a `conv.ChildSpec`.
    hyperparameters: (arch) -> those of its child.
    epochs: passes over the training images that train a child.
    last_epochs: the best accuracy after one of so many last epochs counts.
    reward_power: the reward is accuracy to this power.
  """

  def spec(arch: PyTree) -> conv.ChildSpec:
    return conv.ChildSpec(arch, hyperparameters(arch))

  def optimizer(steps: int) -> Callable[[PyTree], optax.GradientTransformation]:
    make = setup.optimizer(steps)
    return lambda arch: make(hyperparameters(arch))

  return Problem(
    space,
    child_lib.bind_arch(network, spec),
    setup.data[0],
    optimizer,
    steps=epochs * setup.pass_steps,
    pass_steps=setup.pass_steps,
    steps_per_call=setup.pass_steps,
    metric='accuracy',
    reward=lambda accuracy: rewards.of_accuracy(accuracy, reward_power),
    scored=last_epochs,
    program='specialised',
    quick=True,
  )


def fitter(
  setup: Setup,
  child: Child,
  hyperparameters: Callable[[PyTree], conv.Hyperparameters],
  steps: int,
  mesh: Mesh | None = None,
  quick: bool = False,
) -> fit.Fit:
  """The programs that train `child`, an epoch a call; `hyperparameters` finds those of a child in its arch."""
  optimizer = setup.optimizer(steps)
  return fit.fitter(child, lambda arch: optimizer(hyperparameters(arch)), steps, setup.pass_steps, mesh, quick=quick)
