"""A host's watch over the other hosts of a search. A thread reports every `BEAT` seconds that this host is alive.

It also checks whether others have ended or are lost. The hosts communicate through JAX's coordination service, which
process 0 runs. Besides the keys of `nas_jax.hosts` there are these:

* `joined/HOST`: a process of this number has joined; a second one is refused.
* `beat/HOST`: a growing count.
* `end/HOST`: the exit code of a host that ends before the search does, and why.
* `gone/HOST`: the host is about to exit; the value says whether it takes part in JAX's own shutdown.
"""

from collections.abc import Callable
import contextlib
import dataclasses
import json
import math
import os
import sys
import threading
import time
from typing import Any, NamedTuple

import jax

from experiments.common import launch
from nas_jax.hosts import LOST, Ended

BEAT = 1.0  # seconds between two signs of life
GRACE = 2.0  # seconds that a host has to end, once one is lost or has failed
OURS = 'nas_jax/'  # prefix of all keys
_SIGNALS = (130, 143)  # exit codes of a process that was asked to end; it may take time to save its work


class Service(NamedTuple):
  """JAX's coordination service, as one host uses it."""

  client: Any  # the client of the service
  host: int  # the number of this host
  hosts: int  # how many there are

  def say(self, key: str, value: bytes) -> None:
    """Publishes a value of this host, unless the service has ended."""
    with contextlib.suppress(jax.errors.JaxRuntimeError):
      self.client.key_value_set_bytes(f'{OURS}{key}/{self.host}', value, allow_overwrite=True)

  def listed(self, key: str) -> dict[int, bytes]:
    """Returns the values that the hosts have published, by host. Raises JaxRuntimeError if the service has ended."""
    found = self.client.key_value_dir_get_bytes(f'{OURS}{key}/')
    return {int(name.rsplit('/', 1)[1]): value for name, value in found}


@dataclasses.dataclass
class Others:
  """What a host knows of the others."""

  patience: float  # seconds without a sign of life after which a host is lost
  beats: dict[int, tuple[bytes, float]]  # the last sign of life of each host that this one watches, and when it came
  told: list[Ended] = dataclasses.field(default_factory=list)  # of hosts that said that they end
  lost: list[Ended] = dataclasses.field(default_factory=list)  # of the first host that was silent
  notes: list[Callable[[int], None]] = dataclasses.field(default_factory=list)  # called with the number of a lost host


def others(service: Service, patience: float) -> Others:
  """Returns what a host knows when it begins. Host 0 watches all others, and they watch it."""
  watched = [host for host in range(service.hosts) if host != service.host and 0 in (host, service.host)]
  return Others(patience, {host: (b'', time.monotonic()) for host in watched})


def look(service: Service, known: Others, number: int) -> None:
  """Reports sign of life `number` of this host, and checks whether the others are alive and whether they have ended."""
  service.say('beat', str(number).encode())
  with contextlib.suppress(jax.errors.JaxRuntimeError):
    beats, now, seen = service.listed('beat'), time.monotonic(), known.beats
    seen.update({host: (beats[host], now) for host in seen if host in beats and beats[host] != seen[host][0]})
    if not known.told:
      ends = {host: json.loads(value) for host, value in service.listed('end').items() if host != service.host}
      known.told.extend(Ended(code, f'host {host}: {why}') for host, (code, why) in ends.items())
  late = [host for host, (_, last) in known.beats.items() if time.monotonic() - last > known.patience]
  if late and not known.lost:
    known.lost.append(
      Ended(LOST, f'host {late[0]} has been silent for {known.patience:g} s; the same command goes on.')
    )
    for note in known.notes:
      with contextlib.suppress(OSError):
        note(late[0])


def watch(service: Service, known: Others, over: threading.Event) -> None:
  """Looks every `BEAT` seconds until `over` is set.

  Ends the process if another host is lost or has failed and the main thread has not ended within `GRACE` seconds.
  """
  number, since = 0, math.inf
  while not over.wait(BEAT):
    number += 1
    look(service, known, number)
    if known.lost or (known.told and known.told[0].code not in _SIGNALS):
      since = min(since, time.monotonic())
      if time.monotonic() - since > GRACE:  # the main thread is in an uninterruptible call
        error = (known.lost or known.told)[0]
        tell_lost(service, known, error)
        service.say('gone', b'alone')
        launch.say(str(error))
        leave_at_once(error.code)


def tell_lost(service: Service, known: Others, error: Ended) -> None:
  """Tells the other hosts of an error if this host was the one that found another lost."""
  if error in known.lost:
    service.say('end', json.dumps([error.code, str(error)]).encode())


def meet(service: Service, known: Others) -> bool:
  """Waits until all hosts are about to exit, or gives up if one is lost. Returns whether JAX's shutdown is safe."""
  given_up = math.inf
  while time.monotonic() < given_up:
    with contextlib.suppress(jax.errors.JaxRuntimeError):
      gone = service.listed('gone')
      if len(gone) == service.hosts:
        return set(gone.values()) == {b'together'}
    if known.lost:
      given_up = min(given_up, time.monotonic() + BEAT)
    time.sleep(0.02)
  return False


def leave_at_once(code: int) -> None:
  """Ends the process without exit handlers."""
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(code)
