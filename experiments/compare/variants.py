"""Parses the names of the algorithms to compare: this library's, optionally with settings, and peers."""

from collections.abc import Sequence
import dataclasses
from typing import Any, NamedTuple

from experiments.compare import peers
from nas_jax import config
from nas_jax.search.algorithms import ALGORITHMS
from nas_jax.systems import table


class Variant(NamedTuple):
  """An algorithm to compare, with its settings."""

  name: str  # as given
  cfg: table.Config | None  # of an algorithm of this library; None for a peer


def parse(entries: Sequence[str]) -> list[Variant]:
  """Returns the variants of a list of names such as `random`, `tpe` or `reinforce:m=4,controller_lr=0.01`.

  The list has been split at commas, so an entry `field=value` is a further setting of the variant before it.

  Raises:
    ValueError: the list is empty, an algorithm or a setting is unknown or out of range, or a variant is given twice.
  """
  names = list[str]()
  for entry in (entry.strip() for entry in entries):
    if '=' in entry.split(':')[0] and names:
      names[-1] += f',{entry}'
    else:
      names.append(entry)
  if not names:
    raise ValueError(f'algorithms is an empty list: take of {", ".join([*ALGORITHMS, *peers.PEERS])}.')
  if twice := [name for name in names if names.count(name) > 1]:
    raise ValueError(f'algorithms has {twice[0]!r} twice: name each once.')
  return [_variant(name) for name in names]


def _variant(name: str) -> Variant:
  algorithm, _, settings = name.partition(':')
  given = dict[str, str]()
  for setting in filter(None, settings.split(',')):
    field, sign, value = setting.partition('=')
    if not sign:
      raise ValueError(f'algorithms has {name!r}: want settings as field=value after the colon.')
    given[field] = value
  if algorithm in peers.PEERS:
    if given:
      raise ValueError(f'algorithms has {name!r}: {algorithm} takes no settings, leave them out.')
    return Variant(name, None)
  if algorithm not in ALGORITHMS:
    known = [*ALGORITHMS, *peers.PEERS]
    near = config.did_you_mean(algorithm, known)
    raise ValueError(f'algorithms has {algorithm!r}, which is none{near}: take of {", ".join(known)}.')
  return Variant(name, _overlay(dataclasses.replace(table.Config(), algorithm=algorithm), name, given))


def _overlay(cfg: table.Config, name: str, given: dict[str, str]) -> table.Config:
  """Overrides fields of `cfg` in place by settings given as text. Raises ValueError if one is unknown or invalid."""
  fields = {item.name: item for item in dataclasses.fields(cfg)}
  for field, text in given.items():
    if field not in fields or field in ('seed', 'algorithm'):
      near = config.did_you_mean(field, fields)
      raise ValueError(f'algorithms has {name!r}: {field} is no setting of a search in a table{near}.')
    setattr(cfg, field, _value(type(fields[field].default), name, field, text))
  config.check(cfg)
  return cfg


def _value(wanted: type, name: str, field: str, text: str) -> Any:
  truths = {'true': True, 'false': False}
  try:
    return truths[text.lower()] if wanted is bool else wanted(text)
  except (KeyError, ValueError):
    words = 'true or false' if wanted is bool else f'of type {wanted.__name__}'
    raise ValueError(f'algorithms has {name!r}: {field} must be {words}, not {text!r}.') from None
