"""What a search found, in sentences."""

import math

import numpy as np

from nas_jax.report.model import Report, Run
from nas_jax.report.rankings import counted, spread, word


def headline(report: Report) -> str:
  """Returns what was found, in one sentence: after training to convergence, or by the search alone."""
  if not (report.converged and report.converged['rows']):
    return in_the_search(report)
  best, metric = report.converged['rows'][0], report.converged['metric']
  return f'{capital(called(best["name"]))}, trained to convergence: a test {metric} of {spread(best["test"])}'


def in_the_search(report: Report) -> str:
  """Returns what the search found by its own scores, in one sentence."""
  if not report.runs or not report.runs[0].records:
    return 'No child has been trained yet.'
  if report.runs[0].name in report.derived:
    return _of_derived(report)
  own, *others = report.runs
  spent = f'In {children(len(own.records))} ({failed(own)} failed) {who(own)}'
  if not math.isfinite(own.best[-1]):
    return f'{spent} found no {report.noun} that could be scored.'
  words = f'{spent} found a {report.noun} of {report.metric.name} {word(own.best[-1])}'
  for other in others:
    if other.records:
      found = f'one of {word(other.best[-1])}' if math.isfinite(other.best[-1]) else 'none'
      words += f'; {who(other)}, in {len(other.records)} ({failed(other)} failed), {found}'
  return words + '.'


def _of_derived(report: Report) -> str:
  """Returns a sentence on the architectures derived after a search with shared weights.

  The children of such a search are scored on one minibatch each, so their scores are not reported here.
  """
  own = report.runs[0]
  spent = f'{children(len(own.records))} ({failed(own)} failed)'
  found = [f'{word(report.derived[run.name])} for {who(run)}' for run in report.runs if run.name in report.derived]
  return f'The best {report.noun} derived after {spent} has a {report.metric.name} of {", ".join(found)}.'


def lede(report: Report, running: bool = False) -> list[str]:
  """Returns sentences for below the headline: other full trainings, progress, and when random search was passed.

  A search with fewer children than planned may also have ended, at another limit than their number.
  """
  words = list[str]()
  if report.converged and report.converged['rows']:
    others = [f'{spread(row["test"])} by {called(row["name"])}' for row in report.converged['rows'][1:]]
    words = [f'Trained in the same way: {"; ".join(others)}.'] if others else []
    words.append(in_the_search(report))
  for run in report.runs:
    if len(run.records) < report.budget:
      of = f'{len(run.records)} of at most {children(report.budget)}'
      so = ', so these results are preliminary' if running else ''
      words.append(f'{capital(who(run))} has trained {of}{so}.')
  if len(report.runs) > 1 and all(run.records for run in report.runs) and not report.derived:
    own, other = (np.asarray(run.best, float) for run in report.runs[:2])
    ahead = own < other[-1] if report.metric.lower else own > other[-1]
    names = f'the best of {who(report.runs[1])} ({children(len(report.runs[1].records))})'
    if ahead.any():
      words.append(f'{capital(who(report.runs[0]))} passed {names} after {children(int(ahead.argmax()) + 1)}.')
    elif np.isfinite(other[-1]):
      words.append(f'{capital(who(report.runs[0]))} has not passed {names}.')
  return words


def who(run: Run) -> str:
  """Returns the name by which the whole page calls a search."""
  return 'random search' if run.name == 'random' else 'the search'


def called(name: str) -> str:
  """Replaces the algorithm in a name such as 'reinforce child 12' by the name that the page uses for its search."""
  algorithm, apart, rest = name.partition(' child ')
  return f'{who(Run(algorithm, (), (), ()))}, child {rest}' if apart else name


def failed(run: Run) -> int:
  """Returns how many children of a search failed."""
  return sum(record['failed'] is not None for record in run.records)


def capital(words: str) -> str:
  """Returns words with a capital first letter."""
  return words[:1].upper() + words[1:]


def children(count: int) -> str:
  """Returns a number of children in words."""
  return counted(count, 'child', 'children')
