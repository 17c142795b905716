"""A search whose children are trained by workers that answer in any order, and its journal."""

import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import testing

from nas_jax import crew, replicas, search
from nas_jax.types import Outcome

KEY, BUDGET = jax.random.key(0), search.Budget(48)


@jax.jit
def reward(tokens, keys):
  return jnp.sin(tokens @ jnp.array([1.7, 0.3, 2.1]) + jax.vmap(jax.random.uniform)(keys))


def evaluate(batch):
  earned = np.asarray(reward(batch.tokens, batch.keys))
  return Outcome(earned, {'loss': 2 * earned})


def never(batch):
  raise AssertionError(f'batch {batch.ids} is trained again')


@pytest.fixture(scope='module')
def s():
  """Five replicas of two children with very different times, and an update from every two gradients."""
  cfg = testing.search_config(m=2, controller_lr=0.05, controller_clip=0.0)
  made = search.build(testing.SPACES['choice'], cfg, evaluate)
  return replicas.simulated(replicas.build(made, 5, 2, 3, delay=jax.random.exponential))


class Workers:
  """Three workers that answer in any order, and record the batches that they get."""

  def __init__(self, seed=0):
    self.rng, self.given = random.Random(seed), []

  def submit(self, name, batch):
    assert name == 'children' and batch.extra == ()
    self.given.append(batch)
    return len(self.given) - 1

  def collect(self, tickets):
    assert 0 < len(tickets) <= 3
    ticket = self.rng.choice(sorted(tickets))
    return ticket, evaluate(self.given[ticket]), 0.5

  @property
  def crew(self):
    return crew.Crew(3, self.submit, self.collect)


def run(s, fleet, workers, known=None, budget=BUDGET, width=1):
  lines, states = [], []
  hook = search.Hook(children=lines.extend, step=lambda state, info: states.append(state))
  crew.run(s, fleet, [hook], budget, known, workers and workers.crew, width)
  return lines, states


@pytest.fixture(scope='module')
def live(s):
  """The journal and the states of a search by workers."""
  return run(s, s.init(KEY), Workers())


def by_id(lines):
  return {line['id']: line for line in lines}


def same(one, other):
  leaves = [jax.tree.leaves(fleet._replace(server=fleet.server._replace(key=()))) for fleet in (one, other)]
  return all((np.asarray(a) == np.asarray(b)).all() for a, b in zip(*leaves, strict=True))


def test_the_journal_of_live_workers_gives_their_state_again(s, live):
  """A replay trains nothing and is bit-identical, with workers and without."""
  lines, states = live
  assert len({line['id'] for line in lines}) == len(lines) == 48 and int(states[-1].step) == 24
  assert [line['event'] for line in lines] == [i // 2 for i in range(48)] and 'time' not in lines[0]
  assert [line['id'] for line in lines] != sorted(line['id'] for line in lines)
  for workers in (None, Workers()):
    again, replayed = run(s._replace(evaluate=never), s.init(KEY), workers, by_id(lines))
    assert again == [] and same(replayed[-1], states[-1])


@pytest.mark.parametrize(('saved', 'journalled'), [(0, 11), (7, 7), (7, 12)])
def test_it_goes_on_from_a_state_and_the_journal_after_it(s, live, saved, journalled):
  """Nothing is trained twice, and the last state is that of the whole journal."""
  lines, states = live
  known = lines[: 2 * journalled]
  fleet = states[saved - 1] if saved else s.init(KEY)
  workers = Workers(seed=1)
  fresh, after = run(s._replace(evaluate=never), fleet, workers, by_id(known))
  trained = [number for batch in workers.given for number in batch.ids.tolist()]
  assert len(set(trained)) == len(trained) and not set(trained) & set(by_id(known))
  whole = known + fresh
  assert len(by_id(whole)) == len(whole) == 48
  assert same(run(s, s.init(KEY), None, by_id(whole))[1][-1], after[-1])


def test_the_place_of_a_lost_line_is_known_from_what_its_replica_did_next(s, live):
  lines, states = live
  event = next(event for event in range(20) if any(line['id'] // 2 == event + 5 for line in lines))
  known = [line for line in lines if line['event'] != event]
  fresh, after = run(s, s.init(KEY), None, by_id(known))
  assert [line['id'] for line in fresh] == [line['id'] for line in lines if line['event'] == event]
  assert same(after[-1], states[-1])


def test_a_batch_that_was_written_in_part_is_trained_again_as_a_whole(s, live):
  lines, states = live
  fresh, after = run(s, states[9], None, by_id(lines[:25]), search.Budget(26))
  assert [line['id'] for line in fresh] == [lines[25]['id']] and fresh[0]['event'] == 12
  assert same(after[-1], states[12])


def test_a_round_drops_what_the_journal_has_counted(s, live):
  """The journal has only the second answer of the round."""
  second = [{**line, 'event': 1, 'replica': 1} for line in live[0] if line['id'] in (2, 3)]
  fresh, after = run(s, s.init(KEY), None, by_id(second), width=9)
  assert len(by_id(fresh + second)) == len(fresh + second) == 48
  assert same(run(s._replace(evaluate=never), s.init(KEY), None, by_id(fresh + second))[1][-1], after[-1])


def test_an_answer_to_a_batch_that_has_been_counted_is_dropped(s, live):
  """The journal has only the second answer, which counts although a worker trains its batch again."""
  second = [{**line, 'event': 1, 'replica': 1} for line in live[0] if line['id'] in (2, 3)]
  workers = Workers()
  workers.rng.choice = min
  fresh, after = run(s, s.init(KEY), workers, by_id(second))
  assert [batch.ids.tolist() for batch in workers.given[:3]] == [[0, 1], [2, 3], [4, 5]]
  assert [line['id'] for line in fresh[:4]] == [0, 1, 4, 5] and len(by_id(fresh + second)) == len(fresh + second) == 48
  assert same(run(s, s.init(KEY), None, by_id(fresh + second))[1][-1], after[-1])


@pytest.fixture(scope='module')
def together(s):
  """The journal and the states of a search that trains the batches of four replicas at once, on nine devices."""
  return run(s, s.init(KEY), None, width=9)


def test_batches_that_are_trained_together_were_handed_out_before(s, together):
  """A round has four replicas, each once: those with batches from before the round that end first."""
  lines, states = together
  assert len(by_id(lines)) == len(lines) == 48 and [line['event'] for line in lines] == [i // 2 for i in range(48)]
  fleets = [s.init(KEY), *states]
  for event in range(24):
    fleet, first = fleets[event], event - event % 4
    before = [r for r in range(5) if int(fleet.numbers[r]) < 5 + first]
    r = min(before, key=lambda r: float(fleet.ends[r]))
    assert lines[2 * event]['replica'] == r and lines[2 * event]['id'] == 2 * int(fleet.numbers[r])
  alone, _ = run(s, s.init(KEY), None)
  alone, together = ({line['id']: (line['tokens'], line['reward']) for line in each} for each in (alone, lines))
  assert all(alone[number] == together[number] for number in range(10)) and list(alone) != list(together)


@pytest.mark.parametrize(('saved', 'journalled'), [(0, 8), (5, 8), (10, 12), (11, 11)])
def test_a_round_that_was_interrupted_is_gone_on_with(s, together, saved, journalled):
  lines, states = together
  fleet = states[saved - 1] if saved else s.init(KEY)
  fresh, after = run(s, fleet, None, by_id(lines[: 2 * journalled]), width=9)
  assert [{**line, 'seconds': 0} for line in fresh] == [{**line, 'seconds': 0} for line in lines[2 * journalled :]]
  assert same(after[-1], states[-1])


@pytest.mark.parametrize('hired', [False, True])
@pytest.mark.parametrize('saved', [0, 7, 12])
def test_a_time_limit_ends_a_resumed_search_where_the_journal_says(s, live, saved, hired):
  """The children took 0.5 s each and the limit is 11.5 s: all twelve batches that are in the journal count."""
  lines, states = live
  known = {line['id']: {**line, 'seconds': 0.5} for line in lines[:24]}
  fleet, budget = states[saved - 1] if saved else s.init(KEY), search.Budget(99, seconds=11.5)
  fresh, after = run(s._replace(evaluate=never), fleet, Workers() if hired else None, known, budget)
  assert fresh == [] and same(after[-1] if after else fleet, states[11])


def test_a_round_is_finished_when_the_budget_is_spent(s):
  """A budget of four batches takes two rounds of three."""
  lines, states = run(s, s.init(KEY), None, budget=search.Budget(8), width=6)
  assert len(lines) == 12 and int(states[-1].step) == 6
  # It was interrupted after the budget was spent, or while it wrote the lines of this round.
  for saved, journalled in [(3, 5), (3, 6), (4, 6), (5, 6)]:
    known = by_id(lines[: 2 * journalled])
    fresh, after = run(s, states[saved - 1], None, known, search.Budget(8), width=6)
    assert len(fresh) == 12 - 2 * journalled and same(after[-1], states[-1])


@pytest.mark.parametrize('width', [6, 9])
def test_a_search_that_has_ended_trains_nothing_with_another_number_of_devices(s, live, width):
  """Its ten answers are a whole number of rounds with one device, but not with six or nine."""
  lines, states = live
  assert run(s._replace(evaluate=never), states[9], None, by_id(lines[:20]), search.Budget(20), width) == ([], [])
