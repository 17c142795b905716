"""The report of a search as one HTML page that needs no other file."""

from collections.abc import Callable, Iterable, Mapping, Sequence
import json
import math
from typing import Any

import numpy as np

from nas_jax.report import charts, children, importance, pareto, probabilities
from nas_jax.report.headline import called, capital, headline, lede, who
from nas_jax.report.model import Report, Run, Winner
from nas_jax.report.parts import definitions, escape, figure, frame, section, table
from nas_jax.report.rankings import spread, word
from nas_jax.search.journal import Record

REFRESH = 60  # seconds between two versions of the page while a search runs


def render(report: Report, refresh: int = 0) -> str:
  """Returns the page. The same report gives the same bytes.

  Args:
    report: the data of the page.
    refresh: seconds after which a browser reads the page again; 0 for never.
  """
  sections = (
    _glance(report),
    section('Trained to convergence', _converged(report)),
    section('How the search went', _course(report)),
    section('Score and cost', _costs(report)),
    section('What the controller came to prefer', _preferences(report)),
    section('Which decisions mattered', _importance(report)),
    section('Is the reward a signal?', _reliability(report)),
    section('Short training against full training', _ranking(report)),
    section(f'The best {report.noun}s', _winners(report.winners)),
    section('Standings', _standings(report)),
    section('Trained for longer', _rungs(report)),
    section(f'What the {report.noun}s have in common', ''.join(_view(report, *view) for view in report.views)),
    section('What was tried', _remembered(report.remembered)),
    section('All children', _children(report)),
    section('After retraining', ''.join(_retrained(result) for result in report.retrained)),
    section('Where these numbers come from', _origin(report)),
  )
  words = ''.join(f'<p class="lede">{escape(each)}</p>' for each in lede(report, refresh > 0) if each)
  return frame(report.title, f'<h1>{escape(headline(report))}</h1>{words}', sections, refresh)


def _glance(report: Report) -> str:
  """Returns the first section: key facts, next steps, links to files, and a picture of the best architecture."""
  facts = definitions(report.glance) if report.glance else ''
  use = ''.join(f'<h3>{escape(each.step)}</h3><pre>{escape(each.code)}</pre>' for each in report.use)
  links = ', '.join(f'<a href="{escape(name)}">{escape(name)}</a>' for name in report.links)
  files = f'<p class="note">Files beside this page: {links}.</p>' if links else ''
  words = f'<div class="two"><div>{facts}{files}</div><div>{use}</div></div>' if facts or use or files else ''
  picture = ''
  if report.winners and report.winners[0].drawing:
    best = report.winners[0]
    picture = f'<h3>{escape(best.title)}</h3><div class="drawing">{best.drawing}</div>'
  return f'<section class="glance">{words}{picture}</section>\n' if words or picture else ''


def best_so_far(report: Report) -> str:
  """Returns a chart of the best score so far and of the mean of the best five, an <svg> element."""
  best, top = _lines(report, lambda run: run.best), _lines(report, lambda run: run.top)
  return charts.progress('best', f'Best {report.metric.name} so far', report.metric.name, best, top)


def _lines(report: Report, values: Callable[[Run], Sequence[float]]) -> list[charts.Line]:
  """Returns a line of a chart for each search that has children; x is the number of children."""
  runs = [run for run in report.runs if run.records]
  return [charts.Line(who(run), [record['id'] + 1 for record in run.records], values(run)) for run in runs]


def _course(report: Report) -> str:
  runs = [run for run in report.runs if run.records]
  if not runs:
    return ''
  metric, less = report.metric, 'lower' if report.metric.lower else 'higher'
  scores = _lines(report, lambda run: [_score(record, metric.key) for record in run.records])
  earned = _lines(report, lambda run: [_score(record, 'reward') for record in run.records])
  with_baseline = [line for line in runs[0].updates if 'baseline' in line]  # some algorithms have none
  baseline = charts.Line('baseline', *_columns(with_baseline, 'children', 'baseline'))
  level = (
    'so do random children, because their shared weights are trained' if report.shared else 'random search does not'
  )
  clock = [
    charts.Line(who(run), np.cumsum([record['seconds'] for record in run.records]) / 60, run.best) for run in runs
  ]
  figures = [
    figure(
      charts.rewards('reward', 'Reward of each child', earned, baseline),
      'Reward',
      'Each point is a child, each line a moving mean. The dotted line is the baseline that rewards are compared with. '
      f'The rewards of a search that learns rise; {level}. Children that failed are not shown.',
    ),
    figure(
      best_so_far(report),
      'Best so far',
      f'{capital(metric.name)}, {less} is better: the best {report.noun} so far and, as a thinner line, the mean of '
      'the best five different ones. A lucky child changes the first; learning changes both.',
    ),
    figure(
      charts.progress('clock', f'Best {metric.name} by time', metric.name, clock, [], 'minutes of training'),
      'Best so far, by time',
      'The same over the time that the trainings of children took, one after another. Searches that choose larger '
      f'{report.noun}s take longer for the same number of children.',
    ),
    figure(
      charts.quarters('quarters', f'{metric.name} by quarter of the run', metric.name, scores),
      'By quarter of the run',
      'Median, middle half (thick) and middle four fifths (thin) of the children in each quarter, without failed ones. '
      'In a search that learns the median improves and the spread shrinks.',
    ),
  ]
  noted = [charts.Line(who(run), *_columns(run.updates, 'children', 'entropy')) for run in runs if run.updates]
  if noted:
    figures.append(
      figure(
        charts.entropy('entropy', 'Entropy of the controller', noted),
        'Entropy',
        'How undecided the controller is: the logarithm of the number of architectures that it still chooses among. '
        'Near 0 it writes the same one again and again.',
      )
    )
  return f'<div class="charts">{"".join(figures)}</div>'


def _costs(report: Report) -> str:
  found = pareto.figures(report.runs, report.metric)
  return f'<div class="charts">{"".join(found)}</div>' if found else ''


def _view(report: Report, name: str, rows: Sequence[Sequence[object]]) -> str:
  return f'<div class="view">{table((name, "children", f"best {report.metric.name}", "mean"), rows)}</div>'


def _remembered(svg: str) -> str:
  words = (
    'Every path from the root is an architecture that was trained. Every box is a layer with the mean reward of the '
    'network that ends there; darker is better. The boxes that were reached most often are shown.'
  )
  return f'<p>{escape(words)}</p><div class="drawing">{svg}</div>' if svg else ''


def _preferences(report: Report) -> str:
  learned = report.runs and report.runs[0].name != 'random'
  return probabilities.render(report.slots, report.runs[0].updates) if learned else ''


def _reliability(report: Report) -> str:
  if not report.reliability:
    return '<p>Not measured in this search.</p>'
  words = (
    f'The same random {report.noun}s were scored in more than one way. If the rankings do not agree, there is nothing '
    'to learn from. 1 means the same order, 0 means unrelated orders. Children that failed in one of the ways are left '
    'out. The regret says what a choice by the first way costs: how much less reward, in the second way, the child '
    'that it ranks first has than the best child.'
  )
  rows = []
  for each in report.reliability:
    wanted, verdict = ('', '') if math.isnan(each.wanted) else (f'at least {each.wanted:g}', 'enough')
    if not math.isfinite(each.value):
      verdict = 'could not be measured'
    elif each.value < each.wanted:
      verdict = 'too little: read the rest with care'
    failed = '' if each.failed is None else each.failed
    rows.append((each.between, each.value, wanted, verdict, each.quarter, _percent(each.regret), failed))
  header = ('rank correlation', 'measured', 'wanted', '', 'best quarter', 'regret, %', 'failed')
  return f'<p>{escape(words)}</p>{table(header, rows)}'


def _ranking(report: Report) -> str:
  found = report.ranking
  if not found:
    return ''
  noun = report.noun
  words = (
    f'{found["cells"]} {noun}s were trained to the end, and also as the children of a search are: shorter, and in '
    f'several ways. Each row compares one of these ways with the full training: the rank correlation over all {noun}s '
    f'(Spearman), the same within the best quarter, and the regret. The regret compares the {noun} that the short '
    f'training ranks first with the best {noun}, by perplexity after full training. In the column after it, the first '
    'five are trained to the end and the best of them is taken.'
  )
  header = ('recipe, settings', 'steps', 'correlation', 'best quarter', 'regret, %', 'of five, %', 'failed')
  own = [_ranking_row(row) for row in found['rows'] if row['recipe'] == 'search']
  others = [_ranking_row(row) for row in found['rows'] if row['recipe'] != 'search']
  tables = table(header, own) if own else ''
  if others:
    summary = '<summary>Children by the recipe of the full training</summary>'
    tables += f'<details>{summary}{table(header, others)}</details>'
  best = ', '.join(f'{one["cell"]} ({word(one["perplexity"])})' for one in found['best'][:3])
  note = f'The best by validation perplexity after full training: {best}. {capital(found["setting"])}.'
  return f'<p>{escape(words)}</p>{tables}<p class="note">{escape(note)}</p>'


def _ranking_row(row: Mapping[str, Any]) -> tuple[object, ...]:
  """Returns a row for a short training. A regret that is None is of a choice that failed in the full training."""
  correlations = (math.nan if row[name] is None else row[name] for name in ('all', 'quarter'))
  regrets = (_percent(math.inf if row[name] is None else row[name]) for name in ('regret', 'regret5'))
  return f'{row["recipe"]}, {row["settings"]}', row['steps'], *correlations, *regrets, row['failed']


def _percent(share: float) -> str:
  """Returns a share in per cent: '-' if it was not measured, 'failed' if it is infinite."""
  return 'failed' if math.isinf(share) else '-' if math.isnan(share) else f'{100 * share:.1f}'


def _winners(winners: Sequence[Winner]) -> str:
  def card(place: int, winner: Winner) -> str:
    # The first is drawn at the top of the page.
    drawing = f'<div class="drawing">{winner.drawing}</div>' if winner.drawing and place else ''
    return f'<div class="card"><h3>{escape(winner.title)}</h3>{drawing}<pre>{escape(winner.text)}</pre></div>'

  return f'<div class="winners">{"".join(card(*each) for each in enumerate(winners))}</div>' if winners else ''


def _standings(report: Report) -> str:
  header, rows = report.standings
  if not rows:
    return ''
  named = [(_standing_name(str(row[0]), report.runs), *row[1:]) for row in rows]
  note = f'<p class="note">{escape(report.explained)}</p>' if report.explained else ''
  return f'{table(header, named)}{note}'


def _rungs(report: Report) -> str:
  header, rows = report.rungs
  if not rows:
    return ''
  words = (
    f'The search is the first rung. The best of its {report.noun}s were trained anew for longer, the best of these for '
    'longer still. Scores are compared within a rung alone, and the best is that of the longest rung. The rank '
    'correlation (Spearman) is with the scores of the same children in the rung before.'
  )
  named = [(_standing_name(str(row[0]), report.runs), *row[1:]) for row in rows]
  return f'<p>{escape(words)}</p>{table(header, named)}'


def _standing_name(name: str, runs: Sequence[Run]) -> str:
  """Returns the name of a row, with the name of an algorithm replaced as in the rest of the page."""
  for run in runs:
    if name == run.name or name.startswith(f'{run.name}, '):
      return who(run) + name[len(run.name) :]
  return name


def _children(report: Report) -> str:
  named = [(who(run), run.records) for run in report.runs]
  return children.render(named, report.metric.key, report.metric.name, report.metric.lower)


def _importance(report: Report) -> str:
  """Returns which decisions mattered, measured on random children if there are enough, else on those of the search."""
  for run in reversed(report.runs):
    found = importance.measure(report.slots, run.records, report.metric.key, report.metric.lower)
    if found:
      return importance.render(found, who(run))
  return ''


def _converged(report: Report) -> str:
  if not report.converged:
    return ''
  note = (
    'Each was the best by validation of several candidates, trained in the same way. The scores in the rest of this '
    'page are those of the short trainings in the search, which favour what learns fast: they differ from these, and '
    'so may their order.'
  )
  return f'{_retrained(report.converged)}<p class="note">{escape(note)}</p>'


def _retrained(result: Mapping[str, Any]) -> str:
  header = ('', 'size', 'parameters', 'multiply-adds', 'epochs', 'trainings', 'validation', 'test')
  rows = []
  for row in result['rows']:
    adds = f'{row["multiply_adds"]:,}' if 'multiply_adds' in row else '-'  # earlier versions did not count them
    sizes = (f'{row["parameters"]:,}', adds, row['epochs'], row['repeats'])
    rows.append((called(row['name']), row['size'], *sizes, spread(row['valid']), spread(row['test'])))
  note = f'Mean ± standard deviation; lower is better. {capital(str(result["setting"]))}.'
  return f'{table(header, rows)}<p class="note">{escape(note)}</p>'


def _origin(report: Report) -> str:
  settings = table(('field', 'value'), [(name, json.dumps(value)) for name, value in report.config.items()])
  folded = f'<details><summary>All settings</summary>{settings}</details>' if report.config else ''
  return f'<p>{escape(report.caveat)}</p>{definitions(report.facts)}{folded}'


def _columns(lines: Iterable[Record], *names: str) -> list[list[float]]:
  lines = list(lines)
  return [[_score(line, name) for line in lines] for name in names]


def _score(record: Record, key: str) -> float:
  value = record.get(key)
  return float('nan') if value is None or record.get('failed') else float(value)
