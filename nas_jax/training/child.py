"""A child network as the trainer sees it: pure functions with the architecture as an argument."""

from collections.abc import Callable
import functools
import math
from typing import Any, NamedTuple

import jax

from nas_jax.types import Array, Key, PyTree

MOST_WEIGHTS = 2**31  # the most weights of a network: 8 GiB, and training takes several times as much


class Child(NamedTuple):
  """One network family. All functions are for one child; the trainer maps them over many.

  `arch` holds everything in which children differ: the architecture, and the hyperparameters if these differ too.

  Attributes:
    init: (arch, key) -> params.
    carry: (params) -> the initial state beside the weights, updated in each step: recurrent state, moving statistics.
    batch: (data, key, step) -> the training batch of that step, taken from device-resident arrays.
    loss: (params, arch, carry, batch, key) -> (loss [] in nats per prediction, carry), in training mode.
    score: (params, arch, carry, data) -> dict of [] arrays, in evaluation mode over the whole validation split.
    compiler_options: (platform) -> XLA's options for the programs of this child.
    precision: of matrix products and convolutions, one of `precision.PRECISIONS`; the trainer applies it to `loss` and
      `score`.
  """

  init: Callable[[PyTree, Key], PyTree]
  carry: Callable[[PyTree], PyTree]
  batch: Callable[[PyTree, Key, Array], PyTree]
  loss: Callable[[PyTree, PyTree, PyTree, PyTree, Key], tuple[Array, PyTree]]
  score: Callable[[PyTree, PyTree, PyTree, PyTree], dict[str, Array]]
  compiler_options: Callable[[str], dict[str, Any]] = lambda platform: {}
  precision: str = 'float32'


def count_weights(init: Callable[[], PyTree]) -> int:
  """Returns how many weights `init` returns. Nothing is compiled or allocated."""
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(jax.eval_shape(init)))


def nearest_size(count: Callable[[int], int], wanted: int, least: int = 1) -> int:
  """Returns the size, at least `least`, of the network whose number of weights is nearest to `wanted`.

  Args:
    count: returns the number of weights of the network of a size; it must grow with the size.
    wanted: the number of weights. Of two sizes equally near to it, the smaller one is returned.
    least: the smallest size.
  """
  count, low, step = functools.cache(count), least, 1
  while count(low + step) < wanted:
    low, step = low + step, 2 * step
  high = low + step
  while high - low > 1:
    middle = (low + high) // 2
    low, high = (middle, high) if count(middle) < wanted else (low, middle)
  return min((low, high), key=lambda size: abs(count(size) - wanted))


def check_weights(count: int, way_out: str) -> None:
  """Raises ValueError if a network has too many weights to be made; `way_out` says what to do instead."""
  if count > MOST_WEIGHTS:
    size = f'{count} weights, {4 * count / 2**30:.0f} GiB'
    raise ValueError(f'the network would have {size}: want at most {MOST_WEIGHTS}; take {way_out}')


def bind_arch(child: Child, complete: Callable[[PyTree], PyTree]) -> Child:
  """Returns `child` with a smaller `arch` argument, which `complete` extends to the arch that `child` takes."""
  return child._replace(
    init=lambda part, key: child.init(complete(part), key),
    loss=lambda params, part, carry, batch, key: child.loss(params, complete(part), carry, batch, key),
    score=lambda params, part, carry, data: child.score(params, complete(part), carry, data),
  )
