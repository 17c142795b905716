"""Kills hosts of multi-host searches with SIGKILL at random moments, resumes, and compares with uninterrupted runs.

Each time one process is killed: the first, then the second, and so on. The others must end by themselves: host 0 with
exit code 75 and one line, the rest with 75 or 134. It takes minutes to hours:
  python tests/tools/kill_hosts.py --kills=20 --hosts=2
"""

import argparse
from collections.abc import Mapping, Sequence
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
import types

sys.path.extend(str(folder) for folder in pathlib.Path(__file__).resolve().parents[1:3])  # tests/ and the checkout

from tools import kill

PATIENCE = 10  # seconds
# Small searches whose children train long enough to be hit.
FLAGS = {
  'cell': (
    'cell_search', '--m=4', '--max_children=24', '--steps=60', '--steps_per_call=10', '--reliability_children=4',
    '--final_children=0',
  ),
  'conv': ('conv_search', '--m=3', '--max_children=9', '--epochs=3', '--reliability_children=0'),
  'layer': ('per_layer_search', '--max_children=8', '--epochs=2', '--reliability_children=0'),
}  # fmt: skip
COMMON = ('--preset=smoke', '--nocontrol', '--yardstick_repeats=0', f'--host_patience={PATIENCE}')


def free_port() -> int:
  """Returns a free TCP port."""
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    return free.getsockname()[1]


def start(
  flags: Sequence[str],
  workdir: pathlib.Path,
  hosts: int = 2,
  devices: int = 2,
  own: Mapping[int, Sequence[str]] = types.MappingProxyType({}),
) -> list[subprocess.Popen]:
  """Starts a search on `hosts` processes with `devices` CPU devices each. One process is started without host flags.

  Args:
    flags: the launcher and its flags.
    workdir: of the search.
    hosts: number of processes.
    devices: number of CPU devices of each process.
    own: further flags of single processes, by their number.

  Returns:
    The processes. The output of each is in WORKDIR.NUMBER.log.
  """
  launcher, *rest = flags
  env = {'JAX_ENABLE_COMPILATION_CACHE': 'true', **os.environ, 'JAX_NUM_CPU_DEVICES': str(devices)}
  command = [sys.executable, '-m', f'experiments.{launcher}', *rest, f'--workdir={workdir}']
  if hosts > 1:
    command += [f'--coordinator=127.0.0.1:{free_port()}', f'--num_processes={hosts}']
  begun = []
  for host in range(hosts):
    number = (f'--process_id={host}',) if hosts > 1 else ()
    with open(log_of(workdir, host), 'wb') as log:
      begun.append(
        subprocess.Popen([*command, *number, *own.get(host, ())], cwd=kill.ROOT, env=env, stdout=log, stderr=log)
      )
  return begun


def log_of(workdir: pathlib.Path, host: int) -> pathlib.Path:
  """Returns the log file of a host's last run."""
  return workdir.with_name(f'{workdir.name}.{host}.log')


def ends(begun: list[subprocess.Popen], seconds: float = 600) -> list[int]:
  """Returns the exit codes of processes. Those that run for more than `seconds` are killed."""
  limit = time.monotonic() + seconds
  try:
    return [process.wait(max(0.0, limit - time.monotonic())) for process in begun]
  finally:
    for process in begun:
      process.kill()
      process.wait()


def together(begun: list[subprocess.Popen], workdir: pathlib.Path) -> None:
  """Waits until all processes train children. If one were killed before, the others would wait for it."""
  while not all('trains children' in log_of(workdir, host).read_text() for host in range(1, len(begun))):
    assert all(process.poll() is None for process in begun), log_of(workdir, 0).read_text()
    time.sleep(0.05)


def break_off(begun: list[subprocess.Popen], victim: int, workdir: pathlib.Path) -> float | None:
  """Kills one of the processes and checks how the others end.

  Returns the seconds until the last of them has ended; None if the search was over already.
  """
  begun[victim].send_signal(signal.SIGKILL)
  killed = time.monotonic()
  codes = ends(begun)
  seconds = time.monotonic() - killed
  said = log_of(workdir, 0).read_text()
  if set(codes) <= {0, -signal.SIGKILL} and 0 in codes:  # process 0 has ended the search and let the others go
    return None
  others = [code for host, code in enumerate(codes) if host not in (0, victim)]
  assert set(others) <= {75, -signal.SIGABRT}, f'{codes}: {said}'
  if victim:
    assert codes[0] == 75 and f'host {victim} has been silent' in said, f'{codes}: {said}'
    assert 'Traceback' not in said and 'Check failure' not in said, said
    assert seconds < PATIENCE + 5 + 2, f'{seconds} s'  # two seconds for the processes to exit
  return seconds


def trial(system: str, kills: int, seed: int, hosts: int, folder: pathlib.Path, say=print) -> int:
  """Kills hosts of a search and resumes it until it ends, up to `kills` kills. Returns the searches compared."""
  rng, hits, rounds, flags = random.Random(seed), 0, 0, (*FLAGS[system], *COMMON)
  whole = folder / f'{system}-unbroken'
  processes = start(flags, whole, hosts, 1)
  together(processes, whole)
  begun = time.monotonic()
  assert ends(processes) == [0] * hosts, log_of(whole, 0).read_text()
  seconds, wanted = time.monotonic() - begun, kill.outcome(whole)
  while hits < kills:
    rounds, broken = rounds + 1, folder / f'{system}-{rounds}'
    while True:
      processes, victim = start(flags, broken, hosts, 1), hits % hosts
      if hits < kills:
        together(processes, broken)
        time.sleep(rng.uniform(0, 0.6) * seconds)
      if hits == kills or any(process.poll() is not None for process in processes):
        codes = ends(processes)
        assert codes == [0] * hosts, f'{codes}: {log_of(broken, 0).read_text()}'
        break
      if (took := break_off(processes, victim, broken)) is None:
        assert ends(start(flags, broken, hosts, 1)) == [0] * hosts, log_of(broken, 0).read_text()
        break
      hits += 1
      say(f'{system}: host {victim} killed, all over after {took:.1f} s', flush=True)
    found = kill.outcome(broken)
    differing = [name for name, value in wanted.items() if found.get(name) != value]
    assert not differing, f'{system}, round {rounds}: {differing} differ after {hits} kills; see {broken}'
    say(f'{system}: {hits} kills so far, {rounds} searches, each as if unbroken', flush=True)
  return rounds


if __name__ == '__main__':
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--kills', type=int, default=20, help='of each system')
  parser.add_argument('--system', choices=[*FLAGS, 'all'], default='all')
  parser.add_argument('--hosts', type=int, default=2)
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--folder', type=pathlib.Path, default=None)
  args = parser.parse_args()
  place = args.folder or pathlib.Path(tempfile.mkdtemp())
  place.mkdir(exist_ok=True, parents=True)
  for each in FLAGS if args.system == 'all' else [args.system]:
    trial(each, args.kills, args.seed, args.hosts, place)
