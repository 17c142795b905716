"""Searches with shared weights for image classifiers, macro and micro: Pham et al. (2018), Sec. 2.3 to 2.5 and 3.2."""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import optax

from nas_jax import config, search, space
from nas_jax.children import conv, enas_layers, enas_macro, enas_micro
from nas_jax.config import field
from nas_jax.controller import PENALTIES
from nas_jax.datasets import image_batches
from nas_jax.datasets import images as images_lib
from nas_jax.search import weight_sharing
from nas_jax.systems import classifier, enas
from nas_jax.training import child as child_lib
from nas_jax.training import schedules
from nas_jax.training.child import Child
from nas_jax.training.costs import Count
from nas_jax.training.problem import Problem
from nas_jax.training.rewards import Reward
from nas_jax.types import Key, PyTree


@dataclasses.dataclass
class Config(classifier.Config, weight_sharing.Config):
  """The fields of macro and micro search. Defaults are the paper's or its code's, unless the help says otherwise."""

  epochs: int = field(
    3, 'passes over the training images when a network is trained from scratch, for comparison', low=1
  )
  filters: int = field(36, 'filters of the first layers; 36 in macro and 20 in micro search', low=1)
  keep: float = field(
    0.9, 'share of the features that dropout keeps for the classifier in training', above=0.0, high=1.0
  )
  norm: str = field(
    'batch',
    "statistics of batch norm in scoring: those of the 'batch' that is scored, or 'moving' averages",
    choices=('batch', 'moving'),
  )
  lr: float = field(0.05, 'learning rate of the shared weights', above=0.0)
  lr_end: float = field(0.001, "least learning rate, in the schedules 'cosine' and 'restarts'", low=0.0)
  decay_epoch: float = field(
    10.0,
    "passes of the first cosine in the schedule 'restarts'; passes until the rate first decays in 'twice' and 'epochs'",
    above=0.0,
  )
  clip: float = field(5.0, 'norm to which the gradient of the shared weights is clipped', above=0.0)
  weight_decay: float = field(
    5e-4,
    'L2 regularization: this times the shared weights, whether a child uses them or not, is added to the gradient. The '
    "code of Pham et al. (2018) adds 2.5e-4 times the weights' squares to the loss in macro search and 1e-4 in micro "
    'search, which is twice that in the gradient',
    low=0.0,
  )
  decay_norms: bool = field(
    True, 'apply weight_decay to batch norm and biases too, as the code of Pham et al. (2018), and not to kernels alone'
  )
  decay_before_clip: bool = field(
    True, 'add weight_decay to the gradient before it is clipped, as the code of Pham et al. (2018), and not after'
  )
  epsilon: float = field(1e-5, 'added to the variance in batch norm', above=0.0)
  reward_power: float = field(1.0, 'the reward is the validation accuracy to this power', above=0.0)

  added: ClassVar[dict[str, Any]] = {'decay_norms': False, 'decay_before_clip': False}  # see `config.with_added`


@dataclasses.dataclass
class MacroConfig(Config):
  """Whole networks: an operation and skips for each layer."""

  layers: int = field(12, 'layers of a network, L', low=1)
  operations: tuple[str, ...] = field(space.enas.MACRO_OPERATIONS, 'operations to choose from for each layer')
  skip_weight: float = field(
    0.8, 'weight in the loss of the KL divergence of skip probabilities from skip_target, in nats', low=0.0
  )
  skip_penalty: str = field(
    'mean',
    "what skip_weight multiplies: the 'mean' over layers of the divergence of a layer's skips, as in the code of Pham "
    "et al. (2018), or the 'sum' over layers",
    choices=PENALTIES,
  )


@dataclasses.dataclass
class MicroConfig(Config):
  """Cells, which are stacked to make networks."""

  blocks: int = field(5, 'blocks of a cell', low=1)
  cells: int = field(6, 'normal cells of a network; two reduction cells come in between', low=1, high=128)
  operations: tuple[str, ...] = field(space.enas.MICRO_OPERATIONS, 'operations to choose from in each block')
  drop_path: float = field(
    1.0,
    'share of images for which drop path keeps an operation of the last cell in training; 1 for no drop path, as in '
    'the searches of Pham et al. (2018)',
    above=0.0,
    high=1.0,
  )


# The paper gives a weight of 0.1 for the entropy and does not say of which entropy. With the entropy of a whole token
# sequence that weight outweighs rewards from 0 to 1, and the controller learns nothing. The weight here is that of the
# released scripts.
_PAPER: dict[str, Any] = enas.PAPER | {
  'dataset': 'cifar10',
  'whiten': 'channel',
  'pad': 4,
  'flip': True,
  'schedule': 'restarts',
  'entropy_weight': 1e-4,
}


def paper_macro() -> MacroConfig:
  """CIFAR-10 as in Sec. 3.2, 310 passes. Not run here at this size."""
  return MacroConfig(batch=128, passes=310, norm='moving', **_PAPER)


def paper_micro() -> MicroConfig:
  """CIFAR-10 as in Sec. 3.2, 150 passes, without the paper's auxiliary classifier. Not run here at this size."""
  return MicroConfig(batch=160, passes=150, filters=20, weight_decay=2e-4, **_PAPER)


# For short searches. Unlike in the paper, weight decay acts on kernels alone and is added after clipping the gradient:
# the results in docs/results.md were measured with these settings.
_SHORT: dict[str, Any] = enas.SHORT | {
  'schedule': 'cosine',
  'lr_end': 0.0,
  'weight_decay': 2.5e-4,
  'decay_norms': False,
  'decay_before_clip': False,
}
_SHORT_MACRO: dict[str, Any] = _SHORT | {'skip_weight': 0.1, 'skip_penalty': 'sum'}


def small_macro() -> MacroConfig:
  """CIFAR-10 at 16 x 16, a fifth of the images: about an hour on two cores."""
  return MacroConfig(
    layers=6, filters=16, dataset='cifar10', resize=16, max_examples=10_000, flip=True, batch=64, passes=20,
    controller_updates=50, score_batch=250, **_SHORT_MACRO,
  )  # fmt: skip


def small_micro() -> MicroConfig:
  """The search for cells on the images of `small_macro`, in about the same time."""
  return MicroConfig(
    blocks=3, cells=3, filters=8, dataset='cifar10', resize=16, max_examples=10_000, flip=True, batch=64, passes=20,
    controller_updates=50, score_batch=250, **_SHORT,
  )  # fmt: skip


def demo_macro() -> MacroConfig:
  """Takes minutes on a laptop, without a download: scikit-learn's digits, 8 x 8."""
  return MacroConfig(
    layers=4, filters=8, valid_share=0.25, batch=32, passes=60, controller_updates=10, lr=0.1, score_batch=90,
    **_SHORT_MACRO,
  )  # fmt: skip


def demo_micro() -> MicroConfig:
  """The search for cells on the images of `demo_macro`."""
  return MicroConfig(
    blocks=2, cells=2, filters=8, valid_share=0.25, batch=32, passes=60, controller_updates=10, lr=0.1, score_batch=90,
    **_SHORT,
  )  # fmt: skip


_SMOKE: dict[str, Any] = {
  'm': 2,
  'controller_units': 8,
  'filters': 2,
  'max_examples': 200,
  'batch': 30,
  'passes': 2,
  'controller_updates': 2,
  'derive_children': 3,
  'rank_children': 4,
  'epochs': 1,
  'score_batch': 20,
}


def smoke_macro() -> MacroConfig:
  """Takes seconds: a test that everything runs."""
  return MacroConfig(layers=3, operations=('conv 3', 'max pool 3'), **_SMOKE)


def smoke_micro() -> MicroConfig:
  """Takes seconds: a test that everything runs."""
  return MicroConfig(blocks=1, cells=1, operations=('identity', 'max pool 3'), **_SMOKE)


MACRO_PRESETS = {'paper': paper_macro, 'small': small_macro, 'demo': demo_macro, 'smoke': smoke_macro}
MICRO_PRESETS = {'paper': paper_micro, 'small': small_micro, 'demo': demo_micro, 'smoke': smoke_micro}


def make_space(cfg: Config) -> space.Space:
  """Returns the space that `cfg` describes. Raises ValueError as the functions of `space` do."""
  if isinstance(cfg, MicroConfig):
    return space.enas_micro_space(cfg.blocks, cfg.operations)
  assert isinstance(cfg, MacroConfig)
  return space.enas_macro_space(cfg.layers, cfg.operations)


def network(cfg: Config, inputs: conv.InputSpec) -> tuple[Child, Count]:
  """Returns the network that contains all children, whose arch is a `conv.ChildSpec`, and what counts their costs."""
  if isinstance(cfg, MicroConfig):
    cells = enas_micro.NetworkOptions(
      cfg.cells, cfg.filters, cfg.blocks, cfg.operations, cfg.keep, cfg.drop_path, cfg.norm
    )
    return enas_micro.build(inputs, cells), enas_micro.counter(inputs, cells)
  assert isinstance(cfg, MacroConfig)
  layers = enas_macro.NetworkOptions(cfg.layers, cfg.filters, cfg.operations, cfg.keep, cfg.norm)
  return enas_macro.build(inputs, layers), enas_macro.counter(inputs, layers)


def check(cfg: Config) -> None:
  """Raises ValueError, before anything compiles, if a field has an impossible value; the message says what fits."""
  config.check(cfg)
  if not cfg.norm_first:
    raise ValueError('norm_first (=False) is for networks of other spaces: ENAS fixes where batch norm stands.')
  enas.check(make_space(cfg), cfg)


def make_problem(cfg: Config, images: images_lib.Images) -> Problem:
  """Returns the problem on which the children are trained. Raises ValueError as `check`.

  >>> from nas_jax.systems import classifier, enas_images
  >>> cfg = enas_images.smoke_macro()
  >>> problem = enas_images.make_problem(cfg, classifier.load(cfg))
  >>> cfg.layers, len(cfg.operations), problem.space.size() == 2**3 * 2**3
  (3, 2, True)
  """
  check(cfg)
  inputs, made = classifier.inputs(cfg, images), make_space(cfg)

  def init() -> PyTree:
    arch = made.decode_batch(jnp.zeros(made.length, jnp.int32))
    return network(cfg, inputs)[0].init(conv.ChildSpec(arch, conv.Hyperparameters(0, 0, 0, 0)), jax.random.key(0))

  weights = child_lib.count_weights(init)
  child_lib.check_weights(weights, 'fewer filters, layers, cells or blocks.')
  setup = classifier.set_up(cfg, images)
  child, count = network(cfg, setup.inputs)
  own = conv.Hyperparameters(cfg.lr, cfg.decay_epoch, cfg.weight_decay, cfg.epsilon)
  found = classifier.make_problem(setup, made, child, lambda arch: own, cfg.epochs, reward_power=cfg.reward_power)

  def optimizer(steps: int) -> Callable[[PyTree], optax.GradientTransformation]:
    """Makes the optimizer of the shared weights, or of the weights of a network trained by itself."""
    rate = schedules.rate(cfg.schedule, cfg.lr, steps, setup.pass_steps, cfg.decay_epoch, cfg.lr_decay, cfg.lr_end)
    clip = optax.clip_by_global_norm(cfg.clip)
    decay = optax.add_decayed_weights(
      cfg.weight_decay, mask=functools.partial(enas_layers.decayed, norms=cfg.decay_norms)
    )
    before = (decay, clip) if cfg.decay_before_clip else (clip, decay)
    made = optax.chain(*before, optax.sgd(rate, momentum=cfg.momentum, nesterov=True))
    return lambda arch: made

  steps, size = cfg.pass_steps or setup.pass_steps, setup.inputs.score_batch
  return found._replace(
    optimizer=optimizer,
    steps=cfg.epochs * steps,
    pass_steps=steps,
    steps_per_call=steps,
    program='generic',
    cost_of=count,
    traced=lambda archs: found.child,
    minibatch=lambda data, key: part_of(data, size, len(images.valid.labels), key),
  )


def build(
  cfg: Config, images: images_lib.Images, mesh: Mesh | None = None, reward: Reward | None = None
) -> search.Search:
  """Returns the search. Raises ValueError as `make_problem`.

  Args:
    cfg: the config.
    images: the data set.
    mesh: the devices to use, as in `enas.build_programs`.
    reward: (metrics of m children, [m] each) -> rewards [m]; by default the metric that `cfg` names, to its power.
      It is traced, so it must use `jax.numpy`.
  """
  problem = make_problem(cfg, images)._replace(reward_of=reward)
  return enas.build(problem, cfg, enas.build_programs(problem, cfg, mesh))


def part_of(data: image_batches.Data, size: int, count: int, key: Key) -> image_batches.Data:
  """Returns `data` with a random minibatch of `size` of its `count` validation images as its validation split.

  The arrays may be longer than `count`, filled up at their end.
  """
  start = jax.random.randint(key, (), 0, count - size + 1)

  def cut(x):
    return jax.lax.dynamic_slice_in_dim(x, start, size)

  return data._replace(valid_images=cut(data.valid_images), valid_labels=cut(data.valid_labels))
