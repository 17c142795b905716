"""Training children: many at once, over all local devices (see `layout`), in chunks of steps."""

from collections.abc import Callable, Sequence
import enum
import functools
import math
import time
from typing import Any, NamedTuple

import jax
from jax.flatten_util import ravel_pytree
import jax.numpy as jnp
from jax.sharding import Mesh
import optax

from nas_jax.nn import image_ops, precision
from nas_jax.training import layout
from nas_jax.training.child import Child
from nas_jax.training.recovery import NO_RECOVERY, Recovery
from nas_jax.types import Array, Key, PyTree


class Status(enum.IntEnum):
  """The status of a child's training. A child whose status is not OK is not trained any further."""

  OK = 0
  PADDING = 1  # not to be trained: fills up the devices, or is masked
  NOT_FINITE = 2
  NO_MEMORY = 3
  NO_PROGRAM = 4
  TOO_LONG = 5
  CRASHED = 6
  ABOVE_WEIGHTS = 7
  ABOVE_MULTIPLY_ADDS = 8

  @property
  def reason(self) -> str:
    """Why the child has failed, in words; '' for OK."""
    return _REASONS[self]

  @property
  def above_bound(self) -> bool:
    """Whether the child was not trained because it costs more than a bound; see `training.costs`."""
    return self in (Status.ABOVE_WEIGHTS, Status.ABOVE_MULTIPLY_ADDS)


_REASONS = (
  '', 'not a child', 'loss or gradient not finite', 'out of memory', 'cannot be compiled or run', 'took too long',
  'the process died of it', 'more weights than max_weights', 'more multiply-adds than max_multiply_adds',
)  # fmt: skip


class FitState(NamedTuple):
  """A child in training."""

  step: Array  # [] int32
  params: PyTree
  opt_state: PyTree
  carry: PyTree
  loss: Array  # [] of the last step
  failed: Array  # [] int32, a `Status`; once not OK, the child is left as it is


class Fit(NamedTuple):
  """Training for one kind of child. Arrays with a leading axis m lie along the `child` axis of `mesh`."""

  mesh: Mesh
  init: Callable[[PyTree, Key, Array], FitState]  # (archs [m], keys [m], real [m] bool) -> states [m]
  shapes: Callable[[PyTree, Key, Array], FitState]  # (as for `init`) -> shapes of the states; compiles nothing
  chunk: Callable[..., FitState]  # (data, steps, states, archs, keys) -> states; the given `states` are donated
  score: Callable[..., dict[str, Array]]  # (data, states, archs) -> metrics [m]
  planned: Callable[..., int]  # (data, states, archs, keys) -> bytes on each device, of compiled `chunk` or `score`
  compilations: Callable[[], int]  # programs compiled so far
  at_once: Callable[[int], Any]  # n -> a `Fit` that trains and scores n children of a device at a time
  steps: int
  steps_per_call: int
  scored: int = 1  # how many of the last calls are followed by a scoring


def advance(
  child: Child, optimizer: optax.GradientTransformation, data: PyTree, state: FitState, arch: PyTree, key: Key
) -> FitState:
  """Returns a child after one more training step. It has failed (NOT_FINITE) if its loss or gradient is not finite."""
  batch_key, loss_key = jax.random.split(jax.random.fold_in(key, state.step + 1))
  batch = child.batch(data, batch_key, state.step)
  value_and_grad = jax.value_and_grad(child.loss, has_aux=True)
  with precision.scope(child.precision):
    (loss, carry), grads = value_and_grad(state.params, arch, state.carry, batch, loss_key)
  updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  failed = jnp.where(jnp.isfinite(loss) & jnp.isfinite(image_ops.square_sum(grads)), Status.OK, Status.NOT_FINITE)
  return FitState(state.step + 1, params, opt_state, carry, loss, failed)


def untrained(
  child: Child, optimizer: optax.GradientTransformation, arch: PyTree, key: Key, in_a_row: bool = False
) -> FitState:
  """Returns a child before its first step. With `in_a_row` the optimizer sees all weights as one vector."""
  params = child.init(arch, jax.random.fold_in(key, 0))
  none = jnp.zeros((), jnp.int32)
  opt_state = optimizer.init(ravel_pytree(params)[0] if in_a_row else params)
  return FitState(none, params, opt_state, child.carry(params), jnp.zeros(()), none)


def fitter(
  child: Child,
  optimizer: Callable[[PyTree], optax.GradientTransformation],
  steps: int,
  steps_per_call: int,
  mesh: Mesh | None = None,
  scored: int = 1,
  quick: bool = False,
  at_once: int | None = None,
) -> Fit:
  """Returns the programs that train children of one kind for `steps` steps, `steps_per_call` in a program call.

  `optimizer` maps a child's arch to its optimizer, whose hyperparameters may be part of that arch. Children are scored
  after each of the last `scored` calls. `quick` shortens compilation, for children with programs of their own: see
  `layout.jit_options`. The optimizer then sees all weights as one vector, so its update is compiled once, not for each
  array. `at_once` is as in `layout.on_one_device`.
  """
  mesh = layout.child_mesh() if mesh is None else mesh

  def init(shared, arch, key, real) -> FitState:
    del shared
    return untrained(child, optimizer(arch), arch, key, quick)._replace(
      failed=jnp.where(real, Status.OK, Status.PADDING)
    )

  def chunk(shared, state: FitState, arch, key) -> FitState:
    data, count = shared
    weights, back = ravel_pytree(state.params) if quick else (state.params, lambda params: params)
    own = child._replace(loss=lambda weights, *rest: child.loss(back(weights), *rest))

    def step(_, state):
      return jax.lax.cond(
        state.failed == Status.OK, lambda s: advance(own, optimizer(arch), data, s, arch, key), lambda s: s, state
      )

    state = jax.lax.fori_loop(0, count, step, state._replace(params=weights))
    return state._replace(params=back(state.params))

  def score(data, state: FitState, arch) -> dict[str, Array]:
    with precision.scope(child.precision):
      metrics = child.score(state.params, arch, state.carry, data)
    finite = functools.reduce(jnp.logical_and, (jnp.isfinite(value).all() for value in metrics.values()))
    failed = jnp.where((state.failed == Status.OK) & ~finite, Status.NOT_FINITE, state.failed)
    return metrics | {'loss': state.loss, 'failed': failed}

  once, often = (layout.jit_options(mesh, child.compiler_options, level if quick else None) for level in (0, 1))
  many = (
    layout.over_children(init, mesh, **once),
    layout.over_children(chunk, mesh, at_once, donate_argnums=1, **often),
    layout.over_children(score, mesh, at_once, **often),
  )
  return Fit(
    mesh,
    lambda archs, keys, real: many[0]((), archs, keys, real),
    lambda archs, keys, real: jax.eval_shape(many[0], (), archs, keys, real),
    lambda data, count, states, archs, keys: many[1]((data, count), states, archs, keys),
    many[2],
    functools.partial(_planned, many[1], many[2]),
    lambda: sum(program._cache_size() for program in many),
    functools.cache(lambda n: fitter(child, optimizer, steps, steps_per_call, mesh, scored, quick, n)),
    steps,
    steps_per_call,
    scored,
  )


def _planned(chunk: Any, score: Any, data: PyTree, states: FitState, archs: PyTree, keys: Key) -> int:
  """Returns the bytes on each device of the compiled program that takes more; the shapes of states suffice."""
  lowered = chunk.lower((data, jnp.asarray(0)), states, archs, keys), score.lower(data, states, archs)
  return max(_bytes(program.compile()) for program in lowered)


def _bytes(program: jax.stages.Compiled) -> int:
  """Returns the bytes that a compiled program and its arguments take on one device; 0 if XLA does not say."""
  found: Any = program.memory_analysis()
  if found is None:
    return 0
  whole = found.argument_size_in_bytes + found.output_size_in_bytes + found.temp_size_in_bytes
  return whole - found.alias_size_in_bytes


def memory_needed(programs: Fit, archs: PyTree, keys: Key, data: PyTree, only: Sequence[int] | None = None) -> float:
  """Returns the bytes on each device that m children and `data` take, by the memory plans of the compiled programs.

  It is infinity if the compiler refuses a program because it needs more memory than there is, as on a TPU. Nothing is
  trained, and no states are allocated. The arguments are those of `begin` and `run`.
  """
  archs, keys, real = _laid_out(programs, archs, keys, only)
  try:
    return programs.planned(data, programs.shapes(archs, keys, real), archs, keys)
  except jax.errors.JaxRuntimeError as error:
    if not lacks_memory(error):
      raise
    return math.inf


def lacks_memory(error: jax.errors.JaxRuntimeError) -> bool:
  """Says whether a program could not be compiled or run for lack of memory."""
  return 'RESOURCE_EXHAUSTED' in str(error) or 'out of memory' in str(error).lower()


def begin(programs: Fit, archs: PyTree, keys: Key, only: Sequence[int] | None = None) -> tuple[FitState, PyTree, Key]:
  """Returns untrained children with their archs and keys, padded to a multiple of the number of devices.

  The padding is masked, that is, not trained. If `only` is given, all children whose index it lacks are masked too.
  """
  archs, keys, real = _laid_out(programs, archs, keys, only)
  return programs.init(archs, keys, real), archs, keys


def shapes(programs: Fit, archs: PyTree, keys: Key, only: Sequence[int] | None = None) -> FitState:
  """Returns the shapes of the states that `begin` returns."""
  return programs.shapes(*_laid_out(programs, archs, keys, only))


def _laid_out(programs: Fit, archs: PyTree, keys: Key, only: Sequence[int] | None) -> tuple[PyTree, Key, Array]:
  m = len(keys)
  archs, keys = layout.filled((archs, keys), programs.mesh)
  places = jnp.arange(len(keys))
  return archs, keys, places < m if only is None else jnp.isin(places, jnp.asarray(only))


def fit(programs: Fit, archs: PyTree, keys: Key, data: PyTree) -> dict[str, Array]:
  """Trains m children from scratch, in chunks of steps, and scores them.

  Args:
    programs: the programs of `fitter`.
    archs: [m, ...] traced architectures.
    keys: [m] a key per child.
    data: as the child's `batch` and `score` take it, best placed by `layout.share`.

  Returns:
    The metrics of the children, [m] each: the greatest value of each score over all scorings; 'loss', the last training
    loss; and 'failed', a `Status`. A child that fails keeps its weights and does not affect the others.
  """
  m = len(keys)
  _, metrics = run(programs, *begin(programs, archs, keys), data)
  return {name: value[:m] for name, value in metrics.items()}


def run(
  programs: Fit,
  states: FitState,
  archs: PyTree,
  keys: Key,
  data: PyTree,
  recovery: Recovery = NO_RECOVERY,
  name: str = '',
  seconds: float = math.inf,
) -> tuple[FitState, dict[str, Array]]:
  """Trains the children that `begin` returned. Returns their last states, and metrics as `fit` does but with padding.

  Args:
    programs: the programs of `fitter`.
    states: untrained states; `recovery` may replace them by saved ones.
    archs: as `begin` returns them.
    keys: as `begin` returns them.
    data: as in `fit`.
    recovery: recalls saved progress, and saves it between program calls.
    name: the name of this training.
    seconds: time limit, compilation excluded. Children still training then are marked TOO_LONG, and only `failed` is
      returned.

  Raises:
    Stopped: the process was asked to end. `recovery` raises this only between program calls.
  """
  calls = -(-programs.steps // programs.steps_per_call)
  shapes = jax.eval_shape(programs.score, data, states, archs)
  placed = jax.tree.map(lambda x: x.sharding, states)
  done, (states, metrics) = recovery.begin(name, (states, jax.tree.map(_least, shapes)))
  states = jax.device_put(states, placed)  # other shardings would need other programs
  if math.isfinite(seconds):
    states = programs.chunk(data, jnp.asarray(0), states, archs, keys)  # makes no step, but compiles the program
  begun = time.monotonic()
  for call in range(done, calls):
    count = min(programs.steps_per_call, programs.steps - call * programs.steps_per_call)
    states = jax.block_until_ready(programs.chunk(data, jnp.asarray(count), states, archs, keys))
    recovery.hold(name)
    if time.monotonic() - begun > seconds:
      return states, {'failed': jnp.where(states.failed == Status.OK, Status.TOO_LONG, states.failed)}
    if call >= calls - programs.scored:
      found = programs.score(data, states, archs)
      metrics = {key: jnp.maximum(value, metrics[key]) for key, value in found.items()} | {'loss': found['loss']}
    if call + 1 < calls:
      recovery.keep(name, call + 1, (states, metrics))
  return states, metrics


def _least(shape: jax.ShapeDtypeStruct) -> Array:
  """Returns the least value of the type, so that the maximum with any other value is that other value."""
  low = -jnp.inf if jnp.issubdtype(shape.dtype, jnp.floating) else jnp.iinfo(shape.dtype).min
  return jnp.full(shape.shape, low, shape.dtype)
