"""The stages of a search whose children are each trained from scratch, with their own weights.

The reliability of the reward is measured before the search. After the search, known architectures are trained and
scored as the children were.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import math
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import final_choice, rung_stage, workdirs
from experiments.common.progress import counted
from experiments.common.stages import Found, Run, Stages, Summary, on_other_data
from experiments.common.systems import Config, Data, FromScratch, System, goal
from nas_jax import draw, search, space, words
from nas_jax.report import rankings, reliability, rungs
from nas_jax.search import journal
from nas_jax.training import costs, evaluators, fit, halving, timing
from nas_jax.training.problem import Problem
from nas_jax.training.recovery import Recovery, fingerprint
from nas_jax.types import Batch, Evaluate

RANDOM = 1000  # number of random architectures that estimate the share within the bounds
LONGER = 5  # length of the longer training for reliability, as a multiple of a child's training
RELIABILITY, REFERENCES = 'reliability of the reward', 'reference architectures'  # phases of a run


def stages(run: Run, alone: FromScratch) -> Stages:
  """Returns the stages. They share one evaluator, so that its training program is compiled once."""
  run = settle_program(run)
  train = run.place(local_evaluators(run.system, run.cfg, run.data, run.problem, run.recovery, run.reload))
  bounds = within_bounds(run.problem, run.cfg.seed)
  return Stages(
    run.cfg,
    f'a budget of {words.counted(run.cfg.max_children, "child", "children")} of {run.system.length(run.cfg)}',
    work=functools.partial(work, run, train),
    search=lambda cfg: alone.search(run.problem.space, cfg, train['children']),
    before=lambda: '\n'.join(filter(None, [bounds, measure_reliability(run, alone, train)])),
    after=functools.partial(rung_stage.run, run, train),
    summary=functools.partial(summary, run, alone, train),
  )


def local_evaluators(
  system: System,
  cfg: Config,
  data: Data,
  problem: Problem,
  recovery: Recovery,
  reload: Callable[[Config], Data],
) -> dict[str, Evaluate]:
  """Returns all evaluators of a search by name. They train on the local devices.

  Processes with equal config and data make equal evaluators. So one process can train a batch for another, which sends
  the name and the batch: `local_evaluators(...)[name](batch)`. Nothing is compiled before the first call.

  * 'children' trains architectures of the search space: the children of the search and of its random-search baseline.
  * 'longer' trains architectures five times as long, and 'other data' on the data of another seed. Both measure how
    reliable the reward is.
  * 'rung 2', 'rung 3', ... train the children of the rungs after the search.
  * 'reference NAME' trains the known architecture of that name, which may be of another kind of network.
  * 'beside' trains the architectures that the user wants to compare. The bounds apply neither to these nor to the
    references.

  Args:
    system: of the children, which have weights of their own.
    cfg: of the search; `child_program` is not 'auto'.
    data: as the system's `load` returns it.
    problem: of `cfg` and `data`.
    recovery: saves and restores the state of trainings.
    reload: as in `stages.on_other_data`.
  """
  alone = system.alone
  assert alone is not None, 'children that share weights have no evaluator of their own'

  def longer() -> Evaluate:
    problem = system.make_problem(alone.scale_budget(cfg, LONGER), data)
    return alone.evaluator(problem, None, recovery)

  def other_data() -> Evaluate:
    return alone.evaluator(on_other_data(system, cfg, reload), None, recovery)

  def of_rung(rung: int) -> Evaluate:
    problem = system.make_problem(rung_stage.config_of(system, cfg, rung), data)
    patient = recovery._replace(timeout=recovery.timeout * halving.longer(rung, cfg.rung_factor))
    return alone.evaluator(problem, None, patient)

  train = alone.evaluator(problem, None, recovery)
  free = problem._replace(bounds=costs.UNBOUNDED)
  bounded = problem.bounds != costs.UNBOUNDED
  beside = evaluators.on_first_use(lambda: alone.evaluator(free, None, recovery)) if bounded else train
  known = alone.references(cfg, data, beside, recovery)
  references = {_reference(name): one.evaluate for name, one in known.items()}
  later = {'longer': evaluators.on_first_use(longer), 'other data': evaluators.on_first_use(other_data)}
  later |= {
    rung_stage.name(rung): evaluators.on_first_use(functools.partial(of_rung, rung)) for rung in range(2, cfg.rungs + 1)
  }
  return {'children': train, 'beside': beside, **later, **references}


def within_bounds(problem: Problem, seed: int) -> str:
  """Returns a line that says how many random architectures are within the bounds of a problem; '' without bounds."""
  if problem.cost_of is None or problem.bounds == costs.UNBOUNDED:
    return ''
  drawn = evaluators.random_batch(problem.space, jax.random.fold_in(jax.random.key(seed), 4), RANDOM)
  inside = sum(costs.within(problem.cost_of(arch), problem.bounds) for arch in space.unstack(drawn.archs))
  return f'bounds: {inside:,} of {RANDOM:,} random architectures are within them; the others are not trained and fail'


def _reference(name: str) -> str:
  return f'reference {name}'


def work(run: Run, train: Mapping[str, Evaluate], cfgs: Sequence[Config]) -> dict[str, float]:
  """Returns the work of each phase of a run other than the searches of these configs, in trainings of a child."""
  short, long = _reliability_trainings(run.cfg)
  known = len(run.beside) + sum(name.startswith(_reference('')) for name in train)
  found = {RELIABILITY: short + LONGER * long, REFERENCES: run.cfg.yardstick_repeats * known}
  found |= {name: trainings for cfg in cfgs for name, trainings in rung_stage.work(cfg).items()}
  found |= {final_choice.NAME: final_choice.work(run, len(cfgs))}
  return {name: trainings for name, trainings in found.items() if trainings}


def _reliability_trainings(cfg: Config) -> tuple[int, int]:
  """Returns how many children the reliability trains as long as in the search, and how many longer (whole batches)."""
  every, some = (-(-count // cfg.m) * cfg.m for count in (cfg.reliability_children, cfg.reliability_children // 2))
  return 3 * every, some if cfg.reliability_children // 2 > 2 else 0


def settle_program(run: Run, hosts: int = 1) -> Run:
  """Returns `run` with `child_program` settled: with 'auto', the faster kind of program on this machine.

  It is measured once in a workdir, with one host's share of a batch for `hosts` hosts, and written to config.json.
  """
  if run.problem.program != 'auto':
    return run
  cfg = run.cfg
  if cfg.child_program == 'auto':
    print('measuring which kind of program trains children faster here', flush=True)
    seconds = timing.of_problem(run.problem, jax.random.key(cfg.seed), -(-cfg.m // hosts), cfg.max_children)
    faster = min(seconds._fields, key=lambda name: getattr(seconds, name))
    took = f'{seconds.generic:.2f} s each generic, {seconds.specialised:.2f} s specialised'
    print(f'{faster} children: {took}', flush=True)
    cfg = dataclasses.replace(cfg, child_program=faster)
    workdirs.write_config(run.workdir, cfg)
  return run._replace(cfg=cfg, problem=run.problem._replace(program=cfg.child_program))


def measure_reliability(run: Run, alone: FromScratch, train: Mapping[str, Evaluate]) -> str:
  """Returns the rank correlations of rewards as text.

  They are kept in reliability.json, and are measured again only if the config asks for another number of children.
  """
  cfg, system = run.cfg, run.system
  if not cfg.reliability_children:
    return 'reward reliability: not measured'
  long = alone.scale_budget(cfg, LONGER)

  def measure() -> dict[str, Any]:
    key = jax.random.fold_in(jax.random.key(cfg.seed), 1)
    made, some = run.problem.space, cfg.reliability_children // 2
    counts = cfg.reliability_children, cfg.m
    with run.progress.phase(RELIABILITY, sum(_reliability_trainings(cfg)), 'trainings') as advance:
      once, longer, other = (
        counted(train[name], advance, trainings)
        for name, trainings in (('children', 1), ('longer', LONGER), ('other data', 1))
      )
      return reliability.as_json(reliability.measure(made, once, key, *counts, longer, some, other))

  def fits(saved: Mapping[str, Any]) -> bool:
    return saved['children'] == cfg.reliability_children

  found = reliability.from_json(workdirs.cached(os.path.join(run.workdir, 'reliability.json'), measure, fits))
  run.progress.drop(RELIABILITY)
  lines = [
    f'reward reliability of {words.counted(found.children, f"random {system.noun}")}, without those that failed: rank '
    'correlation (Spearman), in brackets that of the best quarter; regret, the share of the reward that is lost in the '
    'second training by choosing in the first:'
  ]
  for between, one in reliability.in_words(found, system.length(cfg), system.length(long)).items():
    quarter = f' ({one.quarter:.2f})' if math.isfinite(one.quarter) else ''
    failed = f', {one.failed} failed' if one.failed else ''
    regret = f', regret {one.regret:.1%}' if math.isfinite(one.regret) else ''
    value = f'{one.all:.2f}' if math.isfinite(one.all) else 'cannot be measured'
    lines.append(f'  {value}{quarter} between {between}{failed}{regret}')
  return '\n'.join(lines)


def measure_references(run: Run, known: Mapping[str, evaluators.Known]) -> dict[str, list[float | None]]:
  """Returns scores of known architectures that are trained as the children are, by name; None for a failed training.

  The scores are kept in yardsticks.json. An architecture is trained again only if the config asks for another number of
  scores, or if it is one of `run.beside` and the scores are of another one with its name: a file may change.
  """
  repeats = run.cfg.yardstick_repeats
  if not repeats:
    return {}
  keys = jax.random.split(jax.random.fold_in(jax.random.key(run.cfg.seed), 2), repeats)

  def train(name: str, one: evaluators.Known) -> Any:
    ids = jnp.arange(repeats, dtype=jnp.int32)
    outcome = one.evaluate(Batch(ids, keys, ids[:, None], space.stack([one.arch] * repeats)))
    metrics = outcome.metrics
    scores = np.where(metrics['failed'] == fit.Status.OK, metrics.get(run.system.metric.key, np.nan), np.nan)
    found = [journal.plain(score) for score in scores]
    return {'arch': fingerprint(one.arch), 'scores': found} if name in run.beside else found

  def fits(name: str, entry: Any) -> bool:
    same = name not in run.beside or (isinstance(entry, dict) and entry['arch'] == fingerprint(known[name].arch))
    return same and len(workdirs.scores_of(entry)) == repeats

  path = os.path.join(run.workdir, 'yardsticks.json')
  measured = sum(name in known and fits(name, entry) for name, entry in (workdirs.read(path) or {}).items())
  with run.progress.phase(REFERENCES, repeats * len(known), 'trainings', repeats * measured) as advance:
    shown = {name: one._replace(evaluate=counted(one.evaluate, advance)) for name, one in known.items()}
    measures = {name: functools.partial(train, name, one) for name, one in shown.items()}
    entries = workdirs.cached_each(path, measures, fits)
    return {name: workdirs.scores_of(entry) for name, entry in entries.items()}


def summary(run: Run, alone: FromScratch, train: Mapping[str, Evaluate], found: Mapping[str, Found]) -> Summary:
  """Trains the known architectures and the final choice, and returns the best child and the tables.

  The searches and the known architectures are compared on the same split and with the same budget.
  """
  system, cfg, made = run.system, run.cfg, run.problem.space
  references = alone.references(cfg, run.data, train['children'], run.recovery)
  known = {name: evaluators.Known(one.arch, train[_reference(name)]) for name, one in references.items()}
  known |= {name: evaluators.Known(arch, train['beside']) for name, arch in run.beside.items()}
  scores = measure_references(run, known)
  records = {name: one.records for name, one in found.items()}
  key, _, lower = system.metric
  return Summary(
    best_child(run, found[search.title(cfg)]),
    f'{system.metric.name}, {system.length(cfg)}',
    rankings.standings(records, scores, made, key, lower),
    f'top 5 and 15: mean over different {system.noun}s; short budgets favour fast learners',
    rung_stage.table(run, found) + in_common(run, found[search.title(cfg)]),
    final_choice.run(run, found),
  )


def best_child(run: Run, found: Found) -> str:
  """Describes the best child in equations or words."""
  metric, made, by = run.system.metric, run.problem.space, goal(run.system, run.cfg)
  ranked = rungs.best_first(rung_stage.of(run.system, run.cfg, made, found.folder, found.records), made, by)
  if not ranked:
    return 'no child was trained without failing'
  rung, best = ranked[0]
  after = f' after {rung_stage.length(run.system, run.cfg, rung)}' if rung > 1 else ''
  head = f'best {run.system.noun} (child {best["id"]}, {metric.name} {best[metric.key]:.3f}{after}):'
  return f'{head}\n{draw.words(rankings.arch_of(made, best), made, *run.system.options(run.cfg))}'


def in_common(run: Run, found: Found) -> str:
  """Returns tables of the scores for each kind of child; '' if the system does not distinguish kinds."""
  key, _, lower = run.system.metric
  tables = [
    rankings.table(
      (name, 'children', 'best', 'mean'), rankings.grouped(found.records, run.problem.space, key, lower, kind)
    )
    for name, kind in run.system.views.items()
  ]
  return ''.join(f'\n{table}\n' for table in tables)
