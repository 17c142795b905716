"""How many trainings to the end run at once."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import testing

from nas_jax.training import fit, full_training, layout
from nas_jax.training.child import Child

RATES, WEIGHTS = jnp.linspace(0.01, 0.05, 5), 64
KEYS = jax.random.split(jax.random.key(0), 5)


@pytest.fixture
def accelerator(monkeypatch):
  """Makes each device train its children as one batch; the returned function sets the memory of each."""
  monkeypatch.setattr(layout, 'in_turn', lambda mesh: False)
  return lambda limit: monkeypatch.setattr(layout, 'memory_limit', lambda mesh: limit)


def squares(params, arch, carry, data):
  return {'off': jnp.square(params - 1).sum()}


def task(devices=1, score=squares):
  """Returns the task of bringing 64 random weights to 1, with the rate as the architecture."""

  def loss(params, arch, carry, batch, key):
    off = jnp.tanh(jnp.outer(batch, params - 1))  # takes memory during a step
    return jnp.square(off).sum(1).mean(), carry

  child = Child(
    init=lambda arch, key: jax.random.normal(key, (WEIGHTS,)),
    carry=lambda params: (),
    batch=lambda data, key, step: jnp.linspace(0.5, 1.0, 100),
    loss=loss,
    score=score,
  )
  programs = fit.fitter(child, optax.sgd, 12, 4, layout.child_mesh(jax.devices()[:devices]))
  return full_training.Task('', WEIGHTS, programs, (), (), lambda scores: scores['off'])


def curve(own):
  return full_training.run(own, *full_training.start(own, RATES, KEYS, 3)).curve[:, :5]


def within_memory(programs):
  return full_training.within_memory(programs, RATES, KEYS, (), 'ask for less')


@pytest.mark.parametrize(('room', 'at_once'), [(5, 5), (4, 3), (3, 3), (2, 2), (1, 1)])
def test_as_many_trainings_at_once_as_there_is_memory_for(accelerator, room, at_once):
  """The device has as much memory as `room` trainings at once take, beside the best weights of all five."""
  own = task()
  needed = functools.partial(fit.memory_needed, archs=RATES, keys=KEYS, data=())
  plans = [needed(own.programs.at_once(n)) for n in range(1, 6)]
  assert plans[-1] == needed(own.programs) and sorted(set(plans)) == plans, 'fewer at once take less'
  accelerator(5 * WEIGHTS * 4 + plans[room - 1])
  programs = within_memory(own.programs)
  assert needed(programs) == plans[at_once - 1]
  np.testing.assert_allclose(curve(own._replace(programs=programs)), curve(own), rtol=1e-5)


def test_one_byte_less_is_one_training_less(accelerator):
  own = task()
  needed = functools.partial(fit.memory_needed, archs=RATES, keys=KEYS, data=())
  accelerator(5 * WEIGHTS * 4 + needed(own.programs) - 1)
  assert needed(within_memory(own.programs)) == needed(own.programs.at_once(3))


def test_a_scoring_may_take_more_than_a_step(accelerator):
  """It sorts a table of 1,000 rows for each training, and memory is for two of them."""

  def score(params, arch, carry, data):
    table = jnp.sort(jnp.outer(jnp.cos(jnp.arange(1000.0)), params), axis=0)
    return {'off': jnp.square(table[500] - 1).sum()}

  own = task(score=score)
  accelerator(2.5 * 4 * 1000 * WEIGHTS)
  programs = within_memory(own.programs)
  needed = functools.partial(fit.memory_needed, archs=RATES, keys=KEYS, data=())
  assert needed(own.programs) > 5 * 4 * 1000 * WEIGHTS and needed(programs) == needed(own.programs.at_once(2))


def test_each_of_several_devices_takes_its_share(accelerator):
  """Two devices have three places each, the last one padding, and memory for two trainings at once."""
  own = task(devices=2)
  needed = functools.partial(fit.memory_needed, archs=RATES, keys=KEYS, data=())
  accelerator(3 * WEIGHTS * 4 + needed(own.programs.at_once(2)))
  programs = within_memory(own.programs)
  assert needed(programs) == needed(own.programs.at_once(2)) < needed(own.programs)
  np.testing.assert_allclose(curve(own._replace(programs=programs)), curve(task()), rtol=1e-5)


def test_arrays_that_no_program_reads_take_memory_too():
  own, data = task(), jnp.zeros(1000)
  without, needed = (fit.memory_needed(own.programs, RATES, KEYS, given) for given in ((), data))
  assert needed == without + 4 * 1000


def test_a_program_that_the_compiler_refuses_is_one_that_takes_too_much(accelerator):
  """XLA for TPUs raises an error and makes no plan."""
  own = task()

  def planned(*_):
    raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory')

  accelerator(1e9)
  refused = own.programs._replace(planned=planned)
  assert within_memory(refused) is own.programs.at_once(3)
  stuck = refused._replace(at_once=lambda n: stuck)
  with pytest.raises(ValueError, match='5 trainings do not fit into the 0.931 GiB .*: ask for less') as error:
    within_memory(stuck)
  testing.one_line(error)

  def broken(*_):
    raise jax.errors.JaxRuntimeError('INTERNAL: no such instruction')

  with pytest.raises(jax.errors.JaxRuntimeError, match='no such instruction'):
    within_memory(own.programs._replace(planned=broken))


def test_devices_that_do_not_say_train_all_at_once():
  own = task()
  assert within_memory(own.programs) is own.programs
