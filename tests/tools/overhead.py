"""Measures the share of a search's wall time that is spent on its journal, checkpoints and logs.

It takes minutes:
  python tests/tools/overhead.py --children=500
"""

import argparse
from collections import Counter
import pathlib
import sys
import tempfile
import time

sys.path.extend(str(folder) for folder in pathlib.Path(__file__).resolve().parents[1:3])  # tests/ and the checkout

from experiments.common import hooks, launch, recovery_files, run_search, workdirs
from nas_jax import search
from nas_jax.search import journal
from nas_jax.systems import cell, language
from nas_jax.training import checkpoint


def main(children: int) -> None:
  """Runs `children` children of the demo, and times every function that writes files."""
  spent = Counter[str]()

  def timed(name, function):
    def call(*args):
      begun = time.perf_counter()
      try:
        return function(*args)
      finally:
        spent[name] += time.perf_counter() - begun

    return call

  writer, saver, watch, write = journal.writer, checkpoint.saver, hooks.watch, workdirs.write
  run_search.journal.writer = lambda path: timed('journal', writer(path))
  run_search.checkpoint.saver = lambda *args: tuple(timed('checkpoints', each) for each in saver(*args))
  run_search.files.write = timed('best.json', write)

  def watched(*args):
    hook, close = watch(*args)
    noted = search.Hook(timed('notes for people', hook.children), timed('notes for people', hook.step))
    return noted, timed('notes for people', close)

  run_search.hooks.watch = watched
  launch.set_up_jax()
  cfg = cell.demo()
  with tempfile.TemporaryDirectory() as folder:
    recovery = recovery_files.recovery(folder, cfg, lambda: None)
    names = ('begin', 'keep', 'end')
    recovery = recovery._replace(**{name: timed('started.jsonl', getattr(recovery, name)) for name in names})
    s = cell.build(cfg, language.load(cfg), recovery=recovery)
    run_search.run(folder, s, 0, search.Budget(cfg.m), 'compile', recovery)
    spent.clear()
    begun = time.perf_counter()
    run_search.run(folder, s, 0, search.Budget(children), 'demo', recovery)
    total = time.perf_counter() - begun
  for name, seconds in spent.most_common():
    print(f'{name:18} {seconds:7.2f} s  {seconds / total:6.2%}')
  kept = sum(seconds for name, seconds in spent.items() if name != 'notes for people')
  print(f'{"kept in all":18} {kept:7.2f} s  {kept / total:6.2%} of {total:.0f} s')


if __name__ == '__main__':
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--children', type=int, default=500)
  main(parser.parse_args().children)
