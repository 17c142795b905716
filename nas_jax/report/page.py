"""The report of a search as one HTML page that needs no other file.

It is the same for all systems: `Report` says what a child is called, what the metric is and how architectures look.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
import html
import json
import math
import re
from typing import Any, NamedTuple

import numpy as np

from nas_jax.report import charts, probabilities
from nas_jax.report.rankings import spread, word
from nas_jax.report.style import STYLE
from nas_jax.search.journal import Record
from nas_jax.space import Slot

_NUMBER = re.compile(r'-|[-+±\d.,e ]*')


class Metric(NamedTuple):
  """The score that children are ranked by."""

  key: str  # its name in a record
  name: str  # its name in text
  lower: bool = True  # whether lower is better


class Run(NamedTuple):
  """One search. All sequences are in the order of the children."""

  name: str  # of its algorithm
  records: Sequence[Record]
  best: Sequence[float]  # the best score so far; NaN before the first child that did not fail
  top: Sequence[float]  # the mean of the best five different children so far
  updates: Sequence[Record] = ()  # the lines of updates.jsonl, in order


class Winner(NamedTuple):
  """One of the best architectures."""

  title: str
  text: str  # equations or a description
  drawing: str = ''  # an SVG element, which is not escaped


class Correlation(NamedTuple):
  """One rank correlation of rewards."""

  between: str
  value: float  # NaN if it could not be measured
  wanted: float = math.nan  # the least that is good enough; NaN if there is no such value


class Report(NamedTuple):
  """The data of a page."""

  title: str
  noun: str  # what a child is called, in the singular: 'cell'
  metric: Metric
  budget: int  # children planned
  runs: Sequence[Run]  # the search and, if there is one, the random-search baseline
  slots: Sequence[Slot]  # of the space; a row of `probabilities` belongs to each
  reliability: Sequence[Correlation]
  winners: Sequence[Winner]
  standings: tuple[Sequence[str], Sequence[Sequence[object]]]  # header, rows
  retrained: Sequence[Mapping[str, Any]]  # each {'rows': [...], 'setting': text}
  facts: Sequence[tuple[str, str]]  # where the numbers come from: name and value
  config: Mapping[str, Any]
  caveat: str
  views: Sequence[tuple[str, Sequence[Sequence[object]]]] = ()  # tables of kinds of children: name and rows
  remembered: str = ''  # the replay tree as an <svg> element
  shared: bool = False  # whether children share weights
  converged: Mapping[str, Any] | None = None  # as one of `retrained`, with its 'metric': the best, trained to the end


def render(report: Report) -> str:
  """Returns the page. The same report gives the same bytes."""
  sections = (
    _section('Trained to convergence', _converged(report)),
    _section('How the search went', _course(report)),
    _section('What the controller came to prefer', _preferences(report)),
    _section('Is the reward a signal?', _reliability(report)),
    _section(f'The best {report.noun}s', _winners(report.winners)),
    _section('Standings', _table(*report.standings) if report.standings[1] else ''),
    _section(f'What the {report.noun}s have in common', ''.join(_view(report, *view) for view in report.views)),
    _section('What was tried', _remembered(report.remembered)),
    _section('After retraining', ''.join(_retrained(result) for result in report.retrained)),
    _section('Where these numbers come from', _origin(report)),
  )
  meta = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
  meta += '<meta name="color-scheme" content="light dark">'
  head = f'{meta}<title>{_e(report.title)}</title><style>{STYLE}</style>'
  lede = ''.join(f'<p class="lede">{_e(words)}</p>' for words in _lede(report) if words)
  top = f'<header><p class="over">{_e(report.title)}</p><h1>{_e(headline(report))}</h1>{lede}</header>'
  body = f'{top}<main>{"".join(sections)}</main>'
  return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>{body}</body></html>\n'


def headline(report: Report) -> str:
  """Returns what was found, in one sentence: after training to convergence, or by the search alone."""
  if not (report.converged and report.converged['rows']):
    return in_the_search(report)
  scores = [f'{spread(row["test"])} for {row["name"]}' for row in report.converged['rows']]
  return f'Trained to convergence: a test {report.converged["metric"]} of {", ".join(scores)}.'


def in_the_search(report: Report) -> str:
  """Returns what the search found by its own scores, in one sentence."""
  if not report.runs or not report.runs[0].records:
    return 'No child has been trained yet.'
  own, *others = report.runs
  children = len(own.records)
  if not math.isfinite(own.best[-1]):
    return f'In {_children(children)} ({_failed(own)} failed) {_who(own)} found no {report.noun} that could be scored.'
  words = (
    f'In {_children(children)} ({_failed(own)} failed) {_who(own)} found a {report.noun} of {report.metric.name} '
    f'{word(own.best[-1])}'
  )
  for other in others:
    if other.records:
      found = f'one of {word(other.best[-1])}' if math.isfinite(other.best[-1]) else 'none'
      words += f'; {_who(other)}, in {len(other.records)} ({_failed(other)} failed), {found}'
  return words + '.'


def _lede(report: Report) -> list[str]:
  """Returns how far the searches are, and when the search passed the random-search baseline."""
  words = [in_the_search(report)] if report.converged and report.converged['rows'] else []
  for run in report.runs:
    if len(run.records) < report.budget:
      of = f'{len(run.records)} of {_children(report.budget)}'
      words.append(f'{_capital(_who(run))} is at {of}, so these results are preliminary.')
  if len(report.runs) > 1 and all(run.records for run in report.runs):
    own, other = (np.asarray(run.best, float) for run in report.runs[:2])
    ahead = own < other[-1] if report.metric.lower else own > other[-1]
    names = f'the best of {_who(report.runs[1])} ({len(report.runs[1].records)} children)'
    if ahead.any():
      words.append(f'{_capital(_who(report.runs[0]))} passed {names} after {_children(int(ahead.argmax()) + 1)}.')
    elif np.isfinite(other[-1]):
      words.append(f'{_capital(_who(report.runs[0]))} has not passed {names}.')
  return words


def best_so_far(report: Report) -> str:
  """Returns a chart of the best score so far and of the mean of the best five, an <svg> element."""
  best, top = _lines(report, lambda run: run.best), _lines(report, lambda run: run.top)
  return charts.progress('best', f'Best {report.metric.name} so far', report.metric.name, best, top)


def _lines(report: Report, values: Callable[[Run], Sequence[float]]) -> list[charts.Line]:
  """Returns a line of a chart for each search that has children, over the number of children."""
  runs = [run for run in report.runs if run.records]
  return [charts.Line(_who(run), [record['id'] + 1 for record in run.records], values(run)) for run in runs]


def _course(report: Report) -> str:
  runs = [run for run in report.runs if run.records]
  if not runs:
    return ''
  metric, less = report.metric, 'lower' if report.metric.lower else 'higher'
  scores = _lines(report, lambda run: [_score(record, metric.key) for record in run.records])
  earned = _lines(report, lambda run: [record['reward'] for record in run.records])
  with_baseline = [line for line in runs[0].updates if 'baseline' in line]  # some algorithms have none
  baseline = charts.Line('baseline', *_columns(with_baseline, 'children', 'baseline'))
  level = (
    'so do random children, because their shared weights are trained' if report.shared else 'random search does not'
  )
  figures = [
    _figure(
      charts.rewards('reward', 'Reward of each child', earned, baseline),
      'Reward',
      'Each point is a child, each line a moving mean. The dotted line is the baseline that rewards are compared with. '
      f'The rewards of a search that learns rise; {level}. Children that failed have reward 0.',
    ),
    _figure(
      best_so_far(report),
      'Best so far',
      f'{_capital(metric.name)}, {less} is better: the best {report.noun} so far and, as a thinner line, the mean of '
      'the best five different ones. A lucky child changes the first; learning changes both.',
    ),
    _figure(
      charts.quarters('quarters', f'{metric.name} by quarter of the run', metric.name, scores),
      'By quarter of the run',
      'Median, middle half (thick) and middle four fifths (thin) of the children in each quarter, without failed ones. '
      'In a search that learns the median improves and the spread shrinks.',
    ),
  ]
  noted = [charts.Line(_who(run), *_columns(run.updates, 'children', 'entropy')) for run in runs if run.updates]
  if noted:
    figures.append(
      _figure(
        charts.entropy('entropy', 'Entropy of the controller', noted),
        'Entropy',
        'How undecided the controller is: the logarithm of the number of architectures that it still chooses among. '
        'Near 0 it writes the same one again and again.',
      )
    )
  return f'<div class="charts">{"".join(figures)}</div>'


def _view(report: Report, name: str, rows: Sequence[Sequence[object]]) -> str:
  return f'<div class="view">{_table((name, "children", f"best {report.metric.name}", "mean"), rows)}</div>'


def _remembered(svg: str) -> str:
  words = (
    'Every path from the root is an architecture that was trained. Every box is a layer with the mean reward of the '
    'network that ends there; darker is better. The boxes that were reached most often are shown.'
  )
  return f'<p>{_e(words)}</p><div class="drawing">{svg}</div>' if svg else ''


def _preferences(report: Report) -> str:
  learned = report.runs and report.runs[0].name != 'random'
  return probabilities.render(report.slots, report.runs[0].updates) if learned else ''


def _reliability(report: Report) -> str:
  if not report.reliability:
    return '<p>Not measured in this search.</p>'
  words = (
    f'The same random {report.noun}s were scored in more than one way. If the rankings do not agree, there is nothing '
    'to learn from. 1 means the same order, 0 means unrelated orders.'
  )
  rows = []
  for each in report.reliability:
    wanted, verdict = f'at least {each.wanted:g}', 'enough'
    if not math.isfinite(each.value):
      verdict = 'could not be measured'
    elif math.isnan(each.wanted):
      wanted, verdict = '', ''
    elif each.value < each.wanted:
      verdict = 'too little: read the rest with care'
    rows.append((each.between, each.value, wanted, verdict))
  return f'<p>{_e(words)}</p>{_table(("rank correlation", "measured", "wanted", ""), rows)}'


def _winners(winners: Sequence[Winner]) -> str:
  def card(winner: Winner) -> str:
    drawing = f'<div class="drawing">{winner.drawing}</div>' if winner.drawing else ''
    return f'<div class="card"><h3>{_e(winner.title)}</h3>{drawing}<pre>{_e(winner.text)}</pre></div>'

  return f'<div class="winners">{"".join(map(card, winners))}</div>' if winners else ''


def _converged(report: Report) -> str:
  if not report.converged:
    return ''
  note = (
    'Each was the best by validation of several candidates, trained in the same way. The scores in the rest of this '
    'page are those of the short trainings in the search, which favour what learns fast: they differ from these, and '
    'so may their order.'
  )
  return f'{_retrained(report.converged)}<p class="note">{_e(note)}</p>'


def _retrained(result: Mapping[str, Any]) -> str:
  header = ('', 'size', 'parameters', 'epochs', 'trainings', 'validation', 'test')
  rows = []
  for row in result['rows']:
    sizes = (f'{row["parameters"]:,}', row['epochs'], row['repeats'])
    rows.append((row['name'], row['size'], *sizes, spread(row['valid']), spread(row['test'])))
  note = f'Mean ± standard deviation; lower is better. {_capital(str(result["setting"]))}.'
  return f'{_table(header, rows)}<p class="note">{_e(note)}</p>'


def _origin(report: Report) -> str:
  facts = ''.join(f'<dt>{_e(name)}</dt><dd>{_e(value)}</dd>' for name, value in report.facts)
  settings = _table(('field', 'value'), [(name, json.dumps(value)) for name, value in report.config.items()])
  folded = f'<details><summary>All settings</summary>{settings}</details>' if report.config else ''
  return f'<p>{_e(report.caveat)}</p><dl>{facts}</dl>{folded}'


def _section(title: str, body: str) -> str:
  return f'<section><h2>{_e(title)}</h2>{body}</section>\n' if body else ''


def _figure(svg: str, title: str, caption: str) -> str:
  return f'<figure>{svg}<figcaption><b>{_e(title)}.</b> {_e(caption)}</figcaption></figure>'


def _table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
  """Returns a table. Columns of numbers are aligned right, others left."""
  cells = [[word(value) for value in row] for row in rows]
  columns = list(zip(*cells, strict=True)) or [()] * len(header)
  sides = [' class="n"' if all(map(_NUMBER.fullmatch, column)) else '' for column in columns]

  def line(tag: str, texts: Sequence[str]) -> str:
    each = (f'<{tag}{side}>{_e(text)}</{tag}>' for side, text in zip(sides, texts, strict=True))
    return f'<tr>{"".join(each)}</tr>'

  body = ''.join(line('td', row) for row in cells)
  return f'<div class="table"><table><thead>{line("th", header)}</thead><tbody>{body}</tbody></table></div>'


def _columns(lines: Iterable[Record], *names: str) -> list[list[float]]:
  lines = list(lines)
  return [[_score(line, name) for line in lines] for name in names]


def _score(record: Record, key: str) -> float:
  value = record.get(key)
  return float('nan') if value is None or record.get('failed') else float(value)


def _failed(run: Run) -> int:
  return sum(record['failed'] is not None for record in run.records)


def _who(run: Run) -> str:
  return {'reinforce': 'the controller', 'random': 'random search'}.get(run.name, run.name)


def _capital(words: str) -> str:
  return words[:1].upper() + words[1:]


def _children(count: int) -> str:
  return f'{count} child{"ren" if count != 1 else ""}'


def _e(text: object) -> str:
  return html.escape(str(text))
