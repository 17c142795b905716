"""Architectures of every type are checked where they are used; `tree_cell/checks_test` has the rest of tree cells."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from testing import one_line

from nas_jax import draw, export, published, space
from nas_jax.children import conv, enas_macro, enas_micro
from nas_jax.nn import enas_cell
from nas_jax.space import ChainArch, ConvArch, MacroArch, RnnArch
from nas_jax.space.checks import check_arch

RNN = RnnArch(activate=(1, 3, 2), previous=(0, 1))
CONV = ConvArch(
  layer_type=(0, 1, 3), filter_height=(3, 0, 0), filter_width=(1, 0, 0), stride_height=(), stride_width=(),
  filters=(4, 0, 0), pool=(0, 2, 0), links=(1, 0, 1), rate=(1000,),
)  # fmt: skip
CHAIN, MACRO = ChainArch((231, 300022, 0)), MacroArch((5, 4, 5), (1, 0, 1))
MICRO = published.ENAS_MICRO
SOUND = [RNN, CONV, CHAIN, MACRO, MICRO, published.FIGURE_7, published.XU_CIFAR10, published.ENAS_RNN]
KEY = jax.random.key(0)
SHARED = enas_cell.init(KEY, jax.tree.map(lambda ids: ids[0], space.stack([RNN])), 2, 2)
H, XS = jnp.zeros((1, 2)), jnp.ones((1, 1, 2))
INPUTS = conv.InputSpec((6, 6, 1), 3, 4, 4)
MICRO_CHILD = enas_micro.build(INPUTS, enas_micro.NetworkOptions(1, 2))
IMAGE = jnp.zeros((1, 6, 6, 1))


def unroll(arch):
  return enas_cell.unroll(enas_cell.init(KEY, RNN, 2, 2), arch, H, XS)


def child_of(arch):
  """Returns the image classifier for the type of an architecture of three layers."""
  if isinstance(arch, MacroArch):
    return enas_macro.build(INPUTS, enas_macro.NetworkOptions(3, 2))
  return conv.build(INPUTS) if isinstance(arch, ConvArch | ChainArch) else MICRO_CHILD


def spec(arch):
  return conv.ChildSpec(arch, conv.Hyperparameters(0.1, 1.0, 0.0, 1e-5))


def shapes(child, arch):
  return jax.eval_shape(lambda: child.init(spec(arch), KEY))


def trained(arch):
  """Takes the loss of a network with the weights of a sound one of the same shape."""
  child = child_of(arch)
  params = shapes(child, next(sound for sound in (CONV, CHAIN, MACRO) if isinstance(arch, type(sound))))
  drawn = IMAGE, jnp.zeros(1, jnp.int32)
  return jax.eval_shape(lambda params: child.loss(params, spec(arch), child.carry(params), drawn, KEY), params)


# For each type, what uses its architectures.
MODULES = {ConvArch: export.ConvNetwork, ChainArch: export.ConvNetwork, MacroArch: export.MacroNetwork}
TEXT = {'vocabulary': 5, 'features': 2}
EXPORTS = [export.module, export.to_source, draw.describe, draw.svg]
CELLS = [
  unroll,
  functools.partial(enas_cell.own, SHARED),
  enas_cell.equations,
  draw.svg,
  functools.partial(export.module, **TEXT),
  functools.partial(export.to_source, **TEXT),
  lambda arch: export.EnasCell(2, arch).init(KEY, H, XS[0]),
]
IMAGES = [*EXPORTS, lambda arch: shapes(child_of(arch), arch), lambda arch: export.variables(arch, {}, {})]
LAYERS = [*IMAGES, space.count, trained]

MODULE = [lambda arch: MODULES.get(type(arch), export.MicroNetwork)(arch).init(KEY, IMAGE)]  # made directly

INT = 'want an int'
WRONG = [
  (RNN._replace(previous=(0, 9)), CELLS, r"^arch field 'previous', entry 1 is 9: want .* before node 2, 0 to 1"),
  (RNN._replace(previous=(0, -1)), CELLS, r"^arch field 'previous', entry 1 is -1"),
  (RNN._replace(previous=(0, 2)), CELLS, r"^arch field 'previous', entry 1 is 2"),  # itself
  (RNN._replace(previous=(0,)), CELLS, r'have 3 and 1 entries: want N and N - 1'),
  (RNN._replace(previous=(0, 1.0)), CELLS, INT),
  (RNN._replace(previous=[0, 1]), CELLS[:-1], r"^arch field 'previous' is a list: want a tuple of ints"),
  (RNN._replace(activate=(1, 9, 2)), [CELLS[0], *CELLS[2:]], r'^activate 9 in an architecture is none of identity 0'),
  (RNN._replace(activate=(1, -1, 2)), [CELLS[0], *CELLS[2:]], r'^activate -1 in an architecture'),
  (RNN._replace(activate=(1, True, 2)), CELLS, INT),
  (RnnArch((), ()), CELLS, 'have 0 and 0 entries'),
  (CONV._replace(filter_height=(-1, 0, 0)), LAYERS, r'^filter_heights \(=\(-1,\)\) must be different odd'),
  (CONV._replace(filter_height=(3, 3, 0)), LAYERS, r"'filter_height', entry 1 .* is 3: this space allows 0\."),
  (CONV._replace(layer_type=(0, 1, 4)), LAYERS, r"'layer_type', entry 2 .* is 4"),
  (CONV._replace(layer_type=(0, 1, -1)), LAYERS, r"'layer_type', entry 2 .* is -1"),
  (CONV._replace(links=(1, 0)), [*LAYERS, *MODULE], r"'links' has 2 entries, this conv space wants 3"),
  (CONV._replace(links=(1, 0, 2)), LAYERS, r"'links', entry 2 .* is 2: this space allows 0, 1"),
  (CONV._replace(filters=(4, 0)), LAYERS, r"'filters' has 2 entries"),
  (CONV._replace(filters=[4, 0, 0]), LAYERS, r"'filters' is a list: want a tuple"),
  (CONV._replace(filters=(4.5, 0, 0)), LAYERS, INT),
  (CONV._replace(rate=(0,)), LAYERS, r"'rate' has 1 entry"),
  (published.FIGURE_7._replace(filter_height=(-1,) * 15), [space.count, export.module], 'filter_heights'),
  (CHAIN._replace(layers=(231, 7, 0)), LAYERS, r'^7 is no code of a layer'),
  (CHAIN._replace(layers=(231, -300022, 0)), LAYERS, r'^-300022 is no code of a layer'),
  (CHAIN._replace(layers=('conv 2 3 1', 300022, 0)), LAYERS, INT),
  (CHAIN._replace(layers=[231, 300022, 0]), LAYERS, 'is a list: want a tuple'),
  (MACRO._replace(operation=(5, 4, 6)), [*IMAGES, trained, *MODULE], r"'operation', entry 2 .* is 6"),
  (MACRO._replace(operation=(5, -1, 5)), [*IMAGES, trained], r"'operation', entry 1 .* is -1"),
  (MACRO._replace(links=(1, 0)), [*IMAGES, trained], r"'links' has 2 entries, this enas_macro space wants 3"),
  (MACRO._replace(links=[1, 0, 1]), [*IMAGES, trained], 'is a list: want a tuple'),
  (
    MICRO._replace(normal_operation=(9, *MICRO.normal_operation[1:])),
    [*IMAGES, *MODULE],
    r"'normal_operation', entry 0 .* is 9",
  ),
  (MICRO._replace(normal_operation=(-1, *MICRO.normal_operation[1:])), IMAGES, r"'normal_operation', entry 0 .* is -1"),
  (MICRO._replace(reduction_input=(2, *MICRO.reduction_input[1:])), IMAGES, r"'reduction_input', entry 0 .* is 2"),
  (MICRO._replace(reduction_input=MICRO.reduction_input[1:]), IMAGES, r"'reduction_input' has 9 entries"),
]


@pytest.mark.parametrize(('arch', 'uses', 'words'), WRONG)
def test_what_is_no_architecture_is_refused_wherever_it_is_used(arch, uses, words):
  for use in (check_arch, *uses):
    with pytest.raises(ValueError, match=words) as error:
      use(arch)
    one_line(error)


@pytest.mark.parametrize('arch', SOUND)
def test_what_is_an_architecture_passes_static_and_traced(arch):
  check_arch(arch)
  check_arch(type(arch)(*(tuple(map(np.int64, values)) for values in arch)))
  check_arch(jax.tree.map(lambda ids: ids[0], space.stack([arch])))
  assert draw.describe(arch)


def is_refused(use, *args):
  try:
    use(*args)
  except ValueError:
    return True
  return False


def test_files_and_uses_agree_on_random_changes():
  """What `from_json` refuses is refused where it is used, and the other way round."""
  rng, refused = np.random.default_rng(0), []
  for kind, arch in {'enas_rnn': RNN, 'conv': CONV, 'enas_macro': MACRO, 'enas_micro': MICRO}.items():
    for _ in range(40):
      fields = {name: list(values) for name, values in arch._asdict().items()}
      name = rng.choice([name for name in fields if fields[name]])
      fields[name][rng.integers(len(fields[name]))] = int(rng.integers(-1, 7))
      refused.append(is_refused(space.from_json, json.dumps({'kind': kind, 'arch': fields})))
      assert is_refused(check_arch, type(arch)(*map(tuple, fields.values()))) == refused[-1], fields
  assert 40 < sum(refused) < 120


@pytest.mark.parametrize(
  ('use', 'arch'),
  [
    (lambda arch: enas_cell.unroll(SHARED, arch, H, XS), RNN),
    (functools.partial(enas_cell.own, SHARED), RNN),
    (lambda arch: shapes(child_of(arch), arch), CONV),
    (space.count, CHAIN),
    (lambda arch: shapes(child_of(arch), arch), MACRO),
  ],
)
def test_a_static_architecture_that_jit_traces_is_refused(use, arch):
  with pytest.raises(ValueError, match='static_argnums') as error:
    jax.jit(use)(arch)
  one_line(error)


@pytest.mark.parametrize(
  ('use', 'arch'),
  [
    (enas_cell.equations, RNN), (draw.svg, RNN), (export.module, MICRO), (space.count, CONV), (draw.describe, MACRO),
    (draw.svg, published.NASCELL), (draw.describe, published.NASCELL),
  ],
)  # fmt: skip
def test_a_traced_architecture_is_refused_where_only_a_static_one_can_be_used(use, arch):
  with pytest.raises(ValueError, match='holds arrays: want Python ints') as error:
    use(jax.tree.map(lambda ids: ids[0], space.stack([arch])))
  one_line(error)


def test_what_is_of_another_type_is_refused():
  for use in (unroll, space.count, enas_cell.equations, space.enas.describe):
    for given in (tuple(RNN), published.NASCELL):
      with pytest.raises(ValueError, match='^the architecture is a (tuple|TreeArch): want a') as error:
        use(given)
      one_line(error)
  with pytest.raises(ValueError, match='^the architecture is a tuple: want one of ChainArch, ConvArch'):
    check_arch(tuple(RNN))
  with pytest.raises(ValueError, match="'GRU': the only cell that is exported by its name is 'LSTM'"):
    export.module('GRU', **TEXT)
