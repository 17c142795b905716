"""How recurrent cells are retrained to read sequences with labels and to forecast time series."""

from collections.abc import Sequence
import dataclasses
from typing import NamedTuple

import jax.numpy as jnp
from jax.sharding import Mesh

from nas_jax import config, export
from nas_jax.children.sequence import Hyperparameters
from nas_jax.config import field
from nas_jax.datasets.sequences import Sequences
from nas_jax.systems import classifier, language, recurrent, retrain, retrain_cell
from nas_jax.systems.retrain_cell import Arch
from nas_jax.training import child as child_lib
from nas_jax.training import full_training, metrics
from nas_jax.words import counted


@dataclasses.dataclass
class Config(recurrent.Config, retrain.Config):
  """The sequences and the network of `recurrent.Config`, one or more sizes, and the three lists of a grid."""

  epochs: int = retrain.epochs_field(30)
  sizes: tuple[str, ...] = field(
    ('32',),
    'sizes to train: widths of the cells, or numbers of weights as 20k; the grid is at the first',
    budget=True,
    first=True,
  )
  lr: tuple[float, ...] = field((0.01,), 'learning rates to try', above=0.0)
  weight_decay: tuple[float, ...] = field(
    (0.0,), 'weight decays to try, of all weights but the biases of the outputs', low=0.0
  )
  dropout: tuple[str, ...] = field(
    ('0',), 'rates of dropout to try, of what enters the outputs, and cells from a layer below'
  )


def demo() -> Config:
  """Takes minutes on a laptop, without a download: scikit-learn's digits, read row by row."""
  return Config(valid_share=0.25, batch=16, lr=(0.003, 0.01), dropout=('0', '0.2'), grid_epochs=5, repeats=2)


def smoke() -> Config:
  """Takes seconds: a test that everything runs."""
  return Config(sizes=('4', '6'), max_examples=200, epochs=2, lr=(0.01, 0.02), grid_epochs=1)


PRESETS = {'demo': demo, 'smoke': smoke}


class Point(NamedTuple):
  """One entry of the grid; the fields are those of `Config`."""

  lr: float
  weight_decay: float
  dropout: str


def check(cfg: Config) -> None:
  """Raises ValueError, naming the field, on an impossible value."""
  config.check(cfg)
  for size in cfg.sizes:
    retrain_cell.parse_size(size)
  for rate in cfg.dropout:
    parse_dropout(rate)


def parse_dropout(rate: str) -> float:
  """Reads a rate of dropout. Raises ValueError on anything else."""
  try:
    if 0.0 <= float(rate) <= 0.95:
      return float(rate)
  except ValueError:
    pass
  raise ValueError(f'dropout: {rate!r} must be one rate from 0 to 0.95.')


def describe(point: Point) -> str:
  """Returns a point in words. They are part of the keys of trainings.json: if they change, all is trained again."""
  return f'lr {point.lr:g}, weight decay {point.weight_decay:g}, dropout {point.dropout}'


def hyperparameters(points: Sequence[Point]) -> Hyperparameters:
  """Returns the hyperparameters of m points, each as an array [m]. Dropout is None if no point has it."""
  lr, weight_decay, rates = zip(*points, strict=True)
  dropout = [parse_dropout(rate) for rate in rates]
  return Hyperparameters(jnp.array(lr), jnp.array(weight_decay), jnp.array(dropout) if any(dropout) else None)


def validate(cfg: Config, data: Sequences, arch: Arch) -> None:
  """Raises ValueError, before anything compiles, if no width gives one of the sizes, or the data cannot be used.

  They cannot if there is no test split, a device has no memory for them, or the metric does not fit their labels.
  """
  classifier.check_test_split(cfg.dataset, len(data.test.labels))
  recurrent.check_memory(data)
  for size in cfg.sizes:
    width(cfg, data, arch, size)


def width(cfg: Config, data: Sequences, arch: Arch, size: str) -> int:
  """Returns the width of the cells in a network of this size. Raises ValueError if none fits; nothing is compiled."""
  hidden, parameters = retrain_cell.parse_size(size)
  cell, form = retrain_cell.cell_of(arch)
  if not hidden:
    hidden = language.nearest_width(lambda width: recurrent.weights(cfg, data, cell, form, width), parameters)
  recurrent.weights(cfg, data, cell, form, hidden)
  return hidden


def task(
  cfg: Config,
  data: Sequences,
  arch: Arch,
  size: str,
  epochs: int,
  final: bool = False,
  mesh: Mesh | None = None,
) -> full_training.Task:
  """Returns the task of training a network of one cell at one size for `epochs` passes over the sequences.

  The weights after the epoch that scored best on validation are kept, whether the training is `final` or part of the
  grid. Raises ValueError as `width`.
  """
  del final
  hidden, (cell, form) = width(cfg, data, arch, size), retrain_cell.cell_of(arch)
  setup = recurrent.set_up(cfg, data, data.train, data.valid, data.test)
  valid, test = setup.data
  network = recurrent.network(cfg, data, cell, hidden)
  own = child_lib.bind_arch(network, lambda hyperparameters: recurrent.spec(form, hyperparameters))
  programs = classifier.fitter(setup, own, lambda hyperparameters: hyperparameters, epochs * setup.pass_steps, mesh)
  count = recurrent.weights(cfg, data, cell, form, hidden)
  return full_training.Task(str(hidden), count, programs, valid, test, lambda scores: 1.0 - scores[cfg.metric])


def setting(cfg: Config, data: Sequences) -> str:
  """Returns in words what all trainings have in common."""
  weighed = ', classes of equal weight' if cfg.class_weights == 'balanced' else ''
  against = ' of the changes from the last value' if data.horizon else ''
  return (
    f'{metrics.NAMES[cfg.metric][1]}{against} of the best of {counted(cfg.epochs, "epoch")} by validation{weighed}; '
    f'{recurrent.about(cfg, data)}, sha256 {data.sha256[:12]}; {len(data.test.labels)} to test; '
    f'{counted(cfg.layers, "layer")}, {cfg.optimizer}, {config.seeds_in_words(cfg)}; means over the '
    'trainings'
  )


def card(cfg: Config, data: Sequences, arch: Arch, size: str, point: Point) -> export.Card:
  """Returns the description of a trained network, without dropout, which acts in training alone."""
  del point
  options = {'outputs': data.outputs, 'features': width(cfg, data, arch, size), 'layers': cfg.layers}
  return export.Card(arch, options, export.SequenceInputs.of(data))


RECIPE = retrain.Recipe(
  Config,
  PRESETS,
  retrain_cell.KNOWN,
  metric='error',
  point=Point,
  check=check,
  validate=validate,
  sizes=lambda cfg: cfg.sizes,
  task=task,
  hyperparameters=hyperparameters,
  describe=describe,
  setting=setting,
  card=card,
)
