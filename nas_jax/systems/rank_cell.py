"""Trainings that show which short training of children ranks cells as a full training does.

A search ranks cells by short trainings of its children. The cells that it finds are then trained to the end by another
recipe (`retrain_cell`). Here the same cells are trained in both ways, and `candidates` gives the scores of each kind of
short training. All trainings by one recipe are one program, whatever their cell, hyperparameters and length.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import numpy as np

from nas_jax import space
from nas_jax.children import language_model
from nas_jax.config import field
from nas_jax.datasets import text as text_lib
from nas_jax.datasets import text_batches
from nas_jax.operations import BUILT_IN, Operations, find
from nas_jax.search.journal import plain
from nas_jax.space.tree import TreeArch
from nas_jax.systems import cell, language, retrain, retrain_cell
from nas_jax.training import child as child_lib
from nas_jax.training import fit, full_training
from nas_jax.types import Array

Cells = Mapping[str, TreeArch]
Line = dict[str, Any]  # a training as JSON: the fields of its `Job`, and its results
FINAL, SEARCH = 'final', 'search'
CHILD, GRID, REPEAT = range(3)  # numbers of trainings, each with its own initial weights; REPEAT is the first repeat


@dataclasses.dataclass
class Config(retrain_cell.Config):
  """The full training of cells, its grid, and the shorter trainings that are compared with the full training."""

  budgets: tuple[int, ...] = field(
    (100, 300, 800, 2000),
    'numbers of training steps of children to compare with the full training',
    low=1,
    budget=True,
    first=True,
  )
  recipes: tuple[str, ...] = field(
    (FINAL, SEARCH),
    f'recipes of children to compare: {FINAL!r} is that of the full training, {SEARCH!r} that of search_preset',
    budget=True,
    first=True,
  )
  search_preset: str = field('demo', 'preset of the cell search whose recipe is compared', choices=tuple(cell.PRESETS))
  search_lr: tuple[float, ...] = field(
    (0.01,), 'learning rates to try in the recipe of the search; give them with another search_preset', above=0.0
  )
  scorings: int = field(3, 'validations in each epoch of a full training', low=1)


def demo() -> Config:
  """Characters of Python's help text, cells of width 64."""
  return _extended(retrain_cell.demo(), 'demo', lr=(0.003, 0.01, 0.03), dropout=('0',), grid_epochs=0, repeats=3)


def small() -> Config:
  """Words of Penn Treebank, one layer of width 64, SGD."""
  return _extended(retrain_cell.small(), 'small', budgets=(200, 800, 2000))


def smoke() -> Config:
  """Takes seconds: a test that everything runs."""
  return _extended(retrain_cell.smoke(), 'smoke', sizes=('8',), grid_epochs=0, budgets=(1, 2))


PRESETS = {'demo': demo, 'small': small, 'smoke': smoke}


def _extended(cfg: retrain_cell.Config, search_preset: str, **changes: Any) -> Config:
  fields = {item.name: getattr(cfg, item.name) for item in dataclasses.fields(cfg)}
  own = {'search_preset': search_preset, 'search_lr': (cell.PRESETS[search_preset]().lr,)}
  return Config(**(fields | own | changes))


def check(cfg: Config) -> None:
  """Raises ValueError, naming the field, on an impossible value."""
  retrain_cell.check(cfg)
  if cfg.grid_epochs or len(cfg.sizes) > 1:
    raise ValueError('grid_epochs must be 0 and sizes a single one: here the grid is of full trainings at one size.')
  for name in cfg.recipes:
    if name not in (FINAL, SEARCH):
      raise ValueError(f'recipes: {name!r} must be one of {FINAL}, {SEARCH}.')


class Recipe(NamedTuple):
  """A way to train cells: all that its trainings have in common, and the settings to try."""

  cfg: language.Config
  hidden: int  # width of the cells
  points: tuple[str, ...]  # names of the settings to try
  hyperparameters: language_model.Hyperparameters  # of each point, arrays [p]


def recipe(cfg: Config, name: str, text: text_lib.Text, arch: TreeArch) -> Recipe:
  """Returns a recipe by its name. `arch` is any of the cells; it is needed if a size is a number of weights."""
  if name == FINAL:
    points = retrain.grid(retrain_cell.Point, cfg)
    hidden = retrain_cell.width(cfg, text, arch, cfg.sizes[0])
    return Recipe(cfg, hidden, tuple(map(retrain_cell.describe, points)), retrain_cell.hyperparameters(points))
  search = dataclasses.replace(cell.PRESETS[cfg.search_preset](), dataset=cfg.dataset, level=cfg.level)
  hidden = cell.width(search, text, language_model.tree(), arch)
  several = [language.hyperparameters(dataclasses.replace(search, lr=lr), hidden) for lr in cfg.search_lr]
  stacked = jax.tree.map(lambda *values: jnp.array(values, jnp.float32), *several)
  return Recipe(search, hidden, tuple(f'lr {lr:g}' for lr in cfg.search_lr), stacked)


class Job(NamedTuple):
  """One training."""

  recipe: str
  cell: str
  point: str
  steps: int
  training: int  # number that its initial weights are drawn from: CHILD, GRID, or REPEAT and above


class Training(NamedTuple):
  """What the programs of this module take as the architecture of a child."""

  arch: TreeArch
  hyperparameters: language_model.Hyperparameters
  steps: int | Array  # training steps, over which the learning rate falls


class Programs(NamedTuple):
  """The compiled programs and the data that train cells by one recipe."""

  recipe: Recipe
  fitter: fit.Fit
  data: text_batches.Data
  epoch: int  # training steps of a pass over the text


def programs(cfg: Config, name: str, text: text_lib.Text, cells: Cells, mesh: Mesh | None = None) -> Programs:
  """Returns the programs for all trainings by one recipe. Raises ValueError if the text is too short for it."""
  made = recipe(cfg, name, text, next(iter(cells.values())))
  combine = {i for arch in cells.values() for i in (*arch.combine, arch.inject[0])}
  activate = {i for arch in cells.values() for i in (*arch.activate, arch.inject[1])}
  kinds = zip(Operations._fields, (combine, activate))
  held = Operations(*(tuple(find(kind, BUILT_IN, i) for i in sorted(ids)) for kind, ids in kinds))
  data = text_batches.lay_out(text, made.cfg.batch, made.cfg.bptt, made.cfg.score_batch)
  network = language.build(made.cfg, text, language_model.tree(held), made.hidden)
  child = child_lib.bind_arch(
    network, lambda training: language_model.ChildSpec(training.arch, training.hyperparameters)
  )

  def optimizer(training: Training):
    return language.optimizer(made.cfg, training.steps, len(data.train))(training.hyperparameters)

  return Programs(made, fit.fitter(child, optimizer, 0, 0, mesh), data, len(data.train))


def full_steps(cfg: Config, epoch: int) -> int:
  """Returns the steps of a full training, a multiple of its number of scorings."""
  return max(1, epoch // cfg.scorings) * cfg.scorings * cfg.epochs


def train(
  cfg: Config,
  made: Programs,
  cells: Cells,
  jobs: Sequence[Job],
  m: int,
  check: Callable[[], None] = lambda: None,
) -> list[Line]:
  """Trains up to m jobs of one length side by side.

  The batch is filled up to m by children that are not trained, so that all batches use one program.

  Args:
    cfg: the config of all trainings.
    made: the programs of the jobs' recipe.
    cells: cells by name, including those of the jobs.
    jobs: jobs of one recipe and one number of steps.
    m: the number of children in a batch.
    check: called between program calls; if it raises `recovery.Stopped`, the batch is lost.

  Returns:
    A line for each job: 'perplexity' is the best validation perplexity of the training (null if there is none), 'curve'
    has the perplexity of each scoring, and 'failed' is the reason of a failure or null.
  """
  steps, final = jobs[0].steps, made.recipe.cfg is cfg
  scorings = cfg.epochs * cfg.scorings if final and steps == full_steps(cfg, made.epoch) else 1
  filled = [*jobs, *[jobs[0]] * (m - len(jobs))]
  indices = np.array([made.recipe.points.index(job.point) for job in filled])
  chosen = jax.tree.map(lambda values: values[indices], made.recipe.hyperparameters)
  archs = Training(space.stack([cells[job.cell] for job in filled]), chosen, jnp.full(m, steps))
  numbers = jnp.array([job.training for job in filled])
  keys = jax.vmap(lambda number: jax.random.fold_in(jax.random.key(cfg.seed), number))(numbers)
  programs = full_training.within_memory(made.fitter, archs, keys, made.data, 'take a smaller --at_once')
  programs = programs._replace(steps_per_call=steps // scorings)
  task = full_training.Task('', 0, programs, made.data, made.data, _perplexity)
  progress, archs, keys = full_training.start(task, archs, keys, scorings)
  idle = jnp.arange(len(keys)) >= len(jobs)
  states = progress.states._replace(failed=jnp.where(idle, fit.Status.PADDING, progress.states.failed))
  progress = full_training.run(task, progress._replace(states=states), archs, keys, check=check)
  curves, why = np.asarray(progress.curve).T, np.asarray(progress.states.failed)
  return [
    job._asdict()
    | {'perplexity': plain(curve.min()), 'curve': [plain(value) for value in curve]}
    | {'failed': _why_failed(int(cause), curve)}
    for job, curve, cause in zip(jobs, curves, why)
  ]


def _why_failed(status: int, curve: np.ndarray) -> str | None:
  """Returns the reason if a training failed or one of its scores is not finite, else None."""
  failed = fit.Status(status) if status or np.isfinite(curve).all() else fit.Status.NOT_FINITE
  return failed.reason or None


def _perplexity(scores: Mapping[str, Array]) -> Array:
  return scores['perplexity']


def grid_jobs(cfg: Config, made: Programs, cells: Cells) -> list[Job]:
  """Returns the full trainings that find the best settings of each cell."""
  steps = full_steps(cfg, made.epoch)
  return [Job(FINAL, name, point, steps, GRID) for point in made.recipe.points for name in cells]


def child_jobs(cfg: Config, name: str, made: Programs, cells: Cells) -> list[Job]:
  """Returns trainings of every cell as a child, with each budget and setting of a recipe, the shortest first."""
  return [
    Job(name, cell_name, point, steps, CHILD)
    for steps in sorted(cfg.budgets)
    for point in made.recipe.points
    for cell_name in cells
  ]


def repeat_jobs(cfg: Config, made: Programs, cells: Cells, done: Mapping[Job, Line]) -> list[Job]:
  """Returns full trainings of each cell from new seeds with its best settings, unless all its settings failed."""
  grid = _scores(grid_jobs(cfg, made, cells), done)
  best = grid.argmin(0)
  return [
    Job(FINAL, name, made.recipe.points[best[k]], full_steps(cfg, made.epoch), REPEAT + number)
    for number in range(cfg.repeats)
    for k, name in enumerate(cells)
    if np.isfinite(grid[best[k], k])
  ]


def full_scores(cfg: Config, made: Programs, cells: Cells, done: Mapping[Job, Line]) -> np.ndarray:
  """Returns the perplexity of each cell [n] after full training by its own best settings; infinite where all failed.

  The perplexity is the mean over the repeats: unlike the trainings of the grid, they did not choose the settings. As
  long as a cell has no repeat, it has its best perplexity of the grid. A repeat that failed counts with the best
  perplexity that it reached before.
  """
  grid = _scores(grid_jobs(cfg, made, cells), done).min(0)
  repeats: dict[str, list[float]] = {name: [] for name in cells}
  for job in repeat_jobs(cfg, made, cells, done):
    if job in done and done[job]['perplexity'] is not None:
      repeats[job.cell].append(done[job]['perplexity'])
  return np.array([np.mean(repeats[name]) if repeats[name] else alone for name, alone in zip(cells, grid)])


class Candidate(NamedTuple):
  """A way to score children."""

  recipe: str
  points: str  # which settings, and how several are combined
  steps: int  # of each training
  trainings: int  # how many make the score of a child
  scores: np.ndarray  # [n] perplexities, lower is better, infinite for a child that failed


def candidates(
  cfg: Config, all_programs: Mapping[str, Programs], cells: Cells, done: Mapping[Job, Line]
) -> list[Candidate]:
  """Returns all ways to score children for which every training is done.

  Each budget gives one candidate for each setting alone, one for the best of the settings, and one for the mean over
  the settings of the reward 1 / perplexity^2, in which a failed training counts as 0. In addition, each scoring of
  the grid's full trainings gives a candidate: the best of the settings at that step. It stands for a training that is
  cut off there, before its learning rate has fallen, as in successive halving.
  """
  found = list[Candidate]()
  for name, made in all_programs.items():
    jobs = child_jobs(cfg, name, made, cells)
    for steps in sorted(cfg.budgets):
      some = [job for job in jobs if job.steps == steps]
      if all(job in done for job in some):
        found += _combined(name, made.recipe.points, steps, _scores(some, done))
  made = all_programs[FINAL]
  jobs = grid_jobs(cfg, made, cells)
  if all(job in done for job in jobs):
    curves = np.array([done[job]['curve'] for job in jobs], float)  # null becomes NaN
    every, count = full_steps(cfg, made.epoch) // curves.shape[1], len(made.recipe.points)
    for k in range(curves.shape[1]):
      so_far = np.nan_to_num(curves[:, : k + 1], nan=np.inf).min(1).reshape(count, -1)
      word = 'best, cut off' if k + 1 < curves.shape[1] else 'best, whole'
      found.append(Candidate(FINAL, word, (k + 1) * every, count, so_far.min(0)))
  return found


def _combined(name: str, points: Sequence[str], steps: int, scores: np.ndarray) -> list[Candidate]:
  """Returns candidates from scores [p, n]: each setting, the best and the mean reward."""
  alone = [Candidate(name, point, steps, 1, row) for point, row in zip(points, scores, strict=True)]
  if len(points) == 1:
    return alone
  with np.errstate(divide='ignore'):
    mean = np.mean(scores**-2.0, 0) ** -0.5
  return [
    *alone,
    Candidate(name, 'best', steps, len(points), scores.min(0)),
    Candidate(name, 'mean reward', steps, len(points), mean),
  ]


def _scores(jobs: Sequence[Job], done: Mapping[Job, Line]) -> np.ndarray:
  """Returns perplexities [p, n] of jobs, which list all cells for each setting; infinite without a result."""
  cells = len({job.cell for job in jobs})
  values = [done[job] if job in done else {'perplexity': None} for job in jobs]
  return np.array([np.inf if one['perplexity'] is None else one['perplexity'] for one in values]).reshape(-1, cells)
