"""Children of the paper's presets at full size: operations of a training step, its time, and children an hour.

A few steps on random data are timed and extrapolated to whole trainings, without compiling. No data set is needed.
"""

from collections.abc import Iterator
import dataclasses
import math

import jax
import numpy as np

from experiments.bench import cells, conv, trained
from experiments.bench.timing import Row, Setup, Way, alternating, row
from nas_jax import space
from nas_jax.children import conv as conv_child
from nas_jax.children import language_model
from nas_jax.datasets import text_batches
from nas_jax.space.conv import IMAGE, ConvArch
from nas_jax.space.network import NetworkOptions, count, joined, network
from nas_jax.systems import cell, classifier, language
from nas_jax.systems import conv as conv_system
from nas_jax.training import child as child_lib
from nas_jax.training import evaluators

NETWORKS = 200  # number of random networks whose mean cost is that of a child
IMAGES, WORDS, VOCABULARY = 45_000, 929_589, 10_000  # sizes of the training splits of CIFAR-10 and Penn Treebank
SHAPE = 32, 32, 3  # of CIFAR-10's images
TIMED, STEPS = 2, 4  # number of timed networks; steps of each measurement


def rows(setup: Setup) -> Iterator[Row]:
  """Measures the children of each preset."""
  for name in ('smoke',) if setup.small else ('paper_v1', 'paper_v2', 'paper_v3'):
    yield from networks(f'conv.{name}', conv_system.PRESETS[name](), setup)
  name = 'smoke' if setup.small else 'paper'
  cfg = cell.PRESETS[name]()
  # All children of one controller update are trained at once.
  yield from language_models(f'cell.{name}', dataclasses.replace(cfg, m=cfg.m * cfg.accumulate), setup)


def networks(name: str, cfg: conv_system.Config, setup: Setup) -> Iterator[Row]:
  """Times `TIMED` random networks, each with its own program, and extrapolates to the mean of `NETWORKS`."""
  images = conv.noise(SHAPE, 2 * cfg.batch)
  size = conv.Size(SHAPE[0], SHAPE[2], None, steps=1 if setup.small else STEPS)
  own = conv.Task(size, cfg, classifier.set_up(cfg, images))
  batch = evaluators.random_batch(conv_system.make_space(cfg), jax.random.key(0), NETWORKS)
  archs, options = space.unstack(batch.archs), classifier.network_options(cfg)
  flops = np.array([6.0 * cfg.batch * count(arch, options=options).macs for arch in archs])
  least = float(np.mean([cfg.batch * moved(arch, options) for arch in archs]))
  child = conv_child.build(own.setup.inputs, options)
  each = [
    trained.alike(own.programs(child, arch), key, own.data, size.steps)
    for arch, key in zip(archs[:TIMED], batch.keys, strict=False)
  ]
  done = flops[:TIMED].sum() * size.steps
  steps = cfg.epochs * (IMAGES // cfg.batch)
  yield from shown(name, trained.one_by_one(each), done, flops.mean(), least, steps, setup)


def moved(arch: ConvArch, options: NetworkOptions) -> float:
  """Returns the least number of bytes that a training step moves for an image.

  Forward and backward pass, with batch norm and ReLU, read or write the input of each convolution at least 7 times and
  its output at least 11 times, in float32.
  """
  shapes, numbers = count(arch, options=options).shapes, 0
  for layer, shape in zip(network(arch, options).layers, shapes, strict=True):
    if layer.filters:
      read = joined([SHAPE if j == IMAGE else shapes[j] for j in layer.reads])
      numbers += 7 * math.prod(read) + 11 * math.prod(shape)
  return 4.0 * numbers


def language_models(name: str, cfg: cell.Config, setup: Setup) -> Iterator[Row]:
  """Times `cfg.m` random cells, trained at once by the one program for all."""
  vocabulary = 7 if setup.small else VOCABULARY
  steps, words = 1 if setup.small else STEPS, cfg.batch * (2 * STEPS * cfg.bptt + 1)
  text = cells.noise(vocabulary, words)
  searched, data = cell.make_space(cfg), text_batches.lay_out(text, cfg.batch, cfg.bptt, cfg.batch)
  tree, batch = language_model.tree(searched.operations), evaluators.random_batch(searched, jax.random.key(0), cfg.m)
  own = space.unstack(batch.archs)[0]
  hidden = language.width(cfg, text, tree, own, cfg.parameters) if cfg.parameters else cfg.hidden
  plain = language.hyperparameters(cfg, hidden)
  child = child_lib.bind_arch(
    language.build(cfg, text, tree, hidden), lambda arch: language_model.ChildSpec(arch, plain)
  )
  programs = language.fitter(cfg, data, child, lambda _: plain, steps, steps)
  further = trained.group(programs, batch.archs, batch.keys, data, steps).further
  flops = cells.flops_of(cells.Size(hidden, vocabulary, cfg.layers, base=cfg.base, batch=cfg.batch, bptt=cfg.bptt))
  # Bytes move 7 times for all weights, forward and backward at each time step for the recurrent weights, and 10 times
  # for the gates.
  weights, gates = language.weights(language.build(cfg, text, tree, hidden), own), cfg.base * hidden * cfg.layers
  least = 4.0 * (7 * weights + 2 * cfg.bptt * gates * hidden + 10 * cfg.batch * cfg.bptt * gates)
  a_child = cfg.epochs * (WORDS // (cfg.batch * cfg.bptt)) or cfg.steps
  yield from shown(f'{name}, {cfg.m} at once', further, flops * cfg.m * steps, flops, least, a_child, setup)


def shown(name: str, further: Way, done: float, flops: float, least: float, steps: int, setup: Setup) -> Iterator[Row]:
  """Times `further` and returns the rows of a preset.

  `further` does `done` floating-point operations. A child trains `steps` steps of `flops` operations and at least
  `least` bytes each.
  """
  rates = done / alternating({'it': further}, setup.repeats)['it']
  yield Row(f'{name}: products of a training step', flops / 1e9, 'GF', note='forward and backward, the mean child')
  yield Row(f'{name}: bytes that it must move', least / 1e9, 'GB')
  yield row(f'{name}: a step of one child', 1e3 * flops / rates, 'ms', note='the devices sharing the work')
  yield row(f'{name}: its products alone counted', rates / 1e9, 'GF/s')
  yield row(f'{name}: children', 3600 * rates / (flops * steps), 'an hour', note=f'{steps:,} steps each, no compiling')
