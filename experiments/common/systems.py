"""The systems of the launchers, with the facts that a search, its report and a retraining need about each."""

from collections.abc import Callable, Mapping
import dataclasses
import os
import types
from typing import Any, NamedTuple

from jax.sharding import Mesh

from experiments.common import workdirs
from nas_jax import config, replicas, search, space, words
from nas_jax.report import model
from nas_jax.space.network import NetworkOptions
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

Config = Any  # the config of a system, with all fields of `search.Config`
Data = Any  # the result of a system's `load`; it has a `sha256`
Arch = Any  # a static architecture of the system


class FromScratch(NamedTuple):
  """How children with their own weights are trained."""

  evaluator: Callable[[Problem, Mesh | None, Recovery], Evaluate]
  search: Callable[[space.Space, Config, Evaluate], search.Search]
  scale_budget: Callable[[Config, int], Config]  # (cfg, times) -> cfg of children whose training is `times` as long
  why_unsupported: Callable[[Config, Arch], str]  # why no child program of the config can train it; '' if one can
  references: Callable[[Config, Data, Evaluate, Recovery], Mapping[str, evaluators.Known]]  # by the search's evaluator
  final: Callable[[Config, Data], FinalChoice] | None = None  # how the best are trained to the end; None: they are not


class System(NamedTuple):
  """The facts about one system that its launcher, its report and its retraining need."""

  launcher: str
  kind: str  # the field `kind` of its architectures in best.json
  noun: str  # the word for a child, in the singular
  config: type
  presets: Mapping[str, Callable[[], Config]]
  metric: model.Metric
  make_space: Callable[[Config], space.Space]
  load: Callable[[Config, str], Data]  # (cfg, data_dir)
  make_problem: Callable[[Config, Data], Problem]  # raises ValueError, before compiling, if config and data do not fit
  about: Callable[[Config, Data], str]  # the data that the children learn, in words
  length: Callable[[Config], str]  # how children are trained, in words
  retrain: Recipe | None = None  # how architectures are trained to the end; None if that is not supported yet
  alone: FromScratch | None = None  # None if children share weights
  variant: str = ''  # the value of --variant that selects it, if its launcher has several systems
  children: Callable[[Config], int] = lambda cfg: cfg.max_children  # how many children a search trains
  reward: Callable[[Config], str] = lambda cfg: ''  # the formula of the reward, in words
  explained: str = ''  # a description of the known architectures that are trained for comparison
  views: Mapping[str, Callable[[Arch], str]] = types.MappingProxyType({})  # name -> (arch) -> its group in a table
  options: Callable[[Config], tuple[Any, ...]] = lambda cfg: ()  # further arguments of `draw.words` and `draw.picture`

  @property
  def name(self) -> str:
    """The name of the system, unique among all; several systems may have architectures of one kind."""
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


def _network_options(cfg: conv.Config) -> tuple[NetworkOptions, ...]:
  """Returns how networks are built from the predicted layers; nothing if a layer is a layer, and there are no pools."""
  found = classifier.network_options(cfg)
  return () if found == NetworkOptions() else (found,)


def _length_of_networks(cfg: Config) -> str:
  """Returns in words how long networks are trained, and their weights if all have about the same number."""
  weights = getattr(cfg, 'child_weights', 0)  # a system that borrows this function may lack the field
  return conv.length(cfg) + (f' at {weights:,} weights' if weights else '')


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
  lambda cfg, images: (
    f'{words.counted(len(images.train.labels), "image")} of {cfg.dataset}, {"x".join(map(str, images.shape))}'
  ),
  _length_of_networks,
  retrain_conv.RECIPE,
  FromScratch(evaluators.build, replicas.build_search, conv.scale_budget, conv.why_unsupported, conv.references),
  reward=lambda cfg: rewards.accuracy_formula(cfg.reward_power, cfg.metric) + costs.formula(cfg),
  explained='The known networks are plain ones that nobody searched for, trained just as the children were.',
  options=_network_options,
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
  """Returns a system with the metric that a config names, for the search and for retraining."""
  if getattr(cfg, 'metric', 'accuracy') == 'accuracy':
    return system
  score, loss = metrics.NAMES[cfg.metric]
  key, name, lower = system.metric
  metric = model.Metric(key.replace('accuracy', cfg.metric), name.replace('accuracy', score), lower)
  return system._replace(metric=metric, retrain=system.retrain and system.retrain._replace(metric=loss))


def goal(system: System, cfg: Config) -> model.Metric:
  """Returns the metric by which the best children are chosen: the score, or the reward if the reward includes cost."""
  shaped = getattr(cfg, 'cost', 'none') != 'none'
  return model.Metric('reward', 'reward', lower=False) if shaped else system.metric


def system_of(saved: Mapping[str, Any], origin: Mapping[str, Any]) -> System | None:
  """Returns the system whose search a workdir holds, from its config.json and origin.json, or None if it is unknown.

  origin.json names the system. That of an older workdir has only the kind of the architectures, or neither. The system
  is then the first one of that kind, or of any kind, whose config has all the saved fields.
  """

  def fits(system: System) -> bool:
    names = {item.name for item in dataclasses.fields(system.config)}
    return set(config.without_removed(saved, system.config)) <= names

  named = [system for system in SYSTEMS if system.name == origin.get('system')]
  of_kind = [system for system in SYSTEMS if system.kind == origin.get('kind')]
  return next(iter([*named, *filter(fits, of_kind or SYSTEMS), *of_kind]), None)


def origin_facts(system: System, cfg: Config, data: Data) -> dict[str, str]:
  """Returns what origin.json says of the children of a search: their system, and the data that they are trained on."""
  return {'kind': system.kind, 'system': system.name, 'dataset': cfg.dataset, 'sha256': data.sha256}


def check_workdir(workdir: str, system: System) -> None:
  """Raises ValueError if a workdir holds a search of another system. A workdir without a readable config passes."""
  saved, origin = (workdirs.object_in(os.path.join(workdir, name)) for name in ('config.json', 'origin.json'))
  held = system_of(saved, origin) if saved else None
  if held and held is not system:
    raise ValueError(
      f'workdir (={workdir!r}) holds a search of {held.launcher} (kind {held.kind}): name another --workdir.'
    )
