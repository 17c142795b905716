"""Augmented search (Olga Xu): chains of layers, where each layer gets the reward of the network that ends with it."""

import dataclasses
import functools

import jax.numpy as jnp
from jax.sharding import Mesh
import numpy as np

from nas_jax import config, search, space
from nas_jax.children import conv
from nas_jax.config import field
from nas_jax.datasets import images as images_lib
from nas_jax.search import per_layer
from nas_jax.space import ChainArch
from nas_jax.space.chain import default_layers
from nas_jax.systems import classifier
from nas_jax.training import child as child_lib
from nas_jax.training import comparisons, costs, evaluators, halving, schedules
from nas_jax.training.problem import Problem
from nas_jax.training.recovery import NO_RECOVERY, Limits, Recovery
from nas_jax.training.rewards import Reward
from nas_jax.types import Array, Batch, Evaluate, Outcome
from nas_jax.words import counted


@dataclasses.dataclass
class Config(classifier.Config, costs.Config, Limits, comparisons.Config, halving.Config, per_layer.Config):
  """The search, its children, and how they are trained. Xu's poster gives few of the values; the others are ours."""

  layers: tuple[str, ...] = field(
    default_layers(), "layers to choose from: 'conv CHANNELS KERNEL STRIDE', 'max pool KERNEL STRIDE', ...; 24 in Xu"
  )
  max_depth: int = field(15, 'layers of the deepest chains, Xu', low=1)
  depth_step: int = field(1, 'layers by which the depth of the chains grows each time', low=1)
  depth_every: int = field(40, 'number of children between two increases of the depth', low=1)
  epochs: int = field(8, 'passes over the training images for each of the last children', low=1)
  epochs_start: int = field(
    0, 'passes for each of the first children; 0 trains all children as long as the last', low=0
  )
  epochs_every: int = field(100, 'number of children after which the passes grow by one', low=1)
  lr: float = field(0.1, 'learning rate of the children', above=0.0)
  decay_epoch: float = field(
    25.0, "epochs until the learning rate first decays, in the schedules 'twice' and 'epochs'", low=0.0
  )
  weight_decay: float = field(1e-4, 'weight decay of kernels and classifier', low=0.0)
  epsilon: float = field(1e-5, 'added to the variance in batch norm', above=0.0)
  last_epochs: int = field(1, 'how many of the last epochs are scored on validation; the best accuracy counts', low=1)
  reward_power: float = field(1.0, 'the reward is the validation accuracy to this power', above=0.0)
  max_children: int = field(
    437, 'children to train, which are prefixes of all lengths; as many as Xu', low=1, budget=True, first=True
  )


def paper_cifar10() -> Config:
  """CIFAR-10 with 24 layers to choose from, 15 deep at the end. Not run here.

  The poster says that depth and training grow "gradually". It gives neither their first values nor how fast they grow,
  nor how many token sequences make a batch.
  """
  return Config(
    m=1, controller_lr=5e-3, depth_start=3, depth_every=36, dataset='cifar10', upsample=4, flip=True, epochs_start=4,
    schedule='cosine',
  )  # fmt: skip


def paper_mnist() -> Config:
  """The preset `paper_cifar10` on MNIST, with shorter trainings; its images are not flipped."""
  return dataclasses.replace(paper_cifar10(), dataset='mnist', flip=False, epochs_start=1, epochs=4)


_SMALL = (
  *(f'conv {channels} {kernel} {stride}' for channels in (8, 16, 32) for kernel in (3, 5) for stride in (1, 2)),
  *(f'residual {channels} 3 1' for channels in (8, 16, 32)),
  'average pool 2 2', 'max pool 2 2', 'max pool 3 2',
)  # fmt: skip


def small() -> Config:
  """CIFAR-10 in about 90 minutes on two cores: 16 x 16 pixels, a fifth of the images, few channels."""
  return Config(
    m=1, controller_lr=2e-2, entropy_weight=0.02, depth_start=3, depth_every=25, max_depth=8, layers=_SMALL,
    dataset='cifar10', resize=16, max_examples=10_000, flip=True, batch=32, epochs=4, schedule='cosine',
    max_children=150,
  )  # fmt: skip


def demo() -> Config:
  """Takes minutes on a laptop, without a download: scikit-learn's digits, 8 x 8."""
  narrow = tuple(word for word in _SMALL if ' 32 ' not in word)
  return Config(
    m=1, controller_lr=2e-2, entropy_weight=0.02, depth_start=2, depth_every=20, max_depth=5, layers=narrow,
    valid_share=0.25, batch=16, epochs=2, lr=0.3, schedule='cosine', max_children=100,
  )  # fmt: skip


def smoke() -> Config:
  """Takes seconds: a test that everything runs."""
  return Config(
    m=2, controller_units=8, max_depth=2, layers=('conv 4 3 1', 'residual 4 3 1', 'max pool 2 2'), batch=30, epochs=1,
    lr=0.3, schedule='cosine', max_children=6, reliability_children=4, yardstick_repeats=1,
  )  # fmt: skip


PRESETS = {
  'paper_mnist': paper_mnist,
  'paper_cifar10': paper_cifar10,
  'small': small,
  'demo': demo,
  'smoke': smoke,
}


def make_space(cfg: Config) -> space.Space:
  """Returns the space that `cfg` describes. Raises ValueError as `space.chain_space`."""
  return space.chain_space(cfg.layers, cfg.max_depth)


def length(cfg: Config) -> str:
  """Returns in words how long a child is trained."""
  grown = cfg.epochs_start and cfg.epochs_start < cfg.epochs
  return f'{f"{cfg.epochs_start} to " if grown else ""}{counted(cfg.epochs, "epoch")}'


def scale_budget(cfg: Config, times: int) -> Config:
  """Returns `cfg` with children that are trained `times` times as long, their learning rate falling as much slower."""
  more = {name: times * getattr(cfg, name) for name in ('epochs', 'epochs_start')}
  return dataclasses.replace(cfg, **more, **schedules.stretched(cfg, times))


def epochs_of(cfg: Config, trained: Array) -> Array:
  """Returns how many epochs the next child trains after `trained` children. The number grows gradually, as in Xu."""
  return jnp.asarray(
    jnp.minimum(cfg.epochs, cfg.epochs_start + trained // cfg.epochs_every) if cfg.epochs_start else cfg.epochs,
    jnp.int32,
  )


def make_problem(cfg: Config, images: images_lib.Images) -> Problem:
  """Returns the problem on which the children are trained. Raises ValueError as `check`."""
  check(cfg)
  made = make_space(cfg)
  weights = space.count(classifier.widest(made), images.shape, images.classes).params
  child_lib.check_weights(weights, 'layers with fewer channels, or a smaller max_depth.')
  setup = classifier.set_up(cfg, images)
  own = conv.Hyperparameters(cfg.lr, cfg.decay_epoch, cfg.weight_decay, cfg.epsilon)
  budget = cfg.epochs, cfg.last_epochs, cfg.reward_power
  found = classifier.make_problem(setup, made, conv.build(setup.inputs), lambda arch: own, *budget)
  return found._replace(
    warm_start=conv.warm_start_params if cfg.warm_start else None,
    cost_of=costs.of_networks(images.shape, images.classes),
    bounds=costs.bounds(cfg),
    shaping=costs.shaping(cfg),
  )


def check(cfg: Config) -> None:
  """Raises ValueError, before anything compiles, if a field has an impossible value; the message says what fits."""
  config.check(cfg)
  search.check(make_space(cfg), cfg)
  costs.check(cfg)
  least = cfg.epochs_start or cfg.epochs
  if not cfg.last_epochs <= least <= cfg.epochs:
    raise ValueError(
      f'last_epochs (={cfg.last_epochs}), epochs_start (={cfg.epochs_start}) and epochs (={cfg.epochs}) must not fall.'
    )
  halving.check(cfg, cfg.max_children)
  if cfg.rungs > 1 and (least < cfg.epochs or cfg.warm_start):
    way = f'epochs_start (={cfg.epochs_start}) trains some for less' if least < cfg.epochs else 'warm_start does not'
    raise ValueError(f'rungs (={cfg.rungs}) compare children that train alike, each from the start, and {way}.')


def build(
  cfg: Config,
  images: images_lib.Images,
  mesh: Mesh | None = None,
  recovery: Recovery = NO_RECOVERY,
  reward: Reward | None = None,
) -> search.Search:
  """Returns the search. The arguments and errors are those of `conv.build`.

  >>> import jax
  >>> from nas_jax.systems import chain, classifier
  >>> cfg = chain.smoke()
  >>> s = chain.build(cfg, classifier.load(cfg))
  >>> batch = s.ask(s.init(jax.random.key(cfg.seed)))
  >>> cfg.m, batch.tokens.shape
  (2, (2, 2))
  """
  problem = make_problem(cfg, images)._replace(reward_of=reward)
  return build_search(problem.space, cfg, build_evaluator(problem, mesh, recovery))


def build_search(made: space.Space, cfg: Config, train: Evaluate) -> search.Search:
  """Returns the search whose children are scored by the evaluator `train`, which may be that of another search."""
  return per_layer.build(made, cfg, train, functools.partial(epochs_of, cfg))


def build_evaluator(problem: Problem, mesh: Mesh | None = None, recovery: Recovery = NO_RECOVERY) -> Evaluate:
  """Returns the evaluator of chains, each of which is trained by a program of its own.

  The `per_layer.Group` in a batch's `extra` says for how many epochs its children train; without a group they train for
  all epochs of the problem. The metrics `string` and `epochs` are copies of the group's `string` and `length`.
  """

  @functools.cache
  def for_epochs(epochs: int) -> Evaluate:
    return evaluators.build(problem._replace(steps=epochs * problem.pass_steps), mesh, recovery)

  def evaluate(batch: Batch) -> Outcome:
    group = batch.extra if isinstance(batch.extra, per_layer.Group) else None
    outcome = for_epochs(group.length if group else problem.steps // problem.pass_steps)(batch)
    if group:
      same = {'string': group.string, 'epochs': group.length}
      outcome.metrics.update({name: np.full(len(batch.ids), value) for name, value in same.items()})
    return outcome

  return evaluate


def why_unsupported(cfg: Config, arch: ChainArch) -> str:
  """Returns '': the children's programs can also train networks from outside the space."""
  del cfg, arch
  return ''


def references(
  cfg: Config, images: images_lib.Images, train: Evaluate, recovery: Recovery = NO_RECOVERY
) -> dict[str, evaluators.Known]:
  """Returns chains of the same convolution in every layer, to be scored by the evaluator `train` of the search."""
  del images, recovery
  plain = next((word for word in cfg.layers if word.endswith(' 3 1')), cfg.layers[0])
  slot = make_space(cfg).slots[0]
  code = dict(zip(slot.labels, slot.values, strict=True))[plain]
  return {
    f'{depth} x {plain}': evaluators.Known(ChainArch((code,) * depth), train) for depth in {1, (cfg.max_depth + 1) // 2}
  }
