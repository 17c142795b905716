"""Evaluators: architectures in, rewards out."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
import math
import queue
import time
from typing import Any, NamedTuple
import warnings

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import numpy as np

from nas_jax.controller import uniform_controller
from nas_jax.space import Space, unstack
from nas_jax.training import fit
from nas_jax.training.recovery import NO_RECOVERY, Metrics, Recovery, fingerprint
from nas_jax.types import Array, Batch, Key, Outcome, PyTree

PROGRAMS = ('generic', 'specialised', 'auto')  # how children are compiled


class Known(NamedTuple):
  """A known architecture and what scores it."""

  arch: PyTree  # static
  evaluate: Callable[[Batch], Outcome]


def from_scratch(
  programs: fit.Fit, data: PyTree, reward: Callable[[Metrics], np.ndarray], recovery: Recovery = NO_RECOVERY
) -> Callable[[Batch], Outcome]:
  """Trains every child from its own initial weights on `data`, all by one program; the architecture is traced.

  `reward` maps the metrics [m] to rewards [m]; a child that failed earns 0. Children that are too many for the memory
  are halved until they fit; one that does not fit alone fails. That the program cannot be compiled is no child's fault:
  the error is raised. Children of a batch that the process died of are trained one by one, to find the one that did it.
  """
  data = fit.share(data, programs.mesh)

  def fitted(archs: PyTree, keys: Key) -> list[Metrics]:
    m = len(keys)

    def kept(only: int | None = None) -> Metrics:
      # All together but for the last time, which each child has for itself.
      starts = recovery.starts if m == 1 else max(1, recovery.starts - 1) if only is None else 1
      starts = starts if recovery.starts else 0
      return _tried(lambda: _kept(programs, archs, keys, data, recovery, starts, only), m, own_program=False)

    found = kept()
    if m > 1 and (found['failed'] == fit.Status.CRASHED).all():
      return [{name: values[k : k + 1] for name, values in kept(k).items()} for k in range(m)]
    if m == 1 or (found['failed'] != fit.Status.NO_MEMORY).all():
      return [found]
    halves = (slice(m // 2), slice(m // 2, m))
    return [one for half in halves for one in fitted(*jax.tree.map(lambda x, half=half: x[half], (archs, keys)))]

  return lambda batch: _gathered(fitted(batch.archs, batch.keys), reward)


def static_programs(
  programs: Callable[[PyTree, Mesh], fit.Fit],
  data: PyTree,
  reward: Callable[[Metrics], np.ndarray],
  devices: list[jax.Device] | None = None,
  recovery: Recovery = NO_RECOVERY,
) -> Callable[[Batch], Outcome]:
  """The same by a program of its own for each child: no operation chosen as it runs, but a compilation a child.

  A child whose program runs out of memory, or cannot be compiled, fails alone. Each device takes the next child as soon
  as it is free.

  Args:
    programs: (static arch, mesh of one device) to the programs of that child, whose arch is ().
    data: as the child takes it.
    reward: as in `from_scratch`.
    devices: where children are trained, by default all local ones.
    recovery: of the trainings.
  """
  meshes = [fit.child_mesh([device]) for device in (devices or jax.local_devices())]
  free = queue.SimpleQueue[tuple[Mesh, PyTree]]()
  for mesh in meshes:
    free.put((mesh, fit.share(data, mesh)))

  def evaluate(batch: Batch) -> Outcome:
    double = jax.dtypes.canonicalize_dtype(np.float64) == np.float64  # a thread has a context of its own

    def one(arch: PyTree, key: Key) -> Metrics:
      mesh, local = place = free.get()
      try:
        with jax.enable_x64(double):
          return _tried(lambda: _kept(programs(arch, mesh), (), key, local, recovery, recovery.starts, arch=arch))
      finally:
        free.put(place)

    keys = (batch.keys[k : k + 1] for k in range(len(batch.keys)))
    with ThreadPoolExecutor(len(meshes)) as threads:
      return _gathered(list(threads.map(one, unstack(batch.archs), keys)), reward)

  return evaluate


def warm_started(
  programs: Callable[[PyTree, Mesh], fit.Fit],
  data: PyTree,
  reward: Callable[[Metrics], np.ndarray],
  warm_start: Callable[[PyTree, PyTree], PyTree],
  device: jax.Device | None = None,
  recovery: Recovery = NO_RECOVERY,
) -> Callable[[Batch], Outcome]:
  """As `static_programs`, on one device, each child starting from what the one before it in the batch has learned.

  Args:
    programs: as in `static_programs`.
    data: likewise.
    reward: likewise.
    warm_start: (fresh parameters, those of the child before) -> parameters to start from; with a leading axis of 1. A
      child after one that failed starts afresh.
    device: the first local one by default.
    recovery: what it recalls is of no use here: a child wants the weights of the one before it.
  """
  mesh = fit.child_mesh([device or jax.local_devices()[0]])
  shared = fit.share(data, mesh)

  def evaluate(batch: Batch) -> Outcome:
    found, parent = list[Metrics](), None
    for k, arch in enumerate(unstack(batch.archs)):

      def one(arch=arch, key=batch.keys[k : k + 1], parent=parent) -> tuple[PyTree, Metrics]:
        made = programs(arch, mesh)
        states, archs, keys = fit.begin(made, (), key)
        if parent is not None:
          states = states._replace(params=warm_start(states.params, parent))
        name, limit = fingerprint(arch, key, made.steps, 'inherits'), recovery.timeout
        if recovery.crashes_process(name, recovery.starts):
          return states.params, {'failed': np.full(1, fit.Status.CRASHED)}
        states, metrics = fit.run(made, states, archs, keys, shared, recovery, name, limit)
        return states.params, _fetched(metrics)

      tried = _tried(one)
      parent, metrics = tried if isinstance(tried, tuple) else (None, tried)
      parent = parent if metrics['failed'][0] == fit.Status.OK else None
      found.append(metrics)
    return _gathered(found, reward)

  return evaluate


def _kept(
  programs: fit.Fit,
  archs: PyTree,
  keys: Key,
  data: PyTree,
  recovery: Recovery,
  starts: int,
  only: int | None = None,
  arch: PyTree = (),
) -> Metrics:
  """What a training gives, or gave, if `recovery` recalls it; `arch` is the static one of a program of its own.

  One that was begun in vain so many times fails.
  """
  shapes = fit.shapes(programs, archs, keys, only)
  name = fingerprint(arch, archs, keys, shapes, programs.steps, only)
  if (known := recovery.recall(name)) is not None:
    return known
  m = len(keys)
  if recovery.crashes_process(name, starts):
    return {'failed': np.full(m, fit.Status.CRASHED)}
  begun, limit = fit.begin(programs, archs, keys, only), recovery.timeout * (m if only is None else 1)
  _, metrics = fit.run(programs, *begun, data, recovery, name, limit)
  found = {key: value[:m] for key, value in _fetched(metrics).items()}
  recovery.end(name, found)
  return found


def _gathered(found: list[Metrics], reward: Callable[[Metrics], np.ndarray]) -> Outcome:
  """The outcome of children who were trained one by one; some may lack metrics."""
  names = {name for one in found for name in one}

  def values(one: Metrics, name: str) -> np.ndarray:
    return one.get(name, np.full(len(one['failed']), np.nan))

  return _outcome({name: np.concatenate([values(one, name) for one in found]) for name in names}, reward)


def _tried(work: Callable[[], Any], m: int = 1, own_program: bool = True) -> Any:
  """What `work` returns, or, if the program is too much for the machine, the metrics of m children that failed."""
  try:
    return work()
  except jax.errors.JaxRuntimeError as error:
    why = str(error)
    no_memory = 'RESOURCE_EXHAUSTED' in why or 'out of memory' in why.lower()
    if not (no_memory or own_program):
      raise
    warnings.warn(f'a child failed: {why.splitlines()[0]}', stacklevel=2)
    return {'failed': np.full(m, fit.Status.NO_MEMORY if no_memory else fit.Status.NO_PROGRAM)}


def _fetched(metrics: dict[str, Array]) -> Metrics:
  return {name: np.asarray(value) for name, value in metrics.items()}


def _outcome(metrics: Metrics, reward: Callable[[Metrics], np.ndarray]) -> Outcome:
  with np.errstate(all='ignore'):  # a failed child may have scored anything
    sound = metrics['failed'] == fit.Status.OK
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
  first: int = 50,
) -> Timing:
  """Trains a batch for one step and for more, each way, and extends the line between.

  The generic program is compiled once a search, a specialised one for each child. More steps are `first`, and then four
  times as many, until they take as long as what comes beside them, in which they would be lost.

  Args:
    build: (one of PROGRAMS, steps) to an evaluator.
    batch: of typical children.
    steps: that a child is trained for.
    children: of a search.
    kinds: what is possible; the other takes for ever.
    first: steps to train here.
  """

  def seconds(kind: str, count: int) -> tuple[float, float]:
    """Of a batch, by a fresh program and by the same again."""
    evaluate = build(kind, count)
    begun = time.perf_counter()
    evaluate(batch)
    between = time.perf_counter()
    evaluate(batch)
    return between - begun, time.perf_counter() - between

  def a_child(kind: str) -> float:
    fresh, one = seconds(kind, 1)
    count, many = 1, one
    while count < steps and many < 2 * one:
      count = min(first if count == 1 else 4 * count, steps)
      many = seconds(kind, count)[1]
    a_step = max(many - one, 0.0) / max(count - 1, 1)
    once = (fresh - one) / children if kind == 'generic' else 0.0
    return once + (one + (steps - 1) * a_step) / len(batch.keys)

  return Timing(*(a_child(kind) if kind in kinds else math.inf for kind in Timing._fields))
