"""Children of the paper's presets at their full size: operations of a training step, its time, children an hour.

A few steps on noise are timed and extrapolated to whole trainings, without compiling. No text or image is needed.
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

STRINGS = 200  # random ones, whose mean a child is
IMAGES, WORDS, VOCABULARY = 45_000, 929_589, 10_000  # to train on: of CIFAR-10, of Penn Treebank
SHAPE = 32, 32, 3  # of CIFAR-10's images
TIMED, STEPS = 2, 4  # networks; steps of each measurement


def rows(setup: Setup) -> Iterator[Row]:
  """Measures the children of each preset."""
  for name in ('smoke',) if setup.small else ('paper_v1', 'paper_v2', 'paper_v3'):
    yield from networks(f'conv.{name}', conv_system.PRESETS[name](), setup)
  name = 'smoke' if setup.small else 'paper'
  cfg = cell.PRESETS[name]()
  # As many at once as make an update of the controller.
  yield from language_models(f'cell.{name}', dataclasses.replace(cfg, m=cfg.m * cfg.accumulate), setup)


def networks(name: str, cfg: conv_system.Config, setup: Setup) -> Iterator[Row]:
  """Times `TIMED` random networks, a program each. A child counts as much as the mean of `STRINGS` networks."""
  images = conv.noise(SHAPE, 2 * cfg.batch)
  size = conv.Size(SHAPE[0], SHAPE[2], None, steps=1 if setup.small else STEPS)
  own = conv.Task(size, cfg, classifier.set_up(cfg, images))
  batch = evaluators.random_batch(conv_system.make_space(cfg), jax.random.key(0), STRINGS)
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
  """Returns the least bytes that a training step moves for an image.

  They are 7 times what each convolution reads and 11 times what it writes: forward and backward, with batch norm and
  ReLU after it, each array read and written as often as it must be.
  """
  shapes, numbers = count(arch, options=options).shapes, 0
  for layer, shape in zip(network(arch, options).layers, shapes, strict=True):
    if layer.filters:
      read = joined([SHAPE if j == IMAGE else shapes[j] for j in layer.reads])
      numbers += 7 * math.prod(read) + 11 * math.prod(shape)
  return 4.0 * numbers


def language_models(name: str, cfg: cell.Config, setup: Setup) -> Iterator[Row]:
  """Times a batch of random cells by the one program for all."""
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
  # All weights 7 times, the recurrent ones at each time step too, forward and backward, and the gates 10 times.
  weights, gates = language.weights(language.build(cfg, text, tree, hidden), own), cfg.base * hidden * cfg.layers
  least = 4.0 * (7 * weights + 2 * cfg.bptt * gates * hidden + 10 * cfg.batch * cfg.bptt * gates)
  a_child = cfg.epochs * (WORDS // (cfg.batch * cfg.bptt)) or cfg.steps
  yield from shown(f'{name}, {cfg.m} at once', further, flops * cfg.m * steps, flops, least, a_child, setup)


def shown(name: str, further: Way, done: float, flops: float, least: float, steps: int, setup: Setup) -> Iterator[Row]:
  """`further` does `done` operations; a child has so many steps of `flops` operations and `least` bytes."""
  rates = done / alternating({'it': further}, setup.repeats)['it']
  yield Row(f'{name}: products of a training step', flops / 1e9, 'GF', note='forward and backward, the mean child')
  yield Row(f'{name}: bytes that it must move', least / 1e9, 'GB')
  yield row(f'{name}: a step of one child', 1e3 * flops / rates, 'ms', note='the devices sharing the work')
  yield row(f'{name}: its products alone counted', rates / 1e9, 'GF/s')
  yield row(f'{name}: children', 3600 * rates / (flops * steps), 'an hour', note=f'{steps:,} steps each, no compiling')
