"""Compares searches with their random-search baselines as their children are trained: Zoph & Le (2017), Figure 6.

After every so many children, for the best child and for the means over the best 5 and 15 different ones: how much lower
the score of the search is than that of random search (higher, for accuracies), the mean over the searches, its standard
error, and p of a paired t-test in which each search counts once. Example:
  python tests/tools/figure6.py --every=100 runs/seed0 runs/seed1 runs/seed2
"""

import argparse
from collections.abc import Sequence
import os
import pathlib
import sys

sys.path.extend(str(folder) for folder in pathlib.Path(__file__).resolve().parents[1:3])  # tests/ and the checkout

import numpy as np

from experiments.common import workdirs
from experiments.common.systems import for_config, system_of
from experiments.compare.statistics import paired
from nas_jax import config
from nas_jax.report import rankings
from nas_jax.search import journal

TOPS = 1, 5, 15
HEADER = ('children', 'top', 'searches', 'by how much better', 'standard error', 'p', 'better in')


def gains(workdir: str, every: int) -> np.ndarray:
  """Returns by how much a search is better than its random search: [checkpoints, TOPS]; NaN where too few succeeded."""
  saved, origin = (workdirs.peek(os.path.join(workdir, name)) or {} for name in ('config.json', 'origin.json'))
  system = system_of(saved, origin)
  if system is None:
    raise SystemExit(f'{workdir} is no workdir of a search: name the folders of searches that have ended.')
  cfg = config.from_json(system.config, saved)
  made, metric = system.make_space(cfg), for_config(system, cfg).metric
  curves = []
  for folder in (workdir, os.path.join(workdir, 'control')):
    records = list(journal.read(os.path.join(folder, 'children.jsonl'), schema=journal.child_of(made)).values())
    curves.append([rankings.progress(records, made, metric.key, metric.lower, k) for k in TOPS])
  count = min(len(curves[0][0]), len(curves[1][0]))
  own, random = (np.array([curve[:count] for curve in both]).T[every - 1 :: every] for both in curves)
  return random - own if metric.lower else own - random


def rows(found: np.ndarray, every: int) -> list[tuple[object, ...]]:
  """Returns the rows of the table from the gains [searches, checkpoints, TOPS]."""
  return [
    (every * (i + 1), k, len(found), *paired(found[:, i, j]), int((found[:, i, j] > 0).sum()))
    for i in range(found.shape[1])
    for j, k in enumerate(TOPS)
  ]


def main(folders: Sequence[str], every: int) -> None:
  """Prints the table."""
  each = [gains(folder, every) for folder in folders]
  fewest = min(map(len, each))
  print(rankings.table(HEADER, rows(np.array([one[:fewest] for one in each]), every)))


if __name__ == '__main__':
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('workdirs', nargs='+', help='folders of at least two searches with random-search baselines')
  parser.add_argument('--every', type=int, default=100, help='children between two rows')
  given = parser.parse_args()
  main(given.workdirs, given.every)
