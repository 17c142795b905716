"""The rungs of successive halving: the children of each rung, and the best children of all rungs."""

from collections.abc import Callable, Mapping, Sequence
import math

import numpy as np

from nas_jax.report import rankings, reliability
from nas_jax.report.model import Metric
from nas_jax.search.journal import Record
from nas_jax.space import Space
from nas_jax.training import halving

Trained = Mapping[tuple[int, int], Record]  # children that were trained for longer, by rung and id
HEADER = ('training', 'children', 'failed', 'best', 'rank correlation')  # of `rows`, without the name


def promoted(rungs: Sequence[Sequence[Record]], factor: int, space: Space, metric: Metric) -> list[Record]:
  """Returns the children of the last rung that go on to the next one, best first, with their scores in that rung.

  They are different architectures (by canonical form), and none has failed.

  Args:
    rungs: the children of each rung so far, the search first.
    factor: one child in `factor` goes on from each rung to the next one.
    space: the space of the children.
    metric: the metric by which they are ranked.
  """
  number = halving.size(len(rungs[0]), len(rungs) + 1, factor)
  return rankings.ranking(rungs[-1], space, metric.key, metric.lower)[:number]


def of(
  records: Sequence[Record], trained: Trained, factor: int, space: Space, metric: Metric
) -> list[Sequence[Record]]:
  """Returns the children of each rung, the search first, as far as they have been trained.

  A search that was extended may promote other children than before. Children that it no longer promotes are left out,
  so that the rungs are those of a search that had this length from the start.

  Args:
    records: the records of the search.
    trained: the children that were trained for longer.
    factor: as in `promoted`.
    space: the space of the children.
    metric: the metric by which they are ranked.
  """
  rungs: list[Sequence[Record]] = [records]
  for rung in range(2, max((rung for rung, _ in trained), default=1) + 1):
    going = [record['id'] for record in promoted(rungs, factor, space, metric)]
    rungs.append([trained[rung, number] for number in going if (rung, number) in trained])
  return rungs


def best_first(rungs: Sequence[Sequence[Record]], space: Space, metric: Metric) -> list[tuple[int, Record]]:
  """Returns the different children of all rungs, best first, each with the longest rung that it was trained in.

  Children of a longer rung come before those of a shorter one: scores of different rungs are not compared. A
  child that failed in its longest rung is left out.
  """
  found, seen = list[tuple[int, Record]](), set[int]()
  for rung in range(len(rungs), 0, -1):
    ranked = rankings.ranking(rungs[rung - 1], space, metric.key, metric.lower)
    found += [(rung, record) for record in ranked if record['id'] not in seen]
    seen |= {record['id'] for record in rungs[rung - 1]}
  return found


def rows(
  found: Mapping[str, Sequence[Sequence[Record]]], length: Callable[[int], str], space: Space, metric: Metric
) -> list[tuple[object, ...]]:
  """Returns the rows of the table of rungs: a name, and what `HEADER` says. There are none without a second rung.

  Args:
    found: the rungs of each search, by name.
    length: (rung) -> how long its children are trained, in words.
    space: the space of the children.
    metric: the metric by which they are ranked.
  """
  lines: list[tuple[object, ...]] = []
  for name, rungs in found.items():
    for rung, records in enumerate(rungs, 1):
      at = rankings.standing(records, space, metric.key, metric.lower)
      agree = _correlation(rungs[rung - 2], records, metric) if rung > 1 else math.nan
      lines.append((f'{name}, rung {rung}', length(rung), at.children, at.failed, at.best, agree))
  return lines if any(len(rungs) > 1 for rungs in found.values()) else []


def _correlation(before: Sequence[Record], records: Sequence[Record], metric: Metric) -> float:
  """Returns Spearman's correlation of the scores of a rung with those of the same children in the rung before.

  NaN if fewer than three of them trained in both.
  """
  earlier = {record['id']: record for record in before}
  pairs = [(_score(earlier[record['id']], metric), _score(record, metric)) for record in records]
  a, b = reliability.trained(*np.array(pairs, float).reshape(-1, 2).T)
  return reliability.spearman(a, b) if len(a) > 2 else math.nan


def _score(record: Record, metric: Metric) -> float:
  value = record.get(metric.key)
  return math.nan if record['failed'] is not None or value is None else value
