"""Convolutional networks on one accelerator: one at a time, several at once, and of the paper's size."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
import functools
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench import conv, machine, presets, rivals, trained
from experiments.bench.timing import Row, Setup, Way, alternating, at_least, row, seconds, way
from nas_jax import space
from nas_jax.children import conv as conv_child
from nas_jax.nn import image_ops
from nas_jax.space.conv import ConvArch
from nas_jax.space.network import count
from nas_jax.systems import classifier
from nas_jax.systems import conv as conv_system
from nas_jax.training import child as child_lib
from nas_jax.training import evaluators, fit, layout
from nas_jax.types import Array, Key, PyTree

CLOSE = 1e-2  # the greatest allowed difference of losses, as matrix products round their factors to ten bits (TF32)
IN_FLIGHT = 16  # number of networks that train at the same time

# By itself XLA puts the kernels between two convolutions into a CUDA graph, as a chain. These options put the
# convolutions in too, and let kernels that do not depend on each other run at the same time.
GRAPH = {
  'xla_gpu_enable_command_buffer': 'FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN,DYNAMIC_SLICE_FUSION,CONVOLUTION',
  'xla_gpu_graph_min_graph_size': 1,
}
BRANCHES = GRAPH | {'xla_gpu_command_buffer_scheduling_mode': 'CONCURRENT'}

Member = tuple[Callable[[Any, fit.FitState], fit.FitState], fit.FitState]  # a training step of a network; its state


def networks(setup: Setup) -> Iterator[Row]:
  """Measures networks trained one at a time and several at once, against plain JAX and PyTorch one at a time."""
  size = conv.SMALL if setup.small else conv.SIZES[0]._replace(steps=50)
  own, name, flight = conv.task(size), size.words, 3 if setup.small else IN_FLIGHT
  archs, keys = own.children()
  static, child = space.unstack(archs), conv_child.build(own.setup.inputs)
  programs = [own.programs(child, arch) for arch in static]

  def begun(k: int) -> trained.Group:
    return trained.alike(programs[k % len(static)], jax.random.fold_in(keys[k % len(static)], k), own.data, size.steps)

  each = trained.in_threads(begun, range(len(static)))
  more = each + trained.in_threads(begun, range(len(static), flight))
  ways, steps = {'own': trained.one_by_one(each), 'flight': _at_once(more)}, len(each) * size.steps
  found = alternating(ways, setup.repeats)  # before the rivals, which take longer
  yield row(f'{name}: a step, one network at a time', 1e3 * found['own'] / steps, 'ms')
  params = [jax.tree.map(lambda x: x[0], group.params) for group in each]
  losses = np.stack([group.losses[0] for group in each])
  with tempfile.TemporaryDirectory() as folder:
    others = _conv_rivals(folder, setup, own, static, params, losses)
    found = alternating({**ways, **others}, setup.repeats)
  yield row(f'{name}: a step of naive JAX', 1e3 * found['naive'] / steps, 'ms')
  yield row(f'{name}: one at a time against naive JAX', found['naive'] / found['own'], bar=at_least(1.1))
  if 'torch' in others:
    yield row(f'{name}: one at a time against PyTorch eager', found['torch'] / found['own'], bar=at_least(3.0))
  rates = (len(more) / found['flight']) / (len(each) / found['naive'])
  yield row(f'{name}: children an hour, {len(more)} in flight, against naive JAX one by one', rates, bar=at_least(3.0))


def one_program(setup: Setup) -> Iterator[Row]:
  """Measures networks of different architectures side by side in one program, which makes a step of each in turn."""
  yield from _beside_each_other(setup, {'': {}})


def graphs(setup: Setup) -> Iterator[Row]:
  """Measures the same with convolutions in the CUDA graphs of the programs. It fails if XLA cannot capture one."""
  yield from _beside_each_other(setup, {', as a graph': GRAPH, ', as a graph with branches': BRANCHES})


def _beside_each_other(setup: Setup, options: Mapping[str, dict[str, Any]]) -> Iterator[Row]:
  """Measures networks in one program with each of the options of the compiler, and one at a time with the first."""
  size = conv.SMALL if setup.small else conv.SIZES[0]._replace(steps=50)
  own, name, (first, *_) = conv.task(size), size.words, options
  archs, keys = own.children()
  static = space.unstack(archs)
  members: list[Member] = trained.in_threads(lambda k: _member(own, static[k], keys[k]), range(len(static)))
  kinds = {f'{len(members)} in one program{how}': ([members], each) for how, each in options.items()}
  kinds |= {(alone := f'one at a time{first}'): ([[member] for member in members], options[first])}
  jobs = [(kind, group, each) for kind, (groups, each) in kinds.items() for group in groups]
  made: list[trained.Group] = trained.in_threads(lambda job: _side_by_side(own, job[2], job[1]), jobs)
  groups = {kind: [group for (of, *_), group in zip(jobs, made, strict=True) if of == kind] for kind in kinds}
  losses = {kind: np.concatenate([group.losses for group in each]) for kind, each in groups.items()}
  off = np.max([np.abs(each - losses[alone]) for each in losses.values()])
  if not off <= CLOSE:
    raise ValueError(f'networks in one program train otherwise than one at a time: losses differ by {off:.2g}.')
  ways: dict[str, Way] = {kind: _in_turn(each) for kind, each in groups.items()}
  found = alternating(ways, setup.repeats)
  for kind in kinds:  # before the rivals, which take longer
    yield row(f'{name}: a step, {kind}', 1e3 * found[kind] / (len(members) * size.steps), 'ms')
  params = [state.params for _, state in members]
  with tempfile.TemporaryDirectory() as folder:
    naive = _conv_rivals(folder, setup._replace(torch_python=''), own, static, params, losses[alone])
    found = alternating(ways | naive, setup.repeats)
  for kind in kinds:
    bar = None if kind == alone else at_least(3.0)
    yield row(f'{name}: {kind}, against naive JAX one by one', found['naive'] / found[kind], bar=bar)


def _member(own: conv.Task, arch: ConvArch, key: Key) -> Member:
  """Returns the training step of one network, and the network before its first step."""
  hyperparameters = conv_system.hyperparameters(own.cfg, arch)
  child = child_lib.bind_arch(conv_child.build(own.setup.inputs), lambda _: conv_child.ChildSpec(arch, hyperparameters))
  optimizer = own.setup.optimizer(own.size.steps)(hyperparameters)
  state = jax.jit(lambda key: fit.untrained(child, optimizer, (), key))(key)
  return lambda data, state: fit.advance(child, optimizer, data, state, (), key), state


def _side_by_side(own: conv.Task, options: dict[str, Any], members: Sequence[Member]) -> trained.Group:
  """Returns networks that one program trains. Its compilation takes the given options."""
  steps, states = zip(*members, strict=True)
  params = tuple(state.params for state in states)

  def advanced(_: Array, states: tuple[fit.FitState, ...], data: PyTree) -> tuple[fit.FitState, ...]:
    return tuple(step(data, state) for step, state in zip(steps, states, strict=True))

  known = layout.jit_options(layout.child_mesh(), image_ops.compiler_options).get('compiler_options', {})
  program = jax.jit(
    lambda data, count, states: jax.lax.fori_loop(0, count, functools.partial(advanced, data=data), states),
    compiler_options=known | options,
  )

  def advance(count: int) -> np.ndarray:
    nonlocal states
    states = program(own.data, count, states)
    return np.array([state.loss for state in states])

  compiling = seconds(lambda: advance(0))
  losses = np.stack([advance(1) for _ in range(trained.CHECKED)], 1)
  return trained.Group(params, losses, compiling, lambda: seconds(lambda: advance(own.size.steps)))


def _in_turn(groups: Sequence[trained.Group]) -> Way:
  return lambda: sum(group.further() for group in groups)


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
  each = trained.in_threads(lambda k: trained.alike(programs[k], keys[k], own.data, size.steps), range(len(programs)))
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
