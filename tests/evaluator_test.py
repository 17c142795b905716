"""Specialised children are the generic ones, by programs of their own."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from experiments import launch, whole_search
from experiments.system import CELL
from nas_jax import evaluator, space
from nas_jax.controller import uniform_controller
from nas_jax.published import LSTM, NASCELL
from nas_jax.systems import cell
from nas_jax.types import Batch


def both(batch, **changes):
  """Metrics of a batch trained each way."""
  for kind in ('generic', 'specialised'):
    cfg = tiny.cell_config(child_program=kind, score_batch=3, **changes)
    yield cell.build_evaluator(cfg, tiny.text(), cell.lm.tree())(batch).metrics


def of_tokens(cell_space, tokens):
  tokens = jnp.asarray(tokens)
  keys = jax.random.split(jax.random.key(1), len(tokens))
  return Batch(jnp.arange(len(tokens)), keys, tokens, cell_space.decode_batch(tokens))


def test_random_cells_in_double_precision(x64):
  cell_space = space.tree_cell_space(4)
  tokens = jax.vmap(lambda key: uniform_controller(cell_space).sample((), key))(jax.random.split(jax.random.key(0), 5))
  generic, specialised = both(of_tokens(cell_space, tokens), base=4, steps=50, lr=0.01, layers=2)
  assert (generic['failed'] == 0).all() and len(generic['failed']) == 5  # one more than the four devices
  for name in ('perplexity', 'loss'):
    np.testing.assert_allclose(specialised[name], generic[name], rtol=1e-9)


@pytest.mark.long
def test_published_cells_in_single_precision():
  cell_space = space.tree_cell_space(8)
  tokens = [cell_space.encode(arch) for arch in (NASCELL, LSTM)]
  generic, specialised = both(of_tokens(cell_space, tokens), base=8, hidden=8, steps=100, lr=0.01)
  for name in ('perplexity', 'loss'):
    np.testing.assert_allclose(specialised[name], generic[name], rtol=1e-4)


def test_what_is_faster_is_measured_once_and_noted(tmp_path):
  cfg = launch.open_workdir(str(tmp_path), tiny.cell_config(child_program='auto'))
  assert cfg.child_program == 'auto'
  timed = CELL._replace(time_programs=lambda cfg, text: evaluator.Timing(2.0, 1.0))
  assert whole_search.settle_program(timed, cfg, tiny.text(), str(tmp_path)).child_program == 'specialised'
  assert json.loads((tmp_path / 'config.json').read_text())['child_program'] == 'specialised'
  # The same flags again mean what was settled; others do not fit.
  assert launch.open_workdir(str(tmp_path), cfg).child_program == 'specialised'
  with pytest.raises(ValueError, match=r'child_program \(specialised -> generic\)'):
    launch.open_workdir(str(tmp_path), tiny.cell_config(child_program='generic'))


@pytest.mark.long
def test_timing_counts_the_compilation_of_every_specialised_child():
  cfg = tiny.cell_config(steps=3, max_children=1000)
  found = cell.time_programs(cfg, tiny.text())
  assert 0 < found.generic < found.specialised  # three steps are nothing beside a compilation
