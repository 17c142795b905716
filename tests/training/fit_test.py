"""Training many children: the results do not depend on the layout over devices."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import testing

from nas_jax import space
from nas_jax.children import language_model
from nas_jax.datasets import text_batches
from nas_jax.training import fit, layout
from nas_jax.training.child import Child, bind_arch

SPACE = space.tree_cell_space(2)
M = 6


def network():
  """A child whose architecture is a cell."""
  settings = language_model.Hyperparameters(0.0, 0.0, 0.5, 0.5)
  return bind_arch(
    language_model.build(5, 4, 1, 3, language_model.tree(SPACE.operations)),
    lambda arch: language_model.ChildSpec(arch, settings),
  )


def programs(devices, steps=8, steps_per_call=3, lr=0.5, **options):
  child, mesh = network(), layout.child_mesh(jax.devices()[:devices])
  optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(lr))
  return fit.fitter(child, lambda _: optimizer, steps, steps_per_call, mesh, **options)


def children(m=M, seed=0):
  rng = np.random.default_rng(seed)
  archs = [SPACE.decode(rng.integers(0, [slot.width for slot in SPACE.slots])) for _ in range(m)]
  return space.stack(archs), jax.random.split(jax.random.key(seed), m)


@pytest.fixture(scope='module')
def data():
  return jax.tree.map(jnp.asarray, text_batches.lay_out(testing.text(), 3, 5, 4))


@pytest.fixture(scope='module')
def alone(data):
  """Programs on one device, and the results of the children that they train."""
  one = programs(1)
  return one, fit.fit(one, *children(), data)


@pytest.mark.parametrize('quick', [False, True])
def test_each_step_of_each_child_has_keys_of_its_own(quick):
  """With equal keys in all steps dropout masks would not change. The carry records the keys."""
  child = Child(
    init=lambda arch, key: jax.random.uniform(key, (1,)),
    carry=lambda params: jnp.zeros(2),
    batch=lambda data, key, step: jax.random.uniform(key),
    loss=lambda params, arch, carry, batch, key: (params.sum(), jnp.stack([batch, jax.random.uniform(key)])),
    score=lambda params, arch, carry, data: {'score': params.sum()},
  )
  one = fit.fitter(child, lambda _: optax.sgd(0.1), 3, 1, layout.child_mesh(jax.devices()[:1]), quick=quick)
  state, archs, keys = fit.begin(one, jnp.zeros(2), jax.random.split(jax.random.key(0), 2))
  drawn = [np.asarray(state.params).ravel()]
  for _ in range(3):
    state = one.chunk((), jnp.asarray(1), state, archs, keys)
    drawn.append(np.asarray(state.carry).ravel())
  every = np.concatenate(drawn)
  assert len(every) == 2 + 3 * 4 == len(np.unique(every))


def test_training_learns(data):
  scores = fit.fit(programs(1, steps=150, steps_per_call=100, lr=2.0), *children(), data)
  assert np.nanmin(scores['perplexity']) < 3.0  # a guess scores 5; the rate is too high for some


@pytest.mark.parametrize('devices', [2, 4])
def test_more_devices_train_the_same_children(alone, data, devices):
  # Six children on four devices: two places are filled up.
  for name, values in fit.fit(programs(devices), *children(), data).items():
    np.testing.assert_allclose(values, alone[1][name], rtol=1e-5)


def test_together_is_one_by_one(alone, data):
  one, together = alone
  archs, keys = children()
  for k in range(M):
    single = fit.fit(one, *jax.tree.map(lambda x, k=k: x[k : k + 1], (archs, keys)), data)
    np.testing.assert_allclose(single['perplexity'][0], together['perplexity'][k], rtol=1e-6)  # two programs


def test_vmap_is_the_loop(alone, data):
  """The layout of accelerators gives what that of CPUs does."""
  one, archs_keys = alone[0], children()
  states = one.init(*archs_keys, jnp.ones(M, bool))
  looped = one.chunk(data, jnp.asarray(3), jax.tree.map(jnp.copy, states), *archs_keys)
  single = single_chunk(3)
  mapped = jax.jit(jax.vmap(lambda s, a, k: single(data, s, a, k)))(states, *archs_keys)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), looped, mapped)


def single_chunk(count):
  """Three steps of one child, outside any layout."""
  child = network()
  optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.5))

  def run(data, state, arch, key):
    for _ in range(count):
      batch_key, loss_key = jax.random.split(jax.random.fold_in(key, state.step + 1))
      batch = child.batch(data, batch_key, state.step)
      (loss, carry), grads = jax.value_and_grad(child.loss, has_aux=True)(
        state.params, arch, state.carry, batch, loss_key
      )
      updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
      params = optax.apply_updates(state.params, updates)
      state = fit.FitState(state.step + 1, params, opt_state, carry, loss, state.failed)
    return state

  return run


@pytest.mark.filterwarnings('ignore::DeprecationWarning')
def test_pmap_is_the_sharded_fit(data):
  """`pmap`, with one child a device, trains the same children."""
  four = programs(4)
  archs, keys = children(4)
  states = four.init(archs, keys, jnp.ones(4, bool))
  single = single_chunk(3)
  old = jax.pmap(single, in_axes=(None, 0, 0, 0))(data, jax.tree.map(np.asarray, states), archs, keys)
  new = four.chunk(data, jnp.asarray(3), states, archs, keys)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), new, old)


def test_a_quick_program_trains_the_same_children(alone, data):
  quick = programs(1, quick=True)
  found = fit.fit(quick, *children(), data)
  for name, values in alone[1].items():
    np.testing.assert_allclose(found[name], values, rtol=1e-5)
  states, shapes = fit.begin(quick, *children())[0], fit.shapes(quick, *children())
  assert jax.tree.map(jnp.shape, states) == jax.tree.map(jnp.shape, shapes)


def test_the_compiler_is_told_what_it_knows():
  def of(platform):
    return {'xla_no_such_option': 1, 'xla_backend_optimization_level': 3} if platform == 'cpu' else {}

  mesh = layout.child_mesh(jax.devices()[:1])
  assert layout.jit_options(mesh, of) == {'compiler_options': {'xla_backend_optimization_level': 3}}
  assert layout.jit_options(mesh, lambda platform: {}) == {}
  quick = layout.jit_options(mesh, of, 0)['compiler_options']
  assert quick['xla_backend_optimization_level'] == 0
  assert 'xla_no_such_option' not in quick


def test_chunks_do_not_matter(alone, data):
  # Eight steps in calls of 3, 3, 2 above; here in one, to the bit.
  whole = fit.fit(programs(1, steps_per_call=100), *children(), data)
  assert all((whole[name] == alone[1][name]).all() for name in whole)


def test_a_child_that_fails_leaves_its_siblings_bits_alone(alone, data):
  one, fine = alone
  archs, keys = children()
  states = one.init(archs, keys, jnp.ones(M, bool))
  poisoned = states.params['softmax_bias'].at[2].set(jnp.nan)
  states = states._replace(params=states.params | {'softmax_bias': poisoned})
  for count in (3, 3, 2):
    states = one.chunk(data, jnp.asarray(count), states, archs, keys)
  scores = one.score(data, states, archs)
  assert np.asarray(states.failed).tolist() == [0, 0, fit.Status.NOT_FINITE, 0, 0, 0]
  assert np.asarray(states.step)[2] == 1  # it stopped where it failed
  others = np.arange(M) != 2
  assert (np.asarray(scores['perplexity'])[others] == fine['perplexity'][others]).all()


def test_one_compilation_serves_200_cells(data):
  one, seen = programs(1, steps=1), set()
  for seed in range(54):
    archs, keys = children(4, seed)
    seen |= {tuple(np.concatenate(jax.tree.leaves(jax.tree.map(lambda x, k=k: x[k], archs)))) for k in range(4)}
    fit.fit(one, archs, keys, data)
  assert len(seen) >= 200
  assert one.compilations() == 3  # init, chunk, score


def test_a_learning_rate_that_blows_up_is_a_failure_not_a_crash(data):
  scores = fit.fit(programs(1, lr=1e38), *children(), data)
  assert (scores['failed'] == fit.Status.NOT_FINITE).any()
