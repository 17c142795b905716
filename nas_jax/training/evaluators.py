"""Evaluators train the children of a batch and reward them for what they score.

All build on `attempt`, which runs one training: it recalls the result of a finished training, resumes an interrupted
one, and reports a failure as a status. Three evaluators schedule attempts: `from_scratch` trains all children by one
program, `static_programs` each child by a program of its own, and `warm_started` one child after another, each from the
weights of the child before it.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
import functools
import math
import queue
from typing import NamedTuple
import warnings

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import numpy as np

from nas_jax.controller import uniform_controller
from nas_jax.space import Space, unstack
from nas_jax.training import costs, fit, layout
from nas_jax.training.child import Child
from nas_jax.training.problem import Problem, static_fitter, traced_fitter
from nas_jax.training.recovery import NO_RECOVERY, Metrics, Recovery, fingerprint
from nas_jax.training.rewards import Reward
from nas_jax.types import Batch, Evaluate, Key, Outcome, PyTree

StaticPrograms = Callable[[PyTree, Mesh], fit.Fit]  # (static arch, mesh of one device); the programs take () as arch


class Known(NamedTuple):
  """A known architecture and the evaluator that scores it."""

  arch: PyTree  # static
  evaluate: Evaluate


def build(problem: Problem, mesh: Mesh | None = None, recovery: Recovery = NO_RECOVERY) -> Evaluate:
  """Returns the evaluator that trains and scores each child of a problem by itself, with the problem's `program`.

  If the problem counts the cost of architectures, its bounds and its shaping of rewards apply: see `costs.accounted`.

  Args:
    problem: the task of the children.
    mesh: the devices of the training; all local devices by default.
    recovery: recalls, saves and ends trainings.
  """
  train = _trainer(problem, mesh, recovery)
  if problem.cost_of is None:
    return train
  return costs.accounted(train, problem.cost_of, problem.bounds, problem.shaping)


def _trainer(problem: Problem, mesh: Mesh | None, recovery: Recovery) -> Evaluate:
  """Returns the evaluator of a problem without regard to the cost of architectures."""
  devices, static = None if mesh is None else list(mesh.devices.flat), functools.partial(static_fitter, problem)
  data, reward = problem.data, problem.own_reward
  if problem.warm_start:
    return warm_started(static, data, reward, problem.warm_start, devices[0] if devices else None, recovery)
  if problem.traced is None or problem.own_programs:
    return static_programs(static, data, reward, devices, recovery)

  @functools.cache
  def of(child: Child) -> Evaluate:
    return from_scratch(traced_fitter(problem, child, mesh), data, reward, recovery)

  network = problem.traced
  return lambda batch: of(network(batch.archs))(batch)


def on_first_use(make: Callable[[], Evaluate]) -> Evaluate:
  """Returns an evaluator that calls `make` on its first use and keeps the evaluator that `make` returns."""
  made = functools.cache(make)
  return lambda batch: made()(batch)


class Attempt(NamedTuple):
  """The result of a training."""

  metrics: Metrics  # [m] each; 'failed' holds a `fit.Status`, and is the only metric if there is no other result
  params: PyTree = None  # [m, ...] the last weights; None if the training was recalled or has failed as a whole


def attempt(
  programs: fit.Fit,
  archs: PyTree,
  keys: Key,
  data: PyTree,
  recovery: Recovery,
  name: str,
  starts: int,
  only: tuple[int, ...] | None = None,
  own_program: bool = True,
  warm_start: Callable[[PyTree], PyTree] = lambda params: params,
) -> Attempt:
  """Trains m children by one program, from the state that `recovery` has saved, if any.

  A training that has ended before is recalled and not repeated. A training fails with CRASHED if its process has died
  `starts` times before any progress was saved. A program that does not fit in memory fails with NO_MEMORY, and one that
  cannot be compiled or run with NO_PROGRAM. These failures concern all m children. Other failures are those of
  `fit.run`.

  Args:
    programs: the programs of `fit.fitter`.
    archs: [m, ...] traced architectures, or () for programs of a static one.
    keys: [m] a key for each child.
    data: as the child takes it, placed by `layout.share`.
    recovery: recalls, saves and ends trainings.
    name: the name of this training, a fingerprint of everything that decides its outcome.
    starts: as above; 0 for no limit.
    only: the indices of the children to train; the others are masked. None for all.
    own_program: whether only these children use the program. If not, a program that cannot be compiled or run is no
      child's fault, and its error is raised.
    warm_start: (initial weights [m, ...]) -> the weights to start from.
  """
  m = len(keys)

  def failed(status: fit.Status) -> Attempt:
    return Attempt({'failed': np.full(m, status)})

  if (known := recovery.recall(name)) is not None:
    return Attempt(known)
  if recovery.crashes_process(name, starts):
    return failed(fit.Status.CRASHED)
  seconds = recovery.timeout * (m if only is None else len(only))
  try:
    if not _fits(programs, archs, keys, data, only):
      return failed(fit.Status.NO_MEMORY)
    states, archs, keys = fit.begin(programs, archs, keys, only)
    states = states._replace(params=warm_start(states.params))
    states, found = fit.run(programs, states, archs, keys, data, recovery, name, seconds)
    metrics = {key: np.asarray(value)[:m] for key, value in found.items()}
  except jax.errors.JaxRuntimeError as error:
    no_memory = fit.lacks_memory(error)
    if not (no_memory or own_program):
      raise
    recovery.leave(name)
    warnings.warn(f'a child failed: {str(error).splitlines()[0]}', stacklevel=2)
    return failed(fit.Status.NO_MEMORY if no_memory else fit.Status.NO_PROGRAM)
  recovery.end(name, metrics)
  return Attempt(metrics, states.params)


def _fits(programs: fit.Fit, archs: PyTree, keys: Key, data: PyTree, only: tuple[int, ...] | None) -> bool:
  """Says whether a program fits in memory, by the memory plans of the compiled programs.

  True if devices do not report their memory, or if each child has a device to itself; then nothing is compiled.
  """
  limit = layout.memory_limit(programs.mesh)
  if len(keys) <= programs.mesh.size or math.isinf(limit):
    return True
  return fit.memory_needed(programs, archs, keys, data, only) <= limit


def from_scratch(programs: fit.Fit, data: PyTree, reward: Reward, recovery: Recovery = NO_RECOVERY) -> Evaluate:
  """Returns an evaluator that trains all children of a batch by one program, which takes traced architectures.

  If a batch does not fit in memory it is split in halves until it does; a child that does not fit alone fails. On
  devices that report their memory, the memory plan of the compiled program decides this before anything is trained.
  If a batch has crashed the process, it is retrained one child at a time, the others masked. This isolates the child
  that crashes; its siblings get the rewards they would have had.

  Args:
    programs: the programs of `fit.fitter`.
    data: as the child takes it.
    reward: (metrics of m children) -> rewards [m]. Children that failed get 0 instead.
    recovery: recalls, saves and ends trainings.
  """
  data = layout.share(data, programs.mesh)

  def train(archs: PyTree, keys: Key, wanted: np.ndarray) -> list[Metrics]:
    m, starts = len(keys), recovery.starts
    if not wanted.any():
      return [_untrained(m)]

    def once(starts: int, wanted: np.ndarray = wanted) -> Metrics:
      only = None if wanted.all() else tuple(np.flatnonzero(wanted).tolist())
      name = _name(programs, archs, keys, only)
      return attempt(programs, archs, keys, data, recovery, name, starts, only, own_program=False).metrics

    def alone(k: int) -> Metrics:
      found = once(min(starts, 1), np.arange(m) == k) if wanted[k] else _untrained(m)
      return {key: values[k : k + 1] for key, values in found.items()}

    # Of several starts, the last one is reserved for training the children one at a time. 0 still means no limit.
    found = once(starts if m == 1 else min(starts, max(1, starts - 1)))
    if m > 1 and (found['failed'] == fit.Status.CRASHED).all():
      return [alone(k) for k in range(m)]
    if m == 1 or (found['failed'] != fit.Status.NO_MEMORY).all():
      return [found]
    halves = (slice(m // 2), slice(m // 2, m))
    return [
      part for half in halves for part in train(*jax.tree.map(lambda x, half=half: x[half], (archs, keys, wanted)))
    ]

  return lambda batch: _outcome(train(batch.archs, batch.keys, _wanted(batch)), reward)


def static_programs(
  programs: StaticPrograms,
  data: PyTree,
  reward: Reward,
  devices: Sequence[jax.Device] | None = None,
  recovery: Recovery = NO_RECOVERY,
) -> Evaluate:
  """Returns an evaluator that trains each child by a program of its own, whose architecture is static.

  No operation is chosen while such a program runs, but each child costs a compilation. A child whose program does not
  fit in memory, or cannot be compiled, fails alone. Each device takes the next child as soon as it is free. If the
  process has crashed while it trained several, they are retrained one at a time. This isolates the one that crashes.

  Args:
    programs: the programs of one child.
    data: as the child takes it.
    reward: as in `from_scratch`.
    devices: where children are trained; all local devices by default.
    recovery: recalls, saves and ends trainings.
  """
  meshes = [layout.child_mesh([device]) for device in (devices or jax.local_devices())]
  free = queue.SimpleQueue[tuple[Mesh, PyTree]]()
  for mesh in meshes:
    free.put((mesh, layout.share(data, mesh)))

  def evaluate(batch: Batch) -> Outcome:
    double = jax.dtypes.canonicalize_dtype(np.float64) == np.float64  # threads do not inherit a scope of this setting

    def train(arch: PyTree, key: Key, alone: bool = False) -> Metrics | None:
      mesh, local = place = free.get()
      try:
        with jax.enable_x64(double):
          made = programs(arch, mesh)
          name = _name(made, (), key, arch=arch)
          if recovery.is_suspect(name) and not alone:
            return None
          return attempt(made, (), key, local, recovery, name, recovery.starts).metrics
      finally:
        free.put(place)

    archs, keys = unstack(batch.archs), [batch.keys[k : k + 1] for k in range(len(batch.keys))]
    wanted, found = np.flatnonzero(_wanted(batch)), [_untrained(1) for _ in keys]
    with ThreadPoolExecutor(len(meshes)) as threads:
      trained = list(threads.map(train, [archs[k] for k in wanted], [keys[k] for k in wanted]))
    # If the process has died while several children were trained, each of them is now trained alone.
    for k, metrics in zip(wanted, trained, strict=True):
      if metrics := metrics or train(archs[k], keys[k], alone=True):
        found[k] = metrics
    return _outcome(found, reward)

  return evaluate


def warm_started(
  programs: StaticPrograms,
  data: PyTree,
  reward: Reward,
  warm_start: Callable[[PyTree, PyTree], PyTree],
  device: jax.Device | None = None,
  recovery: Recovery = NO_RECOVERY,
) -> Evaluate:
  """Returns an evaluator that trains children one after another, each from the weights of the child before it.

  The first child of a batch starts from its own initial weights, and so does a child after one that failed. As in
  `static_programs`, each child has a program of its own.

  Args:
    programs: as in `static_programs`.
    data: as the child takes it.
    reward: as in `from_scratch`.
    warm_start: (initial weights, weights of the child before), each with a leading axis of 1 -> weights to start from.
    device: where children are trained; the first local device by default.
    recovery: saves progress. A finished training is not recalled, since the next child needs its weights too.
  """
  mesh = layout.child_mesh([device or jax.local_devices()[0]])
  data = layout.share(data, mesh)
  forgetful = recovery._replace(recall=NO_RECOVERY.recall, end=lambda name, metrics: recovery.leave(name))

  def evaluate(batch: Batch) -> Outcome:
    found, parent, wanted = list[Metrics](), None, _wanted(batch)
    for k, arch in enumerate(unstack(batch.archs)):
      if not wanted[k]:
        found.append(_untrained(1))
        continue
      made, key = programs(arch, mesh), batch.keys[k : k + 1]
      name = fingerprint(arch, key, made.steps, 'inherits')

      def start(params: PyTree, parent: PyTree = parent) -> PyTree:
        return params if parent is None else warm_start(params, parent)

      metrics, params = attempt(made, (), key, data, forgetful, name, recovery.starts, warm_start=start)
      parent = params if metrics['failed'][0] == fit.Status.OK else None
      found.append(metrics)
    return _outcome(found, reward)

  return evaluate


def _wanted(batch: Batch) -> np.ndarray:
  """Returns which children of a batch are to be trained, [m] bool; the rewards of the others are known."""
  m = len(batch.keys)
  return np.ones(m, bool) if batch.repeats is None else ~np.asarray(batch.repeats.known)


def _untrained(m: int) -> Metrics:
  """Returns placeholder metrics of m children that are not trained."""
  return {'failed': np.full(m, fit.Status.PADDING)}


def _name(programs: fit.Fit, archs: PyTree, keys: Key, only: tuple[int, ...] | None = None, arch: PyTree = ()) -> str:
  """Returns the name of a training; `arch` is the static architecture if the program is for that architecture only."""
  return fingerprint(arch, archs, keys, fit.shapes(programs, archs, keys, only), programs.steps, only)


def _outcome(parts: Sequence[Metrics], reward: Reward) -> Outcome:
  """Returns the outcome of a batch that was trained in parts."""
  metrics = concatenate(parts, [len(part['failed']) for part in parts])
  sound = metrics['failed'] == fit.Status.OK
  with np.errstate(all='ignore'):  # a failed child may have scored anything
    earned = np.where(sound, reward(metrics), 0.0) if sound.any() else np.zeros(len(sound))
  return Outcome(jnp.asarray(earned, jnp.float32), metrics, failed=jnp.asarray(~sound))


def concatenate(parts: Sequence[Metrics], counts: Sequence[int]) -> Metrics:
  """Returns the metrics of children that were trained in parts of `counts` children, NaN where a part lacks one."""
  names = dict.fromkeys(name for part in parts for name in part)

  def values(name: str) -> list[np.ndarray]:
    return [part.get(name, np.full(count, np.nan)) for part, count in zip(parts, counts, strict=True)]

  return {name: np.concatenate(values(name)) for name in names}


def random_batch(space: Space, key: Key, m: int) -> Batch:
  """Returns a batch of m children whose tokens are drawn uniformly."""
  keys = jax.random.split(key, m)
  tokens = jax.vmap(lambda key: uniform_controller(space).sample((), key))(keys)
  return Batch(jnp.arange(m, dtype=jnp.int32), keys, tokens, space.decode_batch(tokens))
