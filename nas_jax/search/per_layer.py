"""Searches that reward every layer and remember what was tried, as Olga Xu's augmented search does.

Every prefix of a string is an architecture of its own: it is trained, and its score is the reward of its last layer.
What a prefix earned stands in a tree (`replay`), so that it is trained once, and a string may be drawn from there in
place of a fresh one.
"""

from collections.abc import Callable
import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nas_jax.config import field
from nas_jax.controller import Controller
from nas_jax.search import core, replay_tree
from nas_jax.search.algorithms import reinforce
from nas_jax.search.state import SearchState, map_sequences
from nas_jax.space import Kind, Space
from nas_jax.types import Array, Batch, Key, Outcome, PyTree


@dataclasses.dataclass
class Config(core.Config):
  """What these searches have beside the controller and its update."""

  baseline: str = field(
    'all', "b: the plain average of 'all' rewards so far, as Xu, or a 'moving' one", choices=('moving', 'all')
  )
  returns: str = field(
    'past', "what a layer is credited with: 'past', G_t = R_t + gamma G_(t-1), as Xu, or 'to go', R_t + gamma G_(t+1)",
    choices=reinforce.RETURNS,
  )  # fmt: skip
  gamma: float = field(0.5, 'of these returns; Xu does not say', low=0.0, high=1.0)
  replay: float = field(0.1, 'probability that a string comes from the tree; Xu does not say', low=0.0, high=0.95)
  replay_power: float = field(10.0, 'a walk in the tree prefers a layer by its reward to this power', low=0.0)
  importance: bool = field(False, 'weigh strings by their probability now over that of being drawn; not in Xu')
  train_again: str = field(
    'longer', "prefixes that the tree knows: 'never', if children now train 'longer' than it did, or 'always'",
    choices=('never', 'longer', 'always'),
  )  # fmt: skip
  warm_start: bool = field(False, 'prefixes of a string that are new start from the weights of the one before them')
  patience: int = field(100, 'updates in a row without a new child after which a search has ended', low=1)


class Memory(NamedTuple):
  """What a search remembers."""

  tree: replay_tree.Tree
  trained: Array  # [] int32, children so far
  idle: Array  # [] int32, updates since the last of them


class Asked(NamedTuple):
  """What an evaluator needs to know of some strings."""

  known: Array  # [m, T] bool, prefixes that need no training
  reward: Array  # [m, T] what these earned
  trained: Array  # [] int32, children so far
  length: Array  # [] int32, how long children are trained now


class Group(NamedTuple):
  """What the prefixes of one string have in common."""

  string: int  # its id
  length: int


def build(
  space: Space,
  cfg: Config,
  train: Callable[[Batch], Outcome],
  length: Callable[[Array], Array] = lambda trained: jnp.ones((), jnp.int32),
) -> core.Search:
  """The search. Its children are prefixes, and their ids count them in the order of training.

  Args:
    space: with one choice a layer.
    cfg: the controller, its update, the tree.
    train: scores prefixes, whose batch has a depth for each, and as `extra` their `Group`.
    length: (children so far, traced) -> how long the next are trained, int32.

  Raises:
    ValueError: as `config.check`, or a layer of the space is not one choice.
  """
  if any(slot.kind != Kind.CHOICE for slot in space.slots) or space.length != space.layers:
    raise ValueError(f'rewards of layers want one choice a layer, and a {space.kind} space has others.')
  replay_share = cfg.replay if cfg.algorithm == 'reinforce' else 0.0

  def credit(state: SearchState, batch: Batch, value: Array) -> Array:
    if value.ndim == 1:
      return value  # the whole string was rewarded, by someone who knows no layers
    weight = jnp.ones_like(value)
    if cfg.importance and replay_share:
      weight = _importance(s.controller, cfg, replay_share, state, batch)
    if cfg.returns == 'past':  # G_t is the business of layers up to t; 'to go', of each that it sums up
      return weight * reinforce.returns(value, cfg.gamma, cfg.returns)
    return reinforce.returns(weight * value, cfg.gamma, cfg.returns)

  def remember(state: SearchState, batch: Batch, outcome: Outcome) -> SearchState:
    fresh, (tree, trained, idle) = outcome.children, state.replay
    if isinstance(fresh, tuple):
      return state  # nothing was trained: rewards of one's own
    tree = replay_tree.insert_all(
      tree, batch.tokens, jnp.asarray(batch.depth), outcome.reward, fresh, batch.extra.length
    )
    count = fresh.sum(dtype=jnp.int32)
    return state._replace(replay=Memory(tree, trained + count, jnp.where(count > 0, 0, idle + 1)))

  s = core.build(space, cfg, train, credit, remember)

  def init(key: Key) -> SearchState:
    nothing = jnp.zeros((), jnp.int32)
    memory = Memory(replay_tree.empty(max(slot.width for slot in space.slots), 1), nothing, nothing)
    return grow(s.init(key)._replace(replay=memory), 0)

  def grow(state: SearchState, step: int) -> SearchState:
    """Room for all that so many updates and one more can bring, doubled when it must: so the step decides shapes."""
    capacity = 256
    while capacity <= (step + 1) * cfg.m * space.length:
      capacity *= 2
    return state._replace(replay=state.replay._replace(tree=replay_tree.grow(state.replay.tree, capacity)))

  split = functools.partial(prefixes, space)
  return s._replace(
    init=init,
    ask=jax.jit(functools.partial(_ask, space, cfg, s.controller, replay_share, length)),
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


def _importance(controller: Controller, cfg: Config, replay_share: float, state: SearchState, batch: Batch) -> Array:
  """[m, T] of each prefix, its probability under the controller over that of being asked for, at most 1 / (1 - p)."""
  tree = state.replay.tree
  p = jnp.where(tree.size > 1, replay_share, 0.0)
  now = jnp.cumsum(map_sequences(functools.partial(controller.log_prob, state.theta), batch), 1)
  drawn = jax.vmap(lambda tokens: replay_tree.log_prob(tree, tokens, cfg.replay_power))(batch.tokens)
  return 1.0 / (1.0 - p + p * jnp.exp(drawn - now))


def _ask(
  space: Space,
  cfg: Config,
  controller: Controller,
  replay_share: float,
  length: Callable[[Array], Array],
  state: SearchState,
) -> Batch:
  """m strings, each fresh from the controller or, with probability `replay_share`, from the tree."""
  tree, trained, _ = state.replay
  depth, now = core.depth_of(cfg, space, trained), length(trained)

  def one(key: Key) -> tuple[Array, Array]:
    fresh_key, walk_key, coin = jax.random.split(key, 3)
    fresh = controller.sample(state.theta, fresh_key, depth)
    old, deep = replay_tree.draw(tree, walk_key, space.length, cfg.replay_power)
    replayed = (jax.random.uniform(coin) < replay_share) & (deep > 0)
    return jnp.where(replayed, old, fresh), jnp.where(replayed, deep, depth)

  ids, sample_keys, child_keys = core.identify(state, cfg.m)
  tokens, depths = jax.vmap(one)(sample_keys)
  nodes = jax.vmap(lambda *string: replay_tree.lookup(tree, *string))(tokens, depths)
  enough = {'never': tree.trained > 0, 'longer': tree.length >= now, 'always': jnp.zeros_like(tree.trained, bool)}
  known = (nodes > 0) & (enough[cfg.train_again] & (tree.trained > 0))[nodes]
  asked = Asked(known, tree.reward[nodes], trained, now)
  return Batch(ids, child_keys, tokens, _shortened(space, tokens, depths), depths, asked)


def _shortened(space: Space, tokens: Array, depths: Array) -> PyTree:
  """Architectures [m] of strings of their own depths: 0 stands for the layers that are not there."""
  there = jnp.arange(space.layers)[None] < depths[:, None]
  return jax.tree.map(lambda codes: jnp.where(there, codes, 0), space.decode_batch(tokens))


def prefixes(space: Space, batch: Batch) -> list[Batch]:
  """The prefixes that must be trained for some strings, each once: a group for each string that has any.

  Args:
    space: of the strings.
    batch: of strings, its `extra` as `Asked`.
  """
  groups, seen, first = list[Batch](), set[tuple[int, ...]](), int(batch.extra.trained)
  for k, path, known in _walk(batch):
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
  """What strings earned, a reward for each layer, 0 for layers not there; `children` says which are fresh.

  Args:
    batch: of strings.
    groups: as `prefixes` makes them of it.
    outcomes: of these.
  """
  earned = dict[tuple[int, ...], tuple[float, int]]()
  for group, outcome in zip(groups, outcomes, strict=True):
    tokens, reward = np.asarray(group.tokens).tolist(), np.asarray(outcome.reward).tolist()
    for own, depth, each in zip(tokens, np.asarray(group.depth).tolist(), reward, strict=True):
      earned[tuple(own[:depth])] = each, group.extra.string
  rewards, fresh = np.zeros(batch.tokens.shape, np.float32), np.zeros(batch.tokens.shape, bool)
  before, ids = np.asarray(batch.extra.reward), batch.ids.tolist()
  for k, path, _ in _walk(batch):
    for t in range(len(path)):
      rewards[k, t], string = earned.get(path[: t + 1], (before[k, t], -1))
      fresh[k, t] = string == ids[k]
  return Outcome(jnp.asarray(rewards), {}, jnp.asarray(fresh))


def _walk(batch: Batch):
  """(place, path, which of its prefixes are known) of each string."""
  strings = np.asarray(batch.tokens).tolist(), np.asarray(batch.depth).tolist(), np.asarray(batch.extra.known)
  for k, (tokens, depth, known) in enumerate(zip(*strings, strict=True)):
    yield k, tuple(tokens[:depth]), known
