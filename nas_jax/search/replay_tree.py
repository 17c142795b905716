"""The experience replay tree of Xu's augmented search: a node is a layer, a path from the root an architecture.

Each prefix of a token sequence is an architecture, and its node stores the reward. So a prefix that was trained before
need not be trained again. A random walk from the root to a leaf, which prefers nodes of high reward, gives a token
sequence to learn from again. The tree consists of arrays of a fixed capacity: inserting, looking up and drawing are
pure functions that can be compiled and vmapped.

Xu leaves two points open. Here the next node is drawn in proportion to a power of its reward. The reward of a node is
the mean over its longest trainings only, because children are trained for longer as a search goes on.
"""

from collections.abc import Sequence
import json
import math
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from nas_jax.types import Array, Key


class Tree(NamedTuple):
  """Up to N nodes, numbered in the order of insertion. Node 0 is the root, which is no layer."""

  children: Array  # [N, K] int32, the node that each next token leads to; 0 where there is none
  parent: Array  # [N] int32
  token: Array  # [N] int32, the token that leads to the node
  reward: Array  # [N] float32, mean over the node's trainings that did not fail; NaN if all of them failed
  trained: Array  # [N] int32, how many trainings the mean is over
  used: Array  # [N] int32, how many token sequences went through the node
  length: Array  # [N] int32, epochs of each of these trainings
  size: Array  # [] int32, how many nodes there are, the root included


def empty(choices: int, capacity: int) -> Tree:
  """Returns a tree that has only the root.

  Args:
    choices: K, how many values a token can have.
    capacity: N, how many nodes there may be, the root included.

  Raises:
    ValueError: `choices` or `capacity` is below 1.
  """
  if choices < 1 or capacity < 1:
    raise ValueError(
      f'a tree of choices={choices} and capacity={capacity} has no place for a node: want at least 1 of each.'
    )
  counts = [jnp.zeros(capacity, jnp.int32) for _ in range(5)]
  parent, token, trained, used, length = counts
  children, reward = jnp.zeros((capacity, choices), jnp.int32), jnp.zeros(capacity, jnp.float32)
  return Tree(children, parent, token, reward, trained, used, length, jnp.ones((), jnp.int32))


def capacity(tree: Tree) -> int:
  """Returns N: how many nodes there may be, the root included."""
  return len(tree.parent)


def grow(tree: Tree, capacity: int) -> Tree:
  """Returns the same tree with a greater capacity. Raises ValueError if it is smaller than before."""
  more = capacity - len(tree.parent)
  if more < 0:
    raise ValueError(
      f'a tree with room for {len(tree.parent)} nodes cannot shrink to {capacity}: want at least as many.'
    )
  grown = [jnp.pad(x, [(0, more)] + [(0, 0)] * (x.ndim - 1)) for x in tree[:-1]]
  return Tree._make([*grown, tree.size])


def lookup(tree: Tree, tokens: Array, depth: int | Array) -> Array:
  """Returns the nodes of a token sequence.

  Args:
    tree: where to look.
    tokens: [T] int32.
    depth: how many of the tokens exist; may be traced.

  Returns:
    [T] int32, the node after each token; 0 from where the path leaves the tree or the sequence ends.
  """
  chex.assert_rank(tokens, 1)

  def step(node: Array, each: tuple[Array, Array]) -> tuple[Array, Array]:
    position, token = each
    inside = ((position == 0) | (node > 0)) & (position < depth)
    node = jnp.where(inside, tree.children[node, token], 0)
    return node, node

  _, nodes = jax.lax.scan(step, jnp.zeros((), jnp.int32), (jnp.arange(len(tokens)), tokens))
  return nodes


def insert(tree: Tree, tokens: Array, depth: int | Array, rewards: Array, fresh: Array, length: int | Array) -> Tree:
  """Returns the tree after one more token sequence: missing nodes are added, counts and rewards updated.

  A reward from a longer training than before replaces a node's mean. A reward from an equally long training is averaged
  with the mean, and a reward from a shorter training is ignored. A reward that is not finite says that the training
  failed. A failure counts only at a node without a reward from an equally long training, and the first such reward
  replaces it. If the tree is full, new nodes are dropped and the others are updated: call `grow` in time.

  Args:
    tree: the tree before.
    tokens: [T] int32.
    depth: how many of the tokens exist, the others are not read; may be traced.
    rewards: [T] of each prefix; read only where fresh.
    fresh: [T] bool, whether the prefix was trained just now.
    length: epochs of these trainings; may be traced.
  """
  chex.assert_rank(tokens, 1)
  chex.assert_equal_shape([tokens, rewards, fresh])
  tokens, length = tokens.astype(jnp.int32), jnp.asarray(length, jnp.int32)
  nowhere = len(tree.parent)  # what is written there, or beyond, is dropped
  position = jnp.arange(len(tokens))
  old = lookup(tree, tokens, depth)
  new = (old == 0) & (position < depth)  # all that come after the first of them
  node = jnp.where(new, tree.size + jnp.cumsum(new) - 1, jnp.where(old > 0, old, nowhere)).astype(jnp.int32)
  before = jnp.concatenate([jnp.zeros(1, jnp.int32), node[:-1]])
  added = jnp.where(new, node, nowhere)
  fits = added < nowhere

  known = tree.length[node]
  equal = (known == length) & (tree.trained[node] > 0) & jnp.isfinite(tree.reward[node])
  mean = jnp.where(equal, tree.reward[node], 0.0)
  trained = jnp.where(equal, tree.trained[node], 0) + 1
  rewards = jnp.where(jnp.isfinite(rewards), rewards, jnp.nan).astype(jnp.float32)
  learns = jnp.where(fresh & (known <= length) & (jnp.isfinite(rewards) | ~equal), node, nowhere)
  return Tree(
    children=tree.children.at[jnp.where(fits, before, nowhere), tokens].set(node, mode='drop'),
    parent=tree.parent.at[added].set(before, mode='drop'),
    token=tree.token.at[added].set(tokens, mode='drop'),
    reward=tree.reward.at[learns].set(mean + (rewards - mean) / trained, mode='drop'),
    trained=tree.trained.at[learns].set(trained, mode='drop'),
    used=tree.used.at[node].add(1, mode='drop'),
    length=tree.length.at[learns].set(length, mode='drop'),
    size=tree.size + fits.sum(dtype=jnp.int32),
  )


def insert_all(tree: Tree, tokens: Array, depths: Array, rewards: Array, fresh: Array, length: int | Array) -> Tree:
  """Returns the tree after `insert` of m token sequences, one after the other.

  Args:
    tree: the tree before.
    tokens: [m, T] int32.
    depths: [m] int32.
    rewards: [m, T].
    fresh: [m, T] bool.
    length: epochs of the fresh trainings; may be traced.
  """
  chex.assert_equal_shape([tokens, rewards, fresh])
  chex.assert_shape(depths, tokens.shape[:1])

  def step(tree: Tree, each: tuple[Array, Array, Array, Array]) -> tuple[Tree, None]:
    return insert(tree, *each, length), None

  return jax.lax.scan(step, tree, (tokens, depths, rewards, fresh))[0]


def draw(tree: Tree, key: Key, T: int, power: float | Array) -> tuple[Array, Array]:
  """Draws a walk from the root to a leaf, or to the T-th layer.

  The next node is one of the children, with a probability proportional to reward ** power. A reward that is not
  positive and finite counts as 0; if all are 0, the children are equally likely.

  Args:
    tree: where to walk.
    key: a key for this walk.
    T: the greatest length of a token sequence.
    power: 0 makes all children equally likely; greater values prefer children of greater reward. May be traced.

  Returns:
    (tokens [T] int32, 0 from where the walk has ended; depth [] int32, 0 if the tree is empty).
  """

  def step(node: Array, key: Key) -> tuple[Array, tuple[Array, Array]]:
    token = jax.random.categorical(key, _log_next(tree, node, power)).astype(jnp.int32)
    after = tree.children[node, token]
    # At a leaf the walk stays: no child of a leaf can come after it.
    return jnp.where(after > 0, after, node), (jnp.where(after > 0, token, 0), after > 0)

  _, (tokens, walked) = jax.lax.scan(step, jnp.zeros((), jnp.int32), jax.random.split(key, T))
  return tokens, walked.sum(dtype=jnp.int32)


def log_prob(tree: Tree, tokens: Array, power: float | Array) -> Array:
  """Returns the log-probability that a walk of `draw` begins with each prefix of a token sequence.

  Args:
    tree: where to walk.
    tokens: [T] int32.
    power: as in `draw`.

  Returns:
    [T] nats; minus infinity from where the tokens leave the tree.
  """
  chex.assert_rank(tokens, 1)

  def step(carry: tuple[Array, Array], token: Array) -> tuple[tuple[Array, Array], Array]:
    node, total = carry
    total += _log_next(tree, node, power)[token]  # once minus infinity, it stays so wherever the path goes on
    return (tree.children[node, token], total), total

  start = jnp.zeros((), jnp.int32), jnp.zeros(())
  return jax.lax.scan(step, start, tokens)[1]


def _log_next(tree: Tree, node: Array, power: float | Array) -> Array:
  """Returns the log-probability [K] of each token after a node; minus infinity where there is no child."""
  children = tree.children[node]
  exists, reward = children > 0, tree.reward[children]
  earns = exists & jnp.isfinite(reward) & (reward > 0)
  # In logarithms, because a high power of a reward would round to 0.
  score = jnp.where(earns, power * jnp.log(jnp.where(earns, reward, 1.0)), -jnp.inf)
  alike = (power == 0) | ~jnp.any(score > -jnp.inf)
  score = jnp.where(exists, jnp.where(alike, 0.0, score), -jnp.inf)
  return score - jnp.where(jnp.any(exists), jax.nn.logsumexp(score), 0.0)


def names(tree: Tree, labels: Sequence[str]) -> list[str]:
  """Returns the label of each of the `size` nodes, '' for the root. Raises ValueError if there are not K labels."""
  if len(labels) != tree.children.shape[1]:
    raise ValueError(f'{len(labels)} labels for a tree of {tree.children.shape[1]} choices: want one for each.')
  return ['', *(labels[token] for token in np.asarray(tree.token)[1 : int(tree.size)].tolist())]


def as_json(tree: Tree, labels: Sequence[str]) -> str:
  """Returns the tree as nested JSON.

  A node is {'layer': label, 'reward', 'trained', 'used', 'length', 'next': [nodes]}, its children in the order of
  tokens. The reward is null if all trainings of the node failed. The root, which is no layer, only has 'next'.

  Args:
    tree: the tree to write.
    labels: [K] the label of each token.

  Raises:
    ValueError: there are not as many labels as choices.
  """
  layers, tree = names(tree, labels), jax.device_get(tree)

  def nodes(parent: int) -> list[dict[str, Any]]:
    return [
      {
        'layer': layers[node],
        # The shortest number that is equal as float32.
        'reward': float(str(tree.reward[node])) if np.isfinite(tree.reward[node]) else None,
        **{name: int(getattr(tree, name)[node]) for name in ('trained', 'used', 'length')},
        'next': nodes(node),
      }
      for node in tree.children[parent].tolist()
      if node
    ]

  return json.dumps({'next': nodes(0)}, allow_nan=False)


def from_json(text: str, labels: Sequence[str]) -> Tree:
  """Reads the tree that `as_json` wrote, with no spare capacity. Raises ValueError if the text is something else."""
  tokens = {label: token for token, label in enumerate(labels)}
  try:
    waiting, rows = [(0, node) for node in json.loads(text)['next']], [(0, 0, 0.0, 0, 0, 0)]
    while waiting:
      parent, node = waiting.pop(0)
      waiting += [(len(rows), after) for after in node['next']]
      reward = math.nan if node['reward'] is None else node['reward']
      rows.append((parent, tokens[node['layer']], reward, *(node[n] for n in ('trained', 'used', 'length'))))
    children = np.zeros((len(rows), len(labels)), np.int32)
    for number, (parent, token, *_) in enumerate(rows[1:], 1):
      children[parent, token] = number
    columns = zip(zip(*rows, strict=True), ('i4', 'i4', 'f4', 'i4', 'i4', 'i4'), strict=True)
    size = jnp.asarray(len(rows), jnp.int32)
    return Tree._make([jnp.asarray(children), *(jnp.array(*column) for column in columns), size])
  except (ValueError, TypeError, KeyError, RecursionError) as error:
    raise ValueError(f'not a replay tree of these {len(labels)} layers ({error}): want JSON as replay.json.') from None
