"""Search in a table: every reward is known beforehand, so a whole search is one program."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nas_jax import search
from nas_jax.config import field
from nas_jax.space import choice_space
from nas_jax.types import Array, Batch, Outcome


@dataclasses.dataclass
class Config(search.Config):
  """A search of a few hundred evaluations in any table."""

  m: int = field(1, 'children per update', low=1)
  controller_lr: float = field(5e-3, 'of Adam', above=0.0)


class Table(NamedTuple):
  """Distinct strings in lexicographic order."""

  ops: np.ndarray  # [A, T] int32
  reward: np.ndarray  # [A]
  test: np.ndarray | None  # [A]


def load(path: str) -> Table:
  """Reads an .npz with `ops` int [A, T], `reward` float [A] and perhaps `test` [A].

  A string that is there several times counts once, with the mean of its rewards. Raises ValueError, in one line, on
  anything else.
  """
  try:
    with np.load(path, allow_pickle=False) as file:
      arrays = {name: file[name] for name in ('ops', 'reward', 'test') if name in file}
  except (OSError, ValueError) as error:
    raise ValueError(
      f'table {path} cannot be read ({error}): want an .npz with ops, reward and perhaps test.'
    ) from None
  missing = [name for name in ('ops', 'reward') if name not in arrays]
  if missing:
    raise ValueError(f'table {path} has no {" and no ".join(missing)}: want ops [A, T] and reward [A].')
  ops = arrays.pop('ops')
  if ops.ndim != 2 or not ops.size or not np.issubdtype(ops.dtype, np.integer) or ops.min() < 0:
    raise ValueError(
      f'ops of table {path} is {ops.dtype} {ops.shape}: want ints from 0, shape [A, T], A and T at least 1.'
    )
  for name, values in arrays.items():
    if values.shape != (len(ops),) or not np.issubdtype(values.dtype, np.number):
      raise ValueError(
        f'{name} of table {path} is {values.dtype} {values.shape}, ops has {len(ops)} rows: want one number a row.'
      )
    if not np.isfinite(values).all():
      row = int(np.flatnonzero(~np.isfinite(values))[0])
      raise ValueError(
        f'{name} of table {path} is {values[row]} in row {row}: want finite numbers; leave such rows out.'
      )
  ops, inverse = np.unique(ops.astype(np.int32), axis=0, return_inverse=True)
  place = inverse.ravel()
  means = {name: np.bincount(place, values) / np.bincount(place) for name, values in arrays.items()}
  return Table(ops, means['reward'], means.get('test'))


def lookup(ops: Array, tokens: Array) -> tuple[Array, Array]:
  """The row of one string [T] in `ops` [A, T], sorted, by bisection, and whether it is there."""

  def less(row):
    differs = ops[row] != tokens
    first = jnp.argmax(differs)
    return differs.any() & (ops[row, first] < tokens[first])

  def halve(_, bounds):
    low, high = bounds
    middle = (low + high) // 2
    go_right = (low < high) & less(middle)
    return jnp.where(go_right, middle + 1, low), jnp.where(go_right, high, middle)

  bounds = jnp.zeros((), jnp.int32), jnp.asarray(len(ops), jnp.int32)
  low, _ = jax.lax.fori_loop(0, len(ops).bit_length(), halve, bounds)
  row = jnp.minimum(low, len(ops) - 1)
  return row, (ops[row] == tokens).all()


def build(cfg: Config, ops: np.ndarray, reward: np.ndarray, test: np.ndarray | None = None) -> search.Search:
  """A search whose evaluator looks strings up: `ops` [A, T] as `load` sorts them; a string not there earns 0.

  `evaluate` is jittable; its metrics are `row` (-1 if missing) and, if `test` is given, `test` (0 if missing).
  """
  widths = ops.max(0) + 1
  space = choice_space({f'slot {t}': [str(k) for k in range(width)] for t, width in enumerate(widths)})
  strings = jnp.asarray(ops, jnp.int32)
  columns = {name: jnp.asarray(x, jnp.float32) for name, x in (('reward', reward), ('test', test)) if x is not None}

  def evaluate(batch: Batch) -> Outcome:
    row, there = jax.vmap(lambda tokens: lookup(strings, tokens))(batch.tokens)
    found = {name: jnp.where(there, values[row], 0.0) for name, values in columns.items()}
    return Outcome(found.pop('reward'), found | {'row': jnp.where(there, row, -1)})

  return search.build(space, cfg, evaluate)


def summary(outcomes: Outcome, evaluations: int) -> dict[str, Any]:
  """What the searches of `search.run_seeds` had found after `evaluations`, and the way there.

  Returns:
    reward_mean, reward_std, test_mean, test_std: of the best string by reward (the first of equals), over seeds; curve
    and curve_test: the means after 1, 2, ... evaluations. Those of `test` are None if the table has none.
  """
  reward = np.asarray(outcomes.reward, np.float64).reshape(len(outcomes.reward), -1)[:, :evaluations]
  best = np.maximum.accumulate(reward, axis=1)
  found = {'reward_mean': best[:, -1].mean().item(), 'reward_std': best[:, -1].std().item()}
  found |= {'test_mean': None, 'test_std': None, 'curve': best.mean(0).tolist(), 'curve_test': None}
  if 'test' in outcomes.metrics:
    test = np.asarray(outcomes.metrics['test'], np.float64).reshape(len(reward), -1)[:, :evaluations]
    # The place of the first child that reached the best so far moves only where the best rises.
    rises = np.diff(best, axis=1, prepend=-np.inf) > 0
    place = np.maximum.accumulate(np.where(rises, np.arange(best.shape[1]), 0), axis=1)
    test = np.take_along_axis(test, place, axis=1)
    found |= {'test_mean': test[:, -1].mean().item(), 'test_std': test[:, -1].std().item()}
    found |= {'curve_test': test.mean(0).tolist()}
  return found
