"""What architectures cost, and how a search uses the cost: as a bound, or to shape the reward.

A child above a bound is not trained. It counts as a child of the search, but fails before anything is compiled for it.
"""

from collections.abc import Callable
import dataclasses
import math
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
import numpy as np

from nas_jax import space
from nas_jax.config import field
from nas_jax.space.network import NetworkOptions
from nas_jax.training.fit import Status
from nas_jax.training.recovery import Metrics
from nas_jax.types import Array, Batch, Evaluate, Outcome, PyTree, Repeats

EXPONENT = -0.07  # Tan et al. (2019), Sec. 3: twice the cost is worth 5 % more reward


class Cost(NamedTuple):
  """The size and the cost of a network."""

  weights: int  # all parameters, including those of batch norm and of the classifier
  multiply_adds: int  # of convolutions and matrix products, for one image or one token


Count = Callable[[PyTree], Cost]  # (static architecture) -> what it costs
COSTS = ('none', *Cost._fields)


@dataclasses.dataclass
class Config:
  """Bounds on what children cost, and how the cost shapes the reward."""

  max_weights: int = field(
    0, 'the most weights that a child may have. A larger one is not trained and fails; 0 for no bound', low=0
  )
  max_multiply_adds: int = field(
    0,
    'the most multiply-adds that a child may need for one image. One that needs more is not trained and fails; 0 for '
    'no bound',
    low=0,
  )
  cost: str = field(
    'none',
    "the cost that shapes the reward: with 'weights' or 'multiply_adds' the reward is multiplied by "
    "(cost / cost_target)^cost_exponent, Tan et al. (2019); 'none' leaves it as it is",
    choices=COSTS,
  )
  cost_target: int = field(0, 'the cost at which a reward is left as it is; wanted with cost, and 0 without it', low=0)
  cost_exponent: float = field(
    EXPONENT, 'exponent of the cost in the reward, -0.07 in Tan et al. (2019)', low=-10.0, high=0.0
  )

  # See `config.with_added`.
  added: ClassVar[dict[str, Any]] = {
    'max_weights': 0, 'max_multiply_adds': 0, 'cost': 'none', 'cost_target': 0, 'cost_exponent': EXPONENT,
  }  # fmt: skip


class Bounds(NamedTuple):
  """The most that a child may cost."""

  weights: float = math.inf
  multiply_adds: float = math.inf


UNBOUNDED = Bounds()


class Shaping(NamedTuple):
  """How the cost of a child shapes its reward: reward * (cost / target)^exponent, Tan et al. (2019) Eq. 2 and 3.

  The exponent is the same below and above the target, so the target is not a bound.
  """

  cost: str  # a field of `Cost`
  target: int
  exponent: float = EXPONENT


def check(cfg: Config) -> None:
  """Raises ValueError if a cost that shapes rewards has no target, or a target or exponent is set without a cost."""
  if cfg.cost != 'none' and not cfg.cost_target:
    raise ValueError(f'cost (={cfg.cost}) wants a cost_target: the {cfg.cost} at which a reward stays as it is.')
  if cfg.cost == 'none' and (cfg.cost_target or cfg.cost_exponent != EXPONENT):
    raise ValueError(
      f'cost_target (={cfg.cost_target}) and cost_exponent (={cfg.cost_exponent}) shape the reward, and cost is none: '
      f'take --cost={" or ".join(Cost._fields)}, or leave them out.'
    )


def bounds(cfg: Config) -> Bounds:
  """Returns the bounds of a config."""
  return Bounds(cfg.max_weights or math.inf, cfg.max_multiply_adds or math.inf)


def shaping(cfg: Config) -> Shaping | None:
  """Returns how a config shapes rewards, None if it does not. Raises ValueError as `check`."""
  check(cfg)
  return None if cfg.cost == 'none' else Shaping(cfg.cost, cfg.cost_target, cfg.cost_exponent)


def formula(cfg: Config) -> str:
  """Returns the factor of the reward as text to append to the reward's formula; '' if there is none."""
  if cfg.cost == 'none':
    return ''
  return f' * ({cfg.cost.replace("_", "-")} / {cfg.cost_target:,})^{cfg.cost_exponent:g}'


def of_networks(
  image: tuple[int, int, int],
  classes: int,
  options: NetworkOptions = NetworkOptions(),  # noqa: B008 - a NamedTuple cannot change
) -> Count:
  """Returns a function that counts the cost of networks of `space.network` from the architecture: see `space.count`."""

  def count(arch: PyTree) -> Cost:
    counts = space.count(arch, image, classes, options)
    return Cost(counts.params, counts.macs)

  return count


def accounted(evaluate: Evaluate, count: Count, bounds: Bounds = UNBOUNDED, shaping: Shaping | None = None) -> Evaluate:
  """Returns an evaluator that reports what children cost, trains none above a bound, and shapes rewards.

  The metrics of each child have the fields of `Cost`. A child above a bound fails, and its status names the bound.

  Args:
    evaluate: trains and scores children, apart from those that `Batch.repeats` names. Its metrics have 'failed'.
    count: returns the cost of an architecture.
    bounds: the most that a child may cost.
    shaping: how the cost shapes rewards; None leaves them as they are.

  Raises:
    ValueError: by the evaluator, if a reward to be shaped is negative, since it would rise with the cost.
  """

  def evaluated(batch: Batch) -> Outcome:
    counted = [count(arch) for arch in space.unstack(batch.archs)]
    costs = {name: np.array([getattr(one, name) for one in counted], np.int64) for name in Cost._fields}
    above = _above(costs, bounds)
    left_out = above != Status.OK
    outcome = evaluate(_without(batch, left_out) if left_out.any() else batch)
    metrics = {**outcome.metrics}
    if left_out.any():  # a child that was masked in a program has scores, but of untrained weights
      metrics = {name: np.where(left_out, np.nan, values) for name, values in metrics.items()}
      metrics['failed'] = np.where(left_out, above, outcome.metrics['failed'])
    metrics |= costs
    return outcome._replace(reward=_shaped(outcome, costs, shaping) if shaping else outcome.reward, metrics=metrics)

  return evaluated


def within(cost: Cost, bounds: Bounds) -> bool:
  """Says whether a child of this cost is trained."""
  return cost.weights <= bounds.weights and cost.multiply_adds <= bounds.multiply_adds


def _above(costs: Metrics, bounds: Bounds) -> np.ndarray:
  """Returns for each child the `Status` of the first bound that it exceeds, OK if none, [m]."""
  status = np.full(len(costs['weights']), Status.OK)
  status[costs['multiply_adds'] > bounds.multiply_adds] = Status.ABOVE_MULTIPLY_ADDS
  status[costs['weights'] > bounds.weights] = Status.ABOVE_WEIGHTS
  return status


def _without(batch: Batch, left_out: np.ndarray) -> Batch:
  """Returns a batch whose children `left_out` [m] bool are not to be trained."""
  if batch.repeats is not None:
    return batch._replace(repeats=batch.repeats._replace(known=batch.repeats.known | left_out))
  known = jnp.asarray(left_out)
  return batch._replace(repeats=Repeats(known, batch.ids, jnp.zeros(len(left_out), jnp.float32), known))


def _shaped(outcome: Outcome, costs: Metrics, shaping: Shaping) -> Array:
  reward = np.asarray(outcome.reward, np.float64)
  if (reward < 0).any():
    raise ValueError(
      f'cost (={shaping.cost}) multiplies rewards, and a child has earned {reward.min():g}: a negative reward would '
      'rise with the cost. Take --cost=none, or a reward that is never negative.'
    )
  return jnp.asarray(reward * (costs[shaping.cost] / shaping.target) ** shaping.exponent, jnp.float32)
