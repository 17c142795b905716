"""A search as pure functions of its state: ask for children, evaluate them, tell their rewards.

Only `evaluate` takes long or may depend on the machine. `search.run` calls the functions in turn.
"""

from collections.abc import Callable, Sequence
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from nas_jax import config
from nas_jax.search import algorithms, history, memory
from nas_jax.search.algorithms.base import Algorithm, layers_exist
from nas_jax.search.outcomes import as_outcome, best_of, settle
from nas_jax.search.state import Best, Config, SearchState
from nas_jax.space import Space
from nas_jax.types import Array, Batch, Evaluate, Info, Key, Outcome, PyTree


class Parts(NamedTuple):
  """The functions of a search whose children are parts of the proposed token sequences, such as prefixes.

  The search splits a batch of token sequences into groups of children, trains one group after the other, and joins the
  outcomes of the groups to the outcome of the batch.
  """

  split: Callable[[Batch], list[Batch]]  # token sequences -> the groups of children that must be trained
  train: Evaluate  # scores a group of children, with one reward each
  join: Callable[[Batch, list[Batch], list[Outcome]], Outcome]  # (sequences, groups, their outcomes) -> outcome
  spent: Callable[[SearchState], int]  # children trained so far
  exhausted: Callable[[SearchState], bool]  # whether the search has stopped proposing anything new
  grow: Callable[[SearchState, int], SearchState]  # as `Search.sized`
  export: Callable[[SearchState], str]  # what is remembered of earlier children, as JSON


class Update(NamedTuple):
  """The result of one of the updates that one program call makes."""

  state: SearchState  # after the update
  batch: Batch  # only ids and token sequences
  outcome: Outcome
  info: Info


class Search(NamedTuple):
  """A search as functions.

  `gradient` and `apply` are the two halves of `tell`, for replicas that compute gradients at parameters of their own.
  They are None if the algorithm follows no gradient.
  """

  space: Space
  algorithm: Algorithm
  m: int  # token sequences in a batch
  init: Callable[[Key], SearchState]
  ask: Callable[[SearchState], Batch]  # pure: the same state asks for the same children
  evaluate: Evaluate
  tell: Callable[[SearchState, Batch, Outcome], tuple[SearchState, Info]]
  gradient: Callable[[SearchState, Batch, Outcome], PyTree] | None
  apply: Callable[[SearchState, PyTree, Batch, Outcome], tuple[SearchState, Info]] | None
  policy_summary: Callable[[SearchState, Key], tuple[Array, Array]]  # for reports: `Algorithm.summary`
  # (state, batch) -> the state in which the batch is reserved: it will be told later, and the next `ask` asks for other
  # children. Batches may be told in any order. None if the search has no record of its children.
  reserve: Callable[[SearchState, Batch], SearchState] | None = None
  parts: Parts | None = None  # None if every token sequence is one child
  shared: bool = False  # whether children share weights, so that a reward depends on all that came before
  replicas: Any = None  # `nas_jax.replicas.Replicas`, if the state is a `Fleet` of them
  told: int = 0  # number of known children that the search was told of when it began, see `search.start`
  # (state, n) -> the next updates, at least one and at most n, all in one program call; None if each update needs the
  # host. Up to rounding, these updates equal those that `ask`, `evaluate` and `tell` make.
  updates: Callable[[SearchState, int], list[Update]] | None = None
  before_deeper: int | None = None  # as `before_deeper` returns it

  @property
  def train(self) -> Evaluate:
    """The function that trains and scores architectures: `parts.train` if the search has parts, else `evaluate`."""
    return self.parts.train if self.parts else self.evaluate

  def spent(self, state: SearchState) -> int:
    """Returns the number of children so far. Without replicas this is also the id of the next child."""
    return self.parts.spent(state) if self.parts else int(state.step) * self.m

  def children(self, state: SearchState) -> Sequence[int]:
    """Returns the ids of the children so far, in rising order. With replicas some smaller ids may be missing."""
    return self.replicas.children(state) if self.replicas else range(self.spent(state))

  def over(self, state: SearchState, children: int) -> bool:
    """Returns whether a budget of `children` is spent, or the search has stopped proposing anything new."""
    return self.spent(state) >= children or (self.parts is not None and self.parts.exhausted(state))

  def sized(self, state: SearchState, step: int) -> SearchState:
    """Returns the state with its arrays grown to the sizes that they have after `step` updates.

    Batches that are reserved count as updates. `tell`, `apply` and `reserve` grow the record of children by themselves
    unless they are traced. Call this function before the first update of a search that runs within one program, and
    after each `tell` of a search with `parts`.
    """
    if self.parts:
      return self.parts.grow(state, step)
    if self.replicas:
      return state
    return memory.grow(state, self.told + (step + 1) * self.m)


def check(space: Space, cfg: Config) -> None:
  """Raises ValueError if a setting is out of range or `depth_start` exceeds the layers of the space."""
  config.check(cfg)
  if cfg.depth_start > space.layers:
    raise ValueError(
      f'depth_start (={cfg.depth_start}) is more than max_depth (={space.layers}): the first children must not be '
      'deeper than the deepest.'
    )


def build(
  space: Space,
  cfg: Config,
  evaluate: Callable[[Batch], Outcome | ArrayLike | Sequence[float]],
  credit: Callable[[SearchState, Batch, Array], Array] = lambda state, batch, value: value,
  remember: Callable[[SearchState, Batch, Outcome], SearchState] = lambda state, batch, outcome: state,
) -> Search:
  """Returns a search over `space`.

  Args:
    space: the space of the children.
    cfg: the algorithm and its settings, the size of a batch, the schedule of depths.
    evaluate: trains and scores children, with one reward for each child or for each of its layers. It may return only
      the rewards, such as a list of numbers, see `outcomes.as_outcome`.
    credit: maps the advantages of a batch, [m] or [m, L], to the credits of its layers.
    remember: returns the state with `children` and `replay` set from an outcome. The state that it
      gets has the algorithm's part from before the update.

  Raises:
    ValueError: as `check`.

  >>> import jax
  >>> from nas_jax import search, space
  >>> sp = space.choice_space({'width': ('16', '32', '64'), 'depth': ('2', '4')})
  >>> s = search.build(sp, search.Config(m=4, algorithm='random'), lambda batch: batch.tokens.sum(1))
  >>> state = s.init(jax.random.key(0))
  >>> batch = s.ask(state)
  >>> state, info = s.tell(state, batch, s.evaluate(batch))
  >>> s.spent(state), bool(state.best.reward == batch.tokens.sum(1).max())
  (4, True)
  """
  check(space, cfg)
  algorithm = algorithms.build(space, cfg)
  record = memory.build(space, cfg, algorithm.propose)

  def init(key: Key) -> SearchState:
    if key.dtype == jnp.uint32:  # made by jax.random.PRNGKey
      key = jax.random.wrap_key_data(key)
    run_key, own_key = jax.random.split(key)
    step = jnp.zeros((), jnp.int32)
    infinite = jnp.asarray(jnp.inf, jnp.float32)
    # float is float64 under x64: so are the rewards of most evaluators, and the type must not change
    nothing = Best(-infinite.astype(float), step - 1, jnp.zeros(space.length, jnp.int32), step)
    return s.sized(record.begin(SearchState(step, run_key, algorithm.init(own_key), nothing, infinite)), 0)

  def ask(state: SearchState, depth: int | None = None) -> Batch:
    ids, own_keys, child_keys = identify(state, cfg.m)
    tokens, repeats = record.propose(state, own_keys, ids, depth)
    return Batch(ids, child_keys, tokens, space.decode_batch(tokens, depth), depth, repeats=repeats)

  def scored(batch: Batch) -> Outcome:
    given = evaluate(batch)
    return given if isinstance(given, Outcome) else as_outcome(space, batch, given)

  def tell(state: SearchState, batch: Batch, outcome: Outcome) -> tuple[SearchState, Info]:
    return after(state, batch, outcome, *algorithm.update(state.algorithm, batch, *earned(state, batch, outcome)))

  def gradient(own: Callable[..., PyTree], state: SearchState, batch: Batch, outcome: Outcome) -> PyTree:
    return own(state.algorithm, batch, *earned(state, batch, outcome))

  def apply(own: Callable[..., tuple[PyTree, Info]], state: SearchState, grads: PyTree, batch: Batch, outcome: Outcome):
    return after(state, batch, outcome, *own(state.algorithm, grads, batch, *earned(state, batch, outcome)))

  def earned(state: SearchState, batch: Batch, outcome: Outcome) -> tuple[Outcome, Callable[[Array], Array]]:
    """Returns what an algorithm learns from: the settled outcome, and the function that assigns credit to layers."""
    return settle(state.worst, batch, history.fill(batch, outcome))[0], functools.partial(credit, state, batch)

  def after(state: SearchState, batch: Batch, outcome: Outcome, kept: PyTree, info: Info) -> tuple[SearchState, Info]:
    settled, worst = settle(state.worst, batch, history.fill(batch, outcome))
    state = record.tell(state, batch, settled)
    if batch.repeats is not None:
      info |= {'repeats': batch.repeats.known.sum()}
    found = best_of(space, batch, settled)
    better = found.reward > state.best.reward
    best = jax.tree.map(lambda new, old: jnp.where(better, new, old), found, state.best)
    state = remember(state, batch, settled)._replace(step=state.step + 1, algorithm=kept, best=best, worst=worst)
    return state, {'reward': jnp.mean(settled.reward, where=layers_exist(batch, settled.reward))} | info

  def checked(compiled: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a function that checks the outcome, its last argument after the batch, and then calls `compiled`."""
    return lambda *args: compiled(*args[:-1], as_outcome(space, args[-2], args[-1]))

  def growing(compiled: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a function that calls `compiled` and makes room for the next batch in the state that results."""

    def grown(state: SearchState, *args: Any) -> Any:
      found = compiled(state, *args)
      if not record.reserve or isinstance(state.step, jax.core.Tracer):
        return found
      size = functools.partial(s.sized, step=int(memory.batches(state)) + 1)
      return size(found) if isinstance(found, SearchState) else (size(found[0]), *found[1:])

    return grown

  def growing_deeper(state: SearchState) -> Batch:
    return asked(state, int(depth_of(cfg, space, int(memory.batches(state)) * cfg.m)))

  asked = jax.jit(ask, static_argnums=1)  # the depth decides the shapes of architectures: one program for each
  s = Search(
    space,
    algorithm,
    cfg.m,
    init=jax.jit(init),
    ask=growing_deeper if cfg.depth_start else asked,
    evaluate=record.reusing(scored),
    tell=growing(checked(jax.jit(tell))),
    gradient=checked(jax.jit(functools.partial(gradient, algorithm.gradient))) if algorithm.gradient else None,
    apply=growing(checked(jax.jit(functools.partial(apply, algorithm.apply)))) if algorithm.apply else None,
    policy_summary=jax.jit(lambda state, keys: algorithm.summary(state.algorithm, keys)),
    reserve=growing(jax.jit(record.reserve)) if record.reserve else None,
    before_deeper=before_deeper(cfg, space),
  )
  return s


def identify(state: SearchState, m: int) -> tuple[Array, Key, Key]:
  """Returns the ids [m] of the next token sequences, keys [m] to sample them, and keys [m] for their children."""
  # fold_in, not split(key, m): the key of a child must not depend on how many siblings it has.
  number = memory.batches(state)
  step_key = jax.random.fold_in(state.key, number)
  keys = jax.vmap(lambda k: jax.random.split(jax.random.fold_in(step_key, k)))(jnp.arange(m))
  return number * m + jnp.arange(m, dtype=jnp.int32), keys[:, 0], keys[:, 1]


def depth_of(cfg: Config, space: Space, children: int | Array) -> Array:
  """Returns the depth of the next child after `children` children.

  The depth grows from `depth_start` by `depth_step` every `depth_every` children, up to the layers of the space
  (Sec. 4.1). If `depth_start` is 0, all children have the layers of the space.
  """
  grown = cfg.depth_start + cfg.depth_step * (children // cfg.depth_every)
  return jnp.minimum(space.layers, grown if cfg.depth_start else space.layers)


def before_deeper(cfg: Config, space: Space) -> int | None:
  """Returns how many children have the depth of the first ones; None if all have it. A batch has one depth."""
  grows = 0 < cfg.depth_start < space.layers
  return -(-cfg.depth_every // cfg.m) * cfg.m if grows else None


def ask_tell(space: Space, cfg: Config) -> Search:
  """Returns a search without an evaluator, for training code of your own.

  `tell` takes an `Outcome` or only the rewards, one for each child. The reward of a child that failed is NaN.

  Raises:
    ValueError: as `check`. `tell` raises the errors of `outcomes.as_outcome`.

  >>> import jax
  >>> from nas_jax import search, space
  >>> sp = space.choice_space({'width': ('16', '32', '64'), 'depth': ('2', '4')})
  >>> s = search.ask_tell(sp, search.Config(m=4, controller_units=8))
  >>> state = s.init(jax.random.key(0))
  >>> for _ in range(3):
  ...   batch = s.ask(state)
  ...   archs = [sp.decode(tokens) for tokens in batch.tokens]
  ...   rewards = [float(sum(arch.choice)) for arch in archs]  # train the architectures here
  ...   state, info = s.tell(state, batch, rewards)
  >>> best = sp.decode(state.best.tokens)
  >>> s.spent(state), bool(state.best.reward == sum(best.choice))
  (12, True)
  """

  def evaluate(batch: Batch) -> Outcome:
    raise ValueError('this search has no evaluator: score the children of `ask` yourself and give them to `tell`.')

  return build(space, cfg, evaluate)
