"""A model of the children of a search, so that algorithms can be compared on real rewards without training anything.

The model is a Gaussian process over token sequences. Two kernels are tried. (1 + c s)^2, where s is the share of tokens
that are equal, corresponds to ridge regression on the one-hot tokens and all their pairs. exp(-d / l), where d is the
share of tokens that differ, also has interactions of more than two tokens. The kernel, its constant and the variance of
the noise are those with the greatest marginal likelihood (evidence).
"""

from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nas_jax.search.journal import REPEAT, Record
from nas_jax.space import Space
from nas_jax.systems.benchmarks import Benchmark
from nas_jax.types import Array, Batch, Outcome, PyTree

LEAST = 30  # fewest children that a model can be fitted to
MOST = 2000  # the newest children that a model is fitted to, at most: the time grows with the cube of their number
_SCALES = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)  # l of exp(-d / l)
_SLOPES = (0.5, 1.0, 2.0, 5.0, 10.0)  # c of (1 + c s)^2
_NOISES = (0.01, 0.03, 0.1, 0.2, 0.4, 0.7)  # variance of the noise, as a share of the variance of the rewards


class Model(NamedTuple):
  """The fitted model, and how well it fits."""

  tokens: np.ndarray  # [N, T] int32
  weights: np.ndarray  # [N] coefficient of the kernel at each token sequence
  mean: np.ndarray  # [] of the rewards
  noise: np.ndarray  # [] standard deviation of one training's reward
  slope: np.ndarray  # [] c of (1 + c s)^2; 0 if the kernel is exp(-d / l)
  scale: np.ndarray  # [] l of exp(-d / l)
  norm: np.ndarray  # [] divisor of (1 + c s)^2 that makes the kernel 1 for equal token sequences
  spread: np.ndarray  # [] standard deviation of the rewards
  explained: np.ndarray  # [] R^2 of the rewards, each predicted from the others (leave one out)
  ranked: np.ndarray  # [] rank correlation of the rewards with their leave-one-out predictions
  failed: np.ndarray  # [] number of children that failed; the fit leaves them out, and the model predicts no failures


def fit(space: Space, records: Iterable[Record]) -> Model:
  """Fits a model to the children of a journal.

  Args:
    space: the search space of the children.
    records: the records of the children, each with one reward.

  Raises:
    ValueError: fewer than 30 children were trained, or all have the same reward.
  """
  every = list(records)
  trained = [record for record in every if record.get(REPEAT) is None]  # a repeat is no measurement of its own
  sound = [record for record in trained if record['failed'] is None][-MOST:]
  reward = np.array([record['reward'] for record in sound], np.float64)
  if len(sound) < LEAST or not reward.std():
    raise ValueError(f'a model needs {LEAST} children that were trained and differ in reward, there are {len(sound)}.')
  tokens = np.array([record['tokens'] for record in sound], np.int32)
  equal = (tokens[:, None] == tokens[None]).mean(-1)
  mean, spread = reward.mean(), reward.std()
  target = (reward - mean) / spread
  kernels = [(0.0, scale, 1.0) for scale in _SCALES] + [(slope, 1.0, (1 + slope) ** 2) for slope in _SLOPES]
  tried = [
    (kernel, noise, _evidence(_kernel(equal, *kernel), noise, target)) for kernel in kernels for noise in _NOISES
  ]
  (slope, scale, norm), noise, _ = max(tried, key=lambda one: one[2])
  inverse = np.linalg.inv((1 - noise) * _kernel(equal, slope, scale, norm) + noise * np.eye(len(target)))
  weights = inverse @ target
  predicted = target - weights / np.diag(inverse)  # each reward from the others
  ranked = np.corrcoef(_ranks(predicted), _ranks(target))[0, 1]
  numbers = (mean, spread * noise**0.5, slope, scale, norm, spread)
  explained = 1 - np.mean((target - predicted) ** 2)
  found = (weights * spread * (1 - noise), *numbers, explained, ranked, len(trained) - len(sound))
  return Model(tokens, *(np.asarray(value, np.float32) for value in found))


def _kernel(equal, slope, scale, norm):
  """Returns the kernel of `equal`, the share of tokens that are equal. It is 1 where all tokens are equal."""
  xp = jnp if isinstance(equal, jax.Array) else np
  return xp.where(slope > 0, (1 + slope * equal) ** 2 / norm, xp.exp((equal - 1) / scale))


def _evidence(kernel: np.ndarray, noise: float, target: np.ndarray) -> float:
  """Returns the log marginal likelihood up to a constant; `noise` is the share of noise in a variance of 1."""
  factor = np.linalg.cholesky((1 - noise) * kernel + noise * np.eye(len(target)))
  solved = np.linalg.solve(factor, target)
  return float(-0.5 * solved @ solved - np.log(np.diag(factor)).sum())


def _ranks(values: np.ndarray) -> np.ndarray:
  """Returns the rank of each value; equal values get the mean of their ranks."""
  _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
  return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def predict(model: Model, tokens: Array) -> Array:
  """Returns the expected reward of tokens [T]."""
  equal = (jnp.asarray(model.tokens) == tokens[None]).mean(-1)
  return model.mean + _kernel(equal, model.slope, model.scale, model.norm) @ jnp.asarray(model.weights)


def describe(model: Model) -> str:
  """Says what a model was fitted to, and how well it fits."""
  kernel = 'tokens and pairs' if model.slope else 'Hamming distance'
  return (
    f'{len(model.tokens)} children ({kernel}; leave one out: R2 {model.explained:.2f}, rank correlation '
    f'{model.ranked:.2f}; deviation of rewards {model.spread:.3g}, of noise {model.noise:.3g}; '
    f'{int(model.failed)} failed are left out)'
  )


def benchmark(space: Space, model: Model) -> Benchmark:
  """Returns a model as a benchmark. Its reward has noise, drawn by the key of the child; its metric `test` has none."""

  def evaluate(_: PyTree, batch: Batch) -> Outcome:
    expected = jax.vmap(lambda tokens: predict(model, tokens))(batch.tokens)
    noise = jax.vmap(jax.random.normal)(batch.keys)
    return Outcome(expected + model.noise * noise, {'test': expected})

  return Benchmark(space, lambda key: (), evaluate, float(model.mean), None)
