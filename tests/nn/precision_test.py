"""Children in bfloat16 and TF32: which values are rounded, and how close gradients are to those of float32."""

import functools

import jax
from jax.flatten_util import ravel_pytree
import jax.numpy as jnp
import numpy as np
import pytest
import testing

from nas_jax import space
from nas_jax.nn import precision as precision_lib
from nas_jax.systems import cell, conv, enas_images, enas_rnn, sequence
from nas_jax.training import evaluators, fit

CASES = {
  'cell': (testing.cell_config, cell.make_problem, testing.text),
  'conv': (functools.partial(testing.conv_config, child_program='generic'), conv.make_problem, testing.pictures),
  'macro': (testing.macro_config, enas_images.make_problem, testing.pictures),
  'micro': (testing.micro_config, enas_images.make_problem, testing.pictures),
  'recurrent': (functools.partial(testing.rnn_config, normalize=True), enas_rnn.make_problem, testing.text),
  'sequence': (testing.sequence_config, sequence.make_problem, testing.sequences),
}
RECURRENT = 'cell', 'recurrent', 'sequence'
PRODUCTS = 'dot_general', 'conv_general_dilated'


def made(name, precision, static=False):
  """Returns a child of one architecture, that architecture, its optimizer and the data."""
  config, make, data = CASES[name]
  problem = make(config(precision=precision), data())
  archs = evaluators.random_batch(problem.space, jax.random.key(0), 1).archs
  arch = space.unstack(archs)[0] if static else jax.tree.map(lambda x: x[0], archs)
  child = problem.traced(archs) if problem.traced and not static else problem.child
  return child, arch, problem.optimizer(10)(arch), jax.tree.map(jnp.asarray, problem.data)


def traced(name, precision, static):
  """Returns the shapes after a training step, and all products of the step and of scoring."""
  child, arch, optimizer, data = made(name, precision, static)
  start, key = jax.eval_shape(lambda: fit.untrained(child, optimizer, arch, jax.random.key(0))), jax.random.key(1)

  def step(state, key):
    return fit.advance(child, optimizer, data, state, arch, key)

  def score(state):
    with precision_lib.scope(child.precision):
      return child.score(state.params, arch, state.carry, data)

  jaxprs = jax.make_jaxpr(step)(start, key), jax.make_jaxpr(score)(start)
  found = [each for jaxpr in jaxprs for each in equations(jaxpr.jaxpr) if each.primitive.name in PRODUCTS]
  return jax.eval_shape(step, start, key), found


def equations(jaxpr):
  """Returns all equations, including those within loops and branches."""
  for each in jaxpr.eqns:
    yield each
    for inner in jax.tree.leaves(list(each.params.values()), is_leaf=lambda x: hasattr(x, 'eqns')):
      if hasattr(inner, 'eqns'):
        yield from equations(inner)


def factors(products, kind):
  """Returns the dtypes of the factors of all products of a kind."""
  return {str(variable.aval.dtype) for each in products if each.primitive.name == kind for variable in each.invars}


@pytest.mark.parametrize('static', [True, False], ids=['static', 'traced'])
@pytest.mark.parametrize('name', CASES)
def test_products_are_rounded_and_weights_are_not(name, static):
  after, products = traced(name, 'bfloat16', static)
  kept = jax.tree.leaves((after.params, after.opt_state, after.carry, after.loss))
  assert {str(x.dtype) for x in kept if jnp.issubdtype(x.dtype, jnp.floating)} == {'float32'}
  if name in RECURRENT:
    assert factors(products, 'dot_general') == {'bfloat16'}
  else:  # sums of batch norm over pixels, and the classifier's product, are of float32
    assert factors(products, 'conv_general_dilated') == {'bfloat16'}
    assert factors(products, 'dot_general') == {'float32'}


@pytest.mark.parametrize('name', ['cell', 'macro'])
def test_tf32_concerns_all_products_of_children_and_no_others(name):
  """Those of gradients too, which JAX traces after the loss."""
  asked = jax.lax.Precision.HIGH
  _, products = traced(name, 'tf32', static=True)
  assert products and all(each.params['precision'] == (asked, asked) for each in products)
  assert factors(products, 'dot_general') == {'float32'} and jax.config.jax_default_matmul_precision is None
  _, products = traced(name, 'float32', static=True)
  assert products and all(each.params['precision'] is None for each in products)


@pytest.mark.parametrize('name', ['cell', *(pytest.param(name, marks=pytest.mark.long) for name in list(CASES)[1:])])
def test_gradients_are_near_those_of_float32(name):
  """bfloat16 has 8 bits, so each product is off by about 0.4 %."""

  def of(precision):
    child, arch, _, data = made(name, precision)
    params = child.init(arch, jax.random.key(1))
    # The classifier's zeros would hide all gradients but its own.
    params = jax.tree.map(lambda x: x + 0.1 * jnp.cos(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape), params)
    batch = child.batch(data, jax.random.key(2), jnp.asarray(0))
    value_and_grad = jax.jit(jax.value_and_grad(child.loss, has_aux=True))
    (loss, _), grads = value_and_grad(params, arch, child.carry(params), batch, jax.random.key(3))
    return float(loss), ravel_pytree(grads)[0]

  (loss, gradient), (low_loss, low) = of('float32'), of('bfloat16')
  assert np.isfinite(low_loss) and low_loss != loss and low_loss == pytest.approx(loss, rel=0.02)
  assert 0 < jnp.linalg.norm(low - gradient) < 0.15 * jnp.linalg.norm(gradient)
