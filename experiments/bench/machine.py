"""The ceilings of the machine: products of large matrices and copies of memory, on all devices at once."""

import jax
import jax.numpy as jnp

from experiments.bench.timing import Row, Setup, Way, alternating, row, way
from nas_jax.training import layout

SIZES = 512, 1024, 2048, 4096  # of square matrices; which is the fastest depends on the machine
LARGE = 8192, 16384  # too large for a CPU
COPIED = 256 * 2**20  # bytes on each device, more than its caches hold
COPIES = 20


def rows(setup: Setup) -> list[Row]:
  """Measures the machine's ceilings: products, and copies of memory."""
  products = {f'{n} x {n}': product(n) for n in _sizes(setup)}
  copying, moved = copy(2**12 if setup.small else COPIED)
  found = alternating({name: each for name, (each, _) in products.items()} | {'copy': copying}, setup.repeats)
  rates = [
    row(f'dense f32 product, {name}', flops / found[name] / 1e9, 'GF/s') for name, (_, flops) in products.items()
  ]
  copied = row('copying', moved / found['copy'] / 1e9, 'GB/s', note='read and written')
  return [max(rates, key=lambda each: each.value), copied]


def fastest(setup: Setup) -> tuple[Way, float]:
  """Returns a timing of the matrix product with the most operations a second here, and its operations."""
  products = [product(n) for n in _sizes(setup)]
  return min(products, key=lambda each: min(each[0](), each[0]()) / each[1])


def _sizes(setup: Setup) -> tuple[int, ...]:
  if setup.small:
    return 32, 64
  return SIZES if jax.default_backend() == 'cpu' else SIZES + LARGE


def product(n: int) -> tuple[Way, float]:
  """Returns a timing of squaring a matrix [n, n] on every device, and the floating-point operations of all devices."""
  mesh = layout.child_mesh()
  matrices = jax.random.normal(jax.random.key(0), (mesh.size, n, n))
  square = layout.over_children(lambda _, matrix: matrix @ matrix, mesh)
  return way(lambda: square((), matrices)), 2.0 * n**3 * mesh.size


def copy(size: int) -> tuple[Way, float]:
  """Returns a timing of `COPIES` copies of `size` bytes on each device, and the bytes that all devices move."""
  mesh = layout.child_mesh()
  arrays = jnp.zeros((mesh.size, size // 4))

  # XLA would remove a mere copy. There are many, as allocating a new array costs more than filling it.
  def work(_, array):
    return jax.lax.fori_loop(0, COPIES, lambda _, array: array + 1.0, array)

  added = layout.over_children(work, mesh)
  return way(lambda: added((), arrays)), 2.0 * size * COPIES * mesh.size
