"""Any independent choices, for searches of one's own and for tables."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from nas_jax.space.base import Kind, Slot, Space


class ChoiceArch(NamedTuple):
  """The number of the label chosen in each slot, in the order of the space's slots."""

  choice: tuple[int, ...]


def choice_space(choices: Mapping[str, Sequence[str]]) -> Space:
  """One token a named choice, e.g. `choice_space({'edge0': ('none', 'skip', 'conv3'), 'width': ('16', '32')})`.

  Raises ValueError if there is no choice, or one without labels, or with the same label twice.

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
