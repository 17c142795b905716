"""Search in a table: every reward is known beforehand, so a whole search is one program."""

from collections.abc import Sequence
import dataclasses
from typing import NamedTuple

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
  test: np.ndarray  # [A], or all NaN if the file has none


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
  ops, reward = arrays['ops'], arrays['reward']
  test = arrays.get('test', np.full(len(reward), np.nan))
  if ops.ndim != 2 or not ops.size or not np.issubdtype(ops.dtype, np.integer) or ops.min() < 0:
    raise ValueError(
      f'ops of table {path} is {ops.dtype} {ops.shape}: want ints from 0, shape [A, T], A and T at least 1.'
    )
  for name, values in (('reward', reward), ('test', test)):
    if values.shape != (len(ops),):
      raise ValueError(
        f'{name} of table {path} has shape {values.shape}, ops has {len(ops)} rows: want one number a row.'
      )
    if name in arrays and not np.isfinite(values).all():
      row = int(np.flatnonzero(~np.isfinite(values))[0])
      raise ValueError(
        f'{name} of table {path} is {values[row]} in row {row}: want finite numbers; leave such rows out.'
      )
  ops, inverse = np.unique(ops.astype(np.int32), axis=0, return_inverse=True)
  place = inverse.ravel()
  reward, test = (np.bincount(place, values) / np.bincount(place) for values in (reward, test))
  return Table(ops, reward, test)


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

  `evaluate` is jittable; its metrics are `row` (-1 if missing) and `test` (0 if missing).
  """
  widths = ops.max(0) + 1
  space = choice_space({f'slot {t}': [str(k) for k in range(width)] for t, width in enumerate(widths)})
  ops_, reward_ = jnp.asarray(ops), jnp.asarray(reward, jnp.float32)
  test_ = reward_ if test is None else jnp.asarray(test, jnp.float32)

  def evaluate(batch: Batch) -> Outcome:
    row, there = jax.vmap(lambda tokens: lookup(ops_, tokens))(batch.tokens)
    metrics = {'row': jnp.where(there, row, -1), 'test': jnp.where(there, test_[row], 0.0)}
    return Outcome(jnp.where(there, reward_[row], 0.0), metrics)

  return search.build(space, cfg, evaluate)


def summary(outcomes: Outcome, evaluations: int) -> dict[str, float | Sequence[float]]:
  """Of `search.run_seeds`: the best string found by `evaluations` and the way there, over seeds.

  Returns:
    reward_mean, reward_std, test_mean, test_std (of the first best string by reward, over seeds); curve and
    curve_test, the means after 1, 2, ... evaluations.
  """
  reward, test = (
    np.asarray(values, np.float64).reshape(len(values), -1)[:, :evaluations]
    for values in (outcomes.reward, outcomes.metrics['test'])
  )
  best = np.maximum.accumulate(reward, axis=1)
  # The place of the first child that reached the best so far: it moves only where the best rises.
  rises = np.concatenate([np.ones((len(reward), 1), bool), best[:, 1:] > best[:, :-1]], axis=1)
  place = np.maximum.accumulate(np.where(rises, np.arange(best.shape[1]), 0), axis=1)
  best_test = np.take_along_axis(test, place, axis=1)
  return {
    'reward_mean': float(best[:, -1].mean()),
    'reward_std': float(best[:, -1].std()),
    'test_mean': float(best_test[:, -1].mean()),
    'test_std': float(best_test[:, -1].std()),
    'curve': best.mean(0).tolist(),
    'curve_test': best_test.mean(0).tolist(),
  }
