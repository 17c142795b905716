"""Workers that train children elsewhere, and the loop of a search with asynchronous replicas that they train for.

The loop follows the journal first: each line of it says which replica answered, and after how many answers. Then it
takes the answers as they come. So a search that was interrupted ends in a state that its own journal gives again.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
import functools
from typing import Any, NamedTuple

import jax.numpy as jnp

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
) -> Any:
  """Runs a search with replicas as `search.run` runs others, and returns the last state.

  Args:
    search: of `replicas.simulated`.
    fleet: its state.
    hooks: as in `search.run`.
    budget: likewise. Batches that are still under way when it is spent do not count.
    known: the journal so far, by child id. Its children are not trained again, and count in the order of their events.
    crew: trains the children. Without one, this process trains them in the order of simulated times.

  Raises:
    ValueError: the journal belongs to another search.
  """
  machine, known = search.replicas, known or {}
  order, seconds = events(known, machine), sum(line['seconds'] for line in known.values())
  under_way = dict[int, tuple[int, Batch]]()  # by ticket: the replica and its batch
  while not loop.over(search, fleet, budget, seconds):
    r = order.get(int(fleet.step), None if crew else int(jnp.argmin(fleet.ends)))
    if r is not None:
      batch = machine.ask(fleet, r)
      outcome, fresh = loop.journalled(search, batch, known, known)
    else:
      assert crew is not None
      r, batch, outcome, took = _next(machine, fleet, crew, under_way)
      if int(batch.ids[0]) != int(fleet.numbers[r]) * search.m:
        continue  # it has been counted
      turn = machine.turn(fleet, r)._asdict()
      del turn['time']  # which is simulated
      lines = journal.records(batch, replicas.noted(outcome, turn), took)
      fresh = [line for line in lines if line['id'] not in known]
    loop.call(hooks, 'children', fresh)
    seconds += sum(line['seconds'] for line in fresh)
    fleet, info = machine.tell(fleet, r, batch, outcome)
    loop.call(hooks, 'step', fleet, {name: float(value) for name, value in info.items()})
  return fleet


def _next(
  machine: replicas.Replicas, fleet: Fleet, crew: Crew, under_way: dict[int, tuple[int, Batch]]
) -> tuple[int, Batch, Outcome, float]:
  """Gives batches to the workers that have none, those that were asked for first, and waits for an answer."""
  numbers = fleet.numbers.tolist()
  busy = {r for r, _ in under_way.values()}
  for r in sorted(set(range(machine.replicas)) - busy, key=numbers.__getitem__)[: crew.size - len(under_way)]:
    batch = machine.ask(fleet, r)
    under_way[crew.submit(CHILDREN, batch._replace(extra=()))] = r, batch
  ticket, outcome, took = crew.collect(under_way)
  return *under_way.pop(ticket), outcome, took


def events(known: Mapping[int, journal.Record], machine: replicas.Replicas) -> dict[int, int]:
  """Returns which replica gave each answer of a journal.

  Where a line is lost, the next batch of its replica may tell: the one that was handed out at the answer.
  """
  m, count = machine.search.m, machine.replicas
  handed = {line['id'] // m - count: line['replica'] for line in known.values() if line['id'] >= count * m}
  return handed | {line['event']: line['replica'] for line in known.values()}
