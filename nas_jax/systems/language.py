"""Language models: what searches for recurrent cells have in common with the full training of the cells they find."""

from collections.abc import Callable
import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import numpy as np
import optax

from nas_jax import config
from nas_jax.children import language_model
from nas_jax.config import field
from nas_jax.datasets import text as text_lib
from nas_jax.datasets import text_batches
from nas_jax.nn.precision import PRECISION_HELP, PRECISIONS
from nas_jax.space import Space
from nas_jax.training import child as child_lib
from nas_jax.training import fit, schedules
from nas_jax.training.child import Child
from nas_jax.training.problem import Problem
from nas_jax.types import Array, PyTree


@dataclasses.dataclass
class Config(config.DataSeed):
  """The text, the network and its training, without what may differ by child: `language_model.Hyperparameters`."""

  dataset: str = field(
    'pydoc',
    "text: 'pydoc', Python's own help; 'tiny_shakespeare' of TFDS; or the prefix of three files in data_dir, as 'ptb'",
    first=True,
  )
  level: str = field(
    'char',
    "what a token of the text is: a character, or a 'word' between white space",
    choices=('char', 'word'),
    first=True,
  )
  min_count: int = field(
    0,
    'tokens that occur fewer times than this in the training split are replaced by <unk>. 0 means 2 for words of your '
    'own text if <unk> would not be trained otherwise, else 1',
    low=0,
  )
  max_vocabulary: int = field(
    0, 'how many of the most frequent tokens to keep, <unk> included, which replaces the others; 0 for all', low=0
  )
  vocabulary: int = field(0, 'rows of the embedding; 0 for as many as the text has different tokens', low=0)
  embedding: int = field(0, 'width of the embedding; 0 for the width of the cells', low=0)
  layers: int = field(1, 'layers of cells, one on top of the other', low=1, high=128)
  tied: bool = field(False, 'use the weights of the embedding for the softmax too, "shared embeddings" in Table 2')
  batch: int = field(20, 'streams of text that are trained on side by side', low=1)
  bptt: int = field(35, 'time steps of truncated backpropagation', low=1)
  unroll: int = field(
    1,
    'time steps that are unrolled in each iteration of the compiled loop over time. With 5, small cells are up to '
    'twice as fast on a GPU; compiling takes longer, and a CPU gains nothing',
    low=1,
  )
  epochs: int = field(0, 'passes over the training text that train a child', low=0)
  optimizer: str = field('adam', 'optimizer of the children', choices=('adam', 'sgd'))
  schedule: str = field(
    'cosine',
    "schedule of the learning rate. 'cosine': it falls to 0 over the training of a child; 'epochs': it decays after "
    'each epoch from decay_epoch on',
    choices=('cosine', 'epochs', 'constant'),
  )
  lr_decay: float = field(
    0.5, "factor by which the learning rate decays, in the schedule 'epochs'", above=0.0, high=1.0
  )
  sum_over_time: bool = field(
    False, 'take as loss the sum over the bptt time steps and not the mean, as Zaremba et al. (2014)'
  )
  clip: float = field(1.0, "norm to which a child's gradient is clipped", above=0.0)
  weight_decay: float = field(0.0, 'L2 regularization: this times the weights is added to the gradient', low=0.0)
  decay_before_clip: bool = field(
    False, 'add weight_decay to the gradient before it is clipped, as the code of Pham et al. (2018), and not after'
  )
  score_batch: int = field(100, 'streams of text that are scored side by side in validation', low=1)
  precision: str = field('float32', PRECISION_HELP, choices=PRECISIONS)

  # See `config.with_added`.
  added: ClassVar[dict[str, Any]] = {
    'decay_before_clip': False,
    'min_count': 0,
    'max_vocabulary': 0,
    'precision': 'float32',
    'unroll': 1,
  }


@dataclasses.dataclass
class Children(Config):
  """`Config`, and the hyperparameters that all children of a search share. A full training tries several of each."""

  lr: float = field(0.01, 'learning rate of the children', above=0.0)
  decay_epoch: float = field(4.0, "epochs until the learning rate first decays, in the schedule 'epochs'", low=0.0)
  init_scale: float = field(0.1, 'initial weights of embedding and softmax are uniform within +-this', above=0.0)
  cell_init: float = field(
    0.0, 'initial weights of the cells are uniform within +-this; 0 for 1 / sqrt(hidden)', low=0.0
  )
  dropout_embedding: float = field(
    0.0, 'rate at which words of the embedding are dropped, Gal & Ghahramani (2016)', low=0.0, high=0.95
  )
  dropout_input: float = field(
    0.0, 'dropout rate of the input of a cell from the layer below, Gal & Ghahramani (2016)', low=0.0, high=0.95
  )
  dropout_recurrent: float = field(
    0.0, 'dropout rate of h_(t-1) where it enters a cell, Gal & Ghahramani (2016)', low=0.0, high=0.95
  )
  dropout_output: float = field(
    0.0, 'dropout rate of the input of the softmax, Gal & Ghahramani (2016)', low=0.0, high=0.95
  )


def load(cfg: Config, data_dir: str = '') -> text_lib.Text:
  """Returns the text that `cfg` names.

  Raises:
    ValueError: as `text.load_text`, or the text has more different tokens than the embedding has rows.
  """
  text = text_lib.load_text(cfg.dataset, data_dir, cfg.level, cfg.min_count, cfg.max_vocabulary, config.data_seed(cfg))
  if 0 < cfg.vocabulary < len(text.vocabulary):
    raise ValueError(
      f'the text has {len(text.vocabulary)} different {cfg.level}s, but the embedding only has vocabulary '
      f'(={cfg.vocabulary}) rows: take more rows, or 0 for as many as needed.'
    )
  return text


def about(cfg: Config, text: text_lib.Text) -> str:
  """Describes the text in words: its tokens and, if any, the share of <unk> in the validation split."""
  words, share = f'{cfg.dataset}, {len(text.vocabulary)} different {cfg.level}s', text.unknown('valid')
  if share:
    words += f', {share:.2%} of the validation split unknown'
    words += '' if text.unknown('train') else ' and never trained (--min_count trains it)'
  return words


def check_size(init: Callable[[], PyTree]) -> None:
  """Raises ValueError if `init` returns too many weights for the memory; nothing is compiled or allocated."""
  child_lib.check_weights(
    child_lib.count_weights(init),
    'narrower cells, fewer layers or a smaller vocabulary. (In sizes, 200 is a width, 500k or 4.65M are weights.)',
  )


def hyperparameters(cfg: Children, hidden: int) -> language_model.Hyperparameters:
  """Returns the hyperparameters that all children share; a dropout of rate 0 is left out of the network."""
  rates = cfg.dropout_embedding, cfg.dropout_input, cfg.dropout_recurrent, cfg.dropout_output
  dropout = language_model.Dropout(*(rate or None for rate in rates))
  return language_model.Hyperparameters(cfg.lr, cfg.decay_epoch, cfg.init_scale, cfg.cell_init or hidden**-0.5, dropout)


def build(cfg: Config, text: text_lib.Text, cell: language_model.Cell, hidden: int) -> Child:
  """Returns the network of `cfg` with cells of width `hidden`, whose arch is a `language_model.ChildSpec`."""
  vocabulary = cfg.vocabulary or len(text.vocabulary)
  return language_model.build(
    vocabulary, hidden, cfg.layers, cfg.batch, cell, cfg.tied, cfg.embedding, cfg.precision, cfg.unroll
  )


def width(cfg: Config, text: text_lib.Text, cell: language_model.Cell, arch: PyTree, parameters: int) -> int:
  """Returns the width of the cell `arch` that brings its network nearest to `parameters` weights, as in Sec. 4.2.

  Raises:
    ValueError: the nearest number of weights is more than 5 % off.
  """

  return nearest_width(lambda hidden: weights(build(cfg, text, cell, hidden), arch), parameters)


def nearest_width(count: Callable[[int], int], parameters: int) -> int:
  """Returns the width at which a network comes nearest to `parameters` weights; `count` maps a width to weights.

  Raises:
    ValueError: the nearest number of weights is more than 5 % off.
  """
  found = child_lib.nearest_size(count, parameters)
  made = count(found)
  if abs(made - parameters) > 0.05 * parameters:
    raise ValueError(
      f'parameters (={parameters}) cannot be met: cells of width {found} make {made} with these data '
      'and layers; ask for a number near that, or set hidden.'
    )
  return found


def weights(child: Child, arch: PyTree) -> int:
  """Returns the number of weights of a network with the cell `arch`."""
  spec = language_model.ChildSpec(arch, language_model.Hyperparameters(0.0, 0.0, 0.0, 0.0))
  return child_lib.count_weights(lambda: child.init(spec, jax.random.key(0)))


def optimizer(
  cfg: Config, steps: int | Array, epoch: int
) -> Callable[[language_model.Hyperparameters], optax.GradientTransformation]:
  """Returns a function from hyperparameters to the optimizer of a child.

  A child trains for `steps` steps; a pass over the text has `epoch` steps.
  """

  def make(hyperparameters: language_model.Hyperparameters) -> optax.GradientTransformation:
    scale = [optax.scale(cfg.bptt)] if cfg.sum_over_time else []
    decay = [optax.add_decayed_weights(cfg.weight_decay)] if cfg.weight_decay else []
    rate = schedules.rate(cfg.schedule, hyperparameters.lr, steps, epoch, hyperparameters.decay_epoch, cfg.lr_decay)
    step = optax.adam(rate) if cfg.optimizer == 'adam' else optax.sgd(rate)
    clip = [optax.clip_by_global_norm(cfg.clip)]
    return optax.chain(*scale, *(decay + clip if cfg.decay_before_clip else clip + decay), step)

  return make


def make_problem(
  cfg: Children,
  text: text_lib.Text,
  space: Space,
  cell: language_model.Cell,
  hidden: int,
  reward: Callable[[np.ndarray], np.ndarray],
) -> Problem:
  """Returns the problem of a search for cells. Children train for `cfg.epochs` passes, one pass in a program call.

  Args:
    cfg: the config of the text, the network and its training.
    text: as `load` returns it.
    space: the space of the architectures.
    cell: the kind of cell; it takes static or traced architectures of the space.
    hidden: the width of the cells.
    reward: validation perplexities [m] -> rewards [m].

  Raises:
    ValueError: the text is too short for one training step, or the network cannot be built or is too large.
  """
  data, plain = text_batches.lay_out(text, cfg.batch, cfg.bptt, cfg.score_batch), hyperparameters(cfg, hidden)
  child = child_lib.bind_arch(build(cfg, text, cell, hidden), lambda arch: language_model.ChildSpec(arch, plain))

  check_size(lambda: child.init(space.decode_batch(jnp.zeros(space.length, jnp.int32)), jax.random.key(0)))

  def optimizer_of(steps: int) -> Callable[[PyTree], optax.GradientTransformation]:
    made = optimizer(cfg, steps, len(data.train))(plain)
    return lambda arch: made

  return Problem(
    space,
    child,
    data,
    optimizer_of,
    steps=cfg.epochs * len(data.train),
    pass_steps=len(data.train),
    steps_per_call=len(data.train),
    metric='perplexity',
    reward=reward,
    traced=lambda archs: child,
  )


def fitter(
  cfg: Config,
  data: text_batches.Data,
  child: Child,
  hyperparameters: Callable[[PyTree], language_model.Hyperparameters],
  steps: int,
  steps_per_call: int,
  mesh: Mesh | None = None,
) -> fit.Fit:
  """Returns the programs that train `child`; `hyperparameters` maps its arch to its hyperparameters."""
  make = optimizer(cfg, steps, len(data.train))
  return fit.fitter(child, lambda arch: make(hyperparameters(arch)), steps, steps_per_call, mesh)
