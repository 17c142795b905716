"""Search algorithms, one file each.

To add one, write a file with a function `build(space, cfg) -> Algorithm` and list it in ALGORITHMS. If it has settings
of its own, define them in that file, as a dataclass `Config`, and add this to the bases of `Config` below. The tests in
`tests/systems/contract_test.py` run for every algorithm of the list.
"""

from collections.abc import Callable
import dataclasses

from nas_jax.config import field
from nas_jax.search.algorithms import evolution, ppo, pqt, random, reinforce
from nas_jax.search.algorithms.base import Algorithm
from nas_jax.space import Space

ALGORITHMS: dict[str, Callable[[Space, 'Config'], Algorithm]] = {
  'reinforce': reinforce.build,
  'random': random.build,
  'evolution': evolution.build,
  'pqt': pqt.build,
  'ppo': ppo.build,
}


@dataclasses.dataclass
class Config(evolution.Config, pqt.Config, ppo.Config, reinforce.Config):
  """The algorithm of a search, and the settings of all algorithms. Each algorithm reads its own settings."""

  algorithm: str = field(
    'reinforce',
    'what chooses the architectures to try; on a command line, an algorithm that is named searches by itself: '
    "--proposals and --known are then 'policy' and 'train' unless they are given, whatever the preset has",
    choices=tuple(ALGORITHMS),
    first=True,
  )


def build(space: Space, cfg: Config) -> Algorithm:
  """Returns the algorithm that `cfg` names."""
  return ALGORITHMS[cfg.algorithm](space, cfg)
