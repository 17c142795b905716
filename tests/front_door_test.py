"""The first steps of a user: import, launch, interrupt, launch again."""

import ast
import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

from nas_jax import space

ROOT = pathlib.Path(__file__).parent.parent


def python(*args, **kwargs):
  return subprocess.run([sys.executable, *args], cwd=ROOT, capture_output=True, text=True, timeout=300, **kwargs)


def test_the_promised_names_are_there():
  from nas_jax import controller, export, load, published, search, space, systems, tree_cell

  assert load is export.load and callable(export.module) and callable(export.to_source)
  assert callable(space.tree_cell_space) and callable(space.choice_space) and callable(space.canonical)
  assert callable(controller.lstm_controller) and callable(search.ask_tell) and callable(search.run_seeds)
  assert tree_cell.NASCELL is published.NASCELL and callable(tree_cell.draw)
  assert callable(systems.cell.demo) and callable(systems.conv.demo) and callable(systems.table.build)
  assert callable(space.conv_space) and space.count(published.FIGURE_7).conv_weights == 4_119_228
  assert callable(space.from_json) and space.chain_space().check(published.XU_CIFAR10) == 9


def test_importing_does_nothing_and_brings_little():
  code = (
    'import sys, nas_jax; assert "jax" not in sys.modules; import nas_jax.tree_cell; import jax;'
    'print([m for m in ("optax", "orbax", "tensorflow_datasets", "matplotlib", "tensorboardX", "experiments") if m in'
    ' sys.modules], jax._src.xla_bridge._backends)'
  )
  assert python('-c', code).stdout.strip() == '[] {}'


def test_the_readme_runs(capsys):
  for code in re.findall(r'```python\n(.*?)```', (ROOT / 'README.md').read_text(), re.DOTALL):
    exec(code, {})
  shown = capsys.readouterr().out
  assert 'width: 64' in shown and 'h_t = tanh(c_t * a13)' in shown


def test_an_unknown_name_is_said_so():
  assert 'has no attribute' in python('-c', 'import nas_jax; nas_jax.spaces').stderr


def files(workdir):
  """Returns the results of a search, without times."""
  lines = [json.loads(line) for line in (workdir / 'children.jsonl').read_text().splitlines()]
  return [{**line, 'seconds': 0} for line in lines], json.loads((workdir / 'best.json').read_text())


@pytest.mark.parametrize('converged', [False, pytest.param(True, marks=pytest.mark.long)])
def test_a_search_end_to_end_and_again(tmp_path, with_programs, converged):
  """The smoke preset with random search, reliability and known cells. The second run trains nothing.

  The short run leaves out the final choice, which is most of the work and has its own tests.
  """
  (tmp_path / 'cell.json').write_text(
    space.tree_cell_space(2).to_json(space.TreeArch((0, 1, 0), (1, 3, 2), (0, 3), (1, 0)))
  )
  args = ['-m', 'experiments.cell_search', '--preset=smoke', f'--workdir={tmp_path}', f'--beside={tmp_path}/cell.json']
  args += [] if converged else ['--final_children=0']
  first = python(*args, env=with_programs)
  assert first.returncode == 0, first.stderr
  for words in (
    'reward reliability',
    'best cell',
    'h_t = ',
    'reinforce',
    'random',
    'NASCELL',
    'LSTM',
    'SimpleCell',
    'cell.json',
  ):
    assert words in first.stdout
  page = (tmp_path / 'report.html').read_text()
  assert (', trained to convergence: a test perplexity of ' in page) == converged
  assert ('<p class="lede">In 8 children' if converged else '<h1>In 8 children') in page
  assert (tmp_path / 'events').is_dir() and (tmp_path / 'control' / 'events').is_dir()
  before = files(tmp_path), files(tmp_path / 'control')
  (tmp_path / 'best.json').unlink()  # as if killed between the journal and this file
  second = python(*args, env=with_programs)
  result = 'Trained to convergence' if converged else 'best cell'
  assert second.stdout.split(result)[1] == first.stdout.split(result)[1]
  assert (files(tmp_path), files(tmp_path / 'control')) == before
  assert [line['id'] for line in before[0][0]] == list(range(8))


def test_all_top_level_files_are_known():
  listed = subprocess.run(['git', 'ls-files'], cwd=ROOT, capture_output=True, text=True, check=False)
  if listed.returncode:
    pytest.skip('not a git checkout')
  top = {name.split('/')[0] for name in listed.stdout.split()}
  known = {
    '.ci',
    '.gitignore',
    'BUILD_NOTES.md',
    'Makefile',
    'README.md',
    'experiments',
    'nas_jax',
    'notebooks',
    'docs',
  }
  known |= {'CITATION.cff', 'LICENSE', 'pyproject.toml', 'requirements.txt', 'setup.cfg', 'tests'}
  assert {name for name in top - known if not name.startswith('requirements-')} == set()


def imports(path):
  """Returns the modules of nas_jax that a file imports at its top level; imports inside functions are lazy."""
  for node in ast.parse(path.read_text()).body:
    if isinstance(node, ast.ImportFrom) and node.module and node.module.split('.')[0] in ('nas_jax', 'experiments'):
      yield from (f'{node.module}.{alias.name}' for alias in node.names)


# The layers of folders and modules of nas_jax, lowest first: each may import its own layer and lower ones.
FLOORS = [
  ('types', 'arrays', 'config', 'files', 'lazy', 'operations', 'words'),
  ('space', 'published'),
  ('nn', 'datasets'),
  ('tree_cell', 'controller', 'training'),
  ('children',),
  ('search', 'export'),
  ('hosts',),
  ('parameter_server',),
  ('replicas',),
  ('crew',),
  ('draw', 'report', 'systems'),
]
ASIDE = ('draw', 'report')  # only launchers import them; `tree_cell.draw` loads its module when it is first used


def room(path):
  """Returns the folder or top-level module of nas_jax that a file or an imported name belongs to."""
  return path.parts[0].removesuffix('.py') if isinstance(path, pathlib.Path) else path.split('.')[1]


def test_imports_go_down_the_floors():
  floor = {name: number for number, names in enumerate(FLOORS) for name in names}
  rooms = {room(path.relative_to(ROOT / 'nas_jax')) for path in (ROOT / 'nas_jax').rglob('*.py')} - {'__init__'}
  assert rooms == set(floor), (
    f'FLOORS must list each folder and module of nas_jax once; these are not in both: {sorted(rooms ^ set(floor))}. '
    'Put a new one on the floor of the highest one that it imports, or on one between that and those that import it.'
  )
  for path in (ROOT / 'nas_jax').rglob('*.py'):
    own = room(path.relative_to(ROOT / 'nas_jax'))
    if own == '__init__':
      continue
    for name in imports(path):
      assert not name.startswith('experiments'), path
      other = room(name)
      assert other == own or other not in ASIDE or own == 'report', f'{path}: {name} is imported by launchers only'
      assert floor[other] <= floor[own], f'{path} (floor {floor[own]}) imports {name}'
    assert 'absl' not in path.read_text(), path
    assert os.path.getsize(path) < 20_000, f'{path} holds two ideas'


def test_what_launchers_share_imports_no_launcher():
  for path in (ROOT / 'experiments' / 'common').glob('*.py'):
    for name in imports(path):
      assert name.startswith(('nas_jax', 'experiments.common')), f'{path}: {name}'


def test_no_module_imports_itself_round_a_corner():
  files = {path.relative_to(ROOT).with_suffix('').parts: path for path in (ROOT / 'nas_jax').rglob('*.py')}
  modules = {'.'.join(parts[:-1] if parts[-1] == '__init__' else parts): path for parts, path in files.items()}
  reads = {
    module: {name if name in modules else name.rsplit('.', 1)[0] for name in imports(path)}
    for module, path in modules.items()
  }
  done = set()

  def walk(module, above):
    assert module not in above, f'an import circle: {" -> ".join([*above, module])}'
    if module not in done:
      for other in sorted(reads.get(module, ())):
        walk(other, [*above, module])
      done.add(module)

  for module in reads:
    walk(module, [])
