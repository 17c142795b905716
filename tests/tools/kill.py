"""Kills searches with SIGKILL at random moments, resumes them, and compares their results with an uninterrupted run.

It takes minutes to hours:
  python tests/tools/kill.py --kills=100
"""

import argparse
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

sys.path.extend(str(folder) for folder in pathlib.Path(__file__).resolve().parents[1:3])  # tests/ and the checkout

from nas_jax.search import journal

ROOT = pathlib.Path(__file__).parents[2]
# Small searches whose children train long enough to be hit. --child_starts is at its default: a kill is no crash.
COMMON = ('--preset=smoke', '--nocontrol')
ALONE = ('--reliability_children=4', '--yardstick_repeats=0')
FLAGS = {
  'cell': ('cell_search', *ALONE, '--max_children=40', '--steps=40', '--steps_per_call=10', '--rungs=2'),
  'replicas': (
    'cell_search',
    *ALONE,
    '--max_children=40',
    '--steps=40',
    '--steps_per_call=10',
    '--m=1',
    '--replicas=5',
    '--accumulate=2',
    '--shards=3',
  ),
  'conv': ('conv_search', *ALONE, '--max_children=8', '--epochs=3'),
  'shared': ('enas_search', '--variant=recurrent', '--passes=6', '--controller_updates=4', '--rank_children=0'),
}
CLOCKS = ('seconds', 'children_per_hour')  # fields that differ between any two runs


def command(system: str, workdir: pathlib.Path) -> list[str]:
  """Returns the command that runs or resumes a search in a workdir."""
  launcher, *flags = FLAGS[system]
  return [sys.executable, '-m', f'experiments.{launcher}', *COMMON, *flags, f'--workdir={workdir}']


def outcome(workdir: pathlib.Path) -> dict[str, object]:
  """Returns the results of a search, without times: journals, best architectures, tables, the last state's digest."""
  found: dict[str, object] = {}
  for path in sorted(path for path in workdir.rglob('*') if 'damaged' not in path.parts):
    name = str(path.relative_to(workdir))
    if path.suffix == '.jsonl' and path.stem in ('children', 'alone', 'updates'):
      by = 'step' if path.stem == 'updates' else 'id'
      lines = journal.read(str(path), by)
      found[name] = {number: {k: v for k, v in line.items() if k not in CLOCKS} for number, line in lines.items()}
      once = len(lines) == len(path.read_text().splitlines())
      assert once or by == 'step', f'{name}: a child is journalled twice'
    elif path.name == 'rungs.jsonl':
      lines = journal.read_lines(str(path), journal.CHILD)
      found[name] = {(line['rung'], line['id']): {k: v for k, v in line.items() if k not in CLOCKS} for line in lines}
      assert len(found[name]) == len(path.read_text().splitlines()), f'{name}: a child is journalled twice'
    elif path.name in ('best.json', 'top.json', 'random.json', 'derived.json', 'reliability.json', 'yardsticks.json'):
      found[name] = json.loads(path.read_text())
    elif path.name == 'ranks.json':
      found[name] = {k: v for k, v in json.loads(path.read_text()).items() if k != 'seconds'}
    elif path.name == 'summary.txt':
      found[name] = [line for line in path.read_text().splitlines() if ' the search took ' not in f' {line}']
      found[name] = [line for line in found[name] if not line.startswith('taken ') and str(workdir) not in line]
  newest = max((workdir / 'checkpoints').glob('*/digest/metadata'), key=lambda path: int(path.parts[-3]))
  found['state at the end'] = newest.parts[-3], newest.read_text()
  return found


def run(system: str, workdir: pathlib.Path, kill_after: float | None = None) -> float:
  """Runs a search, and kills it after `kill_after` seconds. Returns the seconds that it took, or 0 if it was killed."""
  begun = time.monotonic()
  with open(workdir.with_suffix('.log'), 'ab') as log:
    process = subprocess.Popen(command(system, workdir), cwd=ROOT, stdout=log, stderr=log, start_new_session=True)
    try:
      code = process.wait(kill_after)
    except subprocess.TimeoutExpired:
      os.killpg(process.pid, signal.SIGKILL)
      process.wait()
      return 0.0
  if code:
    raise RuntimeError(f'{system} ended with {code}:\n{workdir.with_suffix(".log").read_text()[-3000:]}')
  return time.monotonic() - begun


def trial(system: str, kills: int, seed: int, folder: pathlib.Path, say=print) -> int:
  """Kills and resumes a search until it ends, and compares it with an uninterrupted one. Repeats this up to `kills`.

  Returns the number of searches compared.
  """
  rng, hits, rounds = random.Random(seed), 0, 0
  whole = folder / f'{system}-unbroken'
  seconds = 0.6 * run(system, whole)  # later runs need not compile, as they find its programs in the cache
  wanted = outcome(whole)
  while hits < kills:
    rounds, before = rounds + 1, hits
    broken = folder / f'{system}-{rounds}'
    while True:
      after = rng.uniform(0.2, 0.9) * seconds if hits < kills else None
      if took := run(system, broken, after):
        seconds = min(seconds, took) if hits == before else seconds  # of an uninterrupted run with compiled programs
        break
      hits += 1
    differing = [name for name, value in wanted.items() if outcome(broken).get(name) != value]
    if differing:
      raise AssertionError(f'{system}, round {rounds}: {", ".join(differing)} differ after {hits} kills; see {broken}')
    say(f'{system}: {hits} kills so far, {rounds} searches, each as if unbroken ({seconds:.0f} s)', flush=True)
  return rounds


if __name__ == '__main__':
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--kills', type=int, default=100, help='over all systems')
  parser.add_argument('--system', choices=[*FLAGS, 'all'], default='all')
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--folder', type=pathlib.Path, default=None)
  args = parser.parse_args()
  place = args.folder or pathlib.Path(tempfile.mkdtemp())
  place.mkdir(exist_ok=True, parents=True)
  systems = list(FLAGS) if args.system == 'all' else [args.system]
  for each in systems:
    trial(each, -(-args.kills // len(systems)), args.seed, place)
