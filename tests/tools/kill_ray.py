"""Kills Ray workers of a search, and the search itself, with SIGKILL at random moments, and compares with a replay.

The search has asynchronous replicas, so the order in which children end differs from run to run. Each run must
therefore end bit-identical to a replay of its own journal, with each child once. It takes minutes:
  python tests/tools/kill_ray.py --system=cell --kills=20
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

import jax
import numpy as np
from tools import kill

from nas_jax import config, crew, replicas, search
from nas_jax.search import journal
from nas_jax.systems import cell, conv
from nas_jax.training import checkpoint

# Small searches whose children train long enough to be hit.
FLAGS = {
  'cell': ('cell_search', '--max_children=20', '--steps=200', '--steps_per_call=10', '--final_children=0'),
  'conv': ('conv_search', '--max_children=12', '--epochs=2'),
}
SYSTEMS = {'cell': cell, 'conv': conv}
COMMON = ('--preset=smoke', '--nocontrol', '--reliability_children=0', '--yardstick_repeats=0', '--workers=2')
REPLICAS = ('--replicas=4', '--accumulate=2', '--shards=3')
LONG = ('--max_children=100',)  # long enough for many kills in one search


def command(system: str, workdir: pathlib.Path, *flags: str) -> list[str]:
  """Returns the command that runs or resumes a search with two workers."""
  launcher, *own = FLAGS[system]
  return [sys.executable, '-m', f'experiments.{launcher}', *COMMON, *own, *flags, f'--workdir={workdir}']


def holder(path: pathlib.Path) -> int | None:
  """Returns the id of a process that has a file open, or None."""
  for folder in pathlib.Path('/proc').glob('[0-9]*/fd'):
    try:
      if any(os.readlink(one) == str(path) for one in folder.iterdir()):
        return int(folder.parts[2])
    except OSError:
      continue
  return None


def children(workdir: pathlib.Path) -> list[dict]:
  """Returns the lines of the journal."""
  path = workdir / 'children.jsonl'
  return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def compare_with_replay(system: str, workdir: pathlib.Path) -> None:
  """Raises AssertionError unless the journal has each child once and the state is bit-identical to that of a replay."""

  def trained_again(batch):
    raise AssertionError(f'not in the journal: the children {batch.ids}')

  cfg = config.from_json(SYSTEMS[system].Config, json.loads((workdir / 'config.json').read_text()))
  s = replicas.build_search(SYSTEMS[system].make_space(cfg), cfg, trained_again)
  found = journal.read(str(workdir / 'children.jsonl'))
  assert len(found) == len(children(workdir)) == cfg.max_children
  fleet = s.init(jax.random.key(cfg.seed))
  replayed = crew.run(s, fleet, [], search.Budget(cfg.max_children), found)
  saved = checkpoint.restore(str(workdir / 'checkpoints'), fleet)
  for one, other in zip(jax.tree.leaves(replayed), jax.tree.leaves(saved), strict=True):
    keys = jax.dtypes.issubdtype(one.dtype, jax.dtypes.prng_key)
    np.testing.assert_array_equal(*((jax.random.key_data(x) if keys else x) for x in (one, other)))


def trial(system: str, kills: int, seed: int, folder: pathlib.Path, say=print) -> int:
  """Kills workers and the search in turn, each `kills` times, and resumes. Returns the number of searches compared."""
  rng, hits, rounds = random.Random(seed), {'worker': 0, 'search': 0}, 0
  while min(hits.values()) < kills:
    rounds, workdir = rounds + 1, folder / f'{system}-{rounds}'
    process = None
    while process is None or process.poll() is None:
      if process is None:
        before = len(children(workdir))
        with open(workdir.with_suffix('.log'), 'ab') as log:
          process = subprocess.Popen(command(system, workdir, *REPLICAS, *LONG), cwd=kill.ROOT, stdout=log, stderr=log)
      # The workers need seconds to start. They must have trained a child before a kill, or the search never advances.
      while process.poll() is None and len(children(workdir)) == before:
        time.sleep(0.05)
      time.sleep(rng.uniform(0, 4))
      before = len(children(workdir))
      if process.poll() is not None or min(hits.values()) >= kills:
        process.wait()
      elif hits['worker'] <= hits['search']:
        if (victim := holder(workdir / f'worker-{rng.randrange(2)}' / 'crash.txt')) is not None:
          os.kill(victim, signal.SIGKILL)
          hits['worker'] += 1
      else:
        process.kill()
        process.wait()
        process = None
        hits['search'] += 1
    if process.returncode:
      raise AssertionError(f'{system} ended with {process.returncode}; see {workdir.with_suffix(".log")}')
    compare_with_replay(system, workdir)
    say(f'{system}: {hits} killed so far, {rounds} searches, each as its journal says', flush=True)
  return rounds


if __name__ == '__main__':
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--kills', type=int, default=20, help='of workers, and as many of the search')
  parser.add_argument('--system', choices=[*FLAGS], default='cell')
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--folder', type=pathlib.Path, default=None)
  args = parser.parse_args()
  place = args.folder or pathlib.Path(tempfile.mkdtemp())
  place.mkdir(exist_ok=True, parents=True)
  trial(args.system, args.kills, args.seed, place)
