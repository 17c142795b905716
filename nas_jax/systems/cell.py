"""Recurrent-cell search, Zoph & Le (2017) Sec. 3.4 and 4.2: tree cells in a language model."""

import dataclasses

from jax.sharding import Mesh
import numpy as np
import optax

from nas_jax import config, evaluator, rewards, search, space, train
from nas_jax import data as data_lib
from nas_jax.children import lm
from nas_jax.config import field
from nas_jax.space.tree import operations


@dataclasses.dataclass
class Config(search.Config):
  """The search, its children, and how they are trained."""

  base: int = field(8, 'leaves of the tree, a power of two, Sec. 4.2', low=2)
  combine: tuple[str, ...] = field(('add', 'mult'), f'combinations, of {", ".join(space.COMBINE)}; Sec. 4.2')
  activate: tuple[str, ...] = field(
    ('identity', 'tanh', 'sigmoid', 'relu'), f'activations, of {", ".join(space.ACTIVATE)}; Sec. 4.2'
  )
  dataset: str = field('pydoc', "text: 'pydoc', bundled with Python, or the prefix of files in data_dir, as 'ptb'")
  level: str = field('char', 'what a token is', choices=('char', 'word'))
  hidden: int = field(32, 'width of embedding and cells', low=1)
  layers: int = field(1, 'cells stacked', low=1)
  batch: int = field(20, 'streams side by side', low=1)
  bptt: int = field(35, 'time steps of truncated backpropagation', low=1)
  tied: bool = field(False, 'softmax weights are those of the embedding, "shared embeddings" in Table 2')
  dropout_embedding: float = field(0.0, 'rate of words dropped, Gal & Ghahramani (2016)', low=0.0, high=0.95)
  dropout_input: float = field(0.0, 'rate of what enters a cell from below, likewise', low=0.0, high=0.95)
  dropout_recurrent: float = field(0.0, 'rate of h_(t-1) where it enters a cell, likewise', low=0.0, high=0.95)
  dropout_output: float = field(0.0, 'rate of what enters the softmax, likewise', low=0.0, high=0.95)
  init_scale: float = field(0.1, 'embedding and softmax start uniform within +-this', above=0.0)
  steps: int = field(100, 'training steps of a child', low=1)
  steps_per_call: int = field(500, 'training steps in one program call', low=1)
  optimizer: str = field('adam', 'of the children', choices=('adam', 'sgd'))
  lr: float = field(0.01, 'learning rate of the children', above=0.0)
  schedule: str = field('cosine', 'of the learning rate, over the steps of a child', choices=('cosine', 'constant'))
  clip: float = field(1.0, "greatest norm of a child's gradient", above=0.0)
  score_batch: int = field(100, 'streams side by side in validation', low=1)
  reward_c: float = field(80.0, 'reward = c / perplexity^2, Sec. 4.2', above=0.0)
  reward_limit: float = field(0.0, 'greatest reward, 0 for none', low=0.0)
  max_children: int = field(500, 'children to train', low=1, budget=True)
  reliability_children: int = field(60, 'random cells trained twice before the search, 0 for none', low=0, budget=True)
  yardstick_repeats: int = field(3, 'trainings of each known cell after it, 0 for none', low=0, budget=True)


def demo() -> Config:
  """Minutes on a laptop, no download: characters of Python's help text."""
  return Config(m=4, controller_lr=5e-3, reward_limit=2.0)


def smoke() -> Config:
  """Seconds: does everything run?"""
  children = Config(m=2, base=2, controller_units=8, hidden=8, batch=4, bptt=8, steps=4)
  return dataclasses.replace(children, max_children=8, reliability_children=8, yardstick_repeats=1)


PRESETS = {'demo': demo, 'smoke': smoke}


def load(cfg: Config, data_dir: str = '') -> data_lib.Text:
  """The text that `cfg` names."""
  return data_lib.load_text(cfg.dataset, data_dir, cfg.level)


def make_space(cfg: Config) -> space.Space:
  """The space that `cfg` describes."""
  return space.tree_cell_space(cfg.base, cfg.combine, cfg.activate)


def build(cfg: Config, text: data_lib.Text, mesh: Mesh | None = None) -> search.Search:
  """The search. Raises ValueError, before anything compiles, on a field that cannot be."""
  config.check(cfg)
  cell_space = make_space(cfg)
  return search.build(cell_space, cfg, build_evaluator(cfg, text, lm.tree(operations(cell_space)), mesh))


def build_evaluator(cfg: Config, text: data_lib.Text, cell: lm.Cell, mesh: Mesh | None = None):
  """What scores children of any kind of cell: the one budget that all comparisons are on."""
  dropout = lm.Dropout(cfg.dropout_embedding, cfg.dropout_input, cfg.dropout_recurrent, cfg.dropout_output)
  child = lm.build(
    len(text.vocabulary), cfg.hidden, cfg.layers, cfg.batch, cfg.init_scale, cell, tied=cfg.tied, dropout=dropout
  )
  data = lm.lay_out(text, cfg.batch, cfg.bptt, cfg.score_batch)
  rate = optax.cosine_decay_schedule(cfg.lr, cfg.steps) if cfg.schedule == 'cosine' else cfg.lr
  optimizer = optax.chain(
    optax.clip_by_global_norm(cfg.clip), optax.adam(rate) if cfg.optimizer == 'adam' else optax.sgd(rate)
  )
  programs = train.fitter(child, optimizer, cfg.steps, cfg.steps_per_call, mesh)

  def reward(metrics: dict[str, np.ndarray]) -> np.ndarray:
    return rewards.of_perplexity(metrics['perplexity'], cfg.reward_c, cfg.reward_limit)

  return evaluator.from_scratch(programs, data, reward)
