"""Measures the overhead of a batch over several hosts or Ray workers: packing, sending, waiting, joining.

The evaluators return at once, without training. The hosts and workers are processes of this machine, so there is no
network. Each takes a minute:
  python tests/tools/host_overhead.py --hosts=2 --batches=200
  python tests/tools/host_overhead.py --workers=2 --batches=200
"""

import argparse
import pathlib
import subprocess
import sys
import time

sys.path.extend(str(folder) for folder in pathlib.Path(__file__).resolve().parents[1:3])  # tests/ and the checkout

from absl import flags
import jax
import jax.numpy as jnp
import numpy as np
from tools import kill_hosts

from experiments.common import connection, ray_workers
from nas_jax import arrays, crew, hosts
from nas_jax.search.per_layer import Group
from nas_jax.systems import cell
from nas_jax.training import evaluators
from nas_jax.types import Batch, Outcome, Repeats


def scores(batch: Batch) -> Outcome:
  """An evaluator that returns at once."""
  ones = np.ones(len(batch.keys), np.float32)
  metrics = {'perplexity': ones, 'loss': ones, 'failed': np.zeros(len(ones), np.int32)}
  return Outcome(jnp.asarray(ones), metrics, failed=jnp.zeros(len(ones), bool))


def one(process: int, args: argparse.Namespace) -> None:
  """Runs one of the hosts. The first host prints how long its batches took."""
  values = flags.FlagValues()
  connection.define_flags(values)
  values(['', f'--coordinator={args.address}', f'--num_processes={args.hosts}', f'--process_id={process}'])
  connected = connection.join(values)
  jax.local_devices()  # all hosts must do so at about the same time
  own, made = {'children': scores}, cell.make_space(cell.demo())
  group, _ = connected.checked(lambda: None)
  if process:
    hosts.serve(group, own, made.arch_type)
  else:
    batch = evaluators.random_batch(made, jax.random.key(0), args.m)
    alone, over = (_seconds(train, batch, args.batches) for train in (scores, hosts.lead(group, own, True)['children']))
    hosts.dismiss(group)
    median, least = 1000 * np.median(over), 1000 * min(over)
    print(f'{args.hosts} hosts, m={args.m}: median {median:.1f} ms, least {least:.1f} ms a batch', end='; ')
    print(f'on one host {1000 * np.median(alone):.1f} ms; {jax.local_device_count()} devices each')
  connected.leave()


class Instant:
  """An actor with the methods of `ray_workers.Trainer`, whose trainings return at once."""

  def ready(self) -> None:
    """Does nothing."""

  def train(self, task: bytes) -> bytes:
    """Scores a packed (evaluator name, batch)."""
    types = [Batch, Repeats, Group, cell.make_space(cell.demo()).arch_type]
    _, batch = arrays.unpack(task, types)
    return arrays.pack((scores(hosts.on_device(batch)), 0.0))


def workers(args: argparse.Namespace) -> None:
  """Prints how long batches took that Ray workers share."""
  ray = ray_workers.start('')
  actor = ray.remote(num_cpus=0)(Instant)
  made = ray_workers.crew_of(ray, lambda index: actor.remote(), args.workers, lambda: None)
  batch = evaluators.random_batch(cell.make_space(cell.demo()), jax.random.key(0), args.m)
  train = crew.elsewhere(made, ['children'], True)['children']
  alone, over = (_seconds(each, batch, args.batches) for each in (scores, train))
  median, least = 1000 * np.median(over), 1000 * min(over)
  print(f'{args.workers} Ray workers, m={args.m}: median {median:.1f} ms, least {least:.1f} ms a batch', end='; ')
  print(f'in one process {1000 * np.median(alone):.1f} ms')


def _seconds(train, batch: Batch, count: int) -> list[float]:
  found = []
  for _ in range(count + 5):
    begun = time.perf_counter()
    jax.block_until_ready(train(batch).reward)
    found.append(time.perf_counter() - begun)
  return found[5:]


if __name__ == '__main__':
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--hosts', type=int, default=2)
  parser.add_argument('--workers', type=int, default=0, help='Ray workers; 0 measures hosts')
  parser.add_argument('--batches', type=int, default=200)
  parser.add_argument('--m', type=int, default=8)
  parser.add_argument('--process', type=int, default=None, help='for the processes that this command starts')
  parser.add_argument('--address', default=None, help='likewise')
  args = parser.parse_args()
  if args.process is not None:
    one(args.process, args)
  elif args.workers:
    workers(args)
  else:
    given = [f'--{name}={getattr(args, name)}' for name in ('hosts', 'batches', 'm')]
    command = [sys.executable, __file__, *given, f'--address=127.0.0.1:{kill_hosts.free_port()}']
    for process in [subprocess.Popen([*command, f'--process={k}']) for k in range(args.hosts)]:
      process.wait()
