"""The language model child."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import testing

from nas_jax import space
from nas_jax.children import language_model
from nas_jax.datasets import text_batches

V, H, B, T = 5, 4, 3, 5
ARCH = space.TreeArch((0, 1, 0), (1, 2, 1), (0, 1), (2, 0))
PLAN = language_model.ChildSpec(ARCH, language_model.Hyperparameters(0.0, 0.0, 0.5, 0.5))


def network(layers=1, cell=None, batch=B, **kwargs):
  return language_model.build(V, H, layers, batch, cell or language_model.tree(), **kwargs)


def dropping(**rates):
  return PLAN._replace(hyperparameters=PLAN.hyperparameters._replace(dropout=language_model.Dropout(**rates)))


@pytest.fixture(scope='module')
def laid_out():
  return text_batches.lay_out(testing.text(), B, T, 4)


def test_a_softmax_of_zeros_has_the_perplexity_of_a_guess(laid_out):
  child = network()
  params = child.init(PLAN, jax.random.key(0))
  params['softmax'] = jnp.zeros((H, V))
  np.testing.assert_allclose(child.score(params, PLAN, (), laid_out)['perplexity'], V, rtol=1e-5)


ENAS_ARCH = space.RnnArch((1, 3), (0,))


@pytest.mark.parametrize(
  ('cell', 'arch'),
  [(language_model.tree(), ARCH), (language_model.enas(), ENAS_ARCH), (language_model.lstm(), ())],
  ids=['tree', 'enas', 'lstm'],
)
def test_initial_weights_are_uniform_within_the_scales_of_the_config(cell, arch):
  scales = language_model.Hyperparameters(0.0, 0.0, init_scale=0.25, cell_scale=0.0625)
  params = network(2, cell).init(language_model.ChildSpec(arch, scales), jax.random.key(0))
  for leaf in jax.tree.leaves(params['cells']):
    assert leaf.ndim < 2 or 0.04 < abs(leaf).max() <= 0.0625
  assert all(0.2 < abs(params[name]).max() <= 0.25 for name in ('embedding', 'softmax'))


@pytest.mark.parametrize('layers', [1, 2])
def test_perplexity_by_a_plain_loop(laid_out, layers):
  """Each validation stream token by token, state carried from its beginning to its end."""
  from nas_jax import tree_cell

  child = network(layers)
  params = child.init(PLAN, jax.random.key(1))
  text = testing.text()
  count = len(text.valid) - 1
  length = np.asarray(laid_out.valid[0]).size // 4
  step = jax.jit(lambda p, carry, x: tree_cell.apply(p, ARCH, carry, x))
  total = 0.0
  for start in range(0, count, length):
    carries = [(jnp.zeros((1, H)), jnp.zeros((1, H)))] * layers
    for i in range(start, min(start + length, count)):
      x = params['embedding'][text.valid[i]][None]
      for n, cell_params in enumerate(params['cells']):
        carries[n], x = step(cell_params, carries[n], x)
      logits = np.asarray((x @ params['softmax'])[0] + params['softmax_bias']).astype(np.float64)
      total -= logits[text.valid[i + 1]] - np.log(np.exp(logits).sum())
  score = child.score(params, PLAN, (), laid_out)['perplexity']
  np.testing.assert_allclose(score, np.exp(total / count), rtol=1e-5)


def test_state_is_carried_within_an_epoch_and_cleared_at_its_start(laid_out):
  child = network()
  params = child.init(PLAN, jax.random.key(2))
  ones = jax.tree.map(jnp.ones_like, child.carry(params))
  key = jax.random.key(0)
  epoch = len(laid_out.train)

  def loss(carry, step):
    return float(child.loss(params, PLAN, carry, child.batch(laid_out, key, jnp.asarray(step)), key)[0])

  for step, differs in ((0, False), (1, True), (epoch, False)):
    assert (loss(ones, step) != loss(child.carry(params), step)) == differs
  # Epochs repeat.
  assert loss(ones, 1) == loss(ones, epoch + 1)


def test_a_tied_softmax_is_the_embedding(laid_out):
  tied, untied = network(tied=True), network()
  params = tied.init(PLAN, jax.random.key(3))
  assert 'softmax' not in params
  copied = params | {'softmax': params['embedding'].T}
  assert tied.score(params, PLAN, (), laid_out) == untied.score(copied, PLAN, (), laid_out)


# Which rows of which weights get no gradient at all where one stream's mask is 0 for all time steps.
DROPPED = {'embedding': ('embedding',), 'output': ('softmax',), 'input': ('cells', 0, 'kernel')}
DROPPED |= {'recurrent': ('cells', 0, 'recurrent_kernel')}


@pytest.mark.parametrize('place', DROPPED)
def test_dropout_takes_one_mask_for_all_time_steps(place):
  child, spec = network(batch=1), dropping(**{place: 0.5})
  params = child.init(PLAN, jax.random.key(4))
  carry = jax.tree.map(jnp.ones_like, child.carry(params))
  tokens = jnp.arange(2 * V + 1)[:, None] % V  # every word twice
  grads = jax.jit(jax.grad(lambda params, key: child.loss(params, spec, carry, (tokens, False), key)[0]))
  counts = []
  for seed in range(20):
    found = grads(params, jax.random.key(seed))
    for step in DROPPED[place]:
      found = found[step]
    counts.append(np.all(np.asarray(found) == 0, axis=1).mean())
  assert 0.3 < np.mean(counts) < 0.7 and len(set(counts)) > 1


def test_dropout_is_for_training_alone_and_scaled_to_keep_the_mean(laid_out):
  child, spec = network(), dropping(embedding=0.3, input=0.3, recurrent=0.3, output=0.3)
  params = child.init(PLAN, jax.random.key(5))
  assert child.score(params, spec, (), laid_out) == child.score(params, PLAN, (), laid_out)
  # One word, dropped or doubled: the mean of its embedding over many masks is itself.
  linear = network(cell=language_model.Cell(None, lambda b, h: (), lambda p, a, c, xs, m, together: (c, xs)))
  params = {'embedding': jnp.eye(V, H), 'cells': [()], 'softmax': jnp.eye(H, V) * 1e-3, 'softmax_bias': jnp.zeros(V)}
  batch = jnp.ones((2, B), jnp.int32), True
  keys, spec = jax.random.split(jax.random.key(0), 2000), dropping(embedding=0.5)
  losses = jax.vmap(lambda key: linear.loss(params, spec, [()], batch, key)[0])(keys)
  # For small logits z the loss is log V - z_1 + mean(z): linear, so its mean is that without dropout.
  wanted = np.log(V) - 1e-3 + 1e-3 / V
  assert abs(losses.mean() - wanted) < 1e-4 and losses.std() > 5e-4


def test_a_flax_cell_is_flax_rnn(laid_out):
  cell = language_model.flax_cell(lambda features: nn.SimpleCell(features))
  params = cell.init(jax.random.key(0), None, 3, H, 0.5)
  xs = jax.random.normal(jax.random.key(1), (T, B, 3))
  _, ys = cell.unroll(params, None, cell.carry(B, H), xs, None)
  rnn = nn.RNN(nn.SimpleCell(H), time_major=True)
  np.testing.assert_allclose(ys, rnn.apply({'params': {'cell': params['params']}}, xs), rtol=1e-6)


@pytest.mark.parametrize('name', ['tree', 'enas', 'lstm', 'flax'])
def test_unrolled_time_steps_change_no_number(x64, laid_out, name):
  """Three of five steps in a turn of the loop, and then two: loss, carry and gradients are the same."""
  cell, arch = {
    'tree': (language_model.tree(), ARCH),
    'enas': (language_model.enas(normalize=True), space.RnnArch((1, 3), (0,))),
    'lstm': (language_model.lstm(), ARCH),
    'flax': (language_model.flax_cell(lambda features: nn.SimpleCell(features, param_dtype=float)), ARCH),
  }[name]
  spec = PLAN._replace(arch=arch)

  def measured(together):
    child = network(cell=cell, together=together)
    params = child.init(spec, jax.random.key(0))
    batch = child.batch(jax.tree.map(jnp.asarray, laid_out), jax.random.key(1), jnp.asarray(0))
    both = jax.value_and_grad(child.loss, has_aux=True)
    arguments = params, spec, child.carry(params), batch, jax.random.key(2)
    return jax.jit(lambda: both(*arguments))(), str(jax.make_jaxpr(lambda: both(*arguments))())

  (one, plain), (other, unrolled) = measured(1), measured(3)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), one, other)
  assert 'unroll=3' in unrolled and 'unroll=1' not in unrolled and 'unroll=3' not in plain
