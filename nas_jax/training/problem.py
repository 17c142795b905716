"""A problem: the task that the children of a search learn, and the reward for it.

Each system makes a problem from its config and its data. All code that trains or scores children takes the problem
instead of the config, whether children have their own weights (`evaluators.build`) or share them (`systems.enas`).
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

SHARED = 'shared_'  # the prefix of the names of scores with shared weights
# (training steps) -> (arch) -> optimizer
MakeOptimizer = Callable[[int], Callable[[PyTree], optax.GradientTransformation]]


class Problem(NamedTuple):
  """What the children of one space learn, how they are trained, and their reward.

  Attributes:
    space: the space of the architectures.
    child: the network of a static architecture, or of a traced one if it takes both.
    data: arrays as the child's `batch` and `score` take them.
    optimizer: (training steps) -> (arch) -> the optimizer of a child, or of shared weights, whose arch is ().
    steps: training steps of a child.
    pass_steps: training steps of a pass over the training data.
    steps_per_call: training steps of one program call.
    metric: the name of the score that decides the reward.
    reward: (values of that metric [m]) -> rewards [m].
    scored: how many of the last program calls are followed by a scoring; the best score counts.
    program: one of `timing.PROGRAMS`, how children are compiled.
    traced: (traced architectures [m, ...]) -> the network that takes them; None if there is none.
    quick: whether programs of static architectures are compiled quickly, see `fit.fitter`.
    warm_start: (initial weights, weights of the child before) -> the weights that a child starts from; None if each
      child starts from its own initial weights.
    minibatch: (data, key) -> the data with a random part of the validation split, for scores by shared weights.
    reward_of: a reward function of the user, which replaces `reward`: see `rewards.Reward`. None if there is none.
    cost_of: (static arch) -> its cost; None if costs are not counted. `cost_of`, `bounds` and `shaping` apply only to
      children that are trained by themselves.
    bounds: the most that a child may cost.
    shaping: how the cost of a child shapes its reward; None for not at all.
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
    """Whether each child is trained by a program of its own, instead of one program for all children."""
    return self.traced is None or self.program == 'specialised'

  @property
  def shared_metric(self) -> str:
    """The name of the score with shared weights, which differs from that of a child trained by itself."""
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
  """Returns the programs that train children of traced architectures; `child` is what `problem.traced` returned."""
  optimizer = problem.optimizer(problem.steps)
  return fit.fitter(child, optimizer, problem.steps, problem.steps_per_call, mesh, problem.scored)


def static_fitter(problem: Problem, arch: PyTree, mesh: Mesh | None = None) -> fit.Fit:
  """Returns the programs that train the child of one static architecture. They take () as arch."""
  child, optimizer = child_lib.bind_arch(problem.child, lambda _: arch), problem.optimizer(problem.steps)
  calls = problem.steps_per_call, mesh, problem.scored, problem.quick
  return fit.fitter(child, lambda _: optimizer(arch), problem.steps, *calls)
