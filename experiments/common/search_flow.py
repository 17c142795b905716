"""A whole search of any system: the search, a random search on the same budget beside it, and what came out."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import json
import os
from typing import Any

from absl import flags
import jax

from experiments import ray_workers
from experiments import report as report_page
from experiments.common import (
  connection,
  final_choice,
  from_scratch,
  launch,
  recovery_files,
  run_search,
  start_from,
  weight_sharing,
  workdirs,
)
from experiments.common.stages import Found, Run, Stages
from experiments.common.start_from import NOTHING, Start
from experiments.common.systems import Arch, Config, Data, System, check_workdir
from nas_jax import config, files
from nas_jax import crew as crew_lib
from nas_jax import hosts as hosts_lib
from nas_jax.report import rankings
from nas_jax.training.problem import Problem


def own_flags(systems: Sequence[System]) -> Callable[[flags.FlagValues], None]:
  """Defines the flags that a launcher of these systems has beside the fields of their configs."""
  launcher = systems[0].launcher

  def define(values: flags.FlagValues) -> None:
    presets = {name: None for system in systems for name in system.presets}
    launch.search_flags(presets, f'{launcher}-VARIANT' if systems[0].variant else launcher)(values)
    connection.define_flags(values)
    ray_workers.define_flags(values)
    if systems[0].variant:
      variants = [system.variant for system in systems]
      flags.DEFINE_enum('variant', variants[0], variants, 'what is searched for', flag_values=values)
    if systems[0].alone:
      help = f'files like best.json, of {systems[0].noun}s to train and compare'
      flags.DEFINE_list('beside', [], help, flag_values=values)
      flags.DEFINE_list(
        'start_from',
        [],
        f'what is known before the search: workdirs of other searches for {systems[0].noun}s, files like best.json, '
        'names of published ones, or published for all of these',
        flag_values=values,
      )
      flags.DEFINE_integer(
        'start_children',
        16,
        'how many of the best children of each workdir in --start_from to train first, if they were trained otherwise',
        0,
        flag_values=values,
      )

  return define


def prepare(systems: Sequence[System], doc: str | None, argv: Sequence[str]) -> launch.Work:
  """Reads the flags and the data of a search, and opens its workdir.

  Args:
    systems: those of the launcher. If there are several, --variant names the one to search with.
    doc: of the launcher, for --help.
    argv: the command line.

  Returns:
    What does the work, for `launch.main`.

  Raises:
    ValueError: something is wrong with the input; nothing has been compiled then.
  """
  values = launch.parse(argv, doc or '', own_flags(systems), {system.variant: system.presets for system in systems})
  connected = connection.join(values)
  with connected.meeting(launch.ending_before_work):
    begin = _prepare(systems, argv, values, connected)

  def work(check: launch.Check) -> None:
    with connected.meeting(launch.ending):
      begin(check)
    connected.leave()

  return work


def _prepare(
  systems: Sequence[System], argv: Sequence[str], values: flags.FlagValues, connected: connection.Connection
) -> launch.Work:
  """Returns `prepare`'s result for this host. Host 0 alone opens the workdir; each other one has a folder in it."""
  system = _chosen(values, systems)
  cfg = launch.configure(values, system.presets)
  name = '-'.join(filter(None, (system.launcher, system.variant, values.preset)))
  workdir = values.workdir or f'runs/{name}'
  if connected.processes > 1 and system.alone is None:
    raise ValueError('children that share weights are trained on one host: start this search on one alone.')
  ray = _start_workers(system, values, connected)
  leads = connected.process == 0
  if leads:
    check_workdir(workdir, system)
  cfg = workdirs.settled(workdir if leads else os.path.join(workdir, f'host-{connected.process}'), cfg)
  beside = _read_beside(values.beside, system, cfg) if system.alone and leads else {}

  def load(cfg: Config) -> Data:
    return system.load(cfg, values.data_dir)

  data = load(cfg)
  hosts, _ = connected.checked(lambda: None)
  facts = {'data (sha256)': data.sha256[:12], 'jax': jax.__version__, **workdirs.jax_settings()}
  hosts_lib.agree(hosts, {'launcher': system.launcher, **config.as_json(cfg), **facts})
  launch.set_up_jax()
  launch.check_processes(connected.processes)
  problem = system.make_problem(cfg, data)
  if (ray or connected.processes > 1) and problem.warm_start:
    raise ValueError('warm_start trains children one after another: start this search on one host, or leave it out.')
  if ray and problem.program == 'auto':
    raise ValueError('child_program (=auto) is measured by this process, not by workers: take generic or specialised.')
  if not leads:
    folder = os.path.join(workdir, f'host-{connected.process}')
    return _prepare_to_serve(system, cfg, data, load, problem, folder, connected)
  final_choice.of(system, cfg, data)  # raises ValueError if it cannot be made
  lock = workdirs.lock(workdir)
  cfg = workdirs.open_config(workdir, cfg)
  workdirs.check_data(workdir, data.sha256)
  started = start_from.NOTHING
  if system.alone:
    target = start_from.Target(system, cfg, data.sha256, problem.space, values.start_children)
    started = start_from.open_start(workdir, values.start_from, target)
  facts = {'kind': system.kind, 'dataset': cfg.dataset, 'sha256': data.sha256, 'max_children': system.children(cfg)}
  facts |= {'start_from': started.files} if started.files else {}
  workdirs.note_origin(workdir, system.launcher, argv, cfg, hosts=connected.processes, **facts)

  def work(check: launch.Check) -> None:
    hosts, check = connected.checked(check)
    connected.on_loss(lambda host: workdirs.write(_lost(workdir), json.dumps([host]) + '\n'))
    with lock, recovery_files.recording_crashes(workdir):
      crew = None
      if ray:
        crew = ray_workers.hire(ray, system, cfg, values.data_dir, data.sha256, workdir, values.workers, check)
      run(system, cfg, data, workdir, beside, values.control, check, problem, hosts, crew, started, load)
      if hosts.processes > 1:
        hosts_lib.dismiss(hosts)

  return work


def _start_workers(system: System, values: flags.FlagValues, connected: connection.Connection) -> Any:
  """Returns the module `ray`, connected to a cluster, or None without --workers."""
  if not values.workers:
    if values.ray_address:
      raise ValueError('--ray_address is for workers: say how many by --workers, or leave it out.')
    return None
  if system.alone is None:
    raise ValueError('children that share weights are trained by one process: leave out --workers.')
  if connected.processes > 1:
    raise ValueError('--workers and several hosts: a search takes either, as Ray has workers on many hosts.')
  return ray_workers.start(values.ray_address)


def _prepare_to_serve(
  system: System,
  cfg: Config,
  data: Data,
  load: Callable[[Config], Data],
  problem: Problem,
  folder: str,
  connected: connection.Connection,
) -> launch.Work:
  """Returns what trains children that host 0 names. What it keeps of trainings is in a folder of its own."""
  lock = workdirs.lock(folder)

  def work(check: launch.Check) -> None:
    hosts, check = connected.checked(check)
    with lock, recovery_files.recording_crashes(folder):
      said = json.loads(hosts.get('settled'))
      if hosts.process not in said['lost']:  # JAX has aborted this process, because another was lost
        recovery_files.forget_crash(folder)
      recovery = recovery_files.recovery(folder, cfg, check, recovery_files.ONE_FILE)
      settled = config.settled(cfg, said['config'])
      program = settled.child_program if problem.program == 'auto' else problem.program
      own = from_scratch.local_evaluators(system, settled, data, problem._replace(program=program), recovery, load)
      devices = rankings.counted(len(jax.local_devices()), f'{jax.default_backend()} device')
      print(f'process {hosts.process} of {hosts.processes} trains children on {devices}', flush=True)
      hosts_lib.serve(hosts, own, problem.space.arch_type)

  return work


def _lost(workdir: str) -> str:
  """Returns the file that says which hosts were lost before host 0 ended: of these, a crash is their own."""
  return os.path.join(workdir, 'lost.json')


def _chosen(values: flags.FlagValues, systems: Sequence[System]) -> System:
  """Returns the system that --variant names. Raises ValueError if another flag is only for other systems."""
  if len(systems) == 1:
    return systems[0]
  by_variant = {system.variant: system for system in systems}
  system = by_variant[values.variant]
  launch.own_preset(values, system.presets, f'--variant={values.variant}')
  launch.own_fields(values, system.config, {f'--variant={name}': other.config for name, other in by_variant.items()})
  return system


def _read_beside(paths: Sequence[str], system: System, cfg: Config) -> dict[str, Arch]:
  """Returns architectures by their files. Raises ValueError if one cannot be read or not be trained as a child."""
  assert system.alone is not None
  beside = {path: launch.read_arch(path, system.kind) for path in paths}
  for path, arch in beside.items():
    if why := system.alone.why_unsupported(cfg, arch):
      raise ValueError(f'{path}: {why}: leave it out, or take --child_program=specialised.')
  return beside


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
) -> None:
  """Runs all stages of a search in a workdir, from wherever the workdir says that it stands.

  Args:
    system: what is searched for.
    cfg: the config that the workdir was opened with.
    data: as the system's `load` returns it.
    workdir: the folder of results.
    beside: architectures by name, to train as the children are trained. Not for children that share weights.
    with_control: whether to run a random search on the same budget, as a baseline.
    check: raises `Stopped` if the process was asked to end.
    problem: that of `cfg` and `data`, if it has been made already.
    hosts: those that train the children, as host 0 sees them.
    crew: workers that train the children, in place of this process.
    started: what the search starts from. The random search beside it starts from nothing.
    reload: reads the data again with the data_seed of its argument, to see what rewards owe to the data; by default the
      splits stay those of `data`.
  """
  recovery = recovery_files.recovery(workdir, cfg, check)
  problem = system.make_problem(cfg, data) if problem is None else problem
  begun = Run(
    system, cfg, data, problem, workdir, recovery, beside or {}, reload or (lambda cfg: data), len(jax.local_devices())
  )
  if hosts.processes > 1:
    begun = from_scratch.settle_program(begun, hosts.processes)
    settled = {'config': config.as_json(begun.cfg), 'lost': workdirs.read(_lost(workdir)) or []}
    hosts.put('settled', json.dumps(settled).encode())
    files.remove(_lost(workdir))
    begun = begun._replace(width=begun.width * hosts.processes)
    begun = begun._replace(place=lambda own: hosts_lib.lead(hosts, own, not begun.problem.own_programs))
  if crew:
    begun = from_scratch.settle_program(begun)
    begun = begun._replace(crew=crew, place=lambda own: crew_lib.elsewhere(crew, own, not begun.problem.own_programs))
  stages = from_scratch.stages(begun, system.alone) if system.alone else weight_sharing.stages(begun)
  cfg = stages.cfg
  devices = rankings.counted(len(jax.local_devices()), f'{jax.default_backend()} device')
  places = rankings.counted(crew.size, 'worker') if crew else devices
  places += f' on each of {hosts.processes} hosts' if hosts.processes > 1 else ''
  print(
    f'{rankings.counted(problem.space.size(), system.noun)}; {stages.children} on {system.about(cfg, data)}; '
    f'{places}; results in {workdir}',
    flush=True,
  )
  said = stages.before()
  if said:
    print(said, flush=True)
  for line in started.said:
    print(f'started from {line}', flush=True)
  found = {cfg.algorithm: _one(begun, stages, cfg, workdir, started)}
  control = dataclasses.replace(cfg, algorithm='random', proposals='policy')
  if with_control and control != cfg:
    folder = os.path.join(workdir, 'control')
    workdirs.open_config(folder, control)
    found['random'] = _one(begun, stages, control, folder, NOTHING)
  best, scores, rows, note, rest, converged = stages.summary(found)
  table = rankings.table((scores, *rankings.HEADER), rows)
  facts = f'{cfg.dataset}, sha256 {data.sha256[:12]}; {config.seeds_in_words(cfg)}; {note}'
  facts = '\n'.join([facts, *(f'started from {line}' for line in started.said)])
  summary = '\n'.join([*([converged] if converged else []), best, '', table, facts, *([said] if said else []), rest])
  workdirs.write(os.path.join(workdir, 'summary.txt'), summary)
  print(f'\n{summary}', end='')
  report_page.write(workdir, report_page.make(workdir, begun.cfg))


def _one(begun: Run, stages: Stages, cfg: Config, folder: str, started: Start) -> Found:
  """Runs one search to its end, and what follows it at once."""
  s, budget = start_from.begin(stages.search(cfg), started), run_search.budget_of(cfg, begun.system.children(cfg))
  watchers, told = [report_page.refresher(begun.workdir, begun.cfg)], start_from.measured(started)
  records = run_search.run(
    folder, s, cfg.seed, budget, cfg.algorithm, begun.recovery, watchers, begun.crew, begun.width, told
  )
  found = Found(folder, s, records)
  stages.after(cfg, found)
  return found
