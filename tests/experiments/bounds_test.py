"""Searches under bounds on what their children cost."""

import json
import math
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import testing

from experiments.common import from_scratch, run_search
from nas_jax import search, space
from nas_jax.search import journal, per_layer
from nas_jax.systems import conv
from nas_jax.training import costs
from nas_jax.training.fit import Status
from nas_jax.training.recovery import NO_RECOVERY, Stopped
from nas_jax.types import Outcome

IMAGES = testing.pictures()
BOUND = 50  # weights
CFG = testing.conv_config(
  child_program='generic', max_depth=1, filters=(2, 4), epochs=1, max_children=8, max_weights=BOUND,
  cost='multiply_adds', cost_target=2000,
)  # fmt: skip


def run(s, folder, children, stop_at=math.inf):
  """Runs a search in a folder, and stops it after `stop_at` updates. Returns its records."""
  updates = 0

  def check():
    nonlocal updates
    updates += 1
    if updates == stop_at:
      raise Stopped(15)

  budget = search.Budget(children)
  try:
    run_search.run(str(folder), s, CFG.seed, budget, recovery=NO_RECOVERY._replace(check=check))
  except Stopped:
    assert stop_at < math.inf
  return [line | {'seconds': 0} for line in journal.read(str(folder / 'children.jsonl')).values()]


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """The folder of a search whose reward includes cost, and its records."""
  folder = tmp_path_factory.mktemp('whole')
  s = conv.build(CFG, IMAGES)
  return s, folder, run(s, folder, 8)


def test_the_best_of_a_search_is_within_its_bounds(whole):
  _, folder, lines = whole
  above = [line for line in lines if line['weights'] > BOUND]
  assert 0 < len(above) < len(lines) == 8  # the test would say nothing otherwise
  for line in lines:
    assert (line['failed'] == 'more weights than max_weights') == (line in above)
    if line in above:
      assert line['reward'] == 0.0 and line.get('accuracy') is None
    else:
      assert line['reward'] == pytest.approx(line['accuracy'] ** 3 * (line['multiply_adds'] / 2000) ** -0.07)
  best = json.loads((folder / 'best.json').read_text())
  assert best['id'] == max((line for line in lines if line not in above), key=lambda line: line['reward'])['id']


def test_a_search_that_was_stopped_ends_the_same_under_bounds(whole, tmp_path):
  s, folder, lines = whole
  run(s, tmp_path, 8, stop_at=2)
  path = tmp_path / 'children.jsonl'
  # As if killed in the middle of the journal's fourth line, before the first checkpoint.
  path.write_text(''.join(path.read_text().splitlines(keepends=True)[:3]))
  shutil.rmtree(tmp_path / 'checkpoints')
  assert run(s, tmp_path, 8) == lines
  assert (tmp_path / 'best.json').read_text() == (folder / 'best.json').read_text()


def test_a_prefix_above_a_bound_fails_and_longer_ones_may_not():
  """A fake training of chains, of which those with one layer are above the bound."""
  made, cfg = space.chain_space(('conv 1 1 1', 'max pool 2 2'), 2), per_layer.Config(m=2, controller_units=4)

  def train(batch):
    left_out = np.zeros(len(batch.ids), bool) if batch.repeats is None else np.asarray(batch.repeats.known)
    earned = jnp.where(left_out, 0.0, 0.5 * batch.depth)
    return Outcome(earned, {'failed': np.where(left_out, Status.PADDING, Status.OK)}, failed=jnp.asarray(left_out))

  def count(arch):
    return costs.Cost(100 if arch.layers[-1] == 0 else 10, 1)

  s = per_layer.build(made, cfg, costs.accounted(train, count, costs.Bounds(weights=99)))
  state, lines = s.init(jax.random.key(0)), []
  state = search.run(s, state, [search.Hook(children=lines.extend)], search.Budget(6))
  assert {(line['depth'], line['failed'] or '') for line in lines} == {(1, 'more weights than max_weights'), (2, '')}
  assert int(state.best.depth) == 2 and float(state.best.reward) == 1.0


def test_how_many_random_architectures_are_within_the_bounds():
  problem = conv.make_problem(CFG, IMAGES)
  made = problem.space
  # All token sequences of the space are equally likely.
  every = np.array(list(np.ndindex(*(slot.width for slot in made.slots if slot.width))))
  share = np.mean([problem.cost_of(made.decode(tokens)).weights <= BOUND for tokens in every])
  words = from_scratch.within_bounds(problem, 0)
  assert int(words.split()[1]) == pytest.approx(1000 * share, abs=60)
  assert from_scratch.within_bounds(conv.make_problem(testing.conv_config(), IMAGES), 0) == ''
