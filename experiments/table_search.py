"""Search in a table of known rewards, many seeds at once.

The table is an .npz with `ops` int [A, T] (token sequences), `reward` float [A] and optionally `test` float [A].
Example:
  python -m experiments.table_search --table=FILE.npz --evaluations=100 --seeds=500 --json=OUT
The default algorithm is REINFORCE guided by a Gaussian process, which evaluates no sequence twice;
--algorithm=reinforce is REINFORCE alone.
"""

from collections.abc import Sequence
import json
import os

from absl import flags
import jax

from experiments.common import arguments, launch, workdirs
from nas_jax import search
from nas_jax.systems import table


def own_flags(values: flags.FlagValues) -> None:
  """Defines the flags of a search in a table that are no fields of its config."""
  flags.DEFINE_string('table', '', '.npz file with the table', flag_values=values)
  flags.DEFINE_integer(
    'evaluations', 100, 'rewards looked up in each search, repeated ones included', 1, flag_values=values
  )
  flags.DEFINE_integer('seeds', 500, 'number of searches, each from a seed of its own', 1, flag_values=values)
  flags.DEFINE_string('json', '', 'file to write the result to, as JSON', flag_values=values)


def prepare(argv: Sequence[str]) -> launch.Work:
  """Reads flags and table, and builds the search."""
  values = arguments.parse(argv, __doc__, own_flags, {'': {'': table.default}})
  cfg = arguments.overlay(values, table.default())
  if not values.table:
    raise ValueError('--table is missing: name an .npz file with ops [A, T] and reward [A].')
  if values.json and not os.path.isdir(os.path.dirname(values.json) or '.'):
    raise ValueError(f'json (={values.json!r}) is in no folder: name a file that can be written.')
  known = table.load(values.table)
  s = table.build(cfg, known.ops, known.reward, known.test)
  return lambda check: run(s, cfg, values.evaluations, values.seeds, values.json)


def run(s: search.Search, cfg: table.Config, evaluations: int, seeds: int, path: str) -> None:
  """Searches from `seeds` seeds in one program, prints the summary, and writes it to `path` if one is given."""
  keys = jax.random.split(jax.random.key(cfg.seed), seeds)
  _, (_, outcomes) = search.run_seeds(s, keys, -(-evaluations // cfg.m))
  found = table.summary(outcomes, evaluations)
  setting = {
    'algorithm': cfg.algorithm,
    'proposals': cfg.proposals,
    'known': cfg.known,
    'evaluations': evaluations,
    'seeds': seeds,
  }
  for name in ('reward', 'test'):
    if found[f'{name}_mean'] is not None:
      print(f'{name} of the best by reward: {found[f"{name}_mean"]:.5f} +- {found[f"{name}_std"]:.5f} ({setting})')
  if path:
    workdirs.write(path, json.dumps(setting | found) + '\n')


if __name__ == '__main__':
  launch.main(prepare)
