"""The data of a report. Its types are the same for all systems; the names of a child and of the metric are data."""

from collections.abc import Mapping, Sequence
import math
import types
from typing import Any, NamedTuple

from nas_jax.search.journal import Record
from nas_jax.space import Slot


class Metric(NamedTuple):
  """The score that children are ranked by."""

  key: str  # its name in a record
  name: str  # its name in text
  lower: bool = True  # whether lower is better


class Run(NamedTuple):
  """One search. All sequences are in the order of the children."""

  name: str  # of its algorithm
  records: Sequence[Record]
  best: Sequence[float]  # the best score so far; NaN before the first child that did not fail
  top: Sequence[float]  # the mean of the best five different children so far
  updates: Sequence[Record] = ()  # the lines of updates.jsonl, in order


class Winner(NamedTuple):
  """One of the best architectures."""

  title: str
  text: str  # equations or a description
  drawing: str = ''  # an SVG element, which is not escaped


class Use(NamedTuple):
  """A next step with the result: the step in words, and the commands or code for it."""

  step: str
  code: str


class Correlation(NamedTuple):
  """One rank correlation of rewards."""

  between: str
  value: float  # NaN if it could not be measured
  wanted: float = math.nan  # the least that is good enough; NaN if there is no such value
  quarter: float = math.nan  # the correlation within the best quarter of the children; NaN if it was not measured
  failed: int | None = None  # children that failed and are left out; None if they were not counted
  regret: float = math.nan  # see `reliability.regret`; NaN if it was not measured


class Report(NamedTuple):
  """The data of a page."""

  title: str
  noun: str  # what a child is called, in the singular: 'cell'
  metric: Metric
  budget: int  # children planned
  runs: Sequence[Run]  # the search and, if there is one, the random-search baseline
  slots: Sequence[Slot]  # of the space; a row of `probabilities` belongs to each
  reliability: Sequence[Correlation]
  winners: Sequence[Winner]  # best first
  standings: tuple[Sequence[str], Sequence[Sequence[object]]]  # header, rows
  retrained: Sequence[Mapping[str, Any]]  # each {'rows': [...], 'setting': text}
  facts: Sequence[tuple[str, str]]  # where the numbers come from: name and value
  config: Mapping[str, Any]
  caveat: str
  ranking: Mapping[str, Any] | None = None  # short trainings against full ones: the ranking.json of `rank_children`
  views: Sequence[tuple[str, Sequence[Sequence[object]]]] = ()  # tables of kinds of children: name and rows
  remembered: str = ''  # the replay tree as an <svg> element
  shared: bool = False  # whether children share weights
  derived: Mapping[str, float] = types.MappingProxyType({})  # run -> its derived architectures' best score
  converged: Mapping[str, Any] | None = None  # the best, trained to convergence: as one of `retrained`, with 'metric'
  glance: Sequence[tuple[str, str]] = ()  # data, budget, reward: what a reader must know first
  use: Sequence[Use] = ()  # what to do with the best architecture
  links: Sequence[str] = ()  # files beside the page
  name: str = ''  # of the folder, beside another search
  rungs: tuple[Sequence[str], Sequence[Sequence[object]]] = ((), ())  # of successive halving: header, rows
  explained: str = ''  # what the known architectures of the standings are
