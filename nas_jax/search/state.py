"""The config and the state that every search has. The state decides the future of the search."""

import dataclasses
from typing import Any, ClassVar, NamedTuple

from nas_jax.config import Seed, field
from nas_jax.search import algorithms
from nas_jax.types import Array, Key, PyTree

KNOWN = ('train', 'reuse', 'avoid')
PROPOSALS = ('policy', 'guided')


@dataclasses.dataclass
class Config(algorithms.Config, Seed):
  """The settings that every search has. The defaults are those of Zoph & Le.

  On CIFAR-10 they had 100 controller replicas with 8 children each and a learning rate of 6e-4, on Penn Treebank 400
  replicas with one child each and a rate of 5e-4.
  """

  known: str = field(
    'train',
    "what happens to a token sequence that was trained before: 'train' trains it again, as Zoph & Le do; 'reuse' lets "
    "its child earn what was measured, without training; 'avoid' takes the first unknown one of 32 proposals, and "
    'reuses what was measured if all are known',
    choices=KNOWN,
    first=True,
  )
  proposals: str = field(
    'policy',
    "who chooses what is tried: 'policy', the algorithm alone; 'guided', a Gaussian process that is fitted to all "
    'rewards and chooses among proposals of the algorithm and mutations of the best children',
    choices=PROPOSALS,
    first=True,
  )
  guide_draws: int = field(
    64,
    'how many proposals of the algorithm the Gaussian process of proposals=guided chooses among, for each child',
    low=1,
    high=4096,
    former=32,
  )
  guide_mutations: int = field(
    64,
    'how many mutations of the best children the Gaussian process of proposals=guided chooses among, for each child',
    low=1,
    high=4096,
    former=16,
  )
  depth_start: int = field(
    0, 'layers of the first children, which then grow deeper, 0 for max_depth from the start; 6 in Sec. 4.1', low=0
  )
  depth_step: int = field(2, 'by how many layers children grow each time, Sec. 4.1', low=1)
  depth_every: int = field(1600, 'children after which they grow deeper again, Sec. 4.1', low=1)

  # See `config.with_added`.
  added: ClassVar[dict[str, Any]] = {
    'known': 'train', 'proposals': 'policy', 'guide_draws': 32, 'guide_mutations': 16,
  }  # fmt: skip


def title(cfg: Config) -> str:
  """Returns the name of the method that chooses architectures, such as 'guided reinforce'."""
  return f'guided {cfg.algorithm}' if cfg.proposals == 'guided' else cfg.algorithm


class Best(NamedTuple):
  """The best child so far, of those that did not fail."""

  reward: Array  # []; minus infinity if there is none
  id: Array  # [] int32; -1 if there is none
  tokens: Array  # [T] int32
  depth: Array  # [] int32, layers


class SearchState(NamedTuple):
  """Everything that decides the future of a search."""

  step: Array  # [] int32, updates so far
  key: Key  # the run's key, which never changes: steps and children fold their numbers into it
  algorithm: PyTree  # what the search algorithm keeps: controller, optimizer, baseline
  best: Best
  worst: Array  # [] the least reward of all children that trained; infinity before the first
  children: PyTree = ()  # the weights, if children share them; () if each trains its own
  replay: PyTree = ()  # what a search with rewards for every layer remembers of earlier architectures, else ()
  history: PyTree = ()  # a `history.History` if the search needs to know what it has asked for, else ()
  guide: PyTree = ()  # a `guide.Guide` if a Gaussian process chooses among proposals, else ()
