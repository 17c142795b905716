"""What keeps trainings: where they stand, what they gave, and when they must end."""

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
  """What ends a child, or a search, before its time."""

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
  """The process was asked to end. All that is finished is kept, and how far the rest was trained."""


def _nothing(*_) -> None:
  """Keeps nothing."""


class Recovery(NamedTuple):
  """What is told of trainings, and asked. Each has a name, into which goes all that decides its outcome.

  `NO_RECOVERY` keeps nothing, stops nothing, and ends no training before its time.
  """

  recall: Callable[[str], Metrics | None] = _nothing  # what a training gave that ended
  failed_starts: Callable[[str], int] = lambda name: 0  # times it was begun and got nowhere
  begin: Callable[[str, PyTree], tuple[int, PyTree]] = lambda name, fresh: (0, fresh)  # program calls done, and what
  keep: Callable[[str, int, PyTree], None] = _nothing  # they led to, as told after each but the last; raises Stopped
  end: Callable[[str, Metrics], None] = _nothing
  check: Callable[[], None] = _nothing  # raises Stopped
  timeout: float = math.inf  # seconds of training a child
  starts: int = 0  # in vain, after which a child fails; 0: no end

  def crashes_process(self, name: str, starts: int) -> bool:
    """Whether a training was begun in vain so many times that it is not begun again; 0: never."""
    return bool(starts) and self.failed_starts(name) >= starts


NO_RECOVERY = Recovery()


def fingerprint(*parts: PyTree) -> str:
  """A name for trees of arrays, shapes and plain values: the same for the same ones."""
  sha = hashlib.sha256()
  for path, leaf in jax.tree_util.tree_flatten_with_path(parts)[0]:
    if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      leaf = jax.random.key_data(leaf)
    value = f'{leaf.dtype} {leaf.shape}' if hasattr(leaf, 'dtype') else repr(leaf)
    sha.update(f'{jax.tree_util.keystr(path)} {value} '.encode())
    if isinstance(leaf, (jax.Array, np.ndarray)):
      sha.update(np.asarray(leaf).tobytes())
  return sha.hexdigest()[:16]
