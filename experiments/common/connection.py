"""Connects the processes of a search over several hosts. They watch one another and end together."""

import atexit
from collections.abc import Callable, Iterator
import concurrent.futures
import contextlib
import functools
import itertools
import json
import os
import socket
import threading
import time
from typing import Any, NamedTuple

from absl import flags
import jax

from experiments.common import launch, watch
from nas_jax.hosts import ALONE, LOST, Ended, Hosts

JOIN = 1800  # seconds to wait for all hosts to start; installing an environment takes minutes

Check = Callable[[], None]  # raises `Stopped` if the process was asked to end
Describe = Callable[[BaseException], tuple[int, str]]  # the exit code of an error, and its line


class Connection(NamedTuple):
  """The hosts of a search, as this process sees them."""

  process: int  # the number of this host; host 0 leads
  processes: int
  checked: Callable[[Check], tuple[Hosts, Check]]  # check -> the hosts, and a `check` that also raises `Ended`
  on_loss: Callable[[Callable[[int], None]], None]  # sets a function to call at once with the number of a lost host
  meeting: Callable[[Describe], contextlib.AbstractContextManager[None]]  # see `connect`
  leave: Callable[[], None]  # call it at the normal end, which all hosts reach


UNCONNECTED = Connection(
  0, 1, lambda check: (ALONE, check), lambda note: None, lambda describe: contextlib.nullcontext(), lambda: None
)  # fmt: skip


def define_flags(values: flags.FlagValues) -> None:
  """Defines the flags of a search over several hosts."""
  flags.DEFINE_boolean(
    'hosts', False, 'train children on all hosts of a TPU slice, or of a job of SLURM, Open MPI or Kubernetes: start '
    'the same command on each', flag_values=values,
  )  # fmt: skip
  flags.DEFINE_string(
    'coordinator', '', 'instead of --hosts, where hosts cannot be detected: IP:PORT of process 0', flag_values=values
  )
  flags.DEFINE_integer('num_processes', None, 'with --coordinator: number of processes', 1, flag_values=values)
  flags.DEFINE_integer('process_id', None, 'with --coordinator: index of this process, from 0', 0, flag_values=values)
  flags.DEFINE_integer(
    'host_patience', 60, 'seconds without a sign of life after which a host counts as lost', 5, flag_values=values
  )


def join(values: flags.FlagValues) -> Connection:
  """Waits for all hosts that the flags name, and returns the connection to them. Call it before JAX is first used.

  Raises:
    ValueError: the flags contradict each other, no hosts are detected, or another process has the coordinator's port.
    Ended: not all hosts have joined within `JOIN` seconds, or this one has joined before; see `claim`.
  """
  given = [values[name].value not in (None, '') for name in ('coordinator', 'num_processes', 'process_id')]
  if any(given) and not all(given):
    raise ValueError('--coordinator, --num_processes and --process_id belong together: give all three, or --hosts.')
  if not (all(given) or values.hosts):
    return UNCONNECTED
  if all(given) and values.process_id >= values.num_processes:
    raise ValueError(
      f'process_id (={values.process_id}) must be less than num_processes (={values.num_processes}): it counts from 0.'
    )
  if values.coordinator:
    _check_coordinator(values.coordinator, bind=values.process_id == 0)
  # Host 0 must outlive the loss of another host to report it. SIGTERM is left to our own handler.
  jax.config.update('jax_enable_recoverability', True)
  jax.config.update('jax_enable_preemption_service', False)
  begin = functools.partial(
    jax.distributed.initialize,
    values.coordinator or None,
    values.num_processes,
    values.process_id,
    initialization_timeout=JOIN,
    heartbeat_timeout_seconds=values.host_patience + 5,
    shutdown_timeout_seconds=values.host_patience,
  )
  try:
    _interruptible(begin)
  except ValueError as error:
    raise ValueError(
      f'--hosts: no job over several hosts is detected ({error}): give --coordinator, --num_processes and --process_id.'
    ) from None
  except RuntimeError as error:
    raise Ended(LOST, f'the hosts have not all come ({str(error).splitlines()[0]})') from None
  # JAX has no public API for its key-value store; Orbax uses this private one too.
  from jax._src.distributed import global_state

  claim(global_state.client, global_state.process_id)
  return connect(global_state.client, global_state.process_id, global_state.num_processes, values.host_patience)


def _interruptible(act: Callable[[], None]) -> None:
  """Calls a function that waits outside of Python, so that Ctrl-C and SIGTERM still end the process."""
  done: concurrent.futures.Future[None] = concurrent.futures.Future()

  def run() -> None:
    try:
      act()
      done.set_result(None)
    except Exception as error:
      done.set_exception(error)

  threading.Thread(target=run, name='the wait for other hosts', daemon=True).start()
  try:
    done.result()
  except KeyboardInterrupt as error:
    atexit.register(watch.leave_at_once, launch.ending_before_work(error)[0])  # the thread still waits
    raise


def _check_coordinator(address: str, bind: bool) -> None:
  """Raises ValueError if --coordinator is not IP:PORT or, with `bind`, if another process listens on this port."""
  host, _, port = address.rpartition(':')
  if not (host and port.isascii() and port.isdecimal() and 0 < int(port) < 2**16):
    raise ValueError(f'coordinator (={address!r}) must be the address and a port of process 0, such as 10.0.0.1:8476.')
  if not bind or 'JAX_COORDINATOR_BIND_ADDRESS' in os.environ:
    return
  both = socket.has_dualstack_ipv6()
  try:  # JAX would share the port with another search, or crash
    family = socket.AF_INET6 if both else socket.AF_INET
    socket.create_server(('', int(port)), family=family, dualstack_ipv6=both).close()
  except OSError as error:
    raise ValueError(
      f'coordinator (={address!r}): process 0 cannot listen on this port ({os.strerror(error.errno or 0)}): end the '
      'process that does, or give all hosts another port.'
    ) from None


def claim(client: Any, index: int) -> None:
  """Takes the number of this process, for good.

  JAX would let a process that was started again join the search that still runs. This process would wait for tasks that
  are over, and the others would take its signs of life for those of the process before.

  Args:
    client: the client of JAX's coordination service.
    index: the number of this process.

  Raises:
    Ended: another process of this number has joined before.
  """
  try:
    client.key_value_set_bytes(f'{watch.OURS}joined/{index}', b'', allow_overwrite=False)
  except jax.errors.JaxRuntimeError as error:
    if 'ALREADY_EXISTS' not in str(error):
      raise
    atexit.register(watch.leave_at_once, LOST)  # JAX's own exit handler would disconnect the process that joined before
    raise Ended(
      LOST,
      f'a process {index} has joined this search before. If it still runs, leave it alone; if not, the other hosts '
      'notice that within --host_patience seconds, and then the same command goes on.',
    ) from None


def connect(client: Any, index: int, count: int, patience: float) -> Connection:
  """Starts the thread that watches the other hosts, and returns the connection.

  Its `meeting(describe)` is a context manager. An error inside it is reported to the other hosts, which then raise
  `Ended` with the same exit code. The error propagates when all hosts are about to exit or, if a host is lost, a
  second later.

  Args:
    client: the client of JAX's coordination service.
    index: the number of this process.
    count: the number of processes.
    patience: seconds without a sign of life after which a host is lost. Host 0 watches all others, and they watch it.
  """
  service = watch.Service(client, index, count)
  known, over = watch.others(service, patience), threading.Event()

  def leave(code: int = 0) -> None:
    service.say('gone', b'together')
    safe = watch.meet(service, known)
    over.set()
    thread.join()  # a thread that still used the service would crash the process at exit
    try:
      if safe and not index:  # the service must outlive the others: this call returns when all have disconnected
        client.get_live_nodes(list(range(count)))
      if safe:
        jax.distributed.shutdown()
    except jax.errors.JaxRuntimeError:
      safe = False
    if not safe:  # runs before JAX's own exit handler, which would wait for the lost host
      atexit.register(watch.leave_at_once, code or LOST)

  def checked(check: Check) -> tuple[Hosts, Check]:
    def both() -> None:
      check()
      if known.told or known.lost:
        raise (*known.told, *known.lost)[0]

    return _exchange(service, both), both

  @contextlib.contextmanager
  def meeting(describe: Describe) -> Iterator[None]:
    try:
      yield
    except BaseException as error:
      code, why = describe(error)
      if isinstance(error, Ended):
        watch.tell_lost(service, known, error)
      else:
        service.say('end', json.dumps([code, why]).encode())
      leave(code)
      raise

  thread = threading.Thread(
    target=watch.watch, args=(service, known, over), name='the watch over other hosts', daemon=True
  )
  thread.start()
  return Connection(index, count, checked, known.notes.append, meeting, leave)


def _exchange(service: watch.Service, check: Check) -> Hosts:
  """Returns hosts that exchange values. Waiting calls `check` every `watch.BEAT` seconds."""
  client = service.client

  def until_done(act: Callable[..., Any]) -> Callable[..., Any]:
    def call(key: str, *args: Any) -> Any:
      while True:
        check()
        try:
          return act(watch.OURS + key, *args)
        except jax.errors.JaxRuntimeError as error:
          if 'DEADLINE_EXCEEDED' not in str(error):
            time.sleep(watch.BEAT)  # host 0 does not answer; the watching thread finds out whether it is lost

    return call

  def get(key: str) -> bytes:
    return client.blocking_key_value_get_bytes(key, int(1000 * watch.BEAT))

  def put(key: str, value: bytes) -> None:
    client.key_value_set_bytes(key, value, allow_overwrite=True)

  acts = {'put': put, 'get': get, 'drop': client.key_value_delete}
  return Hosts(
    service.host, service.hosts, **{name: until_done(act) for name, act in acts.items()}, numbers=itertools.count()
  )
