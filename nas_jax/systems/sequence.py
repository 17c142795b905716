"""Recurrent-cell search for sequences with labels and for time series: the tree cells of Zoph & Le (2017), Sec. 3.4."""

import dataclasses
import functools

from jax.sharding import Mesh
import numpy as np

from nas_jax import config, export, replicas, search, space
from nas_jax.children import language_model
from nas_jax.children.sequence import Hyperparameters
from nas_jax.config import field
from nas_jax.datasets.sequences import Sequences
from nas_jax.systems import cell, classifier, recurrent
from nas_jax.training import comparisons, evaluators, halving, timing
from nas_jax.training.problem import Problem
from nas_jax.training.recovery import NO_RECOVERY, Limits, Recovery
from nas_jax.training.rewards import Reward
from nas_jax.types import Evaluate
from nas_jax.words import counted


@dataclasses.dataclass
class Config(
  cell.SpaceConfig, recurrent.Config, Limits, comparisons.Config, halving.Config, replicas.Config, search.Config
):
  """The search, its children, and how they are trained."""

  lr: float = field(0.01, 'learning rate of the children', above=0.0)
  weight_decay: float = field(0.0, 'weight decay of all weights but the biases of the outputs', low=0.0)
  dropout: float = field(
    0.0,
    'dropout rate of what enters the outputs, and cells from a layer below, Gal & Ghahramani (2016)',
    low=0.0,
    high=0.95,
  )
  reward_power: float = field(3.0, 'the reward is the validation accuracy, or another metric, to this power', above=0.0)
  child_program: str = field(
    'generic',
    "how children are compiled: 'generic', one program for all cells; 'specialised', one for each; 'auto', the faster "
    'of the two as measured when the search begins',
    choices=timing.PROGRAMS,
  )
  max_children: int = field(200, 'children to train', low=1, budget=True, first=True)


def demo() -> Config:
  """Takes minutes on a laptop, without a download: scikit-learn's digits, read row by row."""
  return Config(
    m=4, controller_lr=5e-3, valid_share=0.25, hidden=16, epochs=2, batch=16, proposals='guided', known='avoid',
    max_children=150, reliability_children=16,
  )  # fmt: skip


def smoke() -> Config:
  """Takes seconds: a test that everything runs."""
  return Config(
    m=2, base=2, controller_units=8, hidden=4, max_examples=200, batch=8, epochs=1, max_children=4,
    reliability_children=4, yardstick_repeats=1,
  )  # fmt: skip


PRESETS = {'demo': demo, 'smoke': smoke}


def make_space(cfg: Config) -> space.Space:
  """Returns the space that `cfg` describes."""
  return cell.make_space(cfg)


def length(cfg: Config) -> str:
  """Returns in words how long a child is trained."""
  return counted(cfg.epochs, 'epoch')


def scale_budget(cfg: Config, times: int) -> Config:
  """Returns `cfg` with children that are trained `times` times as long."""
  return dataclasses.replace(cfg, epochs=times * cfg.epochs)


def make_problem(cfg: Config, data: Sequences, kind: language_model.Cell | None = None) -> Problem:
  """Returns the problem on which the children are trained.

  Args:
    cfg: the config of the search.
    data: as `recurrent.load` returns it.
    kind: a kind of cell to train in place of the tree cells of the space; it may ignore the architecture.

  Raises:
    ValueError: a field has an impossible value; this is found before anything compiles.
  """
  config.check(cfg)
  made = make_space(cfg)
  search.check(made, cfg)
  replicas.check(made, cfg)
  halving.check(cfg, cfg.max_children)
  chosen, first = kind or language_model.tree(made.operations), made.decode(np.zeros(made.length, int))
  recurrent.weights(cfg, data, chosen, first, cfg.hidden)
  own = Hyperparameters(cfg.lr, cfg.weight_decay, cfg.dropout or None)
  child = recurrent.network(cfg, data, chosen, cfg.hidden)
  found = classifier.make_problem(
    recurrent.set_up(cfg, data), made, child, lambda arch: own, cfg.epochs, reward_power=cfg.reward_power
  )
  options = {'outputs': data.outputs, 'features': cfg.hidden, 'layers': cfg.layers, 'operations': made.operations}
  example = export.SequenceInputs.of(data).example
  return found._replace(
    program=cfg.child_program,
    traced=lambda archs: found.child,
    quick=False,
    cost_of=None if kind else cell.count_once(functools.partial(export.module, **options), example),
  )


def build(
  cfg: Config,
  data: Sequences,
  mesh: Mesh | None = None,
  recovery: Recovery = NO_RECOVERY,
  reward: Reward | None = None,
) -> search.Search:
  """Returns the search. Raises ValueError as `make_problem`.

  Args:
    cfg: the config.
    data: as `recurrent.load` returns it.
    mesh: where children are trained; all local devices by default.
    recovery: saves trainings, so that they can be resumed or reused, and stops them.
    reward: (metrics of m children, [m] each) -> rewards [m]; by default the metric that `cfg` names, to its power.

  >>> import jax
  >>> from nas_jax.systems import recurrent, sequence
  >>> cfg = sequence.smoke()
  >>> s = sequence.build(cfg, recurrent.load(cfg))
  >>> batch = s.ask(s.init(jax.random.key(cfg.seed)))
  >>> cfg.m, batch.tokens.shape
  (2, (2, 10))
  """
  problem = make_problem(cfg, data)._replace(reward_of=reward)
  return replicas.build_search(problem.space, cfg, evaluators.build(problem, mesh, recovery))


def references(
  cfg: Config, data: Sequences, train: Evaluate, recovery: Recovery = NO_RECOVERY
) -> dict[str, evaluators.Known]:
  """Returns known cells with evaluators that train them as the children are trained; see `cell.references`."""
  return cell.known_cells(cfg, lambda kind: make_problem(cfg, data, kind), train, recovery)
