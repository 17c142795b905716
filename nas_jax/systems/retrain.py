"""Recipes by which architectures are retrained to the end, Zoph & Le (2017) Sec. 4.1 and 4.2.

A retraining compares a small grid of hyperparameters on the validation split, trains the architecture with the best of
them from new seeds, at one size or at several, and scores the test split. `experiments.retrain` does this for any
architecture; a `Recipe` holds what differs between recurrent cells, convolutional networks and the networks of ENAS.
"""

from collections.abc import Callable, Mapping, Sequence
import contextlib
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
  """The fields of every retraining. The config of a recipe adds the data, the network and the lists of its grid."""

  epochs: int = epochs_field(1)
  grid_epochs: int = field(
    0,
    'epochs of each point of the grid, 0 for as many as in the other trainings. Fewer favour learning rates that are '
    'too high for the full training',
    low=0,
  )
  extend_grid: int = field(
    0,
    'how many more learning rates may be tried, one after another, while the best one is the lowest or the highest '
    'that was tried; each new rate continues the series by the same factor',
    low=0,
    high=20,
  )
  repeats: int = field(1, 'trainings of the best point of the grid at each size, from different seeds', low=1)

  added: ClassVar[dict[str, Any]] = {'extend_grid': 0}  # see `config.with_added`


Arch = Any  # a static architecture, or the name of a standard one that has no tokens, such as 'LSTM'


class FinalChoice(NamedTuple):
  """How the best children of a search are compared by training them to the end, beside known architectures."""

  cfg: Config  # of the recipe for the system of the search
  references: Mapping[str, Arch]
  epoch: float = math.nan  # approximate time of an epoch, in units of one child's training in the search


Cfg = TypeVar('Cfg', bound=Config)
Data = TypeVar('Data')
Point = TypeVar('Point', bound=tuple[Any, ...])


class Recipe(NamedTuple, Generic[Cfg, Data, Point]):
  """How the architectures of one family are trained to the end and tested.

  `Cfg` is its config. `Data` is the data set, as `System.load` returns it. `Point` is one entry of the grid: a
  NamedTuple. The config has fields of the same names, which list the values to try.
  """

  config: type[Cfg]
  presets: Mapping[str, Callable[[], Cfg]]
  known: Mapping[str, Arch]  # published architectures by name
  metric: str  # 'perplexity' or 'error', of which less is better
  point: type[Point]
  check: Callable[[Cfg], None]  # raises ValueError, naming the field, on an impossible config
  validate: Callable[[Cfg, Data, Arch], None]  # raises ValueError before anything compiles if arch cannot be trained
  sizes: Callable[[Cfg], Sequence[str]]  # the sizes to train at, as `task` takes them; the grid is at the first
  # (cfg, data, arch, size, epochs, final) -> what to train. `final`: whether it is tested, and not a point of the grid.
  task: Callable[[Cfg, Data, Arch, str, int, bool], full_training.Task]
  hyperparameters: Callable[[Sequence[Point]], PyTree]  # those of m points, each an array [m], as the task takes them
  describe: Callable[[Point], str]  # a point in words
  setting: Callable[[Cfg, Data], str]  # what all trainings have in common, in words, to stand under their table
  # (cfg, data, arch, size, point) -> the description of a trained network, which is stored with its weights
  card: Callable[[Cfg, Data, Arch, str, Point], export.Card]


def parse_weights(words: str) -> int | None:
  """Reads a number of weights: '500k' is 500000 and '4.65M' is 4650000. None if `words` is no such number."""
  unit = {'k': 1e3, 'M': 1e6}.get(words[-1:])
  with contextlib.suppress(ValueError, OverflowError):
    if unit and (number := round(float(words[:-1]) * unit)) > 0:
      return number
  return None


def grid(point: type[Point], cfg: Config) -> list[Point]:
  """Returns the points of a grid: the product of the lists in `cfg` for the fields of `point`, the last one fastest."""
  lists = (getattr(cfg, name) for name in point._fields)  # type: ignore[attr-defined]
  return [point(*values) for values in itertools.product(*lists)]


def beyond(tried: Mapping[Any, float]) -> Any | None:
  """Returns the next point of a grid: the best point so far, with a learning rate beyond those that were tried.

  Args:
    tried: the validation loss of each `Point` so far, not finite if its training failed. A point has a field `lr`.

  Returns:
    The point. None if lower and higher rates than the best were tried, if only one rate was tried, or if all failed.

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
