"""Recurrent networks for sequences with labels and for time series: what searches and trainings to the end share."""

from collections.abc import Callable
import dataclasses

import jax
import optax

from nas_jax import config
from nas_jax.children import conv, language_model, sequence
from nas_jax.config import field
from nas_jax.datasets import image_batches, sequences, splits
from nas_jax.datasets.own_sequences import SMALLER, Split
from nas_jax.datasets.sequences import Sequences
from nas_jax.nn.precision import PRECISION_HELP, PRECISIONS
from nas_jax.systems import classifier
from nas_jax.training import child as child_lib
from nas_jax.training import metrics, schedules
from nas_jax.training.child import Child
from nas_jax.types import PyTree
from nas_jax.words import counted


@dataclasses.dataclass
class Config(config.DataSeed):
  """The sequences, the network and its training, apart from what may differ by child: `sequence.Hyperparameters`."""

  dataset: str = field(
    'digits',
    "sequences: 'digits' of scikit-learn, row by row; 'folder', files of one sequence each in data_dir, in a "
    'sub-folder for each class; FILE.npz, arrays sequences and labels, or an array series to forecast; or FILE.csv, '
    'FILE.tsv or FILE.npy, a series to forecast',
    first=True,
  )
  max_examples: int = field(0, 'sequences to take for training and validation together; 0 for all', low=0)
  valid_share: float = field(
    0.1, 'share of the training sequences to validate with, if the set has no such split', above=0.0
  )
  test_share: float = field(
    0.0,
    'share of the training sequences to test with, where the set has no test split; retraining needs one, and the '
    'search before it the same share, so that it does not see them',
    low=0.0,
    high=0.9,
  )
  window: int = field(
    0, 'steps of a series that a forecast is made from; wanted for a series, and 0 without one', low=0, high=100_000
  )
  horizon: int = field(1, 'steps of a series that are forecast', low=1, high=10_000)
  layers: int = field(1, 'layers of cells, one on top of the other', low=1, high=128)
  batch: int = field(32, 'sequences in a training step (batch size)', low=1)
  unroll: int = field(1, 'time steps that one turn of the loop over time is compiled for', low=1)
  epochs: int = field(10, 'passes over the training sequences', low=1)
  optimizer: str = field('adam', 'optimizer of the networks', choices=('adam', 'sgd'))
  schedule: str = field(
    'cosine',
    "schedule of the learning rate. 'cosine': it falls to 0 over the training; 'constant': it stays",
    choices=('cosine', 'constant'),
  )
  clip: float = field(1.0, 'norm to which the gradient of a network is clipped', above=0.0)
  score_batch: int = field(500, 'sequences in a validation step', low=1)
  precision: str = field('float32', PRECISION_HELP, choices=PRECISIONS)
  metric: str = field(
    'accuracy',
    "what networks are scored by: 'accuracy'; 'balanced_accuracy', the mean over classes of the share that is "
    "recognised; 'f1', the mean over classes of F1 (macro F1); or 'r2' for labels that are numbers (regression), the "
    'share of their variance that is explained, and for a series, the share of the squared error of a simple '
    'forecast (the last value plus the mean change) that is avoided',
    choices=tuple(metrics.NAMES),
  )
  class_weights: str = field(
    'none',
    "weights of the losses of training sequences: 'none', or 'balanced', which makes all classes weigh the same "
    'however many sequences they have',
    choices=metrics.CLASS_WEIGHTS,
  )


def load(cfg: Config, data_dir: str = '') -> Sequences:
  """Returns the sequences that `cfg` names.

  Raises:
    ValueError: as `sequences.load_sequences`, or there are fewer training sequences than a batch has.
  """
  found = sequences.load_sequences(
    cfg.dataset, data_dir, cfg.valid_share, cfg.max_examples, config.data_seed(cfg), cfg.test_share,
    cfg.metric == 'r2', cfg.window, cfg.horizon,
  )  # fmt: skip
  if len(found.train.labels) < cfg.batch:
    there = counted(len(found.train.labels), 'training sequence')
    raise ValueError(f'batch (={cfg.batch}) is more than the {there}: take fewer.')
  return found


def about(cfg: Config, data: Sequences) -> str:
  """Returns what networks learn, in words."""
  steps, features = data.shape
  if data.horizon:
    ahead = counted(data.horizon, 'step')
    what = f'{counted(len(data.train.labels), "window")} of {cfg.dataset} to forecast {ahead}'
  else:
    what = f'{counted(len(data.train.labels), "sequence")} of {cfg.dataset}'
  return f'{what}, {counted(steps, "step")} of {counted(features, "feature")}'


def inputs(cfg: Config, data: Sequences) -> conv.InputSpec:
  """Returns the properties of sequences that a network depends on.

  Raises ValueError if the metric does not fit their labels.
  """
  classifier.check_metric(cfg.metric, cfg.class_weights, data.scale is not None)
  weights = metrics.balanced(data.train.labels, data.outputs) if cfg.class_weights == 'balanced' else ()
  steps, features = data.shape
  size = min(cfg.score_batch, len(data.valid.labels))
  return conv.InputSpec(
    (steps, 1, 1 + features), data.outputs, cfg.batch, size, precision=cfg.precision, metric=cfg.metric,
    class_weights=weights,
  )  # fmt: skip


def network(cfg: Config, data: Sequences, cell: language_model.Cell, hidden: int) -> Child:
  """Returns the network with cells of width `hidden`, whose arch is a `conv.ChildSpec`."""
  return sequence.build(inputs(cfg, data), hidden, cfg.layers, cell, cfg.unroll)


def spec(arch: PyTree, hyperparameters: sequence.Hyperparameters | None = None) -> conv.ChildSpec:
  """Returns the arch of a network. Without hyperparameters it serves only to count weights."""
  return conv.ChildSpec(arch, hyperparameters or sequence.Hyperparameters(0.0, 0.0))


def weights(cfg: Config, data: Sequences, cell: language_model.Cell, arch: PyTree, hidden: int) -> int:
  """Returns how many weights a network has. Raises ValueError if they are too many; nothing is compiled."""
  child = network(cfg, data, cell, hidden)
  count = child_lib.count_weights(lambda: child.init(spec(arch), jax.random.key(0)))
  child_lib.check_weights(count, 'narrower cells or fewer layers.')
  return count


def check_memory(data: Sequences) -> None:
  """Raises ValueError if a device has too little memory for all sequences as networks read them."""
  steps, features = data.shape
  count = sum(len(part.labels) for part in (data.train, data.valid, data.test))
  needed = 4 * count * (steps * (1 + features) + data.outputs) + image_batches.ORDERS * 8 * len(data.train.labels)
  classifier.check_device(f'{count} sequences of {data.shape}', needed, SMALLER)


def set_up(cfg: Config, data: Sequences, train: Split | None = None, *scored: Split) -> classifier.Setup:
  """Lays sequences out for training and makes the optimizer.

  Args:
    cfg: the config of the sequences and the training.
    data: as `load` returns it.
    train: the sequences to train on; the training split by default.
    *scored: the splits to score; the validation split by default.

  Raises:
    ValueError: the metric does not fit the labels, or a device has no memory for the sequences.
  """
  made = inputs(cfg, data)
  check_memory(data)

  def ready(part: Split) -> splits.Split:
    learned = part.labels if data.scale is None else classifier.scaled(part.labels, data.scale)
    return splits.Split(sequence.laid_out(part, data.standard), learned)

  first, *others = map(ready, (train or data.train, *(scored or (data.valid,))))
  found = image_batches.lay_out(first, others, made.score_batch, seed=config.data_seed(cfg))
  pass_steps = len(first.labels) // cfg.batch

  def optimizer(steps: int) -> Callable[[sequence.Hyperparameters], optax.GradientTransformation]:
    def of(own: sequence.Hyperparameters) -> optax.GradientTransformation:
      rate = schedules.rate(cfg.schedule, own.lr, steps, pass_steps)
      step = optax.adam(rate) if cfg.optimizer == 'adam' else optax.sgd(rate)
      return optax.chain(optax.clip_by_global_norm(cfg.clip), step)

    return of

  return classifier.Setup(made, tuple(found), pass_steps, optimizer)
