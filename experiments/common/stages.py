"""The stages of a whole search, and the parts that differ between kinds of searches.

`search_flow` runs the stages. `from_scratch` defines them for children with their own weights, `weight_sharing` for
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

# Decides where children are trained. It takes the evaluators of this process by name, and returns those that the search
# uses under the same names: the given ones, or ones that send each batch to other processes.
Place = Callable[[Mapping[str, Evaluate]], Mapping[str, Evaluate]]


class Run(NamedTuple):
  """A search in a workdir, new or continued."""

  system: System
  cfg: Config
  data: Data
  problem: Problem  # of `cfg` and `data`
  workdir: str
  recovery: Recovery
  beside: Mapping[str, Arch]  # architectures by name, which are trained as the children are, for comparison
  reload: Callable[[Config], Data]  # see `on_other_data`
  progress: Progress  # shows how far the run is
  width: int = 1  # how many children of asynchronous replicas are trained at once: the number of devices
  crew: Crew | None = None  # workers that train the children of asynchronous replicas; None for this process
  place: Place = lambda own: own  # where children are trained; see `from_scratch.local_evaluators` for the names


def on_other_data(system: System, cfg: Config, reload: Callable[[Config], Data]) -> Problem:
  """Returns the problem of `cfg` with the next data_seed: other splits, another order, other crops.

  `reload(cfg)` reads the data again for a config.
  """
  cfg = dataclasses.replace(cfg, data_seed=(config.data_seed(cfg) + 1) % (config.LAST_SEED + 1))
  return system.make_problem(cfg, reload(cfg))


class Found(NamedTuple):
  """A search that has ended."""

  folder: str
  search: search.Search
  records: list[journal.Record]  # its children, by id


class Summary(NamedTuple):
  """The results of a search and its random-search baseline, as text."""

  best: str  # the best architecture by the scores of the search
  scores: str  # header of the table's first column: the kind of score
  rows: Sequence[Sequence[Any]]  # of the table, whose other headers are `rankings.HEADER`
  note: str  # how to read the table
  rest: str  # text after the table
  converged: str = ''  # results of the best children after training to convergence; '' if none were trained so


class Stages(NamedTuple):
  """The stages of a whole search.

  Attributes:
    cfg: the config of the search; choices that its flags left to a measurement are settled.
    children: how many children are trained and how, in words.
    work: (configs of all searches) -> the work of each other phase of the run, by name, in trainings of a child; NaN
      where it is not known.
    search: (cfg) -> the search. It shares its programs with other searches, whose `cfg` may differ in the algorithm.
    before: makes measurements before the search and returns them in words; '' if there are none.
    after: (cfg, search) is called as soon as a search has ended; it may write files in the folder of the search.
    summary: (searches by the name of their algorithm) -> their results.
  """

  cfg: Config
  children: str
  work: Callable[[Sequence[Config]], Mapping[str, float]]
  search: Callable[[Config], search.Search]
  before: Callable[[], str]
  after: Callable[[Config, Found], None]
  summary: Callable[[Mapping[str, Found]], Summary]
