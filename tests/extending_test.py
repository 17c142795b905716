"""Executes the recipes of docs/extending.md as they stand on the page."""

import importlib
import inspect
import json
import pathlib
import re
import shutil
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import testing

from experiments.common import prepare_search, systems
from nas_jax.datasets import images as images_lib
from nas_jax.datasets.images import Split
from nas_jax.systems import cell, conv
from nas_jax.training.problem import Problem

ROOT = pathlib.Path(__file__).parents[1]
PAGE = (ROOT / 'docs' / 'extending.md').read_text()


def blocks(heading):
  """Returns the Python code blocks under a heading of the page."""
  part = PAGE.split(f'\n## {heading}\n')[1].split('\n## ')[0]
  return re.findall(r'```python\n(.*?)```', part, re.DOTALL)


def forgotten():
  """Removes the modules of nas_jax from `sys.modules`, so that they are imported anew. Returns them by name."""
  return {name: sys.modules.pop(name) for name in list(sys.modules) if name.split('.')[0] == 'nas_jax'}


@pytest.fixture
def library(tmp_path, monkeypatch):
  """The folder of a copy of nas_jax. A test edits it as the page says, and then imports the edited modules."""
  shutil.copytree(ROOT / 'nas_jax', tmp_path / 'nas_jax')
  monkeypatch.syspath_prepend(tmp_path)
  originals = forgotten()
  yield tmp_path / 'nas_jax'
  forgotten()
  sys.modules.update(originals)


def replace(path, old, new):
  text = path.read_text()
  assert text.count(old) == 1, f'{path} has {old!r} {text.count(old)} times'
  path.write_text(text.replace(old, new))


def append(path, table, entry):
  """Adds an entry at the end of the table that the line `table` opens."""
  head, tail = path.read_text().split(f'{table}\n')
  entries, closing, rest = re.split(r'(\n *[)}]\n)', tail, maxsplit=1)
  path.write_text(f'{head}{table}\n{entries}\n{entry}{closing}{rest}')


def load(*names):
  return [importlib.import_module(f'nas_jax.{name}') for name in names]


def test_the_baseline(library):
  (lines,) = blocks('Change the baseline')
  path = library / 'search' / 'algorithms' / 'baseline.py'
  replace(path, "BASELINES = ('moving', 'all')", "BASELINES = ('moving', 'all', 'none')")
  replace(path, f'{lines.splitlines()[0]}\n', lines)
  baseline, config, search = load('search.algorithms.baseline', 'config', 'search')

  def found(name, reward, depth=None):
    cfg = search.Config(baseline=name)
    config.check(cfg)
    batch, outcome = types.SimpleNamespace(depth=depth), types.SimpleNamespace(reward=reward)
    return baseline.advantages(cfg, baseline.init_baseline(), batch, outcome)[0].tolist()

  assert found('none', jnp.array([0.25, 0.75])) == [0.25, 0.75]
  assert found('none', jnp.array([[0.25, 7.0], [0.5, 0.75]]), jnp.array([1, 2])) == [[0.25, 0.0], [0.5, 0.75]]
  assert found('moving', jnp.array([0.25, 0.75])) == [-0.25, 0.25]


def test_a_reward(monkeypatch):
  (recipe,) = blocks('Give a reward of your own')
  problems = list[Problem]()
  monkeypatch.setattr(conv.evaluators, 'build', lambda problem, mesh, recovery: problems.append(problem))
  exec(recipe, {})
  reward = problems[0].reward_of
  np.testing.assert_allclose(reward({'accuracy': np.array([0.5, 1.0]), 'f1': np.array([0.25, 0.5])}), [0.375, 0.75])


def test_an_activation(library):
  table, _ = blocks('Add an activation')
  (line,) = re.findall(r'^  Operation.*$', table, re.MULTILINE)
  append(library / 'operations.py', 'ACTIVATIONS = (', line)
  operations, space, tree_cell = load('operations', 'space', 'tree_cell')
  cells = space.tree_cell_space(base=2, activate=('tanh', 'gelu'))
  arch = cells.decode([0, 0, 0, 0, 0, 1, 0, 0, 2, 1])
  assert arch.activate == (operations.TANH, operations.TANH, len(operations.ACTIVATIONS) - 1)
  assert 'gelu(' in tree_cell.equations(arch) and 'jax.nn.gelu(' in tree_cell.to_source(arch)


def test_an_operation_without_editing_the_package(capsys):
  _, recipe = blocks('Add an activation')
  names = {}
  exec(recipe, names)
  shown = capsys.readouterr().out
  compile(shown, 'cell.py', 'exec')
  assert 'jax.nn.silu(' in shown
  assert cell.make_space(names['cfg']).operations.activate[1] == names['swish']


def test_a_layer_type(library):
  lines, branch = blocks('Add a layer type')
  source = library / 'space' / 'conv.py'
  for old, new in zip(
    re.findall(r'^(?:LAYER_TYPES|CONV, ).*$', source.read_text(), re.M), lines.splitlines(), strict=True
  ):
    replace(source, old, new)
  child = library / 'children' / 'conv.py'
  replace(child, 'import CONV, IMAGE', 'import CONTEXT, CONV, IMAGE')
  last = '    else:\n      y = pooled('
  replace(child, last, f'{branch}{last}')
  conv, network, space, export = load('children.conv', 'space.network', 'space', 'export')
  made = space.conv_space(2, layer_types=('context', 'max pool'), pools=(2,), skips=False)
  arch = made.decode([0, 0, 1, 0])
  images = jax.random.normal(jax.random.key(0), (2, 4, 4, 3))
  params = {'layers': [{}, {}], 'softmax': jnp.eye(3), 'softmax_bias': jnp.zeros(3)}
  logits, _ = conv.run(params, [(), ()], network.network(arch), images, 1e-5, train=True)
  np.testing.assert_allclose(logits, images.mean((1, 2)), rtol=1e-5)  # the largest of equal pixels is their mean
  assert space.count(arch, (4, 4, 3), 3).params == 3 * 3 + 3
  with pytest.raises(ValueError, match='context'):
    export.module(arch).init(jax.random.key(0), images)


def test_a_search_algorithm(library):
  file, entry = blocks('Add a search algorithm')
  folder = library / 'search' / 'algorithms'
  (folder / 'climb.py').write_text(file)
  replace(folder / '__init__.py', 'import evolution, ', 'import climb, evolution, ')
  append(folder / '__init__.py', "ALGORITHMS: dict[str, Callable[[Space, 'Config'], Algorithm]] = {", entry.rstrip())
  outcomes, search, space = load('types', 'search', 'space')
  made = space.choice_space({'width': '0123456789', 'depth': '0123456789'})
  s = search.ask_tell(made, search.Config(algorithm='climb', m=3))
  state, seen = s.init(jax.random.key(0)), []
  for _ in range(3):
    batch = s.ask(state)
    seen += [(sum(tokens), tokens) for tokens in batch.tokens.tolist()]
    state, _ = s.tell(state, batch, outcomes.Outcome(batch.tokens.sum(1).astype(float)))
    best = max(seen, key=lambda one: one[0])
    assert (state.algorithm.reward, state.algorithm.tokens.tolist()) == best
  assert len({tuple(tokens) for _, tokens in seen}) > 1


def stripes(n=40):
  """Returns images of two classes: with bright rows, and with bright columns."""
  images, labels = np.zeros((n, 8, 8, 1), np.uint8), np.arange(n) % 2
  images[labels == 0, ::2] = 255
  images[labels == 1, :, ::2] = 255
  return Split(images, labels)


def test_a_data_set():
  arrays, branch = blocks('Add a data set')
  train, test = stripes(), stripes(10)
  names = dict(zip(('train_x', 'train_y', 'test_x', 'test_y'), (*train, *test), strict=True))
  exec(arrays, names)
  assert names['images'].classes == 2 and isinstance(names['search'], type(conv.build(conv.smoke(), names['images'])))
  # The branch stands before the last `else` of the function, as the page says.
  source = inspect.getsource(images_lib.load_images)
  head, tail = source.rsplit('  else:\n', 1)
  module = vars(images_lib) | {'_stripes': lambda: {'train': train, 'test': test}}
  exec(f'from __future__ import annotations\n{head}{branch}  else:\n{tail}', module)
  found = module['load_images']('stripes')
  assert found.classes == 2 and found.class_names == ('rows', 'columns') and len(found.test.labels) == 10


def test_a_part_of_the_report(library):
  (recipe,) = blocks('Add a part of the report')
  table, function = recipe.split('\n\n\n')
  (line,) = re.findall(r'^  section.*$', table, re.MULTILINE)
  append(library / 'report' / 'page.py', '  sections = (', line)
  with (library / 'report' / 'page.py').open('a') as file:
    file.write(f'\n\n{function}')
  model, page = load('report.model', 'report.page')
  records = [
    {'id': k, 'tokens': [0], 'reward': 0.5, 'score': 2.0, 'failed': None, 'seconds': seconds}
    for k, seconds in enumerate((1.0, 2.5, 99.0))
  ]
  run = model.Run('reinforce', records, [2.0] * 3, [2.0] * 3, [])
  report = model.Report(
    'A search', 'cell', model.Metric('score', 'score'), 3, (run,), *[()] * 3, ((), ()), (), (), {}, ''
  )
  _, part = page.render(report).split('How long children took')
  assert '2.5' in part.split('</section>')[0]
  assert 'How long children took' not in page.render(report._replace(runs=()))


def test_resuming():
  (recipe,) = blocks('Change what resuming does')
  names = {}
  exec(recipe, names)
  s = cell.build(testing.cell_config(), testing.text(), recovery=names['memory'])
  batch = s.ask(s.init(jax.random.key(0)))
  first = s.evaluate(batch)
  (name,) = names['ended']
  names['ended'][name]['perplexity'] = names['ended'][name]['perplexity'] * 2  # as nothing else would return
  np.testing.assert_allclose(s.evaluate(batch).metrics['perplexity'], 2 * first.metrics['perplexity'])


@pytest.mark.long
def test_a_system(monkeypatch, tmp_path):
  recipe, entry, case = blocks('Add a system')
  perceptron = types.ModuleType('perceptron')
  monkeypatch.setitem(sys.modules, 'perceptron', perceptron)  # where `dataclass` looks up types
  exec(recipe, vars(perceptron))
  names = vars(systems) | {'perceptron': perceptron}
  exec(entry, names)
  ((system, cfg, data, steps),) = eval(f'{{{case}}}', names | {'IMAGES': testing.pictures()}).values()
  assert system.make_problem(cfg, data).steps == steps
  monkeypatch.setattr(systems, 'SYSTEMS', (*systems.SYSTEMS, names['PERCEPTRON']))
  for name in ('JAX_NUM_CPU_DEVICES', 'JAX_COMPILATION_CACHE_DIR'):  # JAX is set up already
    monkeypatch.setenv(name, '1')
  argv = ['perceptron_search', '--preset=smoke', f'--workdir={tmp_path}']
  for _ in range(2):  # the second time all results are known
    prepare_search.prepare((names['PERCEPTRON'],), 'A search.', argv)(lambda: None)
    lines = [json.loads(line) for line in (tmp_path / 'children.jsonl').read_text().splitlines()]
    assert len(lines) == 4 and all(line['failed'] is None and line['accuracy'] > 0.1 for line in lines)
  assert 'perceptron' in (tmp_path / 'summary.txt').read_text()
