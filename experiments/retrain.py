"""Trains architectures to the end after a search, and tests them (Zoph & Le 2017, Sec. 4.1 and 4.2).

A small grid of hyperparameters is compared on the validation split. The architecture is then trained with the best
point of the grid, at one or more sizes and one or more times, and scored on the test split. The same command resumes
an interrupted run. Examples:
  python -m experiments.retrain --arch=runs/mine/best.json,NASCELL,ENAS_RNN,LSTM --preset=demo
  python -m experiments.retrain --workdir=runs/mine --top=3 --preset=zaremba_small --data_dir=DIR --lr=0.5,1.0
"""

from collections.abc import Mapping, Sequence
import hashlib
import math
import os
import time
from typing import Any, NamedTuple

from absl import flags
import jax
import numpy as np

from experiments import report as report_page
from experiments.common import epochs, launch, models, quick_end, systems, workdirs
from experiments.common import top as top_lib
from experiments.common.progress import Advance, Progress
from experiments.common.systems import SYSTEMS, System, for_config
from nas_jax import config, space
from nas_jax.report import rankings
from nas_jax.systems import retrain
from nas_jax.training import checkpoint, full_training

RECIPES = {system.name: system.retrain for system in SYSTEMS if system.retrain}


Tried = Mapping[Any, float]  # the validation loss of each point of a grid that was trained


def _unseen(*_: Any) -> None:
  """Takes the progress and shows nothing."""


def own_flags(values: flags.FlagValues) -> None:
  """Defines the flags of retraining that are no fields of its configs."""
  presets = sorted({name for recipe in RECIPES.values() for name in recipe.presets})
  flags.DEFINE_enum(
    'preset', 'demo', presets, 'named configuration that the other flags are laid over', flag_values=values
  )
  known = ', '.join(known_archs())
  flags.DEFINE_list(
    'arch', [], f'architectures to train: files such as a best.json or a top.json, or {known}', flag_values=values
  )
  flags.DEFINE_enum(
    'system',
    '',
    ['', *RECIPES],
    'what cells are trained for where several systems search for them; by default the system of --workdir, else cell: '
    'language models',
    flag_values=values,
  )
  flags.DEFINE_string('workdir', '', 'folder of a search whose best children to train', flag_values=values)
  flags.DEFINE_integer('top', 1, 'how many different children of --workdir to train', 1, flag_values=values)
  flags.DEFINE_string(
    'results', '', 'folder of results; WORKDIR/retrain-PRESET or runs/retrain-PRESET by default', flag_values=values
  )
  flags.DEFINE_string('data_dir', '', 'folder that data sets are read from', flag_values=values)


def prepare(argv: Sequence[str]) -> launch.Work:
  """Reads flags, architectures and data, and locks and opens the folder of results."""
  alike: dict[type, list[str]] = {}  # systems whose architectures are retrained by one config
  for name, recipe in RECIPES.items():
    alike.setdefault(recipe.config, []).append(name)
  configs = {', '.join(names): RECIPES[names[0]].presets for names in alike.values()}
  values = launch.parse(argv, __doc__, own_flags, configs)
  sources = [*values.arch, *([os.path.join(values.workdir, 'best.json')] if values.workdir else [])]
  if not sources:
    raise ValueError('nothing is named to train: give --arch=FILE,... (or a known name), or --workdir=DIR of a search.')
  archs = {name: arch for given in values.arch for name, arch in launch.named_archs(given, known_archs()).items()}
  wanted = values.system or searched_by(values.workdir)
  chosen = {source: system_of(source, wanted) for source in sources}
  system = agreed(chosen)
  if values.system and RECIPES[values.system] is not RECIPES[system.name]:
    raise ValueError(f'system (={values.system}) does not train {sources[0]}, a {system.noun} of {system.launcher}.')
  cfg = configure(values, system)
  if values.workdir:
    archs |= best_of(values.workdir, values.top, chosen[sources[-1]])
  system = for_config(system, cfg)
  recipe = recipe_of(system)
  results = values.results or os.path.join(values.workdir or 'runs', f'retrain-{values.preset}')
  cfg = workdirs.settled(results, cfg)
  data = system.load(cfg, values.data_dir)
  launch.set_up_jax(max(len(retrain.grid(recipe.point, cfg)), cfg.repeats))
  launch.check_processes()
  for arch in archs.values():
    recipe.validate(cfg, data, arch)
  lock = workdirs.lock(results, 'results')
  epochs.open_results(results, cfg)

  def work(check: launch.Check) -> None:
    with lock, quick_end.while_compiling(set()):  # finished epochs are saved; an interrupted one is trained again
      run(system, cfg, data, archs, results, check)
    if values.workdir:
      report_page.write(values.workdir, report_page.make(values.workdir))

  return work


def known_archs() -> dict[str, retrain.Arch]:
  """Returns the published architectures of all systems, by name."""
  return {name: arch for recipe in RECIPES.values() for name, arch in recipe.known.items()}


def searched_by(workdir: str) -> str:
  """Returns the name of the system whose search a workdir holds, or '' if it is not known."""
  saved, origin = (workdirs.peek(os.path.join(workdir, name)) or {} for name in ('config.json', 'origin.json'))
  held = systems.system_of(saved, origin) if saved else None
  return held.name if held else ''


def system_of(source: str, wanted: str = '') -> System:
  """Returns the system that retrains `source`, a known architecture's name or a file of architectures.

  Where several systems do, it is the one named `wanted`, or else the first. Raises ValueError if none does.
  """
  able = [system for system in SYSTEMS if system.name in RECIPES]
  found = [system for system in able if source in RECIPES[system.name].known]
  if not found:
    kinds = set(launch.read_archs(source, space.kind_of).values())
    found = [system for system in able if kinds == {system.kind}]
    if not found:
      known = ', '.join(dict.fromkeys(system.kind for system in able))
      raise ValueError(f'{source} is of kind {" and ".join(sorted(map(repr, kinds)))}: want one of {known}.')
  return next((system for system in found if system.name == wanted), found[0])


def agreed(systems: Mapping[str, System]) -> System:
  """Returns the system of the first source. Raises ValueError if another source is retrained by another recipe."""
  (first, chosen), *others = systems.items()
  for source, system in others:
    if RECIPES[system.name] is not RECIPES[chosen.name]:
      raise ValueError(f'{source} is a {system.noun}, {first} a {chosen.noun}: train those of one kind at a time.')
  return chosen


def recipe_of(system: System) -> retrain.Recipe:
  """Returns the recipe of a system that has one."""
  assert system.retrain is not None, system.name
  return system.retrain


def configure(values: flags.FlagValues, system: System) -> retrain.Config:
  """Returns the config of the chosen preset, overridden by the given flags. Raises ValueError if it is invalid."""
  recipe = RECIPES[system.name]
  launch.own_preset(values, recipe.presets, f'{system.noun}s')
  others = {f'{other.noun}s of {other.launcher}': other.retrain.config for other in SYSTEMS if other.retrain}
  launch.own_fields(values, recipe.config, others)
  cfg = launch.configure(values, recipe.presets)
  recipe.check(cfg)
  return cfg


def best_of(workdir: str, top: int, system: System) -> dict[str, retrain.Arch]:
  """Returns the best `top` distinct architectures of a search, by names such as 'child 12'.

  For a search with shared weights these are the best architectures derived at its end; for other searches, the best
  children. Children of a longer rung come first. Raises ValueError if the search has fewer.
  """
  made = launch.read_file(os.path.join(workdir, 'best.json'), space.space_of)
  cfg = config.from_json(system.config, workdirs.peek(os.path.join(workdir, 'config.json')) or {})
  system = for_config(system, cfg)
  who, ranked = top_lib.ranked(workdir, system, cfg, made)
  if len(ranked) < top:
    found = f'only {len(ranked)} different {system.noun}s that trained'
    raise ValueError(f'top (={top}): the search in {workdir} has {found}.')
  return {f'{who} {record["id"]}': rankings.arch_of(made, record) for record in ranked[:top]}


def run(
  system: System,
  cfg: retrain.Config,
  data: Any,
  archs: Mapping[str, retrain.Arch],
  results: str,
  check: launch.Check = lambda: None,
) -> None:
  """Retrains architectures one by one, writes result.json, and prints the table of all results in the folder."""
  path, setting = os.path.join(results, 'result.json'), recipe_of(system).setting(cfg, data)
  rows = (workdirs.read(path) or {'rows': []})['rows']
  if shorter := [row['name'] for row in rows if row['epochs'] < cfg.epochs and row['name'] not in archs]:
    print(f'not in the table, as they have fewer epochs: {", ".join(dict.fromkeys(shorter))}; name them to go on')
  rows = [row for row in rows if row['epochs'] == cfg.epochs]
  points = len(retrain.grid(recipe_of(system).point, cfg))
  each = _epochs_of_grid(cfg, points) * (points > 1) + _epochs_at_all_sizes(system, cfg)
  with Progress().phase('retraining', len(archs) * each, 'epochs') as advance:
    for name, arch in archs.items():
      folder = _folder(results, name, arch)
      found = retrain_arch(recipe_of(system), cfg, data, name, arch, folder, check, advance)
      rows = [row for row in rows if row['name'] != name] + found
      workdirs.write_losses(path, {'rows': rows, 'setting': setting})
  print(f'\n{table(rows, system)}\n{setting}\nresults and models in {results}')


def epochs_of_choice(system: System, cfg: retrain.Config, candidates: int, groups: int) -> int:
  """Returns the total number of epochs that `choose` trains, counting at most one extension of each grid."""
  points, more = len(retrain.grid(recipe_of(system).point, cfg)), min(cfg.extend_grid, 1)
  of_each = _epochs_of_grid(cfg, more) + _epochs_at_all_sizes(system, cfg)
  return candidates * _epochs_of_grid(cfg, points) + groups * of_each


def _epochs_of_grid(cfg: retrain.Config, points: int) -> int:
  return points * (cfg.grid_epochs or cfg.epochs)


def _epochs_at_all_sizes(system: System, cfg: retrain.Config) -> int:
  return len(recipe_of(system).sizes(cfg)) * cfg.repeats * cfg.epochs


def choose(
  system: System,
  cfg: retrain.Config,
  data: Any,
  groups: Mapping[str, Mapping[str, retrain.Arch]],
  results: str,
  check: launch.Check = lambda: None,
  advance: Advance = _unseen,
) -> dict[str, Any]:
  """Trains the grid of every architecture, retrains the best of each group by validation, and writes result.json.

  Architectures of a group are compared only by the points of the grid. The grid is then extended for the best one.

  Args:
    system: of the architectures.
    cfg: of its recipe.
    data: as the system's `load` returns it.
    groups: architectures by name, for each group; an empty group gives no row.
    results: the folder of results. Trainings that are finished there are not repeated.
    check: raises `Stopped` if the process was asked to end.
    advance: called after each epoch with the number of trainings in it.

  Returns:
    The contents of result.json: `rows` of the chosen architectures, in the order of groups; their `setting`; and the
    `candidates` of each group, as the best validation loss in the grid by name.
  """
  recipe, grids = recipe_of(system), dict[str, Mapping[str, Tried]]()
  first: dict[str, str] = {}  # the name under which an architecture is trained; several groups may hold the same one

  def folder(name: str, arch: retrain.Arch) -> str:
    return _folder(results, first.setdefault(repr(arch), name), arch)

  for group, archs in groups.items():
    grids[group] = {
      name: train_grid(recipe, cfg, data, name, arch, folder(name, arch), check, advance)
      for name, arch in archs.items()
    }
  candidates = {group: {name: min(tried.values()) for name, tried in found.items()} for group, found in grids.items()}
  rows = list[dict[str, Any]]()
  for group, archs in groups.items():
    if archs:
      name = min(archs, key=candidates[group].__getitem__)
      place, known = folder(name, archs[name]), grids[group][name]
      rows += retrain_arch(recipe, cfg, data, name, archs[name], place, check, advance, known)
  result = {'rows': rows, 'setting': recipe_of(system).setting(cfg, data), 'candidates': candidates}
  workdirs.write_losses(os.path.join(results, 'result.json'), result)
  return result


def _folder(results: str, name: str, arch: retrain.Arch) -> str:
  """Returns the path of the folder for an architecture's trainings, and creates the folder if it is missing."""
  digest = hashlib.sha256(repr(arch).encode()).hexdigest()[:8]
  folder = os.path.join(results, f'{os.path.basename(name).replace(" ", "-")}-{digest}')
  os.makedirs(folder, exist_ok=True)
  return folder


def candidates(result: Mapping[str, Any], system: System) -> str:
  """Returns a line with the candidates of each group of several and their validation losses, as `choose` found them."""
  found = [
    f'{name}: ' + ', '.join(f'{who.removeprefix(name).strip()} {rankings.word(loss)}' for who, loss in losses.items())
    for name, losses in result['candidates'].items()
    if len(losses) > 1
  ]
  return f'validation {recipe_of(system).metric} of the candidates; ' + '; '.join(found) if found else ''


def table(rows: Sequence[Mapping[str, Any]], system: System) -> str:
  """Returns the results as a table, with means and standard deviations over trainings.

  'multiply-adds' are for one image or token. 'bits' are bits per token: the mean of log2 of the test perplexity.
  """
  metric = recipe_of(system).metric
  header = [
    system.noun,
    'size',
    'weights',
    'multiply-adds',
    f'validation {metric}',
    f'test {metric}',
    'trainings',
    'settings',
  ]
  lines = []
  for row in rows:
    scores = [rankings.spread(row['valid']), rankings.spread(row['test'])]
    costs = [row['parameters'], row.get('multiply_adds', '')]
    lines.append([row['name'], row['size'], *costs, *scores, row['repeats'], row.get('settings', '')])
    if metric == 'perplexity':
      lines[-1].insert(6, float(np.mean(np.log2(row['test']))))
  if metric == 'perplexity':
    header.insert(6, 'bits')
  return rankings.table(header, lines)


def train_grid(
  recipe: retrain.Recipe,
  cfg: retrain.Config,
  data: Any,
  name: str,
  arch: retrain.Arch,
  folder: str,
  check: launch.Check,
  advance: Advance = _unseen,
) -> Tried:
  """Trains all points of the grid at the first size; returns the validation loss of each."""
  points, size = retrain.grid(recipe.point, cfg), recipe.sizes(cfg)[0]
  stage = Stage(f'{name}: grid', size, cfg.grid_epochs or cfg.epochs, points, cfg.seed, False, (), advance)
  found = _train_once(recipe, cfg, data, arch, f'grid at {size}', stage, folder, check)
  return dict(zip(points, found['valid'], strict=True))


def extend_grid(
  recipe: retrain.Recipe,
  cfg: retrain.Config,
  data: Any,
  name: str,
  arch: retrain.Arch,
  folder: str,
  check: launch.Check,
  advance: Advance,
  tried: Tried,
) -> tuple[Any, float]:
  """Adds up to `cfg.extend_grid` learning rates beyond the grid's edge; returns the best point and its validation loss.

  It stops as soon as the best point is not at the edge.
  """
  size, found = recipe.sizes(cfg)[0], dict(tried)
  for _ in range(cfg.extend_grid):
    point = retrain.beyond(found)
    if point is None:
      break
    stage = Stage(f'{name}: grid', size, cfg.grid_epochs or cfg.epochs, [point], cfg.seed, False, (), advance)
    key = f'grid at {size}, lr {point.lr:g}'
    (found[point],) = _train_once(recipe, cfg, data, arch, key, stage, folder, check)['valid']
  best = min(found, key=lambda point: (not math.isfinite(found[point]), found[point]))
  return best, found[best]


class Stage(NamedTuple):
  """Trainings of one architecture at one size, side by side."""

  name: str  # as shown in the progress line
  size: str
  epochs: int
  points: Sequence[Any]  # [m] the hyperparameters of each training
  seed: int
  final: bool  # whether to score the test split, which no choice may use, and to keep the weights
  validated: Sequence[float] = ()  # of a final stage: the validation loss in the grid, if there was one at this size
  advance: Advance = _unseen  # called after each epoch with the number of trainings


def retrain_arch(
  recipe: retrain.Recipe,
  cfg: retrain.Config,
  data: Any,
  name: str,
  arch: retrain.Arch,
  folder: str,
  check: launch.Check,
  advance: Advance = _unseen,
  trained: Tried | None = None,
) -> list[dict[str, Any]]:
  """Trains the grid at the first size if it has several points, then its best point at every size.

  Finished trainings are in trainings.json of the folder and are not repeated. `trained` is the result of `train_grid`
  if the grid has been trained already.

  Returns:
    A row of result.json for each size.
  """
  points, sizes = retrain.grid(recipe.point, cfg), recipe.sizes(cfg)
  best, validated = points[0], list[float]()
  if len(points) > 1:
    tried = trained or train_grid(recipe, cfg, data, name, arch, folder, check, advance)
    best, loss = extend_grid(recipe, cfg, data, name, arch, folder, check, advance, tried)
    validated = [loss]
  rows, settings = [], recipe.describe(best)
  for size in sizes:
    # A final training may use the validation images too. It then has no validation score of its own; at the grid's
    # size the score from the grid stands in for it.
    grids = validated if size == sizes[0] else []
    stage = Stage(f'{name}: {size}', size, cfg.epochs, [best] * cfg.repeats, cfg.seed + 1, True, grids, advance)
    row = {'name': name, 'settings': settings, 'epochs': cfg.epochs, 'repeats': cfg.repeats}
    row |= _train_once(recipe, cfg, data, arch, f'{size}, {settings}', stage, folder, check)
    row.setdefault('valid', grids)
    rows.append(row)
  return rows


def _train_once(
  recipe: retrain.Recipe,
  cfg: retrain.Config,
  data: Any,
  arch: retrain.Arch,
  key: str,
  stage: Stage,
  folder: str,
  check: launch.Check,
) -> dict[str, Any]:
  """Returns the entry `key` of trainings.json in the folder.

  If the entry is missing or has fewer than `stage.epochs` epochs, the stage is trained and the entry is written.
  """
  path, running = os.path.join(folder, 'trainings.json'), epochs.folder_of(folder, key)
  found = workdirs.read(path) or {}
  if key not in found or epochs.of(found[key]) < stage.epochs:
    if key in found:
      epochs.begin(running, stage.name, cfg, epochs.of(found[key]), stage.epochs)
    found[key] = train_stage(recipe, cfg, data, arch, stage, folder, running, check)
    workdirs.write_losses(path, found)
  else:
    stage.advance(stage.epochs * len(stage.points))
  epochs.end(running, cfg, stage.final)  # only after its result is written
  return found[key]


def train_stage(
  recipe: retrain.Recipe,
  cfg: retrain.Config,
  data: Any,
  arch: retrain.Arch,
  stage: Stage,
  folder: str,
  running: str,
  check: launch.Check,
) -> dict[str, Any]:
  """Trains all points of a stage to the end.

  The state is saved in the folder `running` after each epoch, and an interrupted stage resumes from there. A final
  stage keeps its weights in `folder`, see `models.keep`.

  Returns:
    The entry of trainings.json: 'size'; 'parameters', their number; 'curve' [m, epochs], the validation loss of each
    training after each epoch; 'valid' [m], the minima of the curves, if the best epoch is chosen by validation; and
    'seconds'. A final stage adds 'test' [m], the loss on the test split, and 'multiply_adds' for one image or token.
  """
  task = recipe.task(cfg, data, arch, stage.size, stage.epochs, stage.final)
  m, begun = len(stage.points), time.perf_counter()
  keys = jax.random.split(jax.random.key(stage.seed), m)
  progress, settings, keys = full_training.start(task, recipe.hyperparameters(stage.points), keys, stage.epochs)
  progress = epochs.restored(running, progress)
  save, close = checkpoint.saver(running, keep=1)
  stage.advance(m * int(progress.done))

  def keep(now: full_training.Progress) -> None:
    save(int(now.done), epochs.saved(now))
    scores = ' '.join(rankings.word(float(score)) for score in np.asarray(now.curve)[int(now.done) - 1, :m])
    stage.advance(m, f'{stage.name}, epoch {int(now.done)} of {stage.epochs}, {recipe.metric} {scores}')

  try:
    progress = full_training.run(task, progress, settings, keys, keep, check)
  finally:
    close()
  curve = np.asarray(progress.curve)[:, :m]
  found = {'size': task.size, 'parameters': task.weights, 'curve': curve.T.tolist()}
  if task.choose:
    found['valid'] = curve.min(0).tolist()
  if stage.final:
    scored = full_training.score(task, progress, settings, m)  # of the initial weights if no epoch had a finite score
    found['test'] = np.where(np.isfinite(curve).any(0), scored, np.inf).tolist()
    scores = found | {'validated': stage.validated}
    cost = models.keep(folder, recipe, cfg, data, arch, stage.size, stage.points[0], progress.best, scores)
    found['multiply_adds'] = cost.multiply_adds
  return found | {'seconds': time.perf_counter() - begun}


if __name__ == '__main__':
  launch.main(prepare)
