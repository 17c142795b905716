"""Evaluators: architectures in, rewards out."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import numpy as np

from nas_jax import train
from nas_jax.space import Space
from nas_jax.types import Batch, Outcome, PyTree

PROGRAMS = ('generic', 'specialised', 'auto')  # how children are compiled
Metrics = dict[str, np.ndarray]


def from_scratch(
  programs: train.Fit, data: PyTree, reward: Callable[[Metrics], np.ndarray]
) -> Callable[[Batch], Outcome]:
  """Trains every child from its own initial weights on `data`, all by one program; the architecture is traced.

  `reward` maps the metrics [m] to rewards [m]; a child that failed earns 0.
  """
  data = train.share(data, programs.mesh)
  return lambda batch: _outcome(train.fit(programs, batch.archs, batch.keys, data), reward)


def specialised(
  space: Space,
  programs: Callable[[PyTree, Mesh], train.Fit],
  data: PyTree,
  reward: Callable[[Metrics], np.ndarray],
  devices: list[jax.Device] | None = None,
) -> Callable[[Batch], Outcome]:
  """The same by a program of its own for each child: no operation chosen as it runs, but a compilation a child.

  Args:
    space: what the tokens mean.
    programs: (static arch, mesh of one device) to the programs of that child, whose arch is ().
    data: as the child takes it.
    reward: as in `from_scratch`.
    devices: children take turns on them, by default on all local ones.
  """
  meshes = [train.child_mesh([device]) for device in (devices or jax.local_devices())]
  shared = [train.share(data, mesh) for mesh in meshes]

  def turn(batch: Batch, lane: int) -> list[Metrics]:
    """Every child of one device."""
    found = []
    for k in range(lane, len(batch.keys), len(meshes)):
      own = programs(space.decode(np.asarray(batch.tokens[k])), meshes[lane])
      found.append(train.fit(own, (), batch.keys[k : k + 1], shared[lane]))
    return found

  def evaluate(batch: Batch) -> Outcome:
    with ThreadPoolExecutor(len(meshes)) as pool:
      lanes = list(pool.map(lambda lane: turn(batch, lane), range(len(meshes))))
    metrics = [lanes[k % len(meshes)][k // len(meshes)] for k in range(len(batch.keys))]
    return _outcome({name: np.concatenate([one[name] for one in metrics]) for name in metrics[0]}, reward)

  return evaluate


def _outcome(metrics: Metrics, reward: Callable[[Metrics], np.ndarray]) -> Outcome:
  with np.errstate(all='ignore'):  # a failed child may have scored anything
    earned = np.where(metrics['failed'] == train.FINE, reward(metrics), 0.0)
  return Outcome(jnp.asarray(earned, jnp.float32), metrics)
