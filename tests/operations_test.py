"""Each operation, built in or the user's own, is the same in every cell, program, text, drawing and file."""

import json
import pathlib
import pickle
import re
import shutil
import subprocess
import sys

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import testing

from experiments.common import final_choice, reports, workdirs
from experiments.common.systems import CELL
from nas_jax import config, operations, space, tree_cell
from nas_jax.draw import enas as draw_enas
from nas_jax.draw import tree as draw_tree
from nas_jax.nn import enas_cell
from nas_jax.operations import ACTIVATIONS, COMBINATIONS, Operation, Operations
from nas_jax.report import rankings
from nas_jax.search import journal
from nas_jax.space import RnnArch, TreeArch
from nas_jax.systems import cell, enas_rnn, retrain, retrain_cell
from nas_jax.training import full_training

ROOT = pathlib.Path(__file__).parent.parent
B, IN, H = 3, 2, 4

# A user's own operations: with and without a name in JAX, an operator and a symmetry.
SWISH = Operation('swish', lambda x: x * jax.nn.sigmoid(2.0 * x), 'lambda x: x * jax.nn.sigmoid(2.0 * x)')
SOFTSIGN = Operation('softsign', jax.nn.soft_sign, 'jax.nn.soft_sign')
SUB = Operation('sub', jnp.subtract, 'jnp.subtract', infix='-', sign='−')
GATE = Operation('gate', lambda a, b: a * jax.nn.sigmoid(b), 'lambda a, b: a * jax.nn.sigmoid(b)')
OWN = {'combine': (SUB, GATE), 'activate': (SWISH, SOFTSIGN)}
SUB_ID, SWISH_ID = len(COMBINATIONS), len(ACTIVATIONS)  # where they are the first of the user's own

EVERY = [
  *(('combine', operation) for operation in (*COMBINATIONS, *OWN['combine'])),
  *(('activate', operation) for operation in (*ACTIVATIONS, *OWN['activate'])),
]


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


# Written by hand; an operation that is missing here is compared with its own function.
NUMPY = {
  'add': np.add, 'mult': np.multiply, 'max': np.maximum, 'sub': np.subtract, 'gate': lambda a, b: a * sigmoid(b),
  'identity': lambda x: x, 'tanh': np.tanh, 'sigmoid': sigmoid, 'relu': lambda x: np.maximum(x, 0), 'sin': np.sin,
  'gelu': lambda x: x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2,
  'mish': lambda x: x * np.tanh(np.log1p(np.exp(x))),
  'swish': lambda x: x * sigmoid(2 * x), 'softsign': lambda x: x / (1 + np.abs(x)),
}  # fmt: skip


def by_hand(kind, held, chosen):
  operation = operations.find(kind, held, chosen)
  return NUMPY.get(operation.name, operation.function)


def traced(arch):
  return jax.tree.map(lambda ids: ids[0], space.stack([arch]))


def normal(seed, *shape):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def assert_close(found, wanted):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12), found, wanted)


def cells_with(kind, operation):
  """Returns a small space whose last operation is `operation`, and its cells that have it at each place."""
  given = {'combine': ('add', 'mult'), 'activate': ('identity', 'tanh', 'sigmoid')}
  given[kind] = (*(name for name in given[kind] if name != operation.name), operation)
  cells, rng = space.tree_cell_space(2, **given), np.random.default_rng(0)
  archs = []
  for place in [i for i, slot in enumerate(cells.slots) if slot.name == kind] * 2:
    tokens = rng.integers([slot.width for slot in cells.slots])
    tokens[place] = cells.slots[place].width - 1
    archs.append(cells.decode(tokens))
  return cells, archs


def interpret(arch, held, xs, hs, c):
  """Returns (c_t, h_t) of a cell of two leaves, written after the text of Zoph & Le (2017) Sec. 3.4."""
  after = []
  for node, pair in enumerate([*zip(xs, hs), None]):
    before = by_hand('combine', held, arch.combine[node])(*(pair or after))
    if node == arch.index[0]:
      c_t = before
    after.append(by_hand('activate', held, arch.activate[node])(before))
    if node == arch.index[1]:
      joined = by_hand('combine', held, arch.inject[0])(after[-1], c)
      after[-1] = by_hand('activate', held, arch.inject[1])(joined)
  return c_t, after[-1]


def evaluated(equations, values):
  """Evaluates equations by NumPy. Terms such as W0 x are looked up in `values` under these names."""
  values = NUMPY | values
  for line in equations.splitlines():
    name, expression = line.split(' = ')
    values[name] = eval(re.sub(r'([WUV]\w*) (x|h\w*)', r'\1(\2)', expression), values)
  return values


@pytest.mark.parametrize('kind, operation', EVERY, ids=[operation.name for _, operation in EVERY])
def test_in_a_tree_cell(x64, kind, operation):
  cells, archs = cells_with(kind, operation)
  held = cells.operations
  params = {'kernel': normal(0, IN, 2 * H), 'recurrent_kernel': normal(1, H, 2 * H)}
  (c, h), x = (normal(2, B, H), normal(3, B, H)), normal(4, B, IN)
  xs, hs = np.split(x @ params['kernel'], 2, -1), np.split(h @ params['recurrent_kernel'], 2, -1)
  program = jax.jit(lambda arch: tree_cell.apply(params, arch, (c, h), x, operations=held)[0])
  for arch in archs:
    wanted = interpret(arch, held, xs, hs, np.asarray(c))
    assert_close(tree_cell.apply(params, arch, (c, h), x, operations=held)[0], wanted)
    assert_close(program(traced(arch)), wanted)

    file = {}
    exec(tree_cell.to_source(arch, held), file)
    with jax.numpy_rank_promotion('allow'):
      assert_close(file['step'](params, (c, h), x)[0], wanted)

    parts = {f'W{i}': part for i, part in enumerate(xs)} | {f'U{i}': part for i, part in enumerate(hs)}
    products = {name: lambda _, part=part: part for name, part in parts.items()}
    found = evaluated(tree_cell.equations(arch, held), products | {'x': None, 'h': None, 'c': np.asarray(c)})
    assert_close((found['c_t'], found['h_t']), wanted)

    boxes = [box.word for node in draw_tree.layout(arch, held).nodes for box in node]
    chosen = {'combine': (*arch.combine, arch.inject[0]), 'activate': (*arch.activate, arch.inject[1])}[kind]
    times = chosen.count(list(operations.by_id(kind, getattr(held, kind)))[-1])
    left_out = (kind, operation.name) == ('activate', 'identity')
    assert times > 0 and boxes.count(operation.label) == (0 if left_out else times)

    text = cells.to_json(arch)
    assert cells.from_json(text) == arch and space.from_json(text, operations=held) == arch
    assert (f'"{operation.name}"' in text) == (operation in OWN[kind])


@pytest.mark.parametrize('operation', (*ACTIVATIONS, *OWN['activate']), ids=lambda operation: operation.name)
def test_in_a_cell_of_enas(x64, operation):
  others = tuple(name for name in ('identity', 'tanh', 'sigmoid') if name != operation.name)
  cells = space.enas_rnn_space(2, (*others, operation))
  held, last = cells.operations, len(others)
  shared = enas_cell.init(jax.random.key(0), traced(RnnArch((0, 0), (0,))), IN, H)
  h, x = normal(0, B, H), normal(1, B, IN)
  program = jax.jit(lambda arch: enas_cell.unroll(shared, arch, h, x[None], operations=held)[0])
  for tokens in ([last, 0, 0], [0, 0, last], [last, 0, last]):
    arch = cells.decode(tokens)
    first, second = (by_hand('activate', held, chosen) for chosen in arch.activate)
    gate, value = np.split(x @ shared['kernel'] + h @ shared['recurrent_kernel'], 2, -1)
    h_0 = sigmoid(gate) * first(value) + (1 - sigmoid(gate)) * h
    gate, value = np.split(h_0 @ shared['nodes'][0], 2, -1)
    wanted = sigmoid(gate) * second(value) + (1 - sigmoid(gate)) * h_0
    assert_close(program(traced(arch)), wanted)
    own = enas_cell.own(shared, arch)
    assert_close(enas_cell.unroll(own, arch, h, x[None], operations=held)[0], wanted)

    products = {}
    for name, kernel in {'W?': shared['kernel'], 'U?': shared['recurrent_kernel'], 'V?_1': shared['nodes'][0]}.items():
      for gate, half in zip('ch', np.split(np.asarray(kernel), 2, -1)):
        products[name.replace('?', gate)] = lambda y, half=half: y @ half
    found = evaluated(enas_cell.equations(arch, held), {'x': np.asarray(x), 'h': np.asarray(h)} | products)
    assert_close(found['h_t'], wanted)
    labels = cells.slots[0].labels
    drawn = [box.word for box in draw_enas.layout(arch, held).boxes[:2]]
    assert drawn == [labels[tokens[0]], labels[tokens[2]]]
    assert space.from_json(cells.to_json(arch), operations=held) == cells.from_json(cells.to_json(arch)) == arch


@pytest.fixture(scope='module')
def searched():
  """A search over all operations, a batch of children that differ only in one operation, and their outcome."""
  given = {
    'combine': (*space.COMBINE, *OWN['combine']),
    'activate': (*space.ACTIVATE, *OWN['activate']),
  }
  cfg = testing.cell_config(m=len(EVERY), steps=20, **given)
  s = cell.build(cfg, testing.text())
  state = s.init(jax.random.key(0))
  batch = s.ask(state)
  tokens = np.zeros((len(EVERY), s.space.length), np.int32)
  for child, (kind, operation) in enumerate(EVERY):
    for place, slot in enumerate(s.space.slots):
      if slot.name == 'activate':
        tokens[child, place] = 1 + place % 3  # not identities alone
      if slot.name == kind:
        tokens[child, place] = slot.labels.index(operation.name)
  keys = jax.random.wrap_key_data(jnp.tile(jax.random.key_data(batch.keys[:1]), (len(EVERY), 1)))
  batch = batch._replace(tokens=jnp.asarray(tokens), archs=s.space.decode_batch(tokens), keys=keys)
  return cfg, s, state, batch, s.evaluate(batch)


@pytest.mark.long
def test_a_search_trains_a_child_of_each(searched):
  _, s, state, batch, outcome = searched
  perplexity = np.asarray(outcome.metrics['perplexity'])
  assert np.isfinite(perplexity).all() and len(set(perplexity.tolist())) == len(EVERY)
  after, _ = s.tell(state, batch, outcome)
  assert int(after.step) == 1


def test_a_best_json_names_them(searched):
  cfg, s, *_ = searched
  assert config.as_json(cfg)['activate'] == [*space.ACTIVATE, 'swish', 'softsign']
  tokens = [s.space.slots[i].width - 1 if s.space.slots[i].name == 'activate' else 3 for i in range(8)] + [0, 0]
  text = rankings.best_json(s.space, {'tokens': tokens, 'reward': 1.0, 'id': 0})
  assert json.loads(text)['arch'] | {'index': []} == {
    'combine': ['sub'] * 3, 'activate': ['softsign'] * 3, 'inject': ['sub', 'softsign'], 'index': [],
  }  # fmt: skip
  # The cell read does not depend on the order in which the user passes the operations.
  held = Operations(combine=(GATE, SUB), activate=(SOFTSIGN, SWISH))
  arch = space.from_json(text, operations=held)
  assert arch == TreeArch((SUB_ID + 1,) * 3, (SWISH_ID,) * 3, (SUB_ID + 1, SWISH_ID), (0, 0))
  assert tree_cell.equations(arch, held) == tree_cell.equations(s.space.decode(tokens), s.space.operations)
  again = space.space_of(text, held)
  assert again.slots == s.space.slots and again.decode(tokens) == s.space.decode(tokens)
  by_name = {'combine': ['add', 0, 'mult'], 'activate': ['sin'] * 3, 'inject': ['max', 0], 'index': [0, 0]}
  assert space.from_json(json.dumps({'kind': 'tree_cell', 'arch': by_name})) == TreeArch(
    (0, 0, 1), (4,) * 3, (2, 0), (0, 0)
  )
  for read in (space.from_json, space.space_of, space.tree_cell_space(2).from_json):
    with pytest.raises(ValueError, match="'s(ub|oftsign)'.*hand(ed)? in.* an Operation") as error:
      read(text)
    assert '\n' not in str(error.value)


def test_a_search_of_enas_takes_them():
  cfg = testing.rnn_config(activate=('tanh', SWISH))
  cells = enas_rnn.make_problem(cfg, testing.text()).space
  assert cells.slots[0].labels == ('tanh', 'swish')
  assert cells.decode([1, 0, 1, 1, 0]).activate == (SWISH_ID, SWISH_ID, 1)


def test_in_the_cells_of_flax():
  held, arch = Operations(activate=(SWISH,)), TreeArch((0, 1, 0), (SWISH_ID, 3, 2), (0, SWISH_ID), (1, 0))
  x, carry = normal(0, B, IN), (jnp.ones((B, H)),) * 2
  linen = tree_cell.TreeCell(H, arch, operations=held)
  variables = linen.init(jax.random.key(0), carry, x)
  wanted = tree_cell.apply(variables['params'], arch, carry, x, operations=held)
  np.testing.assert_array_equal(linen.apply(variables, carry, x)[1], wanted[1])
  hash(linen)
  module = tree_cell.NNXTreeCell(IN, H, arch, operations=held, rngs=nnx.Rngs(0))
  params = {name: value[...] for name, value in nnx.state(module, nnx.Param).items()}
  ys = nnx.RNN(module, time_major=True)(x[None])
  found = tree_cell.unroll(params, arch, (jnp.zeros((B, H)),) * 2, x[None], operations=held)[1]
  np.testing.assert_allclose(ys, found, rtol=1e-6)


# Activations of two cells of four leaves: a, b, c, d, then those of (a, b) and (c, d), then the root's.
@pytest.mark.parametrize(
  'one, other',
  [
    ((0, 1, 2, 3, 0, 0, 0), (1, 0, 2, 3, 0, 0, 0)),
    ((0, 1, 2, 3, 0, 0, 0), (2, 1, 0, 3, 0, 0, 0)),
    ((0, 1, 2, 3, 0, 1, 0), (2, 3, 0, 1, 1, 0, 0)),
  ],
  ids=['leaves of one node', 'leaves of two nodes', 'subtrees'],
)
@pytest.mark.parametrize('operation', COMBINATIONS + OWN['combine'], ids=lambda operation: operation.name)
def test_what_changes_places_where_a_combination_is_symmetric(operation, one, other):
  (chosen,) = operations.by_id('combine', (operation,))
  forms = {space.canonical(TreeArch((chosen,) * 7, activate, (chosen, 0), (6, 6))) for activate in (one, other)}
  assert len(forms) == (1 if operation.symmetric else 2)


def test_an_operator_stands_between_its_operands():
  over = Operation('over', jnp.divide, 'jnp.divide', infix='/')
  cells = space.tree_cell_space(2, (over, 'add'))
  lines = tree_cell.equations(cells.decode([0, 0, 1, 0, 0, 0, 1, 0, 0, 2]), cells.operations).splitlines()
  assert lines == ['c_t = (W0 x) / (U0 h)', 'a1 = W1 x + U1 h', 'h_t = (c_t / a1) + c']


def test_the_ids_that_are_promised():
  assert [operation.name for operation in COMBINATIONS[:3]] == ['add', 'mult', 'max']
  assert [operation.name for operation in ACTIVATIONS[:5]] == ['identity', 'tanh', 'sigmoid', 'relu', 'sin']
  names = [operation.name for _, operation in EVERY]
  assert len(set(names)) == len(names)


@pytest.mark.parametrize(
  'kind, given, says',
  [
    ('activate', ('gelux',), r"activate .*'gelux'.* hand in one of your own as an Operation"),
    ('activate', (SWISH, SWISH), 'each once'),
    ('activate', (SWISH._replace(name='tanh'),), "'tanh' must have a name"),
    ('activate', (SWISH._replace(name='my swish'),), "'my swish' must have a name that is a Python identifier"),
    ('activate', (SWISH._replace(function=None),), "'swish' has the function None"),
    ('activate', (SWISH._replace(source='x *'),), "'swish' has the source 'x .'"),
    ('activate', (SWISH._replace(source='lambda x: np.cos(x)'),), 'reads np: it may read jax and jnp'),
    ('activate', (SWISH._replace(name='max'),), "'max' must have a name"),  # that of a combination
    ('combine', (SUB._replace(infix='\u2212'),), "has the infix '.': want an operator of Python"),
    ('combine', (SUB._replace(infix='+ 1 -'),), 'want an operator of Python'),
    ('combine', (SUB, 'tanh'), 'combine'),
  ],
)
def test_what_cannot_be_used_is_refused(kind, given, says):
  with pytest.raises(ValueError, match=says) as error:
    space.tree_cell_space(2, **{kind: given})
  assert '\n' not in str(error.value)


def test_an_id_without_its_operation_is_refused():
  arch = TreeArch((0, 0, 0), (SWISH_ID, 0, 0), (0, 0), (0, 0))
  params = tree_cell.init(jax.random.key(0), arch, IN, H)
  for use in (
    tree_cell.equations,
    tree_cell.to_source,
    draw_tree.svg,
    lambda arch: tree_cell.apply(params, arch, (jnp.ones((B, H)),) * 2, jnp.ones((B, IN))),
    lambda arch: enas_cell.equations(RnnArch((SWISH_ID,), ())),
  ):
    with pytest.raises(ValueError, match=f'activate {SWISH_ID} .* hand in the operations of its space') as error:
      use(arch)
    assert '\n' not in str(error.value)


@pytest.fixture(scope='module')
def own_space():
  """A search with a user's own operation, and a cell of its space that has it."""
  cfg = testing.cell_config(activate=('tanh', SWISH), final_children=1)
  made = cell.make_space(cfg)
  return cfg, made, made.decode(np.array([0, 1, 0, 1, 0, 1, 0, 1, 0, 0][: made.length]))


def test_a_cell_with_an_operation_of_ones_own_is_trained_to_the_end(own_space):
  cfg, made, arch = own_space
  recipe, text = testing.retrain_config(), testing.text()
  assert SWISH_ID in arch.activate
  with pytest.raises(ValueError, match=f'activate {SWISH_ID} .* hand in the operations of its space'):
    retrain_cell.validate(recipe, text, arch)
  task = retrain_cell.task(recipe, text, arch, '4', 1, operations=made.operations)
  points = retrain_cell.hyperparameters(retrain.grid(retrain_cell.Point, recipe)[:1])
  progress, settings, keys = full_training.start(task, points, jax.random.split(jax.random.key(0), 1), 1)
  assert np.isfinite(full_training.run(task, progress, settings, keys).curve[0, 0])
  with pytest.raises(ValueError, match=r'final_children \(=1\): swish is an operation of your own'):
    final_choice.of(CELL, cfg, text)


def test_a_report_of_a_search_with_an_operation_of_ones_own(own_space, tmp_path):
  cfg, made, arch = own_space
  workdirs.open_config(str(tmp_path), cfg)
  child = {'id': 0, 'tokens': made.encode(arch).tolist(), 'reward': 1.0, 'perplexity': 5.0, 'failed': None}
  journal.writer(str(tmp_path / 'children.jsonl'))([child | {'seconds': 1.0}])
  assert 'swish(' in reports.make(str(tmp_path), cfg)
  with pytest.raises(ValueError, match='hand in one of your own as an Operation') as error:
    reports.make(str(tmp_path))  # config.json has its name alone
  assert '\n' not in str(error.value)


@pytest.mark.long
def test_one_more_line_is_one_more_operation(tmp_path):
  """A copy of the package with one line added to the table of activations passes the tests above for it."""
  for folder in ('nas_jax', 'experiments'):
    shutil.copytree(ROOT / folder, tmp_path / folder)
  for name in ('conftest.py', 'testing.py', 'operations_test.py'):
    (tmp_path / name).write_text((ROOT / 'tests' / name).read_text())
  path = tmp_path / 'nas_jax' / 'operations.py'
  head, tail = path.read_text().split('ACTIVATIONS = (\n', 1)
  table, rest = tail.split(')\n\n', 1)
  path.write_text(f"{head}ACTIVATIONS = (\n{table}  Operation('mish', jax.nn.mish, 'jax.nn.mish'),\n)\n\n{rest}")
  names = 'test_in_a_tree_cell[mish]', 'test_in_a_cell_of_enas[mish]', 'test_a_search_trains_a_child_of_each'
  done = subprocess.run(
    [sys.executable, '-m', 'pytest', '-q', *(f'operations_test.py::{name}' for name in names)],
    cwd=tmp_path, capture_output=True, text=True, timeout=300,
  )  # fmt: skip
  assert '3 passed' in done.stdout, done.stdout + done.stderr


def test_a_combination_and_an_activation_of_one_name_are_refused():
  same = SWISH._replace(name=SUB.name)
  for make in (
    lambda: space.tree_cell_space(2, ('add', SUB), ('tanh', same)),
    lambda: operations.with_built_in(Operations((SUB,), (same,))),
  ):
    with pytest.raises(ValueError, match=f'are both called {SUB.name!r}: give one of them another name') as error:
      make()
    testing.one_line(error)


SQUARE_ROOT = Operation('root', lambda x: jnp.sqrt(jnp.abs(x)), 'lambda x: jnp.sqrt(jnp.abs(x))')
DIV = Operation('div', jnp.divide, 'jnp.divide', infix='/')


def test_an_operation_that_is_not_chosen_does_not_touch_the_gradient(x64):
  """At h = 0 the root and the quotient have infinite derivatives, and this cell has neither of them."""
  cells = space.tree_cell_space(2, ('add', 'mult', DIV), ('tanh', 'sigmoid', SQUARE_ROOT))
  arch = cells.decode([1, 0, 0, 1, 0, 0, 1, 0, 1, 0])
  params = {'kernel': normal(0, IN, 2 * H), 'recurrent_kernel': normal(1, H, 2 * H)}
  carry, xs = (jnp.zeros((B, H)), jnp.zeros((B, H))), normal(2, 3, B, IN)

  def gradient(arch, hoist=True):
    def loss(params):
      return tree_cell.unroll(params, arch, carry, xs, hoist=hoist, operations=cells.operations)[1].sum()

    return jax.grad(loss)(params)

  for hoist in (True, False):
    assert_close(jax.tree.leaves(gradient(traced(arch), hoist)), jax.tree.leaves(gradient(arch)))


def test_an_activation_that_is_not_chosen_does_not_touch_the_gradient_of_a_cell_of_enas(x64):
  cells = space.enas_rnn_space(2, ('tanh', SQUARE_ROOT))
  arch = cells.decode([0, 0, 0])
  params = enas_cell.init(jax.random.key(0), arch, IN, H)  # of two nodes, hence the same for all cells

  def gradient(arch):
    def loss(params):
      carry, xs = jnp.zeros((B, H)), jnp.zeros((3, B, IN))
      return enas_cell.unroll(params, arch, carry, xs, operations=cells.operations)[1].sum()

    return jax.tree.leaves(jax.grad(loss)(params))

  assert_close(gradient(traced(arch)), gradient(arch))


def test_spaces_and_cells_can_be_pickled():
  soft = Operation('softsign', np.abs, 'jnp.abs')  # a function that pickle finds by its name
  cells = space.tree_cell_space(2, activate=('tanh', 'sigmoid', soft))
  found = pickle.loads(pickle.dumps(cells))
  arch = cells.decode([0] * cells.length)
  assert found.operations == cells.operations and found.decode([0] * cells.length) == arch
  for held in (*COMBINATIONS, *ACTIVATIONS, soft):
    assert pickle.loads(pickle.dumps(held)) == held
  linen = tree_cell.TreeCell(H, arch)
  assert pickle.loads(pickle.dumps(linen)) == linen
  module = tree_cell.NNXTreeCell(IN, H, arch, rngs=nnx.Rngs(0))
  x, carry = normal(0, B, IN), (jnp.ones((B, H)),) * 2
  np.testing.assert_array_equal(pickle.loads(pickle.dumps(module))(carry, x)[1], module(carry, x)[1])
