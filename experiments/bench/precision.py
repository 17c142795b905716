"""Children in bfloat16 against float32: how well the ranks of their rewards agree, and how fast they train."""

from collections.abc import Iterator
import dataclasses
import time

import jax

from experiments.bench.timing import Row, Setup
from experiments.common.systems import CELL, CONV, System
from nas_jax.report import reliability
from nas_jax.training.recovery import NO_RECOVERY

COUNT = 24  # number of random children
LOW = 'bfloat16'


def rows(setup: Setup) -> Iterator[Row]:
  """Measures cells and networks in float32 and bfloat16."""
  for system in (CELL, CONV):
    yield from ranks(system, setup)


def ranks(system: System, setup: Setup) -> Iterator[Row]:
  """Measures rank correlations of the rewards of the same children in two precisions, with one seed and with two seeds.

  bfloat16 cannot be expected to agree better with float32 than float32 with another seed does.
  """
  cfg, count = system.presets['smoke' if setup.small else 'demo'](), 4 if setup.small else COUNT
  key, rewards, taken = jax.random.key(0), {}, {}
  for precision in ('float32', LOW):
    assert system.alone is not None
    problem = system.make_problem(dataclasses.replace(cfg, precision=precision), system.load(cfg, ''))
    evaluate = system.alone.evaluator(problem, None, NO_RECOVERY)
    for seed in (1, 2):
      begun = time.perf_counter()
      rewards[precision, seed] = reliability.rewards(problem.space, evaluate, key, seed, count, cfg.m)
      taken[precision, seed] = time.perf_counter() - begun
  name, one, other = f'{system.noun}s of the demo, {count} random', ('float32', 1), ('float32', 2)
  low = rewards[LOW, 1]
  both = reliability.trained(low, rewards[one])  # means over different children could not be compared
  yield Row(f'{name}: Spearman, {LOW} and float32, one seed', reliability.ranks(rewards[one], low).all, '')
  yield Row(f'{name}: Spearman, {LOW} and float32, two seeds', reliability.ranks(rewards[other], low).all, '')
  yield Row(f'{name}: Spearman, float32, two seeds', reliability.ranks(rewards[one], rewards[other]).all, '')
  yield Row(f'{name}: mean reward, {LOW} against float32', float(both[0].mean() / both[1].mean()))
  # The first batch compiles; the second seed's children run by the same programs.
  yield Row(f'{name}: as fast as float32', taken[other] / taken[LOW, 2])
