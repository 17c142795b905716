"""How recurrent cells are retrained: as language models, Zoph & Le (2017) Sec. 4.2."""

from collections.abc import Sequence
import contextlib
import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from nas_jax import config, export, published
from nas_jax.children import language_model
from nas_jax.config import field
from nas_jax.datasets import text as text_lib
from nas_jax.datasets import text_batches
from nas_jax.operations import BUILT_IN, Operations, find
from nas_jax.space import RnnArch, TreeArch
from nas_jax.systems import language, retrain
from nas_jax.training import child as child_lib
from nas_jax.training import full_training
from nas_jax.words import counted

Arch = TreeArch | RnnArch | str  # 'LSTM' is the standard LSTM: it has biases, so it is no tree cell
KNOWN: dict[str, Arch] = {'NASCELL': published.NASCELL, 'ENAS_RNN': published.ENAS_RNN, 'LSTM': 'LSTM'}


@dataclasses.dataclass
class Config(language.Config, retrain.Config):
  """The text and the network of `language.Config`, one or more sizes, and the four lists of a grid."""

  epochs: int = retrain.epochs_field(1)
  sizes: tuple[str, ...] = field(
    ('32',),
    'sizes to train: widths of the cells, or numbers of weights as 4.65M; the grid is trained at the first size',
    budget=True,
    first=True,
  )
  lr: tuple[float, ...] = field((0.01,), 'learning rates to try', above=0.0)
  decay_epoch: tuple[float, ...] = field(
    (4.0,), "numbers of epochs to try before the learning rate decays, in the schedule 'epochs'", low=0.0
  )
  init_scale: tuple[float, ...] = field(
    (0.1,), 'scales to try: all weights start uniform within +- the scale', above=0.0
  )
  dropout: tuple[str, ...] = field(
    ('0',), 'dropout rates to try, each as embedding:input:recurrent:output, or as one number for input and output'
  )
  test_batch: int = field(1, 'streams of the test split scored side by side; with 1 the text is not cut', low=1)


def zaremba_small() -> Config:
  """Zaremba et al. (2014), the small model: 2 layers of 200 LSTM units, 4.65M weights for any cell."""
  return Config(
    dataset='ptb', level='word', sizes=('4.65M',), layers=2, batch=20, bptt=20, epochs=13, optimizer='sgd', lr=(1.0,),
    schedule='epochs', lr_decay=0.5, decay_epoch=(4.0,), sum_over_time=True, clip=5.0, init_scale=(0.1,),
    score_batch=20,
  )  # fmt: skip


def zaremba_medium() -> Config:
  """Zaremba et al. (2014), the medium model: 2 layers of 650 LSTM units, 19.8M weights, dropout of one half."""
  return dataclasses.replace(
    zaremba_small(), sizes=('19.775M',), bptt=35, epochs=39, lr_decay=1 / 1.2, decay_epoch=(6.0,), init_scale=(0.05,),
    dropout=('0.5',),
  )  # fmt: skip


def enas() -> Config:
  """Pham et al. (2018): one layer, 24M weights, softmax tied to the embedding, SGD at a rate of 20; never run here.

  As in the paper, the learning rate is multiplied by 0.96 in each epoch after the 15th of 150 epochs, and 1e-7 times
  the squared weights are added to the loss. The streams, the time steps, the loss summed over time, the initial scale
  and the rates of dropout are those of the released code for the final cell. Dropout is 0.21 for words of the
  embedding, 0.75 for the input of the cell, 0.25 for h_(t-1) and 0.76 for the input of the softmax. Two things
  differ from that code: it applies the dropout mask of h_(t-1) to the input of every node, and here only the first node
  has the mask; and its loss has a penalty for fast changes of h, which is left out here.
  """
  return Config(
    dataset='ptb', level='word', sizes=('24M',), tied=True, batch=64, bptt=35, epochs=150, optimizer='sgd', lr=(20.0,),
    schedule='epochs', lr_decay=0.96, decay_epoch=(15.0,), sum_over_time=True, clip=0.25, weight_decay=2e-7,
    decay_before_clip=True, init_scale=(0.04,), dropout=('0.21:0.75:0.25:0.76',), score_batch=64,
  )  # fmt: skip


def char() -> Config:
  """Characters of Penn Treebank, with the settings of Table 3; its 600,000 steps are 383 passes over the text.

  The paper gives two dropout rates and does not say where each applies. The files of this data set separate characters
  by white space, so each character is read as a word.
  """
  return Config(
    dataset='ptb.char', level='word', sizes=('800',), embedding=128, layers=2, batch=32, bptt=100, epochs=383,
    lr=(1e-3,), schedule='constant', clip=1.0, weight_decay=1e-4, dropout=('0:0.2:0.2:0.5',), score_batch=32,
  )  # fmt: skip


def demo() -> Config:
  """Takes minutes on a laptop, without a download: characters of Python's help text."""
  return Config(
    sizes=('64',), epochs=5, lr=(0.003, 0.01), init_scale=(0.1,), dropout=('0', '0.2'), grid_epochs=1, repeats=2,
    test_batch=20,
  )  # fmt: skip


def small() -> Config:
  """Words of Penn Treebank, one layer of width 64, SGD as in Zaremba et al. (2014), annealed over three epochs."""
  return dataclasses.replace(
    zaremba_small(), sizes=('64',), layers=1, epochs=3, lr=(0.3, 1.0, 3.0), schedule='cosine', score_batch=100,
    repeats=2,
  )  # fmt: skip


def final() -> Config:
  """For the final choice of a demo search: `demo` without dropout, with other rates, each of them trained in full."""
  return dataclasses.replace(demo(), lr=(0.005, 0.01), extend_grid=4, dropout=('0',), grid_epochs=0)


def smoke() -> Config:
  """Takes seconds: a test that everything runs."""
  return Config(sizes=('8', '12'), batch=400, bptt=100, epochs=2, lr=(0.01, 0.02), grid_epochs=1, test_batch=20)


PRESETS = {
  'zaremba_small': zaremba_small,
  'zaremba_medium': zaremba_medium,
  'enas': enas,
  'char': char,
  'small': small,
  'demo': demo,
  'final': final,
  'smoke': smoke,
}


def check(cfg: Config) -> None:
  """Raises ValueError, naming the field, on an impossible value."""
  config.check(cfg)
  for size in cfg.sizes:
    parse_size(size)
  for rates in cfg.dropout:
    parse_dropout(rates)


def parse_size(size: str) -> tuple[int, int]:
  """Reads a size: '200' is (200, 0), the width of the cells; '4.65M' is (0, 4650000), the number of weights.

  Raises ValueError on anything else.
  """
  if weights := retrain.parse_weights(size):
    return 0, weights
  with contextlib.suppress(ValueError):
    if int(size) > 0:
      return int(size), 0
  raise ValueError(f'sizes: {size!r} must be a width, as 200, or a number of weights, as 500k or 4.65M.')


def parse_dropout(rates: str) -> language_model.Dropout:
  """Reads rates of dropout: '0:0.2:0.2:0.5' is embedding:input:recurrent:output, '0.5' is '0:0.5:0:0.5'.

  Raises ValueError on anything else.
  """
  try:
    found = [float(rate) for rate in rates.split(':')]
    if len(found) in (1, 4) and all(0 <= rate <= 0.95 for rate in found):
      return language_model.Dropout(*found) if len(found) == 4 else language_model.Dropout(0.0, found[0], 0.0, found[0])
  except ValueError:
    pass
  raise ValueError(
    f'dropout: {rates!r} must be one rate or four, embedding:input:recurrent:output, each from 0 to 0.95.'
  )


class Point(NamedTuple):
  """One entry of the grid; the fields are those of `Config`."""

  lr: float
  decay_epoch: float
  init_scale: float
  dropout: str


def describe(point: Point) -> str:
  """Returns a point in words. They are part of the keys of trainings.json: if they change, all is trained again."""
  return f'lr {point.lr:g}, decay after {point.decay_epoch:g}, init {point.init_scale:g}, dropout {point.dropout}'


def hyperparameters(points: Sequence[Point]) -> language_model.Hyperparameters:
  """Returns the hyperparameters of m points, each as an array [m]. A kind of dropout is None if no point has it."""
  lr, decay_epoch, init_scale, rates = zip(*points, strict=True)
  columns = zip(*map(parse_dropout, rates), strict=True)
  dropout = language_model.Dropout(*(jnp.array(column) if any(column) else None for column in columns))
  return language_model.Hyperparameters(
    jnp.array(lr), jnp.array(decay_epoch), jnp.array(init_scale), jnp.array(init_scale), dropout
  )


def validate(cfg: Config, text: text_lib.Text, arch: Arch) -> None:
  """Raises ValueError, before anything compiles, if the cell cannot be retrained.

  It cannot if no width gives one of the sizes, a split is too short, or it has an operation that is not built in.
  """
  lay_out(cfg, text)
  for size in cfg.sizes:
    width(cfg, text, arch, size)


def lay_out(cfg: Config, text: text_lib.Text) -> tuple[text_batches.Data, text_batches.Data]:
  """Returns the text with the validation split to score, and with the test split.

  Raises ValueError as `text_batches.lay_out`, and if the test split has fewer than two tokens.
  """
  data = text_batches.lay_out(text, cfg.batch, cfg.bptt, cfg.score_batch)
  return data, data._replace(valid=text_batches.windows(text.test, cfg.test_batch, cfg.bptt, 'test'))


def width(cfg: Config, text: text_lib.Text, arch: Arch, size: str, operations: Operations = BUILT_IN) -> int:
  """Returns the width of the cells in a network of this size. Raises ValueError if none fits; nothing is compiled."""
  hidden, parameters = parse_size(size)
  cell, form = cell_of(arch, operations)
  hidden = hidden or language.width(cfg, text, cell, form, parameters)
  child = language.build(cfg, text, cell, hidden)
  spec = language_model.ChildSpec(form, language_model.Hyperparameters(0.0, 0.0, 0.0, 0.0))
  language.check_size(lambda: child.init(spec, jax.random.key(0)))
  return hidden


def weights(cfg: Config, text: text_lib.Text, arch: Arch, size: str) -> int:
  """Returns the number of weights of a network of this size. Raises ValueError as `width`."""
  hidden, (cell, form) = width(cfg, text, arch, size), cell_of(arch)
  return language.weights(language.build(cfg, text, cell, hidden), form)


def task(
  cfg: Config,
  text: text_lib.Text,
  arch: Arch,
  size: str,
  epochs: int,
  final: bool = False,
  mesh: Mesh | None = None,
  operations: Operations = BUILT_IN,
) -> full_training.Task:
  """Returns the task of training a network of one cell at one size for `epochs` passes over the text.

  The weights after the epoch that scored best on validation are kept, whether the training is `final` or part of the
  grid. `operations` are those of the cell's space, needed if it has operations of the user's own. Raises ValueError as
  `width` and `lay_out`.
  """
  del final
  hidden, (cell, form) = width(cfg, text, arch, size, operations), cell_of(arch, operations)
  network = language.build(cfg, text, cell, hidden)
  data, test = lay_out(cfg, text)
  own = child_lib.bind_arch(network, lambda hyperparameters: language_model.ChildSpec(form, hyperparameters))
  epoch = len(data.train)
  programs = language.fitter(cfg, data, own, lambda hyperparameters: hyperparameters, epochs * epoch, epoch, mesh)
  return full_training.Task(
    str(hidden), language.weights(network, form), programs, data, test, lambda scores: scores['perplexity']
  )


def cell_of(arch: Arch, operations: Operations = BUILT_IN) -> tuple[language_model.Cell, TreeArch | RnnArch]:
  """Returns the kind of cell of an architecture, and the arch it takes. Raises ValueError on unknown operations."""
  if isinstance(arch, str):
    return language_model.lstm(), published.LSTM  # a standard LSTM has no tree
  chosen = {'activate': set(arch.activate)}
  if isinstance(arch, TreeArch):
    chosen = {'combine': {*arch.combine, arch.inject[0]}, 'activate': {*arch.activate, arch.inject[1]}}
  for kind, ids in chosen.items():
    for one in ids:
      find(kind, operations, one)  # raises ValueError on an operation that is not known here
  return (language_model.enas(operations) if isinstance(arch, RnnArch) else language_model.tree(operations)), arch


def setting(cfg: Config, text: text_lib.Text) -> str:
  """Returns in words what all trainings have in common."""
  return (
    f'perplexity of the best of {counted(cfg.epochs, "epoch")} by validation; {cfg.dataset}, sha256 '
    f'{text.sha256[:12]}; {counted(cfg.layers, "layer")}, {cfg.optimizer}, {config.seeds_in_words(cfg)}; means over '
    'the trainings'
  )


def card(cfg: Config, text: text_lib.Text, arch: Arch, size: str, point: Point) -> export.Card:
  """Returns the description of a trained network, without dropout, which acts in training alone."""
  del point
  options = {
    'vocabulary': cfg.vocabulary or len(text.vocabulary),
    'features': width(cfg, text, arch, size),
    'layers': cfg.layers,
    'embedding': cfg.embedding,
    'tied': cfg.tied,
  }
  return export.Card(arch, options, export.TextInputs(cfg.level, text.vocabulary))


RECIPE = retrain.Recipe(
  Config,
  PRESETS,
  KNOWN,
  metric='perplexity',
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
