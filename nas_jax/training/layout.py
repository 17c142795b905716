"""The layout of children over devices: they lie along the `child` axis of a mesh.

A CPU device computes its share of the children one after another, so that a branch on the architecture computes only
one side. An accelerator computes its share as one batch. These programs contain no collective, so devices never wait
for one another. Unlike with `pmap`, a device may have several children.
"""

from collections.abc import Callable, Sequence
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from nas_jax.types import PyTree


def child_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
  """Returns a mesh of all local devices, or of the given ones, along the axis `child`."""
  devices = jax.local_devices() if devices is None else devices
  return jax.make_mesh((len(devices),), ('child',), axis_types=(AxisType.Auto,), devices=devices)


def over_children(function: Callable, mesh: Mesh, at_once: int | None = None, **jit_options: Any) -> Any:
  """Turns `function(shared, *mine)` for one child into one program for m children.

  m must be a multiple of the number of devices. The first argument is the same for all children. The
  others and the result have a leading axis m. `at_once` is as in `on_one_device`.
  """
  local = on_one_device(function, mesh, at_once)

  def everywhere(shared, *mine):
    shared_spec, mine_spec = PartitionSpec(), PartitionSpec('child')
    specs = (shared_spec, *(mine_spec for _ in mine))
    # The devices are independent, so there is no replication for check_vma to track.
    return jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=mine_spec, check_vma=False)(shared, *mine)

  # What the function does not use stays on the device too, and the memory plan of the program counts it.
  return jax.jit(everywhere, keep_unused=True, **jit_options)


def in_turn(mesh: Mesh) -> bool:
  """Says whether each device trains its children one after another, and not as one batch."""
  return mesh.devices.flat[0].platform == 'cpu'


def on_one_device(function: Callable, mesh: Mesh, at_once: int | None = None) -> Callable:
  """Turns `function(shared, *mine)` for one child into a function for all children of one device.

  A device that trains its children as one batch takes `at_once` of them at a time, if that is given.
  """

  def each(shared, *mine):
    if in_turn(mesh) or at_once:
      return jax.lax.map(lambda one: function(shared, *one), mine, batch_size=None if in_turn(mesh) else at_once)
    return jax.vmap(functools.partial(function, shared))(*mine)

  return each


def jit_options(mesh: Mesh, of: Callable[[str], dict[str, Any]], level: int | None = None) -> dict[str, Any]:
  """Returns options of `jax.jit`, without compiler options that this version of XLA does not know.

  Args:
    mesh: the devices that the program runs on.
    of: `Child.compiler_options` of the child that the program trains.
    level: LLVM's optimization level for a program that trains one child on a CPU: 1, or 0 for a program that runs once.
      With a level the program is compiled in one thread, since other children train in the other threads, by XLA's
      older emitters and with fewer of LLVM's passes. This halves the compile time; a step takes up to 5 % longer.
  """
  platform = mesh.devices.flat[0].platform
  options = of(platform)
  if level is not None and platform == 'cpu':
    options = options | {
      'xla_cpu_use_fusion_emitters': False,
      'xla_backend_optimization_level': level,
      'xla_llvm_disable_expensive_passes': True,
      'xla_cpu_parallel_codegen_split_count': 1,
    }
  known = {name: value for name, value in options.items() if _known(name, value)}
  return {'compiler_options': known} if known else {}


@functools.cache
def _known(option: str, value: str | int) -> bool:
  """Says whether this version of XLA has a compiler option."""
  try:
    jax.jit(lambda: 0, compiler_options={option: value}).lower().compile()
  except jax.errors.JaxRuntimeError:
    return False
  return True


def memory_limit(mesh: Mesh) -> float:
  """Returns the bytes that programs may take on each device; infinity if a device, such as a CPU, does not say."""
  known = [device.memory_stats() or {} for device in mesh.local_devices]
  return min(stats.get('bytes_limit', math.inf) for stats in known)


def share(data: PyTree, mesh: Mesh) -> PyTree:
  """Puts the same arrays on every device, so that calls need not transfer them."""
  return jax.device_put(data, NamedSharding(mesh, PartitionSpec()))


def filled(arrays: PyTree, mesh: Mesh) -> PyTree:
  """Pads arrays [m, ...] with copies of the first entry to a multiple of the number of devices."""
  return jax.tree.map(lambda x: jnp.concatenate([x, jnp.repeat(x[:1], -len(x) % mesh.size, 0)]), arrays)
