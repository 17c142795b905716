"""Timing of children in training, with the programs that a search uses."""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench.timing import Row, Way, at_most, seconds
from nas_jax import space
from nas_jax.training import fit, layout
from nas_jax.types import Key, PyTree

CHECKED = 3  # number of first steps, whose losses must agree in all implementations
COMPILERS = 8  # threads that compile programs at the same time, before anything is timed


class Group(NamedTuple):
  """Children of one program, which is compiled and has trained them for `CHECKED` steps."""

  params: PyTree  # [m, ...] before the first step
  losses: np.ndarray  # [m, CHECKED] of the first steps
  compiling: float  # seconds
  further: Way  # trains all of them for further steps


def group(programs: fit.Fit, archs: PyTree, keys: Key, data: Any, steps: int) -> Group:
  """Returns children that each call of `further` trains for `steps` steps.

  `further` raises ValueError if a child has failed: its steps would be skipped, and take no time.

  Args:
    programs: of all the children.
    archs: [m, ...], or () if the program has a static architecture.
    keys: [m].
    data: in the form that the child reads.
    steps: of a call of `further`.
  """
  m, data = len(keys), layout.share(data, programs.mesh)
  states, archs, keys = fit.begin(programs, archs, keys)
  params = jax.tree.map(lambda x: np.asarray(x[:m]), states.params)

  def advance(count: int) -> np.ndarray:
    nonlocal states
    states = jax.block_until_ready(programs.chunk(data, jnp.asarray(count), states, archs, keys))
    return np.asarray(states.loss[:m])

  def further() -> float:
    taken = seconds(lambda: advance(steps))
    if (failed := np.asarray(states.failed[:m])).any():
      raise ValueError(f'child {failed.argmax()} failed ({fit.Status(failed.max()).reason}): it cannot be timed.')
    return taken

  compiling = seconds(lambda: advance(0))
  losses = np.stack([advance(1) for _ in range(CHECKED)], 1)
  return Group(params, losses, compiling, further)


def alike(programs: fit.Fit, key: Key, data: Any, steps: int) -> Group:
  """Returns a group of children of one static architecture, one on each device."""
  keys = jax.vmap(lambda k: jax.random.fold_in(key, k))(jnp.arange(programs.mesh.size))
  return group(programs, (), keys, data, steps)


def in_threads(function: Callable[[Any], Any], inputs: Iterable[Any]) -> list[Any]:
  """Returns the results of a function that compiles a program for each input. Several are compiled at once."""
  with ThreadPoolExecutor(COMPILERS) as threads:
    return list(threads.map(function, inputs))


def one_by_one(groups: Sequence[Group]) -> Way:
  """Returns a way that trains groups of `alike` in turn. Its seconds are for one child of each group."""

  def work() -> float:
    return sum(each.further() / len(each.losses) for each in groups)

  return work


def compiled(name: str, programs: fit.Fit, archs: PyTree, keys: Key, data: Any, m: int) -> Row:
  """Counts the programs compiled for one step of all children, m at a time. m must divide the number of children."""
  found = list[int]()
  for first in range(0, len(keys), m):
    some = jax.tree.map(lambda x, first=first: x[first : first + m], (archs, keys))
    states, *rest = fit.begin(programs, *some)
    jax.block_until_ready(programs.chunk(data, jnp.asarray(1), states, *rest))
    found.append(programs.compilations())
  different = len(set(space.unstack(archs)))
  value = float(1 + found[-1] - found[0])
  return Row(
    f'{name}compilations for {different} different ones', value, 'programs', at_most(1.0), note=f'{m} at a time'
  )
