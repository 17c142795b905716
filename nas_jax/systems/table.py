"""Search in a table of known rewards, so that a whole search is one program."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nas_jax import search
from nas_jax.config import field
from nas_jax.datasets import npz
from nas_jax.space import choice_space
from nas_jax.types import Array, Batch, Outcome
from nas_jax.words import counted


@dataclasses.dataclass
class Config(search.Config):
  """The config of a search. Its defaults suit a few hundred evaluations in any table, by any algorithm."""

  m: int = field(1, 'children per update of the controller', low=1)
  controller_init: float = field(0.2, "the controller's weights start uniform in [-x, x] for this x", above=0.0)
  controller_lr: float = field(1e-2, 'learning rate of the controller, by Adam', above=0.0)
  baseline_decay: float = field(
    0.8, 'decay of the moving averages of rewards and of squared advantages', low=0.0, high=1.0
  )
  normalize_advantage: bool = field(
    True, 'divide the advantage R - b by its moving root mean square, since tables come in any scale'
  )
  entropy_weight: float = field(0.2, 'weight of the entropy bonus, in normalized reward per nat', low=0.0)


def default() -> Config:
  """REINFORCE, guided, without repeats. It found the best row in the fewest evaluations on every table tried."""
  return Config(proposals='guided', known='avoid')


LAYOUT = "arrays 'ops' [A, T] and 'reward' [A], and perhaps 'test' [A]"
LARGEST = 2**31  # bytes of all arrays of a table
MOST_CHOICES = 2**18  # summed over all tokens; the controller has some hundred weights for each choice


class Table(NamedTuple):
  """Distinct token sequences in lexicographic order, and the reward of each."""

  ops: np.ndarray  # [A, T] int32
  reward: np.ndarray  # [A]
  test: np.ndarray | None  # [A]


def load(path: str) -> Table:
  """Reads an .npz with `ops` int [A, T], `reward` float [A] and optionally `test` [A].

  Raises ValueError, in one line naming the array, on anything else.
  """
  arrays = npz.read(path, LAYOUT, 'leave rows out', ('ops', 'reward', 'test'), LARGEST)
  missing = [name for name in ('ops', 'reward') if name not in arrays]
  if missing:
    raise ValueError(f'table {path} has no {" and no ".join(missing)}: want ops [A, T] and reward [A].')
  ops = arrays.pop('ops')
  if ops.ndim != 2 or not ops.size or not np.issubdtype(ops.dtype, np.integer) or ops.min() < 0:
    raise ValueError(
      f'ops of table {path} is {ops.dtype} {ops.shape}: want ints from 0, shape [A, T], A and T at least 1.'
    )
  if ops.max() > np.iinfo(np.int32).max:
    raise ValueError(f'ops of table {path} has a {ops.max()}: want ints that fit 32 bits.')
  if (choices := int((ops.max(0).astype(np.int64) + 1).sum())) > MOST_CHOICES:
    raise ValueError(
      f'ops of table {path} has {choices} choices, the greatest token + 1 summed over its {ops.shape[1]} columns: '
      f'want at most {MOST_CHOICES}; number the tokens of each column from 0.'
    )
  for name, values in arrays.items():
    if values.shape != (len(ops),) or values.dtype.kind not in 'iuf' or values.dtype.itemsize > 8:
      raise ValueError(
        f'{name} of table {path} is {values.dtype} {values.shape}, ops has {counted(len(ops), "row")}: '
        'want one number a row.'
      )
    if not np.isfinite(values).all():
      row = int(np.flatnonzero(~np.isfinite(values))[0])
      raise ValueError(
        f'{name} of table {path} is {values[row]} in row {row}: want finite numbers; leave such rows out.'
      )
  return distinct(ops, arrays['reward'], arrays.get('test'))


def distinct(ops: np.ndarray, reward: np.ndarray, test: np.ndarray | None = None) -> Table:
  """Returns the sorted table of some rows. Rows of the same tokens become one row with their mean reward and `test`."""
  rows, inverse = np.unique(ops.astype(np.int32), axis=0, return_inverse=True)
  place = inverse.ravel()

  def mean(values: np.ndarray) -> np.ndarray:
    return np.bincount(place, values) / np.bincount(place)

  return Table(rows, mean(reward), None if test is None else mean(test))


def lookup(ops: Array, tokens: Array) -> tuple[Array, Array]:
  """Finds tokens [T] in the sorted rows `ops` [A, T] by bisection. Returns their row, and whether they are there."""

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
  """Returns a search whose evaluator looks tokens up in the rows `ops` [A, T]; token sequences that are not there fail.

  `evaluate` is jittable; its metrics are `row` (-1 if missing) and, if `test` is given, `test` (NaN if missing).

  >>> import jax, numpy as np
  >>> from nas_jax import search
  >>> from nas_jax.systems import table
  >>> ops, reward = np.array([[0, 0], [0, 1], [1, 0], [1, 1]]), np.array([0.1, 0.9, 0.3, 0.2])
  >>> s = table.build(table.Config(m=4, algorithm='random'), ops, reward)
  >>> state = search.run(s, s.init(jax.random.key(0)), [], search.Budget(children=40))
  >>> s.space.size(), float(state.best.reward) in reward.astype(np.float32)
  (4, True)
  """
  known = distinct(ops, reward, test)
  widths = known.ops.max(0) + 1
  space = choice_space({f'slot {t}': [str(k) for k in range(width)] for t, width in enumerate(widths)})
  rows = jnp.asarray(known.ops)
  columns = {'reward': jnp.asarray(known.reward, jnp.float32)}
  if known.test is not None:
    columns['test'] = jnp.asarray(known.test, jnp.float32)

  def evaluate(batch: Batch) -> Outcome:
    row, there = jax.vmap(lambda tokens: lookup(rows, tokens))(batch.tokens)
    found = {name: jnp.where(there, values[row], jnp.nan) for name, values in columns.items()}
    return Outcome(found.pop('reward'), found | {'row': jnp.where(there, row, -1)}, failed=~there)

  return search.build(space, cfg, evaluate)


def best_so_far(outcomes: Outcome, evaluations: int) -> tuple[np.ndarray, np.ndarray | None]:
  """Returns what the searches of `search.run_seeds` had found after 1, 2, ... evaluations.

  Args:
    outcomes: the outcomes of n searches, [n, steps, m].
    evaluations: how many of the children of each search count.

  Returns:
    The best reward so far, [n, evaluations], which is minus infinity as long as all children failed; and the metric
    `test` of the first architecture with that reward, [n, evaluations], or None if the outcomes have no `test`.
  """
  reward = np.asarray(outcomes.reward, np.float64).reshape(len(outcomes.reward), -1)[:, :evaluations]
  failed = ~np.isfinite(reward)
  if outcomes.failed is not None:
    failed |= np.asarray(outcomes.failed, bool).reshape(len(reward), -1)[:, :evaluations]
  best = np.maximum.accumulate(np.where(failed, -np.inf, reward), axis=1)
  if 'test' not in outcomes.metrics:
    return best, None
  test = np.asarray(outcomes.metrics['test'], np.float64).reshape(len(reward), -1)[:, :evaluations]
  # The place of the first child that reached the best so far moves only where the best rises.
  rises = np.hstack([np.isfinite(best[:, :1]), best[:, 1:] > best[:, :-1]])
  place = np.maximum.accumulate(np.where(rises, np.arange(best.shape[1]), 0), axis=1)
  return best, np.take_along_axis(test, place, axis=1)


def summary(outcomes: Outcome, evaluations: int) -> dict[str, Any]:
  """Summarizes what the searches of `search.run_seeds` had found after `evaluations` evaluations.

  Returns:
    reward_mean, reward_std, test_mean, test_std: mean and standard deviation, over seeds, of the reward and `test` of
    the first architecture with the best reward. curve, curve_test: the means after 1, 2, ... evaluations. A seed is
    left out of a mean as long as all its children have failed, for example because the table lacks them. The entry is
    None if no seed is left, and the entries of `test` are None if the table has no `test`.
  """
  best, test = best_so_far(outcomes, evaluations)
  some = np.isfinite(best)

  def of_seeds(name: str, curve: str, values: np.ndarray) -> dict[str, Any]:
    """Returns the means after each evaluation, and mean and deviation at the end, over seeds with a success."""
    means = [column[there].mean().item() if there.any() else None for column, there in zip(values.T, some.T)]
    last = values[some[:, -1], -1]
    return {f'{name}_mean': means[-1], f'{name}_std': last.std().item() if len(last) else None, curve: means}

  found = of_seeds('reward', 'curve', best) | {'test_mean': None, 'test_std': None, 'curve_test': None}
  if test is not None:
    found |= of_seeds('test', 'curve_test', test)
  return found
