"""Independent named choices, for searches of your own and for tables."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from nas_jax.space.base import Kind, Slot, Space


class ChoiceArch(NamedTuple):
  """The index of the chosen label in each slot, in the order of the slots."""

  choice: tuple[int, ...]


def choice_space(choices: Mapping[str, Sequence[str]]) -> Space:
  """Returns a space with one token for each named choice, whose labels are the values of `choices`.

  Raises ValueError if there is no choice, or if a choice has no labels or the same label twice.

  >>> from nas_jax import space
  >>> sp = space.choice_space({'width': ('16', '32'), 'norm': ('none', 'layer', 'batch')})
  >>> sp.size()
  6
  >>> sp.decode([1, 2])
  ChoiceArch(choice=(1, 2))
  """
  if not choices:
    raise ValueError('choices is empty: want at least one name with its labels.')
  slots = []
  for name, given in choices.items():
    labels = tuple(str(label) for label in given)
    if not labels or len(set(labels)) < len(labels):
      raise ValueError(f'choices[{name!r}] is {labels}: want at least one label, each once.')
    values = tuple(range(len(labels)))
    slots.append(Slot(str(name), '', Kind.CHOICE, len(labels), 'choice', values, labels, head=str(name)))
  spec = {'choices': {str(name): [str(label) for label in labels] for name, labels in choices.items()}}
  return Space('choice', spec, ChoiceArch, tuple(slots))
