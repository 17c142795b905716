"""Compares how many children an hour a search trains with one process and with several, each with a core of its own.

The searches are those of the demo of recurrent cells, without random search, and end after `--children` children. Only
their batches are timed, from asking to the last score, and the first batch is left out, since it compiles. Let nothing
else run. Takes some minutes:
  python tests/tools/host_speed.py --hosts=2 --children=64
"""

import argparse
import os
import pathlib
import sys
import tempfile

sys.path.extend(str(folder) for folder in pathlib.Path(__file__).resolve().parents[1:3])  # tests/ and the checkout

from tools import kill_hosts

from nas_jax.search import journal

FLAGS = (
  'cell_search', '--preset=demo', '--nocontrol', '--reliability_children=0', '--yardstick_repeats=0',
  '--final_children=0', '--data_seed=0',
)  # fmt: skip


def rate(hosts: int, children: int, m: int, folder: pathlib.Path) -> float:
  """Returns the children an hour of a search with this many processes, one core each."""
  workdir = folder / f'{hosts}'
  begun = kill_hosts.start([*FLAGS, f'--m={m}', f'--max_children={children}'], workdir, hosts, devices=1)
  for core, process in zip(sorted(os.sched_getaffinity(0)), begun, strict=False):
    os.sched_setaffinity(process.pid, {core})
  if any(process.wait() for process in begun):
    raise SystemExit(f'a process has failed: see {kill_hosts.log_of(workdir, 0)}')
  lines = journal.read(str(workdir / 'children.jsonl'))
  later = [line['seconds'] for number, line in lines.items() if number >= m]
  return 3600 * len(later) / sum(later)


if __name__ == '__main__':
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--hosts', type=int, default=2)
  parser.add_argument('--children', type=int, default=64)
  parser.add_argument('--m', type=int, default=8, help='children of a batch')
  args = parser.parse_args()
  if args.hosts > len(os.sched_getaffinity(0)):
    raise SystemExit(f'hosts (={args.hosts}) want a core each, and there are {len(os.sched_getaffinity(0))}.')
  with tempfile.TemporaryDirectory() as made:
    one, several = (rate(hosts, args.children, args.m, pathlib.Path(made)) for hosts in (1, args.hosts))
  print(f'{one:.0f} children an hour with 1 process, {several:.0f} with {args.hosts}: {several / one:.2f} times')
