"""Measures which way to compile children is faster: one program for all of them, or a program for each."""

from collections.abc import Callable, Sequence
import math
import time
from typing import NamedTuple

from jax.sharding import Mesh

from nas_jax.training import evaluators
from nas_jax.training.costs import UNBOUNDED
from nas_jax.training.problem import Problem
from nas_jax.types import Batch, Evaluate, Key

PROGRAMS = ('generic', 'specialised', 'auto')  # one program for all children, one for each, or the faster as measured


class Timing(NamedTuple):
  """Seconds that a child takes on average over a whole search, compilation included."""

  generic: float
  specialised: float


def of_problem(problem: Problem, key: Key, m: int, children: int, mesh: Mesh | None = None) -> Timing:
  """Calls `time_programs` on m random children of a problem with its `steps`. Bounds on the cost are ignored.

  Args:
    problem: what the children learn.
    key: the random key of the children.
    m: the number of children in a batch.
    children: the number of children in the whole search.
    mesh: where they are trained; all local devices by default.
  """

  def build(kind: str, steps: int) -> Evaluate:
    return evaluators.build(problem._replace(program=kind, steps=steps, bounds=UNBOUNDED), mesh)

  kinds = ('generic', 'specialised') if problem.traced else ('specialised',)
  return time_programs(build, evaluators.random_batch(problem.space, key, m), problem.steps, children, kinds)


def time_programs(
  build: Callable[[str, int], Evaluate],
  batch: Batch,
  steps: int,
  children: int,
  kinds: Sequence[str] = ('generic', 'specialised'),
  first: int = 50,
) -> Timing:
  """Trains one batch for one step and for more steps with each kind of program, and extrapolates to whole trainings.

  A generic program is compiled once in a search, a specialised program for each child. The longer training has `first`
  steps. Its steps are then multiplied by four until it takes twice as long as one step with its scoring, so that noise
  does not hide the time of a step.

  Args:
    build: (one of `kinds`, training steps) -> an evaluator.
    batch: typical children.
    steps: training steps of a child in the search.
    children: the number of children in the whole search.
    kinds: the kinds of program to time; the time of any other is infinite.
    first: training steps of the first longer training.
  """

  def seconds(kind: str, count: int) -> tuple[float, float]:
    """Returns the seconds that a batch takes with a new program, and with the same program again."""
    evaluate = build(kind, count)
    begun = time.perf_counter()
    evaluate(batch)
    between = time.perf_counter()
    evaluate(batch)
    return between - begun, time.perf_counter() - between

  def a_child(kind: str) -> float:
    fresh, one = seconds(kind, 1)
    count, many = 1, one
    while count < steps and many < 2 * one:
      count = min(first if count == 1 else 4 * count, steps)
      many = seconds(kind, count)[1]
    a_step = max(many - one, 0.0) / max(count - 1, 1)
    once = (fresh - one) / children if kind == 'generic' else 0.0
    return once + (one + (steps - 1) * a_step) / len(batch.keys)

  return Timing(*(a_child(kind) if kind in kinds else math.inf for kind in Timing._fields))
