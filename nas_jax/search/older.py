"""Reads checkpoints of earlier versions, whose state had other fields."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from nas_jax.search.algorithms import reinforce
from nas_jax.search.algorithms.baseline import Baseline
from nas_jax.search.state import Best, SearchState
from nas_jax.types import Array, Key, PyTree


class WithoutHistory(NamedTuple):
  """The state before it could hold a record of all token sequences."""

  step: Array
  key: Key
  algorithm: PyTree
  best: Best
  worst: Array
  children: PyTree
  replay: PyTree


class WithoutWorst(NamedTuple):
  """The state before it held the worst reward."""

  step: Array
  key: Key
  algorithm: PyTree
  best: Best
  children: PyTree
  replay: PyTree


class FlatState(NamedTuple):
  """The oldest state, with theta, opt_state and baseline as separate fields, even in random search."""

  step: Array
  key: Key
  theta: PyTree
  opt_state: PyTree
  baseline: Baseline
  best: Best
  children: PyTree
  replay: PyTree


def layouts(state: Any) -> list[tuple[Any, Callable[[Any], SearchState]]]:
  """Returns the older layouts in which `state` may have been saved, each with the conversion to a `SearchState`.

  The state of replicas, a `Fleet`, has no older layouts.
  """
  if not isinstance(state, SearchState):
    return []
  kept = state.algorithm
  found: list[tuple[Any, Callable[[Any], SearchState]]] = [
    (WithoutHistory(*state[:7]), lambda old: SearchState(*old)),
    (
      WithoutWorst(state.step, state.key, kept, state.best, state.children, state.replay),
      lambda old: _nested(old, old.algorithm),
    ),
  ]
  if isinstance(kept, reinforce.State):
    found.append((_flat(state, *kept), lambda flat: _nested(flat, reinforce.State(*flat[2:5]))))
  if isinstance(kept, Baseline):  # random search, whose optimizer of no parameters counted its steps
    optimizers = [reinforce.make_optimizer(reinforce.Config(controller_clip=clip)) for clip in (0.0, 1.0)]
    flats = [_flat(state, (), optimizer.init(()), kept) for optimizer in optimizers]
    found += [(flat, lambda flat: _nested(flat, flat.baseline)) for flat in flats]
  return found


def _flat(state: SearchState, theta: PyTree, opt_state: PyTree, baseline: Baseline) -> FlatState:
  return FlatState(state.step, state.key, theta, opt_state, baseline, state.best, state.children, state.replay)


def _nested(old: WithoutWorst | FlatState, kept: PyTree) -> SearchState:
  # The worst reward was not saved. No system had negative rewards then, so failed children go on to earn 0.
  infinite = jnp.asarray(jnp.inf, jnp.float32)
  return SearchState(old.step, old.key, kept, old.best, infinite, old.children, old.replay)
