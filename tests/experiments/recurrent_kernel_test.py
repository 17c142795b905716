"""The GPU kernel for the recurrent loop, interpreted on a CPU: against the plain loop, and its lowering for CUDA."""

import functools

import jax
import numpy as np
import pytest
import testing

from experiments.bench import recurrent_kernel
from nas_jax import space, tree_cell

INTERPRETED = functools.partial(recurrent_kernel.unroll, interpret=True)
CELLS = space.tree_cell_space(base=4, combine=('add', 'mult', 'max'), activate=('tanh', 'sigmoid', 'relu', 'sin'))
RANDOM = [CELLS.decode(tokens) for tokens in testing.random_tokens(CELLS, 2)]


def arguments(arch, t, b, h):
  """Returns random params, carry, inputs, and weights of everything that `unroll` returns."""
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda x: rng.normal(size=x.shape, scale=0.5).astype(np.float32), tree_cell.init(jax.random.key(0), arch, 5, h)
  )
  shapes = (b, h), (b, h), (t, b, 5), (b, h), (b, h), (t, b, h)
  c, h, xs, *rest = (rng.normal(size=shape).astype(np.float32) for shape in shapes)
  return (params, (c, h), xs), rest


def outputs_and_gradients(unroll, arch, inputs, weights):
  """Runs a loop, and differentiates the sum of all its outputs, each times a weight, in all inputs."""

  def total(params, carry, xs):
    results = unroll(params, arch, carry, xs)
    return sum((x * w).sum() for x, w in zip(jax.tree.leaves(results), weights, strict=True)), results

  return jax.jit(jax.grad(total, (0, 1, 2), has_aux=True))(*inputs)


@pytest.mark.parametrize('arch', [tree_cell.NASCELL, tree_cell.LSTM, *RANDOM], ids=['nascell', 'lstm', 'one', 'two'])
def test_it_equals_the_plain_loop(arch):
  inputs, weights = arguments(arch, t=4, b=3, h=4)
  found, wanted = (outputs_and_gradients(unroll, arch, inputs, weights) for unroll in (INTERPRETED, tree_cell.unroll))
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), found, wanted)


def test_many_children():
  """Each child of a batch has its own weights and inputs. The batch of 17 streams is padded to 32."""
  arch = RANDOM[0]
  inputs, weights = arguments(arch, t=2, b=17, h=2)
  two = jax.tree.map(lambda x: np.stack([x, 0.5 * x[::-1]]), inputs)
  found, wanted = (
    jax.vmap(functools.partial(outputs_and_gradients, unroll, arch), (0, None))(two, weights)
    for unroll in (INTERPRETED, tree_cell.unroll)
  )
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), found, wanted)


def test_a_bias_is_refused():
  (params, *rest), _ = arguments(tree_cell.NASCELL, t=1, b=2, h=2)
  with pytest.raises(ValueError, match='params hold bias, kernel, recurrent_kernel'):
    INTERPRETED(params | {'bias': np.zeros(16, np.float32)}, tree_cell.NASCELL, *rest)


@pytest.mark.skipif(jax.__version_info__ > (0, 10, 2), reason='lowering a kernel takes a GPU, or its description')
@pytest.mark.parametrize('arch', [tree_cell.NASCELL, *RANDOM], ids=['nascell', 'one', 'two'])
def test_it_lowers_for_cuda(arch):
  """Both kernels, at the size of the benchmark, for two children."""
  inputs, weights = jax.eval_shape(lambda: arguments(arch, t=35, b=20, h=64))
  batched = jax.tree.map(lambda x: jax.ShapeDtypeStruct((2, *x.shape), x.dtype), (inputs, weights))
  program = jax.jit(jax.vmap(functools.partial(outputs_and_gradients, recurrent_kernel.unroll, arch)))
  target = '__gpu$xla.gpu.triton'
  allowed = [jax.export.DisabledSafetyCheck.custom_call(target)]
  text = jax.export.export(program, platforms=['cuda'], disabled_checks=allowed)(*batched).mlir_module()
  assert text.count(target) == 2 and 'name = "_forward"' in text and 'name = "_backward"' in text
