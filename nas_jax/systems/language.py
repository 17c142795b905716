"""Language models: what a search for recurrent cells and the training of a found one have in common."""

from collections.abc import Callable
import dataclasses

import jax
from jax.sharding import Mesh
import numpy as np
import optax

from nas_jax.children import language_model
from nas_jax.config import field
from nas_jax.datasets import text as text_lib
from nas_jax.datasets import text_batches
from nas_jax.space import Space
from nas_jax.training import child as child_lib
from nas_jax.training import fit, schedules
from nas_jax.training.child import Child
from nas_jax.training.problem import Problem
from nas_jax.types import Array, PyTree


@dataclasses.dataclass
class Config:
  """A text, a network for it, and its training, but for what may differ by child (`language_model.Hyperparameters`)."""

  dataset: str = field(
    'pydoc',
    "text: 'pydoc', bundled with Python; 'tiny_shakespeare' of TFDS; or the prefix of files in data_dir, as 'ptb'",
  )
  level: str = field('char', "what a token is; 'word' is what stands between white space", choices=('char', 'word'))
  vocabulary: int = field(0, 'rows of the embedding, 0 for the different tokens of the text', low=0)
  embedding: int = field(0, 'width of the embedding, 0 for that of the cells', low=0)
  layers: int = field(1, 'cells stacked', low=1)
  tied: bool = field(False, 'softmax weights are those of the embedding, "shared embeddings" in Table 2')
  batch: int = field(20, 'streams side by side', low=1)
  bptt: int = field(35, 'time steps of truncated backpropagation', low=1)
  epochs: int = field(0, 'passes over the text that train a child', low=0)
  optimizer: str = field('adam', 'of the children', choices=('adam', 'sgd'))
  schedule: str = field(
    'cosine',
    "of the learning rate: 'cosine' to 0 over the steps of a child; 'epochs' decays after decay_epoch epochs",
    choices=('cosine', 'epochs', 'constant'),
  )
  lr_decay: float = field(0.5, "factor of each epoch after decay_epoch, in the schedule 'epochs'", above=0.0, high=1.0)
  sum_over_time: bool = field(
    False, 'the loss of a step is the sum over its bptt time steps, not the mean, as in Zaremba et al. (2014)'
  )
  clip: float = field(1.0, "greatest norm of a child's gradient", above=0.0)
  weight_decay: float = field(0.0, 'L2: this times the weights is added to the gradient', low=0.0)
  score_batch: int = field(100, 'streams side by side in validation', low=1)


@dataclasses.dataclass
class Children(Config):
  """And what all children of a search share, where a training to the end tries several."""

  lr: float = field(0.01, 'learning rate of the children', above=0.0)
  decay_epoch: float = field(4.0, "epochs at that rate, in the schedule 'epochs'", low=0.0)
  init_scale: float = field(0.1, 'embedding and softmax start uniform within +-this', above=0.0)
  cell_init: float = field(0.0, 'likewise the weights of the cells; 0 for 1 / sqrt(hidden)', low=0.0)
  dropout_embedding: float = field(0.0, 'rate of words dropped, Gal & Ghahramani (2016)', low=0.0, high=0.95)
  dropout_input: float = field(0.0, 'rate of what enters a cell from below, likewise', low=0.0, high=0.95)
  dropout_recurrent: float = field(0.0, 'rate of h_(t-1) where it enters a cell, likewise', low=0.0, high=0.95)
  dropout_output: float = field(0.0, 'rate of what enters the softmax, likewise', low=0.0, high=0.95)


def load(cfg: Config, data_dir: str = '') -> text_lib.Text:
  """The text that `cfg` names. Raises ValueError as `data.load_text`, and if its vocabulary exceeds the embedding."""
  text = text_lib.load_text(cfg.dataset, data_dir, cfg.level)
  if 0 < cfg.vocabulary < len(text.vocabulary):
    raise ValueError(
      f'the text has {len(text.vocabulary)} different {cfg.level}s, the embedding vocabulary (={cfg.vocabulary}) rows: '
      'take more of them, or 0 for as many as there are.'
    )
  return text


def hyperparameters(cfg: Children, hidden: int) -> language_model.Hyperparameters:
  """The hyperparameters of all children; dropout at rate 0 is none at all."""
  rates = cfg.dropout_embedding, cfg.dropout_input, cfg.dropout_recurrent, cfg.dropout_output
  dropout = language_model.Dropout(*(rate or None for rate in rates))
  return language_model.Hyperparameters(cfg.lr, cfg.decay_epoch, cfg.init_scale, cfg.cell_init or hidden**-0.5, dropout)


def build(cfg: Config, text: text_lib.Text, cell: language_model.Cell, hidden: int) -> Child:
  """The network of `cfg` with cells `hidden` wide; what the trainer calls its arch is an `language_model.ChildSpec`."""
  vocabulary = cfg.vocabulary or len(text.vocabulary)
  return language_model.build(vocabulary, hidden, cfg.layers, cfg.batch, cell, cfg.tied, cfg.embedding)


def width(cfg: Config, text: text_lib.Text, cell: language_model.Cell, arch: PyTree, parameters: int) -> int:
  """The width of cells like `arch` whose network comes nearest to so many weights, as sizes are chosen in Sec. 4.2.

  Raises:
    ValueError: even the nearest is 5 % off.
  """

  def count(hidden: int) -> int:
    return weights(build(cfg, text, cell, hidden), arch)

  low, high = 0, 1
  while count(high) < parameters:
    low, high = high, 2 * high
  while high - low > 1:
    middle = (low + high) // 2
    low, high = (middle, high) if count(middle) < parameters else (low, middle)
  off, found = min((abs(count(hidden) - parameters), hidden) for hidden in (low, high) if hidden)
  if off > 0.05 * parameters:
    raise ValueError(
      f'parameters (={parameters}) cannot be met: cells of width {found} make {count(found)} with this vocabulary '
      'and these layers; ask for a number near that, or set hidden.'
    )
  return found


def weights(child: Child, arch: PyTree) -> int:
  """How many weights a network has with the cell `arch`."""
  spec = language_model.ChildSpec(arch, language_model.Hyperparameters(0.0, 0.0, 0.0, 0.0))
  params = jax.eval_shape(lambda: child.init(spec, jax.random.key(0)))
  return sum(leaf.size for leaf in jax.tree.leaves(params))


def optimizer(
  cfg: Config, steps: int | Array, epoch: int
) -> Callable[[language_model.Hyperparameters], optax.GradientTransformation]:
  """Settings to the optimizer of a child of `steps` steps, `epoch` of them a pass over the text."""

  def make(hyperparameters: language_model.Hyperparameters) -> optax.GradientTransformation:
    scale = [optax.scale(cfg.bptt)] if cfg.sum_over_time else []
    decay = [optax.add_decayed_weights(cfg.weight_decay)] if cfg.weight_decay else []
    rate = schedules.rate(cfg.schedule, hyperparameters.lr, steps, epoch, hyperparameters.decay_epoch, cfg.lr_decay)
    step = optax.adam(rate) if cfg.optimizer == 'adam' else optax.sgd(rate)
    return optax.chain(*scale, optax.clip_by_global_norm(cfg.clip), *decay, step)

  return make


def problem(
  cfg: Children,
  text: text_lib.Text,
  space: Space,
  cell: language_model.Cell,
  hidden: int,
  reward: Callable[[np.ndarray], np.ndarray],
) -> Problem:
  """The problem of a search for cells: children train for `cfg.epochs` passes over the text, a pass a program call.

  Args:
    cfg: of the text, the network and its training.
    text: as `load` returns it.
    space: of the architectures.
    cell: what the network makes of an architecture, static or traced.
    hidden: the width of the cells.
    reward: validation perplexities [m] -> rewards [m].

  Raises:
    ValueError: the text is too short for one training step, or there is no such network.
  """
  data, plain = text_batches.lay_out(text, cfg.batch, cfg.bptt, cfg.score_batch), hyperparameters(cfg, hidden)
  child = child_lib.bind_arch(build(cfg, text, cell, hidden), lambda arch: language_model.ChildSpec(arch, plain))

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
  """The programs that train `child`, as `fit.fitter`; `hyperparameters` finds those of a child in its arch."""
  make = optimizer(cfg, steps, len(data.train))
  return fit.fitter(child, lambda arch: make(hyperparameters(arch)), steps, steps_per_call, mesh)
