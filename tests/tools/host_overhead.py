"""Measures the overhead of a batch over several hosts: packing, sending, waiting, joining, without training.

The evaluators return at once. The hosts are processes of this machine, so there is no network. It takes a minute:
  python tests/tools/host_overhead.py --hosts=2 --batches=200
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

from experiments.common import connection
from nas_jax import hosts
from nas_jax.systems import cell
from nas_jax.training import evaluators
from nas_jax.types import Batch, Outcome


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
  parser.add_argument('--batches', type=int, default=200)
  parser.add_argument('--m', type=int, default=8)
  parser.add_argument('--process', type=int, default=None, help='for the processes that this command starts')
  parser.add_argument('--address', default=None, help='likewise')
  args = parser.parse_args()
  if args.process is not None:
    one(args.process, args)
  else:
    given = [f'--{name}={getattr(args, name)}' for name in ('hosts', 'batches', 'm')]
    command = [sys.executable, __file__, *given, f'--address=127.0.0.1:{kill_hosts.free_port()}']
    for process in [subprocess.Popen([*command, f'--process={k}']) for k in range(args.hosts)]:
      process.wait()
