"""Every name of the public interface has an example in its docstring, and all examples are correct."""

import doctest
import importlib.util
import pathlib
import pkgutil

import pytest

import nas_jax

# The promised names, by the module that users import them from. Methods and fields are shown in other examples.
PROMISED = {
  'space': (
    *('tree_cell_space', 'conv_space', 'chain_space', 'enas_macro_space', 'enas_micro_space', 'enas_rnn_space'),
    *('choice_space', 'stack', 'count', 'canonical', 'Space'),
  ),
  'controller': ('lstm_controller',),
  'tree_cell': ('init', 'apply', 'unroll', 'TreeCell', 'NNXTreeCell', 'equations', 'draw', 'to_source'),
  'export': ('load', 'module', 'to_source', 'cost'),
  'search': ('build', 'ask_tell', 'run', 'run_seeds'),
  'published': ('',),
  'systems.cell': ('build',),
  'systems.chain': ('build',),
  'systems.conv': ('build',),
  'systems.enas_images': ('make_problem',),
  'systems.enas_rnn': ('make_problem',),
  'systems.table': ('build',),
}
MODULES = [
  module.name
  for module in pkgutil.walk_packages(nas_jax.__path__, 'nas_jax.')
  if '>>>' in pathlib.Path(importlib.util.find_spec(module.name).origin).read_text()
]


@pytest.mark.parametrize(('module', 'name'), [(module, name) for module, names in PROMISED.items() for name in names])
def test_a_promised_name_has_an_example(module, name):
  thing = importlib.import_module(f'nas_jax.{module}')
  thing = getattr(thing, name) if name else thing
  assert '>>> ' in thing.__doc__


@pytest.mark.parametrize('module', MODULES)
def test_examples_say_what_is_so(module):
  failed, tried = doctest.testmod(importlib.import_module(module))
  assert tried and not failed
