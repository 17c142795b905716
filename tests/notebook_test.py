"""The notebooks: stored without outputs, and run from their own folder and from the repository's."""

import pathlib
import re

import nbclient
import nbformat
import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / 'notebooks').glob('*.ipynb'))


def printed(name, folder):
  """All that a notebook prints when it is run in `folder`, in a process of its own."""
  notebook = nbformat.read(ROOT / 'notebooks' / name, as_version=4)
  client = nbclient.NotebookClient(notebook, timeout=300, resources={'metadata': {'path': str(folder)}})
  client.execute()
  outputs = [output for cell in notebook.cells if cell.cell_type == 'code' for output in cell.outputs]
  assert not [output.text for output in outputs if output.get('name') == 'stderr' and 'Warning' in output.text]
  return ''.join(output.text for output in outputs if output.get('name') == 'stdout'), outputs


@pytest.mark.parametrize('path', NOTEBOOKS, ids=[path.name for path in NOTEBOOKS])
def test_notebooks_are_stored_without_outputs(path):
  notebook = nbformat.read(path, as_version=4)
  nbformat.validate(notebook)
  code = [cell for cell in notebook.cells if cell.cell_type == 'code']
  assert [(cell.outputs, cell.execution_count) for cell in code] == [([], None)] * len(code)
  assert set(notebook.metadata) == {'kernelspec', 'language_info'}
  # All begin by finding the package, in the same words.
  assert code[0].source == nbformat.read(NOTEBOOKS[0], as_version=4).cells[1].source


def test_your_model():
  text, outputs = printed('your_model.ipynb', ROOT)
  assert 'h_t = tanh(a12 * a13)' in text and 'Flax it loaded []' in text and '(3, 5, 4)' in text
  assert float(re.search(r'greatest difference to here: (\S+)', text)[1]) < 1e-6
  for first, last in re.findall(r'error (\S+) at first, (\S+) at last', text):
    assert float(last) < 1 / 24 < 1 / 6 < float(first)  # to say 1 always is 1/6
  drawn = [output.data for output in outputs if output.output_type == 'display_data' or output.get('data')]
  assert [set(data) & {'image/png', 'text/html'} for data in drawn] == [{'text/html'}, {'image/png'}, {'image/png'}]


@pytest.mark.long
def test_the_idea():
  text, _ = printed('the_idea.ipynb', ROOT / 'notebooks')
  assert abs(float(re.search(r'all probabilities together: (\S+)', text)[1]) - 1) < 1e-5
  steps = [float(value) for value in re.findall(r'expected reward is (\S+)', text)]
  assert steps == sorted(steps) and steps[0] < 0.4 and steps[-1] > 0.8
  fresh_plain, fresh, later_plain, later = (float(value) for value in re.findall(r'256 samples (\S+)', text))
  # The baseline helps, and later most of all.
  assert fresh > fresh_plain > 0.8 and later > 0.6 and later > later_plain + 0.2
  best = {name: float(value) for name, value in re.findall(r'^(random|reinforce) +.*ten updates (\S+)$', text, re.M)}
  assert best['reinforce'] > 2 * best['random']


@pytest.mark.long
def test_digits():
  text, outputs = printed('digits.ipynb', ROOT)
  assert '18 tokens, 34,012,224 networks' in text
  assert float(re.search(r'of the two: (\S+)', text)[1]) > 0.7
  mean = r'^(random|reinforce) .*first 20 (\S+), of the last 20 (\S+)$'
  means = {name: (float(first), float(last)) for name, first, last in re.findall(mean, text, re.M)}
  # The same draws until the controller has learned something.
  assert abs(means['reinforce'][0] - means['random'][0]) < 0.1 < means['reinforce'][1] - means['random'][1]
  trained = re.findall(r'when chosen (\S+), trained again (\S+)', text)
  random, reinforce = ([float(value) for value in pair] for pair in trained)
  # What was chosen as the highest of 80 is not that high again.
  assert reinforce[1] < reinforce[0] and abs(reinforce[1] - random[1]) < 0.05
  assert min(random + reinforce) > 0.9 and float(re.search(r'random networks: (\S+)', text)[1]) > 0.5
  drawn = [output.data for output in outputs if output.output_type in ('display_data', 'execute_result')]
  kinds = [kind for data in drawn for kind in ('image/png', 'text/html') if kind in data]
  assert kinds == ['image/png', 'text/html', 'image/png', 'image/png', 'text/html', 'image/png']


@pytest.mark.long
def test_layer_by_layer():
  text, outputs = printed('layer_by_layer.ipynb', ROOT)
  assert '6 layers to choose from, 1,296 chains of 4' in text
  earned = [float(value) for value in re.findall(r'R = (\S+)', text)]
  past, to_go = ([float(value) for value in re.findall(r'G_\d = (\S+)', line)] for line in re.findall('.*G_1.*', text))
  first, second, third = earned
  np.testing.assert_allclose(past, [first, second + first / 2, third + second / 2 + first / 4], atol=2e-3)
  np.testing.assert_allclose(to_go, [first + second / 2 + third / 4, second + third / 2, third], atol=2e-3)
  credits = dict(re.findall(r'^(own reward|past|to go) +([+-]\S+ +[+-]\S+)$', text, re.M))
  assert credits['own reward'].split() == credits['past'].split() == ['-0.100', '+0.100'] != credits['to go'].split()

  # What the loop counted is what the tree knows, and no network was trained twice.
  strings, asked, trained, known = map(
    int, re.search(r'(\d+) strings with (\d+) prefixes: (\d+) trained, (\d+) known', text).groups()
  )
  assert 30 <= trained <= 33 and asked == trained + known and 3 * strings <= asked <= 4 * strings
  share = float(re.search(r'needed no training: (\S+)', text)[1])
  assert 0 < share < 1 and share == pytest.approx(known / asked, abs=0.006)
  assert int(re.search(r'different networks among the trained: (\d+)', text)[1]) == trained
  tree = re.search(r'(\d+) nodes, (\d+) trainings, (\d+) times', text).groups()
  assert tuple(map(int, tree)) == (trained, trained, asked)

  ends = re.findall(r'^(random|reinforce) +best (\S+), mean of the first 10 (\S+), of the last 10 (\S+)$', text, re.M)
  assert [name for name, *_ in ends] == ['random', 'reinforce']
  for _, best, *means in ends:
    assert float(means[0]) + 0.05 < float(means[1]) < float(best) and float(best) > 0.9
  # As the notebook says of first layers and of depth.
  rows = re.findall(r'^(conv|residual|average pool|max pool) first +(.*)$', text, re.M)
  means = {kind: [float(cell.split()[0]) for cell in re.findall(r'\S+ \(\d+\)', row)] for kind, row in rows}
  counts = [int(count) for _, row in rows for count in re.findall(r'\((\d+)\)', row)]
  assert trained + 30 <= sum(counts) <= trained + 33
  for pool in ('average pool', 'max pool'):
    assert all(mean + 0.05 < other for mean, other in zip(means[pool][:3], means['conv'][:3], strict=True))
  assert means['average pool'][0] < 0.2 and means['conv'] == sorted(means['conv'])
  drawn = [output.data for output in outputs if output.output_type in ('display_data', 'execute_result')]
  kinds = [kind for data in drawn for kind in ('image/png', 'text/html') if kind in data]
  assert kinds == ['text/html', 'image/png', 'image/png']
  tree_drawn = next(data['text/html'] for data in drawn if 'text/html' in data)
  assert '<svg' in tree_drawn and f'{trained} nodes' in tree_drawn


@pytest.mark.long
def test_shared_weights():
  text, outputs = printed('shared_weights.ipynb', ROOT / 'notebooks')
  assert '491,520 cells with 41,511 weights' in text
  assert re.search(r'not 0: 0\.\d+ of those of the graph, 1.00 of those of the cell', text)
  assert 'matrices with a gradient: 5 of 15' in text
  # All random cells get better by steps that were never theirs.
  passes = [float(value) for value in re.findall(r'24 random cells is (\S+)', text)]
  assert passes == sorted(passes, reverse=True) and passes[0] > 90 and passes[-1] < 12
  assert 'and 0 of the 24 are among them' in text
  turns = {
    name: (float(first), float(last))
    for name, first, last in re.findall(r'^(random|reinforce) .*first turn (\S+), of the last (\S+);', text, re.M)
  }
  assert all(last > first + 3 for first, last in turns.values()) and turns['reinforce'][1] > turns['random'][1] + 1
  means = dict(re.findall(r'^ten cells of (random|reinforce) .*by the weights of (.*)$', text, re.M))
  random, reinforce = ([float(value) for value in re.findall(r'\d+\.\d', means[name])] for name in turns)
  # Each search's weights are best for its own cells, but the controller's cells are good by both.
  assert random[0] > random[1] and reinforce[1] > reinforce[0] > random[0]
  again, *shared = (float(value) for value in re.findall(r'^tau of training alone.*?: (\S+?);?(?: |$)', text, re.M))
  assert again > 0.6 and len(shared) == 2 and max(shared) < again - 0.2
  assert int(re.search(r'(\d+) times as long', text)[1]) > 10
  alone = dict(re.findall(r'^the best of ten by (.*?) +trained alone, reward (\S+)', text, re.M))
  drawn = float(re.search(r'^24 random cells, trained alone, reward (\S+)', text, re.M)[1])
  assert float(alone['training alone']) > drawn + 1 and abs(float(alone['weights of reinforce']) - drawn) < 1.5
  kinds = [kind for output in outputs for kind in output.get('data', {}) if kind == 'image/png']
  assert len(kinds) == 5


def test_without_the_package_a_notebook_says_how_to_get_it(tmp_path, monkeypatch):
  notebook = nbformat.read(NOTEBOOKS[0], as_version=4)
  monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
  monkeypatch.chdir(tmp_path)
  with pytest.raises(ModuleNotFoundError, match='pip install'):
    exec(notebook.cells[1].source, {})
