"""Successive halving: the best children of a search are trained for longer, the best of these for longer still.

Jamieson & Talwalkar (2016), Non-stochastic Best Arm Identification and Hyperparameter Optimization; Li et al. (2018),
Hyperband. The search itself is the first rung. A share of its children goes on to the second one, and so on; children
are compared only within their rung. Those papers continue the training of a child. Here each rung trains it anew, with
a learning rate that is annealed over the whole training, because a truncated training ranks children worse than an
annealed one of the same length.
"""

import dataclasses
from typing import Any, ClassVar

from nas_jax.config import field


@dataclasses.dataclass
class Config:
  """The rungs after a search."""

  rungs: int = field(
    1,
    'rungs of successive halving. The search is the first; after it, the best children are trained anew rung_factor '
    'times as long, the best of these as many times longer again, and so on. 1 for the search alone',
    low=1,
    high=20,
    budget=True,
  )
  rung_factor: int = field(
    3,
    'one of this many children goes on to the next rung, where training takes this many times as long',
    low=2,
    high=1000,
  )

  added: ClassVar[dict[str, Any]] = {'rungs': 1, 'rung_factor': 3}  # see `config.with_added`


def longer(rung: int, factor: int) -> int:
  """Returns the factor by which children of a rung are trained longer than in the search, which is rung 1."""
  return factor ** (rung - 1)


def size(children: int, rung: int, factor: int) -> int:
  """Returns how many children a rung has after a search of `children`, at least 1."""
  return max(1, children // longer(rung, factor))


def check(cfg: Any, children: int) -> None:
  """Raises ValueError if a search of `children` has too few for the last rung."""
  least = longer(cfg.rungs, cfg.rung_factor)
  if children < least:
    raise ValueError(
      f'rungs (={cfg.rungs}) of rung_factor (={cfg.rung_factor}) want a search of at least {least} children, and this '
      f'one has {children}: take fewer rungs.'
    )
