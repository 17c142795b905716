"""The parts of the benchmark of one accelerator: see `experiments.bench.gpu`.

Example: one part, as that module starts it:
  python -m experiments.bench.gpu_parts networks '[0, 3, true]'
"""

from collections.abc import Callable, Iterator, Sequence
import json
import os
import subprocess
import sys
import tempfile
from typing import NamedTuple

import jax

from experiments.bench import (
  cells,
  controller,
  devices,
  gpu_networks,
  precision,
  recurrent_loop,
  rivals,
  show,
  trained,
)
from experiments.bench.timing import Row, Setup, Way, alternating, at_least, at_most, row, seconds
from experiments.common import launch
from experiments.common.systems import ENAS
from nas_jax import search, space
from nas_jax.space import conv_space

CACHE = 'JAX_COMPILATION_CACHE_DIR'
CELLS = 4, 64  # numbers of cells that train at the same time

# XLA puts the kernels of one iteration into a CUDA graph by itself. These flags put whole loops into one.
GRAPH = '--xla_gpu_enable_command_buffer=+WHILE,+CONDITIONAL --xla_gpu_graph_min_graph_size=1'
UNROLLED_GRAPH = f'{GRAPH} --xla_gpu_command_buffer_unroll_loops=true'


class Part(NamedTuple):
  """A group of figures, measured by one process."""

  rows: Callable[[Setup], Iterator[Row]]
  limit: float  # seconds after which the process is stopped
  flags: str = ''  # of XLA; a process that XLA ends because it does not know a flag is a part that failed


def tree_cells(setup: Setup) -> Iterator[Row]:
  """Measures a few and many cells trained at once, against plain JAX one by one, and the memory of a cell."""
  size = cells.SMALL if setup.small else cells.SIZES[0]
  own, counts = cells.task(size), (2, 4) if setup.small else CELLS
  few, several, unrolled = counts[0], (1, *counts), (1, 5)
  made = trained.in_threads(lambda m: devices.trained(own, m, 1), several)
  groups: dict[int, trained.Group] = dict(zip(several, made, strict=True))
  names = [f'static, unroll={n}' for n in unrolled]
  static = dict(zip(names, trained.in_threads(lambda n: _static(size, n), unrolled), strict=True))
  ways: dict[str, Way] = {str(m): group.further for m, group in groups.items()} | static
  found = alternating(ways, setup.repeats)  # before the rivals, which take longer
  time_steps = size.steps * size.bptt
  yield row(f'{size.words}: a time step of one, forward and backward', 1e6 * found['1'] / time_steps, 'us', at_most(20))
  for name in static:
    yield row(f'{size.words}: a time step of one, {name}', 1e6 * found[name] / time_steps, 'us', at_most(20))
  params = [jax.tree.map(lambda x, k=k: x[k], groups[few].params) for k in range(few)]
  with tempfile.TemporaryDirectory() as folder:
    cells.write(folder, own, space.unstack(own.children(few)[0]), params)
    others = rivals.ways(folder, setup._replace(torch_python=''), groups[few].losses, gpu_networks.CLOSE)
    found = alternating({**ways, **others}, setup.repeats)
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


def sharing(setup: Setup) -> Iterator[Row]:
  """Measures the gain from many controller updates in one program with shared weights, and the controller's share."""
  for system in ENAS:
    yield from controller.shares(system, setup)


def demo(setup: Setup) -> Iterator[Row]:
  """Measures the search of `make search` as a whole command, after a short search that compiles its programs.

  The cells of its final choice are others than those of the short search, and each has a program of its own. So these
  programs are compiled within the measured time.
  """
  preset = 'smoke' if setup.small else 'demo'
  with tempfile.TemporaryDirectory() as folder:
    # The cache is empty, and keeps the programs that a user's would: JAX_COMPILATION_CACHE_DIR has other defaults.
    kept = os.environ | {'XDG_CACHE_HOME': folder}
    kept.pop(CACHE, None)
    command = [sys.executable, '-m', 'experiments.cell_search', f'--preset={preset}']
    few = ['--max_children=8', '--reliability_children=8', f'--workdir={os.path.join(folder, "few")}']
    name = f'cell_search --preset={preset}'
    yield Row(f'{name} of 8 children, with compiling', seconds(lambda: _quietly([*command, *few], kept)), 's')
    whole = [*command, f'--workdir={os.path.join(folder, "whole")}']
    yield Row(
      f'{name}, all but the final choice compiled before', seconds(lambda: _quietly(whole, kept)), 's', at_most(60.0)
    )


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
  'networks': Part(gpu_networks.networks, 150),
  'cells': Part(tree_cells, 110),
  'sharing': Part(sharing, 150),
  'networks in one program': Part(gpu_networks.one_program, 150),
  'networks in one CUDA graph': Part(gpu_networks.graphs, 150),
  'paper': Part(gpu_networks.paper, 150),
  'search': Part(demo, 240),
  'recurrent kernel': Part(recurrent_loop.kernel, 60),
  'recurrent loop': Part(recurrent_loop.plain, 60),
  'recurrent loop as a CUDA graph': Part(recurrent_loop.plain, 60, GRAPH),
  'recurrent loop as an unrolled CUDA graph': Part(recurrent_loop.plain, 60, UNROLLED_GRAPH),
  'ask and tell': Part(asking, 45),
  'precision': Part(precision.rows, 150),
}


ROW = 'row: '  # prefix of an output line that holds a figure


def main(name: str, setup: Setup) -> None:
  """Measures one part and prints each figure as a line."""
  launch.set_up_jax(1)
  os.environ.setdefault(CACHE, getattr(jax.config, launch.CACHE))  # so naive JAX compiles once, and not in each repeat
  for each in PARTS[name].rows(setup):
    print(ROW + json.dumps(show.plain(each)), flush=True)


if __name__ == '__main__':
  main(sys.argv[1], Setup(*json.loads(sys.argv[2])))
