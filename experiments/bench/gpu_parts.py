"""The parts of the benchmark of one accelerator: see `experiments.bench.gpu`.

Example: one part, as that module starts it:
  python -m experiments.bench.gpu_parts networks '[0, 3, true]'
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
import json
import os
import subprocess
import sys
import tempfile
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench import (
  cells,
  controller,
  conv,
  devices,
  machine,
  precision,
  presets,
  recurrent_loop,
  rivals,
  show,
  trained,
)
from experiments.bench.timing import Row, Setup, Way, alternating, at_least, at_most, row, seconds, way
from experiments.common import launch
from experiments.common.systems import ENAS
from nas_jax import search, space
from nas_jax.children import conv as conv_child
from nas_jax.space import conv_space
from nas_jax.space.network import count
from nas_jax.systems import classifier
from nas_jax.systems import conv as conv_system
from nas_jax.training import evaluators
from nas_jax.types import PyTree

CLOSE = 1e-2  # the greatest allowed difference of losses, as matrix products round their factors to ten bits (TF32)
IN_FLIGHT = 16  # number of networks that train at the same time
CELLS = 4, 64  # numbers of cells that train at the same time
COMPILERS = 8  # threads that compile programs before anything is timed

# XLA puts the kernels of one iteration into a CUDA graph by itself. These flags put whole loops into one.
GRAPH = '--xla_gpu_enable_command_buffer=+WHILE,+CONDITIONAL --xla_gpu_graph_min_graph_size=1'
UNROLLED_GRAPH = f'{GRAPH} --xla_gpu_command_buffer_unroll_loops=true'


class Part(NamedTuple):
  """A group of figures, measured by one process."""

  rows: Callable[[Setup], Iterator[Row]]
  limit: float  # seconds after which the process is stopped
  flags: str = ''  # of XLA; a process that XLA ends because it does not know a flag is a part that failed


def networks(setup: Setup) -> Iterator[Row]:
  """Measures networks trained one at a time and several at once, against plain JAX and PyTorch one at a time."""
  size = conv.SMALL if setup.small else conv.SIZES[0]._replace(steps=50)
  own, name, flight = conv.task(size), size.words, 3 if setup.small else IN_FLIGHT
  archs, keys = own.children()
  static, child = space.unstack(archs), conv_child.build(own.setup.inputs)
  programs = [own.programs(child, arch) for arch in static]

  def begun(k: int) -> trained.Group:
    return trained.alike(programs[k % len(static)], jax.random.fold_in(keys[k % len(static)], k), own.data, size.steps)

  each = _in_threads(begun, range(len(static)))
  more = each + _in_threads(begun, range(len(static), flight))
  params = [jax.tree.map(lambda x: x[0], group.params) for group in each]
  losses = np.stack([group.losses[0] for group in each])
  with tempfile.TemporaryDirectory() as folder:
    others = _conv_rivals(folder, setup, own, static, params, losses)
    found = alternating({'own': trained.one_by_one(each), 'flight': _at_once(more), **others}, setup.repeats)
  steps = len(each) * size.steps
  yield row(f'{name}: a step, one network at a time', 1e3 * found['own'] / steps, 'ms')
  yield row(f'{name}: a step of naive JAX', 1e3 * found['naive'] / steps, 'ms')
  yield row(f'{name}: one at a time against naive JAX', found['naive'] / found['own'], bar=at_least(1.1))
  if 'torch' in others:
    yield row(f'{name}: one at a time against PyTorch eager', found['torch'] / found['own'], bar=at_least(3.0))
  rates = (len(more) / found['flight']) / (len(each) / found['naive'])
  yield row(f'{name}: children an hour, {len(more)} in flight, against naive JAX one by one', rates, bar=at_least(3.0))


def _conv_rivals(
  folder: str, setup: Setup, own: conv.Task, static: Sequence[Any], params: Sequence[PyTree], losses: np.ndarray
) -> dict[str, rivals.Rival]:
  """Returns the rivals that train the same networks, on a few batches that are repeated."""
  child, steps = conv_child.build(own.setup.inputs), min(own.size.steps, 5)
  batches = own.batches(child, trained.CHECKED + steps)
  conv.write(folder, own, static, params, batches)
  return rivals.ways(folder, setup, losses, CLOSE)


def _at_once(groups: Sequence[trained.Group]) -> Way:
  """Returns a way that trains all groups at once, each in a thread."""
  threads = ThreadPoolExecutor(len(groups))

  def work() -> None:
    list(threads.map(lambda group: group.further(), groups))

  return lambda: seconds(work)


def _in_threads(function: Callable[[int], trained.Group], numbers: Sequence[int]) -> list[trained.Group]:
  with ThreadPoolExecutor(COMPILERS) as threads:
    return list(threads.map(function, numbers))


def tree_cells(setup: Setup) -> Iterator[Row]:
  """Measures a few and many cells trained at once, against plain JAX one by one, and the memory of a cell."""
  size = cells.SMALL if setup.small else cells.SIZES[0]
  own, counts = cells.task(size), (2, 4) if setup.small else CELLS
  few = counts[0]
  groups = {m: devices.trained(own, m, 1) for m in (1, *counts)}
  params = [jax.tree.map(lambda x, k=k: x[k], groups[few].params) for k in range(few)]
  with tempfile.TemporaryDirectory() as folder:
    cells.write(folder, own, space.unstack(own.children(few)[0]), params)
    others = rivals.ways(folder, setup._replace(torch_python=''), groups[few].losses, CLOSE)
    static = {f'static, unroll={n}': _static(size, n) for n in (1, 5)}
    ways = {str(m): group.further for m, group in groups.items()} | static
    found = alternating({**ways, **others}, setup.repeats)
  time_steps = size.steps * size.bptt
  yield row(f'{size.words}: a time step of one, forward and backward', 1e6 * found['1'] / time_steps, 'us', at_most(20))
  for name in static:
    yield row(f'{size.words}: a time step of one, {name}', 1e6 * found[name] / time_steps, 'us', at_most(20))
  for m, bar in zip(counts, (at_least(3.0), at_least(40.0)), strict=True):
    one_by_one = found['naive'] * m / few
    yield row(f'{size.words}: {m} at once against naive JAX one by one', one_by_one / found[str(m)], bar=bar)
    yield row(f'{size.words}: {m} at once', 3600e-6 * m * size.steps / found[str(m)], 'M steps/h')
  yield from devices.memory(own, (1, 2, 4, 8) if setup.small else (1, 4, 16, 64))


def _static(size: cells.Size, unroll: int) -> Way:
  """Returns a way that trains the first cell by a static program, whose loop over time is unrolled `unroll` times."""
  own = cells.task(size, unroll)
  archs, keys = own.children(1)
  return trained.alike(own.programs(space.unstack(archs)[0]), keys[0], own.data, size.steps).further


def paper(setup: Setup) -> Iterator[Row]:
  """Measures full-size networks of the paper's first search space, relative to a large dense matrix product."""
  name = 'smoke' if setup.small else 'paper_v1'
  cfg = conv_system.PRESETS[name]()
  n = 64 if setup.small else machine.LARGE[0]
  ceilings = {kind: product(n, kind) for kind in (jnp.float32, jnp.bfloat16)}
  images = conv.noise(presets.SHAPE, 2 * cfg.batch)
  size = conv.Size(presets.SHAPE[0], presets.SHAPE[2], None, steps=1 if setup.small else 20)
  own = conv.Task(size, cfg, classifier.set_up(cfg, images))
  batch = evaluators.random_batch(conv_system.make_space(cfg), jax.random.key(0), presets.TIMED)
  archs, options = space.unstack(batch.archs), classifier.network_options(cfg)
  kinds = {'float32': own.setup.inputs, 'bfloat16': own.setup.inputs._replace(precision='bfloat16')}
  flops = sum(6.0 * cfg.batch * size.steps * count(arch, options=options).macs for arch in archs)
  programs = [own.programs(conv_child.build(spec, options), arch) for spec in kinds.values() for arch in archs]
  keys = [*batch.keys, *batch.keys]
  each = _in_threads(lambda k: trained.alike(programs[k], keys[k], own.data, size.steps), range(len(programs)))
  ways = {'own': trained.one_by_one(each[: len(archs)]), 'low': trained.one_by_one(each[len(archs) :])}
  found = alternating(ways | {'tf32': ceilings[jnp.float32], 'bf16': ceilings[jnp.bfloat16]}, setup.repeats)
  tf32, bf16 = (2.0 * n**3 / found[kind] for kind in ('tf32', 'bf16'))
  yield row(f'conv.{name}: a step of one child', 1e3 * found['own'] / (len(archs) * size.steps), 'ms')
  yield row(f'conv.{name}: share of the float32 products', 100 * flops / found['own'] / tf32, '%', at_least(35.0))
  yield row(f'conv.{name}: a step in bfloat16', 1e3 * found['low'] / (len(archs) * size.steps), 'ms')
  yield row(f'conv.{name}: bfloat16 against float32', found['own'] / found['low'])
  yield row(f'conv.{name}: share of the bfloat16 products, in bfloat16', 100 * flops / found['low'] / bf16, '%')
  yield row(f'float32 product, {n} x {n}', tf32 / 1e12, 'TF/s', note='TF32 where the accelerator has it')
  yield row(f'bfloat16 product, {n} x {n}', bf16 / 1e12, 'TF/s')


def product(n: int, dtype: Any) -> Way:
  """Returns a way that squares a random matrix [n, n]."""
  matrix = jax.random.normal(jax.random.key(0), (n, n), dtype)
  square = jax.jit(lambda matrix: matrix @ matrix)
  return way(lambda: square(matrix))


def sharing(setup: Setup) -> Iterator[Row]:
  """Measures the gain from many controller updates in one program with shared weights, and the controller's share."""
  for system in ENAS:
    yield from controller.shares(system, setup)


def demo(setup: Setup) -> Iterator[Row]:
  """Measures the search of `make search` as a whole command, after a short search that compiles its programs."""
  preset = 'smoke' if setup.small else 'demo'
  with tempfile.TemporaryDirectory() as folder:
    kept = os.environ | {'JAX_COMPILATION_CACHE_DIR': os.path.join(folder, 'programs')}
    command = [sys.executable, '-m', 'experiments.cell_search', f'--preset={preset}']
    few = ['--max_children=8', '--reliability_children=8', f'--workdir={os.path.join(folder, "few")}']
    name = f'cell_search --preset={preset}'
    yield Row(f'{name} of 8 children, with compiling', seconds(lambda: _quietly([*command, *few], kept)), 's')
    whole = [*command, f'--workdir={os.path.join(folder, "whole")}']
    yield Row(f'{name}, all compiled before', seconds(lambda: _quietly(whole, kept)), 's', at_most(60.0))


def _quietly(command: Sequence[str], environment: dict[str, str]) -> None:
  done = subprocess.run(command, capture_output=True, text=True, cwd=rivals.ROOT, env=environment)
  if done.returncode:
    raise ValueError(f'{command} failed: {done.stderr.strip().splitlines()[-1:]}')


def asking(setup: Setup) -> Iterator[Row]:
  """Measures `ask` and `tell` with long token sequences."""
  depth = 3 if setup.small else controller.DEPTH
  updating = controller.update(search.ask_tell(conv_space(depth), search.Config(m=controller.M)))
  updating()  # compiles
  found = alternating({'both': updating}, setup.repeats)['both']
  yield row(f'ask + tell, m={controller.M}, {depth}-layer conv token sequences', 1e3 * found, 'ms', at_most(20.0))


PARTS = {
  'networks': Part(networks, 150),
  'cells': Part(tree_cells, 110),
  'sharing': Part(sharing, 150),
  'recurrent kernel': Part(recurrent_loop.kernel, 60),
  'recurrent loop': Part(recurrent_loop.plain, 60),
  'recurrent loop as a CUDA graph': Part(recurrent_loop.plain, 60, GRAPH),
  'recurrent loop as an unrolled CUDA graph': Part(recurrent_loop.plain, 60, UNROLLED_GRAPH),
  'paper': Part(paper, 150),
  'search': Part(demo, 160),
  'ask and tell': Part(asking, 45),
  'precision': Part(precision.rows, 150),
}


ROW = 'row: '  # prefix of an output line that holds a figure


def main(name: str, setup: Setup) -> None:
  """Measures one part and prints each figure as a line."""
  launch.set_up_jax(1)
  for each in PARTS[name].rows(setup):
    print(ROW + json.dumps(show.plain(each)), flush=True)


if __name__ == '__main__':
  main(sys.argv[1], Setup(*json.loads(sys.argv[2])))
