"""The gain from more devices and from more children at once: cells, trained by the one program for all."""

import contextlib
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench.cells import SIZES, SMALL, Task, task
from experiments.bench.timing import Row, Setup, Way, alternating, at_least, at_most, row
from experiments.bench.trained import Group, group
from nas_jax.training import fit, layout

MANY = 1, 2, 4, 8, 16, 32, 64  # numbers of children in a program call


def rows(setup: Setup) -> list[Row]:
  """Measures two devices against one, many children in a call against few, and the memory of a child."""
  size = SMALL if setup.small else SIZES[0]._replace(steps=20)
  count = MANY[:4] if setup.small else MANY
  own = task(size)
  found = [*growing(own, count, setup.repeats), *memory(own, count)]
  return found if jax.local_device_count() == 1 else [*doubled(own, setup.repeats), *found]


def doubled(own: Task, repeats: int) -> list[Row]:
  """Measures four children on two devices against one device.

  XLA lets one CPU device use idle cores for parts of its work, so one device is also measured pinned to one core.
  """
  one, two = (trained(own, 4, n).further for n in (1, 2))
  found = alternating({'two': two, 'one': one, 'lone': lambda: on_one_core(one)}, repeats)
  name = 'children an hour, two devices against one'
  return [
    row(f'{name} on one core', found['lone'] / found['two'], bar=at_least(1.8)),
    row(f'{name} that may use all cores', found['one'] / found['two']),
  ]


def on_one_core(work: Way) -> float:
  """Returns the seconds of `work` with all threads of this process pinned to one core, if the system supports it."""
  if not hasattr(os, 'sched_setaffinity'):
    return work()
  cores = os.sched_getaffinity(0)
  _place(set(list(cores)[:1]))
  try:
    return work()
  finally:
    _place(cores)


def _place(cores: set[int]) -> None:
  for thread in os.listdir('/proc/self/task'):
    with contextlib.suppress(OSError):  # the thread has ended
      os.sched_setaffinity(int(thread), cores)


def growing(own: Task, count: tuple[int, ...], repeats: int) -> list[Row]:
  """Measures training steps an hour for each number of children in a call."""
  devices = min(2, jax.local_device_count())
  found = alternating({str(m): trained(own, m, devices).further for m in count}, repeats)
  rates = {m: 3600 * m * own.size.steps / found[str(m)] for m in count}
  shown = [row(f'{own.size.words}: m={m}', rate * 1e-6, 'M steps/h') for m, rate in rates.items()]
  medians = np.array([each.value for each in shown])
  worst = (medians[1:] / np.maximum.accumulate(medians)[:-1]).min()
  note = 'of the medians; 5 % are noise'
  return [
    *shown,
    Row('the same, each m against the best of those below it, the least', float(worst), 'x', at_least(0.95), note=note),
  ]


def memory(own: Task, count: tuple[int, ...]) -> list[Row]:
  """Returns the memory that each further child takes, according to XLA's plan of the training program."""
  some = count[1], count[len(count) // 2], count[-1]
  needed = [planned(own, m) for m in some]
  each = np.diff(needed) / np.diff(some)
  whole = Row(
    'memory of a further child',
    float(each[-1] / 2**20),
    'MiB',
    note=f'beside {needed[0] / 2**20:.1f} MiB at m={some[0]}',
  )
  return [whole, Row('the same, last against first', float(each[-1] / max(each[0], 1.0)), 'x', at_most(1.05))]


def planned(own: Task, m: int) -> int:
  """Returns the bytes that XLA plans for the training program of m children on one device."""
  programs = own.programs(None, layout.child_mesh(jax.local_devices()[:1]))
  archs, keys = own.children(m)
  shapes = fit.shapes(programs, archs, keys), archs, keys
  chunk = jax.jit(lambda *args: programs.chunk(*args), donate_argnums=2)
  found: Any = chunk.lower(own.data, jnp.asarray(0), *shapes).compile().memory_analysis()
  return (
    found.argument_size_in_bytes + found.output_size_in_bytes + found.temp_size_in_bytes - found.alias_size_in_bytes
  )


def trained(own: Task, m: int, devices: int) -> Group:
  """Returns the training of `m` children on `devices` devices."""
  programs = own.programs(None, layout.child_mesh(jax.local_devices()[:devices]))
  return group(programs, *own.children(m), own.data, own.size.steps)
