"""One JAX for all tests: four host devices, and no silent rank promotion."""

import os

import jax
import pytest

os.environ['JAX_ENABLE_COMPILATION_CACHE'] = 'false'  # for the launchers that tests start
jax.config.update('jax_num_cpu_devices', 4)
jax.config.update('jax_numpy_rank_promotion', 'raise')


@pytest.fixture
def x64():
  """Double precision for one test."""
  with jax.enable_x64(True):
    yield
