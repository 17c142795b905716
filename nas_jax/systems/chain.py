"""Augmented search: chains of layers, each rewarded for the network that ends with it (Olga Xu)."""

from collections.abc import Callable
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
from nas_jax.training import evaluators, fit, rewards
from nas_jax.training.recovery import NO_RECOVERY, Limits, Recovery
from nas_jax.types import Array, Batch, Outcome


@dataclasses.dataclass
class Config(classifier.Config, Limits, per_layer.Config):
  """The search, its children, and how they are trained. What Xu's poster does not say is ours, and most is."""

  layers: tuple[str, ...] = field(
    default_layers(), "choices of each token: 'conv CHANNELS KERNEL STRIDE', 'max pool KERNEL STRIDE', ...; 24 in Xu"
  )
  max_depth: int = field(15, 'layers of the deepest chains, Xu', low=1)
  depth_step: int = field(1, 'layers more each time', low=1)
  depth_every: int = field(40, 'children until the next', low=1)
  epochs: int = field(8, 'passes over the training images, of the last children', low=1)
  epochs_start: int = field(0, 'of the first children, 0 for as many from the start', low=0)
  epochs_every: int = field(100, 'children until there is one more', low=1)
  lr: float = field(0.1, 'of the children', above=0.0)
  decay_epoch: float = field(25.0, "epochs at that rate, in the schedules 'twice' and 'epochs'", low=0.0)
  weight_decay: float = field(1e-4, 'of kernels and classifier', low=0.0)
  epsilon: float = field(1e-5, 'of batch norm', above=0.0)
  last_epochs: int = field(1, 'the reward is the best validation accuracy of the last epochs, so many', low=1)
  reward_power: float = field(1.0, 'to this power', above=0.0)
  max_children: int = field(437, 'children to train, prefixes of all lengths: as many as Xu', low=1, budget=True)
  reliability_children: int = field(20, 'random networks trained twice before, 0 for none', low=0, budget=True)
  yardstick_repeats: int = field(2, 'trainings of each known network after it, 0 for none', low=0, budget=True)


def paper_cifar10() -> Config:
  """CIFAR-10 with 24 layers to choose from, 15 deep at the end. Not run here.

  The poster grows depth and training "gradually" and says neither from where nor how fast, nor the batch of strings.
  """
  return Config(
    m=1, controller_lr=5e-3, depth_start=3, depth_every=36, dataset='cifar10', upsample=4, flip=True, epochs_start=4,
    schedule='cosine',
  )  # fmt: skip


def paper_mnist() -> Config:
  """The same on MNIST, whose images are not turned round."""
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
  """Minutes on a laptop, no download: scikit-learn's digits, 8 x 8."""
  narrow = tuple(word for word in _SMALL if ' 32 ' not in word)
  return Config(
    m=1, controller_lr=2e-2, entropy_weight=0.02, depth_start=2, depth_every=20, max_depth=5, layers=narrow,
    valid_share=0.25, batch=16, epochs=2, lr=0.3, schedule='cosine', max_children=100,
  )  # fmt: skip


def smoke() -> Config:
  """Seconds: does everything run?"""
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
  """The space that `cfg` describes. Raises ValueError as `space.chain_space`."""
  return space.chain_space(cfg.layers, cfg.max_depth)


def length(cfg: Config) -> str:
  """How long a child is trained, in words."""
  grown = cfg.epochs_start and cfg.epochs_start < cfg.epochs
  return f'{f"{cfg.epochs_start} to " if grown else ""}{cfg.epochs} epoch{"s" if cfg.epochs > 1 else ""}'


def scale_budget(cfg: Config, times: int) -> Config:
  """`cfg` with children trained so many times as long."""
  more = {name: times * getattr(cfg, name) for name in ('epochs', 'epochs_start', 'decay_epoch')}
  return dataclasses.replace(cfg, **more)


def epochs_of(cfg: Config, trained: Array) -> Array:
  """Epochs of the next child after so many: they grow gradually, Xu."""
  return jnp.asarray(
    jnp.minimum(cfg.epochs, cfg.epochs_start + trained // cfg.epochs_every) if cfg.epochs_start else cfg.epochs,
    jnp.int32,
  )


def build(
  cfg: Config, images: images_lib.Images, mesh: Mesh | None = None, recovery: Recovery = NO_RECOVERY
) -> search.Search:
  """The search. Raises ValueError, before anything compiles, on a field that cannot be."""
  check(cfg, images)
  return rebuild(make_space(cfg), cfg, build_trainer(cfg, images, mesh, recovery))


def rebuild(made: space.Space, cfg: Config, trainer) -> search.Search:
  """A search whose children are trained by the `train` of another."""
  return per_layer.build(made, cfg, trainer, functools.partial(epochs_of, cfg))


def check(cfg: Config, images: images_lib.Images) -> None:
  """Raises ValueError, naming the field and what fits."""
  config.check(cfg)
  search.check(make_space(cfg), cfg)
  del images
  least = cfg.epochs_start or cfg.epochs
  if not cfg.last_epochs <= least <= cfg.epochs:
    raise ValueError(
      f'last_epochs (={cfg.last_epochs}), epochs_start (={cfg.epochs_start}) and epochs (={cfg.epochs}) must not fall.'
    )


def build_trainer(
  cfg: Config, images: images_lib.Images, mesh: Mesh | None = None, recovery: Recovery = NO_RECOVERY
) -> Callable[[Batch], Outcome]:
  """What scores chains, each by a program of its own: the one budget that all comparisons are on.

  Without a `per_layer.Group` that says how long, for all of the epochs.
  """
  (data,) = classifier.lay_out(cfg, images, images.train, images.valid)
  child = conv.build(classifier.problem(cfg, images))
  own_settings = conv.Hyperparameters(cfg.lr, cfg.decay_epoch, cfg.weight_decay, cfg.epsilon)
  devices = None if mesh is None else list(mesh.devices.flat)

  def reward(metrics: dict[str, np.ndarray]) -> np.ndarray:
    return rewards.of_accuracy(metrics['accuracy'], cfg.reward_power)

  @functools.cache
  def for_epochs(epochs: int):
    def own(arch: ChainArch, mesh: Mesh) -> fit.Fit:
      planned = child_lib.bind_arch(child, lambda _: conv.ChildSpec(arch, own_settings))
      steps = epochs * (len(data.labels) // cfg.batch)
      return classifier.fitter(cfg, data, planned, lambda _: own_settings, steps, mesh, cfg.last_epochs, quick=True)

    if cfg.warm_start:
      return evaluators.warm_started(
        own, data, reward, conv.warm_start_params, devices[0] if devices else None, recovery
      )
    return evaluators.static_programs(own, data, reward, devices, recovery)

  def trainer(batch: Batch) -> Outcome:
    group = batch.extra if isinstance(batch.extra, per_layer.Group) else None
    outcome = for_epochs(group.length if group else cfg.epochs)(batch)
    if group:
      same = {'string': group.string, 'epochs': group.length}
      outcome.metrics.update({name: np.full(len(batch.ids), value) for name, value in same.items()})
    return outcome

  return trainer


def why_unsupported(cfg: Config, arch: ChainArch) -> str:
  """Why the search cannot train a network that is none of its own, '' if it can: it can."""
  del cfg, arch
  return ''


def references(
  cfg: Config, images: images_lib.Images, s: search.Search, recovery: Recovery = NO_RECOVERY
) -> dict[str, evaluators.Known]:
  """Networks that nobody searched for, trained just as the children are: the same convolution in every layer."""
  del images, recovery
  plain = next((word for word in cfg.layers if word.endswith(' 3 1')), cfg.layers[0])
  code = dict(zip(s.space.slots[0].labels, s.space.slots[0].values, strict=True))[plain]
  return {
    f'{depth} x {plain}': evaluators.Known(ChainArch((code,) * depth), s.train)
    for depth in {1, (cfg.max_depth + 1) // 2}
  }
