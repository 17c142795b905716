"""Searches whose checkpoints have the layout of earlier versions."""

import gc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import testing
from testing import LAYERED

from nas_jax import search
from nas_jax.search import older
from nas_jax.search.algorithms import reinforce
from nas_jax.search.older import FlatState, WithoutWorst
from nas_jax.training import checkpoint
from nas_jax.types import Outcome

pytestmark = pytest.mark.filterwarnings('ignore::DeprecationWarning')


def leaves(state):
  return [np.asarray(x) for x in jax.tree.leaves(state._replace(key=jax.random.key_data(state.key)))]


@pytest.mark.parametrize('clip', [0.0, 2.0])
@pytest.mark.parametrize('algorithm', ['reinforce', 'random'])
@pytest.mark.parametrize('layout', ['flat', 'without worst'])
def test_a_search_of_before_goes_on(tmp_path, algorithm, clip, layout):
  cfg = testing.search_config(algorithm=algorithm, controller_clip=clip)
  s = search.ask_tell(LAYERED, cfg)
  state = s.init(jax.random.key(0))
  state, _ = s.tell(state, s.ask(state), Outcome(jnp.array([1.0, 0.0, 2.0])))
  if algorithm == 'random':
    opt_state = reinforce.make_optimizer(cfg).init(())
    opt_state = jax.tree.map(lambda count: count + 1, opt_state)
    old = FlatState(state.step, state.key, (), opt_state, state.algorithm, state.best, (), ())
  else:
    old = FlatState(state.step, state.key, *state.algorithm, state.best, (), ())
  if layout == 'without worst':
    old = WithoutWorst(state.step, state.key, state.algorithm, state.best, (), ())
  state = state._replace(worst=jnp.asarray(jnp.inf))  # it was not kept
  save, close = checkpoint.saver(str(tmp_path / 'checkpoints'))
  save(1, old)
  close()
  found = checkpoint.restore(str(tmp_path / 'checkpoints'), s.init(jax.random.key(1)), older.layouts)
  assert jax.tree.structure(found) == jax.tree.structure(state)
  assert all((a == b).all() for a, b in zip(leaves(found), leaves(state), strict=True))


@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
def test_damage_is_still_seen(tmp_path):
  s = search.ask_tell(LAYERED, testing.search_config())
  state = s.init(jax.random.key(0))
  save, close = checkpoint.saver(str(tmp_path / 'checkpoints'))
  save(1, FlatState(state.step, state.key, *state.algorithm, state.best, (), ()))
  close()
  for path in (tmp_path / 'checkpoints' / '1' / 'state').glob('**/d/*'):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
  with pytest.warns(UserWarning, match='checkpoint 1 is damaged'):
    assert checkpoint.restore(str(tmp_path / 'checkpoints'), state, older.layouts) is None
  gc.collect()  # Orbax leaves event loops behind when a read fails, which would warn in another test
