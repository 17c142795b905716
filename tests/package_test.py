"""An installation has only the library, imports lightly, and names each missing package in one line."""

import ast
import configparser
import os
import pathlib
import shutil
import subprocess
import sys

from packaging import requirements
import pytest

from experiments import conv_search
from experiments.common import launch
import nas_jax
from nas_jax import lazy, tree_cell
from nas_jax.datasets import images, tfds

ROOT = pathlib.Path(__file__).parent.parent
EXTRA = ('array_record', 'matplotlib', 'PIL', 'sklearn', 'tensorboardX', 'tensorflow_datasets', 'torch', 'tqdm')


@pytest.fixture(scope='module')
def installed(tmp_path_factory):
  """The folder of an installation of the library."""
  source, target = tmp_path_factory.mktemp('source'), tmp_path_factory.mktemp('site')
  for name in ('setup.cfg', 'pyproject.toml', 'README.md', 'LICENSE'):
    shutil.copy(ROOT / name, source)
  for name in ('nas_jax', 'experiments', 'tests'):
    shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns('__pycache__'))
  build = ('-c', 'import setuptools; setuptools.setup()', '-q', 'build', f'--build-lib={target}', 'egg_info')
  done = subprocess.run([sys.executable, *build], cwd=source, capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr
  shutil.move(source / 'nas_jax.egg-info', target)
  return target


def test_the_library_alone_is_installed_with_its_types(installed):
  assert {path.name for path in installed.iterdir()} == {'nas_jax', 'nas_jax.egg-info'}
  modules = {path.relative_to(ROOT) for path in (ROOT / 'nas_jax').rglob('*.py')}
  shipped = {path.relative_to(installed) for path in (installed / 'nas_jax').rglob('*') if path.is_file()}
  assert shipped == modules | {pathlib.Path('nas_jax/py.typed')}
  about = (installed / 'nas_jax.egg-info' / 'PKG-INFO').read_text()
  assert f'\nVersion: {nas_jax.__version__}\n' in about


def test_a_package_without_wheels_everywhere_is_no_requirement_of_the_library():
  """array_record has none for Windows and for Macs with Intel processors."""
  setup = configparser.ConfigParser()
  setup.read(ROOT / 'setup.cfg')
  core = [requirements.Requirement(line) for line in setup['options']['install_requires'].split('\n') if line]
  assert len(core) > 4 and not any(one.name in EXTRA or one.name == 'array-record' or one.marker for one in core)
  extra = setup['options.extras_require']['experiments'].split('\n')
  (marker,) = [one.marker for one in map(requirements.Requirement, filter(None, extra)) if one.name == 'array_record']
  machines = [('linux', 'x86_64'), ('linux', 'aarch64'), ('darwin', 'arm64'), ('darwin', 'x86_64'), ('win32', 'AMD64')]
  found = [marker.evaluate({'sys_platform': name, 'platform_machine': kind}) for name, kind in machines]
  assert found == [True, True, True, False, False]


def test_the_citation_names_this_version():
  lines = (ROOT / 'CITATION.cff').read_text().splitlines()
  assert f'version: {nas_jax.__version__}' in lines


def test_the_library_works_in_an_empty_folder_without_the_extras(installed, tmp_path):
  """All modules except reports, which only launchers make, can be imported with the core requirements only."""
  names = [path.relative_to(ROOT).with_suffix('') for path in sorted((ROOT / 'nas_jax').rglob('*.py'))]
  modules = ['.'.join(name.parts) for name in names if name.name != '__init__' and 'report' not in name.parts]
  code = f"""
import importlib, importlib.util, sys
sys.path.insert(0, {str(installed)!r})
for name in {EXTRA}:
  sys.modules[name] = None
for name in {modules}:
  importlib.import_module(name)
import nas_jax
assert nas_jax.__file__.startswith({str(installed)!r}), nas_jax.__file__
assert importlib.util.find_spec('experiments') is None
print(nas_jax.tree_cell.equations(nas_jax.published.NASCELL))
"""
  done = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True, check=False)
  assert 'h_t = ' in done.stdout, done.stderr


def test_a_missing_package_is_named_with_the_way_to_install_it(monkeypatch, tmp_path, capsys):
  for name in EXTRA:
    monkeypatch.setitem(sys.modules, name, None)
  way = r"pip install 'nas_jax\[experiments\]'"
  with pytest.raises(ImportError, match=f'matplotlib.*{way}'):
    tree_cell.draw(tree_cell.NASCELL, tmp_path / 'cell.svg')
  with pytest.raises(ImportError, match=f"'digits' needs sklearn.*{way}"):
    images.load_images()
  with pytest.raises(ImportError, match=f"'cifar10' needs tensorflow_datasets.*{way}"):
    tfds.prepared('cifar10', str(tmp_path), 'or none')
  # A launcher prints only this line.
  monkeypatch.setattr(sys, 'argv', ['conv_search', '--preset=smoke', f'--workdir={tmp_path}/run'])
  with pytest.raises(SystemExit) as left:
    launch.main(conv_search.prepare)
  error = capsys.readouterr().err
  assert left.value.code == 2 and error.count('\n') == 1 and 'sklearn' in error


def test_a_launcher_ends_in_one_line_if_a_package_is_missing(tmp_path):
  (tmp_path / 'sitecustomize.py').write_text("import sys; sys.modules['tqdm'] = None")
  env = {**os.environ, 'PYTHONPATH': str(tmp_path)}

  def python(*args):
    return subprocess.run([sys.executable, *args], cwd=ROOT, env=env, capture_output=True, text=True, check=False)

  done = python('-m', 'experiments.cell_search', '--help')
  wanted = "a launcher needs tqdm, which is not installed: pip install 'nas_jax[experiments]'.\n"
  assert (done.returncode, done.stdout, done.stderr) == (2, '', wanted)
  done = python('-c', 'import experiments')  # a user's own code can handle the error
  assert done.returncode == 1 and done.stderr.endswith(f'ImportError: {wanted}')


def test_what_is_installed_is_not_asked_for():
  lazy.require('numpy', 'an array')


def test_all_names_of_the_cell_compiler_are_listed():
  assert {'NNXTreeCell', 'draw', 'TreeCell'} <= set(dir(tree_cell)) == set(tree_cell.__all__)


def unbound_where_inlined(source):
  """Yields names that one comprehension of a function binds and another of its comprehensions reads as a global."""

  def names(tree, context):
    return {one.id for one in ast.walk(tree) if isinstance(one, ast.Name) and isinstance(one.ctx, context)}

  def arguments(tree):
    return {one.arg for one in ast.walk(tree) if isinstance(one, ast.arg)}

  for function in ast.walk(ast.parse(source)):
    if isinstance(function, ast.FunctionDef):
      inlined = [one for one in ast.walk(function) if isinstance(one, (ast.ListComp, ast.SetComp, ast.DictComp))]
      inner = {id(part) for one in inlined for part in ast.walk(one) if part is not one}
      outer = [one for one in inlined if id(one) not in inner]
      bound = [names(one, ast.Store) | arguments(one) for one in outer]
      read = [names(one, ast.Load) - own for one, own in zip(outer, bound, strict=True)]
      stored = (one for one in ast.walk(function) if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Store))
      local = {one.id for one in stored if id(one) not in inner} | arguments(function)
      local |= {one.name for one in ast.walk(function) if isinstance(one, ast.FunctionDef)}
      yield from set().union(*bound) & set().union(*read) - local


@pytest.mark.parametrize('folder', ['nas_jax', 'experiments'])
def test_no_name_is_unbound_where_comprehensions_are_inlined(folder):
  """Python 3.12.3 inlines comprehensions, and then takes such a global for the variable of the other one."""
  sources = sorted((ROOT / folder).rglob('*.py'))
  assert sources and not {str(path): found for path in sources if (found := [*unbound_where_inlined(path.read_text())])}
  faulty = 'def load(parts):\n  names = [split for split in parts]\n  return [split(part) for part in parts]\n'
  assert [*unbound_where_inlined(faulty)] == ['split']
