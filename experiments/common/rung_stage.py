"""Successive halving after a search: its best children are trained anew for longer, in rungs.

rungs.jsonl in the folder of the search is the journal of the second and later rungs. Its lines have the form of
children.jsonl, with the child's id there and the number of the `rung`. A child with a line is not trained again.
"""

from collections.abc import Iterator, Mapping, Sequence
import itertools
import os
import time

import jax
import jax.numpy as jnp

from experiments.common import workdirs
from experiments.common.stages import Found, Run
from experiments.common.systems import Config, System, goal
from nas_jax import search
from nas_jax.report import rankings, rungs
from nas_jax.search import journal
from nas_jax.space import Space
from nas_jax.training import halving
from nas_jax.types import Array, Batch, Evaluate, Repeats

FILE = 'rungs.jsonl'
NOTE = 'rank correlation (Spearman): with the scores of the same children in the rung before'


def name(rung: int) -> str:
  """Returns the name of the evaluator of a rung; see `from_scratch.local_evaluators`."""
  return f'rung {rung}'


def config_of(system: System, cfg: Config, rung: int) -> Config:
  """Returns the config of a search whose children are trained as long as those of a rung."""
  if rung == 1:
    return cfg
  assert system.alone is not None, 'children that share weights have the rung of the search alone'
  return system.alone.scale_budget(cfg, halving.longer(rung, cfg.rung_factor))


def length(system: System, cfg: Config, rung: int) -> str:
  """Returns the length of training of a rung's children, in words."""
  return system.length(config_of(system, cfg, rung))


def read(folder: str, made: Space) -> rungs.Trained:
  """Returns the records of rungs.jsonl by rung and id. Damaged lines are left out."""
  lines = journal.read_lines(os.path.join(folder, FILE), journal.child_of_rung(made))
  return {(line['rung'], line['id']): line for line in lines}


def of(system: System, cfg: Config, made: Space, folder: str, records: Sequence[journal.Record]) -> list[Sequence]:
  """Returns the children of each rung of a search, the search first; see `rungs.of`.

  Args:
    system: of the children. If they share weights, there is one rung.
    cfg: of the search.
    made: the space.
    folder: of the search.
    records: its children, by id.
  """
  return rungs.of(records, read(folder, made), cfg.rung_factor, made, goal(system, cfg)) if system.alone else [records]


def _phase(cfg: Config, rung: int) -> str:
  return f'{search.title(cfg)}, rung {rung}'


def work(cfg: Config) -> dict[str, float]:
  """Returns the phases of the rungs after a search, and the work of each in trainings of a child of the search."""
  return {
    _phase(cfg, rung): halving.size(cfg.max_children, rung, cfg.rung_factor) * halving.longer(rung, cfg.rung_factor)
    for rung in range(2, cfg.rungs + 1)
  }


def run(run: Run, train: Mapping[str, Evaluate], cfg: Config, found: Found) -> None:
  """Trains the missing children of the rungs after a search, then writes the best child to best.json.

  That is the one with the best score in the longest rung. Several children may have earned the greatest reward, if
  rewards have a limit.

  Every training starts from new initial weights, which depend on the seed of the search, the rung and the child's id.

  Args:
    run: the search.
    train: the evaluators by name; see `from_scratch.local_evaluators`.
    cfg: of the search, or of its random-search baseline.
    found: the search.
  """
  made, path, by = run.problem.space, os.path.join(found.folder, FILE), goal(run.system, cfg)
  workdirs.drop_damaged_lines(path, journal.child_of_rung(made))
  write, at_once = journal.writer(path), cfg.m
  if found.search.replicas:  # as in the search, where several batches of m children are trained at once
    at_once = max(cfg.m, run.crew.size if run.crew else run.width)
  for rung in range(2, cfg.rungs + 1):
    trained = read(found.folder, made)
    before = rungs.of(found.records, trained, cfg.rung_factor, made, by)[: rung - 1]
    going = rungs.promoted(before, cfg.rung_factor, made, by)
    missing = [record for record in going if (rung, record['id']) not in trained]
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(cfg.seed), 5), rung)
    done = len(going) - len(missing)
    with run.progress.phase(_phase(cfg, rung), len(going), 'children', done) as advance:
      for batch, count in _batches(made, missing, key, at_once):
        run.recovery.check()
        begun = time.perf_counter()
        lines = journal.records(batch, train[name(rung)](batch), time.perf_counter() - begun)[:count]
        write([line | {'rung': rung} for line in lines])
        advance(count)
  ranked = rungs.best_first(of(run.system, cfg, made, found.folder, found.records), made, by)
  if ranked:
    workdirs.write(os.path.join(found.folder, 'best.json'), rankings.best_json(made, ranked[0][1]))


def table(run: Run, found: Mapping[str, Found]) -> str:
  """Returns a table of the rungs of all searches; '' if they have only one rung. `found` is by algorithm."""
  made, cfg, metric = run.problem.space, run.cfg, run.system.metric
  each = {name: of(run.system, cfg, made, one.folder, one.records) for name, one in found.items()}
  rows = rungs.rows(each, lambda rung: length(run.system, cfg, rung), made, metric)
  return f'\n{rankings.table((metric.name, *rungs.HEADER), rows)}\n{NOTE}\n' if rows else ''


def _batches(made: Space, records: Sequence[journal.Record], key: Array, m: int) -> Iterator[tuple[Batch, int]]:
  """Yields batches of m children, and for each the number of children that come from `records`.

  A batch with fewer than m is filled up with copies of its last child, marked as known: so all batches use one program,
  and no child is trained twice. All children of a batch have the same number of layers.
  """
  by_depth = itertools.groupby(sorted(records, key=_depth), _depth)
  for depth, alike in by_depth:
    together = list(alike)
    for start in range(0, len(together), m):
      part = together[start : start + m]
      rows = part + part[-1:] * (m - len(part))
      ids = jnp.array([record['id'] for record in rows], jnp.int32)
      tokens = jnp.array([record['tokens'] for record in rows], jnp.int32)
      keys = jax.vmap(lambda number: jax.random.fold_in(key, number))(ids)
      layers = depth or None
      filled = None
      if len(part) < m:
        filled = Repeats(jnp.arange(m) >= len(part), ids, jnp.zeros(m), jnp.zeros(m, bool))
      yield Batch(ids, keys, tokens, made.decode_batch(tokens, layers), layers, repeats=filled), len(part)


def _depth(record: journal.Record) -> int:
  """Returns the number of layers of a child, or 0 if it has all layers of the space."""
  return record.get('depth', 0)
