"""Mutations of token sequences, by which evolution and guided proposals vary good architectures."""

import jax
import jax.numpy as jnp
import numpy as np

from nas_jax.space import Kind, Space
from nas_jax.types import Array, Depth, Key


def values_of_tokens(space: Space) -> np.ndarray:
  """Returns how many values each token can have, [T] int32: 2 for a link."""
  slots = [space.slots[owner] for owner in space.owner]
  return np.array([2 if slot.kind == Kind.LINK else slot.width for slot in slots], np.int32)


def mutate(
  space: Space, tokens: Array, depth: Array | int, fresh: Array, key: Key, wanted: Depth, count: Array | int = 1
) -> Array:
  """Returns a mutation [T] of a token sequence: it has `wanted` layers, and some of its tokens have other values.

  The tokens to change are drawn uniformly from those that exist and have more than one value, and so is the new value
  of each. Tokens that the old sequence does not have, because it is less deep or has another type there, are taken from
  `fresh`.

  Args:
    space: the space of both sequences.
    tokens: [T] the sequence to start from.
    depth: its layers.
    fresh: [T] a token sequence, such as a uniform one.
    key: of the draw.
    wanted: the layers of the result; None for all.
    count: how many tokens to change, at most all that can change; may be traced.
  """
  values = values_of_tokens(space)
  place_key, value_key = jax.random.split(key)
  old = space.exists(tokens, depth)
  free = space.exists(tokens, wanted) & old & (values > 1)
  order = jnp.argsort(jnp.where(free, jax.random.uniform(place_key, tokens.shape), jnp.inf))
  chosen = jnp.zeros(tokens.shape, bool).at[order].set(jnp.arange(len(values)) < count) & free
  other = (tokens + jax.random.randint(value_key, tokens.shape, 1, np.maximum(values, 2))) % values
  tokens = jnp.where(old, jnp.where(chosen, other, tokens), fresh)
  # If a type changes, tokens come to exist that are 0 in the old sequence.
  born = space.exists(tokens, wanted) & ~old
  tokens = jnp.where(born, fresh, tokens)
  return jnp.where(space.exists(tokens, wanted), tokens, 0).astype(jnp.int32)
