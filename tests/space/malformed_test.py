"""Architecture files are data: for any content, a reader returns an architecture or raises a one-line error."""

import ast
import json
import pathlib

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
import pytest

from nas_jax import published, space
from nas_jax.report import rankings

ROOT = pathlib.Path(__file__).parents[2]
TREE, CONV, CHAIN = space.tree_cell_space(8), space.conv_space(4), space.chain_space(('conv 2 3 1', 'max pool 2 2'), 3)
MACRO, MICRO, RNN = space.enas_macro_space(4), space.enas_micro_space(2), space.enas_rnn_space(3)
CHOICE = space.choice_space({'edge': ('none', 'skip'), 'width': ('16', '32')})


def zeros(made):
  return made.to_json(made.decode([0] * made.length))


def record(made):
  return rankings.best_json(made, {'id': 3, 'tokens': [0] * made.length, 'reward': 0.5, 'failed': None})


# Readers, and texts that they take.
READERS = {
  'tree': (space.tree.tree_from_json, TREE.to_json(published.NASCELL)),
  'conv': (space.conv.conv_from_json, zeros(CONV)),
  'chain': (space.chain.chain_from_json, zeros(CHAIN)),
  'macro': (space.enas.macro_from_json, zeros(MACRO)),
  'micro': (space.enas.micro_from_json, zeros(MICRO)),
  'rnn': (space.enas.rnn_from_json, zeros(RNN)),
  **{f'any {made.kind}': (space.from_json, record(made)) for made in (TREE, CONV, CHAIN, MACRO, MICRO, RNN, CHOICE)},
  'own space': (TREE.from_json, TREE.to_json(published.NASCELL)),
  'kind': (space.kind_of, record(CONV)),
  **{f'space of {made.kind}': (space.space_of, record(made)) for made in (TREE, CONV, CHAIN, MACRO, MICRO, RNN)},
}
SCALARS = st.one_of(
  st.none(), st.booleans(), st.integers(-3, 40), st.integers(), st.floats(), st.text(max_size=5),
  st.sampled_from([2**31, 2**63, -1, 10**30, 1e300, 'add', 'tree_cell', '../../etc/passwd']),
)  # fmt: skip
VALUES = st.recursive(
  SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
)


def places(value, path=()):
  """Paths to all that a JSON value holds."""
  yield path
  inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
  for key, each in inner:
    yield from places(each, (*path, key))


@st.composite
def malformed(draw, text):
  """Draws a damaged text: values are replaced, removed, doubled or added, or characters are lost or changed."""
  value = json.loads(text)
  for _ in range(draw(st.integers(1, 3))):
    path = draw(st.sampled_from(list(places(value))))
    what = draw(st.sampled_from(['replace', 'remove', 'double', 'add']))
    if not path:
      value = draw(VALUES) if what == 'replace' else value
      continue
    holder = value
    for key in path[:-1]:
      holder = holder[key]
    if what == 'replace':
      holder[path[-1]] = draw(VALUES)
    elif what == 'remove':
      del holder[path[-1]]
    elif what == 'double' and isinstance(holder, list):
      holder.insert(path[-1], holder[path[-1]])
    elif isinstance(holder, dict):
      holder[draw(st.text(max_size=5))] = draw(VALUES)
  found = json.dumps(value)
  if draw(st.booleans()):
    return found
  start = draw(st.integers(0, len(found)))
  return found[:start] + draw(st.text(max_size=3)) + found[start + draw(st.integers(0, 20)) :]


def look_at(name, examples):
  read, text = READERS[name]
  read(text)  # the sound one

  @settings(
    max_examples=examples, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
  )
  @given(malformed(text))
  def each(found):
    try:
      read(found)
    except ValueError as error:
      assert str(error) and '\n' not in str(error)

  each()


@pytest.mark.parametrize('name', READERS)
def test_a_malformed_file_is_one_line(name):
  look_at(name, 60)


@pytest.mark.long
@pytest.mark.parametrize('name', READERS)
def test_ten_thousand_malformed_files(name):
  look_at(name, -(-10_000 // len(READERS)))


def test_nothing_that_is_read_is_run():
  """No module can unpickle or evaluate, and NumPy is told not to."""
  for folder in ('nas_jax', 'experiments'):
    for path in (ROOT / folder).rglob('*.py'):
      for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import | ast.ImportFrom):
          names = {alias.name.split('.')[0] for alias in node.names} | {
            (getattr(node, 'module', '') or '').split('.')[0]
          }
          assert not names & {'pickle', 'cloudpickle', 'dill', 'shelve', 'marshal', 'yaml', 'joblib'}, path
        if isinstance(node, ast.Call):
          name = getattr(node.func, 'id', getattr(node.func, 'attr', ''))
          assert not (isinstance(node.func, ast.Name) and name in ('eval', 'exec', 'compile', '__import__')), path
          if name == 'load' and getattr(getattr(node.func, 'value', None), 'id', '') == 'np':
            assert any(each.arg == 'allow_pickle' and each.value.value is False for each in node.keywords), path
