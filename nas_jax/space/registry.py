"""Reads an architecture from a file, with its kind and the space that it was found in."""

from collections.abc import Callable
import json
from typing import Any, NamedTuple

from nas_jax.operations import BUILT_IN, Operation, Operations, by_id
from nas_jax.space.base import Space
from nas_jax.space.chain import chain_from_json, chain_space
from nas_jax.space.choice import choice_space
from nas_jax.space.conv import conv_from_json, conv_space
from nas_jax.space.enas import (
  enas_macro_space,
  enas_micro_space,
  enas_rnn_space,
  macro_from_json,
  micro_from_json,
  rnn_from_json,
)
from nas_jax.space.tree import tree_cell_space, tree_from_json


class _Family(NamedTuple):
  """How files hold the architectures of one kind."""

  make_space: Callable[..., Space]  # takes the entries of "space" in a best.json
  from_json: Callable[..., Any] | None  # (text) -> the architecture; None if reading it needs the space
  of_operations: bool = False  # whether `from_json` also takes the `Operations` that the architecture may hold


_FAMILIES = {
  'tree_cell': _Family(tree_cell_space, tree_from_json, of_operations=True),
  'conv': _Family(conv_space, conv_from_json),
  'chain': _Family(chain_space, chain_from_json),
  'choice': _Family(choice_space, None),
  'enas_macro': _Family(enas_macro_space, macro_from_json),
  'enas_micro': _Family(enas_micro_space, micro_from_json),
  'enas_rnn': _Family(enas_rnn_space, rnn_from_json, of_operations=True),
}


def from_json(text: str, kind: str = '', operations: Operations = BUILT_IN) -> Any:
  """Reads an architecture of any kind and any size, from the text of a best.json or of `Space.to_json`.

  Args:
    text: JSON with "kind" and "arch", and for a `ChoiceArch` with "space"; other entries are ignored.
    kind: the expected kind, such as 'tree_cell'; '' for any kind.
    operations: your own operations, which a recurrent cell may hold by name.

  Returns:
    The architecture, checked, as the NamedTuple of its kind (`TreeArch`, `ConvArch`, ...).

  Raises:
    ValueError: the text has no architecture, one of another kind, or an invalid one. The message is one line.
  """
  found = kind_of(text)
  if found not in ((kind,) if kind else _FAMILIES):
    raise ValueError(f'the architecture is of kind {found!r}: want {kind or ", ".join(_FAMILIES)}.')
  family = _FAMILIES[found]
  if family.from_json is None:
    return space_of(text).from_json(text)
  return family.from_json(text, operations) if family.of_operations else family.from_json(text)


def kind_of(text: str) -> str:
  """Returns the kind of an architecture in JSON, as `Space.to_json` writes it. Raises ValueError on other texts."""
  try:
    return str(json.loads(text)['kind'])
  except (ValueError, TypeError, KeyError, RecursionError):
    raise ValueError('not an architecture: want JSON with "kind" and "arch", as a best.json.') from None


def space_of(text: str, operations: Operations = BUILT_IN) -> Space:
  """Returns the space of a search, from the text of its best.json.

  Args:
    text: the text of the file.
    operations: your own operations, which the space may have by name.

  Raises:
    ValueError: the text describes no space, or a space with an unknown operation.
  """
  kind = kind_of(text)
  try:
    spec = json.loads(text)['space']
    if not all(_modest(value) for value in spec.values()):
      raise TypeError
    if _FAMILIES[kind].of_operations:
      spec |= {field: _handed_in(field, spec[field], operations) for field in Operations._fields if field in spec}
    return _FAMILIES[kind].make_space(**spec)
  except (KeyError, TypeError, AttributeError, OverflowError):
    raise ValueError(
      f'no space of kind {kind!r} is described: want the best.json of a search, or read the architecture by the '
      'from_json of its space.'
    ) from None


def _handed_in(field: str, names: list[str], operations: Operations) -> list[Operation | str]:
  """Returns the operations of one kind that a file names, with the user's own ones in place of their names."""
  own = {operation.name: operation for operation in by_id(field, getattr(operations, field)).values()}
  return [own.get(name, name) for name in names]


def _modest(value: object) -> bool:
  """Returns whether a value in a file is small enough to build a space from, to guard against hostile files."""
  if isinstance(value, (list, dict)):
    return len(value) <= 1000 and all(map(_modest, value.values() if isinstance(value, dict) else value))
  return not isinstance(value, (int, float)) or abs(value) <= 10_000
