"""After a search (Zoph & Le 2017, Sec. 4.2): a small grid on validation, the winner trained to the end and tested.

The same command resumes what was cut off. Examples:
  python -m experiments.retrain --arch=runs/mine/best.json,NASCELL,LSTM --preset=demo
  python -m experiments.retrain --workdir=runs/mine --top=3 --preset=zaremba_small --data_dir=DIR --lr=0.5,1.0
"""

from collections.abc import Callable, Mapping, Sequence
import hashlib
import json
import os
import shutil
import time
from typing import Any, NamedTuple

from absl import flags
import numpy as np
from tqdm import tqdm

from experiments import launch
from experiments import report as report_page
from nas_jax import checkpoint, data, finish, journal, published, report, space
from nas_jax.children import lm
from nas_jax.systems import language, retrain


class Known(NamedTuple):
  """A cell to train."""

  cell: lm.Cell
  arch: space.TreeArch


def own_flags(values: flags.FlagValues) -> None:
  """What retraining takes beside the fields of its config."""
  flags.DEFINE_enum('preset', 'demo', sorted(retrain.PRESETS), 'the config to start from', flag_values=values)
  flags.DEFINE_list('arch', [], 'cells: files as best.json, NASCELL, or LSTM (the standard one)', flag_values=values)
  flags.DEFINE_string('workdir', '', 'folder of a search whose best cells to take', flag_values=values)
  flags.DEFINE_integer('top', 1, 'how many different ones of them', 1, flag_values=values)
  flags.DEFINE_string(
    'results', '', 'folder of results; WORKDIR/retrain-PRESET or runs/retrain-PRESET by default', flag_values=values
  )
  flags.DEFINE_string('data_dir', '', 'folder of data sets', flag_values=values)


def prepare(argv: Sequence[str]) -> Callable[[], None]:
  """Flags, cells, text, sizes and the folder of results."""
  values = launch.parse(argv, __doc__, own_flags, retrain.Config)
  cfg = launch.configure(values, retrain.PRESETS)
  retrain.check(cfg)
  cells = {name: named(name) for name in values.arch} | (best_of(values.workdir, values.top) if values.workdir else {})
  if not cells:
    raise ValueError('no cell is named: give --arch=FILE,... (or NASCELL, LSTM), or --workdir=DIR of a search.')
  text = language.load(cfg, values.data_dir)
  launch.use_all_cores(max(len(retrain.grid(cfg)), cfg.repeats))
  for cell, arch in cells.values():
    for size in cfg.sizes:
      retrain.width(cfg, text, cell, arch, size)
  lm.lay_out(text, cfg.batch, cfg.bptt, cfg.score_batch)  # which checks that there is enough of it
  results = values.results or os.path.join(values.workdir or 'runs', f'retrain-{values.preset}')
  launch.open_workdir(results, cfg)

  def work() -> None:
    run(cfg, text, cells, results)
    if values.workdir:
      report_page.write(values.workdir, report_page.make(values.workdir))

  return work


def named(name: str) -> Known:
  """A cell by its name or file."""
  if name == 'LSTM':
    return Known(lm.lstm(), published.LSTM)  # the standard LSTM ignores the tree
  arch = published.NASCELL if name == 'NASCELL' else launch.read_arch(name, space.tree_from_json)
  return Known(lm.tree(), arch)


def best_of(workdir: str, top: int) -> dict[str, Known]:
  """The `top` different cells of a search that scored best."""
  cell_space = launch.read_arch(os.path.join(workdir, 'best.json'), searched)
  ranked = report.ranking(journal.read(os.path.join(workdir, 'children.jsonl')).values(), cell_space, 'perplexity')
  if len(ranked) < top:
    raise ValueError(f'top (={top}): the search in {workdir} has only {len(ranked)} different cells that trained.')
  return {f'child {r["id"]}': Known(lm.tree(), report.arch_of(cell_space, r)) for r in ranked[:top]}


def searched(text: str) -> space.Space:
  """The space that a best.json was found in. Raises ValueError on a file that is none of tree cells."""
  space.tree_from_json(text)
  return space.tree_cell_space(**json.loads(text)['space'])


def run(cfg: retrain.Config, text: data.Text, cells: Mapping[str, Known], results: str) -> None:
  """Each cell in turn: grid, final trainings, and the table, beside what the folder held of other cells."""
  path = os.path.join(results, 'result.json')
  rows = launch.once(path, lambda: {'rows': [], 'setting': setting(cfg, text)})['rows']
  for name, known in cells.items():
    digest = hashlib.sha256(repr(known.arch).encode()).hexdigest()[:8]
    folder = os.path.join(results, f'{os.path.basename(name).replace(" ", "-")}-{digest}')
    os.makedirs(folder, exist_ok=True)
    found = train_cell(cfg, text, name, known, folder)
    rows = [row for row in rows if row['name'] != name] + found
    launch.write(path, json.dumps({'rows': rows, 'setting': setting(cfg, text)}) + '\n')
  print(f'\n{table(rows)}\n{setting(cfg, text)}')


def table(rows: Sequence[Mapping[str, Any]]) -> str:
  """What came out; `bits` are those of the test split for each token."""
  header = ('cell', 'hidden', 'weights', 'validation', 'test', 'bits', 'trainings', 'settings')
  lines = []
  for row in rows:
    valid, test = float(np.mean(row['valid'])), float(np.mean(row['test']))
    bits = float(np.mean(np.log2(row['test'])))
    lines.append((row['name'], row['hidden'], row['parameters'], valid, test, bits, row['repeats'], row['settings']))
  return report.table(header, lines)


def setting(cfg: retrain.Config, text: data.Text) -> str:
  """What all rows have in common, in words."""
  return (
    f'perplexity of the best of {cfg.epochs} epochs by validation; {cfg.dataset}, sha256 {text.sha256[:12]}; '
    f'{cfg.layers} layers, {cfg.optimizer}, seed {cfg.seed}; means over the trainings'
  )


def train_cell(cfg: retrain.Config, text: data.Text, name: str, known: Known, folder: str) -> list[dict[str, Any]]:
  """The grid at the first size, and the winner at every size: one row each."""
  path, points = os.path.join(folder, 'trainings.json'), retrain.grid(cfg)
  winner, said = points[0], {'epochs': cfg.epochs, 'repeats': cfg.repeats}
  if len(points) > 1:
    stage = Stage(f'{name}: grid', folder, cfg.grid_epochs or cfg.epochs, points, cfg.seed, False)
    task = f'grid at {cfg.sizes[0]}'
    found = launch.once_each(path, {task: lambda: train_stage(cfg, text, known, cfg.sizes[0], stage)})[task]
    winner = points[int(np.argmin(found['valid']))]
  rows = []
  for size in cfg.sizes:
    stage = Stage(f'{name}: {size}', folder, cfg.epochs, [winner] * cfg.repeats, cfg.seed + 1, True)
    settings = retrain.describe(winner)
    task = f'{size}, {settings}'
    found = launch.once_each(path, {task: lambda: train_stage(cfg, text, known, size, stage)})[task]  # noqa: B023
    rows.append({'name': name, 'settings': settings} | said | found)
  return rows


class Stage(NamedTuple):
  """Some trainings side by side."""

  name: str
  folder: str
  epochs: int
  points: list[retrain.Point]
  seed: int
  test: bool  # whether to score the test split, which no choice may look at


def train_stage(cfg: retrain.Config, text: data.Text, known: Known, size: str, stage: Stage) -> dict[str, Any]:
  """Trains all points of a stage to the end, going on from its last epoch if it was cut off."""
  made = retrain.model(cfg, text, *known, size, stage.epochs)
  progress, archs, keys = retrain.begin(made, stage.points, stage.seed, stage.epochs)
  running = os.path.join(stage.folder, 'running')
  progress = checkpoint.restore(running, progress) or progress
  save, close = checkpoint.saver(running, keep=1)
  m, begun = len(stage.points), time.perf_counter()
  with tqdm(total=stage.epochs, initial=int(progress.done), desc=stage.name, unit='epoch') as bar:

    def keep(now: finish.Progress) -> None:
      save(int(now.done), now)
      scores = np.asarray(now.curve)[int(now.done) - 1, :m]
      bar.set_postfix(perplexity=' '.join(f'{score:.2f}' for score in scores), refresh=False)
      bar.update(int(now.done) - bar.n)

    progress = finish.run(made.programs, progress, archs, keys, made.data, 'perplexity', keep)
  close()
  curve = np.asarray(progress.curve)[:, :m]
  found = {
    'hidden': made.hidden,
    'parameters': made.weights,
    'valid': curve.min(0).tolist(),
    'curve': curve.T.tolist(),
    'seconds': time.perf_counter() - begun,
  }
  if stage.test:
    found['test'] = finish.score(made.programs, progress, archs, made.test, 'perplexity', m).tolist()
  shutil.rmtree(running)
  return found


if __name__ == '__main__':
  launch.main(prepare)
