"""What the three searches with shared weights have in common: Pham et al. (2018)."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.sharding import Mesh
import numpy as np
import optax

from nas_jax import search
from nas_jax.search import weight_sharing
from nas_jax.space import Space
from nas_jax.training import evaluators, fit
from nas_jax.training.child import Child
from nas_jax.training.recovery import NO_RECOVERY, Recovery
from nas_jax.types import Batch, Key, Outcome, PyTree

# The controller of the paper, but for the weight of the entropy.
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

# For searches that are far shorter: the paper's logits, and a rate to learn by in time.
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


class Problem(NamedTuple):
  """What the children of one space learn, by shared weights or by their own."""

  space: Space
  child: Child  # of a traced arch
  data: PyTree  # as the child takes it
  minibatch: Callable[[PyTree, Key], PyTree]  # (data, key) -> the same with a part of the validation split
  optimizer: Callable[[int], optax.GradientTransformation]  # passes over the training data -> of the weights
  steps: int  # minibatches in a pass
  metric: str  # of the child's score
  reward: Callable[[np.ndarray], np.ndarray]  # of the metric [m]

  @property
  def shared_metric(self) -> str:
    """The metric by shared weights, which must be taken for nothing else."""
    return f'shared_{self.metric}'

  def shared_reward(self, metrics: dict[str, np.ndarray]) -> np.ndarray:
    """Rewards [m] by shared weights."""
    return self.reward(metrics[self.shared_metric])


def build_programs(problem: Problem, cfg: weight_sharing.Config, mesh: Mesh | None = None) -> weight_sharing.Programs:
  """The two phases."""

  def score(params, arch, carry, data):
    return {problem.shared_metric: problem.child.score(params, arch, carry, data)[problem.metric]}

  child = problem.child._replace(score=score)
  arch = problem.space.decode_batch(jnp.zeros(problem.space.length, jnp.int32))
  optimizer = problem.optimizer(cfg.passes)
  return weight_sharing.build_programs(child, arch, optimizer, problem.data, problem.minibatch, problem.steps, mesh)


def length(cfg: weight_sharing.Config) -> str:
  """How children are trained, in words."""
  return f'weights shared for {cfg.passes} passes'


def build(
  problem: Problem,
  cfg: weight_sharing.Config,
  programs: weight_sharing.Programs,
  check: Callable[[], None] = lambda: None,
) -> search.Search:
  """The search by compiled phases, which do not depend on who writes the architectures."""
  return weight_sharing.build(problem.space, cfg, programs, problem.shared_reward, check)


def alone(
  problem: Problem, passes: int, mesh: Mesh | None = None, recovery: Recovery = NO_RECOVERY
) -> Callable[[Batch], Outcome]:
  """What trains each child by itself, from initial weights of its own, for so many passes: one program for all."""
  optimizer = problem.optimizer(passes)
  programs = fit.fitter(problem.child, lambda arch: optimizer, passes * problem.steps, problem.steps, mesh)
  return evaluators.from_scratch(programs, problem.data, lambda found: problem.reward(found[problem.metric]), recovery)
