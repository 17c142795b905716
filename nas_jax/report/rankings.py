"""The results of a search from its journal: the best architectures, and tables of scores."""

from collections.abc import Callable, Iterable, Mapping, Sequence
import heapq
import json
from typing import Any, NamedTuple

import numpy as np

from nas_jax import files
from nas_jax.search.journal import Record
from nas_jax.space import Space, canonical
from nas_jax.words import counted


class Standing(NamedTuple):
  """The scores of a set of children by one metric."""

  best: float
  top5: float  # mean over the best 5 different architectures; NaN if there are fewer
  top15: float
  children: int
  unique: int  # different architectures among them, by canonical form
  failed: int


def arch_of(space: Space, record: Record) -> Any:
  """Returns the architecture of a child."""
  return space.decode(record['tokens'], record.get('depth'))


def ranking(records: Iterable[Record], space: Space, metric: str, lower: bool = True) -> list[Record]:
  """Returns the children that did not fail, best first: for each architecture (canonical form) only its best child."""
  sound = [record for record in records if record['failed'] is None and record.get(metric) is not None]
  first: dict[object, Record] = {}
  for record in sorted(sound, key=lambda record: record[metric] if lower else -record[metric]):
    first.setdefault(canonical(arch_of(space, record)), record)
  return list(first.values())


def standing(records: Sequence[Record], space: Space, metric: str, lower: bool = True) -> Standing:
  """Returns the scores of the best children, and the numbers of all, of different and of failed children."""
  values = [record[metric] for record in ranking(records, space, metric, lower)]

  def top(k: int) -> float:
    return float(np.mean(values[:k])) if len(values) >= k else float('nan')

  different = {canonical(arch_of(space, record)) for record in records}
  failed = sum(record['failed'] is not None for record in records)
  return Standing(top(1), top(5), top(15), len(records), len(different), failed)


def progress(records: Sequence[Record], space: Space, metric: str, lower: bool = True, k: int = 1) -> list[float]:
  """Returns after each child the mean over the best k different architectures so far; NaN if there are fewer."""
  best: dict[object, float] = {}
  top, found = list[float](), list[float]()
  for record in records:
    if record['failed'] is None and record.get(metric) is not None:
      value, form = (record[metric] if lower else -record[metric]), canonical(arch_of(space, record))
      if value < best.get(form, np.inf):
        best[form] = value
        if len(top) < k or value < top[-1]:
          top = heapq.nsmallest(k, best.values())
    found.append(float(np.mean(top)) * (1 if lower else -1) if len(top) == k else float('nan'))
  return found


def grouped(
  records: Iterable[Record], space: Space, metric: str, lower: bool, name: Callable[[Any], str]
) -> list[tuple[object, ...]]:
  """Groups the children that did not fail. Returns for each kind its name, number, best and mean, sorted by name.

  Args:
    records: the records of the children.
    space: the space of the children.
    metric: the name of the score.
    lower: whether lower is better.
    name: (architecture) -> the name of its kind.
  """
  kinds: dict[str, list[float]] = {}
  for record in records:
    if record['failed'] is None and record.get(metric) is not None:
      kinds.setdefault(name(arch_of(space, record)), []).append(record[metric])
  best = min if lower else max
  return [(kind, len(values), best(values), float(np.mean(values))) for kind, values in sorted(kinds.items())]


HEADER = ('best', 'top 5', 'top 15', 'of')


def standings(
  found: Mapping[str, Sequence[Record]],
  known: Mapping[str, Sequence[float | None]],
  space: Space,
  metric: str,
  lower: bool = True,
) -> list[tuple[object, ...]]:
  """Returns the rows of the table of results: a name, and what `HEADER` says.

  Args:
    found: the records of the search and of the random-search baseline, by name.
    known: the scores of known architectures, which were trained as the children were, by name; None for a training
      that failed.
    space: the space of the children.
    metric: the name of the score.
    lower: whether lower is better.
  """
  rows: list[tuple[object, ...]] = []
  for name, records in found.items():
    at = standing(records, space, metric, lower)
    of = f'{counted(at.children, "child", "children")}, {at.unique} different, {at.failed} failed'
    rows.append((name, at.best, at.top5, at.top15, of))
  for name, scores in known.items():
    rows.append(_of_scores(name, scores, 'training', min if lower else max))
  return rows


def _of_scores(
  name: str, scores: Sequence[float | None], noun: str, best: Callable[[Sequence[float]], float]
) -> tuple[object, ...]:
  """Returns a row of `standings` for some scores. The score of a failed child is None or not finite."""
  sound = [score for score in scores if score is not None and np.isfinite(score)]
  failed = len(scores) - len(sound)
  of = f'{counted(len(scores), noun)}{f", {failed} failed" if failed else ""}'
  return (name, best(sound), '', '', f'{of}, mean {np.mean(sound):.3f}') if sound else (name, float('nan'), '', '', of)


def derived(name: str, lines: Sequence[Mapping[str, Any]], metric: str) -> list[tuple[object, ...]]:
  """Returns a row as in `standings` for architectures derived after a search, best first; no row if there are none."""
  if not lines:
    return []
  scores = [line[metric] if line['failed'] is None else None for line in lines]
  return [_of_scores(f'{name}, derived', scores, 'sample', lambda sound: sound[0])]


def best_json(space: Space, record: Record) -> str:
  """Returns the text of best.json for a child. `space.from_json` reads the architecture from it."""
  arch = json.loads(space.to_json(arch_of(space, record)))
  found = arch | {'space': dict(space.spec), **{name: record[name] for name in ('tokens', 'reward', 'id')}}
  return files.as_json(found) + '\n'


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
  """Returns a table as text. The first column is aligned left, others right; for the cells see `word`."""
  lines = [list(header), *([word(cell) for cell in row] for row in rows)]
  widths = [max(len(line[i]) for line in lines) for i in range(len(header))]

  def join(line: list[str]) -> str:
    return '  '.join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True)))

  return '\n'.join(join(line).rstrip() for line in lines)


def spread(values: Sequence[float]) -> str:
  """Returns mean and standard deviation of scores as '3.294 ± 0.012', or the mean alone if there is one score.

  A dash if there is none, or if one is of a training that failed and so is not finite.
  """
  if not values or not np.isfinite(values).all():
    return '-'
  return word(float(np.mean(values))) + (f' ± {word(float(np.std(values, ddof=1)))}' if len(values) > 1 else '')


def word(cell: object) -> str:
  """Returns the text of a cell of a table: floats have three digits, NaN is a dash."""
  if isinstance(cell, float):
    return f'{cell:.3f}' if np.isfinite(cell) else '-'
  return str(cell)
