"""A problem: what the children of a search learn, and what they earn for it.

Each system makes one from its config and its data. Everything that trains or scores children takes the problem and not
the config, be it by weights of their own (`evaluators.build`) or by shared weights (`systems.enas`).
"""

from collections.abc import Callable
from typing import NamedTuple

from jax.sharding import Mesh
import numpy as np
import optax

from nas_jax.space import Space
from nas_jax.training import child as child_lib
from nas_jax.training import fit, rewards
from nas_jax.training.child import Child
from nas_jax.training.costs import UNBOUNDED, Bounds, Count, Shaping
from nas_jax.training.rewards import Reward
from nas_jax.types import Key, PyTree

SHARED = 'shared_'  # what the names of scores by shared weights begin with
MakeOptimizer = Callable[[int], Callable[[PyTree], optax.GradientTransformation]]  # (training steps) -> (arch) -> it


class Problem(NamedTuple):
  """What the children of one space learn, how they are trained, and their reward.

  Attributes:
    space: of the architectures.
    child: the network of a static architecture, or of a traced one if it takes both.
    data: arrays as the child's `batch` and `score` take them.
    optimizer: (training steps) -> (arch) -> the optimizer of a child, or of shared weights, whose arch is ().
    steps: training steps of a child.
    pass_steps: training steps of a pass over the training data.
    steps_per_call: training steps of one program call.
    metric: the name of the score that decides the reward.
    reward: that score [m] -> rewards [m].
    scored: how many of the last program calls are followed by a scoring; the best score counts.
    program: one of `timing.PROGRAMS`, how children are compiled.
    traced: (traced architectures [m, ...]) -> the network that takes them; None if there is none.
    quick: whether programs of static architectures are compiled quickly, see `fit.fitter`.
    warm_start: (initial weights, weights of the child before) -> the weights that a child starts from; None if each
      child starts from its own initial weights.
    minibatch: (data, key) -> the same with a part of the validation split; for scores by shared weights only.
    reward_of: a reward of the user's own, which takes the place of `reward`; see `rewards.Reward`. None for none.
    cost_of: (static arch) -> what it costs; None if that is not counted. This and the two below are for children that
      are trained by themselves.
    bounds: the most that a child may cost.
    shaping: how its cost shapes its reward; None for not at all.
  """

  space: Space
  child: Child
  data: PyTree
  optimizer: MakeOptimizer
  steps: int
  pass_steps: int
  steps_per_call: int
  metric: str
  reward: Callable[[np.ndarray], np.ndarray]
  scored: int = 1
  program: str = 'generic'
  traced: Callable[[PyTree], Child] | None = None
  quick: bool = False
  warm_start: Callable[[PyTree, PyTree], PyTree] | None = None
  minibatch: Callable[[PyTree, Key], PyTree] = lambda data, key: data
  reward_of: Reward | None = None
  cost_of: Count | None = None
  bounds: Bounds = UNBOUNDED
  shaping: Shaping | None = None

  @property
  def own_programs(self) -> bool:
    """Whether each child is trained by a program of its own, and not all of them by one."""
    return self.traced is None or self.program == 'specialised'

  @property
  def shared_metric(self) -> str:
    """The name of the score by shared weights, which must not be taken for that of a child trained by itself."""
    return f'{SHARED}{self.metric}'

  def own_reward(self, metrics: dict[str, np.ndarray]) -> np.ndarray:
    """Rewards [m] of children that were trained by themselves. Raises ValueError as `rewards.checked`."""
    return self.reward(metrics[self.metric]) if self.reward_of is None else rewards.checked(self.reward_of, metrics)

  def shared_reward(self, metrics: dict[str, np.ndarray]) -> np.ndarray:
    """Rewards [m] of children by shared weights. A reward of the user's own sees the names without 'shared_'."""
    if self.reward_of is None:
      return self.reward(metrics[self.shared_metric])
    return rewards.checked(self.reward_of, {name.removeprefix(SHARED): value for name, value in metrics.items()})


def traced_fitter(problem: Problem, child: Child, mesh: Mesh | None = None) -> fit.Fit:
  """The programs that train all children of traced architectures; `child` is what `problem.traced` returned."""
  optimizer = problem.optimizer(problem.steps)
  return fit.fitter(child, optimizer, problem.steps, problem.steps_per_call, mesh, problem.scored)


def static_fitter(problem: Problem, arch: PyTree, mesh: Mesh | None = None) -> fit.Fit:
  """The programs that train the child of one static architecture; what they take as arch is ()."""
  child, optimizer = child_lib.bind_arch(problem.child, lambda _: arch), problem.optimizer(problem.steps)
  calls = problem.steps_per_call, mesh, problem.scored, problem.quick
  return fit.fitter(child, lambda _: optimizer(arch), problem.steps, *calls)
