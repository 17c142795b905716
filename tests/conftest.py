"""One JAX for all tests: four host devices, and no silent rank promotion."""

from importlib import metadata
import os

# Exact comparisons and four devices: on an accelerator too the tests are for the CPU, unless JAX_PLATFORMS says else.
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
# Tests compile far more than they compute: XLA's older generation of code takes half the time, and in one piece a
# sixteenth less. A process ends on a flag that XLA does not know.
os.environ.setdefault('XLA_FLAGS', '--xla_backend_optimization_level=0')
if metadata.version('jaxlib').startswith('0.10.'):
  os.environ['XLA_FLAGS'] += ' --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1'
os.environ['JAX_ENABLE_COMPILATION_CACHE'] = 'false'  # for the launchers that tests start

import jax
import numpy as np
import pytest
import testing

jax.config.update('jax_num_cpu_devices', 4)
jax.config.update('jax_numpy_rank_promotion', 'raise')


@pytest.fixture(autouse=True)
def same_numbers(request):
  """A module's RNG starts anew with each test, so none depends on those before it."""
  if hasattr(request.module, 'RNG'):
    request.module.RNG.bit_generator.state = np.random.default_rng(0).bit_generator.state


@pytest.fixture(autouse=True, scope='module')
def no_programs_left():
  """Drops what a module compiled once its tests are over: the programs of all modules together are several GB."""
  yield
  testing.drop_programs()


@pytest.fixture(scope='session')
def with_programs(tmp_path_factory):
  """An environment in which the processes that tests start keep what they compile for each other."""
  kept = {'JAX_ENABLE_COMPILATION_CACHE': 'true', 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0'}
  return {**os.environ, **kept, 'JAX_COMPILATION_CACHE_DIR': str(tmp_path_factory.mktemp('programs'))}


@pytest.fixture
def x64():
  """Double precision for one test."""
  with jax.enable_x64(True):
    yield
