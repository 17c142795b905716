"""Recurrent-cell search, Zoph & Le (2017) Sec. 3.4 and 4.2: tree cells in a language model."""

from collections.abc import Callable
import dataclasses
import functools

import flax.linen as nn
import jax
from jax.sharding import Mesh
import numpy as np

from nas_jax import config, published, search, space
from nas_jax.children import language_model
from nas_jax.config import field
from nas_jax.datasets import text as text_lib
from nas_jax.datasets import text_batches
from nas_jax.operations import Operation, Operations, by_id, find
from nas_jax.space.tree import TreeArch
from nas_jax.systems import language
from nas_jax.training import child as child_lib
from nas_jax.training import evaluators, rewards, timing
from nas_jax.training.recovery import NO_RECOVERY, Limits, Recovery
from nas_jax.types import Batch, Outcome


@dataclasses.dataclass
class Config(language.Children, Limits, search.Config):
  """The search, its children, and how they are trained."""

  base: int = field(8, 'leaves of the tree, a power of two, Sec. 4.2', low=2)
  combine: tuple[str | Operation, ...] = field(
    ('add', 'mult'), f'combinations, of {", ".join(space.COMBINE)}; Sec. 4.2', also=Operation
  )
  activate: tuple[str | Operation, ...] = field(
    ('identity', 'tanh', 'sigmoid', 'relu'), f'activations, of {", ".join(space.ACTIVATE)}; Sec. 4.2', also=Operation
  )
  hidden: int = field(32, 'width of the cells', low=1)
  parameters: int = field(0, 'if not 0, weights to have: hidden is chosen to come nearest', low=0)
  steps: int = field(100, 'training steps of a child, if epochs is 0', low=1)
  steps_per_call: int = field(500, 'training steps in one program call', low=1)
  child_program: str = field(
    'generic', 'one program for all cells, one for each, or what a measurement says', choices=timing.PROGRAMS
  )
  reward_c: float = field(80.0, 'reward = c / perplexity^2, Sec. 4.2', above=0.0)
  reward_limit: float = field(0.0, 'greatest reward, 0 for none', low=0.0)
  max_children: int = field(500, 'children to train', low=1, budget=True)
  reliability_children: int = field(60, 'random cells trained twice before the search, 0 for none', low=0, budget=True)
  yardstick_repeats: int = field(3, 'trainings of each known cell after it, 0 for none', low=0, budget=True)


def paper() -> Config:
  """Penn Treebank as in Sec. 4.2, as far as the paper says it; what it does not say is Zaremba et al. (2014), medium.

  The paper ran it on 400 CPUs for weeks; it has not been run here.
  """
  return Config(
    m=10,  # 400 replicas of one child each; ten of their gradients make an update, Sec. 4.2
    controller_lr=5e-4,  # Sec. 4.2
    dataset='ptb',
    level='word',
    layers=2,  # Sec. 4.2
    parameters=20_000_000,  # "to match the medium baselines", Sec. 4.2: 20M in Table 2
    epochs=35,  # Sec. 4.2
    dropout_embedding=0.2,  # Sec. 4.2 names embedding and recurrent dropout, not the rates: Gal & Ghahramani's, medium
    dropout_recurrent=0.2,
    dropout_input=0.5,  # Zaremba et al.: between layers ...
    dropout_output=0.5,  # ... and before the softmax
    init_scale=0.05,  # Zaremba et al., likewise the seven below
    cell_init=0.05,
    optimizer='sgd',
    lr=1.0,
    schedule='epochs',
    decay_epoch=6.0,
    lr_decay=1 / 1.2,
    sum_over_time=True,
    clip=5.0,
    score_batch=20,
    max_children=15_000,  # Sec. 4.2
  )


def small() -> Config:
  """Penn Treebank in about 90 minutes on two cores: children of 200 steps, a twelfth of the text."""
  return Config(
    m=4, controller_lr=5e-3, dataset='ptb', level='word', hidden=64, bptt=20, steps=200, score_batch=20,
    max_children=400, reliability_children=24, yardstick_repeats=2,
  )  # fmt: skip


def demo() -> Config:
  """Minutes on a laptop, no download: characters of Python's help text."""
  return Config(m=4, controller_lr=5e-3, reward_limit=2.0)


def smoke() -> Config:
  """Seconds: does everything run?"""
  children = Config(m=2, base=2, controller_units=8, hidden=8, batch=4, bptt=8, steps=4)
  return dataclasses.replace(children, max_children=8, reliability_children=8, yardstick_repeats=1)


PRESETS = {'paper': paper, 'small': small, 'demo': demo, 'smoke': smoke}


def make_space(cfg: Config) -> space.Space:
  """The space that `cfg` describes."""
  return space.tree_cell_space(cfg.base, cfg.combine, cfg.activate)


def steps(cfg: Config, data: text_batches.Data) -> int:
  """Training steps of a child."""
  return cfg.epochs * len(data.train) or cfg.steps


def length(cfg: Config) -> str:
  """How long a child is trained, in words."""
  return f'{cfg.epochs} epochs' if cfg.epochs else f'{cfg.steps} steps'


def scale_budget(cfg: Config, times: int) -> Config:
  """`cfg` with children trained so many times as long."""
  return dataclasses.replace(cfg, steps=times * cfg.steps, epochs=times * cfg.epochs)


def build(
  cfg: Config, text: text_lib.Text, mesh: Mesh | None = None, recovery: Recovery = NO_RECOVERY
) -> search.Search:
  """The search. Raises ValueError, before anything compiles, on a field that cannot be."""
  config.check(cfg)
  cell_space = make_space(cfg)
  return search.build(
    cell_space, cfg, build_evaluator(cfg, text, language_model.tree(cell_space.operations), mesh, recovery)
  )


def build_evaluator(
  cfg: Config,
  text: text_lib.Text,
  cell: language_model.Cell,
  mesh: Mesh | None = None,
  recovery: Recovery = NO_RECOVERY,
) -> Callable[[Batch], Outcome]:
  """What scores children of any kind of cell: the one budget that all comparisons are on."""
  cell_space, data = make_space(cfg), text_batches.lay_out(text, cfg.batch, cfg.bptt, cfg.score_batch)
  hidden, arch = cfg.hidden, cell_space.decode(np.zeros(cell_space.length, int))
  if cfg.parameters:
    hidden = language.width(cfg, text, cell, arch, cfg.parameters)
  count = steps(cfg, data)
  child, plain = language.build(cfg, text, cell, hidden), language.hyperparameters(cfg, hidden)

  def reward(metrics: dict[str, np.ndarray]) -> np.ndarray:
    return rewards.of_perplexity(metrics['perplexity'], cfg.reward_c, cfg.reward_limit)

  def own(arch, mesh):
    one = child_lib.bind_arch(child, lambda _: language_model.ChildSpec(arch, plain))
    return language.fitter(cfg, data, one, lambda _: plain, count, cfg.steps_per_call, mesh)

  if cfg.child_program == 'specialised':
    devices = None if mesh is None else list(mesh.devices.flat)
    return evaluators.static_programs(own, data, reward, devices, recovery)
  generic = child_lib.bind_arch(child, lambda arch: language_model.ChildSpec(arch, plain))
  programs = language.fitter(cfg, data, generic, lambda _: plain, count, cfg.steps_per_call, mesh)
  return evaluators.from_scratch(programs, data, reward, recovery)


def time_programs(cfg: Config, text: text_lib.Text, mesh: Mesh | None = None) -> timing.Timing:
  """`timing.time_programs` on a batch of random cells."""
  cell_space = make_space(cfg)
  total = steps(cfg, text_batches.lay_out(text, cfg.batch, cfg.bptt, cfg.score_batch))

  def build_for(kind: str, count: int):
    short = dataclasses.replace(cfg, steps=count, epochs=0, child_program=kind)
    return build_evaluator(short, text, language_model.tree(cell_space.operations), mesh)

  batch = evaluators.random_batch(cell_space, jax.random.key(cfg.seed), cfg.m)
  return timing.time_programs(build_for, batch, total, cfg.max_children)


def why_unsupported(cfg: Config, arch: TreeArch) -> str:
  """Why the search cannot train a cell that is none of its own, '' if it can."""
  if cfg.child_program == 'specialised':
    return ''
  held = make_space(cfg).operations
  for kind, ids in zip(Operations._fields, ((*arch.combine, arch.inject[0]), (*arch.activate, arch.inject[1]))):
    possible = by_id(kind, getattr(held, kind))
    if extra := sorted(find(kind, held, chosen).name for chosen in set(ids) - set(possible)):
      return f'its {extra[0]} is none of {", ".join(operation.name for operation in possible.values())}'
  return ''


def references(
  cfg: Config, text: text_lib.Text, s: search.Search, recovery: Recovery = NO_RECOVERY
) -> dict[str, evaluators.Known]:
  """Known cells, trained just as the children are."""

  def other(cell: language_model.Cell) -> evaluators.Known:
    evaluate = functools.cache(lambda: build_evaluator(cfg, text, cell, recovery=recovery))
    return evaluators.Known(published.LSTM, lambda batch: evaluate()(batch))  # these ignore the architecture

  trees = {'NASCELL': published.NASCELL, 'LSTM': published.LSTM}
  return {
    name: evaluators.Known(arch, s.evaluate) for name, arch in trees.items() if not why_unsupported(cfg, arch)
  } | {
    'standard LSTM': other(language_model.lstm()),
    'SimpleCell (Flax)': other(language_model.flax_cell(lambda features: nn.SimpleCell(features))),
  }
