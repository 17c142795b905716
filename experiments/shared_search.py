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

from experiments import launch
from experiments import report as report_page
from experiments.system import System
from nas_jax import checkpoint, evaluator, journal, reliability, report, search, shared
from nas_jax.systems import enas


def run(system: System, cfg: Any, data: Any, workdir: str, with_control: bool = True) -> None:
  """Goes on from whatever the workdir holds.

  Beside the files of every search it holds derived.json, architectures sampled from the controller at the end, best
  first (best.json is the first of them), alone.jsonl, random networks trained by themselves, random.json, the best of
  these, and ranks.json, what they say of scores by shared weights.
  """
  problem = system.problem(cfg, data)
  programs = enas.build_programs(problem, cfg)
  print(
    f'{problem.space.size():.2e} {system.noun}s; {cfg.max_children} samples with {system.length(cfg)} on '
    f'{system.about(cfg, data)}; {len(jax.local_devices())} {jax.default_backend()} devices; results in {workdir}',
    flush=True,
  )
  found, state = one_search(system, problem, cfg, programs, workdir)
  records, derived = {cfg.algorithm: found}, {cfg.algorithm: _derived(workdir)}
  if with_control and cfg.algorithm != 'random':
    control, folder = dataclasses.replace(cfg, algorithm='random'), os.path.join(workdir, 'control')
    launch.open_workdir(folder, control)
    records['random'], _ = one_search(system, problem, control, programs, folder)
    derived['random'] = _derived(folder)
  ranks = ''
  if cfg.rank_children:
    trained = train_alone(problem, cfg, os.path.join(workdir, 'alone.jsonl'))
    found_ranks = launch.once(
      os.path.join(workdir, 'ranks.json'), functools.partial(rank, problem, cfg, programs, state, trained)
    )
    _write_best(problem, os.path.join(workdir, 'random.json'), _best_alone(problem, system, trained))
    ranks = _in_words(system, cfg, found_ranks, found)
  summary = _summary(system, cfg, data, problem, records, derived, ranks)
  launch.write(os.path.join(workdir, 'summary.txt'), summary)
  print(f'\n{summary}', end='')
  report_page.write(workdir, report_page.make(workdir))


def one_search(
  system: System, problem: enas.Problem, cfg: Any, programs: shared.Programs, folder: str
) -> tuple[list[journal.Record], search.SearchState]:
  """A search to its end, and what is derived from it: its journal, and its last state."""
  s = enas.build(problem, cfg, programs)
  records = launch.resume_and_run(folder, s, cfg.seed, cfg.max_children, cfg.algorithm)
  state = checkpoint.restore(os.path.join(folder, 'checkpoints'), s.init(jax.random.key(cfg.seed)))
  assert state is not None, 'a search that is over has a checkpoint of its end'
  path = os.path.join(folder, 'derived.json')
  if not os.path.exists(path) or len(_derived(folder)) < cfg.derive_children:
    key = jax.random.fold_in(jax.random.key(cfg.seed), 4)
    found = shared.derive(
      problem.space, s.controller, programs, state, problem.shared_reward, key, cfg.derive_children, cfg.m
    )
    lines = [{'id': one.place, 'tokens': one.tokens.tolist(), 'reward': one.reward} | one.metrics for one in found]
    launch.write(path, json.dumps(lines) + '\n')
  _write_best(problem, os.path.join(folder, 'best.json'), _derived(folder)[0])
  return records, state


def _derived(folder: str) -> list[dict[str, Any]]:
  with open(os.path.join(folder, 'derived.json'), encoding='utf-8') as file:
    return json.load(file)


def _write_best(problem: enas.Problem, path: str, record: Mapping[str, Any]) -> None:
  launch.write(path, report.best_json(problem.space, dict(record)))


def train_alone(problem: enas.Problem, cfg: Any, path: str) -> list[journal.Record]:
  """Random architectures, each trained by itself for `cfg.epochs` passes; journalled, so that none is trained twice."""
  batch = evaluator.random_batch(problem.space, jax.random.fold_in(jax.random.key(cfg.seed), 3), cfg.rank_children)
  known, write = journal.read(path), journal.writer(path)
  train = functools.cache(lambda: enas.alone(problem, cfg.epochs))
  for start in range(0, cfg.rank_children, cfg.m):
    places = (jnp.arange(start, start + cfg.m) % cfg.rank_children).astype(int)  # the last is filled up from the front
    if any(int(place) not in known for place in places):
      part = jax.tree.map(lambda x, places=places: x[places], batch._replace(depth=None, extra=()))
      begun = time.perf_counter()
      outcome = train()(part)
      fresh = [line for line in journal.records(part, outcome, time.perf_counter() - begun) if line['id'] not in known]
      write(fresh)
      known |= {line['id']: line for line in fresh}
  return [known[number] for number in range(cfg.rank_children)]


def rank(
  problem: enas.Problem,
  cfg: Any,
  programs: shared.Programs,
  state: search.SearchState,
  trained: Sequence[journal.Record],
) -> dict[str, Any]:
  """How the scores by shared weights rank architectures that were trained by themselves."""
  tokens = jnp.array([line['tokens'] for line in trained], jnp.int32)
  found = shared.score(problem.space, programs, state, tokens, cfg.m)
  by_weights = problem.shared_reward(found)
  by_itself = np.array([line['reward'] for line in trained])
  seconds = [line['seconds'] for line in trained]
  return {
    'children': len(trained),
    'passes': cfg.epochs,
    'kendall': reliability.kendall(by_weights, by_itself),
    'spearman': reliability.spearman(by_weights, by_itself),
    'shared': found[problem.shared_metric].tolist(),
    'alone': [line[problem.metric] for line in trained],
    'seconds': float(np.median(seconds)),
  }


def _best_alone(problem: enas.Problem, system: System, trained: Sequence[journal.Record]) -> journal.Record:
  return report.ranking(trained, problem.space, problem.metric, system.metric.lower)[0]


def _in_words(system: System, cfg: Any, ranks: Mapping[str, Any], records: Sequence[journal.Record]) -> str:
  """What shared scores mean, and what they save."""
  spent, one = sum(record['seconds'] for record in records), ranks['seconds']
  apart = one * len(records)
  return (
    f'scores by shared weights against {ranks["passes"]} passes alone, {ranks["children"]} random {system.noun}s: '
    f'Kendall {ranks["kendall"]:.2f}, Spearman {ranks["spearman"]:.2f}\n'
    f'the search took {spent:.0f} s; its {len(records)} {system.noun}s by themselves, {one:.2f} s each, would have '
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
  text = system.text(report.arch_of(problem.space, dict(first)))
  rows = report.standings(records, {}, problem.space, metric.key, metric.lower)
  for name, lines in derived.items():
    scores = [line[metric.key] for line in lines]
    rows.append((f'{name}, derived', scores[0], '', '', f'{len(scores)} samples, mean {np.mean(scores):.3f}'))
  return (
    f'derived {system.noun} ({metric.name} {first[metric.key]:.3f}; for its own, use experiments.retrain):\n{text}\n\n'
    f'{report.table((metric.name, *report.HEADER), rows)}\n'
    f'{cfg.dataset}, sha256 {data.sha256[:12]}; seed {cfg.seed}; in the search on a minibatch each, derived on the '
    f'whole split\n{ranks}'
  )
