"""Types and conventions that all modules share.

Letters in shapes mean the same everywhere: `m` children, `T` tokens, `S` slots, `K` greatest slot width, `N` tree
nodes, `n` leaves, `H` features, `V` vocabulary, `B` batch, `L` layers.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.typing import DTypeLike

Array = jax.Array
DType = DTypeLike  # jnp.bfloat16, 'bfloat16', ...
Key = jax.Array
PyTree = Any
Depth = int | Array | None  # the number of layers, an int or traced; None for all layers of the space
Info = dict[str, Array]  # numbers that an update reports, by name; they do not influence the search


class Repeats(NamedTuple):
  """Which children of a batch are not trained, because they repeat an earlier child and get its reward."""

  known: Array  # [m] bool, whether the child needs no training
  source: Array  # [m] int32, the id of the child that was trained, which may be an earlier one of the same batch
  reward: Array  # [m] mean reward over the trainings that did not fail; read only if `source` was told
  failed: Array  # [m] bool, whether all these trainings failed


class Batch(NamedTuple):
  """The m children that a search asks to have evaluated."""

  ids: Array  # [m] int32, (number of the batch) * m + k; for prefixes of sequences, in the order of training
  keys: Key  # [m] a key for each child: for its initial weights, its data order and its dropout
  tokens: Array  # [m, T] int32
  archs: PyTree  # the space's NamedTuple with int32 arrays [m, ...]
  depth: int | Array | None = None  # layers of all children, or [m] of each; None for all layers of the space
  extra: PyTree = ()  # what an evaluator needs from the state of the search, such as shared weights or counters
  repeats: Repeats | None = None  # children that need no training; None if all are to be trained
  # [m, T] log-probability of each token, in nats, under the controller that proposed it; None if that is the controller
  # of the state that is told of the batch.
  log_prob: Array | None = None

  @property
  def deep(self) -> bool:
    """Whether the children have different depths."""
    return getattr(self.depth, 'ndim', 0) > 0


class Outcome(NamedTuple):
  """The result of an evaluator.

  A child fails if `failed` says so, or if its reward is not finite. The reward of a failed child is not read: the
  search replaces it by one that is never better than that of a child that trained, see `search.outcomes.settle`.
  """

  reward: Array  # [m], or [m, L] with a reward for each layer
  metrics: PyTree = ()  # dict of [m] arrays, reported and written to the journal; the update does not read them
  children: PyTree = ()  # what the evaluator changed and `tell` puts into the state, such as shared weights
  failed: Array | None = None  # [m] bool, or of the shape of `reward`; None if no child failed


Evaluate = Callable[[Batch], Outcome]  # trains and scores the children of a batch
