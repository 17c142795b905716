"""Shows the progress of a run: bars in a terminal, and elsewhere a line at most every `SECONDS` seconds."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
import contextlib
import math
import sys
import time

from tqdm import tqdm

SECONDS = 10  # between two lines, except lines that end a phase
RECENT = 50  # the pace is measured over this many calls of `Advance`, so that compiling and restored work soon drop out

# (count of units done, results in words, work) -> None. By default the work is the phase's average for that count.
Advance = Callable[..., None]


class Progress:
  """Shows the phases of a run, one after another, and estimates the time left for the whole run.

  The unit of work is one training of a child of the search. The time for a unit is measured in the current phase; until
  there is a measurement, that of the previous phase is used.
  """

  def __init__(self, expected: Mapping[str, float] | None = None, clock: Callable[[], float] = time.monotonic):
    """Begins a run.

    Args:
      expected: the work of each phase, by name; NaN where it is not known before the phase is begun.
      clock: seconds.
    """
    self._left, self._clock = dict(expected or {}), clock
    self._pace, self._said = math.nan, -math.inf  # seconds for a unit of work; when the last line was printed

  def expect(self, work: Mapping[str, float]) -> None:
    """Adds phases that are to come, by name, with their work as in `__init__`."""
    self._left |= work

  def drop(self, phase: str) -> None:
    """Removes a phase that is over or not needed from the estimate."""
    self._left.pop(phase, None)

  @contextlib.contextmanager
  def phase(self, name: str, total: int, unit: str, done: int = 0) -> Iterator[Advance]:
    """Shows a phase while the context lasts. Its value is an `Advance`, to call whenever some units are done.

    Args:
      name: of the phase; a phase that was not expected has `total` units of work.
      total: the number of units to do; it may turn out to be more.
      unit: the name of the units, in the plural.
      done: how many were done before this run.
    """
    whole = self._left.pop(name, total)
    whole = total if math.isnan(whole) else whole
    each, left = whole / max(total, 1), whole * (1 - done / max(total, 1))
    before, points = done, deque[tuple[float, float]](maxlen=RECENT)  # when, and how much work was left
    self._left = {name: left} | self._left
    begun, terminal = self._clock(), sys.stderr.isatty()
    with tqdm(total=total, initial=done, desc=name, unit=f' {unit}', disable=not terminal) as bar:

      def show(found: str) -> None:
        rest = self._rest()
        if terminal:
          bar.total = max(done, total)
          bar.set_postfix_str(', '.join(filter(None, (found, rest))), refresh=False)
          bar.update(done - bar.n)
        elif done != total and self._clock() - self._said > SECONDS:
          passed = duration(self._clock() - begun) if done else ''
          self._say(
            f'{name}: ' + ', '.join(filter(None, (f'{done} of {max(done, total)} {unit}', found, passed, rest)))
          )

      def advance(count: int, found: str = '', work: float | None = None) -> None:
        nonlocal done, left
        work = count * each if work is None else work
        done, left, now = done + count, left - work, self._clock()
        points.append((now, left))
        since, then = points[0]
        if left < then:
          self._pace = (now - since) / (then - left)
        elif math.isnan(self._pace) and work:
          self._pace = (now - begun) / work  # includes compilation, as there is no better estimate yet
        self._left[name] = max(left, 0.0)
        show(found)

      show('')
      yield advance
    self.drop(name)
    if not terminal and done > before:
      self._say(f'{name}: {done} {unit} in {duration(self._clock() - begun)}')

  def _rest(self) -> str:
    """Returns the estimated time left in words, up to the first phase of unknown work; '' without a measurement."""
    known = [work for work in self._left.values() if not math.isnan(work)]
    later = [phase for phase, work in self._left.items() if math.isnan(work)]
    if math.isnan(self._pace):
      return ''
    return f'about {duration(self._pace * sum(known))} left' + (f' before {later[0]}' if later else '')

  def _say(self, line: str) -> None:
    print(line, file=sys.stderr, flush=True)
    self._said = self._clock()


def counted(evaluate: Callable, advance: Advance, work: float = 1.0) -> Callable:
  """Returns an evaluator that reports each batch it has trained to `advance`; `work` is the work for each child."""

  def act(batch):
    outcome = evaluate(batch)
    advance(len(batch.ids), work=work * len(batch.ids))
    return outcome

  return act


def duration(seconds: float) -> str:
  """Returns a time in its largest units: '40 s', '3 min', '2 h 10 min', '3 days'.

  >>> [duration(seconds) for seconds in (0.2, 59.6, 90, 3600, 7830, 200000)]
  ['0 s', '1 min', '2 min', '1 h', '2 h 10 min', '2 days']
  """
  minutes = round(seconds / 60)
  if round(seconds) < 60:
    return f'{round(seconds)} s'
  if minutes < 60:
    return f'{minutes} min'
  if minutes < 48 * 60:
    return f'{minutes // 60} h' + (f' {minutes % 60} min' if minutes % 60 else '')
  return f'{round(minutes / 1440)} days'
