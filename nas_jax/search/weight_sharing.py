"""Children that share weights: Efficient Neural Architecture Search, Pham et al. (2018).

All children share one tree of weights, and an architecture selects a part of them. Two phases alternate. In the first,
`Programs.learn` trains the weights, each minibatch with freshly sampled children, while the controller stays fixed. In
the second the weights stay fixed: children are scored on a minibatch of the validation split, and the controller
learns from these scores. One program call makes many updates of the controller.
"""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nas_jax.config import field
from nas_jax.search import core, outcomes
from nas_jax.search import state as state_lib
from nas_jax.search.algorithms.base import Algorithm
from nas_jax.search.state import SearchState
from nas_jax.search.weight_sharing_phases import Programs, Score
from nas_jax.space import Space
from nas_jax.training import fit
from nas_jax.training.recovery import Limits
from nas_jax.types import Array, Batch, Key, Outcome, PyTree

Reward = Callable[[Any], Any]  # metrics [m] by name -> rewards [m]; takes NumPy arrays, or JAX arrays if traced
CALL_UPDATES = 50  # the most updates of the controller in one program call


@dataclasses.dataclass
class Config(Limits, state_lib.Config):
  """The settings of a search whose children share weights. The defaults are those of Pham et al."""

  passes: int = field(
    150, 'passes of the shared weights over the training data, each followed by controller_updates', low=1
  )
  pass_steps: int = field(
    0, 'minibatches in a pass, 0 for all of the data; 400 in the code of Pham et al. for text', low=0
  )
  controller_updates: int = field(2000, 'updates of the controller after each pass', low=1)
  shared_samples: int = field(
    1,
    'children that the loss of the shared weights is averaged over on each minibatch; M = 1 in Pham et al.',
    low=1,
    high=1000,
  )
  derive_children: int = field(
    10, 'architectures sampled after the search; the best of them is its result', low=1, high=10_000, budget=True
  )
  rank_children: int = field(
    30, 'random architectures trained by themselves after the search, 0 for none', low=0, high=10_000
  )
  max_children: int = field(
    0, 'architectures scored until the search ends, 0 for those of all passes', low=0, budget=True, first=True
  )

  @property
  def samples(self) -> int:
    """Returns the number of architectures that are scored to train the controller."""
    whole = self.passes * self.controller_updates * self.m
    return min(self.max_children or whole, whole)


class Turn(NamedTuple):
  """What the evaluator needs from the state."""

  algorithm: PyTree  # the state of the algorithm, to sample the children that the weights are trained with
  weights: fit.FitState


def build(
  space: Space, cfg: Config, programs: Programs, reward: Reward, check: Callable[[], None] = lambda: None
) -> core.Search:
  """Returns the search. Before every group of `controller_updates` updates, it trains the weights for one pass.

  The children of one update are scored with the shared weights on one minibatch, the same for all of them, and these
  scores go into the journal. They depend on all that came before, so a search that was interrupted evaluates the
  children after its last checkpoint again.

  Args:
    space: the space of the children.
    cfg: the algorithm and its settings, and how the phases alternate.
    programs: the phases, for children of that space.
    reward: maps metrics [m] to rewards. Its values for children that failed are not used.
    check: called between program calls; it may raise `recovery.Stopped`.

  Raises:
    ValueError: as `search.check`.
  """

  def remember(state: SearchState, batch: Batch, outcome: Outcome) -> SearchState:
    fresh = outcome.children  # () if the caller of `tell` has made up the rewards
    return state._replace(children=fresh) if isinstance(fresh, fit.FitState) else state

  def learned(weights: fit.FitState, kept: PyTree, key: Key, step: int) -> fit.FitState:
    """Returns the weights for an update, trained for another pass if one is due."""
    if step % cfg.controller_updates:
      return weights
    learn_key, sample_key = jax.random.split(jax.random.fold_in(key, 1))
    return programs.learn(weights, sample(kept, sample_key), learn_key, check)

  def evaluate(batch: Batch) -> Outcome:
    turn, key = batch.extra, batch.keys[0]
    weights = learned(turn.weights, turn.algorithm, key, int(batch.ids[0]) // cfg.m)
    found = programs.score(weights, batch.archs, jax.random.fold_in(key, 2))
    metrics = {name: np.asarray(value) for name, value in found.items()}
    rewards = np.asarray(earned(metrics, reward))
    return Outcome(
      jnp.asarray(rewards, jnp.float32), _described(metrics, weights), weights, jnp.asarray(_failed(metrics))
    )

  s = core.build(space, cfg, evaluate, remember=remember)

  @jax.jit
  def sample(kept: PyTree, key: Key) -> PyTree:
    keys = jax.random.split(key, (programs.steps, cfg.shared_samples))
    return space.decode_batch(jax.vmap(lambda some: s.algorithm.propose(kept, some, None))(keys))

  def init(key: Key) -> SearchState:
    return s.init(key)._replace(children=programs.init(jax.random.fold_in(key, 1)))

  # The weights bypass the controller's programs: passing hundreds of arrays through would take longer than an update.
  def ask(state: SearchState) -> Batch:
    return s.ask(state._replace(children=()))._replace(extra=Turn(state.algorithm, state.children))

  def tell(state: SearchState, batch: Batch, outcome: Outcome) -> tuple[SearchState, Any]:
    outcome = outcomes.as_outcome(space, batch, outcome)
    alone = state._replace(children=()), batch._replace(extra=()), outcome._replace(children=())
    told, info = s.tell(*alone)
    return remember(told._replace(children=state.children), batch, outcome), info

  def update(score: Score, state: SearchState) -> tuple[SearchState, PyTree]:
    batch = s.ask(state)
    metrics = score(batch.archs, jax.random.fold_in(batch.keys[0], 2))
    outcome = Outcome(earned(metrics, reward).astype(jnp.float32), failed=_failed(metrics))
    after, info = s.tell(state, batch, outcome)
    unkeyed = after._replace(key=none), batch._replace(keys=none, archs=())
    return after, (*unkeyed, outcome._replace(metrics=metrics), info)

  none: Any = ()  # takes the place of the key, which never changes and which NumPy cannot hold
  call_updates = min(CALL_UPDATES, cfg.controller_updates)
  made = programs.updates(update, call_updates)
  first_key = jax.jit(lambda state: core.identify(state, 1)[2][0])

  def updates(state: SearchState, most: int) -> list[core.Update]:
    # The state becomes NumPy arrays: they are cheap to slice, and states of all origins then share one program.
    step, alone = int(state.step), jax.device_get(state._replace(children=(), key=none))._replace(key=state.key)
    weights = learned(state.children, alone.algorithm, first_key(alone), step)
    count = min(most, call_updates, cfg.controller_updates - step % cfg.controller_updates)
    found = jax.device_get(made(weights, alone, count))
    return [_update(jax.tree.map(lambda x, k=k: x[k, ...], found), weights, state.key) for k in range(count)]

  together = None if cfg.depth_start else updates  # if depths change, so do the shapes
  return s._replace(init=init, ask=ask, tell=tell, shared=True, updates=together)


def _update(found: PyTree, weights: fit.FitState, key: Key) -> core.Update:
  """Returns one of the updates of a program; `found` has the results of this update."""
  state, batch, outcome, info = found
  outcome = outcome._replace(metrics=_described(outcome.metrics, weights), children=weights)
  return core.Update(state._replace(key=key, children=weights), batch, outcome, info)


def _described(metrics: dict[str, np.ndarray], weights: fit.FitState) -> dict[str, np.ndarray]:
  """Adds metrics of the shared weights: the loss of their last step, and the number of steps left out so far."""
  shape = metrics['failed'].shape
  return metrics | {'loss': np.full(shape, weights.loss), 'left_out': np.full(shape, weights.failed)}


def _failed(metrics: Mapping[str, Any]) -> Any:
  return metrics['failed'] != fit.Status.OK


class Derived(NamedTuple):
  """An architecture sampled after the search."""

  place: int  # its index among the sampled architectures
  tokens: np.ndarray  # [T]
  metrics: dict[str, float]  # with the shared weights, on the whole validation split
  reward: float  # of these metrics
  failed: str | None  # why it cannot be scored; None if it can


def derive(
  space: Space,
  algorithm: Algorithm,
  programs: Programs,
  state: SearchState,
  reward: Reward,
  key: Key,
  count: int,
  m: int,
) -> list[Derived]:
  """Samples `count` architectures and scores them with the shared weights, m at a time.

  Returns the architectures best first. Those that failed, because their metrics are not finite, come last.

  The paper scores the architectures on one minibatch of the validation split; here they are scored on all of it.
  """
  tokens = jax.jit(algorithm.propose, static_argnums=2)(state.algorithm, jax.random.split(key, count), None)
  metrics = score(space, programs, state, tokens, m)
  rewards, status = earned(metrics, reward), metrics.pop('failed')
  status = np.where(np.isfinite(rewards), status, fit.Status.NOT_FINITE)
  return [
    Derived(
      int(k),
      np.asarray(tokens[k]),
      {name: float(value[k]) for name, value in metrics.items()},
      float(rewards[k]),
      fit.Status(status[k]).reason or None,
    )
    for k in np.lexsort((-rewards, status != fit.Status.OK))
  ]


def earned(metrics: Mapping[str, Any], reward: Reward) -> Any:
  """Returns the rewards [m] of metrics [m], 0 for children that failed. The metrics may be traced."""
  where = jnp.where if isinstance(metrics['failed'], jax.Array) else np.where
  with np.errstate(all='ignore'):  # the metrics of a child that failed may be anything
    return where(_failed(metrics), 0.0, reward(metrics))  # type: ignore[arg-type]


def score(space: Space, programs: Programs, state: SearchState, tokens: Array, m: int) -> dict[str, np.ndarray]:
  """Scores token sequences [n, T] with the shared weights on the whole validation split, m at a time."""
  count, found = len(tokens), list[dict[str, np.ndarray]]()
  for start in range(0, count, m):
    some = tokens[jnp.arange(start, start + m) % count]  # the last group is filled up from the front
    found.append({k: np.asarray(v) for k, v in programs.score_all(state.children, space.decode_batch(some)).items()})
  return {name: np.concatenate([one[name] for one in found])[:count] for name in found[0]}
