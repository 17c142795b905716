"""Measures resident memory over many children in one process, with one program for all or a program for each.

It takes minutes:
  python tests/tools/leaks.py
"""

import argparse
import gc
import os
import pathlib
import sys
import tempfile

import jax

if __name__ == '__main__':
  jax.config.update('jax_num_cpu_devices', 2)

sys.path.extend(str(folder) for folder in pathlib.Path(__file__).resolve().parents[1:3])  # tests/ and the checkout

import testing

from experiments.common import recovery_files, run_search
from nas_jax import search
from nas_jax.systems import cell, conv


def resident() -> float:
  """Returns the resident memory of this process in MiB."""
  with open('/proc/self/statm', encoding='ascii') as file:
    return int(file.read().split()[1]) * os.sysconf('SC_PAGE_SIZE') / 2**20


def levels(kind: str, children: int, folder: str, say=print) -> list[float]:
  """Returns the MiB of resident memory after each tenth of the children of a search that writes a launcher's files."""
  if kind == 'generic':
    build, cfg, data = cell.build, testing.cell_config(m=4, child_starts=0), testing.text()
  else:
    build, cfg, data = (
      conv.build,
      testing.conv_config(m=4, child_program='specialised', child_starts=0),
      testing.pictures(),
    )
  recovery = recovery_files.recovery(folder, cfg, lambda: None)
  s, found = build(cfg, data, recovery=recovery), list[float]()
  for tenth in range(1, 11):
    run_search.run(folder, s, 0, search.Budget(children * tenth // 10), kind, recovery)
    gc.collect()
    found.append(resident())
    say(f'{kind}: {children * tenth // 10} children, {found[-1]:.0f} MiB', flush=True)
  return found


if __name__ == '__main__':
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--generic', type=int, default=2000)
  parser.add_argument('--specialised', type=int, default=200)
  args = parser.parse_args()
  for kind in ('generic', 'specialised'):
    with tempfile.TemporaryDirectory() as folder:
      found = levels(kind, getattr(args, kind), folder)
    print(f'{kind}: at most {max(found[1:]) / found[0] - 1:+.1%} beside the level after the first tenth')
