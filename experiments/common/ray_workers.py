"""Workers on a Ray cluster that train the children of a search. They need the extra `nas_jax[ray]`.

A worker is an actor that has its own checkout, data and devices. It makes the evaluators of the search once and then
trains the batches that the search sends. It saves the state of its trainings in WORKDIR/worker-NUMBER, as a search in
one process does. The controller and the journal stay in the process of the search.
"""

from collections import deque
from collections.abc import Callable, Collection
import contextlib
import dataclasses
import itertools
import json
import logging
import math
import os
import time
from typing import Any
import warnings

from absl import flags
import jax

from experiments.common import from_scratch, launch, recovery_files, workdirs
from experiments.common.systems import SYSTEMS, Config, System
from nas_jax import arrays, config, files, hosts, lazy
from nas_jax.crew import Crew
from nas_jax.search.per_layer import Group
from nas_jax.types import Batch, Outcome, Repeats

PATIENCE = 1.0  # seconds between two looks whether the search was asked to end
LOCKED = 60.0  # seconds to wait for the folder of a worker
STARTS = 10  # consecutive failures of a worker to get ready, or to be started by Ray, after which the search ends


def define_flags(values: flags.FlagValues) -> None:
  """Defines the flags of a search with workers."""
  flags.DEFINE_integer(
    'workers', 0, 'number of workers on a Ray cluster that train children; 0: this process does', 0, flag_values=values
  )
  flags.DEFINE_string(
    'ray_address', '', 'with --workers: address of a running Ray cluster; by default one is started on this machine',
    flag_values=values,
  )  # fmt: skip


def start(address: str) -> Any:
  """Connects to a Ray cluster, or starts one on this machine, and returns the module `ray`.

  JAX is set to the CPU, so that this process uses no accelerator. Call it before JAX is first used: Ray forks, which
  is unsafe once JAX has threads.

  Args:
    address: of a running cluster; '' for the one that RAY_ADDRESS names, or else a new one.

  Raises:
    ImportError: Ray is not installed.
    ValueError: the cluster cannot be reached.
  """
  lazy.require('ray', '--workers', 'ray')
  import ray

  # Without an address Ray would look for a cluster that was started on this machine, and fail if that has crashed.
  chosen = address or os.environ.get('RAY_ADDRESS') or 'local'
  try:
    ray.init(
      chosen,
      include_dashboard=False if chosen == 'local' else None,
      log_to_driver=False,
      logging_level=logging.ERROR,
    )
  except Exception as error:  # Ray reports a cluster that does not start by errors of many types
    why = f' ({_last_line(error.__cause__)})' if error.__cause__ else ''
    raise ValueError(f'ray_address (={address!r}): {" ".join(str(error).split())[:200]}{why}') from None
  jax.config.update('jax_platforms', 'cpu')
  return ray


class Trainer:
  """The actor of a worker. It makes the evaluators of a search once, and trains batches with them."""

  def __init__(self, system: str, settings: str, data_dir: str, sha256: str, folder: str, cores: int):
    self._system = next(one for one in SYSTEMS if one.name == system)
    self._cfg = config.from_json(self._system.config, json.loads(settings))
    self._data_dir, self._sha256, self._folder, self._cores = data_dir, sha256, folder, cores
    self._open = contextlib.ExitStack()
    self._own: dict[str, Any] = {}

  def runs(self) -> None:
    """Returns as soon as the process of the worker runs."""

  def ready(self) -> None:
    """Reads the data, locks the folder and makes the evaluators, once. Raises ValueError if the data differ."""
    if self._own:
      return
    launch.set_up_jax(self._cores)
    data = self._system.load(self._cfg, self._data_dir)
    if data.sha256 != self._sha256:
      raise ValueError(f'its data are others (sha256 {data.sha256[:12]}, not {self._sha256[:12]})')
    self._open.enter_context(_lock(self._folder))
    workdirs.open_trainings(self._folder, self._cfg, self._sha256)
    self._open.enter_context(recovery_files.recording_crashes(self._folder))
    recovery = recovery_files.recovery(self._folder, self._cfg, lambda: None)
    problem = self._system.make_problem(self._cfg, data)

    def load(cfg: Any) -> Any:
      return self._system.load(cfg, self._data_dir)

    self._own = from_scratch.local_evaluators(self._system, self._cfg, data, problem, recovery, load)
    self._types = [Batch, Repeats, Group, problem.space.arch_type]

  def train(self, task: bytes) -> bytes:
    """Trains a packed (evaluator name, batch). Returns a packed (outcome without `children`, seconds taken)."""
    name, batch = arrays.unpack(task, self._types)
    begun = time.perf_counter()
    outcome = self._own[name](hosts.on_device(batch))
    return arrays.pack((outcome._replace(children=()), time.perf_counter() - begun))


def _lock(folder: str) -> contextlib.AbstractContextManager[Any]:
  """Locks a folder; tries again for `LOCKED` seconds, as a worker of a killed search may still hold the lock."""
  until = time.monotonic() + LOCKED
  while True:
    try:
      return workdirs.lock(folder)
    except ValueError:
      if time.monotonic() > until:
        raise
      time.sleep(PATIENCE)


def hire(
  ray: Any, system: System, cfg: Config, data_dir: str, sha256: str, workdir: str, size: int, check: launch.Check
) -> Crew:
  """Returns workers as a crew. They are started when the first result is collected.

  Each worker has one accelerator if the cluster has any, and else one core.

  Args:
    ray: as `start` returned it.
    system: of the children.
    cfg: of the search; 'child_program' is not 'auto'.
    data_dir: the folder of data sets, by default the current one; every worker reads this path on its own machine.
    sha256: of the data.
    workdir: of the search. Worker i saves its trainings in the folder worker-i below it. The disk need not be shared.
    size: how many workers.
    check: raises `Stopped` if the search was asked to end.
  """
  found = ray.cluster_resources()
  accelerator = next((name for name in ('GPU', 'TPU') if found.get(name)), '')
  options: dict[str, Any] = {'num_cpus': 1, 'max_restarts': -1, 'max_task_retries': 0}
  options |= {'num_gpus': 1} if accelerator == 'GPU' else {'resources': {'TPU': 1}} if accelerator else {}
  trainer = ray.remote(**options)(Trainer)
  settings = json.dumps(config.as_json(cfg))
  data_dir = os.path.abspath(data_dir)  # workers of a running cluster have another current folder

  def spawn(index: int) -> Any:
    folder = os.path.join(os.path.abspath(workdir), f'worker-{index}')
    return trainer.remote(system.name, settings, data_dir, sha256, folder, 1)

  return crew_of(ray, spawn, size, check)


@dataclasses.dataclass
class Worker:
  """A worker as the search sees it."""

  index: int
  actor: Any
  asked: Any  # reference to the result of the call that is under way; None if there is no such call
  call: str = 'runs'  # which method it is a call of: first 'runs', then 'ready', then 'train' for each batch
  ticket: int | None = None  # of the batch that it trains
  again: float = math.nan  # if the worker is lost, when `runs` is called again, on the monotonic clock; else NaN
  deaths: int = 0  # in a row, before it was ready


def crew_of(ray: Any, spawn: Callable[[int], Any], size: int, check: launch.Check) -> Crew:
  """Returns a crew of actors. If an actor dies, the next free one trains its batch, and it is started again.

  `collect` raises `files.Unusable` if a worker cannot get ready, or dies more than `STARTS` times in a row.

  Args:
    ray: the module `ray`, or an object with its `wait`, `get` and `exceptions`.
    spawn: (number) -> an actor with the methods of `Trainer`.
    size: number of actors.
    check: raises `Stopped` if the search was asked to end.
  """
  tickets, tasks, waiting = itertools.count(), dict[int, bytes](), deque[int]()
  answers = dict[int, tuple[Outcome, float]]()
  workers = list[Worker]()

  def submit(name: str, batch: Batch) -> int:
    ticket = next(tickets)
    tasks[ticket] = arrays.pack((name, batch))
    waiting.append(ticket)
    return ticket

  def collect(wanted: Collection[int]) -> tuple[int, Outcome, float]:
    if not workers:
      workers.extend(Worker(index, actor, actor.runs.remote()) for index, actor in enumerate(map(spawn, range(size))))
    while not (there := [ticket for ticket in wanted if ticket in answers]):
      check()
      for worker in workers:
        give(worker)
      asked = {worker.asked: worker for worker in workers if worker.asked is not None}
      if not asked:
        time.sleep(PATIENCE)
        continue
      for ref in ray.wait(list(asked), num_returns=1, timeout=PATIENCE)[0]:
        hear(asked[ref])
    return there[0], *answers.pop(there[0])

  def give(worker: Worker) -> None:
    if worker.asked is not None:
      return
    if worker.again <= time.monotonic():
      worker.asked, worker.call, worker.again = worker.actor.runs.remote(), 'runs', math.nan
    elif math.isnan(worker.again) and waiting:
      worker.ticket, worker.call = waiting.popleft(), 'train'
      worker.asked = worker.actor.train.remote(tasks[worker.ticket])

  def hear(worker: Worker) -> None:
    try:
      answer = ray.get(worker.asked)
    except ray.exceptions.RayActorError as error:
      lost(worker, error)
      return
    except ray.exceptions.RayTaskError as error:
      if isinstance(error.cause, OSError) and (worker.call == 'train' or error.cause.errno in workdirs.FULL):
        raise error.cause from None  # ends the search as a full disk of its own would
      if worker.call == 'ready':
        raise files.Unusable(f'worker {worker.index} cannot train: {_last_line(error)}') from None
      raise
    if worker.call == 'runs':
      worker.asked, worker.call = worker.actor.ready.remote(), 'ready'
      return
    if worker.ticket is not None:
      answers[worker.ticket] = arrays.unpack(answer, [Outcome])
      del tasks[worker.ticket]
    worker.ticket, worker.asked, worker.deaths = None, None, 0

  def lost(worker: Worker, error: Exception) -> None:
    if worker.ticket is not None:
      waiting.appendleft(worker.ticket)
      warnings.warn(f'worker {worker.index} is lost; another trains its batch.', stacklevel=2)
    died = isinstance(error, ray.exceptions.ActorDiedError)  # else Ray starts it again, and it is only unavailable
    if died:
      worker.actor = spawn(worker.index)
    worker.deaths += died or worker.call == 'ready'
    if worker.deaths > STARTS:
      raise files.Unusable(f'worker {worker.index} cannot be started: {_last_line(error)}')
    worker.ticket, worker.asked, worker.again = None, None, time.monotonic() + PATIENCE

  return Crew(size, submit, collect)


def _last_line(error: BaseException) -> str:
  lines = str(error).strip().splitlines()
  return lines[-1][:400] if lines else type(error).__name__
