"""Children in training, as something that can be timed: no way here is made for the benchmark, all is `train`'s own."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench.timing import Row, Way, at_most, seconds
from nas_jax import space
from nas_jax.training import fit
from nas_jax.types import Key, PyTree

CHECKED = 3  # first steps, whose losses must be the same in all ways


class Group(NamedTuple):
  """Children of one program, compiled and a few steps old."""

  params: PyTree  # [m, ...] before the first step
  losses: np.ndarray  # [m, CHECKED] of the first steps
  compiling: float  # seconds
  further: Way  # trains all of them on, so many steps


def group(programs: fit.Fit, archs: PyTree, keys: Key, data: Any, steps: int) -> Group:
  """Returns children that each call of `further` trains `steps` steps.

  Args:
    programs: of all of them.
    archs: [m, ...], or () if the program has it.
    keys: [m].
    data: as the child takes it.
    steps: of a call.

  Raises:
    ValueError: a child is not finite: its steps would be skipped, and cost nothing.
  """
  m, data = len(keys), fit.share(data, programs.mesh)
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
  """Returns, as `group`, children of one static architecture: one on each device."""
  keys = jax.vmap(lambda k: jax.random.fold_in(key, k))(jnp.arange(programs.mesh.size))
  return group(programs, (), keys, data, steps)


def one_by_one(groups: Sequence[Group]) -> Way:
  """Returns a way that trains groups of `alike` in turn, each on all devices with one child a device."""

  def work() -> float:
    return sum(each.further() / len(each.losses) for each in groups)

  return work


def compiled(name: str, programs: fit.Fit, archs: PyTree, keys: Key, data: Any, m: int) -> Row:
  """Counts the programs that are compiled for one step of each child, m at a time. m divides their number."""
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
