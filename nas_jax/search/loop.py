"""The loop that runs a search. It reports to hooks, stops at a budget, and resumes from a journal."""

from collections.abc import Callable, Iterable, Mapping, Sequence
import math
import time
from typing import Any, NamedTuple
import warnings

import jax

from nas_jax.search import journal
from nas_jax.search.core import Search, Update
from nas_jax.search.state import SearchState
from nas_jax.training import layout
from nas_jax.types import Array, Batch, Key, Outcome

Told = tuple[SearchState, Mapping[str, Any]]  # the state after an update, and what it reported


class Hook(NamedTuple):
  """Functions that the loop calls to report progress. Only hooks write files, and no hook changes the search."""

  children: Callable[[list[journal.Record]], None] = lambda records: None  # called as soon as children are scored
  step: Callable[[SearchState, Mapping[str, Any]], None] = lambda state, info: None  # called after each update
  vital: bool = False  # an error of a vital hook (the journal) stops the search; that of another only gives a warning
  steps: Callable[[Sequence[Told]], None] | None = None  # called instead of `step`, once for all updates of a program


class Budget(NamedTuple):
  """When a search stops. The update during which a limit is reached is finished."""

  children: int
  seconds: float = math.inf  # spent on evaluating children, as the journal counts them
  reward: float = math.inf  # of the best child


def run(
  search: Search,
  state: SearchState,
  hooks: Sequence[Hook],
  budget: Budget,
  known: Mapping[int, journal.Record] | None = None,
) -> SearchState:
  """Asks, evaluates and tells until the budget is spent, and returns the last state.

  Args:
    search: the search to run.
    state: a new one, from `Search.init`, or a restored one.
    hooks: called in this order.
    budget: the limits; children before `state` count.
    known: the journal of a search that was interrupted, by child id. `ask` is pure, so the search asks for the same
      children again. A group of children that is completely in the journal is not trained again. A group that is only
      partly there is evaluated again as a whole, because a program for fewer children might round differently.

  Raises:
    ValueError: the journal belongs to another search: it has other tokens for a child of the same id.

  >>> import jax
  >>> from nas_jax import search, space
  >>> from nas_jax.types import Outcome
  >>> sp = space.choice_space({'width': ('16', '32', '64'), 'depth': ('2', '4')})
  >>> s = search.build(sp, search.Config(m=4, algorithm='random'), lambda batch: Outcome(batch.tokens.sum(1)))
  >>> hook = search.Hook(children=lambda records: print([record['id'] for record in records]))
  >>> state = search.run(s, s.init(jax.random.key(0)), [hook], search.Budget(children=8))
  [0, 1, 2, 3]
  [4, 5, 6, 7]
  """
  known = known or {}
  measured = dict(known)
  seconds = seconds_of(search.children(state), known)

  def evaluated(batch: Batch) -> Outcome:
    nonlocal seconds
    outcome, fresh = journalled(search, batch, known, measured)
    measured.update({line['id']: line for line in fresh})
    call(hooks, 'children', fresh)
    seconds += seconds_of(batch.ids.tolist(), measured)
    return outcome

  def one(state: SearchState) -> SearchState:
    batch = search.ask(state)
    if search.parts:
      groups = search.parts.split(batch)
      outcome = search.parts.join(batch, groups, [evaluated(group) for group in groups])
    else:
      outcome = evaluated(batch)
    state, info = search.tell(state, batch, outcome)
    state = search.sized(state, int(state.step))
    report(hooks, [(state, info)])
    return state

  def several(state: SearchState, make: Callable[[SearchState, int], list[Update]]) -> SearchState:
    nonlocal seconds
    begun = time.perf_counter()
    updates = make(state, -(-(budget.children - search.spent(state)) // search.m))
    each, fresh, told = (time.perf_counter() - begun) / len(updates), list[journal.Record](), list[Told]()
    for update in updates:
      seen = _seen(update.batch, known)
      lines = _unseen(journal.records(update.batch, update.outcome, each), known)
      fresh += lines
      seconds += sum(line['seconds'] for line in seen + lines)
      told.append((update.state, update.info))
      if over(search, update.state, budget, seconds):
        break  # updates beyond a limit are left out, as if they had not been made
    call(hooks, 'children', fresh)
    report(hooks, told)
    return told[-1][0]

  while not over(search, state, budget, seconds):
    state = several(state, search.updates) if search.updates else one(state)
  return state


def seconds_of(children: Iterable[int], known: Mapping[int, journal.Record]) -> float:
  """Returns the seconds that children took, as their records in a journal count them. A lost record counts as 0."""
  return sum(known[number]['seconds'] for number in children if number in known)


def over(search: Search, state: SearchState, budget: Budget, seconds: float) -> bool:
  """Returns whether a limit of the budget is reached; `seconds` is the time spent on evaluating children."""
  return search.over(state, budget.children) or seconds >= budget.seconds or float(state.best.reward) >= budget.reward


def journalled(
  search: Search, batch: Batch, known: Mapping[int, journal.Record], measured: Mapping[int, journal.Record]
) -> tuple[Outcome, list[journal.Record]]:
  """Returns the outcome of children, and records of those that are not in the journal yet.

  The children are trained unless all of them are in the journal; children that share weights always are. `measured` has
  the records of all children so far: a child that repeats one of them gets its metrics from there.
  """
  seen = _seen(batch, known)
  if len(seen) == len(batch.ids) and not search.shared:
    return journal.outcome(seen), []
  start = time.perf_counter()
  outcome = search.train(batch)
  return outcome, _unseen(journal.records(batch, outcome, time.perf_counter() - start, measured), known)


def _seen(batch: Batch, known: Mapping[int, journal.Record]) -> list[journal.Record]:
  """Returns the records of children that are in the journal. Raises `files.Unusable` if they are of another search."""
  seen = [known[number] for number in batch.ids.tolist() if number in known]
  journal.agree(seen, batch)
  return seen


def _unseen(records: list[journal.Record], known: Mapping[int, journal.Record]) -> list[journal.Record]:
  return [record for record in records if record['id'] not in known]


def report(hooks: Sequence[Hook], told: Sequence[Told]) -> None:
  """Calls the hooks with the state after each update and with its info as floats."""
  told = [(state, {name: float(value) for name, value in info.items()}) for state, info in told]
  for hook in hooks:
    if hook.steps:
      call([hook], 'steps', told)
    else:
      for state, info in told:
        call([hook], 'step', state, info)


def call(hooks: Sequence[Hook], name: str, *args: Any) -> None:
  """Calls the function `name` of each hook. An exception becomes a warning, unless the hook is vital."""
  for hook in hooks:
    try:
      getattr(hook, name)(*args)
    except Exception as error:
      if hook.vital:
        raise
      warnings.warn(f'a {name} hook failed, the search goes on: {type(error).__name__}: {error}', stacklevel=2)


def run_seeds(search: Search, keys: Key, steps: int) -> tuple[SearchState, tuple[Array, Outcome]]:
  """Runs a whole search for each of `keys` [n], all in one program over the local devices.

  The search must have an evaluator that `jax.jit` can compile, such as one that looks rewards up in a table.

  Args:
    search: the search to run.
    keys: [n], the key of each run.
    steps: updates of each run.

  Returns:
    The final states, and (tokens [n, steps, m, T], outcomes) of all children. All have the leading axis n.

  >>> import jax
  >>> from nas_jax import search, space
  >>> from nas_jax.types import Outcome
  >>> sp = space.choice_space({'width': ('16', '32', '64'), 'depth': ('2', '4')})
  >>> s = search.build(sp, search.Config(m=4, algorithm='random'), lambda batch: Outcome(batch.tokens.sum(1)))
  >>> states, (tokens, outcomes) = search.run_seeds(s, jax.random.split(jax.random.key(0), 3), steps=2)
  >>> states.best.reward.shape, tokens.shape, outcomes.reward.shape
  ((3,), (3, 2, 4, 2), (3, 2, 4))
  """

  def one(_, key):
    def step(state, _):
      batch = search.ask(state)
      outcome = search.evaluate(batch)
      state, _ = search.tell(state, batch, outcome)
      return state, (batch.tokens, outcome)

    return jax.lax.scan(step, search.sized(search.init(key), steps), length=steps)

  # A CPU runs the searches one after another: the weights of all controllers together would not fit into its caches.
  mesh = layout.child_mesh()
  found = layout.over_children(one, mesh)((), layout.filled(keys, mesh))
  return jax.tree.map(lambda x: x[: len(keys)], found)
