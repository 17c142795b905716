"""Compares what searches found with another architecture of each search, such as random search's, after retraining.

Each folder of `experiments.retrain --results` counts once: the mean test score of its first architecture, an error or a
perplexity, against that of its second. A training that failed is left out of the mean, which is said. Prints the names
and scores of both, and for all folders the mean difference, its standard error and p of a paired t-test.
Example, where each folder has the results of `--arch=WORKDIR/best.json,WORKDIR/control/best.json`:
  python tests/tools/retrained.py runs/retrained0 runs/retrained1 runs/retrained2
"""

import argparse
from collections.abc import Mapping, Sequence
import math
import os
import pathlib
import sys
from typing import Any

sys.path.extend(str(folder) for folder in pathlib.Path(__file__).resolve().parents[1:3])  # tests/ and the checkout

import numpy as np

from experiments.common import workdirs
from experiments.compare.statistics import paired
from nas_jax.report import rankings

HEADER = ('results', 'weights', 'test', 'weights of the other', 'its test', 'difference', 'standard error', 'p')


def scores(folder: str) -> list[tuple[int, float]]:
  """Returns the weights and the mean test score of the first two architectures of a folder: lower is better."""
  found = workdirs.peek(os.path.join(folder, 'result.json')) or {'rows': []}
  by_name = {row['name']: row for row in found['rows'][::-1]}
  if len(by_name) < 2:
    raise SystemExit(f'{folder} has no results of two architectures: name folders that --results of retrain named.')
  first, second = sorted(by_name.values(), key=found['rows'].index)[:2]
  print(f'{folder}: {first["name"]} against {second["name"]}')
  return [(row['parameters'], _mean(row, folder)) for row in (first, second)]


def _mean(row: Mapping[str, Any], folder: str) -> float:
  """Returns the mean over the trainings that did not fail, and prints how many did."""
  ended = [score for score in row['test'] if math.isfinite(score)]
  if failed := len(row['test']) - len(ended):
    print(f'{folder}: {failed} of {len(row["test"])} trainings of {row["name"]} failed, left out of its mean')
  if not ended:
    raise SystemExit(f'{folder} cannot be compared: leave it out.')
  return float(np.mean(ended))


def rows(folders: Sequence[str], each: Sequence[Sequence[tuple[int, float]]]) -> list[tuple[object, ...]]:
  """Returns the rows of the table; a difference below 0 is in favour of the first architecture.

  The last row is of the means, if there are several folders.
  """
  apart = np.array([one[0][1] - one[1][1] for one in each])
  every = [
    (folder, one[0][0], one[0][1], one[1][0], one[1][1], difference, '', '')
    for folder, one, difference in zip(folders, each, apart, strict=True)
  ]
  if len(each) == 1:
    return every
  means = [float(np.mean([one[k][1] for one in each])) for k in (0, 1)]
  return [*every, ('mean', '', means[0], '', means[1], *paired(apart))]


def main(folders: Sequence[str]) -> None:
  """Prints the table."""
  found = rows(folders, [scores(folder) for folder in folders])
  print(rankings.table(HEADER, [[f'{x:.4f}' if isinstance(x, float) else x for x in one] for one in found]))


if __name__ == '__main__':
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('results', nargs='+', help='folders of retrainings; means and p want at least two')
  given = parser.parse_args()
  main(given.results)
