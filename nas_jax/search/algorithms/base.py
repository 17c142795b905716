"""What a search algorithm is: the functions that every file of this folder provides."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nas_jax.space import Kind, Space
from nas_jax.types import Array, Batch, Depth, Info, Key, Outcome, PyTree

# Maps advantages to the credits of the tokens. It is the identity, except in searches that reward every layer
# (`search.per_layer`), where it maps [m, L] to [m, L].
Credit = Callable[[Array], Array]
Propose = Callable[[PyTree, Key, Depth], Array]  # (state, keys [m], depth) -> tokens [m, T] int32, 0 beyond the depth


class Algorithm(NamedTuple):
  """Decides which token sequences a search tries, as pure functions of a state.

  The state is a pytree of arrays that the algorithm defines. The search keeps it in `SearchState.algorithm` and saves
  it with its checkpoints. It must hold all that the algorithm remembers, because an interrupted search resumes from the
  saved state and must continue as if it had not been interrupted. The functions are compiled by `jax.jit` and, in
  `search.run_seeds`, vmapped over seeds, so Python control flow must not depend on the state.

  An outcome has rewards [m], or [m, L] with one reward for each layer; `layers_exist` says which of these layers exist.
  All rewards are finite, because the search has replaced those of failed children: see `outcomes.settle`. `failed` of
  the outcome, in the shape of the rewards, says which rewards were replaced.

  The last three functions are None unless the algorithm follows the gradient of a policy. The state of such an
  algorithm is a NamedTuple with the fields `theta`, the parameters of the policy, and `opt_state`. Replicas
  replace these two fields by their own.
  """

  init: Callable[[Key], PyTree]  # the state of a search that has tried nothing yet
  propose: Propose
  update: Callable[[PyTree, Batch, Outcome, Credit], tuple[PyTree, Info]]  # the state after these rewards
  summary: Callable[[PyTree, Key], tuple[Array, Array]]  # for reports: (state, keys [n]) -> as `policy_summary` returns
  gradient: Callable[[PyTree, Batch, Outcome, Credit], PyTree] | None = None  # of a loss with respect to `theta`
  apply: Callable[[PyTree, PyTree, Batch, Outcome, Credit], tuple[PyTree, Info]] | None = (
    None  # `update` with a gradient
  )
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


def depths(space: Space, batch: Batch) -> Array:
  """Returns the depth of each child of a batch, [m] int32."""
  depth = space.layers if batch.depth is None else batch.depth
  return jnp.broadcast_to(jnp.asarray(depth, jnp.int32), len(batch.tokens))


def of_sequences(batch: Batch, outcome: Outcome) -> tuple[Array, Array]:
  """Returns one reward for each token sequence, [m], and which sequences failed, [m] bool.

  If layers have rewards, the reward of a sequence is that of its best layer that did not fail, or 0 if all failed.
  """
  reward = outcome.reward
  failed = jnp.zeros(reward.shape, bool) if outcome.failed is None else outcome.failed
  if reward.ndim == 1:
    return reward, failed
  exists = layers_exist(batch, reward)
  trained = ~failed if exists is None else ~failed & exists
  best = jnp.max(reward, axis=1, where=trained, initial=-jnp.inf)
  return jnp.where(trained.any(1), best, 0.0), ~trained.any(1)


def summary_of_samples(space: Space, tokens: Array) -> tuple[Array, Array]:
  """Describes token sequences [n, T] by how often each label occurs, as `policy_summary` describes a policy.

  Returns:
    The entropy [] in nats of independent tokens with these frequencies, and the share of each label of each slot,
    [S, K].
  """
  widths = np.array([slot.width for slot in space.slots])
  is_link = np.array([slot.kind == Kind.LINK for slot in space.slots])[:, None]
  labels, first = np.arange(widths.max()), np.searchsorted(space.owner, np.arange(len(widths)))
  there = labels[None] < widths[:, None]
  at = np.minimum(first[:, None] + np.where(is_link, labels[None], 0), space.length - 1)
  picked = tokens[:, at]
  chosen = jnp.where(is_link[None], picked > 0, picked == labels[None, None]) & there[None]
  share = (chosen & space.slots_exist(tokens)[:, :, None]).mean(0)
  entropy = jax.scipy.special.entr(share) + jnp.where(is_link, jax.scipy.special.entr(1.0 - share), 0.0)
  return jnp.sum(entropy, where=there), share
