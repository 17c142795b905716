"""Recurrent-cell search with shared weights: Pham et al. (2018), Sec. 2.1, 2.2 and 3.1."""

import dataclasses

import jax
import numpy as np

from nas_jax import config, space
from nas_jax.children import language_model
from nas_jax.config import field
from nas_jax.datasets import text as text_lib
from nas_jax.datasets import text_batches
from nas_jax.operations import Operation
from nas_jax.search import weight_sharing
from nas_jax.systems import enas, language
from nas_jax.training import rewards
from nas_jax.training.problem import Problem
from nas_jax.types import Key


@dataclasses.dataclass
class Config(language.Children, weight_sharing.Config):
  """The search, the cells, and how their weights are trained. The defaults are the paper's or its code's."""

  nodes: int = field(12, 'nodes of a cell, N', low=1)
  activate: tuple[str | Operation, ...] = field(
    ('tanh', 'relu', 'identity', 'sigmoid'),
    f'activation functions to choose from, of {", ".join(space.ACTIVATE)}',
    also=Operation,
  )
  hidden: int = field(1000, 'hidden units of a cell', low=1)
  epochs: int = field(10, 'passes over the text when a cell is trained from scratch, for comparison', low=1)
  lr: float = field(20.0, 'learning rate of the shared weights', above=0.0)
  decay_epoch: float = field(15.0, "epochs until the learning rate first decays, in the schedule 'epochs'", low=0.0)
  normalize: bool = field(
    False, 'apply batch norm, over the streams of a batch, to the input of the softmax, as the paper does'
  )
  score_windows: int = field(
    1, 'windows of bptt time steps that a reward is measured on, starting from a state of zeros', low=1
  )
  reward_c: float = field(80.0, 'c of the reward, c / perplexity; 80 in Pham et al. (2018)', above=0.0)


def paper() -> Config:
  """Penn Treebank as in Sec. 3.1, 150 passes. Not run here at this size.

  The paper does not give the dropout rates; they are those of the medium model of Zaremba et al. (2014). The paper does
  not say either whether the loss is the mean or the sum over the time steps, on which the effect of the learning rate
  and of the clipping norm depends. Here it is the sum, as in the released code. L2 adds 1e-7 times the squared weights
  to the loss.
  """
  return Config(
    **enas.PAPER, entropy_weight=1e-4,
    dataset='ptb', level='word', tied=True, batch=64, bptt=35, optimizer='sgd', schedule='epochs', lr_decay=0.96,
    sum_over_time=True, clip=0.25, weight_decay=2e-7, decay_before_clip=True, normalize=True, score_batch=64,
    dropout_input=0.5, dropout_output=0.5,
  )  # fmt: skip


def code() -> Config:
  """Penn Treebank with the numbers of the released search script, which differ from those of the paper.

  The learning rate is 0.25 for 13 of 100 epochs and is then multiplied by 0.95 in each epoch. That code differs in
  several points. Its learning rate never falls below 0.0005; it applies the recurrent dropout mask to the input of
  every node; every node has batch norm; there is a weight matrix for each pair of an earlier node and an activation;
  pointers prefer near nodes; and the entropy is -log p of the sampled tokens.
  """
  return dataclasses.replace(
    paper(), m=10, controller_lr=1e-3, controller_beta1=0.0, controller_epsilon=1e-3, entropy_weight=1e-3,
    baseline_decay=0.99, controller_updates=100, passes=100, hidden=720, batch=20, score_batch=20, lr=0.25,
    lr_decay=0.95, decay_epoch=13.0, clip=10.0, init_scale=0.04, cell_init=0.04, dropout_embedding=0.25,
    dropout_input=0.75, dropout_recurrent=0.25, dropout_output=0.75,
  )  # fmt: skip


def _short() -> Config:
  """Returns the settings that the presets below have in common."""
  return Config(
    **enas.SHORT, controller_updates=20, passes=20,
    nodes=6, hidden=32, optimizer='adam', lr=0.01, clip=1.0, epochs=2,
  )  # fmt: skip


def small() -> Config:
  """Words of Penn Treebank, a tenth of the text in a pass: about half an hour on two cores."""
  return dataclasses.replace(
    _short(), nodes=8, hidden=64, dataset='ptb', level='word', tied=True, bptt=20, score_batch=20, passes=20,
    pass_steps=230, controller_updates=50, score_windows=2,
  )  # fmt: skip


def demo() -> Config:
  """Takes minutes on a laptop, without a download: characters of Python's help text."""
  return dataclasses.replace(_short(), score_windows=2)


def smoke() -> Config:
  """Takes seconds: a test that everything runs."""
  return dataclasses.replace(
    _short(), m=2, controller_units=8, nodes=2, hidden=8, batch=200, bptt=100, passes=2, controller_updates=2,
    epochs=1, derive_children=3, rank_children=4,
  )  # fmt: skip


PRESETS = {'paper': paper, 'code': code, 'small': small, 'demo': demo, 'smoke': smoke}


def make_space(cfg: Config) -> space.Space:
  """Returns the space that `cfg` describes. Raises ValueError as `space.enas_rnn_space`."""
  return space.enas_rnn_space(cfg.nodes, cfg.activate)


def make_problem(cfg: Config, text: text_lib.Text) -> Problem:
  """Returns the problem on which the children are trained.

  Raises ValueError, before anything compiles, if a field has an impossible value; the message says what fits.

  >>> from nas_jax.systems import enas_rnn, language
  >>> cfg = enas_rnn.smoke()
  >>> problem = enas_rnn.make_problem(cfg, language.load(cfg))
  >>> cfg.nodes, problem.space.length
  (2, 3)
  """
  config.check(cfg)
  made = make_space(cfg)
  enas.check(made, cfg)
  cell = language_model.enas(made.operations, cfg.normalize)

  def reward(perplexity: np.ndarray) -> np.ndarray:
    return rewards.of_perplexity(perplexity, cfg.reward_c, power=1.0)

  found = language.make_problem(cfg, text, made, cell, cfg.hidden, reward)
  if cfg.normalize and min(cfg.batch, found.data.valid[0].shape[2]) < 2:
    raise ValueError(
      'normalize (=True) is over the streams of text side by side, and of one stream leaves nothing: take a batch and '
      'a score_batch of at least 2, and a validation split for two streams.'
    )
  steps = cfg.pass_steps or found.pass_steps
  return found._replace(
    steps=cfg.epochs * steps,
    pass_steps=steps,
    steps_per_call=steps,
    minibatch=lambda data, key: part_of(data, cfg.score_windows, key),
  )


def part_of(data: text_batches.Data, windows: int, key: Key) -> text_batches.Data:
  """Returns `data` with `windows` consecutive windows as its validation split.

  The key draws their place. If there are fewer windows, all are kept.
  """
  count = len(data.valid[0])
  size = min(windows, count)
  start = jax.random.randint(key, (), 0, count - size + 1)
  return data._replace(valid=jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, size), data.valid))
