"""Convolutional children with skips: a program for each, against PyTorch, plain JAX and one program for all."""

from collections.abc import Iterator, Sequence
import tempfile
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import numpy as np

from experiments.bench import rivals, trained
from experiments.bench.timing import (
  Bar,
  Row,
  Setup,
  Way,
  alternating,
  at_least,
  at_most,
  compilations,
  row,
  seconds,
  way,
)
from nas_jax import space
from nas_jax.children import conv as conv_child
from nas_jax.children import conv_traced
from nas_jax.datasets import image_batches, images
from nas_jax.datasets.splits import height_and_width
from nas_jax.nn import image_ops
from nas_jax.space.conv import IMAGE, ConvArch
from nas_jax.space.network import Layer, network
from nas_jax.systems import classifier, conv
from nas_jax.training import child as child_lib
from nas_jax.training import evaluators, fit, layout, timing
from nas_jax.training.child import Child
from nas_jax.types import Array, Key, PyTree


class Size(NamedTuple):
  """Children of one size, and the bars of their figures."""

  pixels: int
  channels: int
  beside_torch: Bar | None
  of_specialised: Bar | None = None  # of a generic step's time against a specialised one's; None: generic is left out
  depth: int = 6
  children: int = 6
  batch: int = 64
  steps: int = 4  # of a measurement
  filters: tuple[int, ...] = (24, 36, 48, 64)
  windows: tuple[int, ...] = (1, 3, 5, 7)

  @property
  def words(self) -> str:
    """The size in words."""
    return f'conv {self.pixels}x{self.pixels}, {self.depth} layers'


SIZES = Size(32, 3, at_least(0.8)), Size(8, 1, at_least(0.7), at_most(1.6), steps=20)
SMALL = Size(6, 1, None, at_most(1.6), depth=2, children=2, batch=4, steps=1, filters=(2, 3), windows=(1, 3))
IMAGES = 512


class Task(NamedTuple):
  """Children to train, their config and data."""

  size: Size
  cfg: conv.Config
  setup: classifier.Setup

  @property
  def data(self) -> image_batches.Data:
    """The images in the form that children read."""
    return self.setup.data[0]

  def programs(self, child: Child, arch: PyTree = None) -> fit.Fit:
    """Returns the programs of a static architecture, or those for all architectures if none is given."""

    def plan(traced: PyTree) -> conv_child.ChildSpec:
      own = traced if arch is None else arch
      return conv_child.ChildSpec(own, conv.hyperparameters(self.cfg, own))

    planned = child_lib.bind_arch(child, plan)
    steps, quick = self.size.steps, arch is not None  # as in a search
    return classifier.fitter(self.setup, planned, lambda arch: plan(arch).hyperparameters, steps, quick=quick)

  def children(self) -> tuple[PyTree, Key]:
    """Returns random architectures [m] and keys [m]."""
    batch = evaluators.random_batch(conv.make_space(self.cfg), jax.random.key(1), self.size.children)
    return batch.archs, batch.keys

  def batches(self, child: Child, count: int) -> list[np.ndarray]:
    """Returns the minibatches of the first `count` steps: arrays [count, batch, ...]."""
    drawn = [child.batch(self.data, jax.random.key(0), jnp.asarray(step)) for step in range(count)]
    return [np.stack([np.asarray(part) for part in parts]) for parts in zip(*drawn, strict=True)]


def rows(setup: Setup) -> Iterator[Row]:
  """Measures children of each size, and the share of compiling in a search."""
  sizes = (SMALL,) if setup.small else SIZES
  for size in sizes:
    yield from compared(size, setup)
  yield compiling_share(setup)


def task(size: Size) -> Task:
  """Returns children of one size that train on noise."""
  cfg = conv.Config(
    max_depth=size.depth, filters=size.filters, filter_heights=size.windows, filter_widths=size.windows,
    batch=size.batch, schedule='constant', lr=(0.05,), score_batch=size.batch,
  )  # fmt: skip
  pictured = noise((size.pixels, size.pixels, size.channels), max(IMAGES, 2 * size.batch))
  return Task(size, cfg, classifier.set_up(cfg, pictured))


def noise(shape: tuple[int, int, int], count: int) -> images.Images:
  """Returns random images of ten classes. Training on them costs as much as on real ones."""
  rng = np.random.default_rng(0)
  pixels = rng.integers(256, size=(count, *shape), dtype=np.uint8)
  split = images.Split(pixels, (np.arange(count) % 10).astype(np.int32))
  return images.split_images(split, split, 10)


def compared(size: Size, setup: Setup) -> list[Row]:
  """Times the training of the same children by all kinds of programs and by the rivals."""
  own, name = task(size), size.words
  archs, keys = own.children()
  static, child = space.unstack(archs), conv_child.build(own.setup.inputs)
  each = [
    trained.alike(own.programs(child, arch), key, own.data, size.steps) for arch, key in zip(static, keys, strict=True)
  ]
  params = [jax.tree.map(lambda x: x[0], group.params) for group in each]
  losses = np.stack([group.losses[0] for group in each])
  ways: dict[str, Way] = {'specialised': trained.one_by_one(each), 'alone': convolutions(size, static)}
  if size.of_specialised:
    traced = of_all(own)
    ways['generic'] = trained.group(traced, archs, keys, own.data, size.steps).further
  with tempfile.TemporaryDirectory() as folder:
    write(folder, own, static, params, own.batches(child, trained.CHECKED + size.steps))
    others = rivals.ways(folder, setup, losses)
    found = alternating({**ways, **others}, setup.repeats)
  taken, steps = found['specialised'], size.children * size.steps
  shown = [
    row(f'{name}: specialised, a step', 1e3 * taken / steps, 'ms', note='of one child, the devices sharing the work'),
    *rivals.rows(name, 'specialised', found, others, size.beside_torch),
    row(f'{name}: specialised against its own convolutions run alone', found['alone'] / taken),
    row(f'{name}: compiling one', np.array([group.compiling for group in each]), 's'),
  ]
  if size.of_specialised:
    ratio = row(f'{name}: a generic step against a specialised one', found['generic'] / taken, bar=size.of_specialised)
    shown += [ratio, trained.compiled(f'{name}: ', traced, *own.children(), own.data, 1)]
  return shown


def write(
  folder: str, own: Task, static: Sequence[ConvArch], params: Sequence[PyTree], batches: Sequence[np.ndarray]
) -> None:
  """Writes networks, weights and batches to a folder for the rivals."""
  cfg = own.cfg
  settings = {'lr': cfg.lr[0], 'momentum': cfg.momentum, 'decay': cfg.weight_decay, 'epsilon': cfg.epsilon}
  made = [([layer.reads for layer in network(arch).layers], network(arch).ends) for arch in static]
  rivals.write(folder, made, params, batches, kind='conv', steps=own.size.steps, settings=settings)


def convolutions(size: Size, archs: Sequence[ConvArch]) -> Way:
  """Returns a way that runs only the convolutions of all networks and their gradients, network by network."""
  mesh = layout.child_mesh()
  each = [_alone(size, network(arch).layers, mesh) for arch in archs]
  return lambda: sum(work() for work in each) / mesh.size


def _alone(size: Size, layers: Sequence[Layer], mesh: Mesh) -> Way:
  """Returns a way that runs `size.steps` steps of one network's convolutions, with equal work on each device."""
  read = [sum(size.channels if j == IMAGE else layers[j].filters for j in layer.reads) for layer in layers]
  key, square = jax.random.key(0), (size.batch, size.pixels, size.pixels)
  images = {channels: jax.random.normal(key, (*square, channels)) for channels in set(read)}
  kernels = [jax.random.normal(key, layer.kernels(n)[0]) * 0.01 for layer, n in zip(layers, read, strict=True)]

  def step(shared: PyTree, last: list[Array]) -> list[Array]:
    """Returns the gradients of the kernels."""
    (images, kernels), found = shared, list[Array]()
    for layer, channels, kernel, before in zip(layers, read, kernels, last, strict=True):
      # Each step depends on the one before, or XLA would compute only one.
      y, gradients = jax.vjp(image_ops.conv, images[channels], kernel + before * 1e-9)
      dx, dkernel = gradients(y)
      found.append(dkernel if layer.reads == (IMAGE,) else dkernel + dx[0, 0, 0, 0])  # an image needs no gradient
    return found

  def child(shared: PyTree, start: list[Array]) -> list[Array]:
    return jax.lax.fori_loop(0, size.steps, lambda _, last: step(shared, last), start)

  options = layout.jit_options(mesh, image_ops.compiler_options)  # as in training
  program, shared = layout.over_children(child, mesh, **options), layout.share((images, kernels), mesh)
  starts = [jnp.zeros((mesh.size, *kernel.shape)) for kernel in kernels]
  return way(lambda: program(shared, starts))


def of_all(own: Task) -> fit.Fit:
  """Returns the program for all networks of this depth."""
  cfg = own.cfg
  labels = cfg.filter_heights, cfg.filter_widths, cfg.filters
  return own.programs(conv_traced.build(cfg.max_depth, *labels, cfg.skips, own.setup.inputs))


def compiling_share(setup: Setup) -> Row:
  """Measures the share of compiling in the wall time of a batch of the preset `small`.

  The children train to the end, on noise of the shape of the preset's images, with the kind of program that `auto`
  chooses. Each device trains children in its own thread. So with a program for each child, one thread compiles while
  others train.
  """
  cfg = conv.smoke() if setup.small else conv.small()
  pictured = noise((8, 8, 1), 60) if setup.small else noise((*height_and_width(cfg.resize), 3), cfg.max_examples)
  problem = conv.make_problem(cfg, pictured)
  measured = timing.of_problem(problem, jax.random.key(cfg.seed), cfg.m, cfg.max_children)._asdict()
  kind = min(measured, key=lambda kind: measured[kind])
  batch = evaluators.random_batch(problem.space, jax.random.key(0), cfg.m)
  evaluate = evaluators.build(problem._replace(program=kind))
  with compilations() as found:
    taken = seconds(lambda: evaluate(batch).reward)
  compiling = sum(each.seconds for each in found)
  if kind == 'specialised':
    each, a_child = compiling / (jax.local_device_count() * cfg.m), taken / cfg.m
  else:  # once a search
    each = compiling / cfg.max_children
    a_child = each + (taken - compiling) / cfg.m
  note = f'{kind} programs; {a_child:.3g} s a child'
  return Row('compiling in the small CIFAR-10 search', 100 * each / a_child, '%', at_most(10.0), note=note)
