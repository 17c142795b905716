"""Tree-cell children: one program for all, against a program for each, PyTorch, and their matrix products alone."""

from collections.abc import Callable, Iterator, Sequence
import subprocess
import sys
import tempfile
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import numpy as np

from experiments.bench import machine, rivals, trained
from experiments.bench.timing import Bar, Row, Setup, Way, alternating, at_least, at_most, row, way
from nas_jax import space, tree_cell
from nas_jax.children import language_model
from nas_jax.datasets import text as text_lib
from nas_jax.datasets import text_batches
from nas_jax.systems import cell, language
from nas_jax.training import child as child_lib
from nas_jax.training import evaluators, fit, layout
from nas_jax.types import Array, Key, PyTree


class Size(NamedTuple):
  """Children of one size, and the bars of their figures."""

  hidden: int
  vocabulary: int
  layers: int = 1
  children: int = 4
  steps: int = 10  # of a measurement
  beside_torch: Bar | None = None
  of_products: Bar | None = None
  base: int = 8
  batch: int = 20
  bptt: int = 35

  @property
  def words(self) -> str:
    """The size in words."""
    layers = f', {self.layers} layers' if self.layers > 1 else ''
    return f'cells H={self.hidden}, V={self.vocabulary}{layers}'


SIZES = (
  Size(64, 100, steps=50, beside_torch=at_least(10.0)),
  Size(256, 1000, beside_torch=at_least(4.0), of_products=at_least(0.75)),
  # The paper's medium size.
  Size(650, 10_000, layers=2, children=2, steps=4, beside_torch=at_least(1.5), of_products=at_least(0.8)),
)
SMALL = Size(4, 7, layers=2, children=2, steps=2, base=2, batch=3, bptt=4)
DIFFERENT = 1000  # number of cells that must share a program


class Task(NamedTuple):
  """Children to train, their data and programs."""

  size: Size
  data: text_batches.Data
  programs: Callable[..., fit.Fit]  # (static arch, or None for one program for all; mesh)
  children: Callable[[int], tuple[PyTree, Key]]  # m -> random archs [m], keys [m]
  cfg: cell.Config


def rows(setup: Setup) -> Iterator[Row]:
  """Measures cells in Flax models, children of each size, the number of programs, and the time of an import."""
  sizes = (SMALL,) if setup.small else SIZES
  own, many = task(sizes[0]), 6 if setup.small else DIFFERENT
  yield from in_flax(SMALL if setup.small else SIZES[1], setup)
  for size in sizes:
    yield from compared(size, setup)
  one = trained.compiled('cells: ', own.programs(), *own.children(many), own.data, max(2, many // 10))
  yield from (one, importing(setup))


def in_flax(size: Size, setup: Setup) -> Iterator[Row]:
  """Times forward and backward passes of the LSTM as a tree, in `nn.RNN` and by `unroll`, against Flax's LSTM.

  The tree has eight leaves where the LSTM has four gates, and so twice as many multiply-adds.
  """
  zeros = jnp.zeros((size.batch, size.hidden))
  xs = jax.random.normal(jax.random.key(0), (size.bptt, size.batch, size.hidden))

  def in_rnn(rnn_cell: nn.RNNCellBase) -> Way:
    rnn = nn.RNN(rnn_cell, time_major=True)
    weights = rnn.init(jax.random.key(1), xs)

    def loss(weights: PyTree, xs: Array) -> Array:
      ys: Any = rnn.apply(weights, xs)
      return (ys**2).mean()

    program = jax.jit(jax.value_and_grad(loss, (0, 1)))
    return way(lambda: program(weights, xs))

  def unrolled(params: PyTree, xs: Array) -> Array:
    return (tree_cell.unroll(params, tree_cell.LSTM, (zeros, zeros), xs)[1] ** 2).mean()

  unroll = jax.jit(jax.value_and_grad(unrolled, (0, 1)))
  params = tree_cell.init(jax.random.key(1), tree_cell.LSTM, size.hidden, size.hidden, bias=True)
  ways = {
    'TreeCell(LSTM)': in_rnn(tree_cell.TreeCell(size.hidden, tree_cell.LSTM, bias=True)),
    'unroll(LSTM)': way(lambda: unroll(params, xs)),
    'OptimizedLSTMCell': in_rnn(nn.OptimizedLSTMCell(size.hidden)),
  }
  found = alternating(ways, 10 * setup.repeats)
  flax = found.pop('OptimizedLSTMCell')
  what = f'Flax H={size.hidden}, B={size.batch}, T={size.bptt}, forward and backward'
  yield row(f'{what}: OptimizedLSTMCell in nn.RNN', 1000 * flax, 'ms')
  for name, taken in found.items():
    yield row(f'{what}: {name}, in the time of OptimizedLSTMCell', taken / flax)
    yield row(f'{what}: {name}, the same for each multiply-add', taken / flax / 2)


def task(size: Size, unroll: int = 1) -> Task:
  """Returns children that train on random text by plain SGD, without dropout."""
  cfg = cell.Config(
    base=size.base, hidden=size.hidden, layers=size.layers, batch=size.batch, bptt=size.bptt, optimizer='sgd',
    schedule='constant', lr=0.1, unroll=unroll,
  )  # fmt: skip
  text = noise(size.vocabulary, size.batch * (16 * size.bptt + 1))
  cells, data = cell.make_space(cfg), text_batches.lay_out(text, size.batch, size.bptt, size.batch)
  child, plain = (
    language.build(cfg, text, language_model.tree(cells.operations), size.hidden),
    language.hyperparameters(cfg, size.hidden),
  )

  def programs(arch: PyTree = None, mesh: Mesh | None = None) -> fit.Fit:
    def plan(traced: PyTree) -> language_model.ChildSpec:
      return language_model.ChildSpec(traced if arch is None else arch, plain)

    return language.fitter(cfg, data, child_lib.bind_arch(child, plan), lambda _: plain, size.steps, size.steps, mesh)

  def children(m: int) -> tuple[PyTree, Key]:
    batch = evaluators.random_batch(cells, jax.random.key(1), m)
    return batch.archs, batch.keys

  return Task(size, data, programs, children, cfg)


def noise(vocabulary: int, words: int) -> text_lib.Text:
  """Returns a text of random tokens with tiny validation and test splits."""
  tokens = np.random.default_rng(0).integers(vocabulary, size=words, dtype=np.int32)
  return text_lib.Text(tokens, tokens[:9], tokens[:9], tuple(map(str, range(vocabulary))), '')


def compared(size: Size, setup: Setup) -> list[Row]:
  """Times the training of the same children by both kinds of programs and by the rivals."""
  own, name, m = task(size), size.words, size.children
  archs, keys = own.children(m)
  static = space.unstack(archs)
  generic = trained.group(own.programs(), archs, keys, own.data, size.steps)
  each = [trained.alike(own.programs(arch), key, own.data, size.steps) for arch, key in zip(static, keys, strict=True)]
  dense, dense_flops = machine.fastest(setup)
  ways: dict[str, Way] = {'generic': generic.further, 'specialised': trained.one_by_one(each)}
  ways |= {'products': products(size), 'dense': dense}
  with tempfile.TemporaryDirectory() as folder:
    write(folder, own, static, [jax.tree.map(lambda x, k=k: x[k], generic.params) for k in range(m)])
    others = rivals.ways(folder, setup, generic.losses)
    found = alternating({**ways, **others}, setup.repeats)
  flops, taken = m * size.steps * flops_of(size), found['generic']
  alone, most = flops / found['products'], dense_flops / found['dense']
  return [
    row(f'{name}: generic, its products alone counted', flops / taken / 1e9, 'GF/s'),
    *rivals.rows(name, 'generic', found, others, size.beside_torch),
    row(f'{name}: generic against its own products run alone', found['products'] / taken, bar=size.of_products),
    row(f'{name}: these against the largest dense product', alone / most),
    row(f'{name}: generic against specialised, warm', found['specialised'] / taken, bar=at_least(0.85)),
    row(f'{name}: generic', 3600 * m * size.steps / taken / 1e6, 'M steps/h'),
    Row(f'{name}: compiling the program of all', generic.compiling, 's'),
    row(f'{name}: compiling one of one cell', np.array([group.compiling for group in each]), 's'),
  ]


def write(folder: str, own: Task, static: Sequence[Any], params: Sequence[PyTree]) -> None:
  """Writes cells, weights and batches to a folder for the rivals."""
  size = own.size
  settings = {
    'layers': size.layers,
    'batch': size.batch,
    'hidden': size.hidden,
    'lr': own.cfg.lr,
    'clip': own.cfg.clip,
  }
  rivals.write(folder, static, params, [own.data.train], kind='cell', steps=size.steps, settings=settings)


def flops_of(size: Size) -> float:
  """Returns the floating-point operations of a training step's matrix products.

  Each product of the forward pass has two of the same size in the backward pass. The first layer projects each word of
  the vocabulary once, if there are fewer of these than tokens.
  """
  rows, gates = size.batch * size.bptt, size.base * size.hidden
  by_rows = rows * ((2 * size.layers - 1) * gates + size.vocabulary) + min(rows, size.vocabulary) * gates
  return 3 * 2.0 * size.hidden * by_rows


def products(size: Size) -> Way:
  """Returns a way that runs only the matrix products of all children, in the same loops and on the same devices."""
  hidden, width = size.hidden, size.base * size.hidden
  shapes = [(hidden, width), (hidden, width)] * size.layers + [(hidden, size.vocabulary)]
  keys = jax.random.split(jax.random.key(0), len(shapes))
  weights = [jax.random.normal(key, shape) * hidden**-0.5 for key, shape in zip(keys, shapes, strict=True)]
  words = min(size.bptt * size.batch, size.vocabulary)  # rows that the first layer projects
  xs = jax.random.normal(jax.random.key(1), (1, words, hidden))
  places = jax.random.randint(jax.random.key(2), (size.bptt, size.batch), 0, words)

  def each_time(matrix: Array, rows: Array) -> Array:
    return jax.lax.map(lambda row: row @ matrix, rows)

  def step(shared: PyTree, x: Array) -> list[Array]:
    """Returns the gradients of the weights."""
    weights, found = shared, list[Array]()
    for layer, (kernel, recurrent) in enumerate(zip(weights[:-1:2], weights[1:-1:2], strict=True)):
      gates = x @ kernel
      of_kernel, x = jnp.einsum('tbi,tbj->ij', x, gates), gates @ kernel.T * (1 / size.base)
      if layer == 0:
        gates, x = gates[0][places], x[0][places]
      forward = each_time(recurrent, gates[..., :hidden])
      backward = each_time(recurrent.T, forward)
      found += [of_kernel, jnp.einsum('tbi,tbj->ij', backward, forward)]
    logits = x @ weights[-1]
    return [*found, jnp.einsum('tbi,tbj->ij', logits @ weights[-1].T, logits)]

  def child(shared: PyTree, start: Array) -> list[Array]:
    weights, xs = shared
    # Each step depends on the one before, or XLA would compute only one.
    return jax.lax.fori_loop(0, size.steps, lambda _, last: step(weights, xs + last[0][0, 0] * 1e-9), start)

  mesh = layout.child_mesh()
  count = size.children + -size.children % mesh.size
  starts = [jnp.zeros((count, *shape)) for shape in shapes]
  program = layout.over_children(child, mesh)
  shared = layout.share((weights, xs), mesh)
  return way(lambda: program(shared, starts))


def importing(setup: Setup) -> Row:
  """Measures the seconds of `import nas_jax.tree_cell` after `import flax.linen`."""
  code = 'import time, flax.linen; t = time.perf_counter(); import nas_jax.tree_cell; print(time.perf_counter() - t)'

  def fresh() -> float:
    return float(subprocess.run([sys.executable, '-c', code], capture_output=True, check=True, cwd=rivals.ROOT).stdout)

  found = alternating({'import': fresh}, setup.repeats)['import']
  return row('import nas_jax.tree_cell, over import flax.linen', found, 's', at_most(0.3))
