"""The known architectures that a search starts from. They are read from files once and copied to its workdir.

The copy is start.json, so the files may change or disappear while the search runs.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
import hashlib
import json
import os
from typing import Any, NamedTuple

import numpy as np

from experiments.common import arch_files, workdirs
from experiments.common.systems import Config, System, system_of
from nas_jax import config, files, published, replicas, words
from nas_jax.search import Config as SearchConfig
from nas_jax.search import Search, core, journal, start
from nas_jax.space import Space
from nas_jax.training.recovery import Limits

PUBLISHED = 'published'  # in place of a file: all published architectures of the system
# Config fields that change neither a child nor its training, in addition to those of a search and its limits.
_BESIDE = {'reliability_children', 'yardstick_repeats', 'child_program', 'steps_per_call', 'rung_factor'}
_BESIDE |= {'final_children', 'final_repeats', 'final_preset'}


class Start(NamedTuple):
  """The known children and architectures that a search starts from."""

  files: dict[str, str]  # path as given -> SHA-256 of the file's content
  told: list[journal.Record]  # children to tell the search before the first `ask`, with tokens of its space
  first: list[list[int]]  # token sequences to train first
  said: list[str]  # a line for each file: how it is used


NOTHING = Start({}, [], [], [])


class Target(NamedTuple):
  """The search that is to be started."""

  system: System
  cfg: Config
  sha256: str  # of its data
  space: Space
  most: int  # how many architectures of a journal to train first, if its rewards cannot be told


def open_start(workdir: str, paths: Sequence[str], target: Target) -> Start:
  """Returns the start of the search in a workdir, read from start.json or else from the files. It writes start.json.

  Architectures that come after the children have grown deeper are left out, and a line says so.

  Raises:
    ValueError: a file cannot be read or has nothing for this search, or the workdir holds a search that was started
      from something else.
    files.Unusable: start.json is missing or damaged.
  """
  path = os.path.join(workdir, 'start.json')
  noted = workdirs.peek(path)
  if noted is None and (workdirs.peek(os.path.join(workdir, 'origin.json')) or {}).get('start_from'):
    raise files.Unusable(f'{path} is missing, which says what this search was started from: restore it.')
  if noted is not None and noted.pop('sha256') != _digest(noted):
    raise files.Unusable(f'{path} is damaged: restore it.')
  begun = noted is not None or os.path.lexists(os.path.join(workdir, 'children.jsonl'))
  before = list(noted['files']) if noted else []
  if begun and before != list(paths):
    raise ValueError(
      f'workdir (={workdir!r}) holds a search that was started from {_names(before)}, not from {_names(paths)}: give '
      f'--start_from as it was to resume, or name another --workdir.'
    )
  if noted:
    return _before_deeper(Start(**noted), target)
  found = _read(paths, target)
  if paths:
    content = files.parse(files.as_json(found._asdict()))
    files.write(path, files.as_json(content | {'sha256': _digest(content)}) + '\n')
  return _before_deeper(found, target)


def _before_deeper(found: Start, target: Target) -> Start:
  """Returns a start without the architectures that come after the children of the search have grown deeper."""
  count, first = len(found.first), found.first[: core.before_deeper(target.cfg, target.space)]
  if len(first) == count:
    return found
  depth = words.counted(target.cfg.depth_start, 'layer')
  line = (
    f'only {len(first)} of {count} architectures: they have {depth}, and later children have more; with '
    f'--depth_every={count} all are trained first'
  )
  return found._replace(first=first, said=[*found.said, line])


def _names(paths: Sequence[str]) -> str:
  return ', '.join(paths) or 'nothing'


def _digest(content: Mapping[str, Any]) -> str:
  return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def begin(s: Search, found: Start) -> Search:
  """Returns the search with its start; see `search.start.begin`."""
  if not found.files:
    return s
  columns = zip(*(_row(record, s.space) for record in found.told), strict=True) if found.told else [[]] * 5
  types = (np.int32, np.int32, np.float32, bool, bool)
  known = start.Known(*(np.array(list(column), kind) for column, kind in zip(columns, types, strict=True)))
  return start.begin(
    s, known._replace(tokens=known.tokens.reshape(-1, s.space.length)), np.array(found.first, np.int32)
  )


def _row(record: journal.Record, space: Space) -> tuple[list[int], int, float, bool, bool]:
  failed, repeats = record['failed'] is not None, record.get(journal.REPEAT) is not None
  return record['tokens'], record.get('depth', space.layers), record['reward'], failed, not repeats


def measured(found: Start) -> dict[int, journal.Record]:
  """Returns the records of the children that a search is told at its start, by their negative ids in that search."""
  lowest = -len(found.told)
  return {lowest + k: record | {'id': lowest + k, 'seconds': 0.0} for k, record in enumerate(found.told)}


def _read(paths: Sequence[str], target: Target) -> Start:
  """Reads all files. A token sequence is trained first at most once, and not at all if its reward is told."""
  if len(set(paths)) < len(paths):
    raise ValueError(f'start_from (={",".join(paths)}) has a file twice: name each once.')
  if paths and target.system.kind == 'chain':
    raise ValueError('start_from is for rewards of whole architectures, and here each layer has one: leave it out.')
  if paths and target.cfg.replicas:
    raise ValueError('start_from is for a search without replicas: leave --start_from or --replicas out.')
  found = Start({}, [], [], [])
  for path in paths:
    is_journal = os.path.isdir(path) or os.path.basename(path) == 'children.jsonl'
    part = _of_journal(path, target) if is_journal else _of_archs(path, target)
    found = Start(found.files | part.files, found.told + part.told, found.first + part.first, [*found.said, *part.said])
  known = {tuple(record['tokens']) for record in found.told}
  return found._replace(
    first=[list(tokens) for tokens in dict.fromkeys(map(tuple, found.first)) if tokens not in known]
  )


def _of_archs(path: str, target: Target) -> Start:
  """Returns a start that first trains the architectures in a file, a published one, or all that the space has."""
  known = {name: arch for name, arch in vars(published).items() if isinstance(arch, target.space.arch_type)}
  if path != PUBLISHED and path not in known:
    text = arch_files.read_file(path, str)
    tokens = arch_files.read_archs(path, functools.partial(_tokens, target))
    return Start(
      {path: hashlib.sha256(text.encode()).hexdigest()}, [], list(tokens.values()), [f'{path}: trained first']
    )
  archs = dict(known) if path == PUBLISHED else {path: known[path]}
  first, lacking = dict[str, list[int]](), dict[str, str]()
  for name, arch in archs.items():
    try:
      first[name] = _checked(arch, target)
    except ValueError as error:
      lacking[name] = str(error)
  if not first:
    raise ValueError(f'start_from: {path} has nothing that this search can train ({_first(lacking)}): leave it out.')
  left = f'; left out: {_first(lacking)}' if lacking else ''
  digest = hashlib.sha256(repr(archs).encode()).hexdigest()
  return Start({path: digest}, [], list(first.values()), [f'{path}: {", ".join(first)} trained first{left}'])


def _first(lacking: Mapping[str, str]) -> str:
  return next((f'{name}: {why}' for name, why in lacking.items()), 'there is none')


def _tokens(target: Target, text: str) -> list[int]:
  return _checked(target.space.from_json(text), target)


def _checked(arch: Any, target: Target) -> list[int]:
  """Returns the tokens of an architecture. Raises ValueError if it cannot be trained first."""
  tokens, depth = target.space.encode(arch).tolist(), target.space.check(arch)
  assert target.system.alone is not None
  if why := target.system.alone.why_unsupported(target.cfg, arch):
    raise ValueError(why)
  now = target.cfg.depth_start or target.space.layers
  if depth != now:
    raise ValueError(f'it has {words.counted(depth, "layer")}, and the first children have {now}')
  return tokens


def _of_journal(path: str, target: Target) -> Start:
  """Returns the children of a workdir or journal as a start.

  Their rewards are told if they were trained as in this search. Otherwise the best `target.most` are trained first.
  """
  folder, system = os.path.dirname(path) if path.endswith('.jsonl') else path, target.system
  saved, origin = (workdirs.peek(os.path.join(folder, name)) for name in ('config.json', 'origin.json'))
  held = system_of(saved, origin or {}) if saved else None
  if held is None or held.kind != system.kind:
    what = f'holds a search of {held.launcher} (kind {held.kind})' if held else 'has no config.json of a search'
    raise ValueError(f'start_from: {path} {what}: want the workdir of a search of kind {system.kind}.')
  old = config.from_json(held.config, saved)
  made = held.make_space(old)
  source = os.path.join(folder, 'children.jsonl')
  records = journal.read(source, schema=journal.child_of(made))
  told, lacking = list[journal.Record](), dict[str, str]()
  for number in sorted(records):
    record = records[number]
    try:
      arch = target.space.from_json(made.to_json(made.decode(record['tokens'], record.get('depth'))))
      depth = target.space.check(arch)
      told.append(record | {'tokens': target.space.encode(arch).tolist(), 'depth': depth})
    except ValueError as error:
      lacking[f'child {number}'] = str(error)
  if not told:
    raise ValueError(f'start_from: {path} has no child of this space ({_first(lacking)}): leave it out.')
  content = arch_files.read_file(source, str.encode)
  digest = hashlib.sha256(content).hexdigest()
  absent = words.counted(len(lacking), 'is', 'are')
  left = f'; {absent} not of this space and left out ({_first(lacking)})' if lacking else ''
  damaged = len(content.splitlines()) - len(journal.read_lines(source, journal.child_of(made)))
  left += f'; {words.counted(damaged, "line is", "lines are")} damaged and left out' if damaged else ''
  differs = [f'by {held.launcher}'] if held is not system else _trained_otherwise(old, origin or {}, target)
  if differs:
    first, whose = _best(told, target), words.counted(len(told), 'child was', 'children were')
    said = f'{path}: {whose} trained otherwise ({", ".join(differs[:3])}), the best {len(first)} first'
    return Start({path: digest}, [], first, [said + left])
  return Start({path: digest}, told, [], [f'{path}: told of {words.counted(len(told), "child", "children")}{left}'])


def _best(told: Sequence[journal.Record], target: Target) -> list[list[int]]:
  """Returns the tokens of the best different children that can be trained first."""
  found = dict[tuple[int, ...], None]()
  sound = [record for record in told if record['failed'] is None]
  for record in sorted(sound, key=lambda record: -record['reward']):
    arch = target.space.decode(record['tokens'], record['depth'])
    try:
      _checked(arch, target)
    except ValueError:
      continue
    found[tuple(record['tokens'])] = None
  return [list(tokens) for tokens in found][: target.most]


def _trained_otherwise(old: Config, origin: Mapping[str, Any], target: Target) -> list[str]:
  """Returns how the training of an old search's children differs from that in this search; empty if it does not.

  Settings of the search, limits, budgets, and fields that only change the search space are not compared.
  """
  cfg, differs = target.cfg, list[str]()
  beside = {
    item.name for base in (SearchConfig, replicas.Config, Limits) for item in dataclasses.fields(base)
  } | _BESIDE
  was, now = config.as_json(old), config.as_json(cfg)
  for item in dataclasses.fields(cfg):
    name = item.name
    if name in beside or item.metadata['budget'] or was[name] == now[name]:
      continue
    other = target.system.make_space(dataclasses.replace(cfg, **{name: getattr(old, name)}))
    if other.spec == target.space.spec:
      differs.append(f'{name} {was[name]} -> {now[name]}')
  if origin.get('sha256') != target.sha256:
    differs.append('other data' if 'sha256' in origin else 'data not recorded')
  return differs
