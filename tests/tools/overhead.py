"""Measures the share of a search's wall time that is spent on its journal, checkpoints and logs.

It takes minutes:
  python tests/tools/overhead.py --children=500
"""

import argparse
from collections import Counter
import contextlib
import pathlib
import sys
import tempfile
import time
from typing import Any
from unittest import mock

sys.path.extend(str(folder) for folder in pathlib.Path(__file__).resolve().parents[1:3])  # tests/ and the checkout

from experiments.common import hooks, launch, recovery_files, run_search, workdirs
from nas_jax import search
from nas_jax.datasets.text import Text
from nas_jax.search import journal
from nas_jax.systems import cell, language
from nas_jax.training import checkpoint

NOTES = 'notes for people'  # updates.jsonl, with the summary of the policy in it, and events


def measure(folder: str, cfg: cell.Config, text: Text, children: int) -> tuple[Counter[str], float]:
  """Runs a search of `children` children in a folder. The first update, which compiles, is not measured.

  Returns the seconds that were spent on each kind of file, and those of the whole search.
  """
  spent = Counter[str]()

  def timed(name: str, function: Any) -> Any:
    def call(*args):
      begun = time.perf_counter()
      try:
        return function(*args)
      finally:
        spent[name] += time.perf_counter() - begun

    return call

  writer, saver, watch = journal.writer, checkpoint.saver, hooks.watch

  def written(path):
    write = writer(path)  # that of updates.jsonl is a part of the notes
    return timed('journal', write) if path.endswith('children.jsonl') else write

  def watched(*args):
    hook, close = watch(*args)
    return hook._replace(children=timed(NOTES, hook.children), steps=timed(NOTES, hook.steps)), timed(NOTES, close)

  timers = (
    (journal, 'writer', written),
    (checkpoint, 'saver', lambda *args: tuple(timed('checkpoints', each) for each in saver(*args))),
    (workdirs, 'write', timed('best.json', workdirs.write)),
    (hooks, 'watch', watched),
  )
  with contextlib.ExitStack() as patched:
    for module, name, timer in timers:
      patched.enter_context(mock.patch.object(module, name, timer))
    recovery = recovery_files.recovery(folder, cfg, lambda: None)
    recovery = recovery._replace(
      **{name: timed('started.jsonl', getattr(recovery, name)) for name in ('begin', 'keep', 'end')}
    )
    s = cell.build(cfg, text, recovery=recovery)
    run_search.run(folder, s, 0, search.Budget(cfg.m), 'compile', recovery)
    spent.clear()
    begun = time.perf_counter()
    run_search.run(folder, s, 0, search.Budget(children), 'demo', recovery)
    return spent, time.perf_counter() - begun


def main(children: int) -> None:
  """Runs `children` children of the demo, and prints the time of everything that writes files."""
  launch.set_up_jax()
  cfg = cell.demo()
  with tempfile.TemporaryDirectory() as folder:
    spent, total = measure(folder, cfg, language.load(cfg), children)
  for name, seconds in spent.most_common():
    print(f'{name:18} {seconds:7.2f} s  {seconds / total:6.2%}')
  kept = sum(seconds for name, seconds in spent.items() if name != NOTES)
  print(f'{"kept in all":18} {kept:7.2f} s  {kept / total:6.2%} of {total:.0f} s')


if __name__ == '__main__':
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--children', type=int, default=500)
  main(parser.parse_args().children)
