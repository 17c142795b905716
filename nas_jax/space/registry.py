"""Spaces by name: which one an architecture in a file is of."""

from collections.abc import Callable
import json

from nas_jax.space.base import Space
from nas_jax.space.chain import chain_space
from nas_jax.space.choice import choice_space
from nas_jax.space.conv import conv_space
from nas_jax.space.enas import enas_macro_space, enas_micro_space, enas_rnn_space
from nas_jax.space.tree import tree_cell_space

_MAKE: dict[str, Callable[..., Space]] = {
  'tree_cell': tree_cell_space,
  'conv': conv_space,
  'chain': chain_space,
  'choice': choice_space,
  'enas_macro': enas_macro_space,
  'enas_micro': enas_micro_space,
  'enas_rnn': enas_rnn_space,
}


def kind_of(text: str) -> str:
  """The kind of the architecture in `text`, JSON as `Space.to_json` writes. Raises ValueError if it is none."""
  try:
    return str(json.loads(text)['kind'])
  except (ValueError, TypeError, KeyError, RecursionError):
    raise ValueError('not an architecture: want JSON with "kind" and "arch", as a best.json.') from None


def space_of(text: str) -> Space:
  """The space that a best.json was found in. Raises ValueError if it does not say so."""
  kind = kind_of(text)
  try:
    spec = json.loads(text)['space']
    if not all(_modest(value) for value in spec.values()):
      raise TypeError
    return _MAKE[kind](**spec)
  except (KeyError, TypeError, AttributeError, OverflowError):
    raise ValueError(f'no space of kind {kind!r} is described: want the best.json of a search.') from None


def _modest(value: object) -> bool:
  """Whether a space so described can be built at all: a file may say anything."""
  if isinstance(value, (list, dict)):
    return len(value) <= 1000 and all(map(_modest, value.values() if isinstance(value, dict) else value))
  return not isinstance(value, (int, float)) or abs(value) <= 10_000
