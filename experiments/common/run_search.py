"""One search in a folder, begun or gone on with."""

from collections.abc import Callable, Iterable, Mapping
import functools
import math
import os
import sys
import time
from typing import Any
import warnings

import jax
from tqdm import tqdm

from experiments.common import hooks, workdirs
from nas_jax import search
from nas_jax.report import rankings
from nas_jax.search import journal, older
from nas_jax.training import checkpoint
from nas_jax.training.recovery import NO_RECOVERY, Limits, Recovery, Stopped

SECONDS = 20  # between checkpoints: steps since the last one are asked again and read from the journal


def budget_of(limits: Limits, children: int) -> search.Budget:
  """So many children, or what else ends a search; 0 there is no end."""
  return search.Budget(children, limits.max_seconds or math.inf, limits.target_reward or math.inf)


def run(
  folder: str,
  s: search.Search,
  seed: int,
  budget: search.Budget,
  name: str = 'search',
  recovery: Recovery = NO_RECOVERY,
) -> list[journal.Record]:
  """Runs `s` in `folder` until the budget is spent, going on from whatever is there.

  The folder then holds children.jsonl, checkpoints/ and best.json, and for people updates.jsonl and events/, and
  replay.json where the search remembers what it tried.

  Returns:
    The journal, by id.

  Raises:
    Stopped: the process was asked to end; what is done is kept.
  """
  path, checkpoints = os.path.join(folder, 'children.jsonl'), os.path.join(folder, 'checkpoints')
  os.makedirs(folder, exist_ok=True)
  aside = os.path.join(folder, 'damaged')
  if count := journal.drop_damaged_lines(path, aside):
    warnings.warn(f'{path}: {count} damaged lines, moved to {aside}; their children are trained again.', stacklevel=2)
  state = s.init(jax.random.key(seed))
  state = checkpoint.restore(checkpoints, functools.partial(s.sized, state), older.layouts) or state
  known = journal.read(path)
  save, close = checkpoint.saver(checkpoints)
  watch, stop_watching = hooks.watch(folder, s, budget.children, s.spent(state))
  saved = time.monotonic()

  def keep(now: search.SearchState, info: Mapping[str, Any] | None = None) -> None:
    nonlocal saved, state
    state = now
    if info is None or time.monotonic() - saved > SECONDS:
      save(int(state.step), state)
      saved = time.monotonic()
      if s.parts:
        workdirs.write(os.path.join(folder, 'replay.json'), s.parts.export(state) + '\n')

  pause = 1 if sys.stderr.isatty() else 20
  with tqdm(total=budget.children, initial=s.spent(state), desc=name, unit='child', mininterval=pause) as bar:

    def show(state: search.SearchState, info: Mapping[str, Any]) -> None:
      bar.set_postfix(best=f'{float(state.best.reward):.4f}', mean=f'{info["reward"]:.4f}', refresh=False)
      bar.update(min(s.spent(state), budget.children) - bar.n)

    hearers = [
      search.Hook(children=journal.writer(path), vital=True),
      watch,  # before the checkpoint, so that no step that is not done again goes unnoted
      search.Hook(step=keep, vital=True),
      search.Hook(children=_noting_best(folder, s, known), vital=True),
      search.Hook(step=show),
      search.Hook(step=lambda state, info: recovery.check(), vital=True),
    ]
    try:
      search.run(s, state, hearers, budget, known)
      keep(state)
    except Stopped:
      keep(state)  # as it was after the last whole step
      raise
    finally:
      stop_watching()
      close()
  found = journal.read(path)
  return [found[number] for number in sorted(found) if number < s.spent(state)]


def _noting_best(
  folder: str, s: search.Search, known: Mapping[int, journal.Record]
) -> Callable[[Iterable[journal.Record]], None]:
  """What writes best.json whenever a child is better than all before; for those known it has done so."""
  best = -math.inf

  def note(records: Iterable[journal.Record]) -> None:
    nonlocal best
    for record in records:
      if record['reward'] > best:
        best = record['reward']
        workdirs.write(os.path.join(folder, 'best.json'), rankings.best_json(s.space, record))

  if known:  # whose best may have been journalled just before the end, and noted nowhere
    note([max(known.values(), key=lambda record: record['reward'])])
  return note
