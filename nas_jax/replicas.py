"""Asynchronous replicas of the controller, Zoph & Le (2017) Sec. 3.2, as a pure state machine.

K replicas train m children each at the same time. A replica samples its children with the parameters that it read last,
sends the gradient at these parameters, and reads the parameters again. Meanwhile other replicas have updated the
parameters, and the gradient is stale by that number of updates. A server keeps the parameters in S shards, and a shard
makes an update from the mean of every n gradients that reach it: see `nas_jax.parameter_server`.

`Replicas.ask` and `Replicas.tell` are the machine, and a `Fleet` is its state. Which replica answers next is decided
outside of the machine: by training times that are drawn from the seed (`simulated`), by the workers that train
the children, or by a journal (both in `nas_jax.crew`). The order of the answers determines the state.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nas_jax import parameter_server
from nas_jax.config import field
from nas_jax.parameter_server import Fleet
from nas_jax.search import core, outcomes
from nas_jax.search.core import Search
from nas_jax.search.state import SearchState
from nas_jax.space import Space
from nas_jax.types import Array, Batch, Evaluate, Info, Key, Outcome

Delay = Callable[[Key], Array]  # draws how long a child trains, [], in any unit of time
_CLOCK = np.uint32(2**32 - 1)  # folded into the run's key to draw training times; no batch has this number


@dataclasses.dataclass
class Config:
  """The settings of asynchronous replicas. The defaults are a synchronous search."""

  replicas: int = field(
    0,
    'controller replicas that train m children each at the same time and send their gradients independently; 100 on '
    'CIFAR-10 and 400 on Penn Treebank, Sec. 4; 0 for a synchronous search',
    low=0,
    high=10_000,
  )
  accumulate: int = field(
    1, 'gradients of replicas whose mean makes one update of the controller; 10 on Penn Treebank, Sec. 4.2', low=1
  )
  shards: int = field(1, "parts of the controller's parameters, each updated by itself; S = 20 in Sec. 4", low=1)

  added: ClassVar[dict[str, Any]] = {'replicas': 0, 'accumulate': 1, 'shards': 1}  # see `config.with_added`


class Turn(NamedTuple):
  """The replica and the time of a batch: the `extra` of a batch that `Replicas.ask` returns."""

  replica: Array  # [] int32
  event: Array  # [] int32, answers that the server had when the batch was asked for
  time: Array  # [] simulated time at which its training ends
  staleness: Array  # [] updates of the server since the replica read its parameters, the mean over shards


class Replicas(NamedTuple):
  """The state machine."""

  search: Search  # the search that each replica takes part in
  replicas: int  # K
  init: Callable[[Key], Fleet]
  ask: Callable[[Fleet, int | Array], Batch]  # the batch that a replica works on; repeated calls return the same batch
  # (fleet, replica, its batch, outcome) -> (fleet, info); a batch that has been told before changes nothing
  tell: Callable[[Fleet, int | Array, Batch, Outcome], tuple[Fleet, Info]]
  answer: Callable[[Fleet, int | Array, Batch, Outcome], tuple[Fleet, Info]]  # `tell` for `jax.jit`: it checks nothing
  turn: Callable[[Fleet, int | Array], Turn]  # of the batch that a replica works on
  view: Callable[[Fleet], SearchState]  # the server's state as a state of `search`, for reports
  children: Callable[[Fleet], list[int]]  # ids of the children that have been told, in rising order


def lognormal(key: Key) -> Array:
  """Returns a training time with a median of 1: the exponential of a normal with deviation 0.3."""
  return jnp.exp(0.3 * jax.random.normal(key))


def check(space: Space, cfg: Any) -> None:
  """Raises ValueError if settings of a config with the fields of `Config` exclude each other or do not fit a space."""
  if not cfg.replicas and (cfg.accumulate > 1 or cfg.shards > 1):
    raise ValueError(
      f'accumulate (={cfg.accumulate}) and shards (={cfg.shards}) are for asynchronous replicas, and replicas is 0: '
      'take --replicas=1 or more, or --accumulate=1 --shards=1.'
    )
  if cfg.replicas and (cfg.known, cfg.proposals) != ('train', 'policy'):
    raise ValueError(
      f'known (={cfg.known}) and proposals (={cfg.proposals}) have a child depend on all before, which asynchronous '
      'replicas do not wait for: take --known=train and --proposals=policy, or --replicas=0.'
    )
  if cfg.replicas:
    build(core.ask_tell(space, cfg), cfg.replicas, cfg.accumulate, cfg.shards)


def build(
  search: Search,
  replicas: int,
  accumulate: int = 1,
  shards: int = 1,
  delay: Delay = lognormal,
  lags: Sequence[int] | None = None,
) -> Replicas:
  """Returns K replicas of a search.

  One replica with `accumulate` 1 proposes the same tokens as the search itself. An algorithm without a gradient, such
  as random search, takes each answer at once: nothing is accumulated, and there are no shards.

  Args:
    search: the search that each replica takes part in. Its children train by themselves.
    replicas: K.
    accumulate: n, how many gradients make an update.
    shards: S, how many parts of the parameters are updated separately. Without `lags` all shards receive every gradient
      at once, and their number makes no difference.
    delay: draws the training time of a child. A batch takes as long as the slowest of its m children. These times only
      decide which replica answers next in `simulated`.
    lags: for simulations, [S]: a shard receives each gradient only after this number of later gradients were sent. By
      default all shards receive a gradient at once, and a replica reads all shards at one version.

  Raises:
    ValueError: the children share weights, are parts of token sequences or depend on a record of earlier children; or a
      number is out of range, such as more shards than parameters.

  >>> import jax
  >>> from nas_jax import replicas, search, space
  >>> sp = space.choice_space({'width': ('16', '32', '64'), 'depth': ('2', '4')})
  >>> machine = replicas.build(search.ask_tell(sp, search.Config(m=2, controller_units=8)), replicas=3)
  >>> fleet = machine.init(jax.random.key(0))
  >>> batch = machine.ask(fleet, 1)
  >>> fleet, info = machine.tell(fleet, 1, batch, batch.tokens.sum(1))
  >>> batch.ids.tolist(), fleet.numbers.tolist(), int(fleet.step)
  ([2, 3], [0, 3, 2], 1)
  """
  if search.parts or search.shared or search.reserve:
    raise ValueError(
      'asynchronous replicas need children that train by themselves, whatever was trained before: take a synchronous '
      'search.'
    )
  if min(replicas, accumulate, shards) < 1:
    raise ValueError(f'replicas, accumulate and shards (={replicas, accumulate, shards}) must be at least 1.')
  if lags is not None and (len(lags) != shards or min(lags) < 0):
    raise ValueError(f'lags (={tuple(lags)}) must be one number of gradients, at least 0, for each of {shards} shards.')
  server = parameter_server.build(search, accumulate, shards, lags)

  def duration(state: SearchState, number: Array) -> Array:
    key = jax.random.fold_in(jax.random.fold_in(state.key, _CLOCK), number)
    return jax.vmap(delay)(jax.random.split(key, search.m)).max()

  def init(key: Key) -> Fleet:
    state, sums, late = server.init(search.init(key))
    held = jax.tree.map(lambda x: jnp.broadcast_to(x, (replicas, *x.shape)), server.read(state))
    nothing, numbers = jnp.zeros((replicas, shards), jnp.int32), jnp.arange(replicas, dtype=jnp.int32)
    ends = jax.vmap(lambda number: duration(state, number))(numbers)
    return Fleet(state, sums, nothing[0], nothing[0], late, held, nothing, numbers, ends)

  def own_state(fleet: Fleet, r: int | Array) -> SearchState:
    """Returns the state that a replica asks with; its step is the number of the batch."""
    return server.lend(fleet.server, jax.tree.map(lambda x: x[r], fleet.held))._replace(step=fleet.numbers[r])

  def turn(fleet: Fleet, r: int | Array) -> Turn:
    stale = jnp.mean((fleet.versions - fleet.seen[r]).astype(jnp.float32))
    return Turn(jnp.asarray(r, jnp.int32), fleet.step, fleet.ends[r], stale)

  states = jax.jit(lambda fleet, r: (own_state(fleet, r), turn(fleet, r)))

  def ask(fleet: Fleet, r: int | Array) -> Batch:
    state, extra = states(fleet, r)
    return search.ask(state)._replace(extra=extra)

  def answer(fleet: Fleet, r: int | Array, batch: Batch, outcome: Outcome) -> tuple[Fleet, Info]:
    after, info = server.take(fleet, own_state(fleet, r), batch, outcome)
    number = fleet.step + replicas
    return after._replace(
      held=jax.tree.map(lambda every, now: every.at[r].set(now), fleet.held, server.read(after.server)),
      seen=fleet.seen.at[r].set(after.versions),
      numbers=fleet.numbers.at[r].set(number),
      ends=fleet.ends.at[r].add(duration(fleet.server, number)),
    ), info | {'staleness': turn(fleet, r).staleness}

  compiled = jax.jit(answer)

  def tell(fleet: Fleet, r: int | Array, batch: Batch, outcome: Outcome) -> tuple[Fleet, Info]:
    if int(batch.ids[0]) != int(fleet.numbers[r]) * search.m:
      return fleet, {}  # the replica works on another batch now: this one has been counted
    return compiled(
      fleet, r, batch._replace(extra=()), outcomes.as_outcome(search.space, batch, outcome)._replace(metrics=())
    )

  def children(fleet: Fleet) -> list[int]:
    under_way = set(fleet.numbers.tolist())
    numbers = [number for number in range(int(fleet.step) + replicas) if number not in under_way]
    return [number * search.m + k for number in numbers for k in range(search.m)]

  view = jax.jit(lambda fleet: server.lend(fleet.server, server.read(fleet.server)))
  return Replicas(search, replicas, jax.jit(init), ask, tell, compiled, jax.jit(turn), view, children)


def simulated(machine: Replicas) -> Search:
  """Returns a search whose state is a `Fleet`: the next answer is that of the replica whose training ends first.

  Training times are drawn from the seed, so the search is deterministic. It runs like any other search. With rewards
  from a table, `search.run_seeds` runs it for many seeds in one program. The metrics of a child include its `Turn`.
  """
  search = machine.search

  def ask(fleet: Any) -> Batch:
    return machine.ask(fleet, jnp.argmin(fleet.ends))

  def evaluate(batch: Batch) -> Outcome:
    outcome = search.evaluate(batch._replace(extra=()))
    return noted(outcome, batch.extra._asdict()) if batch.extra else outcome

  def tell(fleet: Any, batch: Batch, outcome: Outcome) -> tuple[Any, Info]:
    return machine.answer(fleet, batch.extra.replica, batch._replace(extra=()), outcome)

  def policy_summary(fleet: Any, keys: Key) -> tuple[Array, Array]:
    return search.policy_summary(machine.view(fleet), keys)

  init: Any = machine.init
  return search._replace(
    init=init,
    ask=ask,
    evaluate=evaluate,
    tell=tell,
    gradient=None,
    apply=None,
    policy_summary=policy_summary,
    replicas=machine,
  )


def noted(outcome: Outcome, numbers: Mapping[str, Array]) -> Outcome:
  """Returns the outcome with `numbers` added to its metrics. Each number is the same for all children."""
  m = len(outcome.reward)
  return outcome._replace(
    metrics={**(outcome.metrics or {}), **{name: jnp.broadcast_to(value, m) for name, value in numbers.items()}}
  )


def build_search(space: Space, cfg: Any, evaluate: Evaluate) -> Search:
  """Returns the search that a config with the fields of `Config` describes.

  The search is made by `search.build` if `cfg.replicas` is 0, else by `simulated`.

  Raises:
    ValueError: as `check` and `search.build`.
  """
  check(space, cfg)
  search = core.build(space, cfg, evaluate)
  return simulated(build(search, cfg.replicas, cfg.accumulate, cfg.shards)) if cfg.replicas else search
