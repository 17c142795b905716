"""Architectures trained to the end: a grid compared on the validation split, then final trainings of its best point.

`run` retrains architectures one by one, `choose` retrains the best of each group. Every training is kept in the folder
of results, so that the same call completes an interrupted one.
"""

from collections.abc import Mapping, Sequence
import glob
import hashlib
import math
import os
import time
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.common import epochs, launch, models, workdirs
from experiments.common.progress import Advance, Progress
from experiments.common.systems import System
from nas_jax.report import rankings
from nas_jax.systems import retrain
from nas_jax.training import checkpoint, full_training

SMALLER = 'give a smaller size, smaller batches, fewer repeats or a smaller grid'
Tried = Mapping[Any, float]  # the validation loss of each point of a grid that was trained


def _unseen(*_: Any) -> None:
  """Takes the progress and shows nothing."""


class Subject(NamedTuple):
  """An architecture to train, and what all of its trainings share."""

  recipe: retrain.Recipe
  cfg: retrain.Config
  data: Any  # as the system's `load` returns it
  name: str
  arch: retrain.Arch
  folder: str  # of its trainings
  check: launch.Check = lambda: None  # raises `Stopped` if the process was asked to end
  advance: Advance = _unseen  # called after each epoch with the number of trainings in it


class Stage(NamedTuple):
  """Trainings of one architecture at one size, side by side."""

  name: str  # as shown in the progress line
  size: str
  epochs: int
  points: Sequence[Any]  # [m] the hyperparameters of each training
  seed: int
  final: bool  # whether to score the test split, which no choice may use, and to keep the weights
  validated: Sequence[float] = ()  # of a final stage: the validation loss in the grid, if there was one at this size


def recipe_of(system: System) -> retrain.Recipe:
  """Returns the recipe of a system that has one."""
  assert system.retrain is not None, system.name
  return system.retrain


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
      subject = Subject(recipe_of(system), cfg, data, name, arch, _folder(results, name, arch), check, advance)
      rows = _with_rows(rows, name, retrain_arch(subject))
      workdirs.write_json(path, {'rows': rows, 'setting': setting})
  print(f'\n{table(rows, system)}\n{setting}\nresults and models in {results}')


def _with_rows(rows: Sequence[dict[str, Any]], name: str, new: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
  """Returns `rows` with those of the architecture `name` replaced by `new`, except for sizes that `new` does not have.

  Architectures stay in the order in which they were first trained.
  """
  by_name = {one: list[dict[str, Any]]() for one in [*(row['name'] for row in rows), name]}
  sizes = {row['size'] for row in new}
  for row in rows:
    if row['name'] != name or row['size'] not in sizes:
      by_name[row['name']].append(row)
  by_name[name] += new
  return [row for of_name in by_name.values() for row in of_name]


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

  def subject(name: str, arch: retrain.Arch) -> Subject:
    return Subject(recipe_of(system), cfg, data, name, arch, _folder(results, name, arch), check, advance)

  grids = {
    group: {name: train_grid(subject(name, arch)) for name, arch in archs.items()} for group, archs in groups.items()
  }
  candidates = {group: {name: min(tried.values()) for name, tried in found.items()} for group, found in grids.items()}
  rows = list[dict[str, Any]]()
  for group, archs in groups.items():
    if archs:
      name = min(archs, key=candidates[group].__getitem__)
      rows += retrain_arch(subject(name, archs[name]), grids[group][name])
  result = {'rows': rows, 'setting': recipe_of(system).setting(cfg, data), 'candidates': candidates}
  workdirs.write_json(os.path.join(results, 'result.json'), result)
  return result


def _folder(results: str, name: str, arch: retrain.Arch) -> str:
  """Returns the path of the folder for an architecture's trainings, and creates the folder if it is missing.

  An architecture that has been trained under another name keeps its folder: several groups may hold the same one, and a
  search that was extended may name another of its children as the best of this architecture.
  """
  digest = hashlib.sha256(repr(arch).encode()).hexdigest()[:8]
  folder = os.path.join(results, f'{os.path.basename(name).replace(" ", "-")}-{digest}')
  if not os.path.isdir(folder) and (others := glob.glob(os.path.join(glob.escape(results), f'*-{digest}'))):
    return min(others)
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


def train_grid(subject: Subject) -> Tried:
  """Trains all points of the grid at the first size; returns the validation loss of each."""
  points = retrain.grid(subject.recipe.point, subject.cfg)
  size = subject.recipe.sizes(subject.cfg)[0]
  found = _train_once(subject, f'grid at {size}', _stage_of_grid(subject, points))
  return dict(zip(points, found['valid'], strict=True))


def extend_grid(subject: Subject, tried: Tried) -> tuple[Any, float]:
  """Adds up to `cfg.extend_grid` learning rates beyond the grid's edge; returns the best point and its validation loss.

  It stops as soon as the best point is not at the edge.
  """
  size, found = subject.recipe.sizes(subject.cfg)[0], dict(tried)
  for _ in range(subject.cfg.extend_grid):
    point = retrain.beyond(found)
    if point is None:
      break
    key = f'grid at {size}, lr {point.lr:g}'
    (found[point],) = _train_once(subject, key, _stage_of_grid(subject, [point]))['valid']
  best = min(found, key=lambda point: (not math.isfinite(found[point]), found[point]))
  return best, found[best]


def _stage_of_grid(subject: Subject, points: Sequence[Any]) -> Stage:
  cfg, size = subject.cfg, subject.recipe.sizes(subject.cfg)[0]
  return Stage(f'{subject.name}: grid', size, cfg.grid_epochs or cfg.epochs, points, cfg.seed, False)


def retrain_arch(subject: Subject, trained: Tried | None = None) -> list[dict[str, Any]]:
  """Trains the grid at the first size if it has several points, then its best point at every size.

  Finished trainings are in trainings.json of the folder and are not repeated. `trained` is the result of `train_grid`
  if the grid has been trained already.

  Returns:
    A row of result.json for each size.
  """
  recipe, cfg, name = subject.recipe, subject.cfg, subject.name
  points, sizes = retrain.grid(recipe.point, cfg), recipe.sizes(cfg)
  best, validated = points[0], list[float]()
  if len(points) > 1:
    best, loss = extend_grid(subject, trained or train_grid(subject))
    validated = [loss]
  rows, settings = [], recipe.describe(best)
  for size in sizes:
    # A final training may use the validation images too. It then has no validation score of its own; at the grid's
    # size the score from the grid stands in for it.
    grids = validated if size == sizes[0] else []
    stage = Stage(f'{name}: {size}', size, cfg.epochs, [best] * cfg.repeats, cfg.seed + 1, True, grids)
    row = {'name': name, 'settings': settings, 'epochs': cfg.epochs, 'repeats': cfg.repeats}
    row |= _train_once(subject, f'{size}, {settings}', stage)
    row.setdefault('valid', grids)
    rows.append(row)
  return rows


def _train_once(subject: Subject, key: str, stage: Stage) -> dict[str, Any]:
  """Returns the entry `key` of trainings.json in the folder.

  If the entry is missing, is of another number of trainings, or has fewer than `stage.epochs` epochs, the stage is
  trained and the entry is written.
  """
  cfg, path = subject.cfg, os.path.join(subject.folder, 'trainings.json')
  found, running = workdirs.read(path) or {}, epochs.folder_of(subject.folder, key)
  known = key in found and len(found[key]['curve']) == len(stage.points)
  if not known or epochs.of(found[key]) < stage.epochs:
    if known:
      epochs.begin(running, stage.name, cfg, epochs.of(found[key]), stage.epochs)
    found[key] = train_stage(subject, stage, running)
    workdirs.write_json(path, found)
  else:
    subject.advance(stage.epochs * len(stage.points))
  epochs.end(running, cfg, stage.final)  # only after its result is written
  return found[key]


def train_stage(subject: Subject, stage: Stage, running: str) -> dict[str, Any]:
  """Trains all points of a stage to the end.

  The state is saved in the folder `running` after each epoch, and an interrupted stage resumes from there. A final
  stage keeps its weights in the subject's folder, see `models.keep`.

  Returns:
    The entry of trainings.json: 'size'; 'parameters', their number; 'curve' [m, epochs], the validation loss of each
    training after each epoch; 'valid' [m], the minima of the curves, if the best epoch is chosen by validation; and
    'seconds'. A final stage adds 'test' [m], the loss on the test split, and 'multiply_adds' for one image or token.
  """
  recipe, cfg, data, _, arch, folder, check, advance = subject
  m, begun, settings = len(stage.points), time.perf_counter(), recipe.hyperparameters(stage.points)
  keys = jax.random.split(jax.random.key(stage.seed), m)
  task = recipe.task(cfg, data, arch, stage.size, stage.epochs, stage.final)
  task = task._replace(programs=full_training.within_memory(task.programs, settings, keys, task.data, SMALLER))
  progress, settings, keys = full_training.start(task, settings, keys, stage.epochs)
  progress = epochs.restored(running, progress, m)
  save, close = checkpoint.saver(running, keep=1)
  advance(m * int(progress.done))

  def keep(now: full_training.Progress) -> None:
    save(int(now.done), epochs.saved(now, m))
    scores = ' '.join(rankings.word(float(score)) for score in np.asarray(now.curve)[int(now.done) - 1, :m])
    advance(m, f'{stage.name}, epoch {int(now.done)} of {stage.epochs}, {recipe.metric} {scores}')

  try:
    progress = full_training.run(task, progress, settings, keys, keep, check)
  finally:
    close()
  curve = np.asarray(progress.curve)[:, :m]
  found = {'size': task.size, 'parameters': task.weights, 'curve': curve.T.tolist()}
  if task.choose:
    found['valid'] = curve.min(0).tolist()
  if stage.final:
    # A training has failed without a finite score of the epoch whose weights are kept: any one, or else the last.
    ended = np.isfinite(curve).any(0) if task.choose else np.isfinite(curve[-1])
    found['test'] = np.where(ended, full_training.score(task, progress, settings, m), np.inf).tolist()
    scores = found | {'validated': stage.validated}
    cost = models.keep(folder, recipe, cfg, data, arch, stage.size, stage.points[0], progress.best, scores)
    found['multiply_adds'] = cost.multiply_adds
  return found | {'seconds': time.perf_counter() - begun}
