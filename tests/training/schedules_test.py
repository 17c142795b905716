"""Learning rates by hand."""

import types

import jax.numpy as jnp
import numpy as np
import pytest

from nas_jax.training import schedules


def rates(schedule, **more):
  """Returns the rates at the first step of each of eight epochs of ten steps."""
  found = schedules.rate(schedule, 8.0, 80, 10, **more)
  return [float(found(step)) if callable(found) else found for step in range(0, 80, 10)]


def test_schedules_by_hand():
  assert rates('constant') == [8.0] * 8
  assert rates('epochs', decay_epoch=3.0, decay=0.5) == [8.0, 8.0, 8.0, 4.0, 2.0, 1.0, 0.5, 0.25]
  np.testing.assert_allclose(rates('twice', decay_epoch=4.0, decay=0.1), [8.0] * 4 + [0.8] * 2 + [0.08] * 2)
  np.testing.assert_allclose(rates('cosine'), [4 * (1 + np.cos(np.pi * k / 8)) for k in range(8)], rtol=1e-5)
  np.testing.assert_allclose(
    rates('cosine', least=2.0), [2 + 3 * (1 + np.cos(np.pi * k / 8)) for k in range(8)], rtol=1e-5
  )
  turns = [0, 0, 0.5, 0, 0.25, 0.5, 0.75, 0]  # shares of cosines of one epoch, of two and of four
  wanted = [2 + 3 * (1 + np.cos(np.pi * done)) for done in turns]
  np.testing.assert_allclose(rates('restarts', decay_epoch=1.0, least=2.0), wanted, rtol=1e-5)


def test_a_rate_that_falls_twice_does_so_by_the_same_factor_in_a_longer_training():
  cfg = types.SimpleNamespace(schedule='twice', decay_epoch=4.0, lr_decay=0.1)
  assert schedules.stretched(cfg, 2) == {'decay_epoch': 8.0, 'lr_decay': 0.1}


def test_rate_and_epoch_may_be_arrays():
  found = schedules.rate('twice', jnp.array([1.0, 2.0]), 60, 10, jnp.array([2.0, 4.0]), 0.1)
  np.testing.assert_allclose(
    [found(jnp.array(step)) for step in (0, 20, 30, 40)], [[1, 2], [0.1, 2], [0.01, 2], [0.01, 0.2]]
  )


def test_a_cosine_over_a_number_of_steps_that_is_an_array():
  steps = jnp.array([40, 80])
  found = schedules.rate('cosine', 8.0, steps, 10, least=2.0)
  for step in (0, 10, 39, 40, 90):  # after its last step a rate stays where it is
    wanted = [2 + 3 * (1 + np.cos(np.pi * min(step / count, 1))) for count in (40, 80)]
    np.testing.assert_allclose(found(jnp.array(step)), wanted, rtol=1e-5)


def test_a_schedule_that_is_none():
  with pytest.raises(ValueError, match="schedule .='warm'. must be one of constant"):
    schedules.rate('warm', 1.0, 1, 1)
