"""What a retraining must know of the architectures that it trains to the end, Zoph & Le (2017) Sec. 4.1 and 4.2.

A retraining compares a small grid of hyperparameters on the validation split, trains the architecture with the best of
them from new seeds, at one size or at several, and scores the test split. `experiments.retrain` does so for any
architecture; a `Recipe` has what differs between cells, networks and the networks of ENAS.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import itertools
import math
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

from nas_jax import export
from nas_jax.config import Seed, field
from nas_jax.training import full_training
from nas_jax.types import PyTree


def epochs_field(default: int) -> Any:
  """Returns the field of the epochs of each training, with the default of its recipe."""
  return field(
    default,
    'passes over the training data in each training. If it is raised later, trainings go on where they ended, unless '
    "the schedule is 'cosine'",
    low=1,
    budget=True,
  )


@dataclasses.dataclass
class Config(Seed):
  """What every retraining has to say. The config of a recipe adds the data, the network and the lists of its grid."""

  epochs: int = epochs_field(1)
  grid_epochs: int = field(0, 'epochs of each point of the grid, 0 for as many as in the other trainings', low=0)
  extend_grid: int = field(
    0,
    'how many more learning rates may be tried, one after another, while the best one is the least or the greatest of '
    'those that were tried; each continues them by the same factor',
    low=0,
    high=20,
  )
  repeats: int = field(1, 'trainings of the best point of the grid at each size, from different seeds', low=1)

  added: ClassVar[dict[str, Any]] = {'extend_grid': 0}  # see `config.with_added`


Arch = Any  # a static architecture, or the name of a standard one that has no tokens, such as 'LSTM'


class FinalChoice(NamedTuple):
  """How the best children of a search are compared by training them to the end, beside known architectures."""

  cfg: Config  # of the recipe of the system that was searched with
  references: Mapping[str, Arch]
  epoch: float = math.nan  # how many times the training of a child of the search an epoch takes, about


Cfg = TypeVar('Cfg', bound=Config)
Data = TypeVar('Data')
Point = TypeVar('Point', bound=tuple[Any, ...])


class Recipe(NamedTuple, Generic[Cfg, Data, Point]):
  """How the architectures of one family are trained to the end and tested.

  `Cfg` is its config. `Data` is the data set, as `System.load` returns it. `Point` is one entry of the grid: a
  NamedTuple, each field of which is also a field of the config, where it is a list.
  """

  config: type[Cfg]
  presets: Mapping[str, Callable[[], Cfg]]
  known: Mapping[str, Arch]  # published architectures, by the names that people call them by
  metric: str  # what is measured, less of it being better: 'perplexity' or 'error'
  point: type[Point]
  check: Callable[[Cfg], None]  # raises ValueError, naming the field, on a config that cannot be
  validate: Callable[[Cfg, Data, Arch], None]  # raises ValueError, before anything compiles, if it cannot be trained
  sizes: Callable[[Cfg], Sequence[str]]  # the sizes to train at, as `task` takes them; the grid is at the first
  # (cfg, data, arch, size, epochs, final) -> what to train. `final` is whether it will be tested, and not compared.
  task: Callable[[Cfg, Data, Arch, str, int, bool], full_training.Task]
  hyperparameters: Callable[[Sequence[Point]], PyTree]  # those of m points, each an array [m], as the task takes them
  describe: Callable[[Point], str]  # a point in words
  setting: Callable[[Cfg, Data], str]  # in words, what all trainings have in common: it stands under their table
  # (cfg, data, arch, size, point) -> what a trained network is, to be kept with its weights
  card: Callable[[Cfg, Data, Arch, str, Point], export.Card]


def grid(point: type[Point], cfg: Config) -> list[Point]:
  """The points of a grid: the product of the lists that `cfg` has for the fields of `point`, the last varying first."""
  lists = (getattr(cfg, name) for name in point._fields)  # type: ignore[attr-defined]
  return [point(*values) for values in itertools.product(*lists)]


def beyond(tried: Mapping[Any, float]) -> Any | None:
  """Returns the point with which to continue a grid: the best one at a learning rate beyond those that were tried.

  Args:
    tried: the validation loss of each `Point` so far, which has a field `lr`; not finite if its training failed.

  Returns:
    None if the best point has a lower and a greater rate beside it, if there is no other rate, or if all have failed.

  >>> from nas_jax.systems.retrain_cell import Point
  >>> losses = {Point(0.01, 4.0, 0.1, '0'): 1.5, Point(0.02, 4.0, 0.1, '0'): 1.4}
  >>> beyond(losses).lr
  0.04
  >>> beyond(losses | {Point(0.04, 4.0, 0.1, '0'): 1.6}) is None
  True
  """
  best = min(tried, key=lambda point: (not math.isfinite(tried[point]), tried[point]))
  rates = sorted(point.lr for point in tried if point._replace(lr=best.lr) == best)
  if len(rates) < 2 or not math.isfinite(tried[best]) or rates[0] < best.lr < rates[-1]:
    return None
  beside = rates[1] if best.lr == rates[0] else rates[-2]
  return best._replace(lr=best.lr * best.lr / beside)
