"""Trains architectures to the end after a search, and tests them (Zoph & Le 2017, Sec. 4.1 and 4.2).

A small grid of hyperparameters is compared on the validation split. The architecture is then trained with the best of
them, several times and at several sizes if you like, and scored on the test split. The same command resumes what was
cut off. Examples:
  python -m experiments.retrain --arch=runs/mine/best.json,NASCELL,ENAS_RNN,LSTM --preset=demo
  python -m experiments.retrain --workdir=runs/mine --top=3 --preset=zaremba_small --data_dir=DIR --lr=0.5,1.0
"""

from collections.abc import Mapping, Sequence
import hashlib
import json
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
  """What retraining takes beside the fields of its configs."""
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
  """Reads flags, architectures and data, and opens the folder of results."""
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
    with lock, quick_end.while_compiling(set()):  # epochs are saved; one that is cut off is trained again in any case
      run(system, cfg, data, archs, results, check)
    if values.workdir:
      report_page.write(values.workdir, report_page.make(values.workdir))

  return work


def known_archs() -> dict[str, retrain.Arch]:
  """The published architectures of all systems, by name."""
  return {name: arch for recipe in RECIPES.values() for name, arch in recipe.known.items()}


def searched_by(workdir: str) -> str:
  """The name of the system whose search a workdir holds; '' if that is not known."""
  saved, origin = (workdirs.peek(os.path.join(workdir, name)) or {} for name in ('config.json', 'origin.json'))
  held = systems.system_of(saved, origin) if saved else None
  return held.name if held else ''


def system_of(source: str, wanted: str = '') -> System:
  """The system of a known name, or of the architecture in a file: the one named `wanted`, or else the first."""
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
  """Returns the system of all sources. Raises ValueError if two of them are retrained by different recipes."""
  (first, chosen), *others = systems.items()
  for source, system in others:
    if RECIPES[system.name] is not RECIPES[chosen.name]:
      raise ValueError(f'{source} is a {system.noun}, {first} a {chosen.noun}: train those of one kind at a time.')
  return chosen


def recipe_of(system: System) -> retrain.Recipe:
  """The recipe of a system that has one."""
  assert system.retrain is not None, system.name
  return system.retrain


def configure(values: flags.FlagValues, system: System) -> retrain.Config:
  """The config of the chosen preset with the given flags laid over it, checked."""
  recipe = RECIPES[system.name]
  launch.own_preset(values, recipe.presets, f'{system.noun}s')
  others = {f'{other.noun}s of {other.launcher}': other.retrain.config for other in SYSTEMS if other.retrain}
  launch.own_fields(values, recipe.config, others)
  cfg = launch.configure(values, recipe.presets)
  recipe.check(cfg)
  return cfg


def best_of(workdir: str, top: int, system: System) -> dict[str, retrain.Arch]:
  """The best different architectures of a search, `top` of them, by names such as 'child 12'.

  For a search with shared weights these are the best architectures derived at its end; for other searches, the best
  children. Children of a longer rung come first.
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
  """Retrains architectures one by one, and prints the table of all that the folder of results holds then."""
  path, setting = os.path.join(results, 'result.json'), recipe_of(system).setting(cfg, data)
  rows = workdirs.cached(path, lambda: {'rows': [], 'setting': setting})['rows']
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
      workdirs.write(path, json.dumps({'rows': rows, 'setting': setting}) + '\n')
  print(f'\n{table(rows, system)}\n{setting}\nresults and models in {results}')


def epochs_of_choice(system: System, cfg: retrain.Config, candidates: int, groups: int) -> int:
  """Returns the total number of epochs that `choose` trains, if a grid is continued at most once."""
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
  """Trains the grid of every architecture, and then retrains the best of each group by validation.

  Architectures of a group are compared only by the points of the grid. The grid is then continued for the best one.

  Args:
    system: of the architectures.
    cfg: of its recipe.
    data: as the system's `load` returns it.
    groups: architectures by name, for each group; an empty group gives no row.
    results: the folder of results. What stands there is not trained again.
    check: raises `Stopped` if the process was asked to end.
    advance: told of each epoch of each training.

  Returns:
    What result.json then holds: the `rows` of those that were chosen, in the order of groups, their `setting`, and of
    each group the `candidates`, names and best validation losses in the grid.
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
  workdirs.write(os.path.join(results, 'result.json'), json.dumps(result) + '\n')
  return result


def _folder(results: str, name: str, arch: retrain.Arch) -> str:
  """Makes the folder of the trainings of an architecture, if need be, and returns its path."""
  digest = hashlib.sha256(repr(arch).encode()).hexdigest()[:8]
  folder = os.path.join(results, f'{os.path.basename(name).replace(" ", "-")}-{digest}')
  os.makedirs(folder, exist_ok=True)
  return folder


def candidates(result: Mapping[str, Any], system: System) -> str:
  """Returns in words the architectures that `choose` chose from, for each group of more than one."""
  found = [
    f'{name}: ' + ', '.join(f'{who.removeprefix(name).strip()} {rankings.word(loss)}' for who, loss in losses.items())
    for name, losses in result['candidates'].items()
    if len(losses) > 1
  ]
  return f'validation {recipe_of(system).metric} of the candidates; ' + '; '.join(found) if found else ''


def table(rows: Sequence[Mapping[str, Any]], system: System) -> str:
  """The results as a table, means and standard deviations over trainings.

  Its 'multiply-adds' are for one image or token. Its 'bits' are the mean of log2 of the test perplexity, the bits for
  each token.
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
  """Continues a grid as the config field `extend_grid` says; returns the best point and its validation loss."""
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

  name: str  # for people
  size: str
  epochs: int
  points: Sequence[Any]  # [m] the hyperparameters of each training
  seed: int
  final: bool  # whether to score the test split, which no choice may look at, and to keep the weights
  validated: Sequence[float] = ()  # of a final stage: the validation loss in the grid, if there was one at this size
  advance: Advance = _unseen  # told of each epoch of each training


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
  """Trains the grid at the first size if it has several points, then the best point of it at every size.

  Finished trainings are in trainings.json of the folder and are not repeated. `trained` is what `train_grid`
  returned, if the grid has been trained already.

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
    # A training on the validation images too has no validation score; at the grid's size the grid's score is used.
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
  """Returns the entry `key` of trainings.json in the folder; it is trained if there is none of so many epochs."""
  path, running = os.path.join(folder, 'trainings.json'), epochs.folder_of(folder, key)
  found = workdirs.read(path) or {}
  if key not in found or epochs.of(found[key]) < stage.epochs:
    if key in found:
      epochs.begin(running, stage.name, cfg, epochs.of(found[key]), stage.epochs)
    found[key] = train_stage(recipe, cfg, data, arch, stage, folder, running, check)
    workdirs.write(path, json.dumps(found, indent=2) + '\n')
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

  After each epoch the state is saved in the folder `running`, and a stage that was cut off goes on from there. Of a
  final stage the weights are kept in `folder`, see `models.keep`.

  Returns:
    The entry of trainings.json: 'curve', the validation loss of each training after each epoch; 'valid', the least of
    these, if the weights of that epoch are kept; 'test', the loss on the test split, if the stage is final, and the
    'multiply_adds' for one image or token.
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
