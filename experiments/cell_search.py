"""Search for a recurrent cell (Zoph & Le 2017, Sec. 3.4), with a random search beside it.

The same command resumes a search that was cut off. Example:
  python -m experiments.cell_search --preset=demo --seed=1 --workdir=runs/mine
"""

from collections.abc import Sequence
import dataclasses
import os

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from experiments import launch
from nas_jax import data, published, reliability, report, search, space, tree_cell
from nas_jax.children import lm
from nas_jax.systems import cell
from nas_jax.types import Batch

REPEATS = 3  # trainings of each yardstick, from different weights


def main(argv: Sequence[str]) -> None:
  """Reliability, search, control, yardsticks, summary."""
  values = launch.parse(argv, __doc__, launch.search_flags(cell.PRESETS, 'cell_search'), cell.Config)
  cfg = launch.configure(values, cell.PRESETS)
  text, cell_space = cell.load(cfg, values.data_dir), cell.make_space(cfg)
  workdir = values.workdir or f'runs/cell_search-{values.preset}'
  launch.open_workdir(workdir, cfg)
  launch.use_all_cores()
  print(
    f'{cell_space.size():.2e} cells, {cfg.max_children} children of {cfg.steps} steps, {len(text.vocabulary)} ', end=''
  )
  print(f'{cfg.level}s, {len(jax.local_devices())} {jax.default_backend()} devices; results in {workdir}', flush=True)

  s = cell.build(cfg, text)
  signal = launch.once(os.path.join(workdir, 'reliability.json'), lambda: measure_reliability(cfg, text, s))
  print(reliability_line(cfg, signal), flush=True)
  found = {cfg.algorithm: launch.resume_and_run(workdir, s, cfg.seed, cfg.max_children, cfg.algorithm)}
  if values.control and cfg.algorithm != 'random':
    control = dataclasses.replace(cfg, algorithm='random')
    # The control shares the compiled programs: only the controller is another.
    random = search.build(cell_space, control, s.evaluate)
    folder = os.path.join(workdir, 'control')
    launch.open_workdir(folder, control)
    found['random'] = launch.resume_and_run(folder, random, cfg.seed, cfg.max_children, 'random')
  beside = launch.once(os.path.join(workdir, 'yardsticks.json'), lambda: measure_yardsticks(cfg, text, s))
  summary = summarise(cfg, text, cell_space, found, beside) + '\n' + reliability_line(cfg, signal)
  launch.write(os.path.join(workdir, 'summary.txt'), summary + '\n')
  print('\n' + summary)


def measure_reliability(cfg: cell.Config, text: data.Text, s: search.Search) -> dict[str, float]:
  """Rank correlations of rewards, before anything is searched."""
  longer = cell.build(dataclasses.replace(cfg, steps=5 * cfg.steps), text).evaluate
  key = jax.random.fold_in(jax.random.key(cfg.seed), 1)
  found = reliability.measure(
    s.space, s.evaluate, key, cfg.reliability_children, cfg.m, longer, cfg.reliability_children // 2
  )
  return found._asdict()


def reliability_line(cfg: cell.Config, signal: dict[str, float]) -> str:
  """The figures in words."""
  return (
    f'reward reliability (Spearman, {signal["children"]} random cells): {signal["seeds"]:.2f} between two seeds, '
    f'{signal["budget"]:.2f} between {cfg.steps} and {5 * cfg.steps} steps (half of them)'
  )


def measure_yardsticks(cfg: cell.Config, text: data.Text, s: search.Search) -> dict[str, list[float]]:
  """Perplexities of known cells, trained as the children are: {name: one for each repeat}."""
  evaluators = {name: (arch, s.evaluate) for name, arch in (('NASCELL', published.NASCELL), ('LSTM', published.LSTM))}
  simple = cell.build_evaluator(cfg, text, lm.flax_cell(lambda features: nn.SimpleCell(features)))
  evaluators['SimpleCell'] = (published.LSTM, simple)
  keys = jax.random.split(jax.random.fold_in(jax.random.key(cfg.seed), 2), REPEATS)
  found = {}
  for name, (arch, evaluate) in evaluators.items():
    # The programs for base-8 cells may be compiled for cells of another base: these compile their own.
    archs = space.stack([arch] * REPEATS)
    tokens = jnp.zeros((REPEATS, s.space.length), jnp.int32)
    outcome = evaluate(Batch(jnp.arange(REPEATS, dtype=jnp.int32), keys, tokens, archs))
    found[name] = np.asarray(outcome.metrics['perplexity']).tolist()
  return found


def summarise(cfg: cell.Config, text: data.Text, cell_space, found, beside) -> str:
  """The best cell in equations, and the table that a result must stand in."""
  ranked = report.ranking(found[cfg.algorithm], cell_space, 'perplexity')
  lines = []
  if ranked:
    arch = cell_space.decode(ranked[0]['tokens'])
    lines = [f'best cell (child {ranked[0]["id"]}, validation perplexity {ranked[0]["perplexity"]:.3f}):']
    lines += [tree_cell.equations(arch), '']
  rows = []
  for name, records in found.items():
    at = report.standing(records, cell_space, 'perplexity')
    rows.append(
      (name, at.best, at.top5, at.top15, f'{at.children} children, {at.unique} different, {at.failed} failed')
    )
  for name, values in beside.items():
    rows.append((name, min(values), *[float('nan')] * 2, f'{np.mean(values):.3f} mean of {len(values)} trainings'))
  title = f'validation perplexity after {cfg.steps} steps'
  lines.append(report.table((title, 'best', 'mean of top 5', 'top 15', 'of'), rows))
  lines.append(
    f'data {cfg.dataset} ({cfg.level}), sha256 {text.sha256[:12]}, seed {cfg.seed}; short budgets favour fast learners'
  )
  return '\n'.join(lines)


if __name__ == '__main__':
  launch.main(main)
