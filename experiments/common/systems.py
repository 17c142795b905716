"""The systems whose children are trained: what a search and its report must know of each."""

from collections.abc import Callable, Mapping
import dataclasses
import json
import os
import types
from typing import Any, NamedTuple

from nas_jax import config, search, space
from nas_jax.report import page
from nas_jax.systems import (
  cell,
  chain,
  classifier,
  conv,
  enas,
  enas_images,
  enas_rnn,
  language,
  retrain_cell,
  retrain_conv,
  retrain_enas,
)
from nas_jax.systems.retrain import Recipe
from nas_jax.training import evaluators, timing
from nas_jax.training.recovery import Recovery


class FromScratch(NamedTuple):
  """How children are trained each by itself."""

  build: Callable[..., search.Search]  # (cfg, data, recovery=...); raises ValueError on what does not fit
  rebuild: Callable[[space.Space, Any, Any], search.Search]  # (space, cfg, train of another search)
  scale_budget: Callable[[Any, int], Any]  # (cfg, times) -> cfg
  time_programs: Callable[[Any, Any], timing.Timing] | None  # (cfg, data); None if there is one way only
  why_unsupported: Callable[[Any, Any], str]  # (cfg, arch) -> why its program cannot train it, or ''
  references: Callable[[Any, Any, search.Search, Recovery], Mapping[str, evaluators.Known]]  # (cfg, data, s, recovery)


class System(NamedTuple):
  """One system. `cfg` is its config, `data` what `load` returns, `arch` a static architecture."""

  launcher: str
  kind: str  # of its architectures, in a best.json
  noun: str  # what a child is, in the singular
  config: type
  presets: Mapping[str, Callable[[], Any]]
  metric: page.Metric
  make_space: Callable[[Any], space.Space]  # (cfg)
  load: Callable[[Any, str], Any]  # (cfg, data_dir) -> data, which has a `sha256`
  about: Callable[[Any, Any], str]  # (cfg, data) -> what the children learn, in words
  length: Callable[[Any], str]  # (cfg) -> how children are trained, in words
  retrain: Recipe  # how what was found is trained to the end
  alone: Any = None  # an `Alone`; None if children share weights
  problem: Any = None  # of those who do: (cfg, data) -> enas.Problem; raises ValueError on what does not fit
  views: Mapping[str, Callable[[Any], str]] = types.MappingProxyType({})  # (arch) -> the kind it is of, to compare


CELL = System(
  'cell_search',
  'tree_cell',
  'cell',
  cell.Config,
  cell.PRESETS,
  page.Metric('perplexity', 'validation perplexity'),
  cell.make_space,
  language.load,
  lambda cfg, text: f'{cfg.dataset}, {len(text.vocabulary)} different {cfg.level}s',
  cell.length,
  retrain_cell.RECIPE,
  FromScratch(cell.build, search.build, cell.scale_budget, cell.time_programs, cell.why_unsupported, cell.references),
)
CONV = System(
  'conv_search',
  'conv',
  'network',
  conv.Config,
  conv.PRESETS,
  page.Metric('accuracy', 'validation accuracy', lower=False),
  conv.make_space,
  classifier.load,
  lambda cfg, images: f'{len(images.train.labels)} images of {cfg.dataset}, {"x".join(map(str, images.shape))}',
  conv.length,
  retrain_conv.RECIPE,
  FromScratch(conv.build, search.build, conv.scale_budget, conv.time_programs, conv.why_unsupported, conv.references),
)
CHAIN = System(
  'per_layer_search',
  'chain',
  'chain',
  chain.Config,
  chain.PRESETS,
  page.Metric('accuracy', 'validation accuracy', lower=False),
  chain.make_space,
  classifier.load,
  CONV.about,
  chain.length,
  retrain_conv.RECIPE,
  FromScratch(chain.build, chain.rebuild, chain.scale_budget, None, chain.why_unsupported, chain.references),
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
  page.Metric('shared_accuracy', 'shared-weight validation accuracy', lower=False),
  enas_images.make_space,
  classifier.load,
  CONV.about,
  enas.length,
  retrain_enas.RECIPE,
  problem=enas_images.problem,
)
MICRO = MACRO._replace(
  kind='enas_micro',
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
  page.Metric('shared_perplexity', 'shared-weight validation perplexity'),
  enas_rnn.make_space,
  language.load,
  CELL.about,
  enas.length,
  retrain_cell.RECIPE,
  problem=enas_rnn.problem,
)
ENAS = {'macro': MACRO, 'micro': MICRO, 'recurrent': RECURRENT}
SYSTEMS = (CELL, CONV, CHAIN, *ENAS.values())


def system_of(saved: Mapping[str, Any], origin: Mapping[str, Any]) -> System | None:
  """The system whose search a workdir holds, from its config.json and origin.json; None if it is none of these.

  origin.json names the kind of the architectures. Where it does not, because the workdir was made before it did, the
  first system whose config has all the saved fields is taken.
  """
  for system in SYSTEMS:
    if system.kind == origin.get('kind'):
      return system
  for system in SYSTEMS:
    if set(config.without_removed(saved, system.config)) <= {item.name for item in dataclasses.fields(system.config)}:
      return system
  return None


def check_workdir(workdir: str, system: System) -> None:
  """Raises ValueError if a workdir holds a search of another system. One whose config cannot be read passes."""
  saved, origin = (_object_in(os.path.join(workdir, name)) for name in ('config.json', 'origin.json'))
  held = system_of(saved, origin) if saved else None
  if held and held is not system:
    raise ValueError(
      f'workdir (={workdir!r}) holds a search of {held.launcher} (kind {held.kind}): name another --workdir.'
    )


def _object_in(path: str) -> dict[str, Any]:
  """The JSON object in a file; an empty one if there is none."""
  try:
    with open(path, encoding='utf-8') as file:
      found = json.load(file)
  except (OSError, ValueError):
    return {}
  return found if isinstance(found, dict) else {}
