"""The text that a launcher prints about its flags: the page of --help, and suggestions for an unknown flag."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import dataclasses
import difflib
import inspect
import textwrap
from typing import Any

from absl import flags

from nas_jax import config

GROUPS = FIRST, CHILDREN, CONTROLLER, LIMITS = (
  'What to set first', 'The children and their training', 'The controller and its search', 'Limits and comparisons',
)  # fmt: skip
_FOLDERS = {
  'search': CONTROLLER,
  'replicas': CONTROLLER,
  'training': LIMITS,
}  # of nas_jax, whose configs have a group of their own

Presets = Mapping[str, Callable[[], Any]]  # name -> a fresh config
_WIDTH, _LONGEST = 100, 60  # characters of a line, and of the value of a preset


def page(doc: str, values: flags.FlagValues, own: Sequence[str], configs: Mapping[str, Presets]) -> str:
  """Returns the text of --help: the launcher's docstring, then all flags by group, with bounds and preset values.

  Args:
    doc: the launcher's docstring.
    values: the flags.
    own: names of the flags that are no fields of a config; they come first.
    configs: purpose of a config -> its presets. The fields of these configs are flags.
  """
  made = {owner: {name: make() for name, make in presets.items()} for owner, presets in configs.items()}
  groups: dict[str, list[str]] = {name: [] for name in GROUPS}
  groups[FIRST] = [_entry(_title(name, values[name]), [_own_line(values[name])]) for name in own]
  seen = set[str]()
  for presets in made.values():
    cfg = next(iter(presets.values()))
    for item, owner in _in_order(type(cfg)):
      if item.name not in seen:
        seen.add(item.name)
        entry = _entry(_title(item.name, values[item.name]), _field_lines(item.name, made))
        groups[_group(item, owner)].append(entry)
  parts = [f'{name if configs else "Flags"}:\n\n' + '\n'.join(entries) for name, entries in groups.items() if entries]
  return '\n\n'.join([doc.strip(), *parts])


def _in_order(config_class: type) -> list[tuple[dataclasses.Field, type]]:
  """Returns the fields of a config, its own before those of its bases, each with the class that defines it."""
  items = {item.name: item for item in dataclasses.fields(config_class)}
  owners = {name: base for base in config_class.__mro__ for name in inspect.get_annotations(base) if name in items}
  return [(items[name], owner) for name, owner in owners.items()]


def _group(item: dataclasses.Field, owner: type) -> str:
  if item.metadata['first']:
    return FIRST
  folder = owner.__module__.removeprefix('nas_jax.').split('.')[0]
  return LIMITS if item.metadata['budget'] else _FOLDERS.get(folder, CHILDREN)


def _title(name: str, flag: flags.Flag) -> str:
  return f'--[no]{name}' if flag.boolean else f'--{name}'


def _entry(title: str, lines: Iterable[str]) -> str:
  text = '\n'.join(textwrap.fill(line, _WIDTH - 6, break_on_hyphens=False) for line in lines)
  return f'  {title}\n{textwrap.indent(text, " " * 6)}'


def _own_line(flag: flags.Flag) -> str:
  choices = getattr(flag.parser, 'enum_values', ())
  words = flag.help.removeprefix(f'<{"|".join(choices)}>: ') + (f' (one of {", ".join(choices)})' if choices else '')
  return words if flag.default in ('', [], None) else f'{words} [{_word(flag.default)}]'


def _field_lines(name: str, made: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
  """Yields the help and the preset values of a field; separately for each config where they differ."""
  found: dict[str, dict[str, list[str]]] = {}  # text -> values -> owners
  for owner, presets in made.items():
    for item in dataclasses.fields(next(iter(presets.values()))):
      if item.name == name:
        fits = ' and '.join(words for words in config.bounds(item.metadata))
        text = item.metadata['help'] + (f' ({fits})' if fits else '')
        values = _preset_values({preset: getattr(cfg, name) for preset, cfg in presets.items()})
        found.setdefault(text, {}).setdefault(f'[{values}]', []).append(owner)
  for text, owners_of in found.items():
    owners = [owner for some in owners_of.values() for owner in some]
    whole = text if len(owners) == len(made) else f'{", ".join(owners)}: {text}'
    if len(owners_of) == 1:
      yield f'{whole} {next(iter(owners_of))}'
    else:
      yield whole
      yield from (f'{", ".join(some)} {values}' for values, some in owners_of.items())


def _preset_values(values: Mapping[str, Any]) -> str:
  """Returns a field's values in all presets: '4' if they agree, else such as 'demo, small: 4; paper: 10'."""
  presets = dict[str, list[str]]()
  for preset, value in values.items():
    presets.setdefault(_word(value), []).append(preset)
  if len(presets) == 1:
    return next(iter(presets))
  return '; '.join(f'{", ".join(names)}: {word}' for word, names in presets.items())


def _word(value: Any) -> str:
  """Returns a value as it is written on the command line, shortened to `_LONGEST` characters."""
  if isinstance(value, bool):
    return str(value).lower()
  if isinstance(value, float):
    return f'{value:g}'
  word = ','.join(map(_word, value)) if isinstance(value, list | tuple) else value
  return textwrap.shorten(str(word), _LONGEST, placeholder=' ...') or "''"


def suggestions(name: str, known: Mapping[str, str]) -> list[str]:
  """Returns at most three known flags that an unknown name may stand for. `known` maps each flag to its help.

  Flags come first that share a word with the name or are spelled like it. If there are none, flags are taken whose
  help contains the words of the name in sequence; those where they appear earlier come first.
  """
  words, phrase = set(name.split('_')), name.replace('_', ' ')

  def likeness(other: str) -> tuple[int, float]:
    return len(words & set(other.split('_'))), difflib.SequenceMatcher(None, name, other).ratio()

  near = [other for other in known if likeness(other)[0] or likeness(other)[1] > 0.75]
  if near:
    return sorted(near, key=likeness, reverse=True)[:3]
  return sorted((o for o in known if phrase in known[o]), key=lambda o: (known[o].index(phrase), len(o)))[:3]
