"""Found networks as Flax modules and as Python files: they compute the same as the child."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tools import exported

from nas_jax import export, published, space

CONV = space.chain_space(('conv 3 3 1',), 1).decode([0])


def check(kind, numbers):
  """Compares in double precision, so that a difference is not just rounding."""
  for number in numbers:
    found = exported.one(kind, number)
    assert max(found.values()) < 1e-11, (kind, number, found)


@pytest.mark.parametrize('kind', ['conv', 'enas_micro', 'enas_rnn'])
def test_child_module_and_file_compute_the_same(x64, kind):
  """In evaluation and in training, where the statistics of batch norm move alike."""
  check(kind, [0])


@pytest.mark.long
@pytest.mark.parametrize('kind', exported.KINDS)
def test_child_module_and_file_compute_the_same_for_many(x64, kind):
  check(kind, range(12))


@pytest.mark.parametrize(
  ('arch', 'options'),
  [
    (published.FIGURE_7, {'pools': (13,)}),
    (published.XU_CIFAR10, {'norm_first': False}),
    (published.ENAS_MICRO, {'filters': 4, 'cells': 3}),
    (space.MacroArch((0, 1, 2, 3, 4, 5), (1,) * 15), {'concat': True, 'double': True}),
    (published.NASCELL, {'vocabulary': 50, 'features': 8, 'layers': 2}),
    (published.ENAS_RNN, {'vocabulary': 50, 'features': 8, 'tied': True}),
    ('LSTM', {'vocabulary': 50, 'features': 8, 'embedding': 5}),
    (published.NASCELL, {'outputs': 3, 'features': 8, 'layers': 2}),
    ('LSTM', {'outputs': 3, 'features': 8}),
  ],
  ids=lambda value: type(value).__name__,
)
def test_a_file_is_one_to_paste(arch, options):
  text, scope = export.to_source(arch, **options), {}
  exec(text, scope)
  lines = text.splitlines()
  assert max(map(len, lines)) <= 120 and not text.endswith('\n\n') and not any(line.endswith(' ') for line in lines)
  imported = {line for line in lines if line.startswith(('import', 'from'))}
  assert imported <= {'import jax', 'import jax.numpy as jnp', 'import flax.linen as nn'}
  names = {line.split(' as ')[-1].split()[-1] for line in imported}
  assert all(f'{name}.' in text.split('"""', 2)[2] for name in names)  # none is imported in vain
  assert 'nas_jax' not in text
  # It makes its own variables, in the shapes of those of the module.
  module, made = export.module(arch, **options), next(scope[n] for n in ('Network', 'LanguageModel') if n in scope)()
  example = jnp.zeros((1, 9, 9, 3)) if hasattr(module, 'classes') else jnp.zeros((1, 2), jnp.int32)
  example = jnp.zeros((1, 5, 3)) if hasattr(module, 'outputs') else example
  one, other = (jax.eval_shape(network.init, jax.random.key(0), example) for network in (module, made))
  assert jax.tree.map(jnp.shape, one) == jax.tree.map(jnp.shape, other)


def test_an_lstm_for_sequences():
  found = exported.of_sequences('LSTM', np.random.default_rng(0), jax.random.key(0))
  assert max(found.values()) < 1e-5


def test_a_module_trains_as_any_of_flax():
  """The loss falls, and the running statistics move."""
  module = export.module(CONV, classes=3)
  images = jnp.asarray(np.random.default_rng(0).normal(size=(6, 6, 6, 1)), jnp.float32)
  variables, labels = jax.jit(module.init)(jax.random.key(0), images), jnp.arange(6) % 3

  @jax.jit
  def step(variables):
    def loss(params):
      logits, moved = module.apply(variables | {'params': params}, images, train=True, mutable=['batch_stats'])
      return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), moved

    (value, moved), grads = jax.value_and_grad(loss, has_aux=True)(variables['params'])
    return {'params': optax.tree_utils.tree_add_scale(variables['params'], -1.0, grads), **moved}, value

  losses, first = [], variables
  for _ in range(30):
    variables, value = step(variables)
    losses.append(float(value))
  assert losses[-1] < 0.9 * losses[0]
  before, after = (tree['batch_stats']['layer_0_norm']['var'] for tree in (first, variables))
  assert not np.allclose(before, after)


def test_costs_by_hand_and_by_the_architecture():
  """The count from the program is that of `space.count`, which knows the architecture alone."""
  for arch in (published.FIGURE_7, published.XU_CIFAR10):
    counted = space.count(arch, (32, 32, 3), 10)
    found = export.cost(export.module(arch), jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32))
    assert found == (counted.params, counted.macs)
  # Two layers of LSTM of width 4 on an embedding of 3, and a softmax of 7: products of one token.
  network = export.module('LSTM', vocabulary=7, features=4, layers=2, embedding=3)
  found = export.cost(network, jax.ShapeDtypeStruct((1, 1), jnp.int32))
  assert found.multiply_adds == 4 * 4 * (3 + 4) + 4 * 4 * (4 + 4) + 4 * 7
  assert found.weights == found.multiply_adds + 7 * 3 + 2 * 4 * 4 + 7
  # A separable convolution of ENAS: 1 x 1, then depthwise 3 x 3 and 1 x 1, 2 filters, on 5 x 5 pixels.
  network = export.module(space.MacroArch((1,), ()), classes=3, filters=2)
  found = export.cost(network, jax.ShapeDtypeStruct((1, 5, 5, 1), jnp.float32))
  assert found.multiply_adds == 25 * (9 * 1 * 2 + 2 * 2 + 9 * 2 + 2 * 2) + 2 * 3


class Conditional(nn.Module):
  """A dense layer, and then one of two products or none."""

  @nn.compact
  def __call__(self, x):
    y = nn.Dense(4)(x)
    branches = [lambda y: y @ jnp.ones((4, 3)), lambda y: y @ jnp.ones((4, 2)) @ jnp.ones((2, 3)), lambda y: y[:, :3]]
    return jax.lax.switch(jnp.int32(y[0, 0]), branches, y)


def test_of_a_conditional_the_most_costly_branch_counts():
  assert export.cost(Conditional(), jax.ShapeDtypeStruct((1, 3), jnp.float32)) == (3 * 4 + 4, 3 * 4 + 4 * 2 + 2 * 3)


@pytest.mark.parametrize('function', [export.module, export.to_source])
def test_an_architecture_of_another_type_is_refused(function):
  arch = space.choice_space({'width': ('1', '2')}).decode([0])
  with pytest.raises(ValueError, match='ChoiceArch cannot be exported: want one of ConvArch'):
    function(arch)
