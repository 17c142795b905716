"""Measures the time that a search takes to propose a child and to learn from it, without training.

One child of the space of base-8 cells (34 tokens) at a time, with the settings of `table_search` and a made reward.
The time is the least of many, after a number of children. Takes some minutes:
  python tests/tools/proposal_time.py --children=200,2000
"""

import argparse
import dataclasses
import pathlib
import sys
import time

sys.path.extend(str(folder) for folder in pathlib.Path(__file__).resolve().parents[1:3])  # tests/ and the checkout

import jax
import jax.numpy as jnp

from nas_jax import search, space
from nas_jax.systems import table

REPEATS = 23
WAYS = {
  'reinforce': {},
  'reinforce:known=avoid': {'known': 'avoid'},
  'reinforce:known=avoid,proposals=guided': {'known': 'avoid', 'proposals': 'guided'},
}


def times(fields: dict[str, str], after: list[int]) -> list[float]:
  """Returns the milliseconds of one `ask` and `tell` after each number of children."""
  cfg = dataclasses.replace(table.default(), **{'m': 1, 'proposals': 'policy', 'known': 'train', **fields})
  s = search.ask_tell(space.tree_cell_space(8), cfg)
  state, found = s.init(jax.random.key(0)), list[float]()
  for _ in range(max(after) + REPEATS):
    begun = time.perf_counter()
    batch = s.ask(state)
    state, _ = s.tell(state, batch, jnp.mean(batch.tokens % 2, axis=1))
    jax.block_until_ready(state)
    found.append(1e3 * (time.perf_counter() - begun))
  return [min(found[number : number + REPEATS]) for number in after]


if __name__ == '__main__':
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--children', default='200,2000', help='numbers of children')
  after = [int(number) for number in parser.parse_args().children.split(',')]
  for name, fields in WAYS.items():
    found = ', '.join(f'{ms:.1f} ms after {number}' for ms, number in zip(times(fields, after), after, strict=True))
    print(f'{name}: {found}', flush=True)
