"""The recurrent cell of ENAS: against equations, alone and among shared weights, and in a language model."""

import itertools
import re

import jax
import jax.numpy as jnp
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from jax.test_util import check_grads
import numpy as np
import optax
import pytest
import testing

from nas_jax import space
from nas_jax.children import language_model
from nas_jax.datasets import text_batches
from nas_jax.nn import enas_cell
from nas_jax.operations import ACTIVATIONS, IDENTITY, RELU, SIGMOID, SIN, TANH, Operations
from nas_jax.published import ENAS_RNN
from nas_jax.space.enas import RnnArch
from nas_jax.systems import language, retrain_cell

T, B, IN, H, N = 3, 3, 4, 2, 4
NUMPY = {
  IDENTITY: lambda x: x,
  TANH: np.tanh,
  SIGMOID: lambda x: 1 / (1 + np.exp(-x)),
  RELU: lambda x: np.maximum(x, 0),
  SIN: np.sin,
}


def traced(arch):
  return jax.tree.map(lambda ids: ids[0], space.stack([arch]))


FORMS = pytest.mark.parametrize('form', [lambda arch: arch, traced], ids=['static', 'traced'])


def random_archs(nodes, count):
  rng = np.random.default_rng(nodes)
  cells = space.enas_rnn_space(nodes)
  return [cells.decode([rng.integers(slot.width) for slot in cells.slots]) for _ in range(count)]


def example(nodes):
  """Returns random shared parameters, h, inputs and a mask in the current default precision."""
  rng = np.random.default_rng(1)

  def normal(*shape):
    return jnp.asarray(rng.normal(size=shape))

  params = {
    'kernel': normal(IN, 2 * H),
    'recurrent_kernel': normal(H, 2 * H),
    'nodes': normal(nodes * (nodes - 1) // 2, H, 2 * H),
  }
  return params, normal(B, H), normal(T, B, IN), jnp.asarray(rng.uniform(0, 2, size=(B, H)))


def interpret(shared, arch, h, xs, mask):
  """Returns the last h and all h, written after the text of Sec. 2.1."""
  pairs = [(node, read) for node in range(1, len(arch.activate)) for read in range(node)]
  matrix = dict(zip(pairs, np.asarray(shared['nodes']), strict=True))
  h, outputs = np.asarray(h), []
  for x in np.asarray(xs):
    nodes = []
    for node, activate in enumerate(arch.activate):
      before = nodes[arch.previous[node - 1]] if node else h
      if node:
        sums = before @ matrix[node, arch.previous[node - 1]]
      else:
        sums = x @ np.asarray(shared['kernel']) + (h * np.asarray(mask)) @ np.asarray(shared['recurrent_kernel'])
      c = NUMPY[SIGMOID](sums[:, :H])
      nodes.append(c * NUMPY[activate](sums[:, H:]) + (1 - c) * before)
    h = np.mean([value for node, value in enumerate(nodes) if node not in arch.previous], 0)
    outputs.append(h)
  return h, np.stack(outputs)


def assert_close(got, want, tolerance=1e-12):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), got, want)


# -- forward ----------------------------------------------------------------------------------------------------------


@FORMS
def test_a_step_of_three_nodes_by_hand(x64, form):
  # Nodes 1 and 2 read node 0. sigmoid(ln 3) = 3/4, so c_0 = c_1 = 3/4 and c_2 = 1/4, where x = 1 and h_(t-1) = 2.
  ln3 = np.log(3)
  params = {
    'kernel': jnp.array([[ln3, 1.0]]),  # c_0 takes ln 3 + 2 * 0; f_0 takes 1 + 2 * .5 = 2
    'recurrent_kernel': jnp.array([[0.0, 0.5]]),
  }
  # h_0 = 3/4 relu(2) + 1/4 * 2 = 2. h_1 = 3/4 (2 * 5) + 1/4 * 2 = 8. h_2 = 1/4 tanh(2 * .25) + 3/4 * 2.
  own = [[[ln3 / 2, 5.0]], [[-ln3 / 2, 0.25]]]
  unread = [[[np.nan, np.nan]]]  # of node 2 and node 1
  arch = RnnArch((RELU, IDENTITY, TANH), (0, 0))
  params['nodes'] = jnp.array(own if form(arch) is arch else own + unread)
  h, ys = enas_cell.unroll(params, form(arch), jnp.array([[2.0]]), jnp.array([[[1.0]]]))
  want = (8 + 0.25 * np.tanh(0.5) + 1.5) / 2
  assert_close((h, ys), (np.array([[want]]), np.array([[[want]]])))


@pytest.mark.parametrize(('nodes', 'masked'), [(2, True), (N, False), (12, True)])
def test_one_program_for_all_cells_equals_the_words(x64, nodes, masked):
  shared, h, xs, mask = example(nodes)
  traces = []

  @jax.jit
  def program(arch):
    traces.append(arch)
    return enas_cell.unroll(shared, arch, h, xs, h_mask=mask if masked else None)

  for arch in (*random_archs(nodes, 20), *([ENAS_RNN] if nodes == 12 else [])):
    assert_close(program(traced(arch)), interpret(shared, arch, h, xs, mask if masked else 1.0))
  assert len(traces) == 1


def test_a_cell_alone_equals_it_among_the_shared(x64):
  for arch in (ENAS_RNN, *random_archs(N, 2), *random_archs(1, 1)):
    shared, h, xs, mask = example(len(arch.activate))
    own = enas_cell.own(shared, arch)
    assert own['nodes'].shape == (len(arch.activate) - 1, H, 2 * H)
    h_mask = mask[0] if arch == ENAS_RNN else None
    want = interpret(shared, arch, h, xs, 1.0 if h_mask is None else h_mask)
    assert_close(enas_cell.unroll(own, arch, h, xs, h_mask=h_mask), want)


@FORMS
@pytest.mark.parametrize('activate', NUMPY)
def test_each_activation_alone(x64, form, activate):
  params, h, xs, mask = example(1)
  arch = RnnArch((activate,), ())
  for possible in (ACTIVATIONS, ACTIVATIONS[activate : activate + 1]):
    got = enas_cell.unroll(params, form(arch), h, xs, h_mask=mask, operations=Operations(activate=possible))
    assert_close(got, interpret(params, arch, h, xs, mask))


def test_every_wiring_of_four_nodes(x64):
  shared, h, xs, _ = example(4)
  program = jax.jit(lambda arch: enas_cell.unroll(shared, arch, h, xs))
  found = set()
  for previous in itertools.product(range(1), range(2), range(3)):
    arch = RnnArch((TANH, SIGMOID, TANH, IDENTITY), previous)
    got = program(traced(arch))
    assert_close(got, interpret(shared, arch, h, xs, 1.0))
    found.add(float(got[0].sum()))
  assert len(found) == 6


def test_vmap_and_map_and_devices_equal_a_loop(x64):
  shared, h, xs, mask = example(3)
  archs = random_archs(3, 4)

  def child(arch, shared):
    def loss(shared):
      after, ys = enas_cell.unroll(shared, arch, h, xs, h_mask=mask)
      return (ys**2).sum(), (after, ys)

    return jax.grad(loss, has_aux=True)(shared)

  def each(archs, shared):
    return jax.lax.map(lambda one: child(*one), (archs, shared))

  many = space.stack(archs), jax.tree.map(lambda value: jnp.stack([value] * 4), shared)
  one = jax.jit(child)
  want = jax.tree.map(lambda *rows: jnp.stack(rows), *[one(traced(arch), shared) for arch in archs])
  mesh = jax.make_mesh((4,), ('child',), axis_types=(AxisType.Auto,))
  for program in (jax.vmap(child), jax.shard_map(each, mesh=mesh, in_specs=P('child'), out_specs=P('child'))):
    assert_close(jax.jit(program)(*many), want)


def test_outputs_are_normalised_and_what_goes_on_is_not(x64):
  shared, h, xs, _ = example(N)
  (arch,) = random_archs(N, 1)
  after, ys = enas_cell.unroll(shared, traced(arch), h, xs)
  same, normal = enas_cell.unroll(shared, traced(arch), h, xs, normalize=True)
  assert_close(same, after)
  ys = np.asarray(ys)
  assert_close(normal, (ys - ys.mean(1)[:, None]) / np.sqrt(ys.var(1)[:, None] + 1e-5), 1e-7)


# -- backward ---------------------------------------------------------------------------------------------------------


def gradients(form, params, arch, hoist=True):
  """Returns the gradients of an unevenly weighted sum of all outputs, by parameters, h, inputs and mask."""
  _, h, xs, mask = example(len(arch.activate))
  arch = form(arch)

  def loss(params, h, xs, mask):
    after, ys = enas_cell.unroll(params, arch, h, xs, h_mask=mask, hoist=hoist)
    return (ys * jnp.linspace(-1, 2, ys.size).reshape(ys.shape)).sum() + (after**2).sum()

  return jax.jit(jax.grad(loss, (0, 1, 2, 3)))(params, h, xs, mask)


def test_gradients_of_shared_weights_are_those_of_the_cell_alone(x64):
  arch = RnnArch((RELU, IDENTITY, TANH, SIGMOID), (0, 0, 2))
  shared, *_ = example(N)
  own, *others = gradients(lambda arch: arch, enas_cell.own(shared, arch), arch)
  found, *found_others = gradients(traced, shared, arch)
  assert_close((enas_cell.own(found, arch), found_others), (own, others))
  read = [0, 1, 5]  # (1, 0), (2, 0), (3, 2) of (1, 0), (2, 0), (2, 1), (3, 0), (3, 1), (3, 2)
  assert [np.any(matrix != 0) for matrix in found['nodes']] == [k in read for k in range(6)]
  # The loop as it is written has the same ones.
  assert_close(gradients(traced, shared, arch, hoist=False), (found, *found_others))


def test_gradients_are_finite_differences(x64):
  arch = RnnArch((TANH, SIGMOID, IDENTITY), (0, 0))  # without the kink of relu
  shared, h, xs, mask = example(3)

  @jax.jit
  def outputs(params, h, xs, mask):
    return enas_cell.unroll(params, traced(arch), h, xs, h_mask=mask)

  check_grads(outputs, (shared, h, xs, mask), order=1, modes='rev', atol=1e-5, rtol=1e-5)


def test_forward_mode_names_hoist_false(x64):
  shared, h, xs, _ = example(N)
  (arch,) = random_archs(N, 1)

  def outputs(params, hoist=True):
    return enas_cell.unroll(params, traced(arch), h, xs, hoist=hoist)[1]

  with pytest.raises(TypeError, match='pass hoist=False') as error:
    jax.jvp(outputs, (shared,), (shared,))
  testing.one_line(error)
  jax.jvp(lambda params: outputs(params, hoist=False), (shared,), (shared,))


def test_hoisting_takes_the_weight_gradients_out_of_the_loop():
  shared, h, xs, _ = example(N)
  (arch,) = random_archs(N, 1)
  for hoist in (True, False):

    def loss(params, hoist=hoist):
      return enas_cell.unroll(params, traced(arch), h, xs, hoist=hoist)[1].sum()

    program = jax.make_jaxpr(jax.grad(loss))(shared).jaxpr
    made = {variable.aval.shape for step in scans(program) for variable in step.outvars}
    assert ((N - 1, H, 2 * H) in made) == (not hoist)


def scans(jaxpr):
  """Returns the loops of a program, including those of its functions."""
  for step in jaxpr.eqns:
    if step.primitive.name == 'scan':
      yield step
    for value in jax.tree.leaves(list(step.params.values())):
      inner = getattr(value, 'jaxpr', value)
      if hasattr(inner, 'eqns'):
        yield from scans(inner)


# -- parameters -------------------------------------------------------------------------------------------------------


def test_the_parameters_of_a_cell_and_of_all_cells():
  for form, matrices in ((lambda arch: arch, 11), (traced, 66)):
    params = enas_cell.init(jax.random.key(0), form(ENAS_RNN), 8, 16, scale=0.05)
    assert jax.tree.map(jnp.shape, params) == {
      'kernel': (8, 32),
      'recurrent_kernel': (16, 32),
      'nodes': (matrices, 16, 32),
    }
    for value in params.values():
      assert 0.95 * 0.05 < value.max() <= 0.05 and -0.05 <= value.min() < -0.95 * 0.05
  default = enas_cell.init(jax.random.key(0), ENAS_RNN, 8, 16)
  assert 0.24 < abs(default['nodes']).max() <= 0.25


def test_weights_of_the_papers_network():
  """V H embedding and softmax together, V biases, and matrices of H x 2H: one for x, one for h, 11 for nodes."""
  cfg = retrain_cell.PRESETS['enas']()
  cfg.vocabulary = 10_000
  width = retrain_cell.width(cfg, testing.text(), ENAS_RNN, cfg.sizes[0])
  weights = language.weights(language.build(cfg, testing.text(), language_model.enas(), width), ENAS_RNN)
  assert weights == 10_000 * width + 10_000 + 26 * width**2
  assert width == 787 and abs(weights / 24e6 - 1) < 0.001


def test_parameters_of_another_cell_are_refused():
  shared, h, xs, _ = example(N)
  arch = RnnArch((TANH,) * N, (0,) * (N - 1))
  with pytest.raises(ValueError, match=r'6 matrices.*static cell of 4 nodes, which has 3'):
    enas_cell.unroll(shared, arch, h, xs)
  with pytest.raises(ValueError, match=r'3 matrices.*traced cell of 4 nodes, which has 6'):
    enas_cell.unroll(enas_cell.own(shared, arch), traced(arch), h, xs)


# -- text -------------------------------------------------------------------------------------------------------------


def test_equations_of_the_published_cell():
  lines = enas_cell.equations(ENAS_RNN).splitlines()
  assert len(lines) == 25
  assert lines[:6] == [
    'c_0 = sigmoid(Wc x + Uc h)',
    'h_0 = c_0 * tanh(Wh x + Uh h) + (1 - c_0) * h',
    'c_1 = sigmoid(Vc_1 h_0)',
    'h_1 = c_1 * tanh(Vh_1 h_0) + (1 - c_1) * h_0',
    'c_2 = sigmoid(Vc_2 h_1)',
    'h_2 = c_2 * relu(Vh_2 h_1) + (1 - c_2) * h_1',
  ]
  assert lines[-3:] == [
    'c_11 = sigmoid(Vc_11 h_8)',
    'h_11 = c_11 * relu(Vh_11 h_8) + (1 - c_11) * h_8',
    'h_t = (h_3 + h_4 + h_7 + h_9 + h_10 + h_11) / 6',
  ]
  assert enas_cell.equations(RnnArch((IDENTITY,), ())).splitlines() == [
    'c_0 = sigmoid(Wc x + Uc h)',
    'h_0 = c_0 * (Wh x + Uh h) + (1 - c_0) * h',
    'h_t = h_0',
  ]


def test_equations_mean_what_the_cell_computes(x64):
  shared, h, xs, _ = example(N)
  for arch in random_archs(N, 20):
    nodes = np.asarray(enas_cell.own(shared, arch)['nodes'])
    kernels = {'W': shared['kernel'], 'U': shared['recurrent_kernel']}
    kernels |= {f'V{node}': kernel for node, kernel in enumerate(nodes, 1)}
    values = {
      'tanh': np.tanh,
      'relu': NUMPY[RELU],
      'sigmoid': NUMPY[SIGMOID],
      'x': np.asarray(xs[0]),
      'h': np.asarray(h),
    }
    for name, kernel in kernels.items():
      halves = np.split(np.asarray(kernel), 2, 1)
      values |= {f'{name[0]}{k}{name[1:]}': half for k, half in zip('ch', halves, strict=True)}
    for line in enas_cell.equations(arch).splitlines():
      name, expression = line.split(' = ')
      values[name] = eval(re.sub(r'([WUV][ch])_?(\d*) (x|h(?:_\d+)?)', r'(\3 @ \1\2)', expression), values)
    assert_close(values['h_t'], interpret(shared, arch, h, xs[:1], 1.0)[0])


def test_a_cell_of_any_nodes_from_json():
  for nodes in (1, 2, 12):
    made = space.enas_rnn_space(nodes)
    for arch in random_archs(nodes, 3):
      assert space.enas.rnn_from_json(made.to_json(arch)) == arch
  sine = '{"kind": "enas_rnn", "arch": {"activate": [4, 1], "previous": [0]}}'
  assert space.enas.rnn_from_json(sine) == RnnArch((SIN, TANH), (0,))
  for text, words in (
    ('{', 'not JSON'),
    ('{"kind": "enas_rnn", "arch": {"activate": [], "previous": []}}', "'activate' has 0 entries"),
    (sine.replace('[0]', '[1]'), r"'previous', entry 0.*is 1"),
    (sine.replace('[0]', '[]'), "'previous' has 0 entries.*wants 1"),
    (sine.replace('4', '7'), "'activate', entry 0.*is 7"),
    (sine.replace('enas_rnn', 'tree_cell'), "kind is 'tree_cell'"),
  ):
    with pytest.raises(ValueError, match=words) as error:
      space.enas.rnn_from_json(text)
    assert '\n' not in str(error.value)


# -- a language model -------------------------------------------------------------------------------------------------


@FORMS
def test_it_learns_in_a_language_model(form):
  arch = RnnArch((TANH, RELU, SIGMOID), (0, 0))
  static = form(arch) is arch
  network = language_model.build(5, 6, 1, 3, language_model.enas())
  plan = language_model.ChildSpec(
    form(arch), language_model.Hyperparameters(0.03, 0.0, 0.3, 0.3, language_model.Dropout(recurrent=0.1))
  )
  start = network.init(plan, jax.random.key(0))
  assert len(start['cells'][0]['nodes']) == (2 if static else 3)
  assert [carry.shape for carry in network.carry(start)] == [(3, 6)]
  data, optimizer = jax.tree.map(jnp.asarray, text_batches.lay_out(testing.text(), 3, 5, 4)), optax.adam(0.03)

  @jax.jit
  def trained(params):
    def step(i, state):
      params, carry, moments = state
      key = jax.random.fold_in(jax.random.key(1), i)
      grads, carry = jax.grad(network.loss, has_aux=True)(params, plan, carry, network.batch(data, key, i), key)
      updates, moments = optimizer.update(grads, moments)
      return optax.apply_updates(params, updates), carry, moments

    params, *_ = jax.lax.fori_loop(0, 150, step, (params, network.carry(params), optimizer.init(params)))
    return params

  before, after = (network.score(params, plan, (), data)['perplexity'] for params in (start, trained(start)))
  assert before > 4.5 and after < 2
