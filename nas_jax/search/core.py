"""The search: ask for children, evaluate them, tell the controller.

`ask`, `tell`, `gradient` and `apply` are pure functions of the state, which holds everything that decides the future.
Only `evaluate` may take its time, and only `run` loops.
"""

from collections.abc import Callable, Mapping, Sequence
import math
import time
from typing import Any, NamedTuple
import warnings

import jax
import jax.numpy as jnp
import optax

from nas_jax import config
from nas_jax.controller import Controller, lstm_controller, policy_summary, uniform_controller
from nas_jax.search import journal
from nas_jax.search import state as state_lib
from nas_jax.search.algorithms import reinforce
from nas_jax.search.state import Best, Config, SearchState
from nas_jax.space import Space
from nas_jax.training import fit
from nas_jax.types import Array, Batch, Key, Outcome, PyTree


class Parts(NamedTuple):
  """How strings become the children that are trained, where these are not the same: their prefixes, say."""

  split: Callable[[Batch], list[Batch]]  # strings -> children, in groups that are trained one after another
  train: Callable[[Batch], Outcome]  # a group of children -> a reward each
  join: Callable[[Batch, list[Batch], list[Outcome]], Outcome]  # the outcome of the strings
  spent: Callable[[SearchState], int]  # children so far
  exhausted: Callable[[SearchState], bool]  # whether there is nothing left to train
  grow: Callable[[SearchState, int], SearchState]  # as `Search.sized`
  export: Callable[[SearchState], str]  # what is remembered, as JSON


class Search(NamedTuple):
  """A search as functions. `tell` is `apply` after `gradient`, kept apart for replicas that share a controller."""

  space: Space
  controller: Controller
  m: int
  init: Callable[[Key], SearchState]
  ask: Callable[[SearchState], Batch]  # pure: the same state asks for the same children
  evaluate: Callable[[Batch], Outcome]
  tell: Callable[[SearchState, Batch, Outcome], tuple[SearchState, dict[str, Array]]]
  gradient: Callable[[SearchState, Batch, Outcome], PyTree]
  apply: Callable[[SearchState, PyTree, Batch, Outcome], tuple[SearchState, dict[str, Array]]]
  policy_summary: Callable[
    [SearchState, Key], tuple[Array, Array]
  ]  # the controller's entropy and probabilities, to look at
  parts: Parts | None = None  # None: each string is a child
  shared: bool = False  # whether children share weights, so that none can be scored but in its turn

  @property
  def train(self) -> Callable[[Batch], Outcome]:
    """What scores architectures, whatever the search makes of the scores."""
    return self.parts.train if self.parts else self.evaluate

  def spent(self, state: SearchState) -> int:
    """Children so far, which is also the id of the next."""
    return self.parts.spent(state) if self.parts else int(state.step) * self.m

  def over(self, state: SearchState, children: int) -> bool:
    """Whether a budget is spent, or there is nothing left to train."""
    return self.spent(state) >= children or (self.parts is not None and self.parts.exhausted(state))

  def sized(self, state: SearchState, step: int) -> SearchState:
    """The state with the room that it has after so many updates."""
    return self.parts.grow(state, step) if self.parts else state


def check(space: Space, cfg: Config) -> None:
  """Raises ValueError, naming the field, as `config.check`, and if the first children are deeper than the space."""
  config.check(cfg)
  if cfg.depth_start > space.layers:
    raise ValueError(
      f'depth_start (={cfg.depth_start}) is more than max_depth (={space.layers}): the first children must not be '
      'deeper than the deepest.'
    )


def build(
  space: Space,
  cfg: Config,
  evaluate: Callable[[Batch], Outcome],
  credit: state_lib.Credit = lambda state, batch, value: value,
  remember: state_lib.Remember = lambda state, batch, outcome: state,
) -> Search:
  """A search over `space`.

  Args:
    space: of the children.
    cfg: the controller and its update.
    evaluate: scores children, with one reward each or one for each of their layers.
    credit: what children, or their layers, are credited with, from their advantages.
    remember: the state with what is kept of an outcome beside the update: its `replay`, its `children`.

  Raises:
    ValueError: as `check`.
  """
  check(space, cfg)
  if cfg.algorithm == 'random':
    controller = uniform_controller(space)
  else:
    shape = cfg.controller_units, cfg.controller_layers, cfg.controller_init
    controller = lstm_controller(space, *shape, cfg.controller_temperature, cfg.controller_tanh)
  clip = [optax.clip_by_global_norm(cfg.controller_clip)] if cfg.controller_clip else []
  optimizer = optax.chain(*clip, optax.adam(cfg.controller_lr, b1=cfg.controller_beta1, eps=cfg.controller_epsilon))
  gradient, apply = state_lib.build(space, cfg, controller, optimizer, credit, remember)

  def init(key: Key) -> SearchState:
    run_key, theta_key = jax.random.split(key)
    theta = controller.init(theta_key)
    step = jnp.zeros((), jnp.int32)
    nothing = Best(jnp.asarray(-jnp.inf, jnp.float32), step - 1, jnp.zeros(space.length, jnp.int32), step)
    return SearchState(step, run_key, theta, optimizer.init(theta), reinforce.init_baseline(), nothing)

  def ask(state: SearchState, depth: int | None = None) -> Batch:
    ids, sample_keys, child_keys = identify(state, cfg.m)
    tokens = jax.vmap(lambda key: controller.sample(state.theta, key, depth))(sample_keys)
    return Batch(ids, child_keys, tokens, space.decode_batch(tokens, depth), depth)

  def tell(state: SearchState, batch: Batch, outcome: Outcome):
    return apply(state, gradient(state, batch, outcome), batch, outcome)

  asked = jax.jit(ask, static_argnums=1)  # depth decides the shapes of an architecture: a program for each
  return Search(
    space,
    controller,
    cfg.m,
    init=jax.jit(init),
    ask=(lambda state: asked(state, int(depth_of(cfg, space, int(state.step) * cfg.m)))) if cfg.depth_start else asked,
    evaluate=evaluate,
    tell=jax.jit(tell),
    gradient=jax.jit(gradient),
    apply=jax.jit(apply),
    policy_summary=jax.jit(lambda state, keys: policy_summary(controller, state.theta, keys)),
  )


def identify(state: SearchState, m: int) -> tuple[Array, Key, Key]:
  """Ids of the m strings of the next step, and for each a key to sample it with and one for its child."""
  # fold_in, not split(key, m): a child's key must not depend on how many siblings it has.
  step_key = jax.random.fold_in(state.key, state.step)
  keys = jax.vmap(lambda k: jax.random.split(jax.random.fold_in(step_key, k)))(jnp.arange(m))
  return state.step * m + jnp.arange(m, dtype=jnp.int32), keys[:, 0], keys[:, 1]


def depth_of(cfg: Config, space: Space, children: int | Array) -> Array:
  """The layers of the next child after so many: `depth_step` more every `depth_every` children, Sec. 4.1."""
  grown = cfg.depth_start + cfg.depth_step * (children // cfg.depth_every)
  return jnp.minimum(space.layers, grown if cfg.depth_start else space.layers)


def ask_tell(space: Space, cfg: Config) -> Search:
  """A search without an evaluator, to drive training code of one's own:

  s = ask_tell(space, Config(m=4)); state = s.init(key)
  batch = s.ask(state)
  rewards = [train(space.decode(tokens)) for tokens in batch.tokens]
  state, info = s.tell(state, batch, Outcome(jnp.asarray(rewards)))
  """

  def evaluate(batch: Batch) -> Outcome:
    raise ValueError('this search has no evaluator: score the children of `ask` yourself and give them to `tell`.')

  return build(space, cfg, evaluate)


class Hook(NamedTuple):
  """What a loop reports to. Only hooks write files; nothing a hook does changes the search."""

  children: Callable[[list[journal.Record]], None] = lambda records: None  # as soon as children are scored
  step: Callable[[SearchState, Mapping[str, Any]], None] = lambda state, info: None  # after each update
  vital: bool = False  # whether the search stops if it fails (the journal) or goes on with a warning (a progress bar)


class Budget(NamedTuple):
  """When to stop; the step that reaches it is finished."""

  children: int
  seconds: float = math.inf  # of evaluating, by the journal
  reward: float = math.inf  # of the best child


def run(
  search: Search,
  state: SearchState,
  hooks: Sequence[Hook],
  budget: Budget,
  known: Mapping[int, journal.Record] | None = None,
) -> SearchState:
  """The loop: ask, evaluate, tell, until the budget is spent.

  Args:
    search: what to run.
    state: fresh from `init`, or restored.
    hooks: told of children and steps, in order.
    budget: children in all, those before `state` included.
    known: a journal by child id. `ask` is pure, so a search that was cut off asks for the same children again, and
      groups that stand in the journal are not trained a second time. A group of which only some do is evaluated
      again, all of it: fewer children would be another program, and other bits.

  Raises:
    ValueError: the journal is of another search: the same id with other tokens.
  """
  known = known or {}
  seconds = sum(line['seconds'] for line in known.values())

  def evaluated(batch: Batch) -> Outcome:
    nonlocal seconds
    outcome, fresh = _evaluated(search, batch, known)
    _call(hooks, 'children', fresh)
    seconds += sum(line['seconds'] for line in fresh)
    return outcome

  while not (
    search.over(state, budget.children) or seconds >= budget.seconds or float(state.best.reward) >= budget.reward
  ):
    batch = search.ask(state)
    if search.parts:
      groups = search.parts.split(batch)
      outcome = search.parts.join(batch, groups, [evaluated(group) for group in groups])
    else:
      outcome = evaluated(batch)
    state, info = search.tell(state, batch, outcome)
    state = search.sized(state, int(state.step))
    _call(hooks, 'step', state, {name: float(value) for name, value in info.items()})
  return state


def _evaluated(
  search: Search, batch: Batch, known: Mapping[int, journal.Record]
) -> tuple[Outcome, list[journal.Record]]:
  """The outcome of children, and records of those that are not journalled yet."""
  ids = batch.ids.tolist()
  seen = [known[number] for number in ids if number in known]
  journal.agree(seen, batch)
  if len(seen) == len(ids) and not search.shared:
    return journal.outcome(seen), []
  start = time.perf_counter()
  outcome = search.train(batch)
  fresh = journal.records(batch, outcome, time.perf_counter() - start)
  return outcome, [line for line in fresh if line['id'] not in known]


def _call(hooks: Sequence[Hook], name: str, *args: Any) -> None:
  for hook in hooks:
    try:
      getattr(hook, name)(*args)
    except Exception as error:
      if hook.vital:
        raise
      warnings.warn(f'a {name} hook failed, the search goes on: {type(error).__name__}: {error}', stacklevel=2)


def run_seeds(search: Search, keys: Key, steps: int) -> tuple[SearchState, Any]:
  """Whole searches with a jittable evaluator, one for each of `keys` [n], in one program over all local devices.

  Returns:
    The final states, and (tokens [n, steps, m, T], outcomes) of all children; leading axis n.
  """

  def one(_, key):
    def step(state, _):
      batch = search.ask(state)
      outcome = search.evaluate(batch)
      state, _ = search.tell(state, batch, outcome)
      return state, (batch.tokens, outcome)

    return jax.lax.scan(step, search.init(key), length=steps)

  # On a CPU one after another: the weights of all controllers at once are more than its caches hold.
  mesh = fit.child_mesh()
  found = fit.over_children(one, mesh)((), fit.filled(keys, mesh))
  return jax.tree.map(lambda x: x[: len(keys)], found)
