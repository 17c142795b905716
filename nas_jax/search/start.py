"""Searches that begin with known architectures.

There are two ways. Architectures that were trained exactly as the search trains its children are told, with their
rewards, before the first `ask`. Architectures that were trained otherwise, or not at all, have no comparable rewards,
so the search asks for them first and trains them as its first children.

Either way `SearchState.best` is always a child of the search itself, never one that was told.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nas_jax.search import history, memory
from nas_jax.search.core import Search
from nas_jax.search.state import SearchState
from nas_jax.types import Batch, Key, Outcome, Repeats


class Known(NamedTuple):
  """K children of another search. They have ids from -K to -1."""

  tokens: np.ndarray  # [K, T] int32
  depth: np.ndarray  # [K] int32, layers
  reward: np.ndarray  # [K] float32, read where the child did not fail
  failed: np.ndarray  # [K] bool
  trained: np.ndarray  # [K] bool, False for a child that repeated an earlier one and got its reward


def begin(s: Search, known: Known, first: np.ndarray) -> Search:
  """Returns a search that is told of known children when it is begun, and asks for some token sequences first.

  The known children update the algorithm in their order, m at a time, as if the search had asked for them itself. If
  they come from a search with the same seed and settings, the state then equals that of the other search after these
  children, except for `step`, `best` and the ids in the record.

  If they come from a search with other settings, REINFORCE treats them as samples of its own policy, although they are
  not. It uses no importance weights, because over a whole token sequence they would be close to 0 for all but a few
  samples. So it learns to imitate the children above the baseline. After some updates it follows its own samples again.

  Args:
    s: the search.
    known: the children to tell of.
    first: [Q, T] distinct token sequences, which replace the first Q that the algorithm proposes. If children grow
      deeper, these have the depth of the first children.

  Raises:
    ValueError: the search has a reward for each layer or replicas, or its children share weights; or children grow
      deeper before Q of them are proposed.
  """
  if s.parts or s.shared or s.replicas:
    raise ValueError('replicas, shared weights and rewards for each layer cannot begin with known architectures.')
  if s.before_deeper is not None and len(first) > s.before_deeper:
    raise ValueError(
      f'there are {len(first)} architectures to train first, and after {s.before_deeper} children all are deeper: take '
      f'fewer, or a depth_every of {len(first)}.'
    )
  told = len(known.tokens)
  space, queue = s.space, jnp.asarray(first, jnp.int32).reshape(-1, s.space.length)

  def init(key: Key) -> SearchState:
    fresh = state = begun.sized(s.init(key), 0)
    for start in range(0, told, s.m):
      part = Known._make(column[start : start + s.m] for column in known)
      after, _ = s.tell(state, *_batch(s, part, _FIRST + start))
      state = after._replace(step=fresh.step, best=fresh.best)  # they are neither updates nor candidates for the best
    record = state.history
    if isinstance(record, history.History):
      ids = jnp.where(record.id >= _FIRST, record.id - _FIRST - told, record.id)
      state = state._replace(history=record._replace(id=ids))
    return state

  def ask(state: SearchState) -> Batch:
    batch = s.ask(state)
    traced = isinstance(batch.ids, jax.core.Tracer)
    if not len(queue) or (not traced and int(batch.ids[0]) >= len(queue)):
      return batch
    mine = batch.ids < len(queue)
    tokens = jnp.where(mine[:, None], queue[jnp.minimum(batch.ids, len(queue) - 1)], batch.tokens)
    depth = None if batch.depth is None else int(batch.depth)
    repeats = batch.repeats
    if repeats is not None:
      repeats = history.repeats(state.history, tokens, depth or space.layers, batch.ids)
    return batch._replace(tokens=tokens, archs=space.decode_batch(tokens, depth), depth=depth, repeats=repeats)

  def roomy(function):
    """Returns a function that calls `function` and makes room for the known children in the state that results."""

    def grown(state: SearchState, *args):
      found = function(state, *args)
      if isinstance(state.step, jax.core.Tracer):
        return found
      step = int(memory.batches(state)) + 1
      return begun.sized(found, step) if isinstance(found, SearchState) else (begun.sized(found[0], step), *found[1:])

    return grown

  begun = s._replace(
    told=told,
    init=init,
    ask=ask,
    tell=roomy(s.tell),
    apply=roomy(s.apply) if s.apply else None,
    reserve=roomy(s.reserve) if s.reserve else None,
  )
  return begun


_FIRST = 2**30  # the first id of known children while they are told: greater than any id that a search asks for


def _batch(s: Search, part: Known, number: int) -> tuple[Batch, Outcome]:
  """Returns known children as a batch whose first id is `number`, with their outcome."""
  ids = number + jnp.arange(len(part.tokens), dtype=jnp.int32)
  keys = jax.random.split(jax.random.key(0), len(ids))  # not read: these children are not trained
  depth = None if (part.depth == s.space.layers).all() else jnp.asarray(part.depth, jnp.int32)
  reward, failed = jnp.asarray(part.reward, jnp.float32), jnp.asarray(part.failed)
  repeats = Repeats(~jnp.asarray(part.trained), jnp.full_like(ids, -1), reward, failed)
  return Batch(ids, keys, jnp.asarray(part.tokens, jnp.int32), (), depth, repeats=repeats), Outcome(
    reward, failed=failed
  )
