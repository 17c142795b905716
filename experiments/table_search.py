"""Search in a table of known rewards, many seeds at once.

The table is an .npz with `ops` int [A, T] (the strings), `reward` float [A] and perhaps `test` float [A]. Example:
  python -m experiments.table_search --table=FILE.npz --algorithm=reinforce --evaluations=100 --seeds=500 --json=OUT
"""

from collections.abc import Sequence
import json

from absl import flags
import jax

from experiments import launch
from nas_jax import search
from nas_jax.systems import table


def own_flags(values: flags.FlagValues) -> None:
  """What a search in a table takes beside the fields of its config."""
  flags.DEFINE_string('table', '', 'the .npz file', flag_values=values)
  flags.DEFINE_integer('evaluations', 100, 'rewards looked up in each search; repeats count', 1, flag_values=values)
  flags.DEFINE_integer('seeds', 500, 'searches, from different seeds', 1, flag_values=values)
  flags.DEFINE_string('json', '', 'file for the result', flag_values=values)


def main(argv: Sequence[str]) -> None:
  """Reads the table, searches it, prints and writes the summary."""
  values = launch.parse(argv, __doc__, own_flags, table.Config)
  cfg = launch.overlay(values, table.Config())
  if not values.table:
    raise ValueError('--table is missing: name an .npz file with ops [A, T] and reward [A].')
  known = table.load(values.table)
  s = table.build(cfg, known.ops, known.reward, known.test)
  keys = jax.random.split(jax.random.key(cfg.seed), values.seeds)
  _, (_, outcomes) = search.run_seeds(s, keys, -(-values.evaluations // cfg.m))
  found = table.summary(outcomes, values.evaluations)
  setting = {'algorithm': cfg.algorithm, 'evaluations': values.evaluations, 'seeds': values.seeds}
  for name in ('reward', 'test'):
    print(f'best by reward, {name}: {found[f"{name}_mean"]:.5f} +- {found[f"{name}_std"]:.5f} ({setting})')
  if values.json:
    launch.write(values.json, json.dumps(setting | found) + '\n')


if __name__ == '__main__':
  launch.main(main)
