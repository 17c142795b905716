"""Random search."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import testing
from testing import LAYERED

from nas_jax import search
from nas_jax.types import Outcome


def test_random_search_learns_nothing():
  s = search.ask_tell(LAYERED, testing.search_config(algorithm='random'))
  before = state = s.init(jax.random.key(0))
  for rewards in ([1.0, 2.0, 3.0], [4.0, 1.0, 4.0]):
    state, info = s.tell(state, s.ask(state), Outcome(jnp.array(rewards)))
  # Its batches depend only on its key and the step.
  chex.assert_trees_all_equal(s.ask(state), s.ask(before._replace(step=state.step)))
  # It reports a baseline, 0.95 * 2 + 0.05 * 3, and mean advantages from the 2 before; there is no gradient to follow.
  np.testing.assert_allclose([info['baseline'], info['advantage'], info['gradient_norm']], [2.05, 5 / 3, 0], rtol=1e-6)
  assert s.gradient is None and s.apply is None


def test_all_token_sequences_are_equally_likely():
  s = search.ask_tell(testing.SPACES['pointer'], testing.search_config(m=9600, algorithm='random'))
  _, counts = np.unique(s.ask(s.init(jax.random.key(0))).tokens, axis=0, return_counts=True)
  assert len(counts) == testing.SIZES['pointer'] == 96
  assert abs(counts - 100).max() < 50  # five standard deviations
