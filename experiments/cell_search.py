"""Search for a recurrent cell (Zoph & Le 2017, Sec. 3.4), with a random search beside it.

The same command resumes a search that was cut off. Example:
  python -m experiments.cell_search --preset=demo --seed=1 --workdir=runs/mine --beside=runs/other/best.json
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import os

from absl import flags
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from experiments import launch
from experiments import report as report_page
from nas_jax import data, journal, published, reliability, report, search, space, tree_cell
from nas_jax.children import lm
from nas_jax.systems import cell, language
from nas_jax.types import Batch, Outcome


def own_flags(values: flags.FlagValues) -> None:
  """What a cell search takes beside the fields of its config."""
  launch.search_flags(cell.PRESETS, 'cell_search')(values)
  flags.DEFINE_list('beside', [], 'files as best.json: cells to train beside the known ones', flag_values=values)


Cells = Mapping[str, space.TreeArch]


def prepare(argv: Sequence[str]) -> Callable[[], None]:
  """Flags, text, search and workdir."""
  values = launch.parse(argv, __doc__, own_flags, cell.Config)
  cfg = launch.configure(values, cell.PRESETS)
  known = {'NASCELL': published.NASCELL, 'LSTM': published.LSTM}
  known |= {path: launch.read_arch(path, space.tree_from_json) for path in values.beside}
  text = language.load(cfg, values.data_dir)
  launch.use_all_cores()
  cell.build(cfg, text)  # which checks what belongs together
  workdir = values.workdir or f'runs/cell_search-{values.preset}'
  cfg = launch.open_workdir(workdir, cfg)
  launch.note_origin(
    workdir, 'cell_search', argv, dataset=cfg.dataset, sha256=text.sha256, max_children=cfg.max_children
  )
  return lambda: run(cfg, text, known, workdir, values.control)


def run(cfg: cell.Config, text: data.Text, known: Cells, workdir: str, with_control: bool) -> None:
  """Reliability of the reward, the search, its control, known cells beside it, and what came out."""
  if cfg.child_program == 'auto':
    cfg = settle_program(cfg, text, workdir)
  s = cell.build(cfg, text)
  print(
    f'{s.space.size():.2e} cells; {cfg.max_children} children of {cell.length(cfg)} on {cfg.dataset}, '
    f'{len(text.vocabulary)} different {cfg.level}s; {len(jax.local_devices())} {jax.default_backend()} devices; '
    f'results in {workdir}',
    flush=True,
  )
  signal = measure_reliability(cfg, text, s, os.path.join(workdir, 'reliability.json'))
  print(signal, flush=True)
  found = {cfg.algorithm: launch.resume_and_run(workdir, s, cfg.seed, cfg.max_children, cfg.algorithm)}
  if with_control and cfg.algorithm != 'random':
    # Only the controller is another: the children's programs are compiled already.
    control = dataclasses.replace(cfg, algorithm='random')
    random = search.build(s.space, control, s.evaluate)
    folder = os.path.join(workdir, 'control')
    launch.open_workdir(folder, control)
    found['random'] = launch.resume_and_run(folder, random, cfg.seed, cfg.max_children, 'random')
  scores = measure_yardsticks(cfg, text, s, known, os.path.join(workdir, 'yardsticks.json'))
  summary = f'{best_cell(s.space, found[cfg.algorithm])}\n\n{standings(cfg, text, s.space, found, scores)}\n{signal}\n'
  launch.write(os.path.join(workdir, 'summary.txt'), summary)
  print(f'\n{summary}', end='')
  report_page.write(workdir, report_page.make(workdir))


def settle_program(cfg: cell.Config, text: data.Text, workdir: str) -> cell.Config:
  """`cfg` with the faster way to compile children, measured once a workdir and noted in its config.json."""
  seconds = cell.time_programs(cfg, text)
  faster = min(seconds._fields, key=lambda name: getattr(seconds, name))
  print(f'{faster} children: {seconds.generic:.2f} s each generic, {seconds.specialised:.2f} s specialised', flush=True)
  cfg = dataclasses.replace(cfg, child_program=faster)
  launch.note_config(workdir, cfg)
  return cfg


def measure_reliability(cfg: cell.Config, text: data.Text, s: search.Search, path: str) -> str:
  """Rank correlations of rewards, measured once a workdir, in words."""
  if not cfg.reliability_children:
    return 'reward reliability: not measured'

  def measure() -> dict[str, float]:
    longer = cell.build(cell.longer(cfg, 5), text).evaluate
    key = jax.random.fold_in(jax.random.key(cfg.seed), 1)
    some = cfg.reliability_children // 2
    return reliability.measure(s.space, s.evaluate, key, cfg.reliability_children, cfg.m, longer, some)._asdict()

  found = launch.once(path, measure)
  return (
    f'reward reliability (Spearman, {found["children"]} random cells): {found["seeds"]:.2f} between two seeds, '
    f'{found["budget"]:.2f} between {cell.length(cfg)} and '
    f'{cell.length(cell.longer(cfg, 5))} (half of them)'
  )


def measure_yardsticks(
  cfg: cell.Config, text: data.Text, s: search.Search, known: Cells, path: str
) -> dict[str, list[float]]:
  """Perplexities of known cells, trained just as the children are, each measured once a workdir."""
  if not cfg.yardstick_repeats:
    return {}
  keys = jax.random.split(jax.random.fold_in(jax.random.key(cfg.seed), 2), cfg.yardstick_repeats)

  def train(arch: space.TreeArch, evaluate: Callable[[Batch], Outcome]) -> list[float]:
    ids = jnp.arange(len(keys), dtype=jnp.int32)
    outcome = evaluate(Batch(ids, keys, ids[:, None], space.stack([arch] * len(keys))))
    return np.asarray(outcome.metrics['perplexity']).tolist()

  def train_simple() -> list[float]:
    simple = cell.build_evaluator(cfg, text, lm.flax_cell(lambda features: nn.SimpleCell(features)))
    return train(published.LSTM, simple)  # a Flax cell ignores the architecture

  def train_lstm() -> list[float]:
    return train(published.LSTM, cell.build_evaluator(cfg, text, lm.lstm()))

  wanted = {name: functools.partial(train, arch, s.evaluate) for name, arch in known.items()}
  return launch.once_each(path, wanted | {'standard LSTM': train_lstm, 'SimpleCell (Flax)': train_simple})


def best_cell(cell_space: space.Space, records: Sequence[journal.Record]) -> str:
  """The best child in equations."""
  ranked = report.ranking(records, cell_space, 'perplexity')
  if not ranked:
    return 'no child was trained without failing'
  head = f'best cell (child {ranked[0]["id"]}, validation perplexity {ranked[0]["perplexity"]:.3f}):'
  return f'{head}\n{tree_cell.equations(report.arch_of(cell_space, ranked[0]))}'


def standings(
  cfg: cell.Config,
  text: data.Text,
  cell_space: space.Space,
  found: Mapping[str, Sequence[journal.Record]],
  known: Mapping[str, Sequence[float]],
) -> str:
  """The table that a result must stand in: the search, its control and known cells, on one split and one budget."""
  title = f'validation perplexity, {cell.length(cfg)}'
  rows = report.standings(found, known, cell_space, 'perplexity')
  return (
    f'{report.table((title, *report.HEADER), rows)}\n'
    f'{cfg.dataset}, sha256 {text.sha256[:12]}; seed {cfg.seed}; top 5 and 15: mean over different cells; '
    'short budgets favour fast learners'
  )


if __name__ == '__main__':
  launch.main(prepare)
