"""Compares two searches side by side on one HTML page."""

from collections.abc import Callable, Sequence
import json

from nas_jax.report import charts
from nas_jax.report.headline import called, capital, children, in_the_search, who
from nas_jax.report.model import Report, Run
from nas_jax.report.parts import escape, figure, frame, section, table
from nas_jax.report.rankings import spread


def render(first: Report, second: Report) -> str:
  """Returns a page that compares two searches. Its charts leave out the random-search baselines.

  Raises:
    ValueError: the searches have different metrics, or their folders have the same name.
  """
  both = (first, second)
  if first.metric != second.metric:
    raise ValueError(
      f'{first.name} is ranked by {first.metric.name}, {second.name} by {second.metric.name}: only searches of one '
      'system can be compared.'
    )
  if first.name == second.name:
    raise ValueError(f'both searches are called {first.name!r}: compare two folders with different names.')
  sentences = ''.join(f'<p class="lede">{escape(f"{report.name}: {in_the_search(report)}")}</p>' for report in both)
  sections = (
    section('How the searches went', _course(both)),
    section('Standings', _standings(both)),
    section('Trained to convergence', _converged(both)),
    section('Settings that differ', _differences(both)),
    section('Where these numbers come from', _origin(both)),
  )
  return frame('Two searches', f'<h1>{escape(_headline(both))}</h1>{sentences}', sections)


def _headline(both: Sequence[Report]) -> str:
  first, second = both
  names = f'{first.name} and {second.name}'
  runs = [report.runs[0] for report in both if report.runs and report.runs[0].records]
  if len(runs) < 2:
    return f'{names}: one of them has no child yet.'
  if all(run.name in report.derived for report, run in zip(both, runs, strict=True)):
    return _of_derived(both, runs)
  same = min(len(run.records) for run in runs)
  scores = [run.best[same - 1] for run in runs]
  if not all(score == score for score in scores):
    return f'{names}: one of them has found nothing in {children(same)}.'
  if scores[0] == scores[1]:
    return f'After {children(same)} both have found a {first.metric.name} of {scores[0]:.3f}.'
  ahead = int((scores[1] < scores[0]) == first.metric.lower)
  return (
    f'After {children(same)} {both[ahead].name} has found a {first.metric.name} of {scores[ahead]:.3f}, '
    f'{both[1 - ahead].name} one of {scores[1 - ahead]:.3f}.'
  )


def _of_derived(both: Sequence[Report], runs: Sequence[Run]) -> str:
  """Returns a sentence on the best architectures derived after two searches with shared weights.

  The children of such searches are scored on one minibatch each, so their scores are not reported here.
  """
  found = [(report.derived[run.name], report.name, children(len(run.records))) for report, run in zip(both, runs)]
  best_first = sorted(found, key=lambda one: one[0] if both[0].metric.lower else -one[0])
  (best, ahead, after), (other, behind, its) = best_first
  return (
    f'After {after} {ahead} has derived a {both[0].noun} of {both[0].metric.name} {best:.3f}, {behind} one of '
    f'{other:.3f} after {its}.'
  )


def _course(both: Sequence[Report]) -> str:
  metric = both[0].metric

  def lines(values: Callable[[Run], Sequence[float]]) -> list[charts.Line]:
    return [
      charts.Line(report.name, [record['id'] + 1 for record in run.records], values(run))
      for report in both
      for run in report.runs[:1]
      if run.records
    ]

  best, top = lines(lambda run: run.best), lines(lambda run: run.top)
  if not best:
    return ''
  scores = lines(lambda run: [_score(record, metric.key) for record in run.records])
  less = 'lower' if metric.lower else 'higher'
  pictures = [
    figure(
      charts.progress('best', f'Best {metric.name} so far', metric.name, best, top),
      'Best so far',
      f'{capital(metric.name)}, {less} is better, and as a thinner line the mean of the best five different ones.',
    ),
    figure(
      charts.quarters('quarters', f'{metric.name} by quarter of the run', metric.name, scores),
      'By quarter of the run',
      'Median, middle half (thick) and middle four fifths (thin) of the children, without failed ones.',
    ),
  ]
  return f'<div class="charts">{"".join(pictures)}</div>'


def _standings(both: Sequence[Report]) -> str:
  rows = []
  for report in both:
    names = {run.name: who(run) for run in report.runs}
    rows += [(report.name, names.get(str(row[0]), row[0]), *row[1:]) for row in report.standings[1]]
  header = ('', both[0].metric.name, *both[0].standings[0][1:])
  return table(header, rows) if rows else ''


def _converged(both: Sequence[Report]) -> str:
  rows = [
    (report.name, called(row['name']), row['size'], f'{row["parameters"]:,}', spread(row['valid']), spread(row['test']))
    for report in both
    for row in (report.converged or {'rows': []})['rows']
  ]
  return table(('', '', 'size', 'parameters', 'validation', 'test'), rows) if rows else ''


def _differences(both: Sequence[Report]) -> str:
  first, second = (report.config for report in both)
  absent = 'no such setting'
  rows = [
    (name, *(json.dumps(config[name]) if name in config else absent for config in (first, second)))
    for name in dict.fromkeys((*first, *second))
    if first.get(name, absent) != second.get(name, absent)
  ]
  if not rows:
    return '<p>All settings are the same.</p>'
  return table(('field', *(report.name for report in both)), rows)


def _origin(both: Sequence[Report]) -> str:
  names = dict.fromkeys(name for report in both for name, _ in (*report.glance, *report.facts))
  columns = [dict((*report.glance, *report.facts)) for report in both]
  data = {column.get('sha256 of the data') for column in columns}
  warning = (
    '<p>The two searches had different data, so that their scores cannot be compared.</p>' if len(data) > 1 else ''
  )
  rows = [(name, *(column.get(name, '') for column in columns)) for name in names]
  return warning + table(('', *(report.name for report in both)), rows)


def _score(record: dict, key: str) -> float:
  value = record.get(key)
  return float('nan') if value is None or record['failed'] else float(value)
