import itertools
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from testing import LAYERED, SIZES, SPACES, TinyArch, one_line, random_tokens, strings

from nas_jax import published, tree_cell
from nas_jax.operations import ADD, IDENTITY, MAX, MULT, RELU, SIGMOID, SIN, TANH, by_id
from nas_jax.space import ACTIVATE, COMBINE, TreeArch, tree, tree_cell_space
from nas_jax.space.base import canonical, is_static, stack, unstack
from nas_jax.space.choice import ChoiceArch, choice_space
from nas_jax.space.tree import leaves

# The base-2 cell that Zoph & Le (2017) work through in Fig. 5, as they emit it:
# a0 = tanh(W0 x + U0 h), a1 = relu((W1 x) * (U1 h)), a2 = sigmoid(a0' * a1); a0' = relu(a0 + c); c_t from 1, c into 0.
FIGURE_5 = TreeArch((ADD, MULT, MULT), (TANH, RELU, SIGMOID), (ADD, RELU), (1, 0))
FIGURE_5_TOKENS = [ADD, TANH, MULT, RELU, MULT, SIGMOID, ADD, RELU, 1, 0]


# -- counting and translating -----------------------------------------------------------------------------------------


def test_size_is_the_papers():
  assert tree_cell_space(2).size() == 8**4 * 3**2 == 36_864
  # 16 pairs of 2 * 4 operations (15 nodes and Cell Inject) and two indices of 15: "about 6e16".
  assert tree_cell_space(8).size() == 8**16 * 15**2 == 63_331_869_759_897_600
  # With max and sin 3 * 5 = 15 operations a pair. Beyond 2^64: the count must be a Python int.
  assert tree_cell_space(8, COMBINE[:3], ACTIVATE[:5]).size() == 15**16 * 15**2 == 1_477_891_880_035_400_390_625
  assert tree_cell_space(8).length == 34
  assert tree_cell_space(8).layers == 1


@pytest.mark.parametrize('name', SPACES)
def test_size_counts_every_string_once(name):
  space = SPACES[name]
  assert space.size() == SIZES[name] == len(strings(space))
  assert len({space.decode(tokens) for tokens in strings(space)}) == SIZES[name]


def test_size_and_mask_by_depth():
  assert [LAYERED.size(depth) for depth in (1, 2, 3)] == [2, 2 * 4, 2 * 4 * 16]
  assert LAYERED.layers == 3
  # size | size, one link, pointer | size, two links, pointer; the first layer's link has no candidate and no token.
  np.testing.assert_array_equal(LAYERED.layer_of_token(), [0, 1, 1, 1, 2, 2, 2, 2])
  nothing = np.zeros(8, int)
  np.testing.assert_array_equal(LAYERED.exists(nothing, 2), [1, 1, 1, 1, 0, 0, 0, 0])
  np.testing.assert_array_equal(LAYERED.exists(nothing), np.ones(8))
  np.testing.assert_array_equal(jax.jit(LAYERED.exists)(nothing, 1), [1, 0, 0, 0, 0, 0, 0, 0])
  for depth in (0, 4):
    with pytest.raises(ValueError, match=rf'depth \(={depth}\) must be in 1..3') as error:
      LAYERED.size(depth)
    one_line(error)


def test_tokens_are_in_the_papers_order():
  space = tree_cell_space(2)
  assert space.decode(FIGURE_5_TOKENS) == FIGURE_5
  np.testing.assert_array_equal(space.encode(FIGURE_5), FIGURE_5_TOKENS)
  assert leaves(FIGURE_5) == 2


def test_tokens_follow_the_arguments_and_archs_do_not():
  space = tree_cell_space(2, combine=('max', 'mult', 'add'), activate=('relu', 'sigmoid', 'sin', 'tanh'))
  np.testing.assert_array_equal(space.encode(FIGURE_5), [2, 3, 1, 0, 1, 1, 2, 0, 1, 0])
  assert space.decode([0, 2] + [0] * 8) == TreeArch((MAX,) * 3, (SIN, RELU, RELU), (MAX, RELU), (0, 0))
  assert list(by_id('combine', space.operations.combine)) == [MAX, MULT, ADD]
  assert list(by_id('activate', space.operations.activate)) == [RELU, SIGMOID, SIN, TANH]


@pytest.mark.parametrize('base', (2, 4, 8))
@pytest.mark.parametrize('combine, activate', [(COMBINE[:2], ACTIVATE[:4]), (COMBINE, ACTIVATE), (['mult'], ['sin'])])
def test_decode_and_encode_are_inverses(base, combine, activate):
  space = tree_cell_space(base, combine, activate)
  for tokens in random_tokens(space, 25):
    arch = space.decode(tokens)
    np.testing.assert_array_equal(space.encode(arch), tokens)
    assert space.decode(jnp.asarray(tokens)) == arch
    assert hash(arch) == hash(space.decode(tokens))
    assert all(type(value) is int for value in jax.tree.leaves(arch))


@pytest.mark.parametrize('depth', (1, 2, 3))
def test_decode_and_encode_at_a_depth(depth):
  for tokens in strings(LAYERED, depth):
    arch = LAYERED.decode(tokens, depth)
    assert LAYERED.check(arch) == depth
    assert [len(values) for values in arch] == [depth, (0, 1, 3)[depth - 1], depth - 1]
    np.testing.assert_array_equal(LAYERED.encode(arch), tokens)


def test_decode_reads_values_links_and_pointers():
  # layer 0: token 1 is size 3 | layer 1: size 1, reads 0, gates 0 | layer 2: size 3, reads 0 but not 1, gates 1.
  tokens = [1, 0, 1, 0, 1, 1, 0, 1]
  assert LAYERED.decode(tokens) == TinyArch(size=(3, 1, 3), link=(1, 1, 0), pick=(0, 1))
  assert LAYERED.decode(tokens, depth=2) == TinyArch(size=(3, 1), link=(1,), pick=(0,))
  assert LAYERED.describe(LAYERED.decode(tokens)) == (
    'layer 0: size 3\nlayer 1: size 1, reads 0, gates 0\nlayer 2: size 3, reads 0, gates 1'
  )


def test_describe():
  assert tree_cell_space(2).describe(FIGURE_5) == (
    'node 0: combine add, activate tanh\n'
    'node 1: combine mult, activate relu\n'
    'node 2: combine mult, activate sigmoid\n'
    'cell inject: combine add, activate relu\n'
    'cell index: c_t from node 1, c_(t-1) into node 0'
  )
  table = choice_space({'edge': ('none', 'skip'), 'width': (16, 32)})
  assert table.describe(ChoiceArch((1, 0))) == 'edge: skip\nwidth: 16'
  no_links = TinyArch((1, 1), (0,), (0,))
  assert LAYERED.describe(no_links).endswith('layer 1: size 1, reads none, gates 0')


@pytest.mark.parametrize(
  'tokens, says',
  [
    ([0] * 7, r'shape \(7,\).*\(8,\)'),
    ([[0] * 8], r'shape \(1, 8\)'),
    ([2] + [0] * 7, r'token 2 of layer 0 size is not in 0\.\.1'),
    ([0, 0, -1, 0, 0, 0, 0, 0], r'token -1 of layer 1 reads is not in 0\.\.1'),
    ([0, 0, 0, 1, 0, 0, 0, 0], r'token 1 of layer 1 gates is not in 0\.\.0'),
  ],
)
def test_decode_refuses(tokens, says):
  with pytest.raises(ValueError, match=says) as error:
    LAYERED.decode(tokens)
  one_line(error)


def test_decode_cannot_be_traced():
  for transform in (jax.jit, jax.vmap):
    with pytest.raises(ValueError, match='use decode_batch') as error:
      transform(LAYERED.decode)(jnp.zeros((8, 8), int))
    one_line(error)


# -- the traced form --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('depth', (1, 2, 3))
def test_decode_batch_is_a_stack_of_decodes(depth):
  tokens = strings(LAYERED, depth)
  wanted = stack([LAYERED.decode(row, depth) for row in tokens])
  found = LAYERED.decode_batch(jnp.asarray(tokens), depth)
  chex.assert_trees_all_equal(found, wanted, strict=True)
  assert {leaf.dtype for leaf in found} == {jnp.dtype('int32')}
  assert is_static(LAYERED.decode(tokens[0], depth))
  assert unstack(found) == [LAYERED.decode(row, depth) for row in tokens]
  assert not is_static(found)


def test_decode_batch_of_cells_keeps_leading_axes():
  space = tree_cell_space(4, combine=('max', 'add'))
  tokens = random_tokens(space, 6)
  wanted = stack([space.decode(row) for row in tokens])
  found = jax.jit(space.decode_batch)(tokens.reshape(2, 3, -1))
  chex.assert_trees_all_equal(jax.tree.map(lambda leaf: leaf.reshape(6, -1), found), wanted, strict=True)


@pytest.mark.parametrize(
  'archs, says',
  [
    ([], 'no architectures'),
    ([TinyArch((1,), (), ()), TinyArch((1, 1), (0,), (0,))], 'one type and depth'),
    ([TinyArch((1,), (), ()), ChoiceArch((1,))], 'one type and depth'),
  ],
)
def test_stack_refuses(archs, says):
  with pytest.raises(ValueError, match=says) as error:
    stack(archs)
  one_line(error)


@pytest.mark.parametrize('tokens', [[0] * 7, jnp.zeros((2, 9), int), 0])
def test_decode_batch_refuses_another_number_of_tokens(tokens):
  with pytest.raises(ValueError, match=r'tokens have shape \(.*\), this .* space wants \[\.\.\., 8\]') as error:
    LAYERED.decode_batch(tokens)
  one_line(error)
  assert unstack(LAYERED.decode_batch([[0] * 8])) == [LAYERED.decode([0] * 8)]


def test_unstack_wants_one_leading_axis():
  for axes in ((), (2, 3)):
    with pytest.raises(ValueError, match=r'unstack wants fields \[m, n\]') as error:
      unstack(LAYERED.decode_batch(jnp.zeros((*axes, 8), int)))
    one_line(error)


# -- JSON -------------------------------------------------------------------------------------------------------------


def test_json_says_what_it_is():
  assert json.loads(tree_cell_space(2).to_json(FIGURE_5)) == {
    'kind': 'tree_cell',
    'arch': {'combine': [0, 1, 1], 'activate': [1, 3, 2], 'inject': [0, 3], 'index': [1, 0]},
  }


@pytest.mark.parametrize('depth', (1, 2, 3))
def test_json_round_trip_at_a_depth(depth):
  for tokens in strings(LAYERED, depth):
    arch = LAYERED.decode(tokens, depth)
    text = LAYERED.to_json(arch)
    assert '\n' not in text
    assert LAYERED.from_json(text) == arch


def test_json_round_trip_of_the_published_cells():
  space = tree_cell_space(8)
  for arch in (published.NASCELL, published.LSTM):
    assert space.from_json(space.to_json(arch)) == arch
    # A best.json holds more than the architecture.
    assert space.from_json(json.dumps({**json.loads(space.to_json(arch)), 'reward': 1.0})) == arch
    # What numpy made of an architecture is written as JSON's own numbers.
    assert space.to_json(TreeArch(*map(tuple, map(np.array, arch)))) == space.to_json(arch)


def _json(**fields) -> str:
  return json.dumps({'kind': 'tree_cell', 'arch': FIGURE_5._asdict() | fields})


@pytest.mark.parametrize(
  'text, says',
  [
    ('', 'not JSON'),
    ('NASCELL', 'not JSON'),
    (_json()[:-1], 'not JSON'),
    (_json().replace('1', '9' * 5000), 'not JSON'),
    ('[' * 100_000, 'not JSON'),
    ('null', '"kind" and "arch"'),
    ('[]', '"kind" and "arch"'),
    ('3', '"kind" and "arch"'),
    ('{}', '"kind" and "arch"'),
    ('{"kind": "tree_cell"}', '"kind" and "arch"'),
    ('{"kind": "tree_cell", "arch": null}', '"kind" and "arch"'),
    ('{"kind": "tree_cell", "arch": [0, 1]}', '"kind" and "arch"'),
    ('{"arch": {}}', '"kind" and "arch"'),
    ('{"kind": "choice", "arch": {"choice": [0]}}', "kind is 'choice', .* wants 'tree_cell'"),
    ('{"kind": null, "arch": {}}', 'kind is None'),
    ('{"kind": "tree_cell", "arch": {}}', r'arch has the fields \[\]'),
    (_json(bias=[0]), "'bias'"),
    (_json().replace('inject', 'in\\nject'), r"'in\\nject'"),
    (_json(combine=None), "'combine' is None"),
    (_json(combine=1), "'combine' is 1"),
    (_json(combine='add'), "'combine' is 'add'"),
    (_json(combine={'0': 1}), "'combine' is {"),
    (_json(activate=[1, 3]), "'activate' has 2 entries.* wants 3"),
    (_json(activate=[1, 3, 2, 0]), "'activate' has 4 entries.* wants 3"),
    (_json(index=[]), "'index' has 0 entries.* wants 2"),
    (_json(combine=[0, 2, 1]), r"'combine', entry 1 \(node 1 combine\) is 2: this space allows 0, 1\."),
    (_json(activate=[0, 0, -1]), r"'activate', entry 2 \(node 2 activate\) is -1"),
    (_json(inject=[0, 4]), r"'inject', entry 1 \(cell inject activate\) is 4: this space allows 0, 1, 2, 3\."),
    (_json(index=[1, 3]), r"'index', entry 1 \(cell index c_\(t-1\) into node\) is 3"),
    (_json(combine=[0, True, 0]), "'combine', entry 1 .* is True, a bool"),
    (_json(combine=[0, 1.0, 0]), "'combine', entry 1 .* is 1.0, a float"),
    (_json(combine=[0, float('nan'), 0]), "'combine', entry 1 .* is nan, a float"),
    (_json(combine=[0, None, 0]), "'combine', entry 1 .* is None"),
    (_json(combine=[0, '1', 0]), "'combine', entry 1 .* is '1', a str"),
    (_json(combine=[0, '\n', 0]), "'combine', entry 1"),
    (_json(combine=[0, [1], 0]), r"'combine', entry 1 .* is \[1\], a list"),
    (_json(combine=[0, {}, 0]), "'combine', entry 1 .* is {}, a dict"),
  ],
)
def test_from_json_refuses(text, says):
  with pytest.raises(ValueError, match=says) as error:
    tree_cell_space(2).from_json(text)
  one_line(error)


@pytest.mark.parametrize(
  'arch, says',
  [
    (FIGURE_5, 'wants a TinyArch, not a TreeArch'),
    (TinyArch((1,), (0,), ()), "'link' has 1 entry, .* wants 0"),  # both lengths occur, at different depths
    (TinyArch((1, 3), (), (0,)), "'link' has 0 entries, .* wants 1"),
    (TinyArch((1,) * 4, (0,) * 3, (0,) * 2), "'size' has 4 entries, .* wants .*3"),
    (TinyArch((1, 2), (0,), (0,)), r"'size', entry 1 \(layer 1 size\) is 2: this space allows 1, 3\."),
    (TinyArch((1, 3), (2,), (0,)), r"'link', entry 0 \(layer 1 reads\) is 2: this space allows 0, 1\."),
    (TinyArch((1, 3, 1), (0,) * 3, (0, 2)), r"'pick', entry 1 \(layer 2 gates\) is 2: this space allows 0, 1\."),
    (TinyArch(np.ones(1), (), ()), r"'size', entry 0 .* a float64: want an int"),
  ],
)
def test_encode_describe_and_to_json_refuse(arch, says):
  for translate in (LAYERED.encode, LAYERED.describe, LAYERED.to_json):
    with pytest.raises(ValueError, match=says) as error:
      translate(arch)
    one_line(error)


@pytest.mark.parametrize('axes', [(), (3,)])
def test_the_traced_form_is_refused_where_a_static_one_is_wanted(axes):
  cells = tree_cell_space(2)
  arch = cells.decode_batch(jnp.zeros((*axes, cells.length), int))
  for translate in (cells.encode, cells.describe, cells.to_json, canonical):
    with pytest.raises(ValueError, match=r'holds arrays: want Python ints .*space\.unstack') as error:
      translate(arch)
    one_line(error)


# -- making spaces ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('base', (0, 1, -2, 3, 6, 2.0, '8', None, True, np.int64(8)))
def test_base_must_be_a_power_of_two(base):
  with pytest.raises(ValueError, match=r'base .* an int, a power of two') as error:
    tree_cell_space(base)
  one_line(error)


@pytest.mark.parametrize('field', ('combine', 'activate'))
@pytest.mark.parametrize('names', [('add', 'tanh'), ('gelu',), (), ('max', 'max'), ('sin', 'sin'), 'tanh', (1,)])
def test_operations_must_be_known_and_named_once(field, names):
  with pytest.raises(ValueError, match=f'^{field} ') as error:
    tree_cell_space(2, **{field: names})
  one_line(error)


@pytest.mark.parametrize(
  'choices, says', [({}, 'choices is empty'), ({'a': ()}, "choices.'a'."), ({'b': (1, '1')}, "choices.'b'.")]
)
def test_choices_must_be_there_and_differ(choices, says):
  with pytest.raises(ValueError, match=says) as error:
    choice_space(choices)
  one_line(error)


# -- one form for all strings that mean the same network --------------------------------------------------------------


def _children(arch: TreeArch, node: int) -> tuple[int, ...]:
  n = leaves(arch)
  return () if node < n else (2 * (node - n), 2 * (node - n) + 1)


def _subtree(arch: TreeArch, node: int) -> list[int]:
  return [node, *(below for child in _children(arch, node) for below in _subtree(arch, child))]


def _exchangeable(arch: TreeArch):
  """Pairs of nodes whose subtrees may change places.

  Either siblings, or nodes that stand equally far below one node, with only nodes between that pass its commutative and
  associative combination on: same combination, no activation, neither read for c_t nor injected.
  """
  for top in range(leaves(arch), len(arch.combine)):
    row = _children(arch, top)
    while row:
      yield from itertools.combinations(row, 2)
      passing = [
        node
        for node in row
        if (arch.combine[node], arch.activate[node]) == (arch.combine[top], IDENTITY) and node not in arch.index
      ]
      row = tuple(child for node in passing for child in _children(arch, node))


def _exchange(arch: TreeArch, u: int, v: int) -> TreeArch:
  place = list(range(len(arch.combine)))
  for a, b in zip(_subtree(arch, u), _subtree(arch, v), strict=True):
    place[a], place[b] = b, a
  return TreeArch(
    combine=tuple(arch.combine[node] for node in place),
    activate=tuple(arch.activate[node] for node in place),
    inject=arch.inject,
    index=tuple(place[node] for node in arch.index),
  )


def test_canonical_by_hand():
  # Swapping the leaves of Fig. 5 moves both indices: c_t is then read from leaf 0 and c_(t-1) enters leaf 1.
  mirrored = TreeArch((MULT, ADD, MULT), (RELU, TANH, SIGMOID), (ADD, RELU), (0, 1))
  assert canonical(mirrored) == canonical(FIGURE_5)
  assert canonical(FIGURE_5) in (FIGURE_5, mirrored)
  for other in (
    FIGURE_5._replace(activate=(TANH, RELU, TANH)),
    FIGURE_5._replace(activate=(RELU, TANH, SIGMOID)),
    FIGURE_5._replace(inject=(MULT, RELU)),
    FIGURE_5._replace(index=(0, 1)),
    FIGURE_5._replace(index=(2, 0)),
  ):
    assert canonical(other) != canonical(FIGURE_5)


def test_canonical_shares_out_what_a_sum_gathers():
  # (tanh + sigmoid) + (relu + sin) = (tanh + relu) + (sigmoid + sin), as long as both inner sums only pass on.
  def cell(gather, *activate):
    return TreeArch((ADD,) * 7, (*activate, gather, IDENTITY, TANH), (MULT, TANH), (6, 6))

  assert canonical(cell(IDENTITY, TANH, SIGMOID, RELU, SIN)) == canonical(cell(IDENTITY, TANH, RELU, SIGMOID, SIN))
  assert canonical(cell(TANH, TANH, SIGMOID, RELU, SIN)) != canonical(cell(TANH, TANH, RELU, SIGMOID, SIN))


def test_canonical_leaves_other_families_alone():
  arch = TinyArch((3, 1), (1,), (0,))
  assert canonical(arch) is arch


def test_canonical_of_random_cells_survives_exchanges():
  rng = np.random.default_rng(0)
  space = tree_cell_space(8, activate=('identity', 'tanh'))  # a quarter of the inner nodes can pass on
  for tokens in random_tokens(space, 30):
    arch = moved = space.decode(tokens)
    for _ in range(20):
      pairs = list(_exchangeable(moved))
      moved = _exchange(moved, *pairs[rng.integers(len(pairs))])
    form = canonical(arch)
    assert canonical(moved) == form
    assert canonical(form) == form
    space.check(form)


@pytest.mark.parametrize('combine, activate', [((ADD, MULT), (IDENTITY,)), ((MAX,), (IDENTITY, TANH))])
def test_canonical_forms_are_as_many_as_the_classes(combine, activate):
  # All 2^7 * 7^2 base-4 cells: the classes are what exchanges can reach from one another, found by walking.
  nodes = itertools.product(itertools.product(combine, repeat=7), itertools.product(activate, repeat=7))
  cells = [TreeArch(*ids, (ADD, TANH), index) for ids in nodes for index in itertools.product(range(7), repeat=2)]
  forms = {cell: canonical(cell) for cell in cells}
  assert len(forms) == 2**7 * 7**2
  seen, classes = set(), 0
  for cell in cells:
    classes += cell not in seen
    walk = [] if cell in seen else [cell]
    seen.add(cell)
    while walk:
      here = walk.pop()
      assert forms[here] == forms[cell]
      neighbours = {_exchange(here, u, v) for u, v in _exchangeable(here)} - seen
      seen |= neighbours
      walk.extend(neighbours)
  assert len(set(forms.values())) == classes < len(cells)


def test_canonical_cell_computes_the_same(x64):
  rng = np.random.default_rng(0)
  n, features, renamed = 8, 3, 0
  x, c, h = (jnp.asarray(rng.normal(size=(2, features))) for _ in range(3))
  for combine, activate in ((COMBINE, ACTIVATE), (('add', 'mult'), ('identity', 'tanh'))):
    space = tree_cell_space(n, combine, activate)
    for tokens in random_tokens(space, 20):
      arch = space.decode(tokens)
      form, leaf = tree.canonical_with_leaves(arch)
      params = {name: rng.normal(size=(features, n, features)) for name in ('kernel', 'recurrent_kernel')}
      flat = [
        {name: jnp.asarray(w[:, order].reshape(features, -1)) for name, w in params.items()}
        for order in (list(range(n)), list(leaf))
      ]
      wanted = tree_cell.apply(flat[0], arch, (c, h), x)
      found = tree_cell.apply(flat[1], form, (c, h), x)
      chex.assert_trees_all_close(found, wanted, rtol=1e-9)
      assert sorted(leaf) == list(range(n))
      renamed += leaf != tuple(range(n))
  assert renamed > 30
