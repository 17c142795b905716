"""Searches as pure functions, and the loop that runs them."""

from nas_jax.search.core import Parts, Search, Update, ask_tell, build, check
from nas_jax.search.loop import Budget, Hook, Told, run, run_seeds
from nas_jax.search.state import Best, Config, SearchState, title

__all__ = [
  'Best', 'Budget', 'Config', 'Hook', 'Parts', 'Search', 'SearchState', 'Told', 'Update', 'ask_tell', 'build', 'check',
  'run', 'run_seeds', 'title',
]  # fmt: skip
