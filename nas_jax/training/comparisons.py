"""What is trained beside the children of a search, to compare with them."""

import dataclasses

from nas_jax.config import field


@dataclasses.dataclass
class Config:
  """How often random and known architectures are trained, just as children are."""

  reliability_children: int = field(
    20,
    'random architectures trained several times before the search, to see how reliable the reward is; 0 for none',
    low=0,
    high=10_000,
    budget=True,
  )
  yardstick_repeats: int = field(
    2,
    'trainings of each known architecture after the search, to compare with; 0 for none',
    low=0,
    high=1000,
    budget=True,
  )
