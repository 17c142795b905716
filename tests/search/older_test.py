"""Searches whose checkpoints have the layout of earlier versions."""

import dataclasses
import gc
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import testing
from testing import LAYERED

from experiments.common import workdirs
from nas_jax import config, search
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


@pytest.mark.parametrize('saved', [{'guide_draws': 32, 'guide_mutations': 16}, {}], ids=['saved', 'without fields'])
def test_a_search_keeps_the_defaults_that_it_was_started_with(tmp_path, saved):
  """Only values that a flag may have left out: others are compared, so that they are not dropped in silence."""
  cfg, old = testing.cell_config(), tmp_path / 'config.json'
  assert (cfg.guide_draws, cfg.guide_mutations) == (64, 64)
  assert workdirs.settled(str(tmp_path), cfg).guide_draws == 64  # a new search
  others = {name: value for name, value in config.as_json(cfg).items() if not name.startswith('guide_')}
  old.write_text(json.dumps(others | saved))
  with pytest.warns(UserWarning, match='goes on with guide_draws=32 and guide_mutations=16'):
    kept = workdirs.open_config(str(tmp_path), workdirs.settled(str(tmp_path), cfg))
  assert kept == dataclasses.replace(cfg, guide_draws=32, guide_mutations=16)
  assert workdirs.open_config(str(tmp_path), kept) == kept
  with pytest.raises(ValueError, match=r'guide_draws \(32 -> 128\)'):
    workdirs.open_config(str(tmp_path), dataclasses.replace(kept, guide_draws=128))
