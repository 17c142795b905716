"""The notebooks: their stored cells, and that they run from their own folder and from that of the repository."""

import json
import pathlib
import re
import subprocess
import sys

import jax
from matplotlib import pyplot as plt
import nbclient
import nbformat
import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / 'notebooks').glob('*.ipynb'))


@pytest.fixture(autouse=True)
def optimized(monkeypatch):
  """Notebooks compute more than they compile, so their kernels use XLA's default optimization."""
  monkeypatch.delenv('XLA_FLAGS')


def printed(name, folder):
  """Returns the output of a notebook that is run in `folder`, in its own process."""
  notebook = nbformat.read(ROOT / 'notebooks' / name, as_version=4)
  client = nbclient.NotebookClient(notebook, timeout=300, resources={'metadata': {'path': str(folder)}})
  client.execute()
  outputs = [output for cell in notebook.cells if cell.cell_type == 'code' for output in cell.outputs]
  assert not [output.text for output in outputs if output.get('name') == 'stderr' and 'Warning' in output.text]
  return ''.join(output.text for output in outputs if output.get('name') == 'stdout'), outputs


@pytest.mark.parametrize('path', NOTEBOOKS, ids=[path.name for path in NOTEBOOKS])
def test_notebooks_can_be_read_on_a_page(path):
  """All cells have run in order and their outputs are stored, without traces of a machine; pictures have alt text."""
  notebook = nbformat.read(path, as_version=4)
  nbformat.validate(notebook)
  code = [cell for cell in notebook.cells if cell.cell_type == 'code']
  assert set(notebook.metadata) == {'kernelspec', 'language_info'}
  assert {key for cell in notebook.cells for key in cell.metadata} == set()
  # All begin by finding the package, in the same words.
  assert code[0].source == nbformat.read(NOTEBOOKS[0], as_version=4).cells[1].source
  assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
  assert all(cell.outputs for cell in code if re.search(r'^(print|show|display)\(', cell.source, re.MULTILINE))
  outputs = [output for cell in code for output in cell.outputs]
  assert {'stream', 'display_data'} & {output.output_type for output in outputs}
  assert not [output for output in outputs if output.output_type == 'error' or output.get('name') == 'stderr']
  stored = ''.join(json.dumps(output.get('text', output.get('data'))) for output in outputs)
  assert not re.findall(r'/(?:tmp|root|home|opt|work|usr)/|it/s\]', stored)
  for output in outputs:
    if 'image/png' in output.get('data', {}):
      assert len(output.metadata['image/png']['alt']) > 20 and len(output.data['image/png']) < 150_000


def test_every_picture_is_shown_in_words_too():
  for path in NOTEBOOKS:
    text = '\n'.join(cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == 'code')
    assert 'plt.show()' not in text and ('plt.' not in text or 'show(' in text)


def test_running_means_stand_at_the_last_child_that_they_are_over():
  notebook = nbformat.read(ROOT / 'notebooks' / 'many_devices.ipynb', as_version=4)
  (source,) = [cell.source for cell in notebook.cells if 'left.plot' in cell.source]
  ramp = np.tile(np.arange(1, 151), (2, 1))  # two searches of 150 children
  scope = {'plt': plt, 'np': np, 'children': 150, 'runs': {1: {'reward': ramp, 'time': ramp}}, 'show': lambda alt: None}
  exec(source, scope)
  for ax in scope['figure'].axes:
    (line,) = ax.get_lines()
    # The mean of the children 51 to 150, and the end of the last of them.
    assert (line.get_xdata()[0], line.get_xdata()[-1], line.get_ydata()[-1]) == pytest.approx((100, 150, 100.5))
  plt.close(scope['figure'])


@pytest.mark.long
def test_your_model():
  text, outputs = printed('your_model.ipynb', ROOT)
  assert 'h_t = tanh(c_t * a13)' in text and 'Flax it loaded []' in text and '(3, 5, 4)' in text
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
  sizes = re.search(r'with (\S+) weights', text)[1], re.search(r'uses (\S+),', text)[1]
  every, one = (int(size.replace(',', '')) for size in sizes)
  # Of 15 matrices for pairs, [32, 64] each, a cell of six nodes has 5.
  assert '491,520 cells' in text and every - one == 10 * 32 * 64 and 'matrices with a gradient: 5 of 15' in text
  of_graph, of_cell = map(float, re.search(r'not 0: (\S+) of those of the graph, (\S+) of', text).groups())
  # The cell also has W and U, [32, 64] each: 7 of 17. Of its own hardly an entry is 0.
  assert of_cell > 0.95 and of_graph == pytest.approx(of_cell * 7 / 17, abs=0.01)

  curve = [(float(mean), float(worst)) for mean, worst in re.findall(r'cells is (\S+), the worst (\S+)$', text, re.M)]
  means = [mean for mean, _ in curve]
  assert len(curve) == 6 and means == sorted(means, reverse=True) and curve[-1][1] < means[1]
  assert means[0] == pytest.approx(int(re.search(r'know nothing is (\d+)', text)[1]), rel=0.05)
  assert 'and 0 of the 24 are among them' in text

  ends = re.findall(r'^(random|reinforce) +mean reward of the first turn (\S+), of the last (\S+);', text, re.M)
  turns = {name: (float(first), float(last)) for name, first, last in ends}
  # Both rise, the controller's more; nobody has learned anything in the first turn.
  assert abs(turns['random'][0] - turns['reinforce'][0]) < 0.5
  assert turns['random'][0] + 3 < turns['random'][1] < turns['reinforce'][1] - 1
  different = [int(count.replace(',', '')) for count in re.findall(r'1,440 cells in .*, (\S+) of them different', text)]
  assert 0.25 * 1440 < different[1] < 0.8 * 1440 and 1400 < different[0] <= 1440  # it repeats itself
  skipped = [int(count) for count in re.findall(r'(\d+) minibatches left out', text)]
  assert len(skipped) == 2 and max(skipped) < 50

  tens = re.findall(r'ten cells of (\w+) .*weights of random (\S+), of reinforce (\S+)', text)
  by = {name: (float(random), float(reinforce)) for name, random, reinforce in tens}
  # Of the distance between the two tens, each by its own weights, less than half is left by those of random search.
  assert 0 < by['reinforce'][0] - by['random'][0] < (by['reinforce'][1] - by['random'][0]) / 2
  assert by['random'][1] < by['random'][0] - 1

  rows = re.findall(r'^(trained alone|trained alone again|weights of \w+) +((?:[\d.-]+ *){6})$', text, re.M)
  table = {name: [float(value) for value in row.split()] for name, row in rows}
  assert list(table) == ['trained alone', 'trained alone again', 'weights of random', 'weights of reinforce']
  again, random, reinforce = (table[name] for name in list(table)[1:])
  assert again[-1] > 0.7 and max(random[-1], reinforce[-1]) < again[-1] - 0.3
  # Identity, tanh, sigmoid, relu: the heaps, and what is best alone.
  first = re.search(r'the best of reinforce.*\n.*\nh_0 = c_0 \* (\w+)', text)[1]
  place = ('identity', 'tanh', 'sigmoid', 'relu').index(first)
  assert min(random[:2] + random[3:4]) > random[2] + 1 and reinforce[place] > 3 + max(np.delete(reinforce[:4], place))
  assert np.argmax(table['trained alone'][:4]) == np.argmax(again[:4]) == 0 != place

  assert int(re.search(r', (\d+) times as long', text)[1]) > 10 and 'what the search took is' in text
  four = re.findall(r'^best of ten by ([\w ]+?) +four trainings alone: (.*)$', text, re.M)
  alone = {name: [float(reward) for reward in row.split(', ')] for name, row in four}
  mean = float(re.search(r'one training alone each: (\S+)', text)[1])
  assert mean < np.mean(alone['weights of reinforce']) < max(alone['training alone']) < by['reinforce'][1]
  # Trainings that blow up earn 0. Which do so depends on rounding, but no winner is a cell of which all do.
  assert all(len(row) == 4 and max(row) > mean / 2 and min(row) >= 0 for row in alone.values())
  drawn = [output.data for output in outputs if output.output_type in ('display_data', 'execute_result')]
  assert ['image/png' in data for data in drawn] == [True] * 5


@pytest.mark.long
def test_from_search_to_model():
  text, outputs = printed('from_search_to_model.ipynb', ROOT)
  assert "'kind': 'conv'" in text and 'nas_jax is loaded: False' in text
  assert float(re.search(r'of the test images it gets (\S+) right', text)[1]) > 0.85
  before, after = map(float, re.search(r'mirrored digits: (\S+) right before, (\S+) after', text).groups())
  assert before < 0.75 < after - 0.1
  assert float(re.search(r'greatest difference of a probability: (\S+)', text)[1]) < 1e-5
  assert 'import flax' in text and 'nas_jax' not in text[text.index('import flax') :]
  ten, two = (int(count.replace(',', '')) for count in re.findall(r': (\S+) weights', text))
  assert ten > two
  kinds = [kind for output in outputs for kind in ('image/png', 'text/html') if kind in output.get('data', {})]
  assert kinds == ['text/html', 'image/png']


@pytest.mark.long
def test_many_devices():
  text, _ = printed('many_devices.ipynb', ROOT / 'notebooks')
  assert float(re.search(r'share of the best reward: (\S+)', text)[1]) < 1e-3
  assert 'to the bit the same rewards: True' in text and 'two processes: 8 children' in text
  found = re.findall(r'replicas: +(\d+), updates behind: +(\S+), .*: +(\S+) trainings', text)
  counts, behind, times = (np.array(column, float) for column in zip(*found, strict=True))
  np.testing.assert_allclose(behind, counts - 1, rtol=0.05, atol=1e-9)
  np.testing.assert_allclose(times * counts, times[0], rtol=0.1)


def test_the_first_cell_clones_what_is_missing_and_leaves_jax_alone(tmp_path):
  """The cell runs in an empty folder, as on Colab, with a made-up repository and a fake pip."""
  source = nbformat.read(NOTEBOOKS[0], as_version=4).cells[1].source
  (address,) = re.findall(r"^address = '(.*)'", source, re.MULTILINE)
  origin = tmp_path / 'origin'
  (origin / 'nas_jax').mkdir(parents=True)
  (origin / 'nas_jax' / '__init__.py').write_text('cloned = True\n')
  git = ('git', '-C', origin, '-c', 'user.name=a', '-c', 'user.email=a@b')
  for command in (('init', '-q'), ('add', '-A'), ('commit', '-qm', 'a')):
    subprocess.run([*git, *command], check=True)
  watched = """
import importlib.util, subprocess
there, run, ran = importlib.util.find_spec, subprocess.run, []
importlib.util.find_spec = lambda name: None if name in ('optax', 'sklearn') else there(name)
subprocess.run = lambda command, check: ran.append(command[1:]) or (command[0] == 'git' and run(command, check=check))
"""
  shown = (
    "import jax, nas_jax\nprint(nas_jax.cloned, [word for word in ran[-1] if word != '-m'], len(ran), jax.__version__)"
  )
  (tmp_path / 'cell.py').write_text('\n'.join([watched, source.replace(address, origin.as_uri()), shown]))
  for ran in (2, 1):  # the second time the clone is there
    done = subprocess.run([sys.executable, 'cell.py'], cwd=tmp_path, capture_output=True, text=True, check=False)
    asked = ['pip', 'install', '--quiet', 'optax', 'scikit-learn', f'jax=={jax.__version__}']
    assert done.stdout == f'True {asked} {ran} {jax.__version__}\n', done.stderr


def test_the_first_cell_does_nothing_in_a_checkout():
  source = nbformat.read(NOTEBOOKS[0], as_version=4).cells[1].source
  watched = 'import subprocess\nsubprocess.run = None\n'
  for folder in (ROOT, ROOT / 'notebooks'):
    command = [sys.executable, '-c', watched + source + '\nimport nas_jax; print(nas_jax.__file__)']
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == str(ROOT / 'nas_jax' / '__init__.py'), done.stderr
