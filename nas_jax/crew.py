"""Workers in other processes that train children, and the loop that runs a search with asynchronous replicas.

The loop first replays the journal: each line names the replica that answered and the number of answers before this one
(`event`). Then the loop takes new answers in the order in which they arrive. So the final state of an interrupted
search can be reproduced from its journal. Without workers the order is drawn from the seed, and the search is
deterministic.
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

  size: int  # number of workers, including those that have not connected yet
  submit: Callable[[str, Batch], int]  # (name of an evaluator, batch) -> a ticket
  # Waits until one of these tickets is done. Returns the ticket, its outcome, and the seconds that its training took.
  # Raises `Stopped` if the process was asked to end.
  collect: Callable[[Collection[int]], tuple[int, Outcome, float]]


def elsewhere(crew: Crew, names: Iterable[str], uniform: bool) -> dict[str, Evaluate]:
  """Returns evaluators that cut a batch into shares, which the workers train.

  Args:
    crew: the workers, which have evaluators of these names.
    names: the names of the evaluators.
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
  """Runs a search with replicas, as `search.run` runs other searches, and returns the last state.

  Without a crew this process trains the children, and simulated times decide the order of answers. To keep all devices
  busy, the batches of several replicas are trained together; their answers are then taken one by one. A search takes
  all answers of such a round before it ends.

  Args:
    search: the search that `replicas.simulated` returned.
    fleet: the state of that search.
    hooks: as in `search.run`.
    budget: as in `search.run`. Batches that are still in training when the budget is spent do not count.
    known: the journal so far, by child id. Its children are not trained again, and count in the order of their events.
    crew: the workers that train the children. A worker trains the batch of one replica at a time.
    width: without a crew, how many children this process trains at once: the number of devices.

  Raises:
    ValueError: the journal belongs to another search.
  """
  machine, known = search.replicas, known or {}
  order, seconds = events(known, machine), loop.seconds_of(search.children(fleet), known)
  together = max(1, min(width // search.m, machine.replicas))
  if loop.over(search, fleet, budget, seconds) and int(fleet.step) > max(order, default=-1):
    return fleet  # has ended: all answers of a round are in the journal before the first is told, and none is left
  under_way = dict[int, tuple[int, Batch]]()  # by ticket: the replica and its batch
  trained = deque[Answer]()
  while not loop.over(search, fleet, budget, seconds) or (crew is None and int(fleet.step) % together):
    event = int(fleet.step)
    fresh = list[journal.Record]()
    if event in order:
      batch = machine.ask(fleet, order[event])._replace(extra=())
      outcome, fresh = loop.journalled(search, batch, known, known)
      answer = Answer(order[event], batch, outcome)
      seconds += loop.seconds_of(batch.ids.tolist(), known)
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
      continue  # this answer has been counted
    fresh = [line for line in fresh if line['id'] not in known]
    loop.call(hooks, 'children', fresh)
    seconds += sum(line['seconds'] for line in fresh)
    fleet, info = machine.tell(fleet, *answer)
    loop.report(hooks, [(fleet, info)])
  return fleet


class Answer(NamedTuple):
  """The answer of a replica: its batch and the outcome of that batch."""

  replica: int
  batch: Batch
  outcome: Outcome


def _placed(lines: Sequence[journal.Record], replica: int, event: int) -> list[journal.Record]:
  """Returns the records with the replica and the event of their answer added."""
  return [line | {'replica': replica, 'event': event} for line in lines]


def _round(search: Search, fleet: Fleet, together: int) -> list[Answer]:
  """Trains the batches of the replicas that answer next, in one program, and returns their answers in order.

  A round is a block of `together` events that begins at a multiple of that number. Its batches were handed out before
  the round began. A search that was interrupted within a round resumes with the rest of that round.
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
  """Gives the oldest waiting batches to idle workers. Returns the next answer and the seconds of its training."""
  numbers = fleet.numbers.tolist()
  busy = {r for r, _ in under_way.values()}
  for r in sorted(set(range(machine.replicas)) - busy, key=numbers.__getitem__)[: crew.size - len(under_way)]:
    batch = machine.ask(fleet, r)
    under_way[crew.submit(CHILDREN, batch._replace(extra=()))] = r, batch
  ticket, outcome, took = crew.collect(under_way)
  return Answer(*under_way.pop(ticket), outcome), took


def events(known: Mapping[int, journal.Record], machine: replicas.Replicas) -> dict[int, int]:
  """Maps the event of each answer in a journal to the replica that gave the answer.

  A replica gets its next batch when it answers, and the ids of that batch tell the event. So the lines of the next
  batch can replace lost lines of the answer.
  """
  m, count = machine.search.m, machine.replicas
  handed = {line['id'] // m - count: line['replica'] for line in known.values() if line['id'] >= count * m}
  return handed | {line['event']: line['replica'] for line in known.values()}
