"""How evaluators recover trainings: saved progress, saved results, and limits that end a training early."""

from collections.abc import Callable
import dataclasses
import hashlib
import math
from typing import NamedTuple

import jax
import numpy as np

from nas_jax.config import field
from nas_jax.types import PyTree

Metrics = dict[str, np.ndarray]


@dataclasses.dataclass
class Limits:
  """Limits that end the training of a child, or a search, early."""

  child_timeout: float = field(
    0.0, 'seconds of training after which a child fails, checked between calls of the program; 0 for no limit', low=0.0
  )
  child_starts: int = field(
    3,
    'a child fails when the process has crashed in its training this many times, with no progress saved; '
    '0 for no limit',
    low=0,
  )
  max_seconds: float = field(
    0.0,
    'seconds of training, all children together, after which the search ends with its current update; 0 for no limit',
    low=0.0,
    budget=True,
  )
  target_reward: float = field(
    0.0, 'reward at which the search ends, once a child has earned it; 0 for none', low=0.0, budget=True
  )


class Stopped(Exception):
  """The process was asked to end. Finished trainings are saved, and so is the state of those in progress."""


def _nothing(*_) -> None:
  """Does nothing."""


class Recovery(NamedTuple):
  """The functions by which evaluators save and recover trainings.

  Each training has a name, a fingerprint of everything that decides its outcome.

  `NO_RECOVERY` saves nothing and stops no training.
  """

  recall: Callable[[str], Metrics | None] = _nothing  # the metrics of a training that has ended before
  failed_starts: Callable[[str], int] = lambda name: 0  # crashes of the process while only this training ran
  # (name, fresh states) -> the program calls that are done and the states after them
  begin: Callable[[str, PyTree], tuple[int, PyTree]] = lambda name, fresh: (0, fresh)
  keep: Callable[[str, int, PyTree], None] = _nothing  # called after each program call but the last; raises Stopped
  end: Callable[[str, Metrics], None] = _nothing
  leave: Callable[[str], None] = _nothing  # the training is over and has no result to recall
  check: Callable[[], None] = _nothing  # raises Stopped
  timeout: float = math.inf  # seconds of training for each child
  starts: int = 0  # failed starts after which a child fails; 0: no limit
  is_suspect: Callable[[str], bool] = lambda name: False  # the process has crashed while this and other trainings ran
  hold: Callable[[str], None] = _nothing  # called while there is progress that is not saved yet
  release: Callable[[str], None] = _nothing  # the opposite of `hold`; `keep`, `end` and `leave` imply it

  def crashes_process(self, name: str, starts: int) -> bool:
    """Says whether the process has crashed at least `starts` times in a training; never, if `starts` is 0."""
    return bool(starts) and self.failed_starts(name) >= starts


NO_RECOVERY = Recovery()


def fingerprint(*parts: PyTree) -> str:
  """Returns a name for trees of arrays, shapes and plain values: equal trees have equal names."""
  sha = hashlib.sha256()
  for path, leaf in jax.tree_util.tree_flatten_with_path(parts)[0]:
    if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      leaf = jax.random.key_data(leaf)
    value = f'{leaf.dtype} {leaf.shape}' if hasattr(leaf, 'dtype') else repr(leaf)
    sha.update(f'{jax.tree_util.keystr(path)} {value} '.encode())
    if isinstance(leaf, (jax.Array, np.ndarray)):
      sha.update(np.asarray(leaf).tobytes())
  return sha.hexdigest()[:16]
