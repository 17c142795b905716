"""Measures which short training of children ranks cells as full training does.

The cells are random ones, the best children of finished searches, and known ones. Each cell is trained to the end by
the recipe of `retrain`: over a grid of settings, and then several times with its best settings. Each is also trained as
a child, with several budgets and recipes. For each of these short trainings three measures of agreement with the full
training are printed: Spearman's rank correlation over all cells, the same within the best quarter, and the regret. The
regret is how much worse than the best cell, after full training, the cell is that the short training ranks first.

Each training is written to trainings.jsonl when its batch ends; the same command resumes from there. The tables are in
summary.txt, and that of the short trainings is also in ranking.json and in the report of each search of --workdirs.
Example:
  python -m experiments.rank_children --workdirs=runs/cell_search-demo --random=24 --top=24
"""

from collections.abc import Mapping, Sequence
import json
import os
import time
from typing import Any

from absl import flags
import jax
import numpy as np

from experiments import retrain
from experiments.common import arch_files, arguments, launch, reports, workdirs
from experiments.common.systems import CELL
from nas_jax import files, published, space, words
from nas_jax.files import is_count, is_number
from nas_jax.report import rankings, reliability
from nas_jax.search import journal
from nas_jax.systems import cell, rank_cell, retrain_cell
from nas_jax.systems.rank_cell import FINAL, SEARCH, Cells, Config, Job, Line, Programs
from nas_jax.training import evaluators

TRAINING: files.Schema = {
  'recipe': str,
  'cell': str,
  'point': str,
  'steps': is_count,
  'training': is_count,
  'perplexity': (is_number, None),
  'curve': [(is_number, None)],
  'failed': object,
}  # of a line of trainings.jsonl


def own_flags(values: flags.FlagValues) -> None:
  """Defines the flags of this launcher that are no fields of its config."""

  def text(name: str, help: str, default: str = '') -> None:
    flags.DEFINE_string(name, default, help, flag_values=values)

  def number(name: str, default: int, help: str) -> None:
    flags.DEFINE_integer(name, default, help, 0, flag_values=values)

  flags.DEFINE_enum(
    'preset',
    'demo',
    sorted(rank_cell.PRESETS),
    'named configuration that the other flags are laid over',
    flag_values=values,
  )
  flags.DEFINE_list('workdirs', [], 'folders of cell searches whose best children to take', flag_values=values)
  number('top', 24, 'how many different children of each of these folders to take')
  number('random', 24, 'how many random cells to take')
  flags.DEFINE_list('arch', ['NASCELL', 'LSTM'], 'known cells to take: NASCELL, LSTM or files', flag_values=values)
  text('cells', 'file of cells to train instead of all these, as cells.json of an earlier run')
  text('results', 'folder of results, in which a run resumes; runs/rank_children-PRESET by default')
  text('data_dir', 'folder that data sets are read from')
  number('at_once', 0, 'trainings in one program; 0 for the number of devices on a CPU, else 128')
  flags.DEFINE_boolean('train', True, 'train what is not trained yet; if not, only report', flag_values=values)


def prepare(argv: Sequence[str]) -> launch.Work:
  """Reads flags, text and cells, and locks and opens the folder of results."""
  values = arguments.parse(argv, __doc__ or '', own_flags, {'': rank_cell.PRESETS})
  cfg = arguments.configure(values, rank_cell.PRESETS)
  rank_cell.check(cfg)
  results = values.results or f'runs/rank_children-{values.preset}'
  cfg = workdirs.settled(results, cfg)
  launch.set_up_jax()
  launch.check_processes()
  text = CELL.load(cfg, values.data_dir)
  workdirs.check_data(results, text.sha256, 'results')
  cells = read_cells(values.cells) if values.cells else gather(cfg, values)
  space.stack(list(cells.values()))  # raises ValueError if the cells are not of one size
  made = {name: rank_cell.programs(cfg, name, text, cells) for name in dict.fromkeys((FINAL, *cfg.recipes))}
  lock = workdirs.lock(results, 'results')
  workdirs.open_config(results, cfg, 'results')
  workdirs.note_data(results, text.sha256)
  written = {name: json.loads(arch_json(arch)) for name, arch in cells.items()}
  if workdirs.cached(os.path.join(results, 'cells.json'), lambda: written) != written:
    raise ValueError(f'results (={results!r}) holds trainings of other cells: take another folder.')
  m = values.at_once or (len(jax.devices()) if jax.default_backend() == 'cpu' else 128)

  def work(check: launch.Check) -> None:
    with lock:
      path = os.path.join(results, 'trainings.jsonl')
      done = read(path)
      if values.train:
        train_all(cfg, made, cells, done, path, m, check)
      found = compared(cfg, made, cells, done)
      found['setting'] = (
        f'{retrain_cell.setting(cfg, text)}. Recipe {FINAL!r} is that of the full training, {SEARCH!r} that of the '
        f'search preset {cfg.search_preset}'
      )
      shown = summary(found)
      workdirs.write(os.path.join(results, 'summary.txt'), shown + '\n')
      print(shown)
      for folder in [results, *([] if values.cells else values.workdirs)] if len(found['best']) > 1 else []:
        workdirs.write_json(os.path.join(folder, 'ranking.json'), found)
        if folder != results:
          reports.write(folder, reports.make(folder))

  return work


def arch_json(arch: space.TreeArch) -> str:
  """Returns a cell as JSON that `space.from_json` reads."""
  return json.dumps({'kind': 'tree_cell', 'arch': arch._asdict()})


def read_cells(path: str) -> Cells:
  """Returns the cells that an earlier run wrote. Raises ValueError if the file has none."""
  entries = arch_files.read_file(path, json.loads)
  if not isinstance(entries, dict) or not entries:
    raise ValueError(f'{path}: want an object of names and cells, as cells.json of an earlier run.')
  return {name: space.from_json(json.dumps(entry), 'tree_cell') for name, entry in entries.items()}


def gather(cfg: Config, values: flags.FlagValues) -> Cells:
  """Returns the cells that the flags name, without duplicates. Raises ValueError if there are none.

  Random cells are drawn from the space of the search's preset. Cells of a search are called by the name of its folder,
  or by the whole path if several folders have that name.
  """
  made = cell.make_space(cell.PRESETS[cfg.search_preset]())
  batch = evaluators.random_batch(made, jax.random.fold_in(jax.random.key(cfg.seed), 1), values.random)
  found = {f'random {k}': arch for k, arch in enumerate(space.unstack(batch.archs) if values.random else [])}
  names = [os.path.basename(os.path.normpath(folder)) for folder in values.workdirs]
  for folder, name in zip(values.workdirs, names, strict=True):
    own = name if names.count(name) == 1 else folder
    found |= {f'{own} {who}': arch for who, arch in retrain.best_of(folder, values.top, CELL).items()}
  known = {'NASCELL': published.NASCELL, 'LSTM': published.LSTM}
  for name in values.arch:
    found |= arch_files.named_archs(name, known, CELL.kind)
  different = {space.canonical(arch): name for name, arch in reversed(found.items())}
  if not found:
    raise ValueError('no cells to train: give --random, --workdirs, --arch or --cells.')
  return {name: arch for name, arch in found.items() if different[space.canonical(arch)] == name}


def read(path: str) -> dict[Job, Line]:
  """Returns the trainings in trainings.jsonl. Damaged lines are moved aside, with a message."""
  if count := journal.drop_damaged_lines(path, os.path.join(os.path.dirname(path), 'damaged'), TRAINING):
    print(f'{path}: {words.counted(count, "damaged line")} moved aside.')
  lines = journal.read_lines(path, TRAINING)
  return {Job(*(line[name] for name in Job._fields)): line for line in lines}


def train_all(
  cfg: Config,
  made: Mapping[str, Programs],
  cells: Cells,
  done: dict[Job, Line],
  path: str,
  m: int,
  check: launch.Check,
) -> None:
  """Runs the missing trainings, `m` at once: the grid, the children by each recipe, the repeats.

  Each result is appended to the file `path` and added to `done`.
  """
  write = journal.writer(path)

  def run(name: str, jobs: Sequence[Job]) -> None:
    programs = made[name]
    left = [job for job in jobs if job not in done]
    for steps in dict.fromkeys(job.steps for job in left):
      same = [job for job in left if job.steps == steps]
      for first in range(0, len(same), m):
        begun, part = time.perf_counter(), same[first : first + m]
        lines = rank_cell.train(cfg, programs, cells, part, m, check)
        seconds = time.perf_counter() - begun
        write([line | {'seconds': round(seconds / len(part), 3)} for line in lines])
        done.update(zip(part, lines, strict=True))
        print(f'{name}, {steps} steps: {first + len(part)} of {len(same)} trained, {seconds:.1f} s', flush=True)

  run(FINAL, rank_cell.grid_jobs(cfg, made[FINAL], cells))
  for name in cfg.recipes:
    run(name, rank_cell.child_jobs(cfg, name, made[name], cells))
  run(FINAL, rank_cell.repeat_jobs(cfg, made[FINAL], cells, done))


def compared(cfg: Config, made: Mapping[str, Programs], cells: Cells, done: Mapping[Job, Line]) -> dict[str, Any]:
  """Returns the comparison of each short training with the full ones.

  Returns:
    The contents of ranking.json except its 'setting'. 'cells': their number. 'unfinished': the number of those whose
    full training is not finished. 'failed': the number of those that failed by all settings of it. 'best': the best ten
    by it. 'rows': one for each short training, with the fields of `reliability.Agreement`.
  """
  sure = rank_cell.full_scores(cfg, made[FINAL], cells, done)
  best = [k for k in np.argsort(sure) if np.isfinite(sure[k])][:10]
  names, rows = list(cells), list[dict[str, Any]]()
  for one in rank_cell.candidates(cfg, made, cells, done):
    found = reliability.agreement(sure, one.scores)
    steps = {'steps': one.steps, 'steps_each': one.trainings * one.steps}
    rows.append({'recipe': one.recipe, 'settings': one.points, **steps, **found._asdict()})
  undone = {job.cell for job in rank_cell.grid_jobs(cfg, made[FINAL], cells) if job not in done}
  return {
    'cells': len(cells),
    'unfinished': len(undone),
    'failed': sum(name not in undone for name, score in zip(cells, sure) if not np.isfinite(score)),
    'best': [{'cell': names[k], 'perplexity': float(sure[k])} for k in best],
    'rows': rows,
  }


def summary(found: Mapping[str, Any]) -> str:
  """Returns what `compared` has found as tables."""
  if not found['best']:
    return 'no cell is trained to the end yet'
  header = ('recipe', 'settings', 'steps', 'steps a child', 'failed', 'all', 'best quarter', 'regret', 'best of 5')
  best = rankings.table(('cell', 'perplexity'), [tuple(one.values()) for one in found['best']])
  return (
    f'{words.counted(found["cells"], "cell")}: the grid of {found["unfinished"]} is not finished, {found["failed"]} '
    f'failed by all settings of it. The best of them by validation perplexity after full training:\n{best}\n\n'
    f'{rankings.table(header, [tuple(row.values()) for row in found["rows"]])}\n'
    "all, best quarter: Spearman's rank correlation with the full training; failed: children that failed, which rank "
    'last; regret: how much worse the chosen cell is than the best one after full training, relatively'
  )


if __name__ == '__main__':
  launch.main(prepare)
