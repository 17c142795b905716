"""The stages of a whole search, and the parts that differ between kinds of searches.

`search_flow` runs the stages. `from_scratch` has them for children that train each by itself, `weight_sharing` for
children that share weights.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Any, NamedTuple

from experiments.common.progress import Progress
from experiments.common.systems import Arch, Config, Data, System
from nas_jax import config, search
from nas_jax.crew import Crew
from nas_jax.search import journal
from nas_jax.training.problem import Problem
from nas_jax.training.recovery import Recovery
from nas_jax.types import Evaluate

# Decides where children are trained. It takes the evaluators of this process by name and returns the evaluators that
# the search uses under these names: either unchanged, or ones that have each batch trained elsewhere.
Place = Callable[[Mapping[str, Evaluate]], Mapping[str, Evaluate]]


class Run(NamedTuple):
  """A search in a workdir, new or continued."""

  system: System
  cfg: Config
  data: Data
  problem: Problem  # of `cfg` and `data`
  workdir: str
  recovery: Recovery
  beside: Mapping[str, Arch]  # architectures by name, to train as the children are trained
  reload: Callable[[Config], Data]  # see `on_other_data`
  progress: Progress  # shows how far the run is
  width: int = 1  # children of asynchronous replicas that are trained at once: as many as there are devices
  crew: Crew | None = None  # who trains the children of asynchronous replicas; None for this process
  place: Place = lambda own: own  # where children are trained; see `from_scratch.local_evaluators` for the names


def on_other_data(system: System, cfg: Config, reload: Callable[[Config], Data]) -> Problem:
  """Returns the problem of `cfg` on the data of the next data_seed: other splits, another order, other crops.

  `reload` reads the data again, as its argument has them.
  """
  cfg = dataclasses.replace(cfg, data_seed=(config.data_seed(cfg) + 1) % (config.LAST_SEED + 1))
  return system.make_problem(cfg, reload(cfg))


class Found(NamedTuple):
  """A search that has ended."""

  folder: str
  search: search.Search
  records: list[journal.Record]  # its children, by id


class Summary(NamedTuple):
  """What a search and its random-search baseline found, in words."""

  best: str  # the best architecture by the scores of the search
  scores: str  # head of the table's first column: what its scores are
  rows: Sequence[Sequence[Any]]  # of the table, whose other heads are `rankings.HEADER`
  note: str  # how to read the table
  rest: str  # what follows
  converged: str = ''  # how the best did that were trained to convergence; '' if none were


class Stages(NamedTuple):
  """The stages of a whole search.

  Attributes:
    cfg: the config of the search; values that its flags left to be measured are set.
    children: how many children are trained and how, in words.
    work: (configs of all searches) -> the phases of the run beside the searches, by name, and how much work each is in
      trainings of a child; NaN where that is not known.
    search: (cfg) -> the search. Its programs are shared with other searches, whose `cfg` may differ in the algorithm.
    before: measures something before the search and returns it in words; '' for nothing.
    after: (cfg, search) is called as soon as a search has ended; it may write files in the folder of the search.
    summary: (searches by the name of their algorithm) -> what they found.
  """

  cfg: Config
  children: str
  work: Callable[[Sequence[Config]], Mapping[str, float]]
  search: Callable[[Config], search.Search]
  before: Callable[[], str]
  after: Callable[[Config, Found], None]
  summary: Callable[[Mapping[str, Found]], Summary]
