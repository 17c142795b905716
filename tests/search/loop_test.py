"""The loop of a search: its reports, and resuming."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nas_jax import search, space
from nas_jax.search import journal
from nas_jax.types import Outcome

SPACE = space.tree_cell_space(2)
CONFIG = search.Config(m=3, controller_units=4, controller_lr=0.05)


class Evaluator:
  """An evaluator that rewards a sequence by a hash of its tokens, and records the ids of children."""

  def __init__(self):
    self.asked = []

  def __call__(self, batch):
    self.asked += batch.ids.tolist()
    reward = jnp.sin(batch.tokens.sum(1) * 1.7 + jax.vmap(jax.random.uniform)(batch.keys))
    return Outcome(reward.astype(jnp.float32), {'perplexity': np.asarray(reward) * 2})


@pytest.fixture(scope='module')
def compiled():
  return search.ask_tell(SPACE, CONFIG)


@pytest.fixture
def s(compiled):
  return compiled._replace(evaluate=Evaluator())


def leaves(state):
  return [np.asarray(x) for x in jax.tree.leaves(state._replace(key=jax.random.key_data(state.key)))]


def unbroken(s, steps=5):
  lines, states = [], []
  hook = search.Hook(children=lines.extend, step=lambda state, info: states.append(state))
  search.run(s, s.init(jax.random.key(0)), [hook], search.Budget(steps * CONFIG.m))
  return {line['id']: line for line in lines}, states


def test_hooks_hear_of_every_child_and_step(s):
  lines, states = unbroken(s)
  assert sorted(lines) == list(range(15)) and [int(state.step) for state in states] == [1, 2, 3, 4, 5]
  best = max(lines.values(), key=lambda line: line['reward'])
  assert float(states[-1].best.reward) == best['reward'] and int(states[-1].best.id) == best['id']
  assert states[-1].best.tokens.tolist() == best['tokens']


def test_a_budget_in_the_middle_of_a_step_finishes_it(s):
  state = search.run(s, s.init(jax.random.key(0)), [], search.Budget(4))
  assert int(state.step) == 2


@pytest.mark.parametrize(('step', 'lost'), [(0, ()), (2, ()), (2, (7,)), (3, (9, 11)), (5, ())])
def test_resumed_is_unbroken(s, step, lost):
  """It resumes from the state after `step` steps and a journal that lacks `lost` and all after step 4."""
  lines, states = unbroken(s)
  known = {number: line for number, line in lines.items() if number < 12 and number not in lost}
  start = states[step - 1] if step else s.init(jax.random.key(0))
  s.evaluate.asked.clear()
  again = []
  state = search.run(s, start, [search.Hook(children=again.extend)], search.Budget(15), known)
  fresh = {n for n in lost if n >= step * 3} | set(range(max(12, step * 3), 15))
  assert sorted(line['id'] for line in again) == sorted(fresh)  # none is journalled twice
  assert sorted({n // 3 for n in s.evaluate.asked}) == sorted({n // 3 for n in fresh})
  assert len(s.evaluate.asked) == 3 * len({n // 3 for n in fresh})  # whole steps, or the bits might be others
  for line in again:
    assert {**line, 'seconds': 0} == {**lines[line['id']], 'seconds': 0}
  assert all((a == b).all() for a, b in zip(leaves(state), leaves(states[-1]), strict=True))


@pytest.mark.parametrize('step', [0, 2, 4])
def test_a_time_limit_ends_a_resumed_search_where_the_journal_says(s, step):
  """The children took one second each and the limit is 10 s: all twelve that are in the journal count."""
  lines, states = unbroken(s)
  known = {number: {**line, 'seconds': 1.0} for number, line in lines.items() if number < 12}
  start, again = states[step - 1] if step else s.init(jax.random.key(0)), []
  state = search.run(s, start, [search.Hook(children=again.extend)], search.Budget(99, seconds=10.0), known)
  assert int(state.step) == 4 and again == []


def test_a_hook_that_fails_changes_nothing_unless_it_is_vital(s):
  def fail(*_):
    raise OSError('disk full')

  _, states = unbroken(s, 2)
  with pytest.warns(UserWarning, match='disk full'):
    state = search.run(s, s.init(jax.random.key(0)), [search.Hook(fail, fail)], search.Budget(6))
  assert all((a == b).all() for a, b in zip(leaves(state), leaves(states[-1]), strict=True))
  with pytest.raises(OSError, match='disk full'):
    search.run(s, s.init(jax.random.key(0)), [search.Hook(fail, vital=True)], search.Budget(6))


def test_another_searchs_journal_is_refused(s):
  lines, _ = unbroken(s)
  other = s.init(jax.random.key(1))
  with pytest.raises(ValueError, match='another search'):
    search.run(s, other, [], search.Budget(3), lines)


def test_random_search_is_the_same_loop(s):
  random = search.build(SPACE, dataclasses.replace(CONFIG, algorithm='random'), s.evaluate)
  lines, states = unbroken(random)
  assert len(lines) == 15
  records = journal.records(random.ask(states[-1]), s.evaluate(random.ask(states[-1])), 1.0)
  assert [record['id'] for record in records] == [15, 16, 17]
