"""Recurrent-cell search, Zoph & Le (2017) Sec. 3.4 and 4.2: tree cells in a language model."""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import numpy as np

from nas_jax import config, export, published, replicas, search, space
from nas_jax.children import language_model
from nas_jax.config import field
from nas_jax.datasets import text as text_lib
from nas_jax.operations import BUILT_IN, Operation, Operations, by_id, find
from nas_jax.space.tree import TreeArch
from nas_jax.systems import language, retrain, retrain_cell
from nas_jax.training import comparisons, costs, evaluators, halving, rewards, schedules, timing
from nas_jax.training.problem import Problem
from nas_jax.training.recovery import NO_RECOVERY, Limits, Recovery
from nas_jax.training.rewards import Reward
from nas_jax.types import Evaluate
from nas_jax.words import counted


@dataclasses.dataclass
class SpaceConfig:
  """The space of tree cells, and their width."""

  base: int = field(8, 'leaves of the tree, a power of two, Sec. 4.2', low=2)
  combine: tuple[str | Operation, ...] = field(
    ('add', 'mult'), f'combination functions to choose from, of {", ".join(space.COMBINE)}; Sec. 4.2', also=Operation
  )
  activate: tuple[str | Operation, ...] = field(
    ('identity', 'tanh', 'sigmoid', 'relu'),
    f'activation functions to choose from, of {", ".join(space.ACTIVATE)}; Sec. 4.2',
    also=Operation,
  )
  hidden: int = field(32, 'hidden units of a cell', low=1)


@dataclasses.dataclass
class Config(
  SpaceConfig, language.Children, Limits, comparisons.Config, halving.Config, replicas.Config, search.Config
):
  """The search, its children, and how they are trained."""

  parameters: int = field(
    0, 'number of weights that hidden is set to come nearest to; 0 to take hidden as given', low=0
  )
  steps: int = field(100, 'training steps of a child, if epochs is 0', low=1)
  steps_per_call: int = field(500, 'training steps in one call of the compiled program', low=1)
  child_program: str = field(
    'generic',
    "how children are compiled: 'generic', one program for all cells; 'specialised', one for each; 'auto', the faster "
    'of the two as measured when the search begins',
    choices=timing.PROGRAMS,
  )
  reward_c: float = field(80.0, 'c of the reward, c / perplexity^2; 80 in Sec. 4.2', above=0.0)
  reward_limit: float = field(
    0.0,
    'greatest reward, 0 for no limit. With reward_c=80 a limit of 2 is reached at a perplexity of 6.3, and all better '
    'children earn the same: raise it where children train for more than a few hundred steps',
    low=0.0,
  )
  max_children: int = field(500, 'children to train', low=1, budget=True, first=True)
  final_children: int = field(
    0,
    'how many of the best different cells of the search are trained to convergence after it, beside as many of its '
    'random-search baseline; validation then chooses one cell of each. 0 for none',
    low=0,
    budget=True,
  )
  final_repeats: int = field(
    2, 'trainings to convergence of each chosen cell and each known cell, from new seeds', low=1, budget=True
  )
  final_preset: str = field(
    'final',
    'preset of retrain that says how the final_children are trained to convergence',
    choices=tuple(retrain_cell.PRESETS),
    budget=True,
  )


def paper() -> Config:
  """Penn Treebank as in Sec. 4.2. Settings that the paper leaves out are of the medium model of Zaremba et al. (2014).

  The paper ran it on 400 CPUs for weeks; it has not been run here.
  """
  return Config(
    m=1,  # of each replica; this and the next three are of Sec. 4.2
    replicas=400,
    accumulate=10,
    shards=20,
    controller_lr=5e-4,  # Sec. 4.2
    dataset='ptb',
    level='word',
    layers=2,  # Sec. 4.2
    parameters=20_000_000,  # "to match the medium baselines", Sec. 4.2: 20M in Table 2
    epochs=35,  # Sec. 4.2
    dropout_embedding=0.2,  # Sec. 4.2 names embedding and recurrent dropout without rates: Gal & Ghahramani's, medium
    dropout_recurrent=0.2,
    dropout_input=0.5,  # Zaremba et al.: between layers ...
    dropout_output=0.5,  # ... and before the softmax
    init_scale=0.05,  # Zaremba et al., as are the next ones down to clip
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
    reliability_children=60,
    yardstick_repeats=3,
    final_preset='zaremba_medium',
  )


def small() -> Config:
  """Penn Treebank in about 90 minutes on two cores: children of 200 steps, a twelfth of the text.

  Children are trained by the recipe of the full training (SGD at a rate of 1, a loss summed over time, Zaremba et al.
  2014), annealed over their own 200 steps. Within the best quarter of cells, their scores and those of full trainings
  have a Spearman correlation of 0.60; with Adam at a rate of 0.01, which this preset had before, it is 0.09. The chosen
  cell is 2.4 % worse than the best one; with Adam it was 14.4 % worse. `--final_children=2` also trains the best two
  cells to convergence, which takes about an hour more.

  The cells that it finds in this time are behind an LSTM after the full training. With `--m=16 --max_children=320
  --steps=1000`, six minutes on a GPU, and a choice among the best four after full trainings, they are level with it.
  """
  return Config(
    m=4, controller_lr=5e-3, dataset='ptb', level='word', hidden=64, bptt=20, steps=200, score_batch=20,
    optimizer='sgd', lr=1.0, sum_over_time=True, clip=5.0, cell_init=0.1, proposals='guided', known='avoid',
    max_children=400, reliability_children=24, yardstick_repeats=2, final_preset='small',
  )  # fmt: skip


def demo() -> Config:
  """Takes minutes on a laptop, without a download: characters of Python's help text."""
  return Config(
    m=4, controller_lr=5e-3, proposals='guided', known='avoid', reward_limit=2.0, max_children=300,
    reliability_children=30, yardstick_repeats=3, final_children=3,
  )  # fmt: skip


def smoke() -> Config:
  """Takes seconds: a test that everything runs."""
  children = Config(m=2, base=2, controller_units=8, hidden=8, batch=4, bptt=8, steps=4)
  return dataclasses.replace(
    children, max_children=8, reliability_children=8, yardstick_repeats=1, final_children=1, final_preset='smoke'
  )


PRESETS = {'paper': paper, 'small': small, 'demo': demo, 'smoke': smoke}


def make_space(cfg: SpaceConfig) -> space.Space:
  """Returns the space that `cfg` describes."""
  return space.tree_cell_space(cfg.base, cfg.combine, cfg.activate)


def length(cfg: Config) -> str:
  """Returns in words how long a child is trained."""
  return counted(cfg.epochs, 'epoch') if cfg.epochs else counted(cfg.steps, 'step')


def scale_budget(cfg: Config, times: int) -> Config:
  """Returns `cfg` with children that are trained `times` times as long, their learning rate falling as much slower."""
  return dataclasses.replace(
    cfg,
    steps=times * cfg.steps,
    epochs=times * cfg.epochs,
    **schedules.stretched(cfg, times),
  )


def make_problem(cfg: Config, text: text_lib.Text, cell: language_model.Cell | None = None) -> Problem:
  """Returns the problem on which the children are trained.

  Args:
    cfg: the config of the search.
    text: as `language.load` returns it.
    cell: a kind of cell to train in place of the tree cells of the space; it may ignore the architecture.

  Raises:
    ValueError: a field has an impossible value; this is found before anything compiles.
  """
  config.check(cfg)
  made = make_space(cfg)
  search.check(made, cfg)
  replicas.check(made, cfg)
  halving.check(cfg, cfg.max_children)
  trees, cell = cell is None, cell or language_model.tree(made.operations)
  hidden = width(cfg, text, cell, made.decode(np.zeros(made.length, int)))

  def reward(perplexity: np.ndarray) -> np.ndarray:
    return rewards.of_perplexity(perplexity, cfg.reward_c, cfg.reward_limit)

  found = language.make_problem(cfg, text, made, cell, hidden, reward)
  count = counter(cfg, text, made.operations, hidden) if trees else None
  return found._replace(
    steps=found.steps or cfg.steps, steps_per_call=cfg.steps_per_call, program=cfg.child_program, cost_of=count
  )


def width(cfg: Config, text: text_lib.Text, cell: language_model.Cell, arch: TreeArch) -> int:
  """Returns the width of the cells, all of which have as many weights as `arch`. Raises as `language.width`."""
  return language.width(cfg, text, cell, arch, cfg.parameters) if cfg.parameters else cfg.hidden


def counter(cfg: Config, text: text_lib.Text, operations: Operations, hidden: int) -> costs.Count:
  """Returns a function that counts the cost of the network of a cell at width `hidden`."""
  sizes = {'vocabulary': cfg.vocabulary or len(text.vocabulary), 'layers': cfg.layers, 'embedding': cfg.embedding}
  make = functools.partial(export.module, features=hidden, tied=cfg.tied, operations=operations, **sizes)
  return count_once(make, jax.ShapeDtypeStruct((1, 1), jnp.int32))


def count_once(make: Callable[[TreeArch], nn.Module], example: jax.ShapeDtypeStruct) -> costs.Count:
  """Returns a function that counts the cost of the network that `make` makes of a cell, for an input like `example`.

  The cost depends only on the number of leaves of the tree, so it is counted once for each number. All cells of a space
  therefore cost the same. This search has no bounds on the cost and no reward that depends on the cost, since these
  could not distinguish the cells.
  """
  made = dict[int, costs.Cost]()

  def count(arch: TreeArch) -> costs.Cost:
    nodes = len(arch.combine)
    if nodes not in made:
      made[nodes] = export.cost(make(arch), example)
    return made[nodes]

  return count


def build(
  cfg: Config,
  text: text_lib.Text,
  mesh: Mesh | None = None,
  recovery: Recovery = NO_RECOVERY,
  reward: Reward | None = None,
) -> search.Search:
  """Returns the search. Raises ValueError as `make_problem`.

  Args:
    cfg: the config.
    text: as `language.load` returns it.
    mesh: the devices that train children, as in `evaluators.build`.
    recovery: how trainings are saved and resumed, as in `evaluators.build`.
    reward: (metrics of m children, [m] each) -> rewards [m]; by default c / perplexity^2, Sec. 4.2.

  >>> import jax
  >>> from nas_jax.systems import cell, language
  >>> cfg = cell.smoke()
  >>> s = cell.build(cfg, language.load(cfg))
  >>> batch = s.ask(s.init(jax.random.key(cfg.seed)))
  >>> cfg.m, batch.tokens.shape
  (2, (2, 10))
  """
  problem = make_problem(cfg, text)._replace(reward_of=reward)
  return replicas.build_search(problem.space, cfg, evaluators.build(problem, mesh, recovery))


def why_unsupported(cfg: Any, arch: TreeArch) -> str:
  """Says why the children's program cannot train a cell from outside the space; '' if it can."""
  if cfg.child_program == 'specialised':
    return ''
  held = make_space(cfg).operations
  for kind, ids in zip(Operations._fields, ((*arch.combine, arch.inject[0]), (*arch.activate, arch.inject[1]))):
    possible = by_id(kind, getattr(held, kind))
    if extra := sorted(find(kind, held, chosen).name for chosen in set(ids) - set(possible)):
      return f'its {extra[0]} is none of {", ".join(operation.name for operation in possible.values())}'
  return ''


def references(
  cfg: Config, text: text_lib.Text, train: Evaluate, recovery: Recovery = NO_RECOVERY
) -> dict[str, evaluators.Known]:
  """Returns known cells, each with an evaluator that trains it just as the children of the search are trained.

  Args:
    cfg: the config of the search.
    text: as `language.load` returns it.
    train: the evaluator of the search.
    recovery: saves the trainings of cells that are not trees, which have evaluators of their own.
  """
  return known_cells(cfg, lambda cell: make_problem(cfg, text, cell), train, recovery)


def known_cells(
  cfg: Any, problem_of: Callable[[language_model.Cell], Problem], train: Evaluate, recovery: Recovery
) -> dict[str, evaluators.Known]:
  """Returns known cells with their evaluators, as `references`; `problem_of` makes the problem of one kind of cell."""

  def other(cell: language_model.Cell) -> evaluators.Known:
    evaluate = evaluators.on_first_use(lambda: evaluators.build(problem_of(cell), recovery=recovery))
    return evaluators.Known(published.LSTM, evaluate)  # these cells ignore the architecture

  trees = {'NASCELL': published.NASCELL, 'LSTM': published.LSTM}
  return {name: evaluators.Known(arch, train) for name, arch in trees.items() if not why_unsupported(cfg, arch)} | {
    'standard LSTM': other(language_model.lstm()),
    'SimpleCell (Flax)': other(language_model.flax_cell(lambda features: nn.SimpleCell(features))),
  }


def final_choice(cfg: Config, text: text_lib.Text) -> retrain.FinalChoice:
  """Returns how the best cells of a search are trained to convergence, beside NASCELL and the standard LSTM.

  The size is the number of weights of a network with a cell of the space, at the width of the preset. The references
  get the width that comes nearest to that number.

  Raises:
    ValueError: no width of a reference comes within 5 % of that number, or the space has operations of the user's own.
  """
  preset, made = retrain_cell.PRESETS[cfg.final_preset](), make_space(cfg)
  for kind in Operations._fields:
    for one in by_id(kind, getattr(made.operations, kind)).values():
      if one not in getattr(BUILT_IN, kind):
        raise ValueError(f'{one.name} is an operation of your own: the final choice trains built-in ones alone.')
  recipe = dataclasses.replace(
    preset, dataset=cfg.dataset, level=cfg.level, vocabulary=cfg.vocabulary, seed=cfg.seed,
    data_seed=cfg.data_seed, repeats=cfg.final_repeats,
  )  # fmt: skip
  arch = made.decode(np.zeros(made.length, int))  # all cells of a space have as many weights
  weights = retrain_cell.weights(recipe, text, arch, preset.sizes[0])
  recipe = dataclasses.replace(recipe, sizes=(f'{weights / 1000}k',))
  references = {name: retrain_cell.KNOWN[name] for name in ('NASCELL', 'LSTM')}
  for reference in references.values():
    retrain_cell.validate(recipe, text, reference)
  child = cfg.steps * cfg.batch * cfg.bptt / len(text.train) if not cfg.epochs else cfg.epochs  # passes over the text
  return retrain.FinalChoice(recipe, references, 1 / child)
