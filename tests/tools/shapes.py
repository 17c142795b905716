"""Counts rectangular windows and skips in the best networks of searches, the two claims of Zoph & Le (2017) Fig. 7.

Of each search the best different networks by their score are taken, those of its random-search baseline if there
is one, and random networks of its space. A window is rectangular if its height and width differ. A skip from layer i to
layer i + 2 is of one step; each pair of layers may be connected or not. The last rows are means and standard deviations
over the searches. Example:
  python tests/tools/shapes.py --top=15 runs/conv_search-demo
"""

import argparse
from collections.abc import Sequence
import os
import pathlib
import sys
from typing import NamedTuple

sys.path.extend(str(folder) for folder in pathlib.Path(__file__).resolve().parents[1:3])  # tests/ and the checkout

import jax

from experiments.common import top, workdirs
from experiments.common.systems import CONV, for_config
from nas_jax import config, published, space
from nas_jax.report import rankings
from nas_jax.training import evaluators
from nas_jax.words import counted

RANDOM = 2000
HEADER = ('networks', 'of', 'rectangular', 'to the next layer', 'skips of one step', 'longer skips')


class Shapes(NamedTuple):
  """Counts over networks, each (how many have the property, of how many)."""

  rectangular: tuple[int, int]  # windows
  near: tuple[int, int]  # connections from a layer to the next one
  one_step: tuple[int, int]  # to the one after it
  longer: tuple[int, int]  # to later ones


def count(archs: Sequence[space.ConvArch]) -> Shapes:
  """Counts the shapes of static architectures with anchor points."""
  windows = [
    height != width
    for arch in archs
    for height, width in zip(arch.filter_height, arch.filter_width, strict=True)
    if height
  ]
  steps: dict[int, list[int]] = {1: [], 2: [], 3: []}
  for arch in archs:
    for i in range(1, len(arch.filters)):
      for j, link in enumerate(arch.links[i * (i - 1) // 2 : i * (i + 1) // 2]):
        steps[min(i - j, 3)].append(link)
  return Shapes(*((sum(found), len(found)) for found in (windows, *steps.values())))


def shares(found: Shapes) -> list[float]:
  """Returns each count as a share; NaN where there was nothing to count."""
  return [some / of if of else float('nan') for some, of in found]


def of_search(workdir: str, most: int) -> dict[str, list[space.ConvArch]]:
  """Returns the networks of a search by the name of their row."""
  cfg = config.from_json(CONV.config, workdirs.peek(os.path.join(workdir, 'config.json')) or {})
  system, made, control = for_config(CONV, cfg), CONV.make_space(cfg), os.path.join(workdir, 'control')
  found = {
    name: [rankings.arch_of(made, record) for record in top.ranked(folder, system, cfg, made)[1][:most]]
    for name, folder in {f'best {most} of the search': workdir, f'best {most} of random search': control}.items()
    if os.path.isdir(folder)
  }
  drawn = evaluators.random_batch(made, jax.random.key(0), RANDOM).archs
  return found | {f'{RANDOM} random networks': space.unstack(drawn)}


def main(folders: Sequence[str], most: int) -> None:
  """Prints the table."""
  rows, every = list[tuple[object, ...]](), dict[str, list[list[float]]]()
  for folder in folders:
    for name, archs in of_search(folder, most).items():
      every.setdefault(name, []).append(shares(count(archs)))
      rows.append((f'{name}, {folder}', len(archs), *every[name][-1]))
  if len(folders) > 1:
    rows += [
      (name, counted(len(all_of), 'search', 'searches'), *map(rankings.spread, zip(*all_of)))
      for name, all_of in every.items()
    ]
  rows.append(('Figure 7', 1, *shares(count([published.FIGURE_7]))))
  print(rankings.table(HEADER, rows))


if __name__ == '__main__':
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('workdirs', nargs='+', help='folders of searches for networks')
  parser.add_argument('--top', type=int, default=15, help='how many networks of each search')
  given = parser.parse_args()
  main(given.workdirs, given.top)
