"""The stages of a search whose children share weights: deriving architectures, and the reliability of their scores.

Its workdir holds these files in addition to those of every search:

* derived.json: architectures sampled from the controller at the end, best first. best.json is the first of them.
* alone.jsonl: random architectures that were trained from scratch. random.json is the best of them.
* ranks.json: rank correlations of scores by shared weights with those trainings, and of those trainings with each
  other.
"""

from collections.abc import Callable, Mapping, Sequence
import functools
import math
import os
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import workdirs
from experiments.common.progress import counted
from experiments.common.stages import Found, Run, Stages, Summary, on_other_data
from experiments.common.systems import Config
from nas_jax import draw, search, words
from nas_jax.report import rankings, reliability
from nas_jax.search import journal, older, weight_sharing
from nas_jax.search.weight_sharing_phases import Programs
from nas_jax.systems import enas
from nas_jax.training import checkpoint, evaluators
from nas_jax.training.problem import Problem
from nas_jax.types import Batch

ALONE = 'architectures trained by themselves'  # a phase of the run
OTHER_DATA = 'two seeds with other data seeds'  # the name of a comparison in ranks.json, beside 'two seeds'


def stages(run: Run) -> Stages:
  """Returns the stages. The search and its random-search baseline share both compiled phases."""
  programs = enas.build_programs(run.problem, run.cfg)
  return Stages(
    run.cfg,
    f'{words.counted(run.cfg.samples, "sample")} with {run.system.length(run.cfg)}',
    work=lambda cfgs: {ALONE: math.nan} if run.cfg.rank_children else {},
    search=lambda cfg: enas.build(run.problem, cfg, programs, run.recovery.check),
    before=lambda: '',
    after=functools.partial(derive, run, programs),
    summary=functools.partial(summary, run, programs),
  )


def derive(run: Run, programs: Programs, cfg: Config, found: Found) -> None:
  """Samples architectures from the final controller, scores them by shared weights, writes derived.json and best.json.

  What derived.json already has for the last step is not sampled again.
  """
  problem, state = run.problem, _last_state(found, cfg)
  path, step = os.path.join(found.folder, 'derived.json'), int(state.step)
  lines = workdirs.read(path) or []
  if not all(map(journal.derived_of(problem.space, run.system.metric.key), lines)):
    lines = []
  if len(lines) < cfg.derive_children or lines[0]['step'] != step:
    key = jax.random.fold_in(jax.random.key(cfg.seed), 4)
    derived = weight_sharing.derive(
      problem.space, found.search.algorithm, programs, state, problem.shared_reward, key, cfg.derive_children, cfg.m
    )
    lines = [
      {
        'id': one.place,
        'tokens': one.tokens.tolist(),
        'reward': 0.0 if one.failed else one.reward,
        'failed': one.failed,
        'step': step,
        **{name: reliability.finite(value) for name, value in one.metrics.items()},
        **_cost(problem, one.tokens),
      }
      for one in derived
    ]
    workdirs.write_json(path, lines, None)
  if lines[0]['failed'] is None:
    _write_best(run, os.path.join(found.folder, 'best.json'), lines[0])


def summary(run: Run, programs: Programs, found: Mapping[str, Found]) -> Summary:
  """Returns the best derived architecture and the table of the searches, all scored by shared weights.

  If the config asks for it, random architectures are first trained from scratch: see `rank`.
  """
  system, cfg, made = run.system, run.cfg, run.problem.space
  ranks = rank(run, programs, found)
  key, metric, lower = system.metric
  derived = {name: workdirs.peek_derived(one.folder, made, key) for name, one in found.items()}
  first = derived[search.title(cfg)][0]
  best = f'no derived {system.noun} could be scored: {first["failed"]}'
  if first['failed'] is None:
    head = f'derived {system.noun} ({metric} {first[key]:.3f}; for its own, use experiments.retrain):'
    best = f'{head}\n{draw.words(rankings.arch_of(made, dict(first)), made)}'
  rows = rankings.standings({name: one.records for name, one in found.items()}, {}, made, key, lower)
  for name, lines in derived.items():
    rows += rankings.derived(name, lines, key)
  return Summary(
    best,
    metric,
    rows,
    'in the search on a minibatch each, derived on the whole split',
    _in_words(run, ranks, found[search.title(cfg)].records) if ranks else '',
  )


def rank(run: Run, programs: Programs, found: Mapping[str, Found]) -> dict[str, Any] | None:
  """Measures how the shared weights of each search rank random architectures that were trained from scratch.

  Each architecture is trained three times, the third time on data of another seed. The second and third trainings are
  also ranked against the first: this bounds the agreement that any other score can reach. An architecture that failed
  by one of two scores is left out of their correlation. The best of the first trainings is written to random.json. The
  result is kept in ranks.json until the search is continued, which changes its weights.

  Returns:
    The content of ranks.json, or None if the config asks for no ranking.
  """
  cfg, problem = run.cfg, run.problem
  if not cfg.rank_children:
    return None
  trained = train_alone(run)
  first, second, third = (trained[cfg.rank_children * k :][: cfg.rank_children] for k in range(3))
  if ranked := rankings.ranking(first, problem.space, problem.metric, run.system.metric.lower):
    _write_best(run, os.path.join(run.workdir, 'random.json'), ranked[0])
  states = {name: _last_state(one, cfg) for name, one in found.items()}
  path, step = os.path.join(run.workdir, 'ranks.json'), [int(state.step) for state in states.values()]
  ranks = workdirs.read(path)
  if ranks and ranks['step'] == step:
    return ranks
  tokens = jnp.array([line['tokens'] for line in first], jnp.int32)
  shared = {name: weight_sharing.score(problem.space, programs, state, tokens, cfg.m) for name, state in states.items()}
  alone = _rewards(first)
  rewards = {
    name: np.where(metrics['failed'], np.nan, weight_sharing.earned(metrics, problem.shared_reward))
    for name, metrics in shared.items()
  }
  rewards |= {'two seeds': _rewards(second), OTHER_DATA: _rewards(third)}
  pairs = {name: reliability.trained(values, alone) for name, values in rewards.items()}
  ranks = {
    'children': len(first),
    'passes': cfg.epochs,
    'alone': [line[problem.metric] for line in first],
    'shared': {name: [*map(journal.plain, metrics[problem.shared_metric])] for name, metrics in shared.items()},
    'kendall': {name: reliability.finite(reliability.kendall(*pair)) for name, pair in pairs.items()},
    'spearman': {name: reliability.finite(reliability.spearman(*pair)) for name, pair in pairs.items()},
    'failed': {name: len(first) - len(values) for name, (values, _) in pairs.items()},
    'seconds': float(np.median([line['seconds'] for line in trained])),
    'step': step,
  }
  workdirs.write_json(path, ranks)
  return ranks


def train_alone(run: Run) -> list[journal.Record]:
  """Trains random architectures from scratch with three seeds, the third time on data of another seed.

  Returns the records [3 * rank_children], by seed. They are kept in alone.jsonl, so that no training is repeated.
  """
  cfg, problem, path, n = run.cfg, run.problem, os.path.join(run.workdir, 'alone.jsonl'), run.cfg.rank_children
  key = jax.random.fold_in(jax.random.key(cfg.seed), 3)
  once = evaluators.random_batch(problem.space, key, n)._replace(depth=None, extra=())
  twice = jax.tree.map(lambda x: jnp.concatenate([x, x]), once)
  twice = twice._replace(ids=jnp.arange(2 * n), keys=jax.random.split(jax.random.fold_in(key, 1), 2 * n))
  third = once._replace(ids=jnp.arange(2 * n, 3 * n), keys=jax.random.split(jax.random.fold_in(key, 2), n))
  known, write = workdirs.read_children(path, problem.space), journal.writer(path)
  known = {number: line for number, line in known.items() if problem.metric in line}

  def train(batch: Batch, make: Callable[[], Problem]) -> None:
    evaluate = functools.cache(lambda: counted(evaluators.build(make(), recovery=run.recovery), advance))
    for start in range(0, len(batch.ids), cfg.m):
      indices = jnp.arange(start, start + cfg.m) % len(batch.ids)  # the last batch is filled up with the first children
      part = jax.tree.map(lambda x: x[indices], batch)  # noqa: B023, called at once
      if any(number not in known for number in part.ids.tolist()):
        begun = time.perf_counter()
        lines = journal.records(part, evaluate()(part), time.perf_counter() - begun)
        fresh = [line for line in lines if line['id'] not in known]
        write(fresh)
        known.update({line['id']: line for line in fresh})

  batches = [range(0, len(some.ids), cfg.m) for some in (twice, third)]
  with run.progress.phase(ALONE, sum(map(len, batches)) * cfg.m, 'trainings') as advance:
    train(twice, lambda: problem)
    train(third, lambda: on_other_data(run.system, cfg, run.reload))
  return [known[number] for number in range(3 * n)]


def _cost(problem: Problem, tokens: np.ndarray) -> dict[str, int]:
  """Returns the weights and multiply-adds of an architecture as a network of its own; {} if costs are not counted."""
  return problem.cost_of(problem.space.decode(tokens))._asdict() if problem.cost_of else {}


def _rewards(lines: Sequence[journal.Record]) -> np.ndarray:
  """Returns the rewards of children, NaN for those that failed."""
  return np.array([np.nan if line['failed'] else line['reward'] for line in lines])


def _last_state(found: Found, cfg: Config) -> search.SearchState:
  fresh = found.search.init(jax.random.key(cfg.seed))
  state = checkpoint.restore(os.path.join(found.folder, 'checkpoints'), fresh, older.layouts)
  assert state is not None, 'a search that is over has a checkpoint of its end'
  return state


def _write_best(run: Run, path: str, record: Mapping[str, Any]) -> None:
  workdirs.write(path, rankings.best_json(run.problem.space, dict(record)))


def _in_words(run: Run, ranks: Mapping[str, Any], records: Sequence[journal.Record]) -> str:
  """Returns lines on how well scores by shared weights agree with separate trainings, and how much time they save."""
  spent, one, noun = sum(record['seconds'] for record in records), ranks['seconds'], run.system.noun
  apart, passes = one * len(records), words.counted(ranks['passes'], 'pass', 'passes')
  agree = ', '.join(
    f'{name} {"not measurable" if value is None else f"{value:.2f}"}' for name, value in ranks['kendall'].items()
  )
  return (
    f'Kendall rank correlation with {passes} alone, {words.counted(ranks["children"], f"random {noun}")}: {agree}\n'
    f'the search took {spent:.3g} s; its {words.counted(len(records), noun)} alone, {one:.2g} s each, would have '
    f'taken {apart:.3g} s{f": {apart / spent:.2g} times as long" if apart and spent else ""}\n'
  )
