"""Random search, the reference: token sequences are drawn uniformly, and nothing is learned."""

import jax
import jax.numpy as jnp

from nas_jax.controller import policy_summary, uniform_controller
from nas_jax.search.algorithms import baseline as baseline_lib
from nas_jax.search.algorithms.base import Algorithm, Credit
from nas_jax.space import Space
from nas_jax.types import Array, Batch, Depth, Info, Key, Outcome


def build(space: Space, cfg: baseline_lib.Config) -> Algorithm:
  """Returns random search. Its state is a baseline that is only reported, so that charts can compare algorithms."""
  controller = uniform_controller(space)

  def propose(state: baseline_lib.Baseline, keys: Key, depth: Depth) -> Array:
    del state
    return jax.vmap(lambda key: controller.sample((), key, depth))(keys)

  def update(
    state: baseline_lib.Baseline, batch: Batch, outcome: Outcome, credit: Credit
  ) -> tuple[baseline_lib.Baseline, Info]:
    del credit
    _, state, info = baseline_lib.advantages(cfg, state, batch, outcome)
    return state, info | {'gradient_norm': jnp.zeros(())}

  return Algorithm(
    init=lambda key: baseline_lib.init_baseline(),
    propose=propose,
    update=update,
    summary=lambda state, keys: policy_summary(controller, (), keys),
  )
