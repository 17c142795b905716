"""The image networks of ENAS: single ones, and all of them in one tree of shared weights."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import testing

from nas_jax import export, published, space
from nas_jax.children import conv, enas_layers, enas_macro, enas_micro
from nas_jax.datasets import image_batches
from nas_jax.space.enas import MACRO_OPERATIONS, MICRO_OPERATIONS, MacroArch, MicroArch
from nas_jax.training import fit, layout
from nas_jax.training.child import bind_arch

IMAGE, CLASSES, B = (6, 5, 1), 3, 4
SETTINGS = conv.Hyperparameters(lr=0.05, decay_epoch=1.0, weight_decay=0.1, epsilon=1e-3)
PROBLEM = conv.InputSpec(IMAGE, CLASSES, B, B)
RNG = np.random.default_rng(0)
DRAWN = jnp.asarray(RNG.normal(size=(B, *IMAGE)), jnp.float32), jnp.arange(B) % CLASSES
KEY = jax.random.key(7)

FORMS = {
  'macro': (enas_macro, enas_macro.NetworkOptions(3, 2), space.enas_macro_space(3)),
  'macro to the end': (
    enas_macro,
    enas_macro.NetworkOptions(3, 3, ('conv 3', 'max pool 3'), double=True, concat=True),
    space.enas_macro_space(3, ('conv 3', 'max pool 3')),
  ),
  'micro': (enas_micro, enas_micro.NetworkOptions(1, 2, 2, drop_path=0.5), space.enas_micro_space(2)),
  'micro with reductions': (
    enas_micro,
    enas_micro.NetworkOptions(3, 2, 1, ('sepconv 3', 'max pool 3')),
    space.enas_micro_space(1, ('sepconv 3', 'max pool 3')),
  ),
}


def numbers(shapes):
  """Returns random weights. Shifts are small, so that a ReLU after batch norm passes some values."""

  def drawn(path, x):
    return jnp.asarray(RNG.normal(size=x.shape) * (0.1 if getattr(path[-1], 'key', '') == 'shift' else 1.0), float)

  return jax.tree.map_with_path(drawn, shapes)


def any_arch(made):
  widths = [2 if slot.kind == space.Kind.LINK else slot.width for slot in made.slots]
  return made.decode(RNG.integers(0, [widths[owner] for owner in made.owner]))


def traced(arch):
  return jax.tree.map(lambda x: x[0], space.stack([arch]))


def shapes(child, arch):
  return jax.eval_shape(lambda: child.init(conv.ChildSpec(arch, SETTINGS), jax.random.key(0)))


def measured(child, arch, params, stats):
  """Loss, statistics and gradients of a step."""
  plan, drawn = conv.ChildSpec(arch, SETTINGS), (DRAWN[0].astype(float), DRAWN[1])
  (loss, after), grads = jax.value_and_grad(child.loss, has_aux=True)(params, plan, stats, drawn, KEY)
  return loss, after, grads


def assert_close(found, want, rtol=1e-3, atol=1e-4):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), found, want)


# One operation.


def convolved(x, kernel, groups=1):
  return jax.lax.conv_general_dilated(
    x, kernel, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC'), feature_group_count=groups
  )


def by_hand(x, unit, relu):
  """Convolution, optionally after a depthwise one, and batch norm with the statistics of the batch."""
  x = convolved(x, unit['depthwise'][:, :, None], x.shape[-1]) if 'depthwise' in unit else x
  x = np.asarray(convolved(x, unit['kernel']))
  x = (x - x.mean((0, 1, 2))) / np.sqrt(x.var((0, 1, 2)) + SETTINGS.epsilon)
  x = x * np.asarray(unit['scale']) + np.asarray(unit['shift'])
  return x.clip(0) if relu else x


def pooled_by_hand(x, largest):
  out = np.zeros(x.shape, np.float32)
  for i in range(x.shape[1]):
    for j in range(x.shape[2]):
      window = np.asarray(x)[:, max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2]
      out[:, i, j] = window.max((1, 2)) if largest else window.mean((1, 2))
  return out


def wanted(module, name, x, parts):
  for unit in parts:
    x = by_hand(x, unit, True) if module is enas_macro else by_hand(x.clip(0), unit, False)
  return pooled_by_hand(x, name == 'max pool 3') if 'pool' in name else x


@pytest.mark.parametrize('module, names', [(enas_macro, MACRO_OPERATIONS), (enas_micro, MICRO_OPERATIONS)])
def test_each_operation_by_hand(module, names):
  if module is enas_macro:
    room = enas_macro._zeros(PROBLEM, enas_macro.NetworkOptions(1, 3))['layers'][0]['branches']
  else:
    room = jax.tree.map(
      lambda x: x[0], enas_micro._zeros(PROBLEM, enas_micro.NetworkOptions(1, 3))['cells'][0]['blocks'][0][0]
    )
  own, x = numbers(room), np.asarray(RNG.normal(size=(B, 6, 5, 3)), np.float32)
  moving = conv.unmoved(own)
  branches = [lambda *operands, name=name: module._branch(name, 'train', *operands) for name in names]
  run = jax.jit(lambda k: enas_layers.choose(k, branches, x, own, moving, SETTINGS.epsilon))
  for k, name in enumerate(names):
    want = wanted(module, name, x, own[name])
    y, after = run(jnp.asarray(k))
    np.testing.assert_allclose(y, want, rtol=1e-4, atol=1e-4)
    still = {other: after[other] for other in names if other != name}
    assert_close(still, {other: moving[other] for other in still}, 0, 0)
    if own[name]:
      assert not np.allclose(after[name][-1][0], moving[name][-1][0])
    alone = {name: own[name]}, {name: moving[name]}
    y, after = enas_layers.choose(0, [branches[k]], x, *alone, SETTINGS.epsilon)
    np.testing.assert_allclose(y, want, rtol=1e-4, atol=1e-4)
    assert list(after) == [name]


def test_reductions_by_hand_and_of_odd_sizes():
  x = jnp.arange(15.0).reshape(1, 3, 5, 1)
  unit = {'kernel': jnp.ones((1, 1, 1, 3)), 'scale': jnp.ones(3), 'shift': jnp.zeros(3)}
  moving = jnp.zeros(3), jnp.ones(3)
  y, after = enas_layers.reduced(x, unit, moving, 0.0, 'moving')
  np.testing.assert_array_equal(y[0, :, :, 0], [[0, 2, 4], [10, 12, 14]])
  for shifted in (1, 2):  # of an odd number of filters the smaller half stands on the pixels at 0, 2, ...
    np.testing.assert_array_equal(y[0, :, :, shifted], [[6, 8, 0], [0, 0, 0]])
  assert after is moving
  for size, want in (((1, 1), (1, 1)), ((2, 7), (1, 4))):
    assert enas_layers.reduced(jnp.ones((2, *size, 1)), unit, moving, 0.0, 'moving')[0].shape == (2, *want, 3)


def test_a_sum_over_those_taken_is_their_concatenation():
  images = [jnp.asarray(RNG.normal(size=(B, 3, 2, 2)), jnp.float32) for _ in range(4)]
  shared = numbers(enas_layers.zero_joined(4, 2))
  moving = jnp.zeros(2), jnp.ones(2)
  run = jax.jit(lambda taken: enas_layers.joined(images, list(taken), shared, moving, 1e-3, 'train'))
  for taken in ((1, 0, 0, 1), (0, 0, 1, 0), (1, 1, 1, 1)):
    alone = enas_layers.own_joined(shared, taken)
    assert alone['kernel'].shape == (1, 1, 2 * sum(taken), 2)
    assert_close(run(jnp.array(taken)), enas_layers.joined(images, taken, alone, moving, 1e-3, 'train'), 1e-4, 1e-5)
  assert run._cache_size() == 1


# One network among all.


def nonzero(tree):
  return sum(int(np.count_nonzero(leaf)) for leaf in jax.tree.leaves(tree))


def kernels(tree):
  return [leaf for path, leaf in jax.tree.leaves_with_path(tree) if path[-1].key in ('kernel', 'depthwise')]


@pytest.mark.parametrize(
  'name',
  [
    'macro',
    *(pytest.param(name, marks=pytest.mark.long) for name in ('macro to the end', 'micro', 'micro with reductions')),
  ],
)
def test_shared_weights_act_as_those_of_the_network_alone(x64, name):
  """Loss, statistics and gradients; nothing else has a gradient or moves, and one program serves all."""
  module, form, made = FORMS[name]
  child = module.build(PROBLEM, form)
  run = jax.jit(lambda arch, params, stats: measured(child, arch, params, stats))
  for k in range(6):
    arch = any_arch(made)
    params = numbers(shapes(child, traced(arch)))
    stats = jax.tree.map(lambda x: jnp.abs(x) + 0.5, numbers(jax.eval_shape(child.carry, params)))
    loss, after, grads = run(traced(arch), params, stats)
    own_grads, change = module.own(grads, arch), jax.tree.map(jnp.subtract, after, stats)
    assert nonzero(grads) == nonzero(own_grads) and all(np.asarray(leaf).any() for leaf in kernels(own_grads))
    own_change = module.own(change, arch)
    assert nonzero(change) == nonzero(own_change) and all(leaf.any() for leaf in jax.tree.leaves(own_change))
    if k == 0:  # each is a program to compile
      own = module.own(params, arch), module.own(stats, arch)
      assert jax.tree.map(jnp.shape, own[0]) == jax.tree.map(jnp.shape, shapes(child, arch))
      want = jax.jit(lambda *own, arch=arch: measured(child, arch, *own))(*own)
      assert_close((loss, module.own(after, arch), own_grads), want, 1e-9, 1e-11)
  assert run._cache_size() == 1


@pytest.mark.parametrize(
  'child, arch, weights',
  [
    # Stem, three layers (1 x 1, operation, norm), the two outputs that are read once halved, classifier.
    (
      enas_macro.build(PROBLEM, enas_macro.NetworkOptions(3, 2)),
      MacroArch((0, 5, 3), (1, 0, 1)),
      22 + (8 + 40 + 4) + (8 + 4) + (8 + 58 + 4) + 8 + 8 + 9,
    ),
    # Filters 2, 4, 8; the skip and layer 2 itself concatenated, all else alone.
    (
      enas_macro.build(PROBLEM, enas_macro.NetworkOptions(3, 2, double=True, concat=True)),
      MacroArch((4, 5, 4), (0, 0, 1)),
      22 + (8 + 8) + (8 + 8) + (16 + 8 + 24) + (32 + 16) + (64 + 16 + 128 + 16) + 27,
    ),
    # Stem, two inputs, twice a separable convolution, two loose ends (a node that nothing reads, and the block).
    (
      enas_micro.build(PROBLEM, enas_micro.NetworkOptions(1, 2, 1)),
      MicroArch((0, 0), (0, 4), (0, 0), (0, 0)),
      22 + 16 + 52 + 12 + 9,
    ),
  ],
)
def test_weights_of_a_network_alone_by_hand(child, arch, weights):
  assert sum(x.size for x in jax.tree.leaves(shapes(child, arch))) == weights


@pytest.mark.parametrize('name', FORMS)
def test_costs_are_those_of_the_exported_network(name):
  """Counted from the shapes of shared weights, and from the traced program of the network. Images have odd sizes."""
  module, options, made = FORMS[name]
  names = {'filters': options.filters}
  names |= {'cells': options.cells} if module is enas_micro else {'double': options.double, 'concat': options.concat}
  arch = any_arch(made)
  network = export.module(arch, classes=CLASSES, **names)
  image = jax.ShapeDtypeStruct((1, *IMAGE), jnp.float32)
  assert module.counter(PROBLEM, options)(arch) == export.cost(network, image)


def test_the_published_cell_in_full_size():
  child = enas_micro.build(conv.InputSpec((32, 32, 3), 10, 8, 8), enas_micro.NetworkOptions(15, 36))
  found = shapes(child, published.ENAS_MICRO)
  filters = [cell.filters for cell in enas_micro.cells_of(enas_micro.NetworkOptions(15, 36))]
  assert filters == [36] * 5 + [72] * 6 + [144] * 6
  assert sum(x.size for x in jax.tree.leaves(found)) == 3_401_398  # 3.40M, as docs/enas.md has it
  assert [cell['ends']['shift'].size for cell in found['cells']] == filters
  assert {cell['ends']['kernel'].shape[2] // f for cell, f in zip(found['cells'], filters, strict=True)} == {4, 5}


def test_first_weights():
  """He et al. (2015) for each kernel, also of those in a row for nodes; a classifier of zeros."""
  child = enas_micro.build(conv.InputSpec((8, 8, 3), 3, 4, 4), enas_micro.NetworkOptions(1, 64))
  params = child.init(conv.ChildSpec(traced(published.ENAS_MICRO), SETTINGS), jax.random.key(0))
  part = params['cells'][0]['blocks'][4][0]['sepconv 5'][1]
  assert part['kernel'].shape == (6, 1, 1, 64, 64) and part['depthwise'].shape == (6, 5, 5, 64)
  assert part['kernel'].std() == pytest.approx((2 / 64) ** 0.5, rel=0.05)
  assert part['depthwise'].std() == pytest.approx((2 / 25) ** 0.5, rel=0.05)
  assert (part['scale'] == 1).all() and not part['shift'].any() and not params['softmax'].any()


# Training and scoring.


SMALL = {
  'macro': (enas_macro, enas_macro.NetworkOptions(1, 2, ('max pool 3',)), MacroArch((5,), ())),
  'micro': (
    enas_micro,
    enas_micro.NetworkOptions(1, 2, 1, ('max pool 3', 'identity')),
    MicroArch((0, 1), (3, 3), (0, 0), (3, 3)),
  ),
}


def logits(module, form, arch, key, stats=None, params=None):
  child = module.build(PROBLEM, form)
  params = some_params(child, arch) if params is None else params
  stats = child.carry(params) if stats is None else stats
  return module.run(params, stats, arch, form, DRAWN[0], SETTINGS.epsilon, key)


def some_params(child, arch):
  keys = iter(jax.random.split(jax.random.key(1), 100))
  return jax.tree.map(lambda x: jax.random.normal(next(keys), x.shape), shapes(child, arch))


@pytest.mark.parametrize('name', SMALL)
def test_dropout_is_for_training(name):
  module, form, arch = SMALL[name]
  whole, whole_trained = (logits(module, form, arch, key)[0] for key in (None, KEY))
  rates = [{'keep': 0.5}, {'drop_path': 0.5}] if module is enas_micro else [{'keep': 0.5}]
  for rate in rates:
    some, some_trained = (logits(module, form._replace(**rate), arch, key)[0] for key in (None, KEY))
    np.testing.assert_array_equal(some, whole)
    assert not np.allclose(some_trained, whole_trained)
  if module is enas_micro:  # what is not changed is not dropped
    identity = MicroArch((0, 1), (4, 4), (0, 0), (3, 3))
    before, after = (logits(enas_micro, form._replace(drop_path=rate), identity, KEY)[0] for rate in (1.0, 0.5))
    np.testing.assert_array_equal(after, before)


def test_what_is_kept_is_larger():
  params = {'softmax': jnp.eye(1000), 'softmax_bias': jnp.zeros(1000)}
  found = enas_layers.classified(params, jnp.ones((2, 3, 3, 1000)), 0.8, KEY)
  np.testing.assert_allclose(np.unique(found), [0, 1.25])
  assert found.mean() == pytest.approx(1, abs=0.05) and (found[0] != found[1]).any()


@pytest.mark.parametrize('name', SMALL)
def test_scoring_takes_moving_or_batch_statistics(name):
  module, form, arch = SMALL[name]
  trained, after = logits(module, form, arch, KEY)
  batch, kept = logits(module, form._replace(norm='batch'), arch, None)
  moving, same = logits(module, form, arch, None)
  np.testing.assert_array_equal(batch, trained)
  assert not np.allclose(moving, trained)
  start = module.build(PROBLEM, form).carry(some_params(module.build(PROBLEM, form), arch))
  assert_close((kept, same), (start, start), 0, 0)
  # A step moves a tenth of the way to the batch's statistics, which then are those that 'moving' takes.
  there = jax.tree.map(lambda old, new: old + 10 * (new - old), start, after)
  np.testing.assert_allclose(logits(module, form, arch, None, there)[0], trained, rtol=1e-3, atol=1e-3)


@pytest.mark.long
def test_children_one_after_another_are_children_at_once(x64):
  """Traced architectures in a loop on each device, as on a CPU, and all together by `vmap`, as elsewhere."""
  operations = (
    'sepconv 3',
    'average pool 3',
  )  # pixels that are largest twice over have gradients that rounding decides
  made = space.enas_macro_space(2, operations)
  child = enas_macro.build(PROBLEM, enas_macro.NetworkOptions(2, 2, operations))
  archs = space.stack([any_arch(made) for _ in range(4)])
  params = numbers(
    jax.eval_shape(lambda: jax.vmap(lambda arch: child.init(conv.ChildSpec(arch, SETTINGS), KEY))(archs))
  )

  def one(_, arch, params):
    return measured(child, arch, params, child.carry(params))

  mapped = layout.over_children(one, layout.child_mesh(jax.devices()[:2]))((), archs, params)
  assert_close(mapped, jax.jit(jax.vmap(lambda *mine: one((), *mine)))(archs, params), 1e-9, 1e-11)


def test_it_learns():
  _, form, arch = SMALL['macro']
  child = enas_macro.build(conv.InputSpec(IMAGE, CLASSES, 9, 4), form._replace(filters=6))
  images = testing.pictures()
  data = image_batches.lay_out(images.train, [images.valid], 4)[0]
  plan, mesh = conv.ChildSpec(arch, SETTINGS), layout.child_mesh(jax.devices()[:1])
  programs = fit.fitter(bind_arch(child, lambda _: plan), lambda _: optax.sgd(0.1, 0.9), 60, 60, mesh)
  found = fit.fit(programs, (), jax.random.split(KEY, 1), data)
  assert found['accuracy'][0] > 0.8 and found['failed'][0] == 0


@pytest.mark.parametrize(
  'make, words',
  [
    (lambda: enas_macro.build(PROBLEM, enas_macro.NetworkOptions(0, 2)), r'layers \(=0\)'),
    (lambda: enas_macro.build(PROBLEM, enas_macro.NetworkOptions(2, 2, norm='mean')), "norm .*'mean'.*moving, batch"),
    (lambda: enas_micro.build(PROBLEM, enas_micro.NetworkOptions(0, 2)), r'cells \(=0\)'),
    (
      lambda: shapes(enas_macro.build(PROBLEM, enas_macro.NetworkOptions(2, 2)), MacroArch((0, 6), (0,))),
      'is 6: this space allows 0',
    ),
    (
      lambda: shapes(
        enas_micro.build(PROBLEM, enas_micro.NetworkOptions(1, 2)), MicroArch((0, 0), (0, 4), (0, 0), (0, 0))
      ),
      'wants 10',
    ),
  ],
)
def test_what_cannot_be_is_one_line(make, words):
  with pytest.raises(ValueError, match=words) as error:
    make()
  assert '\n' not in str(error.value)
