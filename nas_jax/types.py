"""The words every floor shares.

Letters, the same everywhere: `m` children, `T` tokens, `S` slots, `K` widest choice, `N` tree nodes, `n` leaves,
`H` features, `V` vocabulary, `B` batch, `L` layers.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

Array = jax.Array
Key = jax.Array
PyTree = Any
Depth = int | Array | None  # how many layers exist, perhaps traced; None for all that the space has
Info = dict[str, Array]  # numbers that an update reports, by name; nothing reads them to decide what comes next


class Batch(NamedTuple):
  """What a search asks to have evaluated: m children."""

  ids: Array  # [m] int32, step * m + k
  keys: Key  # [m] one key per child, for its weights, its data order and its dropout
  tokens: Array  # [m, T] int32
  archs: PyTree  # the space's NamedTuple with int32 arrays [m, ...]
  depth: int | Array | None = None  # layers of these children, or of each [m]; None for all that the space has
  extra: PyTree = ()  # what an evaluator needs from the state: shared weights, counters

  @property
  def deep(self) -> bool:
    """Whether each child has a depth of its own."""
    return getattr(self.depth, 'ndim', 0) > 0


class Outcome(NamedTuple):
  """What an evaluator answers.

  A child fails if `failed` says so, or if its reward is not finite. The reward of a failed child is not read: the
  search replaces it by one that is never better than that of a child that trained, see `search.core.settle`.
  """

  reward: Array  # [m], or [m, L] with one reward a layer
  metrics: PyTree = ()  # dict of [m] arrays, reported and journalled, never read by the update
  children: PyTree = ()  # what the evaluator changed and `tell` keeps: shared weights
  failed: Array | None = None  # [m] bool, or of the shape of `reward`; None if no child failed


Evaluate = Callable[[Batch], Outcome]  # trains and scores the children of a batch
