"""After a search (Zoph & Le 2017, Sec. 4.1, 4.2): a small grid on validation, the winner trained to the end and tested.

The same command resumes what was cut off. Examples:
  python -m experiments.retrain --arch=runs/mine/best.json,NASCELL,ENAS_RNN,LSTM --preset=demo
  python -m experiments.retrain --workdir=runs/mine --top=3 --preset=zaremba_small --data_dir=DIR --lr=0.5,1.0
"""

from collections.abc import Mapping, Sequence
import hashlib
import json
import os
import shutil
import time
from typing import Any, NamedTuple

from absl import flags
import jax
import numpy as np
from tqdm import tqdm

from experiments import report as report_page
from experiments.common import launch, workdirs
from experiments.common.systems import SYSTEMS, System
from nas_jax import space
from nas_jax.report import rankings
from nas_jax.search import journal
from nas_jax.training import checkpoint, full_training


def own_flags(values: flags.FlagValues) -> None:
  """What retraining takes beside the fields of its configs."""
  presets = sorted({name for system in SYSTEMS for name in system.retrain.PRESETS})
  known = ', '.join(dict.fromkeys(name for system in SYSTEMS for name in system.retrain.KNOWN))
  flags.DEFINE_enum('preset', 'demo', presets, 'the config to start from', flag_values=values)
  flags.DEFINE_list('arch', [], f'what to train: files as best.json, or {known}', flag_values=values)
  flags.DEFINE_string('workdir', '', 'folder of a search whose best children to take', flag_values=values)
  flags.DEFINE_integer('top', 1, 'how many different ones of them', 1, flag_values=values)
  flags.DEFINE_string(
    'results', '', 'folder of results; WORKDIR/retrain-PRESET or runs/retrain-PRESET by default', flag_values=values
  )
  flags.DEFINE_string('data_dir', '', 'folder of data sets', flag_values=values)


def prepare(argv: Sequence[str]) -> launch.Work:
  """Flags, architectures, data, sizes and the folder of results."""
  values = launch.parse(argv, __doc__, own_flags, *(system.retrain.Config for system in SYSTEMS))
  sources = [*values.arch, *([os.path.join(values.workdir, 'best.json')] if values.workdir else [])]
  if not sources:
    raise ValueError('nothing is named to train: give --arch=FILE,... (or a known name), or --workdir=DIR of a search.')
  systems = {source: system_of(source) for source in sources}
  system = agreed(systems)
  cfg = configure(values, system)
  archs = {name: named(name, systems[name]) for name in values.arch}
  if values.workdir:
    archs |= best_of(values.workdir, values.top, systems[sources[-1]])
  data = system.load(cfg, values.data_dir)
  launch.set_up_jax(max(len(system.retrain.grid(cfg)), cfg.repeats))
  for arch in archs.values():
    system.retrain.validate(cfg, data, arch)
  results = values.results or os.path.join(values.workdir or 'runs', f'retrain-{values.preset}')
  lock = workdirs.lock(results)
  workdirs.open_config(results, cfg)

  def work(check: launch.Check) -> None:
    with lock:
      run(system, cfg, data, archs, results, check)
    if values.workdir:
      report_page.write(values.workdir, report_page.make(values.workdir))

  return work


def system_of(source: str) -> System:
  """The system of a known name, or of the architecture in a file."""
  for system in SYSTEMS:
    if source in system.retrain.KNOWN:
      return system
  kind = launch.read_arch(source, space.kind_of)
  for system in SYSTEMS:
    if system.kind == kind:
      return system
  raise ValueError(f'{source} is of kind {kind!r}: want one of {", ".join(system.kind for system in SYSTEMS)}.')


def agreed(systems: Mapping[str, System]) -> System:
  """The first system, by what is of it; the others must be retrained by the same module, for one table."""
  (first, chosen), *others = systems.items()
  for source, system in others:
    if system.retrain is not chosen.retrain:
      raise ValueError(f'{source} is a {system.noun}, {first} a {chosen.noun}: train those of one kind at a time.')
  return chosen


def configure(values: flags.FlagValues, system: System) -> Any:
  """The config of the chosen preset with the given flags laid over it, checked."""
  retrain = system.retrain
  launch.own_preset(values, retrain.PRESETS, f'{system.noun}s')
  launch.own_fields(values, retrain.Config, {f'{other.noun}s': other.retrain.Config for other in SYSTEMS})
  cfg = launch.configure(values, retrain.PRESETS)
  retrain.check(cfg)
  return cfg


def named(name: str, system: System) -> Any:
  """An architecture by its name or file."""
  return system.retrain.KNOWN.get(name) or launch.read_arch(name, system.from_json)


def best_of(workdir: str, top: int, system: System) -> dict[str, Any]:
  """The `top` different children of a search that scored best, or, if they shared weights, of what it derived."""
  made = launch.read_arch(os.path.join(workdir, 'best.json'), space.space_of)
  path, who = os.path.join(workdir, 'derived.json'), 'derived'
  if os.path.exists(path):
    records = launch.read_arch(path, json.loads)
  else:
    records, who = journal.read(os.path.join(workdir, 'children.jsonl')).values(), 'child'
  ranked = rankings.ranking(records, made, system.metric.key, system.metric.lower)
  if len(ranked) < top:
    found = f'only {len(ranked)} different {system.noun}s that trained'
    raise ValueError(f'top (={top}): the search in {workdir} has {found}.')
  return {f'{who} {record["id"]}': rankings.arch_of(made, record) for record in ranked[:top]}


def run(
  system: System, cfg: Any, data: Any, archs: Mapping[str, Any], results: str, check: launch.Check = lambda: None
) -> None:
  """Each in turn: grid, final trainings, and the table, beside what the folder held of others."""
  path, setting = os.path.join(results, 'result.json'), system.retrain.setting(cfg, data)
  rows = workdirs.cached(path, lambda: {'rows': [], 'setting': setting})['rows']
  for name, arch in archs.items():
    digest = hashlib.sha256(repr(arch).encode()).hexdigest()[:8]
    folder = os.path.join(results, f'{os.path.basename(name).replace(" ", "-")}-{digest}')
    os.makedirs(folder, exist_ok=True)
    found = train_child(system, cfg, data, name, arch, folder, check)
    rows = [row for row in rows if row['name'] != name] + found
    workdirs.write(path, json.dumps({'rows': rows, 'setting': setting}) + '\n')
  print(f'\n{table(rows, system)}\n{setting}')


def table(rows: Sequence[Mapping[str, Any]], system: System) -> str:
  """What came out; bits are those of the test split for each token."""
  metric = system.retrain.METRIC
  header = [system.noun, 'size', 'weights', f'validation {metric}', f'test {metric}', 'trainings', 'settings']
  lines = []
  for row in rows:
    valid = float(np.mean(row['valid'])) if row['valid'] else float('nan')
    scores = [valid, float(np.mean(row['test']))]
    lines.append([row['name'], row['size'], row['parameters'], *scores, row['repeats'], row['settings']])
    if metric == 'perplexity':
      lines[-1].insert(5, float(np.mean(np.log2(row['test']))))
  if metric == 'perplexity':
    header.insert(5, 'bits')
  return rankings.table(header, lines)


def train_child(
  system: System, cfg: Any, data: Any, name: str, arch: Any, folder: str, check: launch.Check
) -> list[dict[str, Any]]:
  """The grid at the first size, and the winner at every size: one row each."""
  retrain = system.retrain
  path, points, sizes = os.path.join(folder, 'trainings.json'), retrain.grid(cfg), retrain.sizes(cfg)
  winner, said, validated = points[0], {'epochs': cfg.epochs, 'repeats': cfg.repeats}, list[float]()

  def trained(task: str, size: str, stage: Stage) -> dict[str, Any]:
    return workdirs.cached_each(path, {task: lambda: train_stage(system, cfg, data, arch, size, stage, check)})[task]

  if len(points) > 1:
    stage = Stage(f'{name}: grid', folder, cfg.grid_epochs or cfg.epochs, points, cfg.seed, False)
    found = trained(f'grid at {sizes[0]}', sizes[0], stage)
    best = int(np.argmin(found['valid']))
    winner, validated = points[best], [found['valid'][best]]
  rows, settings = [], retrain.describe(winner)
  for size in sizes:
    stage = Stage(f'{name}: {size}', folder, cfg.epochs, [winner] * cfg.repeats, cfg.seed + 1, True)
    row = {'name': name, 'settings': settings} | said | trained(f'{size}, {settings}', size, stage)
    # Who trained on the validation images has no score there but the grid's.
    rows.append(row | ({} if 'valid' in row else {'valid': validated if size == sizes[0] else []}))
  return rows


class Stage(NamedTuple):
  """Some trainings side by side."""

  name: str
  folder: str
  epochs: int
  points: Sequence[Any]
  seed: int
  final: bool  # whether to score the test split, which no choice may look at


def train_stage(
  system: System, cfg: Any, data: Any, arch: Any, size: str, stage: Stage, check: launch.Check
) -> dict[str, Any]:
  """Trains all points of a stage to the end, going on from its last epoch if it was cut off."""
  task = system.retrain.task(cfg, data, arch, size, stage.epochs, stage.final)
  m, begun = len(stage.points), time.perf_counter()
  keys = jax.random.split(jax.random.key(stage.seed), m)
  progress, settings, keys = full_training.start(task, system.retrain.hyperparameters(stage.points), keys, stage.epochs)
  running = os.path.join(stage.folder, 'running')
  progress = checkpoint.restore(running, progress) or progress
  save, close = checkpoint.saver(running, keep=1)
  with tqdm(total=stage.epochs, initial=int(progress.done), desc=stage.name, unit='epoch') as bar:

    def keep(now: full_training.Progress) -> None:
      save(int(now.done), now)
      scores = np.asarray(now.curve)[int(now.done) - 1, :m]
      bar.set_postfix({system.retrain.METRIC: ' '.join(rankings.word(float(score)) for score in scores)}, refresh=False)
      bar.update(int(now.done) - bar.n)

    try:
      progress = full_training.run(task, progress, settings, keys, keep, check)
    finally:
      close()
  curve = np.asarray(progress.curve)[:, :m]
  found = {'size': task.size, 'parameters': task.weights, 'curve': curve.T.tolist()}
  if task.choose:
    found['valid'] = curve.min(0).tolist()
  if stage.final:
    found['test'] = full_training.score(task, progress, settings, m).tolist()
  shutil.rmtree(running)
  return found | {'seconds': time.perf_counter() - begun}


if __name__ == '__main__':
  launch.main(prepare)
