"""A whole search of any system: reliability of the reward, the search, its control, yardsticks, and what came out."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import os
from typing import Any

from absl import flags
import jax
import jax.numpy as jnp
import numpy as np

from experiments import report as report_page
from experiments.common import launch, recovery_files, run_search, workdirs
from experiments.common.systems import System, check_workdir
from nas_jax import draw, search, space
from nas_jax.report import rankings, reliability
from nas_jax.search import journal
from nas_jax.training import evaluators, timing
from nas_jax.training.recovery import Recovery
from nas_jax.types import Batch


def own_flags(system: System) -> Callable[[flags.FlagValues], None]:
  """What a search takes beside the fields of its config."""

  def define(values: flags.FlagValues) -> None:
    launch.search_flags(system.presets, system.launcher)(values)
    help = f'files as best.json: {system.noun}s to train beside the known ones'
    flags.DEFINE_list('beside', [], help, flag_values=values)

  return define


def prepare(system: System, doc: str | None, argv: Sequence[str]) -> launch.Work:
  """Flags, data, search and workdir."""
  values = launch.parse(argv, doc or '', own_flags(system), system.config)
  cfg = launch.configure(values, system.presets)
  workdir = values.workdir or f'runs/{system.launcher}-{values.preset}'
  check_workdir(workdir, system)
  beside = {path: launch.read_arch(path, system.kind) for path in values.beside}
  for path, arch in beside.items():
    if why := system.alone.why_unsupported(cfg, arch):
      raise ValueError(f'{path}: {why}: leave it out, or take --child_program=specialised.')
  data = system.load(cfg, values.data_dir)
  launch.set_up_jax()
  system.alone.build(cfg, data)  # which checks what belongs together
  lock = workdirs.lock(workdir)
  cfg = workdirs.open_config(workdir, cfg)
  facts = {'kind': system.kind, 'dataset': cfg.dataset, 'sha256': data.sha256, 'max_children': cfg.max_children}
  workdirs.note_origin(workdir, system.launcher, argv, cfg, **facts)

  def work(check: launch.Check) -> None:
    with lock:
      run(system, cfg, data, beside, workdir, values.control, check)

  return work


def run(
  system: System,
  cfg: Any,
  data: Any,
  beside: Mapping[str, Any],
  workdir: str,
  with_control: bool = True,
  check: launch.Check = lambda: None,
) -> None:
  """Goes on from whatever the workdir holds. `beside` maps names to architectures to train as children are."""
  recovery = recovery_files.recovery(workdir, cfg, check)
  if system.alone.time_programs and cfg.child_program == 'auto':
    cfg = settle_program(cfg, data, workdir, system.alone.time_programs)
  s = system.alone.build(cfg, data, recovery=recovery)
  print(
    f'{s.space.size():.2e} {system.noun}s; {cfg.max_children} children of {system.length(cfg)} on '
    f'{system.about(cfg, data)}; {len(jax.local_devices())} {jax.default_backend()} devices; results in {workdir}',
    flush=True,
  )
  budget = run_search.budget_of(cfg, cfg.max_children)
  signal = measure_reliability(system, cfg, data, s, recovery, os.path.join(workdir, 'reliability.json'))
  print(signal, flush=True)
  found = {cfg.algorithm: run_search.run(workdir, s, cfg.seed, budget, cfg.algorithm, recovery)}
  control = dataclasses.replace(cfg, algorithm='random')
  if with_control and control != cfg:
    # Only the algorithm is another: the children's programs are compiled already.
    random = system.alone.rebuild(s.space, control, s.train)
    folder = os.path.join(workdir, 'control')
    workdirs.open_config(folder, control)
    found['random'] = run_search.run(folder, random, cfg.seed, budget, 'random', recovery)
  known = dict(system.alone.references(cfg, data, s, recovery)) | {
    name: evaluators.Known(arch, s.train) for name, arch in beside.items()
  }
  scores = measure_references(system, cfg, known, os.path.join(workdir, 'yardsticks.json'))
  best = best_child(system, s.space, found[cfg.algorithm])
  views = in_common(system, s.space, found[cfg.algorithm])
  summary = f'{best}\n\n{standings(system, cfg, data, s.space, found, scores)}\n{signal}\n{views}'
  workdirs.write(os.path.join(workdir, 'summary.txt'), summary)
  print(f'\n{summary}', end='')
  report_page.write(workdir, report_page.make(workdir))


def settle_program(cfg: Any, data: Any, workdir: str, time_programs: Callable[[Any, Any], timing.Timing]) -> Any:
  """`cfg` with the faster way to compile children, measured once a workdir and noted in its config.json."""
  seconds = time_programs(cfg, data)
  faster = min(seconds._fields, key=lambda name: getattr(seconds, name))
  print(f'{faster} children: {seconds.generic:.2f} s each generic, {seconds.specialised:.2f} s specialised', flush=True)
  cfg = dataclasses.replace(cfg, child_program=faster)
  workdirs.write_config(workdir, cfg)
  return cfg


def measure_reliability(system: System, cfg: Any, data: Any, s: search.Search, recovery: Recovery, path: str) -> str:
  """Rank correlations of rewards, measured once a workdir, in words."""
  if not cfg.reliability_children:
    return 'reward reliability: not measured'
  long = system.alone.scale_budget(cfg, 5)

  def measure() -> dict[str, float]:
    scale_budget = system.alone.build(long, data, recovery=recovery).train
    key = jax.random.fold_in(jax.random.key(cfg.seed), 1)
    some = cfg.reliability_children // 2
    return reliability.measure(s.space, s.train, key, cfg.reliability_children, cfg.m, scale_budget, some)._asdict()

  found = workdirs.cached(path, measure)
  return (
    f'reward reliability (Spearman, {found["children"]} random {system.noun}s): {found["seeds"]:.2f} between two '
    f'seeds, {found["budget"]:.2f} between {system.length(cfg)} and {system.length(long)} (half of them)'
  )


def measure_references(
  system: System, cfg: Any, known: Mapping[str, evaluators.Known], path: str
) -> dict[str, list[float]]:
  """Scores of known architectures, trained just as the children are, each measured once a workdir."""
  if not cfg.yardstick_repeats:
    return {}
  keys = jax.random.split(jax.random.fold_in(jax.random.key(cfg.seed), 2), cfg.yardstick_repeats)

  def train(one: evaluators.Known) -> list[float]:
    ids = jnp.arange(len(keys), dtype=jnp.int32)
    outcome = one.evaluate(Batch(ids, keys, ids[:, None], space.stack([one.arch] * len(keys))))
    return np.asarray(outcome.metrics[system.metric.key]).tolist()

  return workdirs.cached_each(path, {name: functools.partial(train, one) for name, one in known.items()})


def best_child(system: System, made: space.Space, records: Sequence[journal.Record]) -> str:
  """The best child in equations or words."""
  metric = system.metric
  ranked = rankings.ranking(records, made, metric.key, metric.lower)
  if not ranked:
    return 'no child was trained without failing'
  head = f'best {system.noun} (child {ranked[0]["id"]}, {metric.name} {ranked[0][metric.key]:.3f}):'
  return f'{head}\n{draw.describe(rankings.arch_of(made, ranked[0]))}'


def in_common(system: System, made: space.Space, records: Sequence[journal.Record]) -> str:
  """Tables of what kinds of children scored; '' where a system tells none apart."""
  key, _, lower = system.metric
  tables = [
    rankings.table((name, 'children', 'best', 'mean'), rankings.grouped(records, made, key, lower, kind))
    for name, kind in system.views.items()
  ]
  return ''.join(f'\n{table}\n' for table in tables)


def standings(
  system: System,
  cfg: Any,
  data: Any,
  made: space.Space,
  found: Mapping[str, Sequence[journal.Record]],
  known: Mapping[str, Sequence[float]],
) -> str:
  """The table that a result must stand in: the search, its control and yardsticks, on one split and one budget."""
  metric = system.metric
  rows = rankings.standings(found, known, made, metric.key, metric.lower)
  return (
    f'{rankings.table((f"{metric.name}, {system.length(cfg)}", *rankings.HEADER), rows)}\n'
    f'{cfg.dataset}, sha256 {data.sha256[:12]}; seed {cfg.seed}; top 5 and 15: mean over different {system.noun}s; '
    'short budgets favour fast learners'
  )
