"""How a search uses the record of its children: it trains no child twice, or lets a model guide its proposals.

See the settings `known` and `proposals`. The record is `SearchState.history`, and the model is `SearchState.guide`.
"""

from collections.abc import Callable
import functools
from typing import NamedTuple

from nas_jax.search import guide, history
from nas_jax.search.algorithms.base import Depth, Propose, depths
from nas_jax.search.state import Config, SearchState
from nas_jax.space import Space
from nas_jax.types import Array, Batch, Evaluate, Key, Outcome, Repeats


class Memory(NamedTuple):
  """The record of a search as functions of its state. Without a record `begin`, `tell` and `reusing` do nothing."""

  begin: Callable[[SearchState], SearchState]  # adds an empty record to a new state
  tell: Callable[[SearchState, Batch, Outcome], SearchState]  # adds the outcome of a batch to the record
  # (state, keys [m], ids [m], depth) -> the next token sequences, and which of them need no training
  propose: Callable[[SearchState, Key, Array, Depth], tuple[Array, Repeats | None]]
  reserve: Callable[[SearchState, Batch], SearchState] | None  # as `Search.reserve`
  reusing: Callable[[Evaluate], Evaluate]  # an evaluator that trains only what has to be trained


def build(space: Space, cfg: Config, propose: Propose) -> Memory:
  """Returns the functions of the record that `cfg` asks for.

  Args:
    space: the space of the children.
    cfg: its settings `known` and `proposals` say what the record is used for.
    propose: `propose` of the search algorithm.

  Raises:
    ValueError: `guide_mutations` exceeds `guide_draws`.
  """
  guided = cfg.proposals == 'guided'
  if cfg.guide_mutations > cfg.guide_draws:
    raise ValueError(
      f'guide_mutations (={cfg.guide_mutations}) must be at most guide_draws (={cfg.guide_draws}): a mutation takes '
      'new tokens from a proposal of its own.'
    )
  if not guided and cfg.known == 'train':
    return Memory(
      begin=lambda state: state,
      tell=lambda state, batch, outcome: state,
      propose=lambda state, keys, ids, depth: (propose(state.algorithm, keys, depth), None),
      reserve=None,
      reusing=lambda evaluate: evaluate,
    )

  def begin(state: SearchState) -> SearchState:
    return state._replace(history=history.empty(space.length), guide=guide.empty() if guided else ())

  def tell(state: SearchState, batch: Batch, outcome: Outcome) -> SearchState:
    state = state._replace(history=history.tell(space, state.history, batches(state) * cfg.m, batch, outcome))
    return state._replace(guide=guide.update(state.guide, state.history, cfg.m)) if guided else state

  def new(state: SearchState, keys: Key, ids: Array, depth: Depth) -> tuple[Array, Repeats | None]:
    layers = space.layers if depth is None else depth
    if guided:
      candidates = cfg.guide_draws, cfg.guide_mutations
      tokens = guide.propose(space, state.guide, state.history, propose, state.algorithm, keys, ids, depth, *candidates)
    elif cfg.known == 'avoid':
      is_known = functools.partial(history.are_known, state.history, depth=layers)
      tokens = history.draw_unseen(is_known, propose, state.algorithm, keys, depth)
    else:
      tokens = propose(state.algorithm, keys, depth)
    return tokens, None if cfg.known == 'train' else history.repeats(state.history, tokens, layers, ids)

  def reserve(state: SearchState, batch: Batch) -> SearchState:
    state = state._replace(history=history.reserve(space, state.history, batch))
    if not guided:
      return state
    model = guide.believe(state.guide, state.history, batch.tokens, depths(space, batch))
    return state._replace(guide=guide.update(model, state.history, cfg.m))

  return Memory(begin, tell, new, reserve, history.reusing)


def batches(state: SearchState) -> Array:
  """Returns the number of batches that have been told or are reserved."""
  return state.step + state.history.waiting if isinstance(state.history, history.History) else state.step


def grow(state: SearchState, children: int) -> SearchState:
  """Returns the state with room for `children` in its record and its model, if it has them."""
  if not isinstance(state.history, history.History):
    return state
  capacity = history.capacity_for(children)
  guided = isinstance(state.guide, guide.Guide)
  return state._replace(
    history=history.grow(state.history, capacity), guide=guide.grow(state.guide, capacity) if guided else ()
  )
