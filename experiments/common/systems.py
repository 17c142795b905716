"""The systems of the launchers, and what a search, its report and a retraining need to know of each."""

from collections.abc import Callable, Mapping
import dataclasses
import os
import types
from typing import Any, NamedTuple

from jax.sharding import Mesh

from experiments.common import workdirs
from nas_jax import config, replicas, search, space
from nas_jax.report import model
from nas_jax.systems import (
  cell,
  chain,
  classifier,
  conv,
  enas,
  enas_images,
  enas_rnn,
  language,
  recurrent,
  retrain_cell,
  retrain_conv,
  retrain_enas,
  retrain_sequence,
  sequence,
)
from nas_jax.systems.retrain import FinalChoice, Recipe
from nas_jax.training import costs, evaluators, metrics, rewards
from nas_jax.training.problem import Problem
from nas_jax.training.recovery import Recovery
from nas_jax.types import Evaluate

Config = Any  # a system's own, with all that `search.Config` has
Data = Any  # what a system's `load` returns; it has a `sha256`
Arch = Any  # a static architecture of the system


class FromScratch(NamedTuple):
  """How children are trained that have weights of their own."""

  evaluator: Callable[[Problem, Mesh | None, Recovery], Evaluate]
  search: Callable[[space.Space, Config, Evaluate], search.Search]
  scale_budget: Callable[[Config, int], Config]  # (cfg, times) -> cfg of children trained so many times as long
  why_unsupported: Callable[[Config, Arch], str]  # why no child program of the config can train it; '' if one can
  references: Callable[[Config, Data, Evaluate, Recovery], Mapping[str, evaluators.Known]]  # by the search's evaluator
  final: Callable[[Config, Data], FinalChoice] | None = None  # how the best are trained to the end; None for not at all


class System(NamedTuple):
  """One system: the facts that its launcher, its report and its retraining need."""

  launcher: str
  kind: str  # of its architectures, in a best.json
  noun: str  # what a child is, in the singular
  config: type
  presets: Mapping[str, Callable[[], Config]]
  metric: model.Metric
  make_space: Callable[[Config], space.Space]
  load: Callable[[Config, str], Data]  # (cfg, data_dir)
  make_problem: Callable[[Config, Data], Problem]  # raises ValueError, before anything compiles, on what does not fit
  about: Callable[[Config, Data], str]  # what the children learn, in words
  length: Callable[[Config], str]  # how children are trained, in words
  retrain: Recipe | None = None  # how what was found is trained to the end; None if that cannot be done yet
  alone: FromScratch | None = None  # None if children share weights
  variant: str = ''  # which of its launcher's systems it is, if that has several
  children: Callable[[Config], int] = lambda cfg: cfg.max_children  # how many children a search trains
  reward: Callable[[Config], str] = lambda cfg: ''  # the formula of the reward, in words
  explained: str = ''  # what the known architectures are that are trained beside the children
  views: Mapping[str, Callable[[Arch], str]] = types.MappingProxyType({})  # the kind that an arch is of, to compare

  @property
  def name(self) -> str:
    """Its name among all systems; several may have architectures of one kind."""
    return self.variant or self.launcher.removesuffix('_search')


CELL = System(
  'cell_search',
  'tree_cell',
  'cell',
  cell.Config,
  cell.PRESETS,
  model.Metric('perplexity', 'validation perplexity'),
  cell.make_space,
  language.load,
  cell.make_problem,
  language.about,
  cell.length,
  retrain_cell.RECIPE,
  FromScratch(
    evaluators.build,
    replicas.build_search,
    cell.scale_budget,
    cell.why_unsupported,
    cell.references,
    cell.final_choice,
  ),
  reward=lambda cfg: rewards.perplexity_formula(cfg.reward_c, cfg.reward_limit),
  explained='NASCELL is the cell that Zoph & Le (2017) found, LSTM an LSTM written as a tree of the space. The '
  'standard LSTM and SimpleCell are those of Flax. All were trained just as the children were.',
)
CONV = System(
  'conv_search',
  'conv',
  'network',
  conv.Config,
  conv.PRESETS,
  model.Metric('accuracy', 'validation accuracy', lower=False),
  conv.make_space,
  classifier.load,
  conv.make_problem,
  lambda cfg, images: f'{len(images.train.labels)} images of {cfg.dataset}, {"x".join(map(str, images.shape))}',
  conv.length,
  retrain_conv.RECIPE,
  FromScratch(evaluators.build, replicas.build_search, conv.scale_budget, conv.why_unsupported, conv.references),
  reward=lambda cfg: rewards.accuracy_formula(cfg.reward_power, cfg.metric) + costs.formula(cfg),
  explained='The known networks are plain ones that nobody searched for, trained just as the children were.',
)
SEQUENCE = System(
  'sequence_search',
  'tree_cell',
  'cell',
  sequence.Config,
  sequence.PRESETS,
  CONV.metric,
  sequence.make_space,
  recurrent.load,
  sequence.make_problem,
  recurrent.about,
  sequence.length,
  retrain_sequence.RECIPE,
  FromScratch(
    evaluators.build, replicas.build_search, sequence.scale_budget, cell.why_unsupported, sequence.references
  ),
  reward=lambda cfg: rewards.accuracy_formula(cfg.reward_power, cfg.metric),
  explained=CELL.explained,
)
CHAIN = System(
  'per_layer_search',
  'chain',
  'chain',
  chain.Config,
  chain.PRESETS,
  model.Metric('accuracy', 'validation accuracy', lower=False),
  chain.make_space,
  classifier.load,
  chain.make_problem,
  CONV.about,
  chain.length,
  retrain_conv.RECIPE,
  FromScratch(chain.build_evaluator, chain.build_search, chain.scale_budget, chain.why_unsupported, chain.references),
  reward=CONV.reward,
  explained=CONV.explained,
  views={
    'first layer': lambda arch: space.chain.KINDS[space.chain.layer_of(arch.layers[0]).kind],
    'layers': lambda arch: f'{len(arch.layers):2}',
  },
)
MACRO = System(
  'enas_search',
  'enas_macro',
  'network',
  enas_images.MacroConfig,
  enas_images.MACRO_PRESETS,
  model.Metric('shared_accuracy', 'shared-weight validation accuracy', lower=False),
  enas_images.make_space,
  classifier.load,
  enas_images.make_problem,
  CONV.about,
  enas.length,
  retrain_enas.RECIPE,
  variant='macro',
  children=lambda cfg: cfg.samples,
  reward=lambda cfg: rewards.accuracy_formula(cfg.reward_power, cfg.metric),
)
MICRO = MACRO._replace(
  kind='enas_micro',
  variant='micro',
  noun='cell pair',
  config=enas_images.MicroConfig,
  presets=enas_images.MICRO_PRESETS,
)
RECURRENT = System(
  'enas_search',
  'enas_rnn',
  'cell',
  enas_rnn.Config,
  enas_rnn.PRESETS,
  model.Metric('shared_perplexity', 'shared-weight validation perplexity'),
  enas_rnn.make_space,
  language.load,
  enas_rnn.make_problem,
  CELL.about,
  enas.length,
  retrain_cell.RECIPE,
  variant='recurrent',
  children=MACRO.children,
  reward=lambda cfg: rewards.perplexity_formula(cfg.reward_c, power=1.0),
)
ENAS = (MACRO, MICRO, RECURRENT)
SYSTEMS = (CELL, CONV, CHAIN, *ENAS, SEQUENCE)


def for_config(system: System, cfg: Config) -> System:
  """Returns a system with the metric that a config names; the metric of its retraining is set too."""
  if getattr(cfg, 'metric', 'accuracy') == 'accuracy':
    return system
  score, loss = metrics.NAMES[cfg.metric]
  key, name, lower = system.metric
  metric = model.Metric(key.replace('accuracy', cfg.metric), name.replace('accuracy', score), lower)
  return system._replace(metric=metric, retrain=system.retrain and system.retrain._replace(metric=loss))


def goal(system: System, cfg: Config) -> model.Metric:
  """Returns the metric that chooses the best children of a search: the score, or the reward if cost is part of it."""
  shaped = getattr(cfg, 'cost', 'none') != 'none'
  return model.Metric('reward', 'reward', lower=False) if shaped else system.metric


def system_of(saved: Mapping[str, Any], origin: Mapping[str, Any]) -> System | None:
  """The system whose search a workdir holds, from its config.json and origin.json; None if it is none of these.

  origin.json names the system. If the workdir was made before it did, it may name the kind of the architectures. The
  system is then the first one of that kind, or of any kind, whose config has all the saved fields.
  """

  def fits(system: System) -> bool:
    names = {item.name for item in dataclasses.fields(system.config)}
    return set(config.without_removed(saved, system.config)) <= names

  named = [system for system in SYSTEMS if system.name == origin.get('system')]
  of_kind = [system for system in SYSTEMS if system.kind == origin.get('kind')]
  return next(iter([*named, *filter(fits, of_kind or SYSTEMS), *of_kind]), None)


def check_workdir(workdir: str, system: System) -> None:
  """Raises ValueError if a workdir holds a search of another system. One whose config cannot be read passes."""
  saved, origin = (workdirs.object_in(os.path.join(workdir, name)) for name in ('config.json', 'origin.json'))
  held = system_of(saved, origin) if saved else None
  if held and held is not system:
    raise ValueError(
      f'workdir (={workdir!r}) holds a search of {held.launcher} (kind {held.kind}): name another --workdir.'
    )
