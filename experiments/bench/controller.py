"""The cost of the controller: sampling token sequences and learning from their rewards."""

from collections.abc import Callable, Iterator, Sequence
import os
import tempfile
import time
from typing import Any

import jax
import jax.numpy as jnp

from experiments.bench.timing import Row, Setup, Way, alternating, at_most, row, seconds, way
from experiments.common import hooks
from experiments.common.systems import SYSTEMS, System
from nas_jax import search
from nas_jax.search import journal
from nas_jax.space import conv_space
from nas_jax.systems import enas
from nas_jax.training.recovery import NO_RECOVERY
from nas_jax.types import Outcome, PyTree

M, DEPTH = 8, 20  # children of an update, layers of each
UPDATES = 4  # updates in each repeat, of a demo whose children are trained


def rows(setup: Setup) -> Iterator[Row]:
  """Measures the controller on long token sequences, and its share of the time of each demo."""
  depth = 3 if setup.small else DEPTH
  updating = update(search.ask_tell(conv_space(depth), search.Config(m=M)))
  updating()  # compiles
  found = alternating({'both': updating}, setup.repeats)['both']
  yield row(f'ask + tell, m={M}, {depth}-layer conv token sequences', 1e3 * found, 'ms', at_most(20.0))
  for system in SYSTEMS[: 1 if setup.small else None]:
    yield from share(system, setup) if system.alone else shares(system, setup)


def update(s: search.Search) -> Way:
  """Returns a way that times an update of the controller (`ask` and `tell`) with random rewards."""
  state = s.init(jax.random.key(0))

  def both() -> float:
    nonlocal state
    before, batch = state, s.ask(state)
    reward = jax.block_until_ready(jax.random.uniform(batch.keys[0], (len(batch.keys),)))
    asking = seconds(lambda: s.ask(before))

    def tell() -> search.SearchState:
      nonlocal state
      state, _ = s.tell(before, batch, Outcome(reward))
      return state

    return asking + seconds(tell)

  return both


def share(system: System, setup: Setup) -> Iterator[Row]:
  """Measures the share of `ask` and `tell` in the time of a demo's updates. Programs are compiled before."""
  cfg = system.presets['smoke' if setup.small else 'demo']()
  s = build(system, cfg)
  state, spent = s.init(jax.random.key(0)), 0.0

  def timed(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any) -> Any:
      nonlocal spent
      begun = time.perf_counter()
      found = jax.block_until_ready(function(*args))
      spent += time.perf_counter() - begun
      return found

    return call

  watched = s._replace(ask=timed(s.ask), tell=timed(s.tell))

  def part() -> float:
    """Returns the share of `ask` and `tell`, in place of seconds."""
    nonlocal state, spent
    spent, begun = 0.0, time.perf_counter()
    state = updated(watched, state, UPDATES)
    return spent / (time.perf_counter() - begun)

  part()
  found = alternating({'part': part}, setup.repeats)['part']
  yield row(f'ask + tell in the {system.name} demo', 100 * found, '%', at_most(2.0))


def shares(system: System, setup: Setup) -> Iterator[Row]:
  """Times an epoch of shared weights and the controller updates after it, in one program and one by one, with logging.

  The controller's share is the time of epoch and updates in one program, less that of the epoch and of scoring.
  """
  cfg = system.presets['smoke' if setup.small else 'demo']()
  problem = system.make_problem(cfg, system.load(cfg, ''))
  programs = enas.build_programs(problem, cfg)
  s, key, name, count = enas.build(problem, cfg, programs), jax.random.key(1), system.variant, cfg.controller_updates
  state = s.init(jax.random.key(0))
  weights, archs = state.children, s.ask(state).archs
  several = jax.tree.map(lambda x: jnp.broadcast_to(x[0], (programs.steps, cfg.shared_samples, *x.shape[1:])), archs)
  score = programs.updates(lambda score, state: (state, score(archs, key)), count)
  with tempfile.TemporaryDirectory() as folder:
    watch, close = hooks.watch(folder, s, 2**31)
    written = [search.Hook(children=journal.writer(os.path.join(folder, 'children.jsonl'))), watch]

    def whole(s: search.Search) -> PyTree:
      nonlocal state
      state = updated(s, state, count, written)
      return state.children

    ways = {
      'together': way(lambda: whole(s)),
      'one by one': way(lambda: whole(s._replace(updates=None))),
      'learning': way(lambda: programs.learn(weights, several, key)),
      'scoring': way(lambda: score(weights, state._replace(children=()), count)),
    }
    found = alternating(ways, setup.repeats)
    close()
  updates = {each: 1e3 * (found[each] - found['learning']) / count for each in ('together', 'one by one')}
  rest = found['together'] - found['learning'] - found['scoring']
  yield row(f'{name} demo: a pass of {programs.steps} steps', found['learning'], 's')
  yield row(f'{name} demo: an update, {count} in one program', updates['together'], 'ms')
  yield row(f'{name} demo: an update, one by one', updates['one by one'], 'ms')
  yield row(f'{name} demo: updates one by one against in one program', updates['one by one'] / updates['together'])
  yield row(f'{name} demo: pass and updates, the same', found['one by one'] / found['together'])
  yield row(f'{name} demo: the share of the controller', 100 * rest / found['together'], '%', at_most(5.0))


def updated(
  s: search.Search, state: search.SearchState, updates: int, reports: Sequence[search.Hook] = ()
) -> search.SearchState:
  """Returns the state after `updates` more updates, or fewer if the search ends before."""
  end = int(state.step) + updates
  while int(state.step) < end and not s.over(state, 2**31):
    more = 1 if s.parts else (end - int(state.step)) * s.m
    state = search.run(s, state, reports, search.Budget(s.spent(state) + more))
  return state


def build(system: System, cfg: Any) -> search.Search:
  """Returns the search of a config whose children have their own weights."""
  assert system.alone is not None
  problem = system.make_problem(cfg, system.load(cfg, ''))
  return system.alone.search(problem.space, cfg, system.alone.evaluator(problem, None, NO_RECOVERY))
