"""Configs: plain dataclasses whose fields carry their help, their source and their bounds.

A launcher makes a flag of each field, and a notebook writes `Config(m=2)`. `check` checks the values of both.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses
import difflib
import json
from typing import Any, ClassVar
import warnings

LARGEST = 1e30  # the largest value of a float field, so that products of settings still fit float32
LAST_SEED = 2**32 - 1  # JAX makes keys of the lowest 32 bits of a seed: a greater one would repeat a smaller one


def field(
  default: Any,
  help: str,
  *,
  low: float | None = None,
  above: float | None = None,
  high: float | None = None,
  choices: Sequence[str] = (),
  budget: bool = False,
  first: bool = False,
  also: type | None = None,
  pair: bool = False,
  unsettled: Any = 'auto',
  former: Any = None,
) -> Any:
  """Returns a dataclass field with its help text and its bounds.

  Args:
    default: the default value. The entries of a list are of the type of its first entry, or words if it is empty.
    help: one line that says what the field is, its unit and the source of its default.
    low: the least value allowed.
    above: a value it must exceed.
    high: the greatest value allowed.
    choices: the words allowed.
    budget: whether the field only says when to stop. A search can be resumed with another value of such a field.
    first: whether the field is among the few that --help shows first, because users set them first.
    also: for a list of words, another type that entries may have. Such an entry is saved in JSON as its `name`.
    pair: whether the value may also be a tuple of two of its kind.
    unsettled: the value that leaves the choice to the first start of a search. That start saves its choice, and later
      starts read it: see `settled`.
    former: the default of earlier versions, if it was another one: see `settled`.
  """
  fits = {
    'low': low,
    'above': above,
    'high': high,
    'choices': choices,
    'also': also,
    'pair': pair,
    'unsettled': unsettled,
    'former': former,
  }
  return dataclasses.field(default=default, metadata={'help': help, 'budget': budget, 'first': first, **fits})


@dataclasses.dataclass
class Seed:
  """The seed of a search or of a retraining."""

  seed: int = field(0, 'seed of the whole run', low=0, high=LAST_SEED, first=True)


@dataclasses.dataclass
class DataSeed(Seed):
  """The seed of a search or of a retraining, and the seed of its data."""

  data_seed: int = field(
    -1,
    'seed of the data: of the split into training and validation data if the set has none, of their order, and of '
    'random crops and flips; -1 for the seed of the whole run',
    low=-1,
    high=LAST_SEED,
    unsettled=-1,
  )

  added: ClassVar[dict[str, Any]] = {'data_seed': 0}  # see `with_added`: the data did not depend on the seed


def data_seed(config: DataSeed) -> int:
  """Returns the seed of the data: `data_seed`, or the seed of the whole run if that is negative."""
  return config.seed if config.data_seed < 0 else config.data_seed


def seeds_in_words(config: DataSeed) -> str:
  """Returns the seed in words, followed by the seed of the data if the two differ."""
  own = data_seed(config)
  return f'seed {config.seed}' + (f', of the data {own}' if own != config.seed else '')


def check(config: Any) -> None:
  """Raises ValueError on the first value of a wrong type or out of range. The error names the field and its bounds."""
  for item in dataclasses.fields(config):
    value = getattr(config, item.name)
    if isinstance(item.default, tuple) and isinstance(value, tuple):
      if not value and item.default:
        raise ValueError(f'{item.name} is an empty list and must have at least one entry: {item.metadata["help"]}.')
      for entry in value:
        if item.metadata.get('also') and isinstance(entry, item.metadata['also']):
          continue
        _check_value(item.name, entry, entry_type(item), item.metadata)
    else:
      pair = item.metadata['pair'] and isinstance(value, tuple) and len(value) == 2
      for entry in value if pair else (value,):
        _check_value(item.name, entry, type(item.default), item.metadata)


def entry_type(item: Any) -> type:
  """Returns the type of the entries of a list, which is a field of a config."""
  return type(item.default[0]) if item.default else str


def _check_value(name: str, value: Any, wanted: type, rules: Mapping[str, Any]) -> None:
  if isinstance(value, bool) != (wanted is bool) or not isinstance(value, (int, float) if wanted is float else wanted):
    raise ValueError(f'{name} (={value!r}) must be of type {wanted.__name__}: {rules["help"]}.')
  fits = bounds(rules)
  if not all(holds(value) for holds in fits.values()):
    raise ValueError(f'{name} (={value}) must be {" and ".join(fits)}: {rules["help"]}.')
  if isinstance(value, float) and not abs(value) <= LARGEST:
    raise ValueError(f'{name} (={value}) must be a number of at most {LARGEST:g}: {rules["help"]}.')


def bounds(rules: Mapping[str, Any]) -> dict[str, Callable[[Any], bool]]:
  """Returns the bounds of a field, from its metadata: a test for each, by a phrase such as 'at least 1'."""
  low, above, high, choices = (rules[name] for name in ('low', 'above', 'high', 'choices'))
  fits: dict[str, Callable[[Any], bool]] = {}
  if low is not None:
    fits[f'at least {low:g}'] = lambda value: value >= low
  if above is not None:
    fits[f'greater than {above:g}'] = lambda value: value > above
  if high is not None:
    fits[f'at most {high:g}' if isinstance(high, float) else f'at most {high}'] = lambda value: value <= high
  if choices:
    fits[f'one of {", ".join(choices)}'] = lambda value: value in choices
  return fits


def as_json(config: Any) -> dict[str, Any]:
  """Returns the fields as JSON values: tuples become lists, and entries that are not words become their `name`."""

  def plain(value: Any) -> Any:
    return [getattr(entry, 'name', entry) for entry in value] if isinstance(value, tuple) else value

  return json.loads(json.dumps({item.name: plain(getattr(config, item.name)) for item in dataclasses.fields(config)}))


def from_json(config_class: type, saved: Mapping[str, Any]) -> Any:
  """The inverse of `as_json`. Fields that `saved` lacks get their defaults; entries that are no fields are ignored.

  A field that was added after `saved` was written gets the value that keeps the old behaviour: see `with_added`.
  """
  saved, names = with_added(saved, config_class), {item.name for item in dataclasses.fields(config_class)}
  values = {name: tuple(value) if isinstance(value, list) else value for name, value in saved.items()}
  return config_class(**{name: value for name, value in values.items() if name in names})


def settled(config: Any, old: Mapping[str, Any]) -> Any:
  """Returns `config` with the values of a saved config, `old`, for what the flags leave open.

  A value that leaves a choice open, such as 'auto', is replaced by what `old` chose. A default is replaced by the
  default of earlier versions if that is what `old` has: a search that was started with it goes on with it. A warning
  names these fields.
  """
  old = with_added(old, type(config))
  items = [(item, getattr(config, item.name)) for item in dataclasses.fields(config) if item.name in old]
  open_ = {item.name: old[item.name] for item, value in items if value == item.metadata['unsettled']}
  former = {
    item.name: old[item.name]
    for item, value in items
    if item.metadata['former'] is not None and value == item.default and old[item.name] == item.metadata['former']
  }
  if former:
    said = ' and '.join(f'{name}={value}' for name, value in former.items())
    warnings.warn(f'the search goes on with {said}: the defaults of new searches are others.', stacklevel=2)
  return dataclasses.replace(config, **open_, **former)


def without_removed(saved: Mapping[str, Any], config_class: type) -> dict[str, Any]:
  """Returns a saved config without those fields that no longer exist and were saved with their default values.

  The attribute `removed` of a config class lists its removed fields with their defaults as in JSON. The default of such
  a field had no effect, so a search that was started with that default can be resumed without the field.
  """
  names = {item.name for item in dataclasses.fields(config_class)}
  every = [item for one in reversed(config_class.__mro__) for item in vars(one).get('removed', {}).items()]
  removed = {name: value for name, value in every if name not in names}
  return {name: value for name, value in saved.items() if name not in removed or value != removed[name]}


def with_added(saved: Mapping[str, Any], config_class: type) -> dict[str, Any]:
  """Returns a saved config with the fields that were added later, at the values that keep the old behaviour.

  The attribute `added` of a config class lists the fields that are newer than some workdirs, with these values as in
  JSON. So an older search is resumed unchanged, or is refused if the field now has another value.
  """
  added = dict[str, Any]()
  for one in reversed(config_class.__mro__):
    added |= vars(one).get('added', {})
  return {**added, **saved}


def differences(old: Mapping[str, Any], new: Any) -> list[str]:
  """Returns the fields in which a saved config differs from `new`, as 'name (old -> new)'.

  Budgets are ignored, and so are removed fields that had their default values: see `without_removed`. A field that is
  newer than the saved config counts with its value in `with_added`.
  """
  old = with_added(without_removed(old, type(new)), type(new))
  now, budgets = as_json(new), {item.name for item in dataclasses.fields(new) if item.metadata['budget']}
  names = [name for name in {**old, **now} if name not in budgets and old.get(name) != now.get(name)]
  return [f'{name} ({old.get(name)} -> {now.get(name)})' for name in names]


def did_you_mean(name: str, known: Iterable[str]) -> str:
  """Returns ' (did you mean A or B?)' for an error message, with the known names most like `name`, or '' for none."""
  cases = {one.lower(): one for one in known}
  near = [cases[one] for one in difflib.get_close_matches(name.lower(), cases)]
  return f' (did you mean {" or ".join(near)}?)' if near else ''
