"""Writes a page for each module of nas_jax, made of its docstrings, into build/api. A warning of pdoc is an error.

Example:
  python -m docs.api && python -m http.server --directory build/api
"""

import pathlib
import pkgutil
import warnings

import pdoc

import nas_jax
from nas_jax import tree_cell

PAGES = pathlib.Path(__file__).parent.parent / 'build' / 'api'


def main() -> None:
  """Writes the pages."""
  warnings.simplefilter('error', UserWarning)
  # The default of this field is a function of JAX, whose annotations pdoc cannot read.
  warnings.filterwarnings('ignore', r'Error parsing type annotation .* for nas_jax\.tree_cell\.TreeCell\.carry_init')
  # pdoc looks into a module's __dict__, where a name that loads when it is first used stands only once it is set.
  for name in tree_cell.__all__:
    setattr(tree_cell, name, getattr(tree_cell, name))
  pdoc.render.configure(docformat='google', footer_text=f'nas_jax {nas_jax.__version__}')
  pdoc.pdoc(*(module.name for module in pkgutil.iter_modules(nas_jax.__path__, 'nas_jax.')), output_directory=PAGES)
  print(f'API pages: {PAGES / "index.html"}')


if __name__ == '__main__':
  main()
