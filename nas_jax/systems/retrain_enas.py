"""How networks found with shared weights are retrained: larger, and from new weights, Pham et al. (2018)."""

import dataclasses
import functools
from typing import Any, ClassVar

import jax
from jax.sharding import Mesh

from nas_jax import config, export, published
from nas_jax.children import conv, enas_layers, enas_macro, enas_micro
from nas_jax.config import field
from nas_jax.datasets import images as images_lib
from nas_jax.space.enas import MacroArch, MicroArch
from nas_jax.systems import classifier, retrain, retrain_conv
from nas_jax.training import child as child_lib
from nas_jax.training import full_training
from nas_jax.training.child import Child
from nas_jax.types import PyTree

KNOWN = {'ENAS_MICRO': published.ENAS_MICRO}
Arch = MacroArch | MicroArch


@dataclasses.dataclass
class Config(retrain_conv.Config):
  """The config of `retrain_conv` with the sizes of ENAS. Fields that do not apply here must keep their defaults."""

  filters: tuple[int, ...] = field(
    (36,), 'sizes to train: filters of the first layers; the grid is at the first size', low=1, budget=True, first=True
  )
  weights: tuple[str, ...] = field(
    (),
    'sizes to train, instead of filters: numbers of weights as 100k or 4.65M. The number of filters is taken that '
    'brings each network nearest to so many weights',
    budget=True,
    first=True,
  )
  cells: int = field(15, 'normal cells of a network of cells', low=1, high=128)
  keep: float = field(
    0.8, 'share of the features that dropout keeps for the classifier in training', above=0.0, high=1.0
  )
  drop_path: float = field(
    0.6, 'share of the images for which drop path keeps an operation of the last cell; it falls from 1 over the cells',
    above=0.0, high=1.0,
  )  # fmt: skip
  concat: bool = field(True, 'concatenate the skips of a whole network; otherwise add them')
  double: bool = field(True, 'double the filters after each reduction of a whole network; networks of cells always do')
  weight_decay: tuple[float, ...] = field(
    (1e-4,),
    'weight decays to try: each times the weights is added to the gradient. Pham et al. (2018) add 2e-4 times the '
    "weights' squares to the loss, which is 4e-4 in the gradient",
    low=0.0,
  )
  decay_norms: bool = field(
    False,
    'apply weight_decay to batch norm and biases too, as the code of Pham et al. (2018), and not to kernels alone',
  )
  lr_min: float = field(
    0.0,
    "learning rate that the schedules 'cosine' and 'restarts' fall to; in the code of Pham et al. (2018) 0.0001 for "
    'networks of cells and 0.001 for whole networks',
    low=0.0,
  )

  added: ClassVar[dict[str, Any]] = {'decay_norms': False, 'lr_min': 0.0}  # see `config.with_added`


def paper() -> Config:
  """The network of cells on CIFAR-10, without the auxiliary classifier; never run here at this size."""
  return Config(
    dataset='cifar10', whiten='channel', pad=4, flip=True, batch=144, epochs=630, schedule='restarts', lr=(0.05,),
    lr_min=1e-4, decay_epoch=(10.0,), weight_decay=(4e-4,), decay_norms=True,
  )  # fmt: skip


def paper_macro() -> Config:
  """The whole network on CIFAR-10; never run here at this size. The paper's has 24 layers."""
  return dataclasses.replace(paper(), filters=(96,), keep=0.5, batch=100, epochs=310, lr_min=1e-3)


def small() -> Config:
  """All of CIFAR-10 at 16 x 16."""
  return Config(
    dataset='cifar10', resize=16, flip=True, batch=64, epochs=8, schedule='cosine', lr=(0.05,), decay_epoch=(10.0,),
    filters=(8,), cells=3, keep=0.9, drop_path=1.0,
  )  # fmt: skip


def demo() -> Config:
  """Takes minutes on a laptop, without a download: scikit-learn's digits."""
  return Config(
    valid_share=0.25, batch=16, epochs=10, schedule='cosine', filters=(8,), cells=3, keep=0.9, drop_path=1.0,
    lr=(0.02, 0.05), grid_epochs=3, repeats=2,
  )  # fmt: skip


def smoke() -> Config:
  """Takes seconds, most of them for compilation: a test that everything runs."""
  return Config(
    max_examples=200, batch=30, epochs=2, schedule='cosine', filters=(2,), cells=1, drop_path=1.0, lr=(0.05, 0.1),
    grid_epochs=1,
  )  # fmt: skip


PRESETS = {'paper': paper, 'paper_macro': paper_macro, 'small': small, 'demo': demo, 'smoke': smoke}


def check(cfg: Config) -> None:
  """Raises ValueError, naming the field, on an impossible value."""
  config.check(cfg)
  retrain_conv.check_weights(cfg, 'filters')
  retrain_conv.check_restarts(cfg)
  fresh = Config()
  for name in ('add_filters', 'block', 'pool_at', 'norm_first'):
    if getattr(cfg, name) != getattr(fresh, name):
      raise ValueError(f'{name} (={getattr(cfg, name)}) is for networks of other spaces: leave {getattr(fresh, name)}.')


def validate(cfg: Config, images: images_lib.Images, arch: Arch) -> None:
  """Raises ValueError, before anything compiles, if there is no such network or module, or the data do not fit."""
  retrain_conv.check_images(cfg, images)
  found = [first_filters(cfg, images, arch, size) for size in sizes(cfg)]
  weights = _weights(_build(cfg, images, arch, max(found)), arch)
  child_lib.check_weights(weights, 'fewer filters or cells.')
  retrain_conv.check_module(images, arch, _options(cfg, images, arch, found[0], cfg.epsilon[0]))


def sizes(cfg: Config) -> list[str]:
  """Returns the sizes to train at: numbers of weights such as '100k' if there are any, else of filters."""
  return list(cfg.weights) or [str(filters) for filters in cfg.filters]


def first_filters(cfg: Config, images: images_lib.Images, arch: Arch, size: str) -> int:
  """Returns the number of filters in the first layers of a network of this size.

  A `size` of weights, such as '100k', is the number that brings the network nearest to so many weights. Raises
  ValueError if it has more weights even with one filter. Nothing is compiled.
  """
  wanted = retrain.parse_weights(size)
  if wanted is None:
    return int(size)
  # Counting takes seconds for a large network. Kernels grow with the square of the filters, all else with their number:
  # three counts determine all others.
  one, two, three = (_weights(_build(cfg, images, arch, filters), arch) for filters in (1, 2, 3))

  def count(filters: int) -> int:
    more = filters - 1
    return one + more * (two - one) + more * (more - 1) // 2 * (three - 2 * two + one)

  return retrain_conv.nearest_size(count, size, wanted, least=1)


def task(
  cfg: Config,
  images: images_lib.Images,
  arch: Arch,
  size: str,
  epochs: int,
  final: bool = False,
  mesh: Mesh | None = None,
) -> full_training.Task:
  """Returns the task of training a network of a size, as `first_filters` takes it; see `retrain_conv.training`."""
  filters = first_filters(cfg, images, arch, size)
  network = _build(cfg, images, arch, filters)
  weights = _weights(network, arch)
  decayed = functools.partial(enas_layers.decayed, norms=cfg.decay_norms)
  common = cfg, images, network, arch, str(filters), weights, epochs, final, mesh
  return retrain_conv.training(*common, decayed=decayed, least=cfg.lr_min)


def _build(cfg: Config, images: images_lib.Images, arch: Arch, filters: int) -> Child:
  inputs = classifier.inputs(cfg, images)
  if isinstance(arch, MacroArch):
    whole = enas_macro.NetworkOptions(len(arch.operation), filters, keep=cfg.keep, double=cfg.double, concat=cfg.concat)
    return enas_macro.build(inputs, whole)
  blocks = len(arch.normal_input) // 2
  return enas_micro.build(
    inputs, enas_micro.NetworkOptions(cfg.cells, filters, blocks, keep=cfg.keep, drop_path=cfg.drop_path)
  )


def _weights(network: Child, arch: PyTree) -> int:
  spec = conv.ChildSpec(arch, conv.Hyperparameters(0.0, 0.0, 0.0, 0.0))
  return child_lib.count_weights(lambda: network.init(spec, jax.random.key(0)))


def card(cfg: Config, images: images_lib.Images, arch: Arch, size: str, point: retrain_conv.Point) -> export.Card:
  """Returns the description of a trained network, without dropout and drop path, which act in training alone."""
  options = _options(cfg, images, arch, first_filters(cfg, images, arch, size), point.epsilon)
  return export.Card(arch, options, retrain_conv.image_inputs(cfg, images))


def _options(cfg: Config, images: images_lib.Images, arch: Arch, filters: int, epsilon: float) -> dict[str, Any]:
  """Returns the options of the Flax module."""
  own = {'double': cfg.double, 'concat': cfg.concat} if isinstance(arch, MacroArch) else {'cells': cfg.cells}
  return {'classes': images.classes, 'epsilon': epsilon, 'filters': filters} | own


RECIPE = retrain.Recipe(
  Config,
  PRESETS,
  KNOWN,
  metric='error',
  point=retrain_conv.Point,
  check=check,
  validate=validate,
  sizes=sizes,
  task=task,
  hyperparameters=retrain_conv.hyperparameters,
  describe=retrain_conv.describe,
  setting=retrain_conv.setting,
  card=card,
)
