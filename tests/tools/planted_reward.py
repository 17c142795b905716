"""Measures how fast the controller learns a reward without noise: the share of tokens that agree with NASCELL's.

`python tests/tools/planted_reward.py` prints the reward after 25, 100 and 400 updates of 8 children, mean and spread
over ten seeds, for the paper's learning rate, for the demo's, and for random search. The expected share of uniform
token sequences is (16 * (1/2 + 1/4) + 2 * 1/15) / 34 = 0.357.
"""

import pathlib
import sys

import jax
import jax.numpy as jnp

sys.path.extend(str(folder) for folder in pathlib.Path(__file__).resolve().parents[1:3])  # tests/ and the checkout

from nas_jax import search
from nas_jax.published import NASCELL
from nas_jax.space import tree_cell_space
from nas_jax.types import Outcome


def run(seeds: int, updates: int, **fields) -> tuple[search.SearchState, jax.Array]:
  """Runs searches from all seeds. Returns their final states, and the rewards [seeds, updates, m]."""
  space = tree_cell_space(8)
  planted = jnp.asarray(space.encode(NASCELL))[None]
  s = search.build(space, search.Config(**fields), lambda batch: Outcome((batch.tokens == planted).mean(1)))
  states, (_, outcomes) = search.run_seeds(s, jax.random.split(jax.random.key(0), seeds), updates)
  return states, outcomes.reward


def main() -> None:
  """Prints the table."""
  settings = {
    'random': {'algorithm': 'random'},
    'lr 5e-4 (paper)': {'controller_lr': 5e-4},
    'lr 5e-3': {'controller_lr': 5e-3},
  }
  for name, fields in settings.items():
    _, reward = run(10, 400, **fields)
    at = [reward[:, end - 10 : end].mean((1, 2)) for end in (25, 100, 400)]
    print(f'{name:16}', '  '.join(f'{x.mean():.3f} +- {x.std():.3f}' for x in at), flush=True)


if __name__ == '__main__':
  main()
