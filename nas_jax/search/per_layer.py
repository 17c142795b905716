"""Searches that reward every layer and remember the architectures that they tried: the augmented search of Olga Xu.

Every prefix of a token sequence is an architecture of its own. It is trained, and its score is the reward of its last
layer. The scores are kept in a tree (`SearchState.replay`), so that no prefix is trained twice, and the search may
learn from a sequence of the tree again instead of proposing a new one.
"""

from collections.abc import Callable, Iterator
import dataclasses
import functools
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nas_jax.config import field
from nas_jax.search import core, history, replay_tree
from nas_jax.search import state as state_lib
from nas_jax.search.algorithms import baseline, reinforce
from nas_jax.search.algorithms.base import Algorithm
from nas_jax.search.state import SearchState
from nas_jax.space import Kind, Space
from nas_jax.types import Array, Batch, Evaluate, Key, Outcome, PyTree


@dataclasses.dataclass
class Config(state_lib.Config):
  """The settings of a search with rewards for every layer."""

  baseline: str = field(
    'all', "the baseline b: the average of 'all' rewards so far, as Xu has it, or a 'moving' one",
    choices=baseline.BASELINES,
  )  # fmt: skip
  returns: str = field(
    'past', "what a layer is credited with: 'past', G_t = R_t + gamma G_(t-1), as Xu has it, or 'to go', with G_(t+1)",
    choices=reinforce.RETURNS,
  )  # fmt: skip
  gamma: float = field(0.5, 'the discount per layer in the returns G_t; Xu does not say', low=0.0, high=1.0)
  replay: float = field(
    0.1, 'probability of learning from a token sequence of the replay tree again; Xu does not say', low=0.0, high=0.95
  )
  replay_power: float = field(
    10.0, 'a layer of the replay tree is drawn in proportion to its reward to this power', low=0.0
  )
  importance: bool = field(
    False, 'weigh token sequences by their probability under the controller over that of being asked for; not in Xu'
  )
  train_again: str = field(
    'longer', "train a prefix of the replay tree again: 'never', if it would now train 'longer', or 'always'",
    choices=('never', 'longer', 'always'),
  )  # fmt: skip
  known: str = field(
    'reuse',
    "what happens to a token sequence that was trained before: 'reuse' does what train_again says; 'train' trains all "
    "its prefixes again, whatever train_again says; 'avoid' does as 'reuse', and takes the first of 32 proposals that "
    'is not in the replay tree as a whole',
    choices=state_lib.KNOWN,
  )
  warm_start: bool = field(False, 'start a prefix from the trained weights of the prefix one layer shorter')
  patience: int = field(100, 'updates in a row without a new child after which the search ends', low=1)

  added: ClassVar[dict[str, Any]] = {'known': 'reuse'}  # see `config.with_added`


class Memory(NamedTuple):
  """What a search with rewards for every layer remembers: its tree and two counts."""

  tree: replay_tree.Tree
  trained: Array  # [] int32, children so far
  idle: Array  # [] int32, updates since the last child was trained


class Asked(NamedTuple):
  """What the evaluator needs to know of a batch of token sequences."""

  known: Array  # [m, T] bool, prefixes that need no training
  reward: Array  # [m, T] rewards of these prefixes; NaN for those that failed
  trained: Array  # [] int32, children so far
  length: Array  # [] int32, epochs for which children are trained now


class Group(NamedTuple):
  """The `extra` of a batch of prefixes: what the prefixes of one token sequence have in common."""

  string: int  # the id of the sequence
  length: int  # epochs for which the prefixes are trained


def build(
  space: Space,
  cfg: Config,
  train: Evaluate,
  length: Callable[[Array], Array] = lambda trained: jnp.ones((), jnp.int32),
) -> core.Search:
  """Returns the search. Its children are prefixes, with ids in the order of training.

  Args:
    space: one with a single choice for each layer.
    cfg: the algorithm and its settings, the returns, the tree.
    train: scores a group of prefixes: a batch with a depth for each of them, and a `Group` as `extra`.
    length: maps the number of children so far, which is traced, to the epochs of the next ones, int32.

  Raises:
    ValueError: as `search.check`; a layer of the space is not a single choice; or `proposals` is not 'policy'.
  """
  if cfg.proposals != 'policy':
    raise ValueError(
      f'proposals (={cfg.proposals}) must be policy where every layer has a reward: prefixes are measured there.'
    )
  if any(slot.kind != Kind.CHOICE for slot in space.slots) or space.length != space.layers:
    raise ValueError(f'rewards of layers want one choice a layer, and a {space.kind} space has others.')

  def credit(state: SearchState, batch: Batch, value: Array) -> Array:
    if value.ndim == 1:
      return value  # the caller of `tell` has rewarded whole sequences
    weight = jnp.ones_like(value)
    if cfg.importance and replay_share:
      weight = _importance(s.algorithm, cfg, replay_share, state, batch)
    if cfg.returns == 'past':  # G_t depends only on the layers up to t, so one weight applies to the whole sum ...
      return weight * reinforce.returns(value, cfg.gamma, cfg.returns)
    return reinforce.returns(weight * value, cfg.gamma, cfg.returns)  # ... and here each reward needs its own

  def remember(state: SearchState, batch: Batch, outcome: Outcome) -> SearchState:
    fresh, (tree, trained, idle) = outcome.children, state.replay
    if isinstance(fresh, tuple):
      return state  # nothing was trained: the caller of `tell` has made up the rewards
    assert outcome.failed is not None, 'the outcome of `outcomes.settle`'
    reward = jnp.where(outcome.failed, jnp.nan, outcome.reward)
    tree = replay_tree.insert_all(tree, batch.tokens, jnp.asarray(batch.depth), reward, fresh, batch.extra.length)
    count = fresh.sum(dtype=jnp.int32)
    return state._replace(replay=Memory(tree, trained + count, jnp.where(count > 0, 0, idle + 1)))

  # The tree takes the place of the record of known token sequences.
  s = core.build(space, dataclasses.replace(cfg, known='train'), train, credit, remember)
  replay_share = cfg.replay if s.algorithm.gradient else 0.0  # replay is only for algorithms with a gradient

  def init(key: Key) -> SearchState:
    nothing = jnp.zeros((), jnp.int32)
    memory = Memory(replay_tree.empty(max(slot.width for slot in space.slots), 1), nothing, nothing)
    return grow(s.init(key)._replace(replay=memory), 0)

  def grow(state: SearchState, step: int) -> SearchState:
    """Doubles the capacity of the tree until one more update fits, so that its size depends only on the step."""
    capacity = 256
    while capacity <= (step + 1) * cfg.m * space.length:
      capacity *= 2
    return state._replace(replay=state.replay._replace(tree=replay_tree.grow(state.replay.tree, capacity)))

  split = functools.partial(prefixes, space)
  return s._replace(
    init=init,
    ask=jax.jit(functools.partial(_ask, space, cfg, s.algorithm, replay_share, length)),
    evaluate=lambda batch: join(batch, groups := split(batch), [train(group) for group in groups]),
    parts=core.Parts(
      split,
      train,
      join,
      spent=lambda state: int(state.replay.trained),
      exhausted=lambda state: int(state.replay.idle) >= cfg.patience,
      grow=grow,
      export=lambda state: replay_tree.as_json(state.replay.tree, space.slots[0].labels),
    ),
  )


def _importance(algorithm: Algorithm, cfg: Config, replay_share: float, state: SearchState, batch: Batch) -> Array:
  """Returns the importance weights [m, T] of all prefixes, at most 1 / (1 - p).

  A weight is the probability of the prefix under the controller, divided by the probability that it is asked for. The
  latter is a mixture: with probability p, the replay share, a sequence is drawn from the tree.
  """
  assert algorithm.log_prob is not None, 'an algorithm with a gradient has the probabilities it is of'
  tree = state.replay.tree
  p = jnp.where(tree.size > 1, replay_share, 0.0)
  now = jnp.cumsum(algorithm.log_prob(state.algorithm, batch), 1)
  drawn = jax.vmap(lambda tokens: replay_tree.log_prob(tree, tokens, cfg.replay_power))(batch.tokens)
  return 1.0 / (1.0 - p + p * jnp.exp(drawn - now))


def _ask(
  space: Space,
  cfg: Config,
  algorithm: Algorithm,
  replay_share: float,
  length: Callable[[Array], Array],
  state: SearchState,
) -> Batch:
  """Returns m token sequences, each proposed by the algorithm or, with probability `replay_share`, from the tree."""
  tree, trained, _ = state.replay
  depth, now = core.depth_of(cfg, space, trained), length(trained)
  ids, own_keys, child_keys = core.identify(state, cfg.m)
  fresh_keys, walk_keys, coins = jax.vmap(lambda key: jax.random.split(key, 3), out_axes=1)(own_keys)

  def one(fresh: Array, walk_key: Key, coin: Key) -> tuple[Array, Array]:
    old, deep = replay_tree.draw(tree, walk_key, space.length, cfg.replay_power)
    replayed = (jax.random.uniform(coin) < replay_share) & (deep > 0)
    return jnp.where(replayed, old, fresh), jnp.where(replayed, deep, depth)

  proposed = _propose(space, cfg, algorithm, state, fresh_keys, depth)
  tokens, depths = jax.vmap(one)(proposed, walk_keys, coins)
  nodes = jax.vmap(lambda tokens, depth: replay_tree.lookup(tree, tokens, depth))(tokens, depths)
  enough = {'never': tree.trained > 0, 'longer': tree.length >= now, 'always': jnp.zeros_like(tree.trained, bool)}
  again = 'always' if cfg.known == 'train' else cfg.train_again
  known = (nodes > 0) & (enough[again] & (tree.trained > 0))[nodes]
  asked = Asked(known, tree.reward[nodes], trained, now)
  return Batch(ids, child_keys, tokens, _shortened(space, tokens, depths), depths, asked)


def _propose(space: Space, cfg: Config, algorithm: Algorithm, state: SearchState, keys: Key, depth: Array) -> Array:
  """Returns proposals of the algorithm, [m, T]. With known=avoid each is the first one that is not in the tree."""
  if cfg.known != 'avoid':
    return algorithm.propose(state.algorithm, keys, depth)

  def is_known(tokens: Array) -> Array:
    return replay_tree.lookup(state.replay.tree, tokens, depth)[depth - 1] > 0

  return history.draw_unseen(jax.vmap(is_known), algorithm.propose, state.algorithm, keys, depth)


def _shortened(space: Space, tokens: Array, depths: Array) -> PyTree:
  """Returns the architectures [m] of token sequences with their own depths; layers beyond the depth are 0."""
  there = jnp.arange(space.layers)[None] < depths[:, None]
  return jax.tree.map(lambda codes: jnp.where(there, codes, 0), space.decode_batch(tokens))


def prefixes(space: Space, batch: Batch) -> list[Batch]:
  """Returns a group of prefixes to train for each token sequence that has any. Each prefix is in one group only.

  Args:
    space: the space of the token sequences.
    batch: m token sequences, with `Asked` as `extra`.
  """
  groups, seen, first = list[Batch](), set[tuple[int, ...]](), int(batch.extra.trained)
  for k, path, known in _paths(batch):
    missing = [t for t in range(len(path)) if not known[t] and path[: t + 1] not in seen]
    if missing:
      seen |= {path[: t + 1] for t in missing}
      depths = jnp.asarray(missing, jnp.int32) + 1
      tokens = jnp.where(jnp.arange(space.length)[None] < depths[:, None], batch.tokens[k][None], 0)
      ids = first + jnp.arange(len(missing), dtype=jnp.int32)
      keys = jax.vmap(lambda t, key=batch.keys[k]: jax.random.fold_in(key, t))(depths)
      group = Group(int(batch.ids[k]), int(batch.extra.length))
      groups.append(Batch(ids, keys, tokens, _shortened(space, tokens, depths), depths, group))
      first += len(missing)
  return groups


def join(batch: Batch, groups: list[Batch], outcomes: list[Outcome]) -> Outcome:
  """Returns the rewards of the sequences of a batch: one for each layer, 0 for layers that do not exist.

  The reward of a prefix that failed, just now or earlier, is NaN. `children` of the result, [m, T] bool, says which of
  these rewards come from a training just now.

  Args:
    batch: m token sequences.
    groups: the groups that `prefixes` made of the batch.
    outcomes: the outcome of each group.
  """
  earned = dict[tuple[int, ...], tuple[float, int]]()
  for group, outcome in zip(groups, outcomes, strict=True):
    reward = np.asarray(outcome.reward, np.float32)
    if outcome.failed is not None:
      reward = np.where(outcome.failed, np.float32(np.nan), reward)
    columns = np.asarray(group.tokens).tolist(), np.asarray(group.depth).tolist(), reward.tolist()
    for own, depth, each in zip(*columns, strict=True):
      earned[tuple(own[:depth])] = each, group.extra.string
  rewards, fresh = np.zeros(batch.tokens.shape, np.float32), np.zeros(batch.tokens.shape, bool)
  before, ids = np.asarray(batch.extra.reward), batch.ids.tolist()
  for k, path, _ in _paths(batch):
    for t in range(len(path)):
      rewards[k, t], sequence = earned.get(path[: t + 1], (before[k, t], -1))
      fresh[k, t] = sequence == ids[k]
  return Outcome(jnp.asarray(rewards), {}, jnp.asarray(fresh))


def _paths(batch: Batch) -> Iterator[tuple[int, tuple[int, ...], np.ndarray]]:
  """Yields (position in the batch, tokens up to the depth, which of its prefixes are known) for each sequence."""
  columns = np.asarray(batch.tokens).tolist(), np.asarray(batch.depth).tolist(), np.asarray(batch.extra.known)
  for k, (tokens, depth, known) in enumerate(zip(*columns, strict=True)):
    yield k, tuple(tokens[:depth]), known
