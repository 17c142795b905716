"""Writes the best distinct architectures of a search to top.json, and makes the command that retrains them."""

from collections.abc import Mapping, Sequence
import os
import shlex
from typing import Any

from experiments.common import rung_stage, workdirs
from experiments.common.systems import SYSTEMS, Config, System, goal
from nas_jax import files, space
from nas_jax.report import rankings, rungs
from nas_jax.search import journal

FILE = 'top.json'
# Fields that say what data is trained on and how it is scored. Retraining must have them as the search has. It does not
# take `max_examples`, since a search may use a part of the data to be fast.
_DATA = (
  *('dataset', 'metric', 'class_weights', 'valid_share', 'test_share'),
  *('level', 'min_count', 'max_vocabulary'),
  *('resize', 'whiten', 'upsample', 'flip', 'pad'),
  *('window', 'horizon'),
)
_NETWORK = ('block', 'pool_at', 'norm_first')  # fields that say how a network is built from an architecture


def ranked(workdir: str, system: System, cfg: Config, made: space.Space) -> tuple[str, list[journal.Record]]:
  """Returns 'child' or 'derived', and the records of the distinct architectures that did not fail, best first.

  For a search with shared weights these are the architectures derived at its end, for other searches its children.
  Children of a longer rung come first.

  Args:
    workdir: of the search.
    system: of the search.
    cfg: its config.
    made: its space.

  Raises:
    files.Unusable: a file is damaged.
  """
  path, who = os.path.join(workdir, 'derived.json'), 'derived'
  if os.path.exists(path):
    each: list[Sequence[journal.Record]] = [workdirs.peek_derived(workdir, made, system.metric.key)]
  else:
    path, who = os.path.join(workdir, 'children.jsonl'), 'child'
    records = list(journal.read(path, schema=journal.child_of(made)).values())
    each = rung_stage.of(system, cfg, made, workdir, records)
  return who, [record for _, record in rungs.best_first(each, made, goal(system, cfg))]


def write(workdir: str, system: System, cfg: Config, most: int) -> int:
  """Writes top.json into the workdir of a search: a list of objects as in best.json, best first.

  Args:
    workdir: of the search.
    system: of the search.
    cfg: its config.
    most: the greatest number of architectures. If it is 0, or there are none, an existing top.json is removed.

  Returns:
    The number of architectures written.
  """
  path, made = os.path.join(workdir, FILE), system.make_space(cfg)
  found = ranked(workdir, system, cfg, made)[1][:most]
  if found:
    lines = (rankings.best_json(made, record).rstrip('\n') for record in found)
    workdirs.write(path, '[\n' + ',\n'.join(lines) + '\n]\n')
  else:
    files.remove(path)
  return len(found)


def said(workdir: str, system: System, cfg: Config) -> str:
  """Returns the lines of the summary on top.json and the command that retrains from it; '' if there is no top.json."""
  path = os.path.join(workdir, FILE)
  if not os.path.exists(path):
    return ''
  origin = workdirs.peek(os.path.join(workdir, 'origin.json')) or {}
  command = retrain_command(f'--arch={path}', system, cfg, origin)
  further = f'; to train {"them" if count(workdir) > 1 else "it"} to the end:\n  {command}' if command else ''
  return f'the {best(workdir, system)} {"are" if count(workdir) > 1 else "is"} in {path}{further}'


def best(workdir: str, system: System) -> str:
  """Returns the content of top.json in words, such as 'best 5 different cells'."""
  many = count(workdir)
  return f'best {many} different {system.noun}s' if many > 1 else f'best {system.noun}'


def count(workdir: str) -> int:
  """Returns how many architectures are in top.json."""
  return len(workdirs.peek(os.path.join(workdir, FILE)))


def retrain_command(source: str, system: System, cfg: Config, origin: Mapping[str, Any]) -> str:
  """Returns the command that trains the architectures of `source` to the end; '' if the system has no recipe for it.

  `source` is a flag of `retrain`: --arch=FILE, or --workdir=FOLDER for the best child of a search. The command names
  the data of the search, how its networks are built, and its preset if `retrain` has one of that name, else 'demo'.
  """
  if system.retrain is None:
    return ''
  given = _flags(origin.get('command', ''))
  preset = given.get('preset', 'demo')
  named = f'{preset}_{system.variant}', preset, 'demo'  # the recipe of the variant comes first
  preset = next(name for name in named if name in system.retrain.presets)
  own = system.retrain.presets[preset]()
  words = [f'--preset={preset}', source]
  if next(one for one in SYSTEMS if one.kind == system.kind).name != system.name:
    words += [f'--system={system.name}']
  words += [
    f'--{name}={_flag(getattr(cfg, name))}'
    for name in (*_DATA, *_NETWORK)
    if hasattr(cfg, name) and hasattr(own, name) and getattr(cfg, name) != getattr(own, name)
  ]
  if getattr(cfg, 'child_weights', 0):
    words += [f'--weights={cfg.child_weights / 1000:.10g}k']
  words += [f'--data_dir={given["data_dir"]}'] if given.get('data_dir') else []
  return shlex.join(['python', '-m', 'experiments.retrain', *words])


def _flag(value: Any) -> str:
  """Returns a value as it is written in a flag: 32, or 48,64 for a pair."""
  return ','.join(map(str, value)) if isinstance(value, tuple) else str(value)


def _flags(command: str) -> dict[str, str]:
  """Returns the flags of a command that have a value, by name: --name=value or --name value."""
  found = dict[str, str]()
  try:
    words = shlex.split(command)
  except ValueError:  # an unmatched quotation mark, in a file that somebody has edited
    return found
  for word, after in zip(words, [*words, ''][1:], strict=True):
    if word.startswith('-'):
      name, apart, value = word.lstrip('-').partition('=')
      found[name] = value if apart else after
  return found
