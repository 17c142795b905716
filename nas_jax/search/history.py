"""The record of the token sequences that a search has asked for and of their rewards.

The record consists of arrays of a fixed capacity, so that it can be compiled, vmapped and saved like the rest of the
state. It is kept only by searches that need it: those that do not train a known token sequence again (`known` of the
config is 'reuse' or 'avoid') and those whose proposals are guided (`proposals` is 'guided').

Two token sequences are the same here if their tokens and their depths are equal. Different token sequences can also
mean the same network (`space.canonical`). This is not detected, since canonical forms exist for static architectures
only.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from nas_jax.search.algorithms.base import Propose, depths, of_sequences
from nas_jax.space import Space
from nas_jax.types import Array, Batch, Depth, Evaluate, Key, Outcome, PyTree, Repeats

LEAST = 256  # rows of the smallest record
DRAWS = 32  # proposals for each child; the first one that is not known is taken


class History(NamedTuple):
  """Up to N distinct token sequences, in the order in which they were first asked for.

  A sequence without trainings is pending: it was asked for, and its outcome has not been told yet.
  """

  tokens: Array  # [N, T] int32
  depth: Array  # [N] int32, layers
  id: Array  # [N] int32, id of the first child with these tokens
  reward: Array  # [N] mean over the trainings that did not fail; 0 where there are none
  trained: Array  # [N] int32, trainings so far, including failed ones
  sound: Array  # [N] int32, trainings that did not fail
  size: Array  # [] int32, token sequences so far
  waiting: Array  # [] int32, batches that are reserved and not told


def empty(length: int, capacity: int = LEAST) -> History:
  """Returns an empty record for token sequences of `length` tokens."""
  depth, number, trained, sound = (jnp.zeros(capacity, jnp.int32) for _ in range(4))
  nothing = jnp.zeros((), jnp.int32)
  tokens, reward = jnp.zeros((capacity, length), jnp.int32), jnp.zeros(capacity, jnp.float32)
  return History(tokens, depth, number, reward, trained, sound, nothing, nothing)


def capacity_for(children: int) -> int:
  """Returns the capacity of a record with room for `children`: `LEAST` times a power of 2."""
  capacity = LEAST
  while capacity < children:
    capacity *= 2
  return capacity


def grow(history: History, capacity: int) -> History:
  """Returns the same record with at least the given capacity."""
  more = max(0, capacity - len(history.depth))
  rows = [jnp.pad(x, [(0, more)] + [(0, 0)] * (x.ndim - 1)) for x in history[:-2]]
  return History._make([*rows, *history[-2:]])


def find(history: History, tokens: Array, depth: Array | int) -> tuple[Array, Array]:
  """Returns the row of a token sequence [T] of `depth` layers, and whether there is such a row."""
  same = (history.tokens == tokens[None]).all(1) & (history.depth == depth)
  same &= jnp.arange(len(history.depth)) < history.size
  return jnp.argmax(same), same.any()


def are_known(history: History, tokens: Array, depth: Array | int) -> Array:
  """Says which of the token sequences [n, T] of `depth` layers have been asked for before, [n] bool."""
  return jax.vmap(lambda one: find(history, one, depth)[1])(tokens)


def draw_unseen(is_known: Callable[[Array], Array], propose: Propose, state: PyTree, keys: Key, depth: Depth) -> Array:
  """Returns, for each of `keys` [m], the first of `DRAWS` proposals that is new to the search and to the batch.

  If none of them is new, the first proposal is taken.

  Args:
    is_known: says which of the token sequences [n, T] are known, [n] bool.
    propose: `propose` of the algorithm.
    state: the state of the algorithm.
    keys: [m].
    depth: the depth of the children; None for all layers.
  """
  m = len(keys)
  each = jax.vmap(lambda key: jax.random.split(key, DRAWS))(keys).reshape(-1)
  drawn = propose(state, each, depth)
  unseen, drawn = ~is_known(drawn).reshape(m, DRAWS), drawn.reshape(m, DRAWS, -1)

  def choose(chosen: Array, k: Array) -> tuple[Array, None]:
    taken = (drawn[k][:, None] == chosen[None]).all(-1) & (jnp.arange(m) < k)[None]
    return chosen.at[k].set(drawn[k, jnp.argmax(unseen[k] & ~taken.any(1))]), None

  return jax.lax.scan(choose, jnp.zeros_like(drawn[:, 0]), jnp.arange(m))[0]


def repeats(history: History, tokens: Array, depth: Array | int, ids: Array) -> Repeats:
  """Returns which children of a batch repeat an earlier child, of this batch or of another, and need no training.

  Args:
    history: all token sequences so far.
    tokens: [m, T] of the batch.
    depth: of its children.
    ids: [m] of its children.
  """
  row, there = jax.vmap(lambda one: find(history, one, depth))(tokens)
  told = there & (history.trained[row] > 0)
  twin = jnp.argmax((tokens[:, None] == tokens[None]).all(-1), 1)  # the first child of the batch with the same tokens
  earlier = twin < jnp.arange(len(tokens))
  source = jnp.where(told, history.id[row], jnp.where(earlier, ids[twin], ids))
  return Repeats(told | earlier, source, history.reward[row], told & (history.sound[row] == 0))


def fill(batch: Batch, outcome: Outcome) -> Outcome:
  """Returns an outcome in which each child that was not trained has the result of the child that it repeats.

  If that child is in the same batch, the result is its reward or failure. Otherwise it is the mean reward of the
  earlier trainings that did not fail, or a failure if all of them failed.
  """
  if batch.repeats is None:
    return outcome
  outcome = outcome._replace(reward=jnp.asarray(outcome.reward))
  known, source, reward, failed = batch.repeats
  own = ~jnp.isfinite(outcome.reward)
  own = own if outcome.failed is None else own | jnp.asarray(outcome.failed, bool)
  same = batch.ids[None] == source[:, None]
  twin, earlier = jnp.argmax(same, 1), same.any(1) & known
  earned = jnp.where(earlier, outcome.reward[twin], jnp.where(known, reward, outcome.reward))
  lost = jnp.where(earlier, own[twin], jnp.where(known, failed, own))
  return outcome._replace(reward=earned, failed=lost)


def reusing(evaluate: Evaluate) -> Evaluate:
  """Returns an evaluator that gives a child that repeats an earlier one the measured reward of that child.

  If all children of a batch repeat earlier ones, nothing is evaluated. Otherwise `evaluate` gets the whole batch, so
  that shapes do not change, and may leave out the children that `batch.repeats` names.
  """

  def evaluated(batch: Batch) -> Outcome:
    repeats = batch.repeats
    if repeats is None:
      return evaluate(batch)
    if not isinstance(repeats.known, jax.core.Tracer) and repeats.known.all():
      return Outcome(repeats.reward, failed=repeats.failed)
    return fill(batch, evaluate(batch))

  return evaluated


def insert(
  history: History, tokens: Array, depth: Array, ids: Array, trained: Array, reward: Array, failed: Array
) -> History:
  """Returns the record after m more children. New sequences get a row; each child with `trained` adds its reward.

  If the record is full, new token sequences are left out: call `grow` in time.

  Args:
    history: the record before.
    tokens: [m, T].
    depth: [m] layers.
    ids: [m] of the children.
    trained: [m] bool, whether each child has been trained just now.
    reward: [m] of these trainings; read only where `trained`.
    failed: [m] bool, which of them failed.
  """

  def one(history: History, child: tuple[Array, ...]) -> tuple[History, None]:
    tokens, depth, number, trained, reward, failed = child
    row, there = find(history, tokens, depth)
    row = jnp.where(there, row, history.size)
    sound = trained & ~failed
    at = history.sound.at[row].get(mode='fill', fill_value=0)
    before = history.reward.at[row].get(mode='fill', fill_value=0)
    mean = jnp.where(sound, (before * at + reward) / (at + 1), before)
    return History(
      history.tokens.at[row].set(tokens, mode='drop'),
      history.depth.at[row].set(depth, mode='drop'),
      history.id.at[row].set(jnp.where(there, history.id[row], number), mode='drop'),
      history.reward.at[row].set(mean.astype(history.reward.dtype), mode='drop'),
      history.trained.at[row].add(trained.astype(jnp.int32), mode='drop'),
      history.sound.at[row].add(sound.astype(jnp.int32), mode='drop'),
      jnp.minimum(history.size + ~there, len(history.depth)),
      history.waiting,
    ), None

  return jax.lax.scan(one, history, (tokens, depth, ids, trained, reward, failed))[0]


def tell(space: Space, history: History, asked: Array, batch: Batch, outcome: Outcome) -> History:
  """Returns the record with the outcome of a batch. If the batch was reserved, it is no longer counted as waiting.

  Args:
    space: the space of the children.
    history: the record before.
    asked: [] int32, the number of children that have been told or reserved.
    batch: the children.
    outcome: of the batch, with `failed` in the shape of the rewards. If each layer has a reward, the best one counts.
  """
  trained = jnp.ones(len(batch.tokens), bool) if batch.repeats is None else ~batch.repeats.known
  reserved = batch.ids[0] < asked
  told = insert(history, batch.tokens, depths(space, batch), batch.ids, trained, *of_sequences(batch, outcome))
  return told._replace(waiting=history.waiting - reserved)


def reserve(space: Space, history: History, batch: Batch) -> History:
  """Returns the record with a batch that is asked for now and told later."""
  nothing = jnp.zeros(len(batch.tokens), bool)
  reward = jnp.zeros(len(batch.tokens))  # not read
  asked = insert(history, batch.tokens, depths(space, batch), batch.ids, nothing, reward, nothing)
  return asked._replace(waiting=history.waiting + 1)
