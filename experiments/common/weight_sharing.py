"""A whole search whose children share weights: the search, its control, what they derive, what their scores mean."""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
import json
import os
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import report as report_page
from experiments.common import launch, recovery_files, run_search, workdirs
from experiments.common.systems import System
from nas_jax import draw, search
from nas_jax.report import rankings, reliability
from nas_jax.search import journal, older, weight_sharing
from nas_jax.systems import enas
from nas_jax.training import checkpoint, evaluators
from nas_jax.training.recovery import Recovery


def run(
  system: System, cfg: Any, data: Any, workdir: str, with_control: bool = True, check: launch.Check = lambda: None
) -> None:
  """Goes on from whatever the workdir holds.

  Beside the files of every search it holds derived.json, architectures sampled from the controller at the end, best
  first (best.json is the first of them), alone.jsonl, random networks trained by themselves, random.json, the best of
  these, and ranks.json, what they say of scores by shared weights.
  """
  recovery = recovery_files.recovery(workdir, cfg, check)
  problem = system.problem(cfg, data)
  programs = enas.build_programs(problem, cfg)
  print(
    f'{problem.space.size():.2e} {system.noun}s; {cfg.samples} samples with {system.length(cfg)} on '
    f'{system.about(cfg, data)}; {len(jax.local_devices())} {jax.default_backend()} devices; results in {workdir}',
    flush=True,
  )
  folders, cfgs = {cfg.algorithm: workdir}, {cfg.algorithm: cfg}
  control = dataclasses.replace(cfg, algorithm='random')
  if with_control and control != cfg:
    folders['random'], cfgs['random'] = os.path.join(workdir, 'control'), control
    workdirs.open_config(folders['random'], control)
  ends = {name: one_search(problem, cfgs[name], programs, folder, recovery) for name, folder in folders.items()}
  records, derived = (
    {name: end[0] for name, end in ends.items()},
    {n: _derived(folder) for n, folder in folders.items()},
  )
  said = ''
  if cfg.rank_children:
    trained = train_alone(problem, cfg, os.path.join(workdir, 'alone.jsonl'), recovery)
    weights = {name: end[1] for name, end in ends.items()}
    path, step = os.path.join(workdir, 'ranks.json'), [int(state.step) for state in weights.values()]
    ranks = workdirs.read(path)
    if not ranks or ranks['step'] != step:  # a search that was gone on with has other weights
      ranks = rank(problem, cfg, programs, weights, trained) | {'step': step}
      workdirs.write(path, json.dumps(ranks, indent=2) + '\n')
    best = rankings.ranking(trained[: cfg.rank_children], problem.space, problem.metric, system.metric.lower)[0]
    _write_best(problem, os.path.join(workdir, 'random.json'), best)
    said = _in_words(system, ranks, records[cfg.algorithm])
  summary = _summary(system, cfg, data, problem, records, derived, said)
  workdirs.write(os.path.join(workdir, 'summary.txt'), summary)
  print(f'\n{summary}', end='')
  report_page.write(workdir, report_page.make(workdir))


def one_search(
  problem: enas.Problem, cfg: Any, programs: weight_sharing.Programs, folder: str, recovery: Recovery
) -> tuple[list[journal.Record], search.SearchState]:
  """A search to its end, and what is derived from it: its journal, and its last state."""
  s = enas.build(problem, cfg, programs, recovery.check)
  records = run_search.run(folder, s, cfg.seed, run_search.budget_of(cfg, cfg.samples), cfg.algorithm, recovery)
  fresh = s.init(jax.random.key(cfg.seed))
  state = checkpoint.restore(os.path.join(folder, 'checkpoints'), fresh, older.layouts)
  assert state is not None, 'a search that is over has a checkpoint of its end'
  path, step = os.path.join(folder, 'derived.json'), int(state.step)
  lines = workdirs.read(path) or []
  if len(lines) < cfg.derive_children or lines[0]['step'] != step:
    key = jax.random.fold_in(jax.random.key(cfg.seed), 4)
    found = weight_sharing.derive(
      problem.space, s.algorithm, programs, state, problem.shared_reward, key, cfg.derive_children, cfg.m
    )
    lines = [
      {'id': one.place, 'tokens': one.tokens.tolist(), 'reward': one.reward, 'failed': None, 'step': step} | one.metrics
      for one in found
    ]
    workdirs.write(path, json.dumps(lines) + '\n')
  _write_best(problem, os.path.join(folder, 'best.json'), _derived(folder)[0])
  return records, state


def _derived(folder: str) -> list[dict[str, Any]]:
  with open(os.path.join(folder, 'derived.json'), encoding='utf-8') as file:
    return json.load(file)


def _write_best(problem: enas.Problem, path: str, record: Mapping[str, Any]) -> None:
  workdirs.write(path, rankings.best_json(problem.space, dict(record)))


def train_alone(problem: enas.Problem, cfg: Any, path: str, recovery: Recovery) -> list[journal.Record]:
  """Random architectures, each trained by itself for `cfg.epochs` passes, and all once more from another seed.

  They are journalled, so that none is trained again.
  """
  key, count = jax.random.fold_in(jax.random.key(cfg.seed), 3), 2 * cfg.rank_children
  cached = evaluators.random_batch(problem.space, key, cfg.rank_children)
  batch = jax.tree.map(lambda x: jnp.concatenate([x, x]), cached._replace(depth=None, extra=()))
  batch = batch._replace(ids=jnp.arange(count), keys=jax.random.split(jax.random.fold_in(key, 1), count))
  known, write = journal.read(path), journal.writer(path)
  train = functools.cache(lambda: enas.alone(problem, cfg.epochs, recovery=recovery))
  for start in range(0, count, cfg.m):
    places = jnp.arange(start, start + cfg.m) % count  # the last are filled up from the front
    if any(int(place) not in known for place in places):
      part = jax.tree.map(lambda x, places=places: x[places], batch)
      begun = time.perf_counter()
      outcome = train()(part)
      fresh = [line for line in journal.records(part, outcome, time.perf_counter() - begun) if line['id'] not in known]
      write(fresh)
      known |= {line['id']: line for line in fresh}
  return [known[number] for number in range(count)]


def rank(
  problem: enas.Problem,
  cfg: Any,
  programs: weight_sharing.Programs,
  states: Mapping[str, search.SearchState],
  trained: Sequence[journal.Record],
) -> dict[str, Any]:
  """How the scores by shared weights, of each search, rank architectures that were trained by themselves, twice.

  The second trainings rank the first too: no other score can be expected to do it better.
  """
  first, second = trained[: cfg.rank_children], trained[cfg.rank_children :]
  tokens = jnp.array([line['tokens'] for line in first], jnp.int32)
  found = {name: weight_sharing.score(problem.space, programs, state, tokens, cfg.m) for name, state in states.items()}
  by_itself, rebuild = (np.array([line['reward'] for line in lines]) for lines in (first, second))
  rewards = {name: weight_sharing.earned(metrics, problem.shared_reward) for name, metrics in found.items()}
  rewards['two seeds'] = rebuild
  return {
    'children': len(first),
    'passes': cfg.epochs,
    'alone': [line[problem.metric] for line in first],
    'shared': {name: metrics[problem.shared_metric].tolist() for name, metrics in found.items()},
    'kendall': {name: reliability.kendall(values, by_itself) for name, values in rewards.items()},
    'spearman': {name: reliability.spearman(values, by_itself) for name, values in rewards.items()},
    'seconds': float(np.median([line['seconds'] for line in trained])),
  }


def _in_words(system: System, ranks: Mapping[str, Any], records: Sequence[journal.Record]) -> str:
  """What shared scores mean, and what they save."""
  spent, one = sum(record['seconds'] for record in records), ranks['seconds']
  apart = one * len(records)
  agree = ', '.join(f'{name} {value:.2f}' for name, value in ranks['kendall'].items())
  return (
    f'Kendall rank correlation with {ranks["passes"]} passes alone, {ranks["children"]} random {system.noun}s: '
    f'{agree}\nthe search took {spent:.0f} s; its {len(records)} {system.noun}s alone, {one:.2f} s each, would have '
    f'taken {apart:.0f} s: {apart / spent:.1f} times as long\n'
  )


def _summary(
  system: System,
  cfg: Any,
  data: Any,
  problem: enas.Problem,
  records: Mapping[str, Sequence[journal.Record]],
  derived: Mapping[str, Sequence[Mapping[str, Any]]],
  ranks: str,
) -> str:
  """What was derived, and the table that it stands in: all of it by shared weights."""
  first, metric = derived[cfg.algorithm][0], system.metric
  text = draw.describe(rankings.arch_of(problem.space, dict(first)))
  rows = rankings.standings(records, {}, problem.space, metric.key, metric.lower)
  for name, lines in derived.items():
    rows += rankings.derived(name, lines, metric.key)
  return (
    f'derived {system.noun} ({metric.name} {first[metric.key]:.3f}; for its own, use experiments.retrain):\n{text}\n\n'
    f'{rankings.table((metric.name, *rankings.HEADER), rows)}\n'
    f'{cfg.dataset}, sha256 {data.sha256[:12]}; seed {cfg.seed}; in the search on a minibatch each, derived on the '
    f'whole split\n{ranks}'
  )
