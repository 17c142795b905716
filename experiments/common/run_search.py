"""Runs one search in a folder, from its beginning or from where it stopped."""

from collections.abc import Callable, Iterable, Mapping, Sequence
import functools
import math
import os
import time
import types
from typing import Any
import warnings

import jax
import numpy as np

from experiments.common import hooks, workdirs
from experiments.common.progress import Progress
from nas_jax import crew as crew_lib
from nas_jax import files, search
from nas_jax.report import rankings
from nas_jax.search import journal, older
from nas_jax.training import checkpoint
from nas_jax.training.recovery import NO_RECOVERY, Limits, Recovery, Stopped

SECONDS = 20  # between checkpoints; resuming repeats the updates since the last one, with children from the journal


def budget_of(limits: Limits, children: int) -> search.Budget:
  """Returns the budget of a search: a number of children, and the limits of its config, where 0 means no limit."""
  return search.Budget(children, limits.max_seconds or math.inf, limits.target_reward or math.inf)


def run(
  folder: str,
  s: search.Search,
  seed: int,
  budget: search.Budget,
  name: str = 'search',
  recovery: Recovery = NO_RECOVERY,
  watchers: Sequence[search.Hook] = (),
  crew: crew_lib.Crew | None = None,
  width: int = 1,
  told: Mapping[int, journal.Record] = types.MappingProxyType({}),
  progress: Progress | None = None,
) -> list[journal.Record]:
  """Runs a search in a folder until the budget is spent. It resumes from the state in the folder.

  The folder then holds children.jsonl, checkpoints/ and best.json, the logs updates.jsonl and events/, and
  replay.json if the search has a replay tree.

  Args:
    folder: of the search; made if need be.
    s: the search.
    seed: of its initial state.
    budget: when it ends.
    name: of this phase of the run.
    recovery: asked before each update whether the process should end.
    watchers: hooks that are called after all others.
    crew: trains the children of asynchronous replicas; by default this process does.
    width: how many children of replicas are trained at once.
    told: records, by negative id, of children that the search started from; a child that repeats one has its record.
    progress: shows how far the run is; by default it shows only this search.

  Returns:
    The records of all children, by id.

  Raises:
    Stopped: the process was asked to end. What is done is saved.
    files.Unusable: the journal or the checkpoints are of another search.
  """
  path, checkpoints = os.path.join(folder, 'children.jsonl'), os.path.join(folder, 'checkpoints')
  os.makedirs(folder, exist_ok=True)
  known = workdirs.read_children(path, s.space)
  state = _restored(checkpoints, s, seed, known)
  lost = _missing(s, state, known)
  if lost:  # only where children share weights: to score them again would repeat the whole search
    which = f'child {lost[0]} is' if len(lost) == 1 else f'{len(lost):,} children, {lost[0]} the first of them, are'
    warnings.warn(
      f'{path}: {which} lost. The search goes on from its state.',
      stacklevel=2,
    )
  save, close = checkpoint.saver(checkpoints)
  watch, stop_watching = hooks.watch(folder, s, budget.children, s.spent(state))
  saved = time.monotonic()

  def keep(now: search.SearchState, info: Mapping[str, Any] | None = None) -> None:
    nonlocal saved, state
    state = now
    if s.shared:  # shared weights cannot be recomputed from the journal
      recovery.hold(folder)
    if info is None or time.monotonic() - saved > SECONDS:
      save(int(state.step), state)  # returns while the state is still being written
      saved = time.monotonic()
      if s.parts:
        workdirs.write(os.path.join(folder, 'replay.json'), s.parts.export(state) + '\n')

  spent = min(s.spent(state), budget.children)
  with (progress or Progress()).phase(name, budget.children, 'children', spent) as advance:

    def show(state: search.SearchState, info: Mapping[str, Any]) -> None:
      nonlocal spent
      before, spent = spent, min(s.spent(state), budget.children)
      advance(spent - before, f'best {float(state.best.reward):.4f}, mean {info["reward"]:.4f}')

    listeners = [
      search.Hook(children=journal.writer(path), vital=True),
      watch,  # before the checkpoint: a saved update is not repeated, so it must be logged already
      search.Hook(step=keep, vital=True),
      search.Hook(children=_noting_best(folder, s, known, not lost), vital=True),
      search.Hook(step=show),
      search.Hook(step=lambda state, info: recovery.check(), vital=True),
      *watchers,
    ]
    try:
      loop = functools.partial(crew_lib.run, crew=crew, width=width) if s.replicas else search.run
      loop(s, state, listeners, budget, {**told, **known})
      keep(state)
    except Stopped:
      keep(state)  # the state after the last complete update
      raise
    finally:
      stop_watching()
      close()
      recovery.release(folder)
  found = journal.read(path, schema=journal.child_of(s.space))
  return [found[number] for number in s.children(state) if number in found]


def _missing(s: search.Search, state: search.SearchState, known: Mapping[int, journal.Record]) -> list[int]:
  """Returns the ids of the children of a state that the journal lacks."""
  return [number for number in s.children(state) if number not in known]


def _restored(checkpoints: str, s: search.Search, seed: int, known: Mapping[int, journal.Record]) -> search.SearchState:
  """Returns the state to resume from: the newest checkpoint with all children in the journal, or the initial state.

  A newer checkpoint would never ask for the missing children again. From this one they are trained again, and the
  others are read from the journal. If children share weights, each depends on all before it, and an older checkpoint
  would repeat the search; then the newest checkpoint is taken.

  Raises:
    files.Unusable: a checkpoint is of a search with another seed.
  """
  fresh = s.init(jax.random.key(seed))

  def reject(state: search.SearchState) -> str:
    if not np.array_equal(jax.random.key_data(state.key), jax.random.key_data(fresh.key)):
      raise files.Unusable(
        f'{checkpoints} is of a search with another seed than {seed}: put back the one of this search, or take a new '
        'workdir.'
      )
    missing = [] if s.shared else _missing(s, state, known)
    return f'is ahead of the journal, which lacks child {missing[0]}' if missing else ''

  return checkpoint.restore(checkpoints, functools.partial(s.sized, fresh), older.layouts, reject) or fresh


def _noting_best(
  folder: str, s: search.Search, known: Mapping[int, journal.Record], whole: bool
) -> Callable[[Iterable[journal.Record]], None]:
  """Returns a function that writes best.json whenever a child has a greater reward than all before, `known` included.

  A child that failed is never the best. If the journal is `whole`, the best of `known` is written at once, as the
  process may have ended after it wrote the journal and before best.json. Otherwise best.json stays, as the best child
  may be among the missing ones.
  """
  best = -math.inf

  def note(records: Iterable[journal.Record]) -> None:
    nonlocal best
    for record in records:
      if record['failed'] is None and record['reward'] > best:
        best = record['reward']
        workdirs.write(os.path.join(folder, 'best.json'), rankings.best_json(s.space, record))

  sound = [record for record in known.values() if record['failed'] is None]
  first = max(sound, key=lambda record: record['reward'], default=None)
  if first and whole:
    note([first])
  elif first:
    best = first['reward']
  return note
