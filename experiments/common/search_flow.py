"""A whole search of any system: the search, its random-search baseline with an equal budget, and their results."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import json
import os

import jax
import numpy as np

from experiments.common import (
  from_scratch,
  launch,
  quick_end,
  recovery_files,
  reports,
  run_search,
  start_from,
  systems,
  top,
  weight_sharing,
  workdirs,
)
from experiments.common.progress import Progress
from experiments.common.stages import Found, Run, Stages, Summary
from experiments.common.start_from import NOTHING, Start
from experiments.common.systems import Arch, Config, Data, System
from nas_jax import config, files, search, words
from nas_jax import crew as crew_lib
from nas_jax import hosts as hosts_lib
from nas_jax.report import rankings
from nas_jax.search import journal
from nas_jax.training.problem import Problem


def lost_file(workdir: str) -> str:
  """Returns the path of the list of hosts that were lost before host 0 ended; only they crashed by their own fault."""
  return os.path.join(workdir, 'lost.json')


def run(
  system: System,
  cfg: Config,
  data: Data,
  workdir: str,
  beside: Mapping[str, Arch] | None = None,
  with_control: bool = True,
  check: launch.Check = lambda: None,
  problem: Problem | None = None,
  hosts: hosts_lib.Hosts = hosts_lib.ALONE,
  crew: crew_lib.Crew | None = None,
  started: Start = NOTHING,
  reload: Callable[[Config], Data] | None = None,
  top_count: int = 5,
) -> None:
  """Runs all stages of a search in a workdir. It resumes from the state in the workdir.

  Args:
    system: what is searched for.
    cfg: the config that the workdir was opened with.
    data: as the system's `load` returns it.
    workdir: the folder of results.
    beside: architectures by name, to train as the children are, for comparison. Not for children that share weights.
    with_control: whether to run a random search with an equal budget, as a baseline.
    check: raises `Stopped` if the process was asked to end.
    problem: the problem of `cfg` and `data`, if it has been made already.
    hosts: the hosts that train the children, as host 0 sees them.
    crew: workers that train the children, in place of this process.
    started: what the search starts from. The random search starts from nothing.
    reload: (cfg) -> the data for the data_seed of `cfg`, to measure how rewards depend on the data split; by default
      the splits of `data` are kept.
    top_count: how many of the best different architectures to write to top.json; 0 for none.
  """
  unsaved = {'what other hosts train'} if hosts.processes > 1 else set[str]()
  recovery = recovery_files.recovery(workdir, cfg, check, unsaved=unsaved)
  problem = system.make_problem(cfg, data) if problem is None else problem
  beside, reload = beside or {}, reload or (lambda cfg: data)
  width = len(jax.local_devices())
  begun = Run(system, cfg, data, problem, workdir, recovery, beside, reload, Progress(), width)
  with quick_end.while_compiling(unsaved):
    _run(_placed(begun, hosts, crew), with_control, started, _places(hosts, crew), top_count)


def _run(begun: Run, with_control: bool, started: Start, places: str, top_count: int) -> None:
  """Runs all stages; `places` says in words where children are trained."""
  system, workdir, problem = begun.system, begun.workdir, begun.problem
  stages = from_scratch.stages(begun, system.alone) if system.alone else weight_sharing.stages(begun)
  cfg = stages.cfg
  print(
    f'{words.counted(problem.space.size(), system.noun)}; {stages.children} on {system.about(cfg, begun.data)}; '
    f'{places}; results in {workdir}',
    flush=True,
  )
  control = dataclasses.replace(cfg, algorithm='random', proposals='policy')
  with_control &= control != cfg
  phases = [f'search ({search.title(cfg)})', *(['random search'] if with_control else [])]
  beside = stages.work([cfg, control][: len(phases)])
  begun.progress.expect({name: system.children(cfg) for name in phases} | dict(beside))
  said = stages.before()
  if said:
    print(said, flush=True)
  for line in started.said:
    print(f'started from {line}', flush=True)
  found = {search.title(cfg): _one(begun, stages, cfg, workdir, started, phases[0])}
  if with_control:
    found['random'] = _one(begun, stages, control, open_control(begun, control), NOTHING, phases[1])
  top.write(workdir, system, cfg, top_count)
  notes = [line for line in (said, at_limit(cfg, found[search.title(cfg)].records)) if line]
  _summarize(begun, cfg, stages.summary(found), notes, started)
  reports.write(workdir, reports.make(workdir, begun.cfg))
  chosen = os.path.join('final', 'best.json')
  of_choice = f', {chosen} the one of the final choice' if os.path.exists(os.path.join(workdir, chosen)) else ''
  print(f'results in {workdir}: summary.txt has these tables, best.json the best architecture{of_choice}')
  origin = workdirs.peek(os.path.join(workdir, 'origin.json')) or {}
  if command := top.retrain_command(f'--workdir={workdir}', system, cfg, origin):
    print(f'{command} trains that to the end', flush=True)


def open_control(begun: Run, control: Config) -> str:
  """Opens the folder of the random-search baseline, whose config is `control`, and returns its path.

  Its origin.json says what its children are, so that other searches can start from them.
  """
  folder = os.path.join(begun.workdir, 'control')
  workdirs.open_config(folder, control)
  workdirs.note_data(folder, **systems.origin_facts(begun.system, control, begun.data))
  return folder


def at_limit(cfg: Config, records: Sequence[journal.Record]) -> str:
  """Returns a line that warns if several children earned the `reward_limit`, which then cannot rank them; else ''."""
  limit = getattr(cfg, 'reward_limit', 0.0)
  several = sum(record['reward'] == float(np.float32(limit)) for record in records if record['failed'] is None)
  if not limit or several < 2:
    return ''
  return (
    f'{several} children earned the reward_limit (={limit:g}), so the search cannot tell which of them is better: take '
    'a higher one, or 0 for none.'
  )


def _placed(begun: Run, hosts: hosts_lib.Hosts, crew: crew_lib.Crew | None) -> Run:
  """Returns a run whose children are trained by several hosts or by workers, if there are any.

  With several hosts it sends the others the settled config and the list of hosts that were lost before.
  """
  if hosts.processes > 1:
    begun = from_scratch.settle_program(begun, hosts.processes)
    settled = {'config': config.as_json(begun.cfg), 'lost': workdirs.read(lost_file(begun.workdir)) or []}
    hosts.put('settled', json.dumps(settled).encode())
    files.remove(lost_file(begun.workdir))
    begun = begun._replace(width=begun.width * hosts.processes)
    begun = begun._replace(place=lambda own: hosts_lib.lead(hosts, own, not begun.problem.own_programs))
  if crew:
    begun = from_scratch.settle_program(begun)
    begun = begun._replace(crew=crew, place=lambda own: crew_lib.elsewhere(crew, own, not begun.problem.own_programs))
  return begun


def _places(hosts: hosts_lib.Hosts, crew: crew_lib.Crew | None) -> str:
  """Returns in words where children are trained."""
  if crew:
    return words.counted(crew.size, 'worker')
  devices = words.counted(len(jax.local_devices()), f'{jax.default_backend()} device')
  return f'{devices} on each of {hosts.processes} hosts' if hosts.processes > 1 else devices


def _summarize(begun: Run, cfg: Config, found: Summary, notes: Sequence[str], started: Start) -> None:
  """Prints the summary of the results, and writes it to summary.txt."""
  table = rankings.table((found.scores, *rankings.HEADER), found.rows)
  facts = f'{cfg.dataset}, sha256 {begun.data.sha256[:12]}; {config.seeds_in_words(cfg)}; {found.note}'
  converged = [found.converged] if found.converged else []
  origins = [f'started from {line}' for line in started.said]
  best = [said] if (said := top.said(begun.workdir, begun.system, cfg)) else []
  summary = '\n'.join([*converged, found.best, '', table, facts, *origins, *notes, *best, found.rest])
  workdirs.write(os.path.join(begun.workdir, 'summary.txt'), summary)
  print(f'\n{summary}', end='')


def _one(begun: Run, stages: Stages, cfg: Config, folder: str, started: Start, phase: str) -> Found:
  """Runs one search to its end, and then the stage `after` it."""
  s, budget = start_from.begin(stages.search(cfg), started), run_search.budget_of(cfg, begun.system.children(cfg))
  watchers, told = [reports.refresher(begun.workdir, begun.cfg)], start_from.measured(started)
  records = run_search.run(
    folder, s, cfg.seed, budget, phase, begun.recovery, watchers, begun.crew, begun.width, told, begun.progress
  )
  found = Found(folder, s, records)
  stages.after(cfg, found)
  return found
