"""What a search found, from its journal: the best architectures and tables of numbers."""

from collections.abc import Callable, Iterable, Mapping, Sequence
import heapq
import json
from typing import Any, NamedTuple

import numpy as np

from nas_jax.search.journal import Record
from nas_jax.space import Space, canonical


class Standing(NamedTuple):
  """How well a set of children did by one metric."""

  best: float
  top5: float  # mean over the best 5 different architectures; NaN if there are fewer
  top15: float
  children: int
  unique: int  # different architectures among them, by canonical form
  failed: int


def arch_of(space: Space, record: Record) -> Any:
  """The architecture of a child."""
  return space.decode(record['tokens'], record.get('depth'))


def ranking(records: Iterable[Record], space: Space, metric: str, lower: bool = True) -> list[Record]:
  """The children that did not fail, best first by `metric`, of each architecture (canonical form) the best one."""
  sound = [record for record in records if record['failed'] is None and record.get(metric) is not None]
  first: dict[object, Record] = {}
  for record in sorted(sound, key=lambda record: record[metric] if lower else -record[metric]):
    first.setdefault(canonical(arch_of(space, record)), record)
  return list(first.values())


def standing(records: Sequence[Record], space: Space, metric: str, lower: bool = True) -> Standing:
  """`ranking` in numbers."""
  values = [record[metric] for record in ranking(records, space, metric, lower)]

  def top(k: int) -> float:
    return float(np.mean(values[:k])) if len(values) >= k else float('nan')

  different = {canonical(arch_of(space, record)) for record in records}
  failed = sum(record['failed'] is not None for record in records)
  return Standing(top(1), top(5), top(15), len(records), len(different), failed)


def progress(records: Sequence[Record], space: Space, metric: str, lower: bool = True, k: int = 1) -> list[float]:
  """After each child, the mean over the best k different architectures so far; NaN while there are fewer."""
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
  """A row for each kind of child that did not fail: its name, how many, the best, the mean; in the order of names.

  Args:
    records: of children.
    space: of these.
    metric: what they scored.
    lower: whether less of it is better.
    name: of the kind that an architecture is of.
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
  known: Mapping[str, Sequence[float]],
  space: Space,
  metric: str,
  lower: bool = True,
) -> list[tuple[object, ...]]:
  """The rows of the table a result must stand in: a name, then as `HEADER`.

  Args:
    found: the journal of the search and of its control.
    known: the scores of known architectures, trained just as the children were.
    space: of the children.
    metric: what the scores are.
    lower: whether less of it is better.
  """
  rows: list[tuple[object, ...]] = []
  for name, records in found.items():
    at = standing(records, space, metric, lower)
    of = f'{counted(at.children, "child", "children")}, {at.unique} different, {at.failed} failed'
    rows.append((name, at.best, at.top5, at.top15, of))
  for name, scores in known.items():
    best = min(scores) if lower else max(scores)
    rows.append((name, best, '', '', f'{counted(len(scores), "training")}, mean {np.mean(scores):.3f}'))
  return rows


def derived(name: str, lines: Sequence[Mapping[str, Any]], metric: str) -> list[tuple[object, ...]]:
  """The row, as those of `standings`, of architectures derived after a search, best first; none if there are none."""
  if not lines:
    return []
  scores = [line[metric] for line in lines]
  return [(f'{name}, derived', scores[0], '', '', f'{counted(len(scores), "sample")}, mean {np.mean(scores):.3f}')]


def best_json(space: Space, record: Record) -> str:
  """The architecture of a child as `best.json` holds it; `space.from_json` reads it back."""
  arch = json.loads(space.to_json(arch_of(space, record)))
  found = arch | {'space': dict(space.spec), **{name: record[name] for name in ('tokens', 'reward', 'id')}}
  return json.dumps(found) + '\n'


def counted(number: int, one: str, many: str = '') -> str:
  """Returns a number with its noun, such as '1 training' or '1,296 trainings'; from a million on as '6.34e+16'."""
  digits = f'{number:,}' if number < 10**6 else f'{number:.2e}'
  return f'{digits} {one if number == 1 else many or one + "s"}'


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
  """Text columns: the first to the left, the others to the right; floats with three digits, NaN as a dash."""
  lines = [list(header), *([word(cell) for cell in row] for row in rows)]
  widths = [max(len(line[i]) for line in lines) for i in range(len(header))]

  def join(line: list[str]) -> str:
    return '  '.join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True)))

  return '\n'.join(join(line).rstrip() for line in lines)


def spread(values: Sequence[float]) -> str:
  """Returns mean and standard deviation of some scores as '3.294 ± 0.012'; without the latter if there is only one."""
  if not values:
    return '-'
  return word(float(np.mean(values))) + (f' ± {word(float(np.std(values, ddof=1)))}' if len(values) > 1 else '')


def word(cell: object) -> str:
  """What a table says of a cell: floats with three digits, NaN as a dash."""
  if isinstance(cell, float):
    return f'{cell:.3f}' if np.isfinite(cell) else '-'
  return str(cell)
