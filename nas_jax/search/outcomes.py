"""Prepares the outcome of a batch for a search: checks its arrays, sets failed rewards, finds the best child."""

from collections.abc import Sequence

import jax.numpy as jnp
from jax.typing import ArrayLike

from nas_jax.search.algorithms.base import layers_exist
from nas_jax.search.state import Best
from nas_jax.space import Space
from nas_jax.types import Array, Batch, Outcome
from nas_jax.words import counted


def as_outcome(space: Space, batch: Batch, given: Outcome | ArrayLike | Sequence[float]) -> Outcome:
  """Returns an outcome as arrays, with rewards as floats.

  Args:
    space: the space of the children.
    batch: the m children that were scored.
    given: their outcome, or only their rewards, such as a list of m numbers. A number that is not finite, such as NaN,
      says that the child failed.

  Raises:
    ValueError: the rewards are not numbers, or the rewards or `failed` have a wrong shape. Rewards are [m]; they may be
      [m, L], one for each layer, if children that repeat an earlier one are trained again (known is 'train').
  """
  outcome = given if isinstance(given, Outcome) else Outcome(given)  # type: ignore[arg-type]
  m = len(batch.tokens)
  try:
    reward = jnp.asarray(outcome.reward)
    failed = None if outcome.failed is None else jnp.asarray(outcome.failed, bool)
  except (TypeError, ValueError) as error:
    raise ValueError(
      f'the rewards are not numbers ({" ".join(str(error).split())[:200]}): want {m}, one for each child.'
    ) from None
  if reward.shape not in ((m,), (m, space.layers)):
    raise ValueError(
      f'the rewards have shape {reward.shape} for a batch of {counted(m, "child", "children")}: want one for each '
      f'child, [{m}], NaN for one that failed, or one for each of its layers, [{m}, {space.layers}].'
    )
  if reward.ndim == 2 and batch.repeats is not None:
    raise ValueError(
      f'the rewards have shape {reward.shape}, one for each layer: known=reuse and known=avoid want one for each '
      'child; take known=train.'
    )
  if failed is not None and failed.shape not in ((m,), reward.shape):
    of = counted(m, 'child', 'children')
    raise ValueError(f'`failed` has shape {failed.shape} for a batch of {of}: want one for each child, [{m}].')
  real = reward if jnp.issubdtype(reward.dtype, jnp.floating) else reward.astype(float)
  return outcome._replace(reward=real, failed=failed)


def settle(worst: Array, batch: Batch, outcome: Outcome) -> tuple[Outcome, Array]:
  """Sets the rewards of failed children. Returns the outcome, and the worst reward of all children that trained.

  A failed child gets the worst reward of all children that trained so far, this batch included, or 0 if that is
  positive. So failing never pays: with rewards that cannot be negative, such as accuracies, it earns 0.

  Args:
    worst: [] the worst reward before this batch; infinity if none has trained.
    batch: the children.
    outcome: of the batch. The returned outcome has `failed` in the shape of `reward`.
  """
  failed = ~jnp.isfinite(outcome.reward)
  if outcome.failed is not None:
    marked = jnp.asarray(outcome.failed, bool)
    failed |= marked if marked.ndim == failed.ndim else marked[:, None]
  exists = layers_exist(batch, outcome.reward)
  trained = ~failed if exists is None else exists & ~failed
  worst = jnp.minimum(worst, jnp.min(outcome.reward, where=trained, initial=jnp.inf)).astype(worst.dtype)
  reward = jnp.where(failed, jnp.minimum(worst, 0.0).astype(outcome.reward.dtype), outcome.reward)
  return outcome._replace(reward=reward, failed=failed), worst


def best_of(space: Space, batch: Batch, settled: Outcome) -> Best:
  """Returns the best child of a batch among those that did not fail. Its reward is minus infinity if all failed.

  If every layer has a reward, the best child is the best prefix.
  """
  assert settled.failed is not None, 'the outcome of `settle`'
  reward, exists = jnp.where(settled.failed, -jnp.inf, settled.reward), layers_exist(batch, settled.reward)
  depth = jnp.broadcast_to(space.layers if batch.depth is None else batch.depth, len(reward)).astype(jnp.int32)
  if reward.ndim == 1:
    first = jnp.argmax(reward)
    return Best(reward[first], batch.ids[first], batch.tokens[first], depth[first])
  reward = reward if exists is None else jnp.where(exists, reward, -jnp.inf)
  first, layer = jnp.divmod(jnp.argmax(reward), reward.shape[1])
  tokens, depth = batch.tokens[first], layer.astype(jnp.int32) + 1
  tokens = jnp.where(space.exists(tokens, depth), tokens, 0)
  return Best(reward[first, layer], batch.ids[first], tokens, depth)
