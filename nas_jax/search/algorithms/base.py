"""What a search algorithm is: the functions that every file of this folder provides."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nas_jax.types import Array, Batch, Depth, Info, Key, Outcome, PyTree

# Maps advantages to what the tokens are credited with. It is the identity, except in searches that reward every layer
# (`search.per_layer`), where it maps [m, L] to [m, L].
Credit = Callable[[Array], Array]
Propose = Callable[[PyTree, Key, Depth], Array]  # (state, keys [m], depth) -> tokens [m, T] int32, 0 beyond the depth


class Algorithm(NamedTuple):
  """Decides which token sequences a search tries, as pure functions of a state.

  The state is one pytree of arrays of the algorithm's own making. The search keeps it in `SearchState.algorithm` and
  saves it with its checkpoints, so an algorithm must keep there all that it remembers: a search that was interrupted
  resumes from the saved state and must go on as if it had not been. The functions are compiled by `jax.jit`, and
  searches in tables `vmap` them over seeds: no Python value of the state may decide anything.

  An outcome has rewards [m], or [m, L] with one reward for each layer, of which `layers_exist` says which are there.
  They are finite: the search has replaced those of failed children, see `core.settle`. `failed` of the outcome, of the
  shape of the rewards, says which these are.

  The last three functions are for algorithms that follow the gradient of a policy, and None otherwise. The state of
  such an algorithm is a NamedTuple with the fields `theta`, the parameters that the gradient is taken of, and
  `opt_state`: replicas with parameters of their own replace these.
  """

  init: Callable[[Key], PyTree]  # the state of a search that has tried nothing yet
  propose: Propose
  update: Callable[[PyTree, Batch, Outcome, Credit], tuple[PyTree, Info]]  # the state after these rewards
  summary: Callable[[PyTree, Key], tuple[Array, Array]]  # for reports: (state, keys [n]) -> as `policy_summary` returns
  gradient: Callable[[PyTree, Batch, Outcome, Credit], PyTree] | None = None  # of a loss with respect to `theta`
  apply: Callable[[PyTree, PyTree, Batch, Outcome], tuple[PyTree, Info]] | None = None  # `update`, given the gradient
  log_prob: Callable[[PyTree, Batch], Array] | None = None  # [m, T] log-probability of each token of a batch, nats


def map_sequences(function: Callable[[Array, Any], PyTree], batch: Batch) -> PyTree:
  """Maps `function(tokens [T], depth)` over the m token sequences of a batch, which may share one depth."""
  return jax.vmap(function, in_axes=(0, 0 if batch.deep else None))(batch.tokens, batch.depth)


def layers_exist(batch: Batch, reward: Array) -> Array | None:
  """Says which rewards belong to layers that exist: [m, L] bool, or None if all do."""
  if reward.ndim == 1 or batch.depth is None:
    return None
  depth = jnp.broadcast_to(batch.depth, len(reward))
  return jnp.arange(reward.shape[1])[None] < depth[:, None]
