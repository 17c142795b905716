"""Statistics of many searches: means, their standard errors, and paired differences between algorithms."""

from collections.abc import Sequence
import math
from typing import NamedTuple

import numpy as np
from scipy import special

from experiments.compare.runs import Found


class Curve(NamedTuple):
  """The results of an algorithm on a benchmark, from n seeds, with E evaluations and C checkpoints."""

  mean: Sequence[float]  # [E] over seeds, of the best reward after 1, 2, ... evaluations
  error: Sequence[float]  # [E] standard error of the mean
  at: Sequence[Sequence[float]]  # [C, n] the best reward
  test: Sequence[float | None]  # [C] mean of the metric `test` of the architecture with the best reward; None if none
  different: float  # mean number of different token sequences in a search
  seconds: float  # seconds per evaluation, with the compilation time shared among all


class Row(NamedTuple):
  """The comparison of an algorithm with the first one, after some number of evaluations."""

  mean: float
  error: float  # standard error of the mean
  difference: float  # mean over seeds of its reward minus the reward of the first algorithm
  difference_error: float
  p: float  # two-sided, of a paired t-test; NaN where all seeds have the same difference
  reaches: int | None  # evaluations until its mean is at least the mean of the first in this row; None if never


def curve(found: Found, checkpoints: Sequence[int]) -> Curve:
  """Summarizes searches, with values at checkpoints: the given numbers of evaluations."""
  best, test = found.best, found.test
  return Curve(
    best.mean(0).tolist(),
    [standard_error(column) for column in best.T],
    [best[:, count - 1].tolist() for count in checkpoints],
    [None if test is None else _mean(test[:, count - 1]) for count in checkpoints],
    float(found.different.mean()),
    found.seconds / best.size,
  )


def _mean(values: np.ndarray) -> float | None:
  finite = values[np.isfinite(values)]
  return float(finite.mean()) if len(finite) else None


def standard_error(values: np.ndarray) -> float:
  """Returns the standard error of the mean of n values [n], n at least 2."""
  return float(values.std(ddof=1) / math.sqrt(len(values)))


def paired(apart: np.ndarray) -> tuple[float, float, float]:
  """Returns the mean of n differences between pairs [n], its standard error, and p of a two-sided paired t-test.

  p is NaN where all differences are equal, but for rounding.
  """
  mean, error = float(apart.mean()), standard_error(apart)
  vary = error > 1e-9 * abs(mean)  # the mean of equal numbers may be rounded, which gives them a tiny deviation
  return mean, error, 2 * float(special.stdtr(len(apart) - 1, -abs(mean) / error)) if vary else math.nan


def compare(one: Curve, first: Curve, place: int, evaluations: int) -> Row:
  """Compares an algorithm with the first one after `evaluations` evaluations, which is checkpoint number `place`.

  Searches with the same seed are paired. If one algorithm has more seeds, its extra seeds are left out of the pairs.
  """
  mine, its = np.asarray(one.at[place]), np.asarray(first.at[place])
  pairs = min(len(mine), len(its))
  reaches = np.flatnonzero(np.asarray(one.mean) >= first.mean[evaluations - 1])
  return Row(
    float(mine.mean()),
    standard_error(mine),
    *paired(mine[:pairs] - its[:pairs]),
    int(reaches[0]) + 1 if len(reaches) else None,
  )
