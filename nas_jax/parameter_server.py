"""The server of asynchronous replicas, Zoph & Le (2017) Sec. 3.2: it keeps the parameters, in shards, and updates them.

`nas_jax.replicas` asks replicas for batches and passes their answers to this server.
"""

from collections.abc import Callable, Sequence
import functools
from typing import Any, NamedTuple

import jax
from jax.flatten_util import ravel_pytree
import jax.numpy as jnp

from nas_jax.search.core import Search
from nas_jax.search.state import Best, SearchState
from nas_jax.types import Array, Batch, Info, Key, Outcome, PyTree


class Fleet(NamedTuple):
  """Everything that decides the future of an asynchronous search."""

  server: SearchState  # its step counts answers; theta is [S, P], and all leaves of opt_state have a leading axis S
  sums: PyTree  # [S, P] gradients that have reached each shard since its last update; () without a gradient
  waiting: Array  # [S] int32, how many gradients `sums` holds
  versions: Array  # [S] int32, updates of each shard
  late: PyTree  # [A, S, P] the last A gradients that were sent, if shards receive them later; else ()
  held: PyTree  # [K, ...] what each replica samples with: theta, or the whole state of an algorithm without a gradient
  seen: Array  # [K, S] int32, updates that each shard had made when the replica read that shard
  numbers: Array  # [K] int32, the batch that each replica works on; ids and keys of its children follow from it
  ends: Array  # [K] simulated time at which each of these batches is trained

  @property
  def step(self) -> Array:
    """Answers so far, [] int32."""
    return self.server.step

  @property
  def key(self) -> Key:
    """The key of the run."""
    return self.server.key

  @property
  def best(self) -> Best:
    """The best child so far."""
    return self.server.best


class Server(NamedTuple):
  """The functions of the server, which takes the answers of replicas."""

  init: Callable[[SearchState], tuple[SearchState, PyTree, PyTree]]  # -> the state it keeps; `sums` and `late`
  read: Callable[[SearchState], PyTree]  # server's state -> what a replica samples with
  lend: Callable[[SearchState, PyTree], SearchState]  # (server's state, what a replica has read) -> the replica's state
  # (fleet, state with which the replica asked for the batch, batch, outcome) -> (fleet after this answer, info)
  take: Callable[[Fleet, SearchState, Batch, Outcome], tuple[Fleet, Info]]


def build(search: Search, accumulate: int, shards: int, lags: Sequence[int] | None = None) -> Server:
  """Returns the server of a search, with the arguments of `nas_jax.replicas.build`.

  An algorithm without a gradient takes each answer at once: nothing is accumulated, and there are no shards.
  """
  return _sharded(search, accumulate, shards, lags) if search.gradient else _whole(search)


def _whole(search: Search) -> Server:
  """Returns a server for an algorithm without a gradient, whose whole state replicas read."""

  def take(fleet: Fleet, asked: SearchState, batch: Batch, outcome: Outcome) -> tuple[Fleet, Info]:
    del asked
    state, info = search.tell(fleet.server, batch, outcome)
    return fleet._replace(server=state, versions=fleet.versions + 1), info

  return Server(
    lambda state: (state, (), ()),
    lambda state: state.algorithm,
    lambda state, held: state._replace(algorithm=held),
    take,
  )


def _sharded(search: Search, accumulate: int, shards: int, lags: Sequence[int] | None) -> Server:
  """Returns a server that keeps theta in shards and updates them with the gradients of replicas."""
  assert search.gradient and search.apply
  gradient_of, apply = search.gradient, search.apply
  slicing = _slicing(jax.eval_shape(search.init, jax.random.key(0)).algorithm, shards)
  furthest = 0 if lags is None else max(lags) + 1

  def init(state: SearchState) -> tuple[SearchState, PyTree, PyTree]:
    own = state.algorithm
    optimizer = jax.vmap(slicing.cut_optimizer, (None, 0))(own.opt_state, jnp.arange(shards))
    state = state._replace(algorithm=own._replace(theta=slicing.cut(own.theta), opt_state=optimizer))
    sums = jnp.zeros_like(state.algorithm.theta)
    return state, sums, jnp.zeros((furthest, *sums.shape), sums.dtype) if furthest else ()

  def lend(state: SearchState, held: PyTree) -> SearchState:
    return state._replace(algorithm=state.algorithm._replace(theta=slicing.join(held), opt_state=()))

  def take(fleet: Fleet, asked: SearchState, batch: Batch, outcome: Outcome) -> tuple[Fleet, Info]:
    if search.algorithm.log_prob:
      batch = batch._replace(log_prob=search.algorithm.log_prob(asked.algorithm, batch))
    sent = slicing.cut(gradient_of(asked, batch, outcome))  # [S, P]
    reached, there, late = sent, jnp.ones(shards, bool), fleet.late
    if furthest:
      late, before = late.at[fleet.step % furthest].set(sent), fleet.step - jnp.asarray(lags)
      reached, there = late[before % furthest, jnp.arange(shards)], before >= 0
    sums, waiting = fleet.sums + jnp.where(there[:, None], reached, 0.0), fleet.waiting + there
    due, after, info = waiting == accumulate, *update(fleet.server, sums / accumulate, batch, outcome)
    old, new = fleet.server.algorithm, after.algorithm
    parts = jax.tree.map(functools.partial(_where, due), (new.theta, new.opt_state), (old.theta, old.opt_state))
    return fleet._replace(
      server=after._replace(algorithm=new._replace(theta=parts[0], opt_state=parts[1])),
      sums=_where(due, jnp.zeros_like(sums), sums),
      waiting=jnp.where(due, 0, waiting),
      versions=fleet.versions + due,
      late=late,
    ), info | {'gradient_norm': jnp.sqrt(jnp.sum(sent**2))}

  def update(state: SearchState, mean: Array, batch: Batch, outcome: Outcome) -> tuple[SearchState, Info]:
    """Returns the state after an answer, with all shards updated by a mean gradient [S, P]."""
    own = state.algorithm
    theta, gradient = slicing.join(own.theta), slicing.join(mean)

    def shard(i: Array, opt_state: PyTree) -> Any:
      """Updates all parameters with the optimizer's counts of shard i. Returns its part of them, the rest, and info."""
      before = own._replace(theta=theta, opt_state=slicing.join_optimizer(opt_state))
      after, info = apply(state._replace(algorithm=before), gradient, batch, outcome)
      part = slicing.cut(after.algorithm.theta)[i], slicing.cut_optimizer(after.algorithm.opt_state, i)
      return part, after._replace(algorithm=after.algorithm._replace(theta=(), opt_state=())), info

    # Apart from the parameters, the changes that an answer makes do not depend on the shard.
    axes = (0, slicing.axes)
    parts, after, info = jax.vmap(shard, axes, (0, None, 0))(jnp.arange(shards), own.opt_state)
    after = after._replace(algorithm=after.algorithm._replace(theta=parts[0], opt_state=parts[1]))
    return after, {name: value[0] for name, value in info.items()}

  return Server(init, lambda state: state.algorithm.theta, lend, take)


class _Slicing(NamedTuple):
  """Parameters as a matrix [S, P]: their concatenation, filled up with zeros and cut into S rows.

  In the optimizer's state each tree of the shape of theta becomes such a matrix, and each count becomes [S].
  """

  cut: Callable[[PyTree], Array]  # a tree of the shape of theta -> the matrix
  join: Callable[[Array], PyTree]  # the matrix -> the tree
  axes: PyTree  # of the optimizer's state, for `vmap` over the counts of shards: None for matrices
  join_optimizer: Callable[[PyTree], PyTree]  # the state with the counts of one shard -> that of the optimizer
  cut_optimizer: Callable[[PyTree, Array], PyTree]  # the optimizer's state -> the part of one shard


def _slicing(state: Any, shards: int) -> _Slicing:
  """Returns the slicing of an algorithm's state, which may hold shapes only."""
  structure: Any = jax.tree.structure(state.theta)
  flat, unravel = ravel_pytree(jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), state.theta))
  size = flat.size
  if shards > size:
    raise ValueError(f'shards (={shards}) is more than the controller has parameters, {size}: take fewer.')

  def cut(tree: PyTree) -> Array:
    return jnp.pad(ravel_pytree(tree)[0], (0, -size % shards)).reshape(shards, -1)

  def join(matrix: Array) -> PyTree:
    return unravel(matrix.reshape(-1)[:size])

  def is_theta(x: PyTree) -> bool:
    return jax.tree.structure(x) == structure

  axes = jax.tree.map(lambda x: None if is_theta(x) else 0, state.opt_state, is_leaf=is_theta)

  def join_optimizer(opt_state: PyTree) -> PyTree:
    return jax.tree.map(lambda axis, x: x if axis == 0 else join(x), axes, opt_state, is_leaf=lambda x: x is None)

  def cut_optimizer(opt_state: PyTree, i: Array) -> PyTree:
    return jax.tree.map(lambda x: cut(x)[i] if is_theta(x) else x, opt_state, is_leaf=is_theta)

  return _Slicing(cut, join, axes, join_optimizer, cut_optimizer)


def _where(due: Array, new: Array, old: Array) -> Array:
  """Returns the slices [S, ...] of `new` where they are due, and those of `old` elsewhere."""
  return jnp.where(due.reshape(-1, *(1,) * (new.ndim - 1)), new, old)
