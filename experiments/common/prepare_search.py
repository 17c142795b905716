"""Reads the flags and data of a search and opens its workdir; `search_flow` then runs the search."""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import json
import os
from typing import Any

from absl import flags
import jax

from experiments.common import (
  arch_files,
  arguments,
  connection,
  final_choice,
  from_scratch,
  launch,
  ray_workers,
  recovery_files,
  search_flow,
  start_from,
  workdirs,
)
from experiments.common.systems import SYSTEMS, Arch, Config, Data, System, check_workdir, for_config, origin_facts
from nas_jax import config, space, words
from nas_jax import hosts as hosts_lib
from nas_jax.training.problem import Problem


def own_flags(systems: Sequence[System]) -> Callable[[flags.FlagValues], None]:
  """Returns a function that defines the flags of a launcher of these systems that are no fields of their configs."""
  launcher = systems[0].launcher

  def define(values: flags.FlagValues) -> None:
    presets = {name: None for system in systems for name in system.presets}
    arguments.search_flags(presets, f'{launcher}-VARIANT' if systems[0].variant else launcher)(values)
    flags.DEFINE_integer(
      'top', 5, 'how many of the best different architectures to write to top.json; 0 for none', 0, flag_values=values
    )
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
  """Reads the flags and data of a search, joins its hosts or workers, and opens its workdir.

  Args:
    systems: the systems of the launcher. If there are several, --variant names the one to search with.
    doc: the launcher's docstring, for --help.
    argv: the command line.

  Returns:
    The function that does the work, for `launch.main`.

  Raises:
    ValueError: the input is invalid. Nothing has been compiled by then.
  """
  configs = {system.variant: system.presets for system in systems}
  values = arguments.parse(argv, doc or '', own_flags(systems), configs, elsewhere=_elsewhere(systems))
  if values.process_id is not None:  # else the number of this process is not known yet
    workdirs.check_unused(_folder(_workdir(systems, values), values.process_id))
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
  """Returns the work of this host. Host 0 opens the workdir; every other host has a folder in it."""
  system = _chosen(values, systems)
  cfg = arguments.configure(values, system.presets)
  workdir = _workdir(systems, values)
  if connected.processes > 1 and system.alone is None:
    raise ValueError('children that share weights are trained on one host: start this search on one alone.')
  ray = _start_workers(system, values, connected)
  leads = connected.process == 0
  if leads:
    check_workdir(workdir, system)
  hosts, _ = connected.checked(lambda: None)
  cfg = workdirs.settled_by(hosts_lib.from_host_0(hosts, 'saved', lambda: workdirs.saved_config(workdir)), cfg)
  system = for_config(system, cfg)
  beside = _read_beside(values.beside, system, cfg) if system.alone and leads else {}

  def load(cfg: Config) -> Data:
    return system.load(cfg, values.data_dir)

  data = load(cfg)
  facts = {'data (sha256)': data.sha256[:12], 'jax': jax.__version__, **workdirs.jax_settings()}
  facts |= {'num_processes': connected.processes}
  hosts_lib.agree(hosts, {'launcher': system.launcher, **config.as_json(cfg), **facts})
  launch.set_up_jax()
  launch.check_processes(connected.processes)
  problem = system.make_problem(cfg, data)
  if (ray or connected.processes > 1) and problem.warm_start:
    raise ValueError('warm_start trains children one after another: start this search on one host, or leave it out.')
  if ray and problem.program == 'auto':
    raise ValueError('child_program (=auto) is measured by this process, not by workers: take generic or specialised.')
  if not leads:
    return _prepare_to_serve(system, cfg, data, load, problem, _folder(workdir, connected.process), connected)
  final_choice.check(system, cfg, data, workdir)
  lock = workdirs.lock(workdir)
  cfg = workdirs.open_config(workdir, cfg)
  workdirs.check_data(workdir, data.sha256)
  started = start_from.NOTHING
  if system.alone:
    target = start_from.Target(system, cfg, data.sha256, problem.space, values.start_children)
    started = start_from.open_start(workdir, values.start_from, target)
  facts = {**origin_facts(system, cfg, data), 'max_children': system.children(cfg)}
  facts |= {'start_from': started.files} if started.files else {}
  workdirs.note_origin(workdir, system.launcher, argv, cfg, hosts=connected.processes, **facts)

  def work(check: launch.Check) -> None:
    hosts, check = connected.checked(check)
    connected.on_loss(lambda host: workdirs.write_json(search_flow.lost_file(workdir), [host]))
    with lock, recovery_files.recording_crashes(workdir):
      crew = None
      if ray:
        crew = ray_workers.hire(ray, system, cfg, values.data_dir, data.sha256, workdir, values.workers, check)
      search_flow.run(
        system,
        cfg,
        data,
        workdir,
        beside,
        values.control,
        check,
        problem=problem,
        hosts=hosts,
        crew=crew,
        started=started,
        reload=load,
        top_count=values.top,
      )
      if hosts.processes > 1:
        hosts_lib.dismiss(hosts)

  return work


def _workdir(systems: Sequence[System], values: flags.FlagValues) -> str:
  """Returns the workdir that the flags name."""
  variant = values.variant if systems[0].variant else ''
  return values.workdir or f'runs/{"-".join(filter(None, (systems[0].launcher, variant, values.preset)))}'


def _folder(workdir: str, process: int) -> str:
  """Returns the folder that a host locks: the workdir, or the one below it where a host saves its trainings."""
  return os.path.join(workdir, f'host-{process}') if process else workdir


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
  """Returns a function that trains the batches that host 0 sends, and saves states of trainings in `folder`."""
  lock = workdirs.lock(folder)

  def work(check: launch.Check) -> None:
    hosts, check = connected.checked(check)
    with lock, recovery_files.recording_crashes(folder):
      said = json.loads(hosts.get('settled'))
      settled = config.settled(cfg, said['config'])
      workdirs.open_trainings(folder, settled, data.sha256)
      if hosts.process not in said['lost']:  # JAX aborted this process because another was lost
        recovery_files.forget_crash(folder)
      recovery = recovery_files.recovery(folder, cfg, check, recovery_files.ONE_FILE)
      program = settled.child_program if problem.program == 'auto' else problem.program
      own = from_scratch.local_evaluators(system, settled, data, problem._replace(program=program), recovery, load)
      devices = words.counted(len(jax.local_devices()), f'{jax.default_backend()} device')
      print(f'process {hosts.process} of {hosts.processes} trains children on {devices}', flush=True)
      hosts_lib.serve(hosts, own, problem.space.arch_type)

  return work


def _elsewhere(systems: Sequence[System]) -> dict[str, str]:
  """Returns, for each config field of other launchers' systems, the launchers that have a flag for it."""
  found = dict[str, dict[str, None]]()
  for system in SYSTEMS:
    for item in dataclasses.fields(system.config) if system.launcher != systems[0].launcher else ():
      found.setdefault(item.name, {})[system.launcher] = None
  return {name: ' and '.join(launchers) for name, launchers in found.items()}


def _chosen(values: flags.FlagValues, systems: Sequence[System]) -> System:
  """Returns the system that --variant names. Raises ValueError if the preset or a flag belongs to another system."""
  if len(systems) == 1:
    return systems[0]
  by_variant = {system.variant: system for system in systems}
  system = by_variant[values.variant]
  arguments.own_preset(values, system.presets, f'--variant={values.variant}')
  arguments.own_fields(values, system.config, {f'--variant={name}': other.config for name, other in by_variant.items()})
  return system


def _read_beside(paths: Sequence[str], system: System, cfg: Config) -> dict[str, Arch]:
  """Returns architectures by their files. Raises ValueError if one cannot be read or cannot be trained as a child."""
  assert system.alone is not None
  parse = functools.partial(space.from_json, kind=system.kind)
  beside = {name: arch for path in paths for name, arch in arch_files.read_archs(path, parse).items()}
  for path, arch in beside.items():
    if why := system.alone.why_unsupported(cfg, arch):
      raise ValueError(f'{path}: {why}: leave it out, or take --child_program=specialised.')
  return beside
