"""Training to the end: many epochs, scored after each, the best weights kept, able to go on where it was cut off."""

from collections.abc import Callable, Mapping
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nas_jax.training import fit
from nas_jax.types import Array, Key, PyTree

CALL_STEPS = 200  # in one program call, so that a training ends soon when it is asked to


class Task(NamedTuple):
  """A network to train to the end."""

  size: str  # of its layers, for people
  weights: int
  programs: fit.Fit  # one call is one epoch
  data: PyTree  # as the child's `batch` and `score` take it
  test: PyTree  # the same with the test split where validation stands
  loss: Callable[[Mapping[str, Array]], Array]  # of a scoring, for each child; lower is better
  choose: bool = True  # the weights of the epoch that scored best; else those of the last


class Progress(NamedTuple):
  """Everything that decides how a training ends."""

  states: fit.FitState  # [m]
  best: PyTree  # [m] the weights to keep so far, and the carry with them
  curve: Array  # [epochs, m] the loss of the scoring after each epoch, NaN for those to come
  done: Array  # [] int32, epochs


def start(task: Task, archs: PyTree, keys: Key, epochs: int) -> tuple[Progress, PyTree, Key]:
  """Untrained children with their archs and keys, filled up to the devices as in `fit.begin`."""
  states, archs, keys = fit.begin(task.programs, archs, keys)
  best = jax.tree.map(jnp.copy, (states.params, states.carry))  # a chunk uses its states up
  return Progress(states, best, jnp.full((epochs, len(keys)), jnp.nan), jnp.zeros((), jnp.int32)), archs, keys


def run(
  task: Task,
  progress: Progress,
  archs: PyTree,
  keys: Key,
  keep: Callable[[Progress], None] = lambda progress: None,
  check: Callable[[], None] = lambda: None,
) -> Progress:
  """Trains to the last epoch. A child that fails is not improved any more.

  Args:
    task: what is trained.
    progress: of `start`, perhaps restored.
    archs: [m], as `start` returns them.
    keys: [m], likewise.
    keep: told after each epoch.
    check: called within epochs too, between program calls; it may raise `recovery.Stopped`.
  """
  programs, data = task.programs, fit.share(task.data, task.programs.mesh)
  for epoch in range(int(progress.done), len(progress.curve)):
    # The last states are used up by a call: what is kept of them when an epoch is cut off is what `keep` was told.
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
  """[m] the loss of the weights kept, on the test split or on other `data`."""
  params, carry = progress.best
  states = progress.states._replace(params=params, carry=carry)
  shared = fit.share(task.test if data is None else data, task.programs.mesh)
  return np.asarray(task.loss(task.programs.score(shared, states, archs)))[:m]


@functools.partial(jax.jit, donate_argnums=2)
def _choose(better: Array, new: PyTree, old: PyTree) -> PyTree:
  """New leaves for the children that did better."""
  return jax.tree.map(lambda a, b: jnp.where(better.reshape(-1, *(1,) * (a.ndim - 1)), a, b), new, old)
