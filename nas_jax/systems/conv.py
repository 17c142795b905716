"""Convolutional search, Zoph & Le (2017) Sec. 3.3 and 4.1: networks for images."""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any, ClassVar

from jax.sharding import Mesh

from nas_jax import config, replicas, search, space
from nas_jax.children import conv, conv_traced
from nas_jax.config import field
from nas_jax.datasets import images as images_lib
from nas_jax.space import ConvArch
from nas_jax.systems import classifier, equal_weights
from nas_jax.training import child as child_lib
from nas_jax.training import comparisons, costs, evaluators, halving, schedules, timing
from nas_jax.training.child import Child
from nas_jax.training.problem import Problem
from nas_jax.training.recovery import NO_RECOVERY, Limits, Recovery
from nas_jax.training.rewards import Reward
from nas_jax.types import Evaluate, PyTree
from nas_jax.words import counted


@dataclasses.dataclass
class Config(
  classifier.BlockConfig, costs.Config, Limits, comparisons.Config, halving.Config, replicas.Config, search.Config
):
  """The search, its children, and how they are trained. The defaults are the first experiment of Sec. 4.1."""

  max_depth: int = field(15, 'layers of the deepest children; 15, 20 and 13 in the three experiments of Table 1', low=1)
  filter_heights: tuple[int, ...] = field((1, 3, 5, 7), 'filter heights to choose from, Sec. 4.1', low=1)
  filter_widths: tuple[int, ...] = field((1, 3, 5, 7), 'filter widths to choose from, Sec. 4.1', low=1)
  filters: tuple[int, ...] = field((24, 36, 48, 64), 'numbers of filters to choose from, Sec. 4.1', low=1)
  strides: tuple[int, ...] = field(
    (1,), 'stride heights and widths to choose from; 1,2,3 in the second experiment, 1 for no such choice', low=1
  )
  layer_types: tuple[str, ...] = field(
    ('conv',),
    f'what a layer may be, of {", ".join(space.LAYER_TYPES)}; chosen for each layer if there are several, Sec. 3.3',
  )
  pools: tuple[int, ...] = field(
    (2, 3),
    'window sizes of pooling layers to choose from, also used as strides; only if layer_types has pooling layers',
    low=1,
  )
  skips: bool = field(
    True, 'skip connections: each layer chooses which layers before it to read, by anchor points, Sec. 3.3'
  )
  child_weights: int = field(
    0,
    'the number of weights of every child: each layer gets or loses the same number of filters, so that the weights '
    'come nearest to it. The search then compares shapes and not sizes; 0 to train children as they are',
    low=0,
  )
  lr: tuple[float, ...] = field(
    (0.1,), 'learning rate of the children, Sec. 4.1; if several, the first token chooses one, Sec. 3.3', above=0.0
  )
  decay_epoch: float = field(
    25.0, "epochs until the learning rate first decays, in the schedules 'twice' and 'epochs'", low=0.0
  )
  weight_decay: float = field(1e-4, 'weight decay of kernels and classifier, Sec. 4.1', low=0.0)
  epsilon: float = field(1e-5, 'added to the variance in batch norm', above=0.0)
  last_epochs: int = field(
    5, 'how many of the last epochs are scored on validation; the best accuracy counts, Sec. 4.1', low=1
  )
  reward_power: float = field(3.0, 'the reward is the validation accuracy to this power, Sec. 4.1', above=0.0)
  child_program: str = field(
    'specialised',
    "how children are compiled: 'specialised', a program for each; 'generic', one program for all of one depth; "
    "'auto', the faster of the two as measured when the search begins",
    choices=timing.PROGRAMS,
  )
  max_children: int = field(12_800, 'children to train, Sec. 4.1', low=1, budget=True, first=True)

  added: ClassVar[dict[str, Any]] = {'child_weights': 0}  # see `config.with_added`


def paper_v1() -> Config:
  """CIFAR-10, no strides or pooling: the first experiment of Sec. 4.1, 800 GPUs in the paper. Not run here.

  Each of 100 replicas has a batch of 8 children. The paper says neither how far images are upsampled nor when the
  learning rate decays; the decay is that of Huang et al. (2016).
  """
  return Config(
    m=8, replicas=100, shards=20, controller_lr=6e-4, depth_start=6, depth_step=2, depth_every=1600, dataset='cifar10',
    upsample=4, flip=True,
  )  # fmt: skip


def paper_v2() -> Config:
  """The second experiment of Sec. 4.1: strides too, and up to 20 layers."""
  return dataclasses.replace(paper_v1(), strides=(1, 2, 3), max_depth=20)


def paper_v3() -> Config:
  """The third experiment: 13 predicted layers, each a block of three, and two pools.

  `retrain --add_filters=40` widens a network that it finds.
  """
  return dataclasses.replace(paper_v1(), filters=(6, 12, 24, 36), max_depth=13, block=3, pool_at=(13, 24))


def small() -> Config:
  """CIFAR-10 in about 90 minutes on two cores: 16 x 16 pixels, a fifth of the images, few filters."""
  return Config(
    m=4, controller_lr=5e-3, dataset='cifar10', resize=16, max_examples=10_000, flip=True, max_depth=4,
    filter_heights=(1, 3, 5), filter_widths=(1, 3, 5), filters=(8, 16, 24), batch=32, epochs=6, last_epochs=2,
    schedule='cosine', child_program='auto', proposals='guided', known='avoid', max_children=100,
  )  # fmt: skip


def demo() -> Config:
  """Takes minutes on a laptop, without a download: scikit-learn's digits, 8 x 8."""
  return Config(
    m=4, controller_lr=5e-3, valid_share=0.25, max_depth=4, filter_heights=(1, 3, 5), filter_widths=(1, 3, 5),
    filters=(4, 8, 16), batch=16, epochs=2, last_epochs=1, schedule='cosine', lr=(0.3,), child_program='generic',
    proposals='guided', known='avoid', max_children=160,
  )  # fmt: skip


def smoke() -> Config:
  """Takes seconds: a test that everything runs."""
  return Config(
    m=2, controller_units=8, max_depth=2, filter_heights=(1, 3), filter_widths=(1,), filters=(2, 4), batch=30, epochs=1,
    last_epochs=1, child_program='generic', max_children=4, reliability_children=4, yardstick_repeats=1,
  )  # fmt: skip


PRESETS = {
  'paper_v1': paper_v1,
  'paper_v2': paper_v2,
  'paper_v3': paper_v3,
  'small': small,
  'demo': demo,
  'smoke': smoke,
}


def make_space(cfg: Config) -> space.Space:
  """Returns the space that `cfg` describes. Raises ValueError as `space.conv_space`."""
  return space.conv_space(
    cfg.max_depth,
    cfg.filter_heights,
    cfg.filter_widths,
    cfg.filters,
    cfg.strides if cfg.strides != (1,) else None,
    cfg.layer_types if cfg.layer_types != ('conv',) else None,
    cfg.pools,
    cfg.lr if len(cfg.lr) > 1 else None,
    cfg.skips,
  )


def length(cfg: Config) -> str:
  """Returns in words how long a child is trained."""
  return counted(cfg.epochs, 'epoch')


def scale_budget(cfg: Config, times: int) -> Config:
  """Returns `cfg` with children that are trained `times` times as long, their learning rate falling as much slower."""
  return dataclasses.replace(cfg, epochs=times * cfg.epochs, **schedules.stretched(cfg, times))


def hyperparameters(cfg: Config, arch: ConvArch) -> conv.Hyperparameters:
  """Returns the hyperparameters of a child."""
  lr = arch.rate[0] / 1e6 if len(arch.rate) else cfg.lr[0]
  return conv.Hyperparameters(lr, cfg.decay_epoch, cfg.weight_decay, cfg.epsilon)


def make_problem(cfg: Config, images: images_lib.Images) -> Problem:
  """Returns the problem on which the children are trained. Raises ValueError as `check`."""
  check(cfg, images)
  setup = classifier.set_up(cfg, images)
  own = functools.partial(hyperparameters, cfg)
  static = conv.build(setup.inputs, classifier.network_options(cfg))
  sized = equal_weights.sized(cfg, images, cfg.child_weights)
  found = classifier.make_problem(
    setup, make_space(cfg), static, own, cfg.epochs, cfg.last_epochs, cfg.reward_power, sized
  )
  labels, skips = (cfg.filter_heights, cfg.filter_widths, cfg.filters), cfg.skips

  @functools.cache
  def of_depth(depth: int) -> Child:
    network = conv_traced.build(depth, *labels, skips, setup.inputs)
    return child_lib.bind_arch(network, lambda arch: conv.ChildSpec(arch, own(arch)))

  def traced(archs: PyTree) -> Child:
    return of_depth(archs.filters.shape[1])

  cost = costs.of_networks(images.shape, images.classes, classifier.network_options(cfg))
  return found._replace(
    program=cfg.child_program,
    traced=None if needs_own_programs(cfg) else traced,
    cost_of=lambda arch: cost(sized(arch)),
    bounds=costs.bounds(cfg),
    shaping=costs.shaping(cfg),
  )


def build(
  cfg: Config,
  images: images_lib.Images,
  mesh: Mesh | None = None,
  recovery: Recovery = NO_RECOVERY,
  reward: Reward | None = None,
) -> search.Search:
  """Returns the search. Raises ValueError as `make_problem`.

  Args:
    cfg: the config.
    images: the data set.
    mesh: where children are trained; all local devices by default.
    recovery: saves trainings, so that they can be resumed or reused, and stops them.
    reward: (metrics of m children, [m] each) -> rewards [m]; by default the metric that `cfg` names, to its power.

  >>> import jax
  >>> from nas_jax.systems import classifier, conv
  >>> cfg = conv.smoke()
  >>> s = conv.build(cfg, classifier.load(cfg))
  >>> batch = s.ask(s.init(jax.random.key(cfg.seed)))
  >>> cfg.m, batch.tokens.shape
  (2, (2, 7))
  """
  problem = make_problem(cfg, images)._replace(reward_of=reward)
  return replicas.build_search(problem.space, cfg, evaluators.build(problem, mesh, recovery))


def check(cfg: Config, images: images_lib.Images) -> None:
  """Raises ValueError, before anything compiles, if a field has an impossible value; the message says what fits."""
  config.check(cfg)
  made = make_space(cfg)
  search.check(made, cfg)
  replicas.check(made, cfg)
  halving.check(cfg, cfg.max_children)
  costs.check(cfg)
  height, width, _ = images.shape
  for name, labels in (('strides', cfg.strides), ('pools', cfg.pools)):
    if max(labels) > min(height, width):
      raise ValueError(f'{name} (={labels}): {max(labels)} is more than the images have, {height} x {width} pixels.')
  weights = space.count(classifier.widest(made), images.shape, images.classes, classifier.network_options(cfg)).params
  child_lib.check_weights(weights, 'fewer filters, smaller ones, or a smaller max_depth.')
  if cfg.child_weights and cfg.layer_types != ('conv',):
    raise ValueError(
      f'child_weights (={cfg.child_weights}) needs filters in every layer, and layer_types (={cfg.layer_types}) has '
      'other layers: take child_weights=0 or layer_types=conv.'
    )
  equal_weights.check(cfg, images, made, cfg.child_weights)
  if cfg.child_program == 'generic' and (why := needs_own_programs(cfg)):
    raise ValueError(f'child_program (=generic) trains plain convolutions, and there are {why}: take specialised.')
  if cfg.last_epochs > cfg.epochs:
    raise ValueError(f'last_epochs (={cfg.last_epochs}) is more than epochs (={cfg.epochs}): a child has no more.')


def needs_own_programs(cfg: Config) -> str:
  """Says why one program cannot train every network of the space; '' if it can."""
  if cfg.strides != (1,):
    return 'strides'
  if cfg.layer_types != ('conv',):
    return 'types of layers other than convolutions'
  if cfg.block > 1 or any(cfg.pool_at):
    return 'blocks and pools at fixed places'
  if cfg.child_weights:
    return 'children of equal weights'
  return ''


def why_unsupported(cfg: Config, arch: ConvArch) -> str:
  """Says why the children's program cannot train a network from outside the space; '' if it can."""
  if cfg.child_program == 'specialised':
    return ''
  if arch.layer_type or arch.stride_height:
    return 'it has strides or types of layers, and one program trains plain convolutions'
  if bool(arch.links) != (cfg.skips and len(arch.filters) > 1):
    return f'it has {"" if arch.links else "no "}anchor points, and skips is {cfg.skips}'
  for name, labels in (
    ('filter_height', cfg.filter_heights),
    ('filter_width', cfg.filter_widths),
    ('filters', cfg.filters),
  ):
    if extra := sorted(set(getattr(arch, name)) - set(labels)):
      return f'its {name} {extra[0]} is none of {labels}'
  return ''


def references(
  cfg: Config, images: images_lib.Images, train: Evaluate, recovery: Recovery = NO_RECOVERY
) -> dict[str, evaluators.Known]:
  """Returns networks with the same filters in every layer, to be scored by the evaluator `train` of the search."""
  del images, recovery
  depth = cfg.max_depth
  height, width, filters = (
    sorted(labels)[len(labels) // 2] for labels in (cfg.filter_heights, cfg.filter_widths, cfg.filters)
  )

  def plain(reads: Callable[[int, int], bool]) -> evaluators.Known:
    links = tuple(int(reads(i, j)) for i in range(depth) for j in range(i)) if cfg.skips else ()
    arch = ConvArch((), (height,) * depth, (width,) * depth, (), (), (filters,) * depth, (), links, ())
    return evaluators.Known(arch, train)

  found = {f'{depth} layers of {filters} {height}x{width}': plain(lambda i, j: j == i - 1)}
  return found | ({'the same, all connected': plain(lambda i, j: True)} if cfg.skips and depth > 2 else {})
