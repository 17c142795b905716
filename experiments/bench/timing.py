"""What all sections share: how ways of doing the same are timed against each other, and what a row of the table is."""

import collections
from collections.abc import Callable, Mapping
import contextlib
import threading
import time
from typing import Any, NamedTuple

import jax
import numpy as np

Way = Callable[[], float]  # does the work once and says how many seconds it took


class Setup(NamedTuple):
  """How the benchmark is run."""

  repeats: int = 5  # of each measurement
  small: bool = False  # tiny shapes: whether everything runs, not how fast
  torch_python: str = ''  # a Python that has PyTorch; '' leaves it out
  torch_compile: bool = False  # torch.compile as well, which takes minutes


class Bar(NamedTuple):
  """What a figure is to reach."""

  sign: str  # '>=' or '<='
  limit: float


class Row(NamedTuple):
  """A figure."""

  name: str
  value: float  # a median
  unit: str = 'x'  # 'x' is a ratio
  bar: Bar | None = None
  spread: tuple[float, float] | None = None  # the least and the greatest of the repeats
  note: str = ''

  @property
  def met(self) -> bool | None:
    """Whether the figure meets its bar; None if it has none."""
    if self.bar is None:
      return None
    return self.value >= self.bar.limit if self.bar.sign == '>=' else self.value <= self.bar.limit


def at_least(limit: float) -> Bar:
  """Returns the bar of a figure of which more is better."""
  return Bar('>=', limit)


def at_most(limit: float) -> Bar:
  """Returns the bar of a figure of which less is better."""
  return Bar('<=', limit)


def seconds(work: Callable[[], Any]) -> float:
  """Returns the seconds that `work` takes, until all arrays it returns are computed."""
  begun = time.perf_counter()
  jax.block_until_ready(work())
  return time.perf_counter() - begun


def way(work: Callable[[], Any]) -> Way:
  """Returns `work` as `alternating` takes it. It is done once here, so that it is compiled."""
  jax.block_until_ready(work())
  return lambda: seconds(work)


def alternating(ways: Mapping[str, Way], repeats: int) -> dict[str, np.ndarray]:
  """Times all ways in turn and returns seconds [repeats] for each: a machine that slows down does so for all."""
  rounds = [[work() for work in ways.values()] for _ in range(repeats)]
  return dict(zip(ways, np.array(rounds, float).T, strict=True))


def row(name: str, values: np.ndarray, unit: str = 'x', bar: Bar | None = None, note: str = '') -> Row:
  """Returns the median and the spread over repeats. A ratio is taken within each repeat, before the median."""
  return Row(name, float(np.median(values)), unit, bar, (float(np.min(values)), float(np.max(values))), note)


class Compiling(NamedTuple):
  """The compilation of one program, by XLA or out of a cache."""

  name: str
  seconds: float  # tracing and lowering included


@contextlib.contextmanager
def compilations():
  """A context whose value is a list: it gets a `Compiling` for each program compiled meanwhile, in any thread."""
  found, before = list[Compiling](), collections.defaultdict[int, float](float)  # of each thread, XLA's part to come

  def note(event: str, duration: float, **facts: Any) -> None:
    thread = threading.get_ident()
    if event == '/jax/core/compile/backend_compile_duration':
      found.append(Compiling(str(facts.get('fun_name', '')), before.pop(thread, 0.0) + duration))
    elif event.startswith('/jax/core/compile/'):
      before[thread] += duration

  jax.monitoring.register_event_duration_secs_listener(note)
  try:
    yield found
  finally:
    jax.monitoring.unregister_event_duration_listener(note)
