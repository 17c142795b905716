"""A Gaussian process that chooses among proposals: Bayesian optimization over the proposals of an algorithm.

The process is fitted to the rewards of all token sequences so far, at most `LARGEST` of them. Among many candidates it
chooses the one with the greatest expected improvement (Jones et al. 1998, "Efficient Global Optimization"). Candidates
are proposals of the search's own algorithm and mutations of the best children. Every `OWN`-th child is a proposal of
the algorithm, not chosen by the process.

Two token sequences have the covariance exp(-d / l). Here d is the number of tokens in which they differ (Hamming
distance) plus the difference of their depths, and the length scale l is the likeliest of a few (Rasmussen & Williams
2006, Sec. 2.2 and 5.4.1). The children of a batch are chosen one after another, each as if the children before had
earned their expected rewards ("kriging believer", Ginsbourger et al. 2010). The children of reserved batches that are
not told yet count with their expected rewards too.

The inverse of the Cholesky factor of the covariance matrix is kept and extended by a row for each new token sequence,
so the matrix is never factorized anew.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nas_jax.search.algorithms.base import Propose
from nas_jax.search.algorithms.mutation import mutate
from nas_jax.search.history import LEAST, History, are_known
from nas_jax.space import Space
from nas_jax.types import Array, Depth, Key, PyTree

LENGTHS = (0.125, 0.35, 1.0, 2.8)  # length scales, in tokens of a whole sequence
NOISE = 0.05  # variance of the noise of a reward; the normalized rewards have variance 1
LARGEST = 1024  # token sequences that the process is fitted to; when it is full, it chooses no more
WARM_UP = 10  # token sequences that are told before the process chooses any
OWN = 3  # every third child is the algorithm's own proposal
PARENTS = 5  # best children that are mutated


class Guide(NamedTuple):
  """The Gaussian process at each of S length scales. Its rows are the first rows of the history."""

  inverse: Array  # [S, N, N] the inverse of the lower Cholesky factor of the covariance matrix; 0 where there is no row
  believed: Array  # [N] the expected normalized reward of each sequence when it was reserved
  size: Array  # [] int32, rows


def empty(capacity: int = LEAST) -> Guide:
  """Returns a process without rows."""
  return Guide(jnp.zeros((len(LENGTHS), capacity, capacity)), jnp.zeros(capacity), jnp.zeros((), jnp.int32))


def grow(guide: Guide, capacity: int) -> Guide:
  """Returns the process with room for `capacity` rows, but at most `LARGEST`. A process never shrinks."""
  more = max(0, min(capacity, LARGEST) - len(guide.believed))
  return Guide(jnp.pad(guide.inverse, ((0, 0), (0, more), (0, more))), jnp.pad(guide.believed, (0, more)), guide.size)


def distances(tokens: Array, depth: Array | int, others: Array, depths: Array | int) -> Array:
  """Returns the number of tokens in which sequences [..., T] differ, plus their difference in layers, [...]."""
  return (tokens != others).sum(-1) + jnp.abs(depth - depths)


def length_scales(length: int) -> Array:
  """Returns the length scales [S] for sequences of `length` tokens."""
  return length * jnp.asarray(LENGTHS)


def update(guide: Guide, history: History, count: int) -> Guide:
  """Returns the process after adding the next rows of the history, at most `count`."""
  room, scales = len(guide.believed), length_scales(history.tokens.shape[1])
  tokens, depths = history.tokens[:room], history.depth[:room]

  def append(guide: Guide, _: None) -> tuple[Guide, None]:
    row = jnp.minimum(guide.size, room - 1)
    new = (guide.size < history.size) & (guide.size < room)
    apart = distances(tokens[row][None], depths[row], tokens, depths)
    cross = jnp.exp(-apart[None] / scales[:, None]) * (jnp.arange(room) < row)[None]
    half = jnp.einsum('sij,sj->si', guide.inverse, cross)
    deviation = jnp.sqrt(jnp.maximum(1.0 + NOISE - (half**2).sum(1), 1e-3 * NOISE))[:, None]
    line = jnp.where(jnp.arange(room)[None] == row, 1.0, -jnp.einsum('si,sij->sj', half, guide.inverse)) / deviation
    inverse = guide.inverse.at[:, jnp.where(new, row, room)].set(line, mode='drop')
    return guide._replace(inverse=inverse, size=guide.size + new), None

  return jax.lax.scan(append, guide, length=count)[0]


class Fit(NamedTuple):
  """The process at its likeliest length scale."""

  inverse: Array  # [N, N]
  weights: Array  # [N] inverse @ normalized rewards
  scale: Array  # [] the length scale
  deviation: Array  # [] the standard deviation of the process
  best: Array  # [] the greatest normalized reward


def normalized(guide: Guide, history: History) -> Array:
  """Returns the rewards of the rows as normal scores, [N]; 0 where there is no row.

  Only the order of the rewards counts, so that outliers do no harm; failed children rank last. A sequence that was not
  told yet has its expected reward, `believed`.
  """
  room = len(guide.believed)
  told = (jnp.arange(room) < guide.size) & (history.trained[:room] > 0)
  sound = history.sound[:room] > 0
  reward = jnp.where(told & sound, history.reward[:room], -jnp.inf)
  below = ((reward[None] < reward[:, None]) & told[None]).sum(1) + 0.5 * (
    (reward[None] == reward[:, None]) & told[None]
  ).sum(1)
  score = jax.scipy.special.ndtri(jnp.clip(below / jnp.maximum(told.sum(), 1), 1e-3, 1.0 - 1e-3))
  return jnp.where(told, score, jnp.where(jnp.arange(room) < guide.size, guide.believed, 0.0))


def fit(guide: Guide, history: History) -> Fit:
  """Returns the process at the length scale of greatest evidence, with the most likely variance."""
  values = normalized(guide, history)
  weights = jnp.einsum('sij,j->si', guide.inverse, values)
  count = jnp.maximum(guide.size, 1)
  variance = jnp.maximum((weights**2).sum(1) / count, 1e-6)
  diagonal = jnp.diagonal(guide.inverse, axis1=1, axis2=2)
  evidence = jnp.log(jnp.where(diagonal > 0, diagonal, 1.0)).sum(1) - 0.5 * count * jnp.log(variance)
  best, likeliest = jnp.max(values, where=jnp.arange(len(values)) < guide.size, initial=-jnp.inf), jnp.argmax(evidence)
  scale = length_scales(history.tokens.shape[1])[likeliest]
  return Fit(guide.inverse[likeliest], weights[likeliest], scale, jnp.sqrt(variance[likeliest]), best)


def predict(found: Fit, history: History, tokens: Array, depth: Array | int) -> tuple[Array, Array, Array]:
  """Predicts the normalized rewards of token sequences [n, T], all of `depth` layers.

  Returns:
    The means [n]; the variances [n], as shares of the variance of the process; and the covariances with the rows,
    multiplied by the inverse Cholesky factor, [n, N]. The means and the variances are computed from the last.
  """
  room = len(found.weights)
  apart = distances(tokens[:, None], depth, history.tokens[None, :room], history.depth[None, :room])
  half = jnp.exp(-apart / found.scale) @ found.inverse.T
  return half @ found.weights, jnp.maximum(1.0 - (half**2).sum(1), 1e-6), half


def log_improvement(mean: Array, deviation: Array, best: Array) -> Array:
  """Returns the logarithm of the expected improvement of normal variables over `best`."""
  u = (mean - best) / deviation
  density = jnp.exp(-0.5 * u**2) / np.sqrt(2 * np.pi)
  near = jnp.log(jnp.maximum(density + u * jax.scipy.special.ndtr(u), 1e-30))
  low = jnp.minimum(u, -1.0)
  far = -0.5 * low**2 - 0.5 * np.log(2 * np.pi) - 2 * jnp.log(-low)  # its asymptotic form, where `near` has no digits
  return jnp.where(u > -4.0, near, far) + jnp.log(deviation)


def believe(guide: Guide, history: History, tokens: Array, depth: Array) -> Guide:
  """Returns the process with the expected rewards of m reserved sequences [m, T] stored.

  The sequences must be in the history, but must not be rows of the process yet: `update` adds them afterwards.
  """
  mean, _, _ = predict(fit(guide, history), history, tokens, depth[0])
  row = jnp.argmax((history.tokens[None] == tokens[:, None]).all(-1) & (history.depth[None] == depth[:, None]), 1)
  return guide._replace(believed=guide.believed.at[row].set(mean, mode='drop'))


class Chosen(NamedTuple):
  """The children of a batch that are chosen so far, and the predictions for the n candidates given these children."""

  tokens: Array  # [m, T] int32
  variance: Array  # [n] as `predict` returns it, conditioned on the chosen children
  given: Array  # [n, m] further columns of the last result of `predict`, one for each chosen child
  best: Array  # [] the greatest normalized reward, including the expected ones of children that the process chose


def propose(
  space: Space,
  guide: Guide,
  history: History,
  own: Propose,
  state: PyTree,
  keys: Key,
  ids: Array,
  depth: Depth,
  draws: int,
  mutations: int,
) -> Array:
  """Returns token sequences [m, T] for a batch, distinct ones that have not been asked for before.

  If no candidate for a child is new, the child is the algorithm's first proposal for it.

  Args:
    space: the space of the children.
    guide: the process.
    history: all token sequences so far.
    own: `propose` of the algorithm.
    state: of the algorithm.
    keys: [m].
    ids: [m] of the children.
    depth: of the children; None for all layers.
    draws: for each child, candidates that the algorithm proposes.
    mutations: for each child, candidates that are mutations of the best children, at most `draws`.
  """
  m, layers = len(keys), space.layers if depth is None else depth
  own_keys, mutation_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
  drawn = own(state, jax.vmap(lambda key: jax.random.split(key, draws))(own_keys).reshape(-1), depth)
  fresh = drawn.reshape(m, draws, -1)[:, :mutations]
  pool = jnp.concatenate([drawn, mutants(space, history, fresh, mutation_keys, depth)])
  unseen, found = ~are_known(history, pool, layers), fit(guide, history)
  mean, variance, half = predict(found, history, pool, layers)
  told = (history.trained > 0).sum()
  asks_own = (told < WARM_UP) | (ids % OWN == OWN - 1) | (guide.size == LARGEST)
  order = jnp.arange(len(pool))

  def choose(carry: Chosen, k: Array) -> tuple[Chosen, None]:
    chosen, variance, given, best = carry
    first = order - k * draws
    own_order = jnp.where((first >= 0) & (first < draws), -first, -jnp.inf)
    score = jnp.where(asks_own[k], own_order, log_improvement(mean, found.deviation * jnp.sqrt(variance), best))
    taken = ((pool[:, None] == chosen[None]).all(-1) & (jnp.arange(m) < k)[None]).any(1)
    score = jnp.where(unseen & ~taken, score, -jnp.inf)
    pick = jnp.where((score > -jnp.inf).any(), jnp.argmax(score), k * draws)
    cross = jnp.exp(-distances(pool, 0, pool[pick][None], 0) / found.scale) - half @ half[pick] - given @ given[pick]
    line = cross / jnp.sqrt(variance[pick] + NOISE)
    variance, best = jnp.maximum(variance - line**2, 1e-6), jnp.where(asks_own[k], best, jnp.maximum(best, mean[pick]))
    return Chosen(chosen.at[k].set(pool[pick]), variance, given.at[:, k].set(line), best), None

  start = Chosen(jnp.zeros((m, space.length), jnp.int32), variance, jnp.zeros((len(pool), m)), found.best)
  return jax.lax.scan(choose, start, jnp.arange(m))[0].tokens


def mutants(space: Space, history: History, drawn: Array, keys: Key, depth: Depth) -> Array:
  """Returns n mutations of the best children for each of `keys` [m], as [m * n, T].

  A mutation can add tokens that its parent lacks. These come from other proposals, `drawn` [m, n, T]. If no child has
  trained without failing, these proposals are returned unchanged.
  """
  reward = jnp.where(history.sound > 0, history.reward, -jnp.inf)
  top, rows = jax.lax.top_k(reward, PARENTS)

  def one(fresh: Array, key: Key) -> Array:
    parent_key, count_key, mutation_key = jax.random.split(key, 3)
    parent = rows[jax.random.randint(parent_key, (), 0, jnp.maximum(1, (top > -jnp.inf).sum()))]
    count = jax.random.randint(count_key, (), 1, 3)
    child = mutate(space, history.tokens[parent], history.depth[parent], fresh, mutation_key, depth, count)
    return jnp.where(top[0] > -jnp.inf, child, fresh)

  each = jax.vmap(lambda key: jax.random.split(key, drawn.shape[1]))(keys)
  return jax.vmap(one)(drawn.reshape(-1, space.length), each.reshape(-1))
