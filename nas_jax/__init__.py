"""nas_jax: neural architecture search with reinforcement learning, as pure functions.

Modules load when they are first used: `import nas_jax.tree_cell` brings in JAX and Flax and nothing else.
"""

from nas_jax import lazy

__version__ = '0.1.0'
__all__ = [
  '__version__', 'controller', 'draw', 'export', 'load', 'published', 'search', 'space', 'systems', 'tree_cell',
]  # fmt: skip
__getattr__, __dir__ = lazy.modules(__name__, __all__, {'load': 'export'})
