"""Charts of scores against costs, with marks on the Pareto front: the children that no other child beats."""

from collections.abc import Sequence

from nas_jax.report import charts
from nas_jax.report.headline import capital, who
from nas_jax.report.model import Metric, Run
from nas_jax.report.parts import figure
from nas_jax.search.journal import Record
from nas_jax.training.costs import Cost


def front(records: Sequence[Record], cost: str, score: str, lower: bool) -> list[Record]:
  """Returns the children that no other child beats (the Pareto front), the cheapest first.

  A child beats another if it costs no more and scores no worse, and is better in at least one of the two. Of several
  children with equal cost and score the first counts.

  Args:
    records: the records of children that have both numbers.
    cost: the name of the cost.
    score: the name of the score.
    lower: whether a lower score is better.
  """
  found = list[Record]()
  for record in sorted(records, key=lambda one: (one[cost], one[score] if lower else -one[score])):
    if not found or (record[score] < found[-1][score] if lower else record[score] > found[-1][score]):
      found.append(record)
  return found


def figures(runs: Sequence[Run], metric: Metric) -> list[str]:
  """Returns a chart with its caption for each kind of cost in which children differ.

  There is no chart if all children cost the same, as the cells of a space do, or if the journal has no costs.
  """
  found = list[str]()
  for cost in Cost._fields:
    kept = [(who(run), sound) for run in runs if (sound := _sound(run.records, cost, metric.key))]
    if len({record[cost] for _, records in kept for record in records}) > 1:
      found.append(_figure(kept, cost, metric))
  return found


def _sound(records: Sequence[Record], cost: str, score: str) -> list[Record]:
  """Returns the children that did not fail and have both numbers."""
  return [
    record
    for record in records
    if not record['failed'] and record.get(cost) is not None and record.get(score) is not None
  ]


def _figure(kept: Sequence[tuple[str, list[Record]]], cost: str, metric: Metric) -> str:
  name = cost.replace('_', '-')
  children, fronts, points = list[charts.Line](), list[charts.Line](), list[charts.Point]()
  for run, records in kept:
    best = front(records, cost, metric.key, metric.lower)
    unbeaten = {record['id'] for record in best}
    for line, part in ((children, records), (fronts, best)):
      line.append(charts.Line(run, [record[cost] for record in part], [record[metric.key] for record in part]))
    for record in records:
      mark = ', on the front' if record['id'] in unbeaten else ''
      words = f'{run}, child {record["id"]}: {record[metric.key]:.4g} with {record[cost]:,} {name}{mark}'
      points.append((record[cost], record[metric.key], words))
  label = f'{capital(metric.name)} against {name}'
  caption = (
    f'Each point is a child that trained. The line is the Pareto front of a search: its children of which no other is '
    f'better with as few {name} or fewer.'
  )
  svg = charts.against_cost(f'pareto-{name}', label, name, metric.name, children, fronts, points)
  return figure(svg, label, caption)
