"""An architecture is checked where it is used: one line says what is wrong with it, before anything compiles."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from testing import one_line

from nas_jax import space, tree_cell
from nas_jax.tree_cell import TreeArch, TreeCell

CELL = TreeArch(combine=(0, 1, 0), activate=(1, 3, 2), inject=(0, 3), index=(1, 0))
PARAMS = tree_cell.init(jax.random.key(0), CELL, 3, 4)
CARRY, X = (jnp.zeros((2, 4)), jnp.zeros((2, 4))), jnp.ones((2, 3))
USES = {
  'apply': lambda arch: tree_cell.apply(PARAMS, arch, CARRY, X),
  'unroll': lambda arch: tree_cell.unroll(PARAMS, arch, CARRY, X[None]),
  'TreeCell': lambda arch: TreeCell(4, arch).init(jax.random.key(0), CARRY, X),
  'NNXTreeCell': lambda arch: _nnx(arch),
  'equations': tree_cell.equations,
  'to_source': tree_cell.to_source,
  'in jit': lambda arch: jax.jit(lambda x: tree_cell.apply(PARAMS, arch, CARRY, x))(X),
}
WRONG = [
  ({'combine': (0, 1, -1)}, r'^combine -1 in an architecture is none of add 0'),
  ({'activate': (7, 0, 0)}, r'^activate 7 in an architecture is none of identity 0'),
  ({'inject': (0, 9)}, r'^activate 9 in an architecture'),
  ({'index': (9, 0)}, r"^arch field 'index', entry 0 is 9: want the number of a node, 0 to 2"),
  ({'index': (0, -1)}, r"^arch field 'index', entry 1 is -1"),
  ({'index': (0,)}, r"^arch field 'index' has 1 entry: want 2"),
  ({'inject': (0, 1, 2)}, r"^arch field 'inject' has 3 entries: want 2"),
  ({'activate': (0, 1)}, r"^arch field 'activate' has 2 entries: want 3"),
  ({'combine': (0, 1), 'activate': (0, 1)}, r"^arch field 'combine' has 2 entries: want 2 n - 1"),
  ({'combine': (0, 1.0, 0)}, r"^arch field 'combine', entry 1 is 1.0, a float: want an int"),
  ({'activate': (True, 0, 0)}, r"^arch field 'activate', entry 0 is True, a bool"),
  ({'activate': ('tanh', 0, 0)}, r"^arch field 'activate', entry 0 is 'tanh', a str"),
]


def _nnx(arch):
  from flax import nnx

  return tree_cell.NNXTreeCell(3, 4, arch, rngs=nnx.Rngs(0))(CARRY, X)


@pytest.mark.parametrize('use', USES)
@pytest.mark.parametrize(('change', 'words'), WRONG)
def test_what_is_no_cell_is_refused_wherever_it_is_used(use, change, words):
  with pytest.raises(ValueError, match=words) as error:
    USES[use](CELL._replace(**change))
  one_line(error)


@pytest.mark.parametrize('use', ['apply', 'unroll', 'NNXTreeCell', 'equations', 'to_source'])
def test_lists_are_refused_since_they_cannot_be_hashed(use):
  with pytest.raises(ValueError, match=r"^arch field 'combine' is a list: want a tuple of ints") as error:
    USES[use](TreeArch(*map(list, CELL)))
  one_line(error)


def test_what_is_no_arch_at_all_is_refused():
  for use in (*USES.values(), lambda arch: tree_cell.init(jax.random.key(0), arch, 3, 4)):
    with pytest.raises(ValueError, match='want a TreeArch') as error:
      use(tuple(CELL))
    one_line(error)


def test_a_static_arch_that_jit_traces_is_refused():
  step = jax.jit(tree_cell.apply)
  with pytest.raises(ValueError, match=r"^arch field 'combine' is a tuple in a traced .* static_argnums") as error:
    step(PARAMS, CELL, CARRY, X)
  one_line(error)
  with pytest.raises(ValueError, match=r"^arch field 'combine' is of shape \(1, 3\) in a traced .*vmap") as error:
    step(PARAMS, space.stack([CELL]), CARRY, X)
  one_line(error)


def test_numpy_ints_are_ints_and_traced_archs_of_the_right_shape_pass():
  plain = tree_cell.apply(PARAMS, CELL, CARRY, X)[1]
  numpy = TreeArch(*(tuple(np.int32(entry) for entry in values) for values in CELL))
  np.testing.assert_array_equal(tree_cell.apply(PARAMS, numpy, CARRY, X)[1], plain)
  traced = jax.vmap(lambda arch: tree_cell.apply(PARAMS, arch, CARRY, X)[1])(space.stack([CELL]))
  np.testing.assert_allclose(traced[0], plain, rtol=1e-6)


@pytest.mark.parametrize('use', ['apply', 'unroll'])
def test_parameters_of_another_cell_are_refused(use):
  with pytest.raises(ValueError, match=r'^the kernel has 8 columns: a cell of 8 leaves, with a c of width 4') as error:
    USES[use](tree_cell.NASCELL)
  one_line(error)
