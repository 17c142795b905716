"""Writes logs of a search: updates.jsonl and TensorBoard events. The search itself reads neither."""

from collections.abc import Callable, Iterable, Sequence
import os
from typing import Any

import jax
import numpy as np

from nas_jax import search
from nas_jax.search import journal
from nas_jax.space import Space
from nas_jax.training import layout

SAMPLES = 64  # number of sampled token sequences that estimate the controller's entropy and probabilities
POINTS = 100  # the controller's probabilities are written about this many times in a run


def watch(workdir: str, s: search.Search, children: int, done: int = 0) -> tuple[search.Hook, Callable[[], None]]:
  """Returns a hook that logs a search to updates.jsonl and TensorBoard, and a function that closes its event file.

  Each update becomes a line of updates.jsonl: step, children, mean reward, baseline, advantage (mean absolute),
  gradient_norm, best reward and entropy (nats per token sequence). About a hundred lines of a run also have
  `probabilities`: those of each slot's labels under the controller after the update. A resumed search writes some steps
  again; the last line of a step counts.

  Args:
    workdir: the folder of the logs.
    s: the search.
    children: how many children it will train.
    done: how many children it has trained.
  """
  write = journal.writer(os.path.join(workdir, 'updates.jsonl'))
  show_children, show_updates, close = events(workdir, s.space)
  # A fixed key, so that logging does not change the random numbers of the search.
  keys, looked, most = jax.random.split(jax.random.key(0), SAMPLES), done * POINTS // children, 1
  of_all = layout.over_children(
    lambda keys, kept: s.algorithm.summary(kept, keys), layout.child_mesh(jax.local_devices()[:1])
  )

  def summaries(states: list[search.SearchState]) -> Iterable[tuple[Any, Any]]:
    """Returns summaries of the policy after each of several updates, computed by one program."""
    nonlocal most
    if len(states) == 1:
      return [s.policy_summary(states[0], keys)]
    most = max(most, len(states))
    filled = states + states[-1:] * (most - len(states))  # one shape, so that fewer states compile no other program
    kept = jax.tree.map(lambda *leaves: np.stack(leaves), *(state.algorithm for state in filled))
    return zip(*map(np.asarray, of_all(keys, kept)), strict=True)

  def note(told: Sequence[search.Told]) -> None:
    nonlocal looked
    lines = list[journal.Record]()
    # Zipped to the shorter one: summaries may be more, see above.
    for (state, info), (entropy, probabilities) in zip(told, summaries([one for one, _ in told]), strict=False):
      step, done = int(state.step), s.spent(state)
      numbers = {**info, 'best': state.best.reward, 'entropy': entropy}
      line = {'step': step, 'children': done} | {name: journal.plain(np.asarray(x)) for name, x in numbers.items()}
      if step == 1 or done * POINTS // children > looked or s.over(state, children):
        looked = done * POINTS // children
        rows = zip(np.asarray(probabilities, np.float64).round(4).tolist(), s.space.slots, strict=True)
        line['probabilities'] = [row[: slot.width] for row, slot in rows]
      lines.append(line)
    write(lines)
    show_updates(lines)

  return search.Hook(children=show_children, steps=note), close


Show = Callable[[list[journal.Record]], None]


def events(workdir: str, made: Space) -> tuple[Show, Show, Callable[[], None]]:
  """Returns three functions for TensorBoard scalars in `workdir`/events: write children, write updates, and close.

  The x axis is the number of children so far. The first call writes all lines of children.jsonl and updates.jsonl,
  later calls only new lines. A resumed search thus writes all points again, into a new file that makes TensorBoard
  discard those of the old one.

  Args:
    workdir: the folder.
    made: the space of the children.
  """
  writer: Any = None
  folder, shown = os.path.join(workdir, 'events'), set[tuple[str, int]]()
  by, names = {'child': 'id', 'update': 'step'}, {'child': 'children.jsonl', 'update': 'updates.jsonl'}
  schemas = {'child': journal.child_of(made), 'update': journal.update_of(made)}

  def add(kind: str, lines: Iterable[journal.Record]) -> None:
    for line in lines:
      number = (kind, line[by[kind]])
      if number not in shown:
        shown.add(number)
        at = line['children'] if kind == 'update' else line['id'] + 1
        for name, value in line.items():
          if isinstance(value, float) and not line.get('failed'):
            writer.add_scalar(f'{kind}/{name}', value, at)

  def show(kind: str) -> Show:
    def call(lines: list[journal.Record]) -> None:
      nonlocal writer
      if writer is None:
        from tensorboardX import SummaryWriter  # imported here, as the import takes a third of a second

        writer = SummaryWriter(folder, purge_step=0 if os.path.isdir(folder) else None, flush_secs=5)
        for each, name in names.items():
          add(each, journal.read(os.path.join(workdir, name), by[each], schemas[each]).values())
      add(kind, lines)

    return call

  def close() -> None:
    if writer is not None:
      writer.close()

  return show('child'), show('update'), close
