"""One search over several hosts: host 0 leads it, and the others train their shares of the children.

Only host 0 runs the search and writes its files. It cuts each batch of children into equal shares, one for each
host, trains its own share and waits for the others. The hosts communicate through a key-value store, such as that of
JAX's coordination service. No training program contains a collective, so a result is bit-identical to that of one host
with as many devices.

The keys of the store:

* `saved`: the config in the workdir of host 0. `from_host_0` can send other values under keys of their own.
* `facts`, `agreed/HOST`, `verdict`: whether all hosts were started with the same config and the same data.
* `task/NUMBER`: the batches, in order, each with the name of its evaluator. An empty task ends the search.
* `done/NUMBER/HOST`: the outcome of a host's share.
"""

from collections.abc import Callable, Iterator, Mapping
import json
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nas_jax import arrays
from nas_jax.search.per_layer import Group
from nas_jax.training import evaluators
from nas_jax.training.recovery import Stopped
from nas_jax.types import Batch, Evaluate, Outcome, Repeats

LOST = 75  # exit code (EX_TEMPFAIL of sysexits.h): a host is lost, and the same command resumes the search


class Ended(Stopped):
  """Another host has ended before the search did, or is lost. This host then ends with exit code `code` too."""

  def __init__(self, code: int, message: str):
    super().__init__(message)
    self.code = code


class Hosts(NamedTuple):
  """The hosts of a search, from the view of one of them, and the store that they share."""

  process: int  # the number of this host; host 0 leads
  processes: int
  put: Callable[[str, bytes], None]  # (key, value); a key is set once
  get: Callable[[str], bytes]  # waits until the key is set; raises `Stopped` if this host or another one is to end
  drop: Callable[[str], None]  # removes a key
  numbers: Iterator[int]  # 0, 1, 2, ...: the numbers of the tasks


def _alone(*_: Any) -> Any:
  raise AssertionError('one host has nobody to talk to')


ALONE = Hosts(0, 1, _alone, _alone, _alone, iter(()))


def from_host_0(hosts: Hosts, key: str, read: Callable[[], Any]) -> Any:
  """Returns, on every host, the JSON value that `read` returns on host 0. Every host must call this function.

  Args:
    hosts: the hosts of the search.
    key: of the store; each call has its own.
    read: called on host 0 alone.
  """
  if hosts.process:
    return json.loads(hosts.get(key))
  found = read()
  if hosts.processes > 1:
    hosts.put(key, json.dumps(found).encode())
  return found


def agree(hosts: Hosts, facts: Mapping[str, Any]) -> None:
  """Checks that all hosts were started with the same facts. Every host must call this function.

  Args:
    hosts: the hosts of the search.
    facts: values of JSON by name, such as the settings of the search.

  Raises:
    ValueError: on every host, if the facts of one host differ from those of host 0. The message names the difference.
  """
  if hosts.process:
    first, own = json.loads(hosts.get('facts')), json.loads(json.dumps(facts))
    names = [name for name in {**first, **own} if first.get(name) != own.get(name)]
    different = [f'{name} ({first.get(name)} on host 0, {own.get(name)} on host {hosts.process})' for name in names]
    hosts.put(f'agreed/{hosts.process}', ', '.join(different).encode())
  elif hosts.processes > 1:
    hosts.put('facts', json.dumps(facts).encode())
    said = [hosts.get(f'agreed/{host}') for host in range(1, hosts.processes)]
    hosts.put('verdict', b', '.join(filter(None, said)))
  verdict = hosts.get('verdict').decode() if hosts.processes > 1 else ''
  if verdict:
    raise ValueError(f'the hosts differ: {verdict}. Start all with the same flags and the same data.')


def lead(hosts: Hosts, own: Mapping[str, Evaluate], uniform: bool) -> dict[str, Evaluate]:
  """Returns evaluators that cut a batch into shares, which the hosts train with their evaluators of the same name.

  Args:
    hosts: as host 0 sees them. The others call `serve`.
    own: the evaluators of host 0, which train on its devices.
    uniform: whether one program trains all children of a share; see `share`.
  """

  def train(name: str, batch: Batch) -> Outcome:
    number = next(hosts.numbers)
    hosts.put(f'task/{number}', arrays.pack((name, batch, uniform)))
    found = [own[name](share(batch, 0, hosts.processes, uniform))]
    for host in range(1, hosts.processes):
      key = f'done/{number}/{host}'
      found += arrays.unpack(hosts.get(key), [Outcome])
      hosts.drop(key)
    hosts.drop(f'task/{number}')
    return join(found, len(batch.keys), -(-len(batch.keys) // hosts.processes))

  def of(name: str) -> Evaluate:
    return lambda batch: train(name, batch)

  return {name: of(name) for name in own}


def dismiss(hosts: Hosts) -> None:
  """Tells the other hosts, which are in `serve`, that the search is over."""
  hosts.put(f'task/{next(hosts.numbers)}', b'')


def serve(hosts: Hosts, own: Mapping[str, Evaluate], arch_type: type) -> None:
  """Trains this host's share of every batch until host 0 says that the search is over.

  Args:
    hosts: as this host, which is not host 0, sees them.
    own: the evaluators of this host, which train on its devices. They have the names that host 0 has in `lead`.
    arch_type: the NamedTuple of the architectures.

  Raises:
    Stopped: this host or another one was asked to end.
  """
  for number in hosts.numbers:
    task = hosts.get(f'task/{number}')
    if not task:
      return
    name, batch, uniform = arrays.unpack(task, [Batch, Repeats, Group, arch_type])
    part = share(on_device(batch), hosts.process, hosts.processes, uniform)
    # A host without children answers too, so that host 0 does not drop the task before this host has read it.
    found = [own[name](part)] if len(part.keys) else []
    hosts.put(f'done/{number}/{hosts.process}', arrays.pack(found))


_OF_CHILDREN = ('ids', 'keys', 'tokens', 'archs', 'repeats')  # the fields of a batch that are [m, ...]


def on_device(batch: Batch) -> Batch:
  """Returns a batch with JAX arrays in place of the NumPy arrays that `arrays.unpack` gives."""
  return batch._replace(**{name: jax.tree.map(jnp.asarray, getattr(batch, name)) for name in _OF_CHILDREN})


def share(batch: Batch, index: int, count: int, uniform: bool) -> Batch:
  """Returns the share of a batch that a host trains. Host 0 trains the first ceil(m / count) children, and so on.

  Args:
    batch: m children.
    index: the number of the host.
    count: the number of hosts.
    uniform: whether each share that has a child is filled up to a full share by copies of its last child. All hosts
      then run the same program as one host with as many devices. Otherwise the last shares are smaller or empty.
  """
  m = len(batch.keys)
  size = -(-m // count)
  first, end = min(index * size, m), min(index * size + size, m)
  places = np.arange(first, end)
  if uniform and len(places):
    places = np.minimum(np.arange(first, first + size), m - 1)
  parts = {name: jax.tree.map(lambda x: x[places], getattr(batch, name)) for name in _OF_CHILDREN}
  depth = jnp.asarray(batch.depth)[places] if getattr(batch.depth, 'ndim', 0) else batch.depth
  return batch._replace(**parts, depth=depth)


def join(outcomes: list[Outcome], m: int, size: int) -> Outcome:
  """Returns the outcome of m children, given the outcomes of their shares. Copies that filled up a share are dropped.

  Args:
    outcomes: the outcome of each share, in the order of hosts.
    m: children of the batch.
    size: children of a full share.
  """
  counts = [min(size, m - first) for first in range(0, m, size)]
  reward, failed = ([np.asarray(getattr(one, name))[:n] for one, n in zip(outcomes, counts)] for name in _EARNED)
  parts = [{key: np.asarray(x)[:n] for key, x in one.metrics.items()} for one, n in zip(outcomes, counts)]
  metrics = evaluators.concatenate(parts, counts)
  return Outcome(jnp.asarray(np.concatenate(reward)), metrics, failed=jnp.asarray(np.concatenate(failed)))


_EARNED = ('reward', 'failed')
