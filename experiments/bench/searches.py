"""Whole searches in a table by the paper's controller, from many seeds at once."""

import itertools

import jax
import numpy as np

from experiments.bench.timing import Row, Setup, alternating, at_most, compilations, row, seconds
from nas_jax import search
from nas_jax.systems import table

SEEDS, EVALUATIONS = 500, 100
SLOTS, LABELS = 6, 5  # of the table: 15,625 token sequences, as in NAS-Bench-201


def rows(setup: Setup) -> list[Row]:
  """Measures the seconds of whole searches in a table, compiling included, and the number of programs compiled."""
  seeds, evaluations, slots, labels = (3, 4, 2, 3) if setup.small else (SEEDS, EVALUATIONS, SLOTS, LABELS)
  ops, reward = additive(slots, labels)
  cfg = table.Config()
  s, keys = table.build(cfg, ops, reward), jax.random.split(jax.random.key(0), seeds)
  programs = list[int]()

  def searching() -> float:
    with compilations() as found:
      taken = seconds(lambda: search.run_seeds(s, keys, -(-evaluations // cfg.m)))
    programs.append(sum(each.name == 'jit(everywhere)' for each in found))
    return taken

  taken = alternating({'searches': searching}, setup.repeats)['searches']
  what = f'{seeds} searches of {evaluations} evaluations in a table of {len(ops)}'
  return [
    row(what, taken, 's', at_most(20.0), 'compiling included'),
    row('compilations of these', np.array(programs, float), 'programs', at_most(1.0)),
  ]


def additive(slots: int, labels: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns all token sequences [A, slots], and their rewards [A]: the mean of one number for each token."""
  ops = np.array(list(itertools.product(range(labels), repeat=slots)), np.int32)
  values = np.random.default_rng(0).uniform(size=(slots, labels))
  return ops, values[np.arange(slots), ops].mean(1)
