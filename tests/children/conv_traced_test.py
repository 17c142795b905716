"""One program for all convolutional networks of a depth, against a program for each."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nas_jax import space
from nas_jax.children import conv, conv_traced, conv_traced_layers
from nas_jax.datasets import image_batches
from nas_jax.datasets.images import Split
from nas_jax.space.conv import ConvArch
from nas_jax.training import fit, layout
from nas_jax.training.child import bind_arch

L, IMAGE, CLASSES, B = 4, (6, 5, 3), 3, 4
HEIGHTS, WIDTHS, FILTERS = (1, 3), (3, 5), (2, 4)
SETTINGS = conv.Hyperparameters(lr=0.05, decay_epoch=1.0, weight_decay=0.1, epsilon=1e-3)
RNG = np.random.default_rng(0)
ALL = L * (L - 1) // 2


def arch_of(links):
  def some(labels):
    return tuple(int(label) for label in RNG.choice(labels, L))

  return ConvArch((), some(HEIGHTS), some(WIDTHS), (), (), some(FILTERS), (), tuple(int(link) for link in links), ())


NETWORKS = {
  'none linked': arch_of([0] * ALL),
  'all linked': arch_of([1] * ALL),
  'chain': arch_of([]),
  'random 0': arch_of(RNG.integers(0, 2, ALL)),
  'random 1': arch_of(RNG.integers(0, 2, ALL)),
}


@functools.cache
def generic(skips=True, norm_first=True):
  problem = conv.InputSpec(IMAGE, CLASSES, B, B, image_batches.Augment(flip=True), norm_first)
  return conv_traced.build(L, HEIGHTS, WIDTHS, FILTERS, skips, problem)


def static(norm_first=True):
  return conv.build(conv.InputSpec(IMAGE, CLASSES, B, B, image_batches.Augment(flip=True), norm_first))


def plan_of(arch):
  return conv.ChildSpec(ConvArch(*(jnp.asarray(f, jnp.int32) if f else () for f in arch)), SETTINGS)


def everywhere(tree):
  """Random numbers in all places, also of weights that a network does not have."""
  return jax.tree.map(lambda x: jnp.asarray(RNG.normal(size=x.shape), x.dtype), tree)


def some_data(n=12):
  split = Split(RNG.integers(0, 256, size=(n, *IMAGE)).astype(np.uint8), RNG.integers(0, CLASSES, n).astype(np.int32))
  return image_batches.lay_out(split, [split], B)[0]


DATA = some_data()


def measured(child, params, spec, stats):
  """Loss, statistics and gradients of a step, and the score."""
  drawn = image_batches.whitened(DATA.images[:B]), DATA.labels[:B]
  (loss, after), grads = jax.value_and_grad(child.loss, has_aux=True)(params, spec, stats, drawn, jax.random.key(0))
  return loss, after, grads, child.score(params, spec, stats, DATA)


@functools.cache
def program(way, skips=True, norm_first=True):
  """The one program of each kind; what accelerators run is run here too."""
  child = generic(skips, norm_first)

  def found(*arguments):
    with pytest.MonkeyPatch.context() as patch:
      if way == 'masked':
        patch.setattr(conv_traced_layers, '_looped', conv_traced_layers._masked)
        patch.setattr(conv_traced_layers, '_evaluated', conv_traced_layers._masked)
      return measured(child, *arguments)

  return jax.jit(found)


def some_weights(arch, norm_first=True):
  child, spec = generic(bool(arch.links), norm_first), plan_of(arch)
  params = jax.eval_shape(child.init, spec, jax.random.key(0))
  params, stats = everywhere(params), everywhere(jax.eval_shape(child.carry, params))
  has = owned(params, stats, arch)
  return jax.tree.map(lambda p, h: p * h, params, has), spec, jax.tree.map(lambda x: jnp.abs(x) + 0.5, stats)


def owned(params, stats, arch):
  """Returns 1 for the weights that a network uses, 0 for others."""

  def total(params):
    return sum(leaf.sum() for leaf in jax.tree.leaves(conv_traced.narrowed(params, stats, arch, IMAGE[2])[0]))

  return jax.grad(total)(params)


def assert_close(found, want, rtol, atol):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), found, want)


def assert_the_static_network(way, arch, norm_first, rtol, atol):
  params, spec, stats = some_weights(arch, norm_first)
  loss, after, grads, score = program(way, bool(arch.links), norm_first)(params, spec, stats)
  narrow = conv_traced.narrowed(params, stats, arch, IMAGE[2])
  other = functools.partial(measured, static(norm_first))
  want = jax.jit(lambda p, s: other(p, conv.ChildSpec(arch, SETTINGS), s))(*narrow)
  grads, after = conv_traced.narrowed(grads, after, arch, IMAGE[2])
  assert_close((loss, after, grads, score), want, rtol, atol)


@pytest.mark.parametrize(
  'name',
  ['none linked', 'random 0', *(pytest.param(name, marks=pytest.mark.long) for name in ('all linked', 'random 1'))],
)
@pytest.mark.parametrize('way', ['looped', 'masked'])
def test_it_is_the_network_of_the_static_child(x64, way, name):
  assert_the_static_network(way, NETWORKS[name], True, 1e-9, 1e-11)


@pytest.mark.parametrize('way', ['looped', pytest.param('masked', marks=pytest.mark.long)])
def test_a_chain_with_relu_before_norm(x64, way):
  assert_the_static_network(way, NETWORKS['chain'], False, 1e-9, 1e-11)


@pytest.mark.long
def test_in_single_precision():
  assert_the_static_network('looped', NETWORKS['random 0'], True, 1e-4, 1e-4)


@pytest.mark.parametrize('way', [pytest.param('looped', marks=pytest.mark.long), 'masked'])
def test_one_program_for_all_and_what_a_network_has_not_does_not_act(x64, way):
  run = program(way)
  run(*some_weights(NETWORKS['random 0']))
  before = run._cache_size()
  for _ in range(15):
    arch = arch_of(RNG.integers(0, 2, ALL))
    params, spec, stats = some_weights(arch)
    loss, after, grads, _ = run(params, spec, stats)
    assert np.isfinite(loss) and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((after, grads)))
    counted = space.count(arch, IMAGE, CLASSES).params
    # Every weight there is has a gradient, by its decay at least, or as batch norm's: others have none.
    acts = jax.tree.map(lambda g: g != 0, grads)
    assert sum(int(a.sum()) for a in jax.tree.leaves(acts)) <= counted
    kernels = sum(int(a.sum()) for a in (acts['layers'].kernels, acts['softmax']))
    narrow, _ = conv_traced.narrowed(grads, stats, arch, IMAGE[2])
    assert kernels == sum(layer['kernel'].size for layer in narrow['layers']) + narrow['softmax'].size
    others = jax.tree.map(lambda p, a: jnp.where(a, p, RNG.normal()), params, acts)
    kept = others | {'layers': others['layers']._replace(scale=params['layers'].scale, shift=params['layers'].shift)}
    plain = spec._replace(hyperparameters=SETTINGS._replace(weight_decay=0.0))  # which is as if the others were 0
    assert_close(run(kept, plain, stats), run(params, plain, stats), 0, 0)
  assert run._cache_size() == before


def stacked(archs):
  return jax.tree.map(lambda *leaves: jnp.stack(leaves), *[plan_of(arch) for arch in archs])


@pytest.mark.long
def test_children_one_after_another_are_children_at_once():
  """The loops by `lax.map`, as on a CPU, and the masked convolutions by `vmap`, as elsewhere."""
  some = [some_weights(arch_of(RNG.integers(0, 2, ALL))) for _ in range(3)]
  params, plans, stats = jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(leaf) for leaf in leaves]), *some)
  one_by_one = jax.jit(lambda *mine: jax.lax.map(lambda one: program('looped')(*one), mine))(params, plans, stats)
  at_once = jax.jit(jax.vmap(program('masked')))(params, plans, stats)
  assert_close(one_by_one, at_once, 1e-4, 1e-4)


def test_accelerators_get_three_convolutions_a_layer_and_no_loops():
  """Programs are lowered for an accelerator, which works without having one."""
  arguments = jax.tree.map(lambda x: jnp.asarray(x)[None], some_weights(NETWORKS['random 0']))
  child = generic()

  def loss(params, spec, stats):
    drawn = jnp.zeros((B, *IMAGE)), jnp.zeros(B, jnp.int32)
    return jax.value_and_grad(child.loss, has_aux=True)(params, spec, stats, drawn, jax.random.key(0))

  text = jax.jit(jax.vmap(loss)).trace(*arguments).lower(lowering_platforms=('cuda',)).as_text()
  assert 'stablehlo.while' not in text
  assert L <= text.count('stablehlo.convolution') <= 3 * L


def test_init_draws_each_network_by_its_own_fan_in():
  """He et al.: 2 / (height * width * channels read), absent weights 0; a classifier of zeros."""
  child = conv_traced.build(2, (1, 3), (3,), (8, 32), True, conv.InputSpec(IMAGE, CLASSES, B, B))
  for links, fan in (((1,), 9 * 32), ((0,), 9 * IMAGE[2])):
    arch = ConvArch((), (3, 3), (3, 3), (), (), (32, 8), (), links, ())
    params = child.init(plan_of(arch), jax.random.key(0))
    narrow, _ = conv_traced.narrowed(params, child.carry(params), arch, IMAGE[2])
    assert narrow['layers'][1]['kernel'].std() == pytest.approx((2 / fan) ** 0.5, rel=0.1)
    assert sum(int((leaf != 0).sum()) for leaf in params['layers']) == (
      sum(layer['kernel'].size for layer in narrow['layers']) + 32 + 8
    )
    assert not params['softmax'].any()


@pytest.mark.long
def test_training_ends_as_the_static_child_does(x64):
  arch = ConvArch((), (1, 3, 3), (3, 3, 3), (), (), (1, 2, 2), (), (1, 0, 1), ())
  small = conv_traced.build(
    3, (1, 3), (3,), (1, 2), True, conv.InputSpec(IMAGE, CLASSES, B, B, image_batches.Augment(flip=True))
  )
  keys, mesh = jax.random.split(jax.random.key(3), 1), layout.child_mesh(jax.devices()[:1])

  def trained(child, plans, optimizer, start=None):
    programs = fit.fitter(child, optimizer, 6, 3, mesh)
    states, plans, key = fit.begin(programs, plans, keys)
    states = states if start is None else states._replace(params=start)
    first = jax.tree.map(lambda x: x.copy(), states.params)
    for _ in range(2):
      states = programs.chunk(DATA, jnp.asarray(3), states, plans, key)
    return first, states, programs.score(DATA, states, plans)

  def optimizer(spec):
    return optax.sgd(spec.hyperparameters.lr, momentum=0.9, nesterov=True)

  first, states, score = trained(small, stacked([arch]), optimizer)
  spec = conv.ChildSpec(arch, SETTINGS)
  one = jax.tree.map(lambda x: x[0], (first, states.params, states.carry))
  start, _ = conv_traced.narrowed(one[0], one[2], arch, IMAGE[2])
  assert all(np.abs(layer['kernel']).max() > 0 for layer in start['layers'])
  _, other, other_score = trained(
    bind_arch(static(), lambda _: spec), (), lambda _: optimizer(spec), jax.tree.map(lambda x: x[None], start)
  )
  ended = conv_traced.narrowed(*one[1:], arch, IMAGE[2])
  assert_close(ended, jax.tree.map(lambda x: x[0], (other.params, other.carry)), 1e-8, 1e-10)
  assert_close(score, other_score, 1e-9, 0)
  absent = jax.tree.map(lambda x: (x[0] != 0).sum(), states.params['layers'].kernels)
  assert int(absent) == space.count(arch, IMAGE, CLASSES).conv_weights
