"""What is common to the three searches with shared weights: Pham et al. (2018)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from nas_jax import search
from nas_jax.search import weight_sharing
from nas_jax.search.weight_sharing_phases import Programs, build_phases
from nas_jax.space import Space
from nas_jax.training import layout
from nas_jax.training.problem import SHARED, Problem
from nas_jax.words import counted

# The controller of the paper, except the weight of the entropy bonus.
PAPER: dict[str, Any] = {
  'm': 1,
  'controller_units': 100,
  'controller_layers': 1,
  'controller_init': 0.1,
  'controller_lr': 3.5e-4,
  'controller_temperature': 5.0,
  'controller_tanh': 2.5,
  'controller_updates': 2000,
}

# For far shorter searches: the paper's temperature and tanh constant of the logits, and a higher learning rate.
SHORT: dict[str, Any] = {
  'm': 4,
  'controller_units': 64,
  'controller_layers': 1,
  'controller_init': 0.1,
  'controller_lr': 5e-3,
  'controller_temperature': 5.0,
  'controller_tanh': 2.5,
  'entropy_weight': 1e-3,
}


def build_programs(problem: Problem, cfg: weight_sharing.Config, mesh: Mesh | None = None) -> Programs:
  """Compiles the two phases of a search: training the shared weights, and scoring architectures by them."""

  def score(params, arch, carry, data):
    found = problem.child.score(params, arch, carry, data)
    names = (problem.metric,) if problem.reward_of is None else found
    return {f'{SHARED}{name}': found[name] for name in names}

  child = problem.child._replace(score=score)
  arch = problem.space.decode_batch(jnp.zeros(problem.space.length, jnp.int32))
  optimizer = problem.optimizer(cfg.passes * problem.pass_steps)(())
  mesh = layout.child_mesh(jax.local_devices()[: cfg.m]) if mesh is None else mesh  # other devices would be idle
  return build_phases(child, arch, optimizer, problem.data, problem.minibatch, problem.pass_steps, mesh)


def check(space: Space, cfg: weight_sharing.Config) -> None:
  """Raises ValueError as `search.check`, or if `cfg` would reuse rewards of earlier children, which are outdated."""
  search.check(space, cfg)
  if cfg.proposals != 'policy':
    raise ValueError(
      f'proposals (={cfg.proposals}) must be policy where children share weights: the rewards of earlier children are '
      'outdated when the weights have changed.'
    )
  if cfg.known != 'train':
    raise ValueError(
      f'known (={cfg.known}) must be train where children share weights: an architecture gets another reward when '
      'the weights have changed.'
    )


def length(cfg: weight_sharing.Config) -> str:
  """Returns in words how children are trained."""
  return f'weights shared for {counted(cfg.passes, "pass", "passes")}'


def build(
  problem: Problem,
  cfg: weight_sharing.Config,
  programs: Programs,
  check: Callable[[], None] = lambda: None,
) -> search.Search:
  """Returns the search, by any algorithm, with the phases in `programs`; `check` is called between program calls."""
  return weight_sharing.build(problem.space, cfg, programs, problem.shared_reward, check)
