"""Regularized evolution: Real et al. (2019), "Regularized Evolution for Image Classifier Architecture Search".

The newest architectures are the population. The best of a few of them, drawn at random, is the parent of the next
child, which differs from it in one token (Algorithm 1 of the paper). The oldest architecture leaves the population,
however good it is.
"""

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from nas_jax.config import field
from nas_jax.controller import uniform_controller
from nas_jax.search.algorithms.base import Algorithm, Credit, depths, of_sequences, summary_of_samples
from nas_jax.search.algorithms.mutation import mutate
from nas_jax.space import Space
from nas_jax.types import Array, Batch, Depth, Info, Key, Outcome


@dataclasses.dataclass
class Config:
  """The settings of evolution. The paper takes 100 and 25 for 20,000 children; the defaults suit hundreds."""

  population: int = field(20, 'the newest children, which evolution draws parents from; 100 in Real et al.', low=1)
  tournament: int = field(
    5, 'children drawn from the population, the best of which is the parent; 25 in Real et al.', low=1
  )

  added: ClassVar[dict[str, Any]] = {'population': 20, 'tournament': 5}  # see `config.with_added`


class State(NamedTuple):
  """The population: P children, the oldest of which is replaced first."""

  tokens: Array  # [P, T] int32
  depth: Array  # [P] int32, layers
  reward: Array  # [P]; minus infinity for those that failed
  born: Array  # [] int32, children so far


def build(space: Space, cfg: Config) -> Algorithm:
  """Returns evolution. The first children, as many as the population, are drawn uniformly."""
  uniform, size = uniform_controller(space), cfg.population

  def init(key: Key) -> State:
    del key
    none = jnp.zeros((), jnp.int32)
    return State(jnp.zeros((size, space.length), jnp.int32), jnp.zeros(size, jnp.int32), jnp.zeros(size), none)

  def propose(state: State, keys: Key, depth: Depth) -> Array:
    def one(key: Key) -> Array:
      fresh_key, draw_key, mutation_key = jax.random.split(key, 3)
      fresh = uniform.sample((), fresh_key, depth)
      drawn = jax.random.randint(draw_key, (cfg.tournament,), 0, size)
      parent = drawn[jnp.argmax(state.reward[drawn])]
      child = mutate(space, state.tokens[parent], state.depth[parent], fresh, mutation_key, depth)
      return jnp.where(state.born < size, fresh, child)

    return jax.vmap(one)(keys)

  def update(state: State, batch: Batch, outcome: Outcome, credit: Credit) -> tuple[State, Info]:
    del credit
    reward, failed = of_sequences(batch, outcome)
    newest = slice(max(0, len(reward) - size), len(reward))
    place = (state.born + jnp.arange(len(reward))[newest]) % size
    return State(
      state.tokens.at[place].set(batch.tokens[newest]),
      state.depth.at[place].set(depths(space, batch)[newest]),
      state.reward.at[place].set(jnp.where(failed, -jnp.inf, reward).astype(state.reward.dtype)[newest]),
      state.born + len(reward),
    ), {}

  def summary(state: State, keys: Key) -> tuple[Array, Array]:
    return summary_of_samples(space, propose(state, keys, None))

  return Algorithm(init, propose, update, summary)
