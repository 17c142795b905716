"""Trains architectures to the end after a search, and tests them (Zoph & Le 2017, Sec. 4.1 and 4.2).

A small grid of hyperparameters is compared on the validation split. The architecture is then trained with the best
point of the grid, at one or more sizes and one or more times, and scored on the test split. The same command resumes
an interrupted run. Examples:
  python -m experiments.retrain --arch=runs/mine/best.json,NASCELL,ENAS_RNN,LSTM --preset=demo
  python -m experiments.retrain --workdir=runs/mine --top=3 --preset=zaremba_small --data_dir=DIR --lr=0.5,1.0
"""

from collections.abc import Mapping, Sequence
import os

from absl import flags

from experiments.common import arch_files, arguments, epochs, launch, quick_end, reports, retraining, systems, workdirs
from experiments.common import top as top_lib
from experiments.common.systems import SYSTEMS, System, for_config
from nas_jax import config, space
from nas_jax.report import rankings
from nas_jax.systems import retrain

RECIPES = {system.name: system.retrain for system in SYSTEMS if system.retrain}


def own_flags(values: flags.FlagValues) -> None:
  """Defines the flags of retraining that are no fields of its configs."""
  presets = sorted({name for recipe in RECIPES.values() for name in recipe.presets})
  flags.DEFINE_enum(
    'preset', 'demo', presets, 'named configuration that the other flags are laid over', flag_values=values
  )
  known = ', '.join(known_archs())
  flags.DEFINE_list(
    'arch', [], f'architectures to train: files such as a best.json or a top.json, or {known}', flag_values=values
  )
  flags.DEFINE_enum(
    'system',
    '',
    ['', *RECIPES],
    'what cells are trained for where several systems search for them; by default the system of --workdir, else cell: '
    'language models',
    flag_values=values,
  )
  flags.DEFINE_string('workdir', '', 'folder of a search whose best children to train', flag_values=values)
  flags.DEFINE_integer('top', 1, 'how many different children of --workdir to train', 1, flag_values=values)
  flags.DEFINE_string(
    'results', '', 'folder of results; WORKDIR/retrain-PRESET or runs/retrain-PRESET by default', flag_values=values
  )
  flags.DEFINE_string('data_dir', '', 'folder that data sets are read from', flag_values=values)


def prepare(argv: Sequence[str]) -> launch.Work:
  """Reads flags, architectures and data, and locks and opens the folder of results."""
  alike: dict[type, list[str]] = {}  # systems whose architectures are retrained by one config
  for name, recipe in RECIPES.items():
    alike.setdefault(recipe.config, []).append(name)
  configs = {', '.join(names): RECIPES[names[0]].presets for names in alike.values()}
  values = arguments.parse(argv, __doc__, own_flags, configs)
  sources = [*values.arch, *([os.path.join(values.workdir, 'best.json')] if values.workdir else [])]
  if not sources:
    raise ValueError('nothing is named to train: give --arch=FILE,... (or a known name), or --workdir=DIR of a search.')
  archs = {name: arch for given in values.arch for name, arch in arch_files.named_archs(given, known_archs()).items()}
  wanted = values.system or searched_by(values.workdir)
  chosen = {source: system_of(source, wanted) for source in sources}
  system = agreed(chosen)
  if values.system and RECIPES[values.system] is not RECIPES[system.name]:
    raise ValueError(f'system (={values.system}) does not train {sources[0]}, a {system.noun} of {system.launcher}.')
  cfg = configure(values, system)
  if values.workdir:
    archs |= best_of(values.workdir, values.top, chosen[sources[-1]])
  system = for_config(system, cfg)
  recipe = retraining.recipe_of(system)
  results = values.results or os.path.join(values.workdir or 'runs', f'retrain-{values.preset}')
  cfg = workdirs.settled(results, cfg)
  data = system.load(cfg, values.data_dir)
  workdirs.check_data(results, data.sha256, 'results')
  launch.set_up_jax(max(len(retrain.grid(recipe.point, cfg)), cfg.repeats))
  launch.check_processes()
  for name, arch in archs.items():
    try:
      recipe.validate(cfg, data, arch)
    except ValueError as error:
      raise ValueError(f'{name} cannot be trained: {error}') from None
  lock = workdirs.lock(results, 'results')
  epochs.open_results(results, cfg)
  workdirs.note_data(results, data.sha256)

  def work(check: launch.Check) -> None:
    with lock, quick_end.while_compiling(set()):  # finished epochs are saved; an interrupted one is trained again
      retraining.run(system, cfg, data, archs, results, check)
    if values.workdir:
      reports.write(values.workdir, reports.make(values.workdir))

  return work


def known_archs() -> dict[str, retrain.Arch]:
  """Returns the published architectures of all systems, by name."""
  return {name: arch for recipe in RECIPES.values() for name, arch in recipe.known.items()}


def searched_by(workdir: str) -> str:
  """Returns the name of the system whose search a workdir holds, or '' if it is not known."""
  saved, origin = (workdirs.peek(os.path.join(workdir, name)) or {} for name in ('config.json', 'origin.json'))
  held = systems.system_of(saved, origin) if saved else None
  return held.name if held else ''


def system_of(source: str, wanted: str = '') -> System:
  """Returns the system that retrains `source`, a known architecture's name or a file of architectures.

  Where several systems do, it is the one named `wanted`, or else the first. Raises ValueError if none does.
  """
  able = [system for system in SYSTEMS if system.name in RECIPES]
  found = [system for system in able if source in RECIPES[system.name].known]
  if not found:
    kinds = set(arch_files.read_archs(source, space.kind_of).values())
    found = [system for system in able if kinds == {system.kind}]
    if not found:
      known = ', '.join(dict.fromkeys(system.kind for system in able))
      raise ValueError(f'{source} is of kind {" and ".join(sorted(map(repr, kinds)))}: want one of {known}.')
  return next((system for system in found if system.name == wanted), found[0])


def agreed(systems: Mapping[str, System]) -> System:
  """Returns the system of the first source. Raises ValueError if another source is retrained by another recipe."""
  (first, chosen), *others = systems.items()
  for source, system in others:
    if RECIPES[system.name] is not RECIPES[chosen.name]:
      raise ValueError(
        f'{source} is a {system.noun} of {system.launcher}, {first} a {chosen.noun} of {chosen.launcher}: train those '
        'of one kind at a time.'
      )
  return chosen


def configure(values: flags.FlagValues, system: System) -> retrain.Config:
  """Returns the config of the chosen preset, overridden by the given flags. Raises ValueError if it is invalid."""
  recipe = RECIPES[system.name]
  arguments.own_preset(values, recipe.presets, f'{system.noun}s')
  others = {f'{other.noun}s of {other.launcher}': other.retrain.config for other in SYSTEMS if other.retrain}
  arguments.own_fields(values, recipe.config, others)
  cfg = arguments.configure(values, recipe.presets)
  recipe.check(cfg)
  return cfg


def best_of(workdir: str, top: int, system: System) -> dict[str, retrain.Arch]:
  """Returns the best `top` distinct architectures of a search, by names such as 'child 12'.

  For a search with shared weights these are the best architectures derived at its end; for other searches, the best
  children. Children of a longer rung come first. Raises ValueError if the search has fewer.
  """
  made = arch_files.read_file(os.path.join(workdir, 'best.json'), space.space_of)
  cfg = config.from_json(system.config, workdirs.peek(os.path.join(workdir, 'config.json')) or {})
  system = for_config(system, cfg)
  who, ranked = top_lib.ranked(workdir, system, cfg, made)
  if len(ranked) < top:
    found = f'only {len(ranked)} different {system.noun}s that trained'
    raise ValueError(f'top (={top}): the search in {workdir} has {found}.')
  return {f'{who} {record["id"]}': rankings.arch_of(made, record) for record in ranked[:top]}


if __name__ == '__main__':
  launch.main(prepare)
