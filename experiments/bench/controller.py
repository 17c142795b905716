"""What the controller costs: asking for strings and learning from their rewards."""

from collections.abc import Callable, Iterator
import os
import subprocess
import sys
import tempfile
import time
from typing import Any

import jax
import numpy as np

from experiments.bench import rivals
from experiments.bench.timing import Row, Setup, Way, alternating, at_most, row, seconds
from experiments.common.systems import SYSTEMS, System
from nas_jax import search
from nas_jax.space import conv_space
from nas_jax.systems import enas
from nas_jax.training.recovery import NO_RECOVERY
from nas_jax.types import Outcome

M, DEPTH = 8, 20  # children of an update, layers of each
UPDATES = 4  # of a demo whose children are trained, in each repeat


def rows(setup: Setup) -> Iterator[Row]:
  """Of long strings, and as a share of each demo."""
  depth = 3 if setup.small else DEPTH
  updating = update(search.ask_tell(conv_space(depth), search.Config(m=M)))
  updating()  # compiles
  found = alternating({'both': updating}, setup.repeats)['both']
  yield row(f'ask + tell, m={M}, {depth}-layer conv strings', 1e3 * found, 'ms', at_most(20.0))
  for system in SYSTEMS[: 1 if setup.small else None]:
    yield from share(system, setup)


def update(s: search.Search) -> Way:
  """An update, children left out."""
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
  """Asking and telling in a demo, as a share of all of its updates; its programs are compiled beforehand.

  Where children share weights one is scored in milliseconds, and most of a demo is something else: there the wall time
  of the whole is measured too.
  """
  cfg = system.presets['smoke' if setup.small else 'demo']()
  s, updates = build(system, cfg), UPDATES if system.alone else cfg.controller_updates
  state, spent, each = s.init(jax.random.key(0)), 0.0, list[float]()

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
    """Not seconds but a share of them; a pass of shared weights comes in each round of updates."""
    nonlocal state, spent
    spent, begun = 0.0, time.perf_counter()
    state = updated(watched, state, updates)
    each.append(spent / updates)
    return spent / (time.perf_counter() - begun)

  part()
  found, name = alternating({'part': part}, setup.repeats)['part'], f'ask + tell in the {system.kind} demo'
  if system.alone:
    yield row(name, 100 * found, '%', at_most(2.0))
    return
  yield row(f'{name}, of updates', 100 * found, '%')
  taken, count = whole(system), cfg.passes * cfg.controller_updates
  note = f'{count} updates in {taken:.0f} s, with a control that writes at random'
  yield Row(name, 100 * count * float(np.median(each)) / taken, '%', at_most(2.0), note=note)


def updated(s: search.Search, state: search.SearchState, updates: int) -> search.SearchState:
  """The state after so many more updates, or after fewer if nothing is left to train."""
  end = int(state.step) + updates
  while int(state.step) < end and not s.over(state, 2**31):
    state = search.run(s, state, (), search.Budget(s.spent(state) + 1))
  return state


def whole(system: System) -> float:
  """Seconds of a demo of shared weights, as it is launched."""
  with tempfile.TemporaryDirectory() as folder:
    workdir, variant = os.path.join(folder, system.variant), f'--variant={system.variant}'
    command = [sys.executable, '-m', f'experiments.{system.launcher}', variant, f'--workdir={workdir}']
    return seconds(lambda: subprocess.run(command, check=True, capture_output=True, cwd=rivals.ROOT))


def build(system: System, cfg: Any) -> search.Search:
  """The search of a config."""
  problem = system.make_problem(cfg, system.load(cfg, ''))
  if system.alone:
    return system.alone.search(problem.space, cfg, system.alone.evaluator(problem, None, NO_RECOVERY))
  return enas.build(problem, cfg, enas.build_programs(problem, cfg))
