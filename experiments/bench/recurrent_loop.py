"""The loop over time of a static tree cell: as it is, unrolled, and as one GPU kernel.

Cells with weights of their own train by gradient descent in a loop of steps, as children do, but without a softmax.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from experiments.bench import recurrent_kernel
from experiments.bench.timing import Row, Setup, Way, alternating, at_most, row, way
from nas_jax import tree_cell
from nas_jax.types import Array, PyTree

CLOSE = 1e-2  # the greatest allowed difference of gradients, as matrix products round their factors to ten bits (TF32)


class Size(NamedTuple):
  """The size of the cells and of a measurement."""

  hidden: int = 64
  batch: int = 20
  bptt: int = 35
  children: tuple[int, ...] = (1, 16, 64)
  steps: int = 50
  arch: tree_cell.TreeArch = tree_cell.NASCELL


SMALL = Size(4, 3, 4, (1, 2), 2, tree_cell.TreeArch((0, 1, 1), (1, 3, 2), (0, 3), (1, 0)))


def plain(setup: Setup) -> Iterator[Row]:
  """Measures `tree_cell.unroll` with one and with five time steps in an iteration of its loop."""
  ways: dict[str, Callable] = {
    'plain loop': tree_cell.unroll,
    'unrolled by 5': functools.partial(tree_cell.unroll, together=5),
  }
  yield from _time_steps(setup, ways)


def kernel(setup: Setup) -> Iterator[Row]:
  """Compares the gradients of the kernel with those of the plain loop, and measures it. On a CPU it is interpreted."""
  own = functools.partial(recurrent_kernel.unroll, interpret=jax.default_backend() == 'cpu')
  size = SMALL if setup.small else Size()
  weights, xs = _cells(size, 2)
  found, wanted = (
    jax.jit(jax.vmap(functools.partial(_gradient, unroll, size.arch), (0, None)))(weights, xs)
    for unroll in (own, tree_cell.unroll)
  )
  off = jax.tree.map(lambda a, b: jnp.abs(a - b).max() / jnp.abs(b).max(), found, wanted)
  yield Row(
    'kernel: relative difference of its gradients', float(jnp.stack(jax.tree.leaves(off)).max()), '', at_most(CLOSE)
  )
  yield from _time_steps(setup, {f'kernel, {n} warps': functools.partial(own, warps=n) for n in (8, 16)})


def _time_steps(setup: Setup, ways: dict[str, Callable]) -> Iterator[Row]:
  """Measures a time step, forward and backward, of several cells at once."""
  size = SMALL if setup.small else Size()
  for m in size.children:
    with ThreadPoolExecutor() as threads:  # they compile at the same time
      compiled = threads.map(lambda unroll, m=m: _training(unroll, size, m), ways.values())
      programs = dict(zip(ways, compiled, strict=True))
    found = alternating(programs, setup.repeats)
    for name, taken in found.items():
      name = f'static cell H={size.hidden}, {m} at once: a time step, {name}'
      yield row(name, 1e6 * taken / (size.steps * size.bptt), 'us', at_most(20))


def _training(unroll: Callable, size: Size, m: int) -> Way:
  """Returns a way that trains m cells for some steps. The program does not know the number of steps, as in a search."""
  weights, xs = _cells(size, m)
  gradients = jax.vmap(functools.partial(_gradient, unroll, size.arch), (0, None))

  def step(_: Array, weights: PyTree) -> PyTree:
    return jax.tree.map(lambda w, g: w - 1e-3 * g, weights, gradients(weights, xs))

  program = jax.jit(lambda steps, weights: jax.lax.fori_loop(0, steps, step, weights))
  return way(lambda: program(size.steps, weights))


def _cells(size: Size, m: int) -> tuple[PyTree, Array]:
  """Returns random weights [m, ...], and inputs [T, B, H] that all cells share."""
  keys = jax.random.split(jax.random.key(0), m)
  weights = jax.vmap(lambda key: tree_cell.init(key, size.arch, size.hidden, size.hidden))(keys)
  return weights, jax.random.normal(jax.random.key(1), (size.bptt, size.batch, size.hidden))


def _gradient(unroll: Callable, arch: tree_cell.TreeArch, weights: PyTree, xs: Array) -> PyTree:
  zeros = jnp.zeros(xs.shape[1:])
  return jax.grad(lambda weights: (unroll(weights, arch, (zeros, zeros), xs)[1] ** 2).mean())(weights)
