"""The flags of launchers: made from configs, parsed, and laid over a preset."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import math
import os
import types
from typing import Any

from absl import flags

from experiments.common import usage
from nas_jax import config

_DEFINE: dict[type, Callable[..., Any]] = {
  bool: flags.DEFINE_boolean,
  int: flags.DEFINE_integer,
  float: flags.DEFINE_float,
  str: flags.DEFINE_string,
  tuple: flags.DEFINE_list,
}
# For each of these flags, the fields for which a preset may have a value that does not fit a given flag.
_ALONE = {'algorithm': ('proposals', 'known'), 'weights': ('add_filters', 'filters')}


def parse(
  argv: Sequence[str],
  doc: str,
  own: Callable[[flags.FlagValues], None],
  configs: Mapping[str, usage.Presets] = types.MappingProxyType({}),
  words: str = '',
  elsewhere: Mapping[str, str] = types.MappingProxyType({}),
) -> flags.FlagValues:
  """Parses `argv`. The flags are the launcher's `own` and one for each field of the configs.

  --help prints the page of all flags and exits. A leading ~ in the launcher's own flags becomes the home folder.

  Args:
    argv: the command line.
    doc: the launcher's docstring, for --help.
    own: defines the flags that are no fields of a config.
    configs: the presets of each config, by its purpose ('' if there is only one). One of the configs will be made.
    words: name of a list flag whose values may also be given as plain words.
    elsewhere: for flags that this launcher lacks, the launchers that have them.

  Raises:
    ValueError: a flag is unknown (the message suggests known ones), there are plain words and `words` is '', or one of
      the launcher's own flags is NaN or infinite.
  """
  values = flags.FlagValues()
  values.set_gnu_getopt(bool(words))  # flags may come after words
  own(values)
  names = list(values)
  flags.DEFINE_boolean('help', False, 'show this and leave', short_name='h', flag_values=values)
  fields: dict[str, list[Any]] = {}
  for presets in configs.values():
    for item in dataclasses.fields(next(iter(presets.values()))()):
      fields.setdefault(item.name, []).append(item)
  for name, items in fields.items():
    kinds = {tuple if item.metadata['pair'] else type(item.default) for item in items}
    helps = ' '.join(item.metadata['help'] for item in items)
    # Where one config has a list and another a single value, the flag is a list, and `overlay` requires one entry.
    _DEFINE[kinds.pop() if len(kinds) == 1 else tuple](name, None, helps, flag_values=values)
  try:
    rest = values(list(argv))
  except flags.UnrecognizedFlagError as error:
    if where := elsewhere.get(error.flagname):
      raise ValueError(f'there is no flag --{error.flagname} here, it is one of {where}: leave it out.') from None
    near = usage.suggestions(error.flagname, {name: values[name].help or '' for name in values if len(name) > 1})
    ask = f' (did you mean {" or ".join(f"--{name}" for name in near)}?)' if near else ''
    raise ValueError(f'there is no flag --{error.flagname}{ask}: --help lists all.') from None
  if values.help:
    print(usage.page(doc, values, names, configs))
    raise SystemExit(0)
  if words and len(rest) > 1:
    setattr(values, words, rest[1:])
  elif len(rest) > 1:
    raise ValueError(f'{rest[1]!r} is no flag: write --name=value; --help lists the names.')
  for name in names:
    _expand_home(values, name)
    if isinstance(number := values[name].value, float) and not math.isfinite(number):
      raise ValueError(f'{name} (={number}) must be a finite number.')
  return values


def _expand_home(values: flags.FlagValues, name: str) -> None:
  """Replaces a leading ~ in a flag's value by the home folder; a shell does so only at the beginning of a word."""
  given = values[name].value
  if isinstance(given, str):
    values[name].value = os.path.expanduser(given)
  elif isinstance(given, list):
    values[name].value = [os.path.expanduser(entry) for entry in given]


def search_flags(presets: Mapping[str, Any], launcher: str) -> Callable[[flags.FlagValues], None]:
  """Returns a function that defines the flags of every search that are no fields of its config."""

  def define(values: flags.FlagValues) -> None:
    flags.DEFINE_enum(
      'preset',
      'demo' if 'demo' in presets else next(iter(presets)),
      sorted(presets),
      'named configuration that the other flags are laid over',
      flag_values=values,
    )
    flags.DEFINE_string(
      'workdir',
      '',
      f'folder of results, in which a search resumes; runs/{launcher}-PRESET by default',
      flag_values=values,
    )
    flags.DEFINE_string('data_dir', '', 'folder that data sets are read from', flag_values=values)
    flags.DEFINE_boolean('control', True, 'run a random search on the same budget, to compare', flag_values=values)

  return define


def configure(values: flags.FlagValues, presets: Mapping[str, Callable[[], Any]]) -> Any:
  """Returns the config of the chosen preset, overridden by the given flags.

  Raises ValueError if the config is invalid or --data_dir is no folder.
  """
  cfg = overlay(values, presets[values.preset]())
  if values.data_dir and not os.path.isdir(values.data_dir):
    raise ValueError(f'data_dir (={values.data_dir!r}) is no folder: name one that exists, or leave the flag out.')
  return cfg


def own_preset(values: flags.FlagValues, presets: Mapping[str, Any], whose: str) -> None:
  """Raises ValueError if --preset is not one of `presets`, as a launcher may accept presets of several configs."""
  if values.preset not in presets:
    raise ValueError(f'preset (={values.preset!r}) is none for {whose}: take one of {", ".join(presets)}.')


def own_fields(values: flags.FlagValues, own: type, others: Mapping[str, type]) -> None:
  """Raises ValueError if a given flag is no field of the config `own`, but of one of `others` (by owner)."""
  names = {item.name for item in dataclasses.fields(own)}
  for whose, other in others.items():
    for item in dataclasses.fields(other):
      if item.name not in names and values[item.name].value is not None:
        raise ValueError(f'--{item.name} is for {whose}, and means nothing here: leave it out.')


def overlay(values: flags.FlagValues, cfg: Any) -> Any:
  """Overrides fields of `cfg` in place by the given flags, and returns it. Raises ValueError if it is then invalid.

  A given flag that is in `_ALONE` resets other fields of `cfg` to their defaults unless flags give them too.
  """
  given_flags = [flag for flag in _ALONE if flag in values and values[flag].value is not None]
  alone = {name for flag in given_flags for name in _ALONE[flag]}
  for item in dataclasses.fields(cfg):
    given = values[item.name].value
    if given is not None:
      setattr(cfg, item.name, _entries(item, given) if isinstance(given, list) else given)
    elif item.name in alone:
      setattr(cfg, item.name, item.default)
  config.check(cfg)
  return cfg


def _entries(item: Any, given: Sequence[str]) -> Any:
  """Returns the entries of a list flag in the type of the field's default.

  Raises ValueError if one cannot be converted, or if there are several and the field is neither a list nor a pair.
  """
  single = not isinstance(item.default, tuple)
  wanted = type(item.default) if single else config.entry_type(item)
  try:
    entries = tuple(wanted(entry) for entry in given)
    if not single or len(entries) == 1:
      return entries[0] if single else entries
    if item.metadata['pair'] and len(entries) == 2:
      return entries
  except ValueError:
    pass
  one = f'one {wanted.__name__}{", or two" if item.metadata["pair"] else ""}'
  what = one if single else f'a list of {wanted.__name__}s'
  raise ValueError(f'{item.name} (={",".join(given)}) must be {what}.')
