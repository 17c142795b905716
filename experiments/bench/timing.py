"""Code that all sections share: timing of alternative programs against each other, and the rows of the table."""

import collections
from collections.abc import Callable, Mapping
import contextlib
import threading
import time
from typing import Any, NamedTuple

import jax
import numpy as np

Way = Callable[[], float]  # does the work once and returns the seconds that it took


class Setup(NamedTuple):
  """Options of the benchmark."""

  repeats: int = 5  # of each measurement
  small: bool = False  # tiny shapes, to test that everything runs
  torch_python: str = ''  # path of a Python that has PyTorch; '' for no comparison with PyTorch
  torch_compile: bool = False  # whether to measure torch.compile too, which takes minutes


class Bar(NamedTuple):
  """The target of a figure."""

  sign: str  # '>=' or '<='
  limit: float


class Row(NamedTuple):
  """A measured figure, one line of the table."""

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
  """Returns a bar that a figure meets if it is at least `limit`."""
  return Bar('>=', limit)


def at_most(limit: float) -> Bar:
  """Returns a bar that a figure meets if it is at most `limit`."""
  return Bar('<=', limit)


def seconds(work: Callable[[], Any]) -> float:
  """Returns the seconds until `work` has returned and all arrays of its result are computed."""
  begun = time.perf_counter()
  jax.block_until_ready(work())
  return time.perf_counter() - begun


def way(work: Callable[[], Any]) -> Way:
  """Returns a `Way` that times `work`. It calls `work` once first, so that it is compiled."""
  jax.block_until_ready(work())
  return lambda: seconds(work)


def alternating(ways: Mapping[str, Way], repeats: int) -> dict[str, np.ndarray]:
  """Returns seconds [repeats] for each way. The ways take turns, so that a slower machine slows all of them."""
  rounds = [[work() for work in ways.values()] for _ in range(repeats)]
  return dict(zip(ways, np.array(rounds, float).T, strict=True))


def row(name: str, values: np.ndarray, unit: str = 'x', bar: Bar | None = None, note: str = '') -> Row:
  """Returns the row of `values` [repeats]: their median, least and greatest. Form ratios within each repeat before."""
  return Row(name, float(np.median(values)), unit, bar, (float(np.min(values)), float(np.max(values))), note)


class Compiling(NamedTuple):
  """The compilation of one program, by XLA or from a cache."""

  name: str
  seconds: float  # tracing and lowering included


@contextlib.contextmanager
def compilations():
  """A context whose value lists a `Compiling` for each program that is compiled within it, in any thread."""
  # `before`: by thread, the seconds of tracing and lowering a program that XLA has not compiled yet.
  found, before = list[Compiling](), collections.defaultdict[int, float](float)

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
