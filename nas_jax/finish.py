"""Training to the end: many epochs, scored after each, the best weights kept, able to go on where it was cut off."""

from collections.abc import Callable
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nas_jax import train
from nas_jax.types import Array, Key, PyTree


class Progress(NamedTuple):
  """Everything that decides how a training ends."""

  states: train.FitState  # [m]
  best: PyTree  # [m] the weights that scored best so far, and the carry with them
  curve: Array  # [epochs, m] the validation score after each epoch, NaN for those to come
  done: Array  # [] int32, epochs


def start(programs: train.Fit, archs: PyTree, keys: Key, epochs: int) -> tuple[Progress, PyTree, Key]:
  """Untrained children with their archs and keys, filled up to the devices as in `train.begin`."""
  states, archs, keys = train.begin(programs, archs, keys)
  best = jax.tree.map(jnp.copy, (states.params, states.carry))  # a chunk uses its states up
  return Progress(states, best, jnp.full((epochs, len(keys)), jnp.nan), jnp.zeros((), jnp.int32)), archs, keys


def run(
  programs: train.Fit,
  progress: Progress,
  archs: PyTree,
  keys: Key,
  data: PyTree,
  metric: str,
  keep: Callable[[Progress], None] = lambda progress: None,
) -> Progress:
  """Trains to the last epoch; lower is better by `metric`.

  Args:
    programs: of `train.fitter`; one call is one epoch.
    progress: of `start`, perhaps restored.
    archs: [m], as `start` returns them.
    keys: [m], likewise.
    data: as the child's `batch` and `score` take it.
    metric: the validation score that chooses the weights to keep; a child that fails is not improved any more.
    keep: told after each epoch.
  """
  data = train.share(data, programs.mesh)
  for epoch in range(int(progress.done), len(progress.curve)):
    states = programs.chunk(data, jnp.asarray(programs.steps_per_call), progress.states, archs, keys)
    scores = programs.score(data, states, archs)
    scored = jnp.asarray(np.where(scores['failed'] == train.FINE, scores[metric], np.inf))
    better = scored < jnp.min(jnp.nan_to_num(progress.curve, nan=jnp.inf), axis=0)
    best = _choose(better, (states.params, states.carry), progress.best)
    progress = Progress(states, best, progress.curve.at[epoch].set(scored), jnp.asarray(epoch + 1, jnp.int32))
    keep(progress)
  return progress


def score(programs: train.Fit, progress: Progress, archs: PyTree, data: PyTree, metric: str, m: int) -> np.ndarray:
  """[m] the `metric` of the best weights on other data, such as the test split in place of the validation split."""
  params, carry = progress.best
  states = progress.states._replace(params=params, carry=carry)
  found = programs.score(train.share(data, programs.mesh), states, archs)
  return np.asarray(found[metric])[:m]


@functools.partial(jax.jit, donate_argnums=2)
def _choose(better: Array, new: PyTree, old: PyTree) -> PyTree:
  """New leaves for the children that did better."""
  return jax.tree.map(lambda a, b: jnp.where(better.reshape(-1, *(1,) * (a.ndim - 1)), a, b), new, old)
