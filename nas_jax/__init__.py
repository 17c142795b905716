"""nas_jax: neural architecture search with reinforcement learning, as pure functions.

Modules load when they are first used: `import nas_jax.tree_cell` brings in JAX and Flax and nothing else.
"""

import importlib
from typing import Any

__all__ = ['controller', 'published', 'search', 'space', 'systems', 'tree_cell']


def __getattr__(name: str) -> Any:
  if name not in __all__:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}: it has {", ".join(__all__)}.')
  return importlib.import_module(f'{__name__}.{name}')


def __dir__() -> list[str]:
  return __all__
