"""Measures the effect of stale gradients in simulated asynchronous searches, by number of children and by time.

Rewards are looked up in tables. A child's training time is lognormal for any architecture: its median is 1, the
standard deviation of its logarithm 0.3. A replica's batch takes as long as the slowest of its m children. Example:
  python -m experiments.staleness --table=FILE.npz --json=staleness.json --picture=staleness.svg
"""

from collections.abc import Sequence
import functools
import itertools
import json
import os
from typing import Any, NamedTuple

from absl import flags
import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import arguments, launch, workdirs
from nas_jax import replicas, search
from nas_jax.space import Space, choice_space
from nas_jax.systems import table
from nas_jax.training import layout
from nas_jax.types import Array, Batch, Key, Outcome

SLOTS, LABELS = 8, 3  # of the tables, as in NAS-Bench-Macro
WINDOW = 100  # length, in children, of the running mean of the reward
LEVEL = 0.6  # target of the running mean, where 0 is the mean reward of a table and 1 its best


class Case(NamedTuple):
  """One way to search."""

  replicas: int
  m: int
  accumulate: int = 1
  lags: tuple[int, ...] | None = None  # of each shard, see `replicas.build`
  name: str = ''


SHARDS, LAG = 20, 50
CASES = (
  *(Case(count, m, n) for m, n, count in itertools.product((1, 8), (1, 10), (1, 10, 100, 400))),
  Case(1, 100, name='synchronous, 100 children an update'),
  Case(100, 1, 1, (LAG,) * SHARDS, f'all {SHARDS} shards {LAG} gradients late'),
  Case(100, 1, 1, tuple(2 * LAG * i // (SHARDS - 1) for i in range(SHARDS)), f'{SHARDS} shards 0 to {2 * LAG} late'),
)


class Table(NamedTuple):
  """The reward of every token sequence in lexicographic order, and the standard deviation of the noise added to it."""

  reward: np.ndarray  # [A]
  noise: float = 0.0


def made(seed: int = 0) -> dict[str, Table]:
  """Returns three tables of rewards from 0 to 1, by name.

  'sum' adds one random number for each slot, 'pairs' one for each pair of neighbouring slots (the last is a neighbour
  of the first). 'pairs, noise' is 'pairs' with noise as large as the standard deviation of its rewards.
  """
  rng, grid = np.random.default_rng(seed), np.indices((LABELS,) * SLOTS).reshape(SLOTS, -1)
  single, pairs = rng.random((SLOTS, LABELS)), rng.random((SLOTS, LABELS, LABELS))
  found = {
    'sum': sum(single[t][grid[t]] for t in range(SLOTS)),
    'pairs': sum(pairs[t][grid[t], grid[(t + 1) % SLOTS]] for t in range(SLOTS)),
  }
  scaled = {name: Table((value - value.min()) / (value.max() - value.min())) for name, value in found.items()}
  return scaled | {'pairs, noise': Table(scaled['pairs'].reward, noise=float(scaled['pairs'].reward.std()))}


def read(path: str) -> Table:
  """Returns the table in a file. Raises ValueError if it does not have all sequences of eight choices of three."""
  known = table.load(path)
  if known.ops.shape != (LABELS**SLOTS, SLOTS) or known.ops.max() >= LABELS:
    raise ValueError(f'table {path} has ops {known.ops.shape}: want all sequences of {SLOTS} tokens from 0 to 2.')
  return Table(known.reward)


def own_flags(values: flags.FlagValues) -> None:
  """Defines the flags of the study."""
  flags.DEFINE_string(
    'table', '', '.npz of a table of eight choices of three, beside the made ones', flag_values=values
  )
  flags.DEFINE_integer('seeds', 4, 'searches in each table', 1, flag_values=values)
  flags.DEFINE_integer('children', 3200, 'children of a search', 2 * WINDOW, flag_values=values)
  flags.DEFINE_string('json', '', 'file to write the results to, as JSON', flag_values=values)
  flags.DEFINE_string('picture', '', 'file to draw the results in: .svg, .png or .pdf', flag_values=values)


def prepare(argv: Sequence[str]) -> launch.Work:
  """Reads flags and tables."""
  values = arguments.parse(argv, __doc__ or '', own_flags)
  for name, path in (('json', values.json), ('picture', values.picture)):
    if path and not os.path.isdir(os.path.dirname(path) or '.'):
      raise ValueError(f'{name} (={path!r}) is in no folder: name a file that can be written.')
  tables, own = made(), os.path.splitext(os.path.basename(values.table))[0]
  if own in tables:
    raise ValueError(f'table (={values.table!r}) has the name of a made one: rename the file.')
  tables = ({own: read(values.table)} if own else {}) | tables
  launch.set_up_jax()

  def work(check: launch.Check) -> None:
    found = []
    for case in CASES:
      check()
      found.append(study(case, tables, values.seeds, values.children))
      print(json.dumps(found[-1]['case'] | {name: one['end'] for name, one in found[-1]['tables'].items()}), flush=True)
    print(f'\n{as_table(found)}')
    if values.json:
      workdirs.write(values.json, json.dumps(found) + '\n')
    if values.picture:
      draw(found, values.picture)

  return work


def study(case: Case, tables: dict[str, Table], seeds: int, children: int) -> dict[str, Any]:
  """Searches in all tables from all seeds, in one program. Returns the case and its `summary` in each table."""
  events = -(-children // case.m)
  rewards = jnp.asarray(np.stack([one.reward for one in tables.values()]), jnp.float32)
  noise = jnp.asarray([one.noise for one in tables.values()], jnp.float32)
  which = jnp.repeat(jnp.arange(len(tables)), seeds)
  keys = jnp.tile(jax.random.split(jax.random.key(0), seeds), len(tables))
  mesh = layout.child_mesh()
  program = layout.over_children(functools.partial(simulate, case, events), mesh)
  every = program((rewards, noise), *(layout.filled(each, mesh) for each in (keys, which)))
  reward, time, staleness = (np.asarray(each)[: len(which)].reshape(len(tables), seeds, events, -1) for each in every)
  found = {
    name: summary(one, reward[i], time[i, :, :, 0]) | {'staleness': float(staleness[i].mean())}
    for i, (name, one) in enumerate(tables.items())
  }
  return {'case': case._asdict(), 'tables': found}


def simulate(case: Case, events: int, tables: tuple[Array, Array], key: Key, which: Array) -> tuple[Array, ...]:
  """Returns rewards [events, m], times [events] and staleness [events] of one search in the table of index `which`."""
  rewards, noise = tables[0][which], tables[1][which]
  place = jnp.asarray(LABELS ** np.arange(SLOTS)[::-1])

  def evaluate(batch: Batch) -> Outcome:
    return Outcome(rewards[batch.tokens @ place] + noise * jax.vmap(jax.random.normal)(batch.keys))

  cfg = table.Config(m=case.m, controller_layers=1)
  machine = replicas.build(
    search.build(space(), cfg, evaluate), case.replicas, case.accumulate, len(case.lags or (0,)), lags=case.lags
  )
  s = replicas.simulated(machine)

  def step(fleet: Any, _: None) -> tuple[Any, tuple[Array, ...]]:
    batch = s.ask(fleet)
    outcome = s.evaluate(batch)
    return s.tell(fleet, batch, outcome)[0], (outcome.reward, batch.extra.time, batch.extra.staleness)

  return jax.lax.scan(step, s.init(key), length=events)[1]


def space() -> Space:
  """Returns the space of the tables."""
  return choice_space({f'slot {t}': [str(k) for k in range(LABELS)] for t in range(SLOTS)})


def summary(one: Table, reward: np.ndarray, time: np.ndarray) -> dict[str, Any]:
  """Summarizes searches in one table from several seeds.

  Rewards are scaled so that 0 is the mean of the table, which random search reaches, and 1 its best.

  Args:
    one: the table.
    reward: [seeds, events, m].
    time: [seeds, events].

  Returns:
    'children' and 'time': the median over seeds of when the running mean reaches `LEVEL`, None if it does not; 'end'
    and 'spread': the mean and its standard deviation over seeds for the last 200 children; 'curve': the running mean.
  """
  m = reward.shape[2]
  share = (reward.reshape(len(reward), -1) - one.reward.mean()) / (one.reward.max() - one.reward.mean())
  mean = np.array([np.convolve(line, np.ones(WINDOW) / WINDOW, 'valid') for line in share])
  times = np.repeat(time, m, axis=1)[:, WINDOW - 1 :]
  there = mean >= LEVEL
  first = np.where(there.any(1), there.argmax(1), -1)
  children, until = (
    np.where(first < 0, np.inf, first + WINDOW),
    np.where(first < 0, np.inf, times[range(len(first)), first]),
  )
  at = np.unique(np.geomspace(1, mean.shape[1], 60).astype(int)) - 1
  return {
    'children': _finite(np.median(children)),
    'time': _finite(np.median(until)),
    'end': float(share[:, -2 * WINDOW :].mean()),
    'spread': float(share[:, -2 * WINDOW :].mean(1).std()),
    'curve': {
      'children': (at + WINDOW).tolist(),
      'time': np.median(times, axis=0)[at].tolist(),
      'share': mean.mean(0)[at].tolist(),
    },
  }


def _finite(value: Any) -> float | None:
  return float(value) if np.isfinite(value) else None


def as_table(found: Sequence[dict[str, Any]]) -> str:
  """Returns the results as a table in Markdown, a column for each table of rewards.

  An entry has the children and the time until the running mean reaches `LEVEL`, and the mean reward at the end.
  """
  names = list(found[0]['tables'])
  rows = [
    [_name(each['case']), f'{np.mean([one["staleness"] for one in each["tables"].values()]):.3g}']
    + [_cell(each['tables'][name]) for name in names]
    for each in found
  ]
  head = ['', 'updates behind', *names]
  return '\n'.join('| ' + ' | '.join(row) + ' |' for row in (head, ['---'] * len(head), *rows))


def _name(case: dict[str, Any]) -> str:
  return case['name'] or f'K={case["replicas"]}, m={case["m"]}, n={case["accumulate"]}'


def _cell(one: dict[str, Any]) -> str:
  first = '-' if one['children'] is None else f'{one["children"]:.0f} / {one["time"]:.3g}'
  return f'{first} / {one["end"]:.3f}'


def draw(found: Sequence[dict[str, Any]], path: str) -> None:
  """Draws the running mean of searches with m = 1 and n = 1, and of the paper's two settings, averaged over tables."""
  from matplotlib import pyplot as plt

  shown = [(1, 1, 1), (10, 1, 1), (100, 1, 1), (400, 1, 1), (400, 1, 10), (100, 8, 1)]
  plt.rcParams.update({'axes.spines.top': False, 'axes.spines.right': False, 'svg.hashsalt': 'nas_jax'})
  figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True)
  for each in found:
    case = each['case']
    key = case['replicas'], case['m'], case['accumulate']
    if case['name'] or key not in shown:
      continue
    place, paper = shown.index(key), {(400, 1, 10): ' (text, Sec. 4.2)', (100, 8, 1): ' (images, Sec. 4.1)'}
    curves = [one['curve'] for one in each['tables'].values()]
    share = np.mean([curve['share'] for curve in curves], axis=0)
    style = {'color': plt.cm.viridis(place / 4) if place < 4 else ('tab:red', 'tab:orange')[place - 4], 'lw': 1.5}
    for axis, over in zip(axes, ('children', 'time'), strict=True):
      at = np.mean([curve[over] for curve in curves], axis=0)
      axis.plot(at, share, label=_name(case) + paper.get(key, ''), **style)
  axes[0].set(xlabel='children', ylabel='mean reward: 0 of random, 1 the best', ylim=(0, 1))
  axes[1].set(xlabel='time, in trainings of a child', xscale='log')
  axes[1].legend(frameon=False, fontsize=8)
  figure.tight_layout()
  figure.savefig(path, metadata={'Date': None} if path.endswith('.svg') else None)
  plt.close(figure)


if __name__ == '__main__':
  launch.main(prepare)
