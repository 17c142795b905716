"""Compares random networks of every kind in three forms: the child, its Flax module, and its exported Python file.

Each kind has `--count` random architectures of a small space, with random options, weights and moving statistics. The
network of the file gets the variables of the module. Prints the largest differences from the child: of the outputs of
module and file, in use and in training, and of the moving statistics after a training step. Example:
  python tests/tools/exported.py --count=200
"""

import argparse
from collections.abc import Callable
import pathlib
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

sys.path.extend(str(folder) for folder in pathlib.Path(__file__).resolve().parents[1:3])  # tests/ and the checkout

from nas_jax import export, space
from nas_jax.children import conv, enas_macro, enas_micro, language_model, sequence
from nas_jax.controller import uniform_controller
from nas_jax.space.network import NetworkOptions, network

IMAGE, CLASSES = (7, 6, 2), 3
LAYERS = ('conv 3 4 1', 'conv 2 3 2', 'residual 3 3 1', 'residual 2 2 2', 'max pool 3 2', 'average pool 2 2')
SPACES = {
  'conv': space.conv_space(4, (1, 3), (1, 5), (2, 3), (1, 2), space.LAYER_TYPES, (2, 3)),
  'chain': space.chain_space(LAYERS, 4),
  'enas_macro': space.enas_macro_space(3),
  'enas_micro': space.enas_micro_space(2),
  'tree_cell': space.tree_cell_space(4, ('add', 'mult', 'max'), ('identity', 'tanh', 'sigmoid', 'relu', 'sin')),
  'enas_rnn': space.enas_rnn_space(4),
  'LSTM': space.enas_rnn_space(1),  # whose architectures are not used
}
KINDS = tuple(SPACES)
INPUTS = conv.InputSpec(IMAGE, CLASSES, 2, 2)
EPSILON = 1e-3
COLUMNS = 'module', 'file', 'training', 'statistics'


def one(kind: str, number: int) -> dict[str, float]:
  """Returns the largest differences from the child for random architecture `number` of a kind, by output."""
  rng, key = np.random.default_rng(number), jax.random.fold_in(jax.random.key(0), number)
  made = SPACES[kind]
  arch = 'LSTM' if kind == 'LSTM' else made.decode(np.asarray(uniform_controller(made).sample((), key)))
  if kind in ('tree_cell', 'enas_rnn', 'LSTM'):
    text = _of_text(arch, rng, key)
    # Flax's LSTM starts from float32 zeros, and a sequence model takes no other carry.
    numbers = text if arch == 'LSTM' and jax.config.jax_enable_x64 else of_sequences(arch, rng, key)
    return {name: max(text[name], numbers[name]) for name in text}
  return _of_images(kind, arch, rng, key)


def _of_images(kind: str, arch: Any, rng: np.random.Generator, key: Any) -> dict[str, float]:
  child, forward, options = _image_child(kind, arch, rng)
  spec = conv.ChildSpec(arch, conv.Hyperparameters(0.0, 0.0, 0.0, EPSILON))
  params = child.init(spec, key)
  params, stats = (_drawn(tree, rng) for tree in (params, child.carry(params)))
  images = jnp.asarray(rng.normal(size=(2, *IMAGE)), float)
  module, variables = export.module(arch, **options), export.variables(arch, params, stats)
  _check_same_shapes(module, variables, images)
  file = _run(export.to_source(arch, **options), 'Network')
  found = {'module': 0.0, 'file': 0.0, 'training': 0.0, 'statistics': 0.0}

  def note(name: str, *both: Any) -> None:
    found[name] = max(found[name], _difference(*both))

  (logits, _), (trained, after) = (forward(params, stats, images, train) for train in (False, True))
  for name, made in (('module', module), ('file', file)):
    note(name, logits, made.apply(variables, images))
    other, moved = made.apply(variables, images, train=True, mutable=['batch_stats'])
    note('training', trained, other)
    statistics = export.variables(arch, params, after).get('batch_stats', {})
    note('statistics', statistics, moved.get('batch_stats', {}))
  return found


def _image_child(kind: str, arch: Any, rng: np.random.Generator) -> tuple[Any, Callable, dict[str, Any]]:
  """Returns the child, its forward pass and the options of the module."""
  common = {'classes': CLASSES, 'epsilon': EPSILON}
  if kind in ('conv', 'chain'):
    block, pools = (int(rng.integers(1, 3)), ((), (2,), (2, 3))[rng.integers(3)]) if kind == 'conv' else (1, ())
    of, first = NetworkOptions(block, pools, int(rng.integers(-1, 2))), bool(rng.integers(2))

    def forward(params, stats, x, train):
      return conv.run(params, stats, network(arch, of), x, EPSILON, train, first)

    return conv.build(INPUTS, of), forward, common | of._asdict() | {'norm_first': first}
  filters, double, concat = int(rng.integers(1, 4)), bool(rng.integers(2)), bool(rng.integers(2))
  if kind == 'enas_macro':
    options: Any = enas_macro.NetworkOptions(len(arch.operation), filters, double=double, concat=concat)
    module, own = enas_macro, {'filters': filters, 'double': double, 'concat': concat}
  else:
    cells = int(rng.integers(1, 4))
    options, module = enas_micro.NetworkOptions(cells, filters, len(arch.normal_input) // 2), enas_micro
    own = {'filters': filters, 'cells': cells}

  def run(params, stats, x, train):
    return module.run(params, stats, arch, options, x, EPSILON, jax.random.key(0) if train else None)

  return module.build(INPUTS, options), run, common | own


def _cell(arch: Any) -> language_model.Cell:
  kinds = {'TreeArch': language_model.tree, 'RnnArch': language_model.enas, 'str': language_model.lstm}
  return kinds[type(arch).__name__]()


def of_sequences(arch: Any, rng: np.random.Generator, key: Any) -> dict[str, float]:
  """Returns the largest differences of the outputs for three sequences of different lengths."""
  options = {'outputs': 2, 'features': 4, 'layers': int(rng.integers(1, 3))}
  cell, inputs = _cell(arch), conv.InputSpec((5, 1, 1 + 3), options['outputs'], 1, 1)
  spec = conv.ChildSpec(arch, sequence.Hyperparameters(0.0, 0.0))
  params = _drawn(sequence.build(inputs, 4, options['layers'], cell).init(spec, key), rng)
  x, lengths = jnp.asarray(rng.normal(size=(3, 5, 3)), float), jnp.array([5, 1, 3])
  inside = (jnp.arange(5)[None] < lengths[:, None])[..., None]
  laid_out = jnp.concatenate([inside, x], -1)[:, :, None]
  outputs = sequence.run(cell, params, arch, laid_out, language_model.no_masks(options['layers']))
  module, variables = export.module(arch, **options), export.variables(arch, params, ())
  _check_same_shapes(module, variables, x)
  made = {'module': module, 'file': _run(export.to_source(arch, **options), 'Network')}
  return {name: _difference(outputs, network.apply(variables, x, lengths)) for name, network in made.items()}


def _of_text(arch: Any, rng: np.random.Generator, key: Any) -> dict[str, float]:
  layers, tied, embedding = int(rng.integers(1, 3)), bool(rng.integers(2)), int(rng.integers(2)) * 3
  shape = {'vocabulary': 7, 'layers': layers, 'tied': tied, 'embedding': 0 if tied else embedding}
  cell = _cell(arch)
  child = language_model.build(7, 4, layers, 2, cell, tied, shape['embedding'])
  spec = language_model.ChildSpec(arch, language_model.Hyperparameters(0.0, 0.0, 0.5, 0.5))
  params = _drawn(child.init(spec, key), rng)
  tokens = jnp.asarray(rng.integers(7, size=(2, 6)), jnp.int32)  # [B, T + 1]
  module, variables = export.module(arch, features=4, **shape), export.variables(arch, params, ())
  _check_same_shapes(module, variables, tokens)
  file = _run(export.to_source(arch, features=4, **shape), 'LanguageModel')
  carry, masks = child.carry(params), language_model.no_masks(layers)
  losses, after = language_model.run(cell, params, arch, carry, tokens.T[:-1], tokens.T[1:], masks)
  found = {}
  for name, made in (('module', module), ('file', file)):
    # In two calls; the second gets the carry of the first.
    start = child.carry(params) if arch == 'LSTM' else None  # Flax's own initial carry is always float32
    first, begun = made.apply(variables, tokens[:, :2], start)
    last, rest = made.apply(variables, tokens[:, 2:-1], first)
    log_prob = jax.nn.log_softmax(jnp.concatenate([begun, rest], 1))
    others = jnp.take_along_axis(log_prob, tokens[:, 1:, None], 2)[..., 0]
    found[name] = max(_difference(losses.T, -others), _difference(after, last))
  return found


def _drawn(tree: Any, rng: np.random.Generator) -> Any:
  """Returns random numbers in the shapes of a tree: from 0.5 to 1.5, negated at random where leaves have signs."""

  def draw(leaf):
    sign = 1.0 if leaf.size and (leaf > 0).all() else rng.choice((-1.0, 1.0), leaf.shape)
    return jnp.asarray(sign * rng.uniform(0.5, 1.5, leaf.shape) / max(leaf.size, 1) ** 0.25, float)

  return jax.tree.map(draw, tree)


def _check_same_shapes(module: Any, variables: Any, example: Any) -> None:
  """Raises AssertionError if the variables differ in names or shapes from those that the module would make."""
  made = jax.eval_shape(module.init, jax.random.key(0), example)
  shapes = [jax.tree.map(jnp.shape, dict(tree)) for tree in (made, variables)]
  if shapes[0] != shapes[1]:
    raise AssertionError(f'{shapes[0]} are made, {shapes[1]} carried over')


def _run(text: str, name: str) -> Any:
  """Runs a file and returns its network."""
  scope: dict[str, Any] = {}
  exec(compile(text, 'exported', 'exec'), scope)
  return scope[name]()


def _difference(one: Any, other: Any) -> float:
  """Returns the largest difference, divided by the largest number if that is above 1."""
  found = [0.0]
  for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if not np.isfinite(a).all():
      raise AssertionError('the child itself has no finite outputs')
    found.append(float(np.max(np.abs(a - b)) / max(1.0, np.max(np.abs(a)))) if np.isfinite(b).all() else np.inf)
  return max(found)


def main() -> None:
  """Prints a table of the largest differences by kind."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--count', type=int, default=20, help='architectures of each kind')
  parser.add_argument('--kinds', default=','.join(KINDS), help='which kinds')
  parser.add_argument('--x64', action='store_true', help='compute in double precision')
  options = parser.parse_args()
  jax.config.update('jax_enable_x64', options.x64)
  print(f'{"kind":12}{"networks":>10}' + ''.join(f'{name:>12}' for name in COLUMNS))
  for kind in options.kinds.split(','):
    largest: dict[str, float] = {}
    for number in range(options.count):
      for name, value in one(kind, number).items():
        largest[name] = max(value, largest.get(name, 0.0))
      if (number + 1) % 25 == 0:
        jax.clear_caches()  # a process cannot map the memory of thousands of compiled programs
      if number + 1 == options.count or (number + 1) % 50 == 0:
        words = ''.join(f'{largest[name]:12.1e}' for name in COLUMNS if name in largest)
        print(f'{kind:12}{number + 1:10}{words}', flush=True)


if __name__ == '__main__':
  main()
