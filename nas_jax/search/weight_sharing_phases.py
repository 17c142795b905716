"""The two phases of searches whose children share weights, as programs: see `weight_sharing`."""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
import optax

from nas_jax.nn import precision
from nas_jax.search.state import SearchState
from nas_jax.training import fit, layout
from nas_jax.training.child import Child
from nas_jax.types import Array, Key, PyTree

CALL_STEPS = 50  # the most minibatches of training in one program call; the search can be stopped between calls
# Seconds that a device waits for the others in `Programs.updates`. They are many, as a busy machine may delay a device.
PATIENCE = {'xla_cpu_collective_call_terminate_timeout_seconds': 3600, 'xla_cpu_collective_timeout_seconds': 3600}

Score = Callable[[PyTree, Key], dict[str, Array]]  # (archs [m], key of the minibatch) -> metrics [m]
MakeUpdate = Callable[[Score, SearchState], tuple[SearchState, PyTree]]  # an update: the state after it, its results
Updates = Callable[[fit.FitState, SearchState, int], PyTree]  # (weights, state, count) -> results [most, ...]


class Programs(NamedTuple):
  """The two phases, each compiled once for all architectures."""

  init: Callable[[Key], fit.FitState]  # the shared weights, untrained; `failed` counts steps that were left out
  learn: Callable[..., fit.FitState]  # one pass: (weights, archs [steps, M, ...], key, check=None)
  score: Callable[[fit.FitState, PyTree, Key], dict[str, Array]]  # (weights, archs [m], key of the minibatch)
  score_all: Callable[[fit.FitState, PyTree], dict[str, Array]]  # the same on the whole validation split
  updates: Callable[[MakeUpdate, int], Updates]  # (makes one update, most updates in a call) -> program
  steps: int  # minibatches in a pass
  compilations: Callable[[], dict[str, int]]  # programs compiled so far, by phase


def build_phases(
  child: Child,
  arch: PyTree,
  optimizer: optax.GradientTransformation,
  data: PyTree,
  minibatch: Callable[[PyTree, Key], PyTree],
  steps: int,
  mesh: Mesh | None = None,
) -> Programs:
  """Returns the phases of a search.

  Args:
    child: the network whose parameters are the shared weights; its architecture is traced.
    arch: any traced architecture, for its shapes.
    optimizer: the optimizer of the shared weights.
    data: as the child's `batch` and `score` take it.
    minibatch: (data, key) -> the same data with a part of the validation split.
    steps: minibatches in a pass over the training data.
    mesh: the devices that children are scored on, all local ones by default. The weights are trained on the first.
  """
  mesh = layout.child_mesh() if mesh is None else mesh
  several, options = _averaged(child), layout.jit_options(mesh, child.compiler_options)

  def learn(data: PyTree, weights: fit.FitState, archs: PyTree, key: Key, first: Array, count: int) -> fit.FitState:
    def step(k, weights):
      after = fit.advance(several, optimizer, data, weights, jax.tree.map(lambda x: x[first + k], archs), key)
      # A step whose loss is not finite would spoil the weights of all children: it is left out, and counted.
      fine, exists = after.failed == fit.Status.OK, first + k < len(jax.tree.leaves(archs)[0])
      kept = jax.tree.map(lambda new, old: jnp.where(fine & exists, new, old), after, weights)
      return kept._replace(step=weights.step + exists, failed=weights.failed + (exists & ~fine))

    return jax.lax.fori_loop(0, count, step, weights)

  def one(part: Callable[[PyTree, Key], PyTree], shared: PyTree, arch: PyTree) -> dict[str, Array]:
    data, params, carry, key = shared
    with precision.scope(child.precision):
      metrics = child.score(params, arch, carry, part(data, key))
    finite = jnp.stack([jnp.isfinite(value) for value in metrics.values()]).all()
    return metrics | {'failed': jnp.where(finite, fit.Status.OK, fit.Status.NOT_FINITE)}

  def score(part: Callable[[PyTree, Key], PyTree]):
    program = layout.over_children(functools.partial(one, part), mesh, **options)
    compiled.append(program)

    def scored(weights: fit.FitState, archs: PyTree, key: Key) -> dict[str, Array]:
      m = len(jax.tree.leaves(archs)[0])
      found = program((placed, weights.params, weights.carry, key), layout.filled(archs, mesh))
      return {name: value[:m] for name, value in found.items()}

    return scored

  def updates(update: MakeUpdate, most: int) -> Updates:
    patience = PATIENCE if mesh.size > 1 else {}
    waiting = layout.jit_options(mesh, lambda platform: child.compiler_options(platform) | patience)
    program = _several(functools.partial(one, minibatch), update, most, mesh, waiting)
    return lambda weights, state, count: program((placed, weights.params, weights.carry), state, jnp.int32(count))

  def a_pass(weights: fit.FitState, archs: PyTree, key: Key, check: Callable[[], None] = lambda: None) -> fit.FitState:
    steps = len(jax.tree.leaves(archs)[0])
    # All calls have the same number of steps. The last call may have surplus steps, which change nothing.
    each = -(-steps // -(-steps // CALL_STEPS))
    for first in range(0, steps, each):
      weights = jax.block_until_ready(learned(here, weights, archs, key, jnp.int32(first), each))
      check()
    return weights

  compiled = list[Any]()
  learned: Any = jax.jit(learn, static_argnums=5, **options)
  placed = layout.share(data, mesh)
  here = jax.tree.map(jnp.asarray, data)  # committed to no device, like the state, which all devices score
  some, every = score(minibatch), score(lambda data, key: data)
  return Programs(
    init=jax.jit(lambda key: fit.untrained(child, optimizer, arch, key), **options),
    learn=a_pass,
    score=some,
    score_all=lambda weights, archs: every(weights, archs, jax.random.key(0)),
    updates=updates,
    steps=steps,
    compilations=lambda: {'learn': learned._cache_size(), 'score': compiled[0]._cache_size()},
  )


def _several(
  one: Callable[[PyTree, PyTree], dict[str, Array]], update: MakeUpdate, most: int, mesh: Mesh, options: dict[str, Any]
) -> Callable[[PyTree, SearchState, Array], PyTree]:
  """Returns a program of up to `most` updates: (data, params and carry of the weights; state; count) -> results.

  All devices make the same updates. Each device scores its share of the children and sends the scores to the others.

  Args:
    one: scores a child: (data, params, carry and key of the minibatch; arch) -> metrics.
    update: makes one update, given a function that scores children.
    most: the number of updates that fit into one call.
    mesh: the devices.
    options: for the compiler.
  """
  mine = layout.on_one_device(one, mesh)

  def everywhere(shared: PyTree, state: SearchState, count: Array) -> PyTree:
    def score(archs: PyTree, key: Key) -> dict[str, Array]:
      m, whole = len(jax.tree.leaves(archs)[0]), layout.filled(archs, mesh)
      each = -(-m // mesh.size)
      first = jax.lax.axis_index('child') * each
      found = mine((*shared, key), jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, first, each), whole))
      return {name: jax.lax.all_gather(value, 'child', tiled=True)[:m] for name, value in found.items()}

    made = functools.partial(update, score)
    nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(made, state)[1])

    def step(state: SearchState, k: Array) -> tuple[SearchState, PyTree]:
      return jax.lax.cond(k < count, made, lambda state: (state, nothing), state)

    return jax.lax.scan(step, state, jnp.arange(most))[1]

  same = PartitionSpec()
  return jax.jit(jax.shard_map(everywhere, mesh=mesh, in_specs=same, out_specs=same, check_vma=False), **options)


def _averaged(child: Child) -> Child:
  """Returns a child whose loss is the mean over architectures [M, ...]; the carry passes from one to the next."""

  def loss(params, archs, carry, batch, key):
    def one(carry, inputs):
      loss, carry = child.loss(params, inputs[0], carry, batch, inputs[1])
      return carry, loss

    keys = jax.random.split(key, len(jax.tree.leaves(archs)[0]))
    if len(keys) == 1:  # no loop, since a loop would store everything that the gradient needs
      return one(carry, jax.tree.map(lambda x: x[0], (archs, keys)))[::-1]
    carry, losses = jax.lax.scan(one, carry, (archs, keys))
    return losses.mean(), carry

  return child._replace(loss=loss)
