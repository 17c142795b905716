"""The settings of JAX for all tests: four host devices, and no silent rank promotion."""

from importlib import metadata
import os

# Tests compare exactly and need four devices, so they run on the CPU even if there is an accelerator, unless
# JAX_PLATFORMS is set.
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
# Tests compile far more than they compute: without XLA's fusion emitters they take half the time, and without parallel
# code generation a sixteenth less. XLA ends the process on an unknown flag, so the version is checked.
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
  """Restarts a module's random generator for each test, so that no test depends on those before it."""
  if hasattr(request.module, 'RNG'):
    request.module.RNG.bit_generator.state = np.random.default_rng(0).bit_generator.state


@pytest.fixture(autouse=True, scope='module')
def no_programs_left():
  """Drops the compiled programs of a module after its tests, as those of all modules together take several GB."""
  yield
  testing.drop_programs()


@pytest.fixture(scope='session')
def with_programs(tmp_path_factory):
  """An environment in which the processes that tests start share a cache of compiled programs."""
  kept = {'JAX_ENABLE_COMPILATION_CACHE': 'true', 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0'}
  return {**os.environ, **kept, 'JAX_COMPILATION_CACHE_DIR': str(tmp_path_factory.mktemp('programs'))}


@pytest.fixture
def x64():
  """Double precision for one test."""
  with jax.enable_x64(True):
    yield
