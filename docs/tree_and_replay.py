"""What the replay tree is worth: searches with and without it, drawn from their workdirs.

Example, the searches of the table in docs/results/layers.md as runs/full-0, runs/noreplay-0, runs/notree-0,
runs/random-0, ...:
  python docs/tree_and_replay.py docs/tree_and_replay.svg runs
"""

import glob
import os
import sys

import matplotlib.pyplot as plt
import numpy as np

from nas_jax.search import journal

KINDS = {  # the names of workdirs begin so
  'full': ('tree and replay', 'tab:red'),
  'noreplay': ('tree alone', 'tab:orange'),
  'notree': ('neither', 'tab:blue'),
  'random': ('random search', '0.5'),
}
LAST = 20  # trainings that the mean is over


def main(path: str, folder: str) -> None:
  """Draws the best accuracy so far, and the mean of the last trainings, against trainings; bands are all seeds."""
  plt.rcParams.update({'axes.spines.top': False, 'axes.spines.right': False, 'svg.hashsalt': 'nas_jax'})
  figure, (best, mean) = plt.subplots(1, 2, figsize=(9, 3.4))
  for kind, (label, color) in KINDS.items():
    runs = [accuracies(each) for each in sorted(glob.glob(os.path.join(folder, f'{kind}-*')))]
    if not runs:
      raise SystemExit(f'{folder} holds no {kind}-SEED: want the workdirs of searches of all four kinds.')
    runs = np.array([run[: min(map(len, runs))] for run in runs])
    smooth = np.array([np.convolve(run, np.ones(LAST) / LAST, 'valid') for run in runs])
    for ax, lines, first in ((best, np.maximum.accumulate(runs, 1), 1), (mean, smooth, LAST)):
      at = np.arange(first, first + lines.shape[1])
      ax.plot(at, lines.mean(0), color=color, label=label)
      ax.fill_between(at, lines.min(0), lines.max(0), color=color, alpha=0.12, lw=0)
  best.set(xlabel='trainings', ylabel='best validation accuracy so far', ylim=(0.9, 1.0))
  mean.set(xlabel='trainings', ylabel=f'mean of the last {LAST}')
  mean.legend(frameon=False, loc='lower right')
  figure.tight_layout()
  figure.savefig(path, metadata={'Date': None} if path.endswith('.svg') else None)


def accuracies(workdir: str) -> list[float]:
  """Of the children of a search, in the order of training."""
  records = journal.read(os.path.join(workdir, 'children.jsonl'))
  return [records[number]['accuracy'] for number in sorted(records)]


if __name__ == '__main__':
  main(*sys.argv[1:])
