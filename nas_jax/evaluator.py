"""Evaluators: architectures in, rewards out."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import numpy as np

from nas_jax import train
from nas_jax.space import unstack
from nas_jax.types import Array, Batch, Outcome, PyTree

PROGRAMS = ('generic', 'specialised', 'auto')  # how children are compiled
Metrics = dict[str, np.ndarray]


def from_scratch(
  programs: train.Fit, data: PyTree, reward: Callable[[Metrics], np.ndarray]
) -> Callable[[Batch], Outcome]:
  """Trains every child from its own initial weights on `data`, all by one program; the architecture is traced.

  `reward` maps the metrics [m] to rewards [m]; a child that failed earns 0.
  """
  data = train.share(data, programs.mesh)
  return lambda batch: _outcome(_fetched(train.fit(programs, batch.archs, batch.keys, data)), reward)


def specialised(
  programs: Callable[[PyTree, Mesh], train.Fit],
  data: PyTree,
  reward: Callable[[Metrics], np.ndarray],
  devices: list[jax.Device] | None = None,
) -> Callable[[Batch], Outcome]:
  """The same by a program of its own for each child: no operation chosen as it runs, but a compilation a child.

  Args:
    programs: (static arch, mesh of one device) to the programs of that child, whose arch is ().
    data: as the child takes it.
    reward: as in `from_scratch`.
    devices: children take turns on them, by default on all local ones.
  """
  meshes = [train.child_mesh([device]) for device in (devices or jax.local_devices())]
  shared = [train.share(data, mesh) for mesh in meshes]

  def evaluate(batch: Batch) -> Outcome:
    archs, found = unstack(batch.archs), list[Metrics]()
    for start in range(0, len(batch.keys), len(meshes)):
      # Dispatch returns at once, so the devices work side by side until their metrics are fetched.
      running = []
      for k, mesh, local in zip(range(start, len(batch.keys)), meshes, shared, strict=False):
        running.append(train.fit(programs(archs[k], mesh), (), batch.keys[k : k + 1], local))
      found += [_fetched(one) for one in running]
    return _outcome({name: np.concatenate([one[name] for one in found]) for name in found[0]}, reward)

  return evaluate


def _fetched(metrics: dict[str, Array]) -> Metrics:
  return {name: np.asarray(value) for name, value in metrics.items()}


def _outcome(metrics: Metrics, reward: Callable[[Metrics], np.ndarray]) -> Outcome:
  with np.errstate(all='ignore'):  # a failed child may have scored anything
    earned = np.where(metrics['failed'] == train.FINE, reward(metrics), 0.0)
  return Outcome(jnp.asarray(earned, jnp.float32), metrics)
