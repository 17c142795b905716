"""Full training: many epochs with a scoring after each. The best weights are kept; an interrupted training resumes."""

from collections.abc import Callable, Mapping
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nas_jax import files
from nas_jax.training import fit, layout
from nas_jax.types import Array, Key, PyTree
from nas_jax.words import counted

CALL_STEPS = 200  # steps of one program call; a training can be stopped between calls


class Task(NamedTuple):
  """A network to train to the end."""

  size: str  # the sizes of its layers, in words
  weights: int
  programs: fit.Fit  # one call is one epoch
  data: PyTree  # as the child's `batch` and `score` take it
  test: PyTree  # the same data with the test split in place of the validation split
  loss: Callable[[Mapping[str, Array]], Array]  # metrics of a scoring -> a loss for each child; lower is better
  choose: bool = True  # whether to keep the weights of the epoch that scored best, or those of the last epoch


class Progress(NamedTuple):
  """The state of a training: everything that decides how it goes on."""

  states: fit.FitState  # [m]
  best: PyTree  # [m] the weights kept so far, and their carry
  curve: Array  # [epochs, m] the loss of the scoring after each epoch, NaN for epochs to come
  done: Array  # [] int32, epochs


def within_memory(programs: fit.Fit, archs: PyTree, keys: Key, data: PyTree, way_out: str) -> fit.Fit:
  """Returns programs that train as many of the m children at once as the devices have memory for.

  These are the given programs if the memory plans of the compiled programs say that all children fit, or if the devices
  do not report their memory. Otherwise each device trains half of its children at a time, or a quarter, and so on.

  Args:
    programs: the programs of a task.
    archs: as `start` takes them.
    keys: as `start` takes them.
    data: the task's data for training and validation.
    way_out: what to do if not even one child at a time fits, as an error says it.

  Raises:
    files.Unusable: not even one child at a time fits.
  """
  mesh, limit = programs.mesh, layout.memory_limit(programs.mesh)
  if math.isinf(limit):
    return programs
  data, at_once = layout.share(data, mesh), -(-len(keys) // mesh.size)
  states = fit.shapes(programs, archs, keys)
  leaves = jax.tree.leaves((states.params, states.carry))
  kept = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves) // mesh.size  # `Progress.best`
  while kept + fit.memory_needed(programs, archs, keys, data) > limit:
    if at_once == 1:
      raise files.Unusable(
        f'{counted(len(keys), "training")} do not fit into the {limit / 2**30:.3g} GiB of a device, not even one at a '
        f'time on each: {way_out}.'
      )
    at_once = -(-at_once // 2)
    programs = programs.at_once(at_once)
  return programs


def start(task: Task, archs: PyTree, keys: Key, epochs: int) -> tuple[Progress, PyTree, Key]:
  """Returns untrained children with their archs and keys, padded as in `fit.begin`."""
  states, archs, keys = fit.begin(task.programs, archs, keys)
  best = jax.tree.map(jnp.copy, (states.params, states.carry))  # a chunk donates its states
  return Progress(states, best, jnp.full((epochs, len(keys)), jnp.nan), jnp.zeros((), jnp.int32)), archs, keys


def run(
  task: Task,
  progress: Progress,
  archs: PyTree,
  keys: Key,
  keep: Callable[[Progress], None] = lambda progress: None,
  check: Callable[[], None] = lambda: None,
) -> Progress:
  """Trains to the last epoch and returns the progress. A child that fails is not trained any further.

  Args:
    task: what is trained.
    progress: as `start` returns it, or restored.
    archs: [m], as `start` returns them.
    keys: [m], as `start` returns them.
    keep: called with the progress after each epoch.
    check: called between program calls, also within epochs; it may raise `recovery.Stopped`.
  """
  programs, data = task.programs, layout.share(task.data, task.programs.mesh)
  for epoch in range(int(progress.done), len(progress.curve)):
    # A call donates its states. If an epoch is interrupted, the training resumes from the states that `keep` got last.
    states = progress.states
    for first in range(0, programs.steps_per_call, CALL_STEPS):
      check()
      count = min(CALL_STEPS, programs.steps_per_call - first)
      states = jax.block_until_ready(programs.chunk(data, jnp.asarray(count), states, archs, keys))
    scores = programs.score(data, states, archs)
    fine = np.asarray(scores['failed'] == fit.Status.OK)
    scored = jnp.asarray(np.where(fine, task.loss(scores), np.inf))
    so_far = jnp.min(jnp.nan_to_num(progress.curve, nan=jnp.inf), axis=0)
    better = scored < so_far if task.choose else jnp.asarray(fine)
    best = _choose(better, (states.params, states.carry), progress.best)
    progress = Progress(states, best, progress.curve.at[epoch].set(scored), jnp.asarray(epoch + 1, jnp.int32))
    keep(progress)
  return progress


def score(task: Task, progress: Progress, archs: PyTree, m: int, data: PyTree = None) -> np.ndarray:
  """Returns the loss [m] of the kept weights, on the test split or on other `data`."""
  params, carry = progress.best
  states = progress.states._replace(params=params, carry=carry)
  shared = layout.share(task.test if data is None else data, task.programs.mesh)
  return np.asarray(task.loss(task.programs.score(shared, states, archs)))[:m]


@functools.partial(jax.jit, donate_argnums=2)
def _choose(better: Array, new: PyTree, old: PyTree) -> PyTree:
  """Returns the new leaves for children that did better, and the old ones for the others."""
  return jax.tree.map(lambda a, b: jnp.where(better.reshape(-1, *(1,) * (a.ndim - 1)), a, b), new, old)
