"""The search: ask for children, evaluate them, tell the controller.

`ask`, `tell`, `gradient` and `apply` are pure functions of the state, which holds everything that decides the future.
Only `evaluate` may take its time, and only `run` loops.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import time
from typing import Any, NamedTuple
import warnings

import jax
import jax.numpy as jnp
import optax

from nas_jax import config, journal, reinforce
from nas_jax.config import field
from nas_jax.controller import Controller, lstm_controller, survey, uniform_controller
from nas_jax.space import Space
from nas_jax.types import Array, Batch, Key, Outcome, PyTree


@dataclasses.dataclass
class Config:
  """What every search has: the controller and its update. The defaults are Zoph & Le's.

  On CIFAR-10 each of 100 replicas had 8 children and a rate of 6e-4, on Penn Treebank each of 400 had 1 and 5e-4.
  """

  algorithm: str = field('reinforce', 'what proposes children', choices=('reinforce', 'random'))
  seed: int = field(0, 'of the whole run', low=0)
  m: int = field(8, 'children per update; 8 a replica on CIFAR-10, Sec. 4.1', low=1)
  controller_units: int = field(35, 'width of each LSTM layer, Sec. 4.1', low=1)
  controller_layers: int = field(2, 'LSTM layers, Sec. 4.1', low=1)
  controller_init: float = field(0.08, 'weights start uniform within +-this, Sec. 4.1', above=0.0)
  controller_lr: float = field(5e-4, 'of Adam, Sec. 4.2', above=0.0)
  controller_clip: float = field(0.0, 'greatest norm of the gradient, 0 for none (the paper names none)', low=0.0)
  baseline_decay: float = field(0.95, 'of the moving average of rewards (the paper does not say)', low=0.0, high=1.0)
  normalize_advantage: bool = field(False, 'divide R - b by a moving root mean square of it; not in the paper')
  depth_start: int = field(0, 'layers of the first children, 0 for the deepest from the start; 6, Sec. 4.1', low=0)
  depth_step: int = field(2, 'layers more each time, Sec. 4.1', low=1)
  depth_every: int = field(1600, 'children until the next, Sec. 4.1', low=1)
  entropy_weight: float = field(0.0, 'of the entropy bonus, (normalized) reward per nat; 0 in the paper', low=0.0)


class Best(NamedTuple):
  """The best child so far."""

  reward: Array  # []; minus infinity before the first
  id: Array  # [] int32
  tokens: Array  # [T] int32
  depth: Array  # [] int32, layers


class SearchState(NamedTuple):
  """Everything that decides the future of a search."""

  step: Array  # [] int32, updates so far
  key: Key  # the run's key; steps and children fold their numbers into it
  theta: PyTree  # controller parameters
  opt_state: PyTree
  baseline: reinforce.Baseline
  best: Best
  children: PyTree = ()  # () from scratch, shared weights for ENAS


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
  survey: Callable[[SearchState, Key], tuple[Array, Array]]  # the controller's entropy and probabilities, to look at


def build(space: Space, cfg: Config, evaluate: Callable[[Batch], Outcome]) -> Search:
  """A search over `space` by `cfg` whose children are scored by `evaluate`. Raises ValueError as `config.check`."""
  config.check(cfg)
  if cfg.algorithm == 'random':
    controller = uniform_controller(space)
  else:
    controller = lstm_controller(space, cfg.controller_units, cfg.controller_layers, cfg.controller_init)
  clip = [optax.clip_by_global_norm(cfg.controller_clip)] if cfg.controller_clip else []
  optimizer = optax.chain(*clip, optax.adam(cfg.controller_lr))
  gradient, apply = _update(space, cfg, controller, optimizer)

  def init(key: Key) -> SearchState:
    run_key, theta_key = jax.random.split(key)
    theta = controller.init(theta_key)
    step = jnp.zeros((), jnp.int32)
    nothing = Best(jnp.asarray(-jnp.inf, jnp.float32), step - 1, jnp.zeros(space.length, jnp.int32), step)
    return SearchState(step, run_key, theta, optimizer.init(theta), reinforce.init_baseline(), nothing)

  def ask(state: SearchState, depth: int | None = None) -> Batch:
    # fold_in, not split(key, m): a child's key must not depend on how many siblings it has.
    step_key = jax.random.fold_in(state.key, state.step)
    keys = jax.vmap(lambda k: jax.random.split(jax.random.fold_in(step_key, k)))(jnp.arange(cfg.m))
    sample_keys, child_keys = keys[:, 0], keys[:, 1]
    tokens = jax.vmap(lambda key: controller.sample(state.theta, key, depth))(sample_keys)
    ids = state.step * cfg.m + jnp.arange(cfg.m, dtype=jnp.int32)
    return Batch(ids, child_keys, tokens, space.decode_batch(tokens, depth), depth)

  def tell(state: SearchState, batch: Batch, outcome: Outcome):
    return apply(state, gradient(state, batch, outcome), batch, outcome)

  asked = jax.jit(ask, static_argnums=1)  # depth decides the shapes of an architecture: a program for each
  return Search(
    space,
    controller,
    cfg.m,
    init=jax.jit(init),
    ask=(lambda state: asked(state, depth_of(cfg, space, int(state.step) * cfg.m))) if cfg.depth_start else asked,
    evaluate=evaluate,
    tell=jax.jit(tell),
    gradient=jax.jit(gradient),
    apply=jax.jit(apply),
    survey=jax.jit(lambda state, keys: survey(space, controller, state.theta, keys)),
  )


def depth_of(cfg: Config, space: Space, children: int) -> int:
  """The layers of the next child after so many: `depth_step` more every `depth_every` children, Sec. 4.1."""
  return min(space.layers, cfg.depth_start + cfg.depth_step * (children // cfg.depth_every))


def _update(space: Space, cfg: Config, controller: Controller, optimizer: optax.GradientTransformation):
  """`gradient` and `apply` of a search."""
  layer_of_token = space.layer_of_token()

  def earned(outcome: Outcome) -> Array:
    return jnp.where(jnp.isfinite(outcome.reward), outcome.reward, 0.0)

  def advantage(state: SearchState, reward: Array) -> tuple[Array, reinforce.Baseline]:
    return reinforce.advantage(state.baseline, reward, cfg.baseline_decay, cfg.normalize_advantage)

  def gradient(state: SearchState, batch: Batch, outcome: Outcome) -> PyTree:
    value, _ = advantage(state, earned(outcome))

    def objective(theta):
      log_prob = jax.vmap(lambda tokens: controller.log_prob(theta, tokens, batch.depth))(batch.tokens)
      loss = reinforce.loss(log_prob, reinforce.credit(value, layer_of_token))
      if cfg.entropy_weight:
        entropy = jax.vmap(lambda tokens: controller.entropy(theta, tokens, batch.depth))(batch.tokens)
        loss -= cfg.entropy_weight * entropy.sum(1).mean()
      return loss

    return jax.grad(objective)(state.theta)

  def apply(state: SearchState, grads: PyTree, batch: Batch, outcome: Outcome):
    reward = earned(outcome)
    value, baseline = advantage(state, reward)
    updates, opt_state = optimizer.update(grads, state.opt_state)
    total = reward if reward.ndim == 1 else reward.max(1)
    first = jnp.argmax(total)
    depth = jnp.asarray(space.layers if batch.depth is None else batch.depth, jnp.int32)
    found = Best(total[first], batch.ids[first], batch.tokens[first], depth)
    better = found.reward > state.best.reward
    best = jax.tree.map(lambda new, old: jnp.where(better, new, old), found, state.best)
    info = {
      'reward': total.mean(),
      'baseline': baseline.value,
      'advantage': jnp.abs(value).mean(),
      'gradient_norm': optax.tree.norm(grads) if cfg.algorithm != 'random' else jnp.zeros(()),
    }
    state = state._replace(
      step=state.step + 1,
      theta=optax.apply_updates(state.theta, updates),
      opt_state=opt_state,
      baseline=baseline,
      best=best,
    )
    return state, info

  return gradient, apply


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
      those who stand in the journal are not trained a second time.

  Raises:
    ValueError: the journal is of another search: the same id with other tokens.
  """
  known = known or {}
  while int(state.step) * search.m < budget.children:
    batch = search.ask(state)
    missing = [k for k, number in enumerate(batch.ids.tolist()) if number not in known]
    if missing:
      start, some = time.perf_counter(), _take(batch, missing)
      outcome = search.evaluate(some)
      fresh = journal.records(some, outcome, time.perf_counter() - start)
      _call(hooks, 'children', fresh)
    if len(missing) < search.m:
      lines = {line['id']: line for line in fresh} if missing else {}
      outcome = journal.outcome([lines.get(number) or known[number] for number in batch.ids.tolist()], batch)
    state, info = search.tell(state, batch, outcome)
    _call(hooks, 'step', state, {name: float(value) for name, value in info.items()})
  return state


def _take(batch: Batch, places: Sequence[int]) -> Batch:
  """Some of the children; what all of them share stays."""
  at = jnp.asarray(places)
  shared = {'depth': batch.depth, 'extra': batch.extra}
  return jax.tree.map(lambda x: x[at], batch._replace(depth=None, extra=()))._replace(**shared)


def _call(hooks: Sequence[Hook], name: str, *args: Any) -> None:
  for hook in hooks:
    try:
      getattr(hook, name)(*args)
    except Exception as error:
      if hook.vital:
        raise
      warnings.warn(f'a {name} hook failed, the search goes on: {type(error).__name__}: {error}', stacklevel=2)


def run_seeds(search: Search, keys: Key, steps: int) -> tuple[SearchState, Any]:
  """Whole searches with a jittable evaluator, one for each of `keys` [n], in one program.

  Returns:
    The final states, and (tokens [n, steps, m, T], outcomes) of all children; leading axis n.
  """

  def one(key):
    def step(state, _):
      batch = search.ask(state)
      outcome = search.evaluate(batch)
      state, _ = search.tell(state, batch, outcome)
      return state, (batch.tokens, outcome)

    return jax.lax.scan(step, search.init(key), length=steps)

  return jax.jit(jax.vmap(one))(keys)
