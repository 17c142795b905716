"""Workers that train children elsewhere, and the loop of a search with asynchronous replicas that they train for.

The loop follows the journal first: each line of it says which replica answered, and after how many answers (`event`).
Then it takes the answers as they come. So a search that was interrupted ends in a state that its own journal gives
again. Without workers the order is drawn from the seed, and the search is deterministic.
"""

from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
import functools
import itertools
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nas_jax import hosts, replicas
from nas_jax.replicas import Fleet
from nas_jax.search import journal, loop
from nas_jax.search.core import Search
from nas_jax.types import Batch, Evaluate, Outcome

CHILDREN = 'children'  # the name of the evaluator that trains the children of a search


class Crew(NamedTuple):
  """Workers that train one batch each at a time. If one is lost, another gets its batch."""

  size: int  # how many workers there are, those that have not come yet included
  submit: Callable[[str, Batch], int]  # (name of an evaluator, batch) -> a ticket
  collect: Callable[[Collection[int]], tuple[int, Outcome, float]]  # waits for the next of these tickets: which, its
  # outcome, and the seconds that it took; raises `Stopped` if the process was asked to end


def elsewhere(crew: Crew, names: Iterable[str], uniform: bool) -> dict[str, Evaluate]:
  """Returns evaluators that cut a batch into shares, each of which a worker trains.

  Args:
    crew: whose workers have evaluators of these names.
    names: of the evaluators.
    uniform: whether one program trains all children of a share; see `hosts.share`.
  """

  def train(name: str, batch: Batch) -> Outcome:
    m = len(batch.keys)
    size = -(-m // crew.size)  # children of a share
    count = -(-m // size)
    under_way = {crew.submit(name, hosts.share(batch, i, count, uniform)): i for i in range(count)}
    found = dict[int, Outcome]()
    while under_way:
      ticket, outcome, _ = crew.collect(under_way)
      found[under_way.pop(ticket)] = outcome
    return hosts.join([found[i] for i in range(count)], m, size)

  return {name: functools.partial(train, name) for name in names}


def run(
  search: Search,
  fleet: Any,
  hooks: Sequence[loop.Hook],
  budget: loop.Budget,
  known: Mapping[int, journal.Record] | None = None,
  crew: Crew | None = None,
  width: int = 1,
) -> Any:
  """Runs a search with replicas as `search.run` runs others, and returns the last state.

  Without a crew this process trains the children, and the order of answers is that of simulated times. So that all
  devices have children, it trains the batches of several replicas together, and then takes their answers one by one.

  Args:
    search: of `replicas.simulated`.
    fleet: its state.
    hooks: as in `search.run`.
    budget: likewise. Batches that are still under way when it is spent do not count.
    known: the journal so far, by child id. Its children are not trained again, and count in the order of their events.
    crew: trains the children, each of its workers those of one replica.
    width: children that this process trains at once, if there is no crew: as many as there are devices.

  Raises:
    ValueError: the journal belongs to another search.
  """
  machine, known = search.replicas, known or {}
  order, seconds = events(known, machine), sum(line['seconds'] for line in known.values())
  together = max(1, min(width // search.m, machine.replicas))
  under_way = dict[int, tuple[int, Batch]]()  # by ticket: the replica and its batch
  trained = deque[Answer]()
  while not loop.over(search, fleet, budget, seconds) or (crew is None and int(fleet.step) % together):
    event = int(fleet.step)
    fresh = list[journal.Record]()
    if event in order:
      batch = machine.ask(fleet, order[event])._replace(extra=())
      outcome, fresh = loop.journalled(search, batch, known, known)
      answer = Answer(order[event], batch, outcome)
      fresh = _placed(fresh, order[event], event)
    elif crew:
      answer, took = _next(machine, fleet, crew, under_way)
      fresh = _placed(journal.records(answer.batch, answer.outcome, took), answer.replica, event)
    else:
      if not trained:
        begun = time.perf_counter()
        trained.extend(_round(search, fleet, together))
        took = (time.perf_counter() - begun) / len(trained)
        for i, one in enumerate(trained):
          fresh += _placed(journal.records(one.batch, one.outcome, took), one.replica, event + i)
      answer = trained.popleft()
    if int(answer.batch.ids[0]) != int(fleet.numbers[answer.replica]) * search.m:
      continue  # it has been counted
    fresh = [line for line in fresh if line['id'] not in known]
    loop.call(hooks, 'children', fresh)
    seconds += sum(line['seconds'] for line in fresh)
    fleet, info = machine.tell(fleet, *answer)
    loop.report(hooks, [(fleet, info)])
  return fleet


class Answer(NamedTuple):
  """What a replica answers."""

  replica: int
  batch: Batch
  outcome: Outcome


def _placed(lines: Sequence[journal.Record], replica: int, event: int) -> list[journal.Record]:
  """Returns records that say which answer they are of."""
  return [line | {'replica': replica, 'event': event} for line in lines]


def _round(search: Search, fleet: Fleet, together: int) -> list[Answer]:
  """Trains the batches of the replicas that answer next, in one program, and returns their answers in order.

  A round is of so many events, and of batches that were handed out before it. An interrupted search goes on with the
  rest of a round.
  """
  machine, event = search.replicas, int(fleet.step)
  first = event - event % together
  ends, numbers = fleet.ends.tolist(), fleet.numbers.tolist()
  before = [r for r in range(machine.replicas) if numbers[r] < machine.replicas + first]
  members = sorted(before, key=ends.__getitem__)[: first + together - event]
  answers = list[Answer]()
  for _, some in itertools.groupby(members, key=lambda r: machine.ask(fleet, r).depth):
    replicas_of = list(some)
    batches = [machine.ask(fleet, r) for r in replicas_of]
    outcome = search.evaluate(_merged(batches))
    ends_at = np.cumsum([0, *(len(batch.ids) for batch in batches)])
    for i, (r, batch) in enumerate(zip(replicas_of, batches, strict=True)):
      answers.append(Answer(r, batch, _part(outcome, slice(ends_at[i], ends_at[i + 1]))))
  return answers


def _merged(batches: Sequence[Batch]) -> Batch:
  """Returns batches of one depth as one."""
  if len(batches) == 1:
    return batches[0]._replace(extra=())

  def joined(*parts: Any) -> Any:
    return jnp.concatenate(parts)

  fields = ('ids', 'keys', 'tokens', 'archs')
  parts = {name: jax.tree.map(joined, *(getattr(batch, name) for batch in batches)) for name in fields}
  return batches[0]._replace(**parts, extra=())


def _part(outcome: Outcome, children: slice) -> Outcome:
  """Returns the outcome of some children."""
  metrics = {name: values[children] for name, values in dict(outcome.metrics or {}).items()}
  failed = None if outcome.failed is None else outcome.failed[children]
  return outcome._replace(reward=outcome.reward[children], metrics=metrics, failed=failed)


def _next(
  machine: replicas.Replicas, fleet: Fleet, crew: Crew, under_way: dict[int, tuple[int, Batch]]
) -> tuple[Answer, float]:
  """Gives batches to the workers that have none, those that were asked for first, and waits for an answer."""
  numbers = fleet.numbers.tolist()
  busy = {r for r, _ in under_way.values()}
  for r in sorted(set(range(machine.replicas)) - busy, key=numbers.__getitem__)[: crew.size - len(under_way)]:
    batch = machine.ask(fleet, r)
    under_way[crew.submit(CHILDREN, batch._replace(extra=()))] = r, batch
  ticket, outcome, took = crew.collect(under_way)
  return Answer(*under_way.pop(ticket), outcome), took


def events(known: Mapping[int, journal.Record], machine: replicas.Replicas) -> dict[int, int]:
  """Returns which replica gave each answer of a journal.

  Where a line is lost, the next batch of its replica may tell: the one that was handed out at the answer.
  """
  m, count = machine.search.m, machine.replicas
  handed = {line['id'] // m - count: line['replica'] for line in known.values() if line['id'] >= count * m}
  return handed | {line['event']: line['replica'] for line in known.values()}
