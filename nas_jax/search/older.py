"""Reads checkpoints in which the state of the algorithm was not yet one field of `SearchState`."""

from collections.abc import Callable
from typing import NamedTuple

from nas_jax.search.algorithms import reinforce
from nas_jax.search.algorithms.baseline import Baseline
from nas_jax.search.state import Best, SearchState
from nas_jax.types import Array, Key, PyTree


class FlatState(NamedTuple):
  """The state as it was: theta, opt_state and baseline stood beside each other, in random search too."""

  step: Array
  key: Key
  theta: PyTree
  opt_state: PyTree
  baseline: Baseline
  best: Best
  children: PyTree
  replay: PyTree


def layouts(state: SearchState) -> list[tuple[FlatState, Callable[[FlatState], SearchState]]]:
  """Returns the older layouts in which `state` may have been saved, each with the conversion to a `SearchState`."""
  kept = state.algorithm
  if isinstance(kept, reinforce.State):
    return [(_flat(state, *kept), lambda flat: _nested(flat, reinforce.State(*flat[2:5])))]
  if isinstance(kept, Baseline):  # random search, whose optimizer of no parameters counted its steps
    optimizers = [reinforce.make_optimizer(reinforce.Config(controller_clip=clip)) for clip in (0.0, 1.0)]
    flats = [_flat(state, (), optimizer.init(()), kept) for optimizer in optimizers]
    return [(flat, lambda flat: _nested(flat, flat.baseline)) for flat in flats]
  return []


def _flat(state: SearchState, theta: PyTree, opt_state: PyTree, baseline: Baseline) -> FlatState:
  return FlatState(state.step, state.key, theta, opt_state, baseline, state.best, state.children, state.replay)


def _nested(flat: FlatState, kept: PyTree) -> SearchState:
  return SearchState(flat.step, flat.key, kept, flat.best, flat.children, flat.replay)
