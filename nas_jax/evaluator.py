"""Evaluators: architectures in, rewards out."""

from collections.abc import Callable, Sequence
import functools
import math
import time
from typing import Any, NamedTuple
import warnings

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import numpy as np

from nas_jax import train
from nas_jax.controller import uniform_controller
from nas_jax.space import Space, unstack
from nas_jax.types import Array, Batch, Key, Outcome, PyTree

PROGRAMS = ('generic', 'specialised', 'auto')  # how children are compiled
Metrics = dict[str, np.ndarray]


class Known(NamedTuple):
  """A known architecture and what scores it."""

  arch: PyTree  # static
  evaluate: Callable[[Batch], Outcome]


def from_scratch(
  programs: train.Fit, data: PyTree, reward: Callable[[Metrics], np.ndarray]
) -> Callable[[Batch], Outcome]:
  """Trains every child from its own initial weights on `data`, all by one program; the architecture is traced.

  `reward` maps the metrics [m] to rewards [m]; a child that failed earns 0. Children that are too many for the memory
  are halved until they fit; one that does not fit alone fails. That the program cannot be compiled is no child's fault:
  the error is raised.
  """
  data = train.share(data, programs.mesh)

  def fitted(archs: PyTree, keys: Key) -> list[Metrics]:
    found, m = _tried(lambda: _fetched(train.fit(programs, archs, keys, data)), own_program=False), len(keys)
    if m == 1 or found.keys() != {'failed'}:
      return [found]
    halves = (slice(m // 2), slice(m // 2, m))
    return [one for half in halves for one in fitted(*jax.tree.map(lambda x, half=half: x[half], (archs, keys)))]

  return lambda batch: _gathered(fitted(batch.archs, batch.keys), reward)


def specialised(
  programs: Callable[[PyTree, Mesh], train.Fit],
  data: PyTree,
  reward: Callable[[Metrics], np.ndarray],
  devices: list[jax.Device] | None = None,
) -> Callable[[Batch], Outcome]:
  """The same by a program of its own for each child: no operation chosen as it runs, but a compilation a child.

  A child whose program runs out of memory, or cannot be compiled, fails alone.

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
        fit = functools.partial(train.fit, programs(archs[k], mesh), (), batch.keys[k : k + 1], local)
        running.append(_tried(fit))
      found += [_tried(functools.partial(_fetched, one)) for one in running]
    return _gathered(found, reward)

  return evaluate


def successive(
  programs: Callable[[PyTree, Mesh], train.Fit],
  data: PyTree,
  reward: Callable[[Metrics], np.ndarray],
  inherit: Callable[[PyTree, PyTree], PyTree],
  device: jax.Device | None = None,
) -> Callable[[Batch], Outcome]:
  """As `specialised`, on one device, each child starting from what the one before it in the batch has learned.

  Args:
    programs: as in `specialised`.
    data: likewise.
    reward: likewise.
    inherit: (fresh parameters, those of the child before) -> parameters to start from; with a leading axis of 1. A
      child after one that failed starts afresh.
    device: the first local one by default.
  """
  mesh = train.child_mesh([device or jax.local_devices()[0]])
  shared = train.share(data, mesh)

  def evaluate(batch: Batch) -> Outcome:
    found, parent = list[Metrics](), None
    for k, arch in enumerate(unstack(batch.archs)):

      def one(arch=arch, key=batch.keys[k : k + 1], parent=parent) -> tuple[PyTree, Metrics]:
        made = programs(arch, mesh)
        states, archs, keys = train.begin(made, (), key)
        if parent is not None:
          states = states._replace(params=inherit(states.params, parent))
        states, metrics = train.run(made, states, archs, keys, shared)
        return states.params, _fetched(metrics)

      tried = _tried(one)
      parent, metrics = tried if isinstance(tried, tuple) else (None, tried)
      parent = parent if metrics['failed'][0] == train.FINE else None
      found.append(metrics)
    return _gathered(found, reward)

  return evaluate


def _gathered(found: list[Metrics], reward: Callable[[Metrics], np.ndarray]) -> Outcome:
  """The outcome of children who were trained one by one; some may lack metrics."""
  names = {name for one in found for name in one}

  def values(one: Metrics, name: str) -> np.ndarray:
    return one.get(name, np.full(len(one['failed']), np.nan))

  return _outcome({name: np.concatenate([values(one, name) for one in found]) for name in names}, reward)


def _tried(work: Callable[[], Any], own_program: bool = True) -> Any:
  """What `work` returns, or, if the program is too much for the machine, the metrics of a child that failed."""
  try:
    return work()
  except jax.errors.JaxRuntimeError as error:
    why = str(error)
    no_memory = 'RESOURCE_EXHAUSTED' in why or 'out of memory' in why.lower()
    if not (no_memory or own_program):
      raise
    warnings.warn(f'a child failed: {why.splitlines()[0]}', stacklevel=2)
    return {'failed': np.full(1, train.NO_MEMORY if no_memory else train.NO_PROGRAM)}


def _fetched(metrics: dict[str, Array]) -> Metrics:
  return {name: np.asarray(value) for name, value in metrics.items()}


def _outcome(metrics: Metrics, reward: Callable[[Metrics], np.ndarray]) -> Outcome:
  with np.errstate(all='ignore'):  # a failed child may have scored anything
    sound = metrics['failed'] == train.FINE
    earned = np.where(sound, reward(metrics), 0.0) if sound.any() else np.zeros(len(sound))
  return Outcome(jnp.asarray(earned, jnp.float32), metrics)


def random_batch(space: Space, key: Key, m: int) -> Batch:
  """m children, uniform in each token."""
  keys = jax.random.split(key, m)
  tokens = jax.vmap(lambda key: uniform_controller(space).sample((), key))(keys)
  return Batch(jnp.arange(m, dtype=jnp.int32), keys, tokens, space.decode_batch(tokens))


class Timing(NamedTuple):
  """Seconds a child takes, all included, in a search of so many."""

  generic: float
  specialised: float


def time_programs(
  build: Callable[[str, int], Callable[[Batch], Outcome]],
  batch: Batch,
  steps: int,
  children: int,
  kinds: Sequence[str] = ('generic', 'specialised'),
  most: int = 50,
) -> Timing:
  """Trains a batch for one step and for at most `most`, each way, and extends the line between.

  The generic program is compiled once a search, a specialised one for each child.

  Args:
    build: (one of PROGRAMS, steps) to an evaluator.
    batch: of typical children.
    steps: that a child is trained for.
    children: of a search.
    kinds: what is possible; the other takes for ever.
    most: steps to train here.
  """
  many_steps, m = min(steps, most), len(batch.keys)

  def seconds(kind: str, count: int) -> tuple[float, float]:
    """Of a batch, by a fresh program and by the same again."""
    evaluate = build(kind, count)
    begun = time.perf_counter()
    evaluate(batch)
    between = time.perf_counter()
    evaluate(batch)
    return between - begun, time.perf_counter() - between

  def a_child(one: float, many: float) -> float:
    a_step = max(many - one, 0.0) / max(many_steps - 1, 1)
    return (one + (steps - 1) * a_step) / m

  generic = specialised = math.inf
  if 'generic' in kinds:
    (fresh, one), (_, many) = seconds('generic', 1), seconds('generic', many_steps)
    generic = (fresh - one) / children + a_child(one, many)
  if 'specialised' in kinds:
    specialised = a_child(seconds('specialised', 1)[1], seconds('specialised', many_steps)[1])
  return Timing(generic, specialised)
