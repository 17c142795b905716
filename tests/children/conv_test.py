"""The image classifier child."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nas_jax import published, space
from nas_jax.children import conv
from nas_jax.datasets import image_batches
from nas_jax.datasets.images import Split
from nas_jax.space.conv import CONV, MAX_POOL, NORM, ConvArch
from nas_jax.space.network import NetworkOptions
from nas_jax.space.network import network as network_of
from nas_jax.training import fit, layout
from nas_jax.training.child import bind_arch

# Strides, a pool, a norm, maps of unequal size, and more than one loose end.
ARCH = ConvArch(
  layer_type=(CONV, MAX_POOL, CONV, NORM, CONV),
  filter_height=(3, 0, 1, 0, 3),
  filter_width=(5, 0, 3, 0, 1),
  stride_height=(2, 0, 1, 0, 1),
  stride_width=(1, 0, 3, 0, 2),
  filters=(3, 0, 2, 0, 4),
  pool=(0, 2, 0, 0, 0),
  links=(1, 0, 0, 0, 1, 1, 1, 0, 0, 0),
  rate=(),
)
SETTINGS = conv.Hyperparameters(lr=0.1, decay_epoch=1.0, weight_decay=0.0, epsilon=1e-3)
PLAN = conv.ChildSpec(ARCH, SETTINGS)
IMAGE, CLASSES, B = (7, 8, 2), 3, 4
RNG = np.random.default_rng(0)


def centre(x, height, width):
  top, left = (height - x.shape[1]) // 2, (width - x.shape[2]) // 2
  room = [(0, 0), (top, height - x.shape[1] - top), (left, width - x.shape[2] - left), (0, 0)]
  return np.pad(x, room) if isinstance(x, np.ndarray) else jnp.pad(x, room)


def by_flax(params, x):
  """The same network, written out with Flax's layers."""

  def convolve(i, y):
    kernel = params['layers'][i]['kernel']
    kh, kw, _, out = kernel.shape
    strides = network_of(ARCH).layers[i].stride
    pads = [((k - 1) // 2, k // 2) for k in (kh, kw)]
    return nn.Conv(out, (kh, kw), strides, pads, use_bias=False).apply({'params': {'kernel': kernel}}, y)

  def norm(i, y):
    own = params['layers'][i]
    start = {'mean': jnp.zeros_like(own['shift']), 'var': jnp.ones_like(own['shift'])}
    exact = {'dtype': float, 'param_dtype': float, 'force_float32_reductions': False}
    layer = nn.BatchNorm(False, epsilon=SETTINGS.epsilon, **exact)
    variables = {'params': {'scale': own['scale'], 'bias': own['shift']}, 'batch_stats': start}
    return layer.apply(variables, y, mutable=['batch_stats'])[0]

  with jax.numpy_rank_promotion('allow'):
    a = nn.relu(norm(0, convolve(0, x)))  # reads the image: 4 x 8
    b = nn.max_pool(a, (2, 2), (2, 2))  # 2 x 4
    c = nn.relu(norm(2, convolve(2, x)))  # reads none, so the image: 7 x 3
    d = norm(3, jnp.concatenate([centre(b, 7, 4), centre(c, 7, 4)], -1))  # 7 x 4
    e = nn.relu(norm(4, convolve(4, a)))  # 4 x 4
    features = jnp.concatenate([centre(d, 7, 4), centre(e, 7, 4)], -1).mean((1, 2))
    return features @ params['softmax'] + params['softmax_bias']


@pytest.fixture(scope='module')
def network():
  return conv.build(conv.InputSpec(IMAGE, CLASSES, B, B))


def some_params(network, double=False):
  params = network.init(PLAN, jax.random.key(0))
  dtype = jnp.float64 if double else jnp.float32
  return jax.tree.map(lambda x: jnp.asarray(RNG.normal(size=x.shape), dtype), params)


def test_the_network_is_the_same_by_flax(x64, network):
  params, x = some_params(network, True), jnp.asarray(RNG.normal(size=(B, *IMAGE)))
  weight = jnp.asarray(RNG.normal(size=(B, CLASSES)))

  def own(params):
    logits, _ = conv.run(params, network.carry(params), network_of(ARCH), x, SETTINGS.epsilon, True)
    return (logits * weight).sum(), logits

  def flax(params):
    logits = by_flax(params, x)
    return (logits * weight).sum(), logits

  (grads, logits), (want_grads, want) = (jax.jit(jax.grad(f, has_aux=True))(params) for f in (own, flax))
  np.testing.assert_allclose(logits, want, rtol=1e-9, atol=1e-10)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-9), grads, want_grads)


def test_params_are_as_many_as_counted(network):
  params = network.init(PLAN, jax.random.key(0))
  found = space.count(ARCH, IMAGE, CLASSES)
  assert sum(x.size for x in jax.tree.leaves(params)) == found.params
  assert sum(layer['kernel'].size for layer in params['layers'] if 'kernel' in layer) == found.conv_weights
  figure = conv.build(conv.InputSpec((32, 32, 3), 10, 8, 8))
  shapes = jax.eval_shape(lambda: figure.init(conv.ChildSpec(published.FIGURE_7, SETTINGS), jax.random.key(0)))
  assert sum(x.size for x in jax.tree.leaves(shapes)) == space.count(published.FIGURE_7).params
  assert sum(layer['kernel'].size for layer in shapes['layers']) == 4_119_228


def random_archs(count):
  """Networks of any depth, with every kind of layer."""
  wide = space.conv_space(6, strides=(1, 2, 3), layer_types=space.LAYER_TYPES, filters=(2, 3, 5), pools=(2, 3))
  for _ in range(count):
    widths = [2 if slot.tokens != 1 or slot.name == 'reads' else slot.width for slot in wide.slots]
    tokens = RNG.integers(0, [widths[i] for i in wide.owner])
    yield wide.decode(tokens, int(RNG.integers(1, 7)))


@pytest.mark.parametrize('count', [30, pytest.param(5000, marks=pytest.mark.long)])
def test_any_string_builds_and_has_the_counted_shapes(count):
  image = (9, 8, 3)
  for arch in random_archs(count):
    options = NetworkOptions(int(RNG.integers(1, 4)), ((), (2,), (2, 5))[RNG.integers(3)], int(RNG.integers(3)))
    child, made = conv.build(conv.InputSpec(image, 5, 2, 2), options), network_of(arch, options)
    counted = space.count(arch, image, 5, options)

    def forward(child=child, arch=arch, made=made):
      params = child.init(conv.ChildSpec(arch, SETTINGS), jax.random.key(0))
      return params, conv.run(params, child.carry(params), made, jnp.zeros((2, *image)), 1e-5, True)[0]

    params, logits = jax.eval_shape(forward)
    assert logits.shape == (2, 5)
    assert sum(x.size for x in jax.tree.leaves(params)) == counted.params
    channels = [layer['scale'].shape[0] for layer in params['layers'] if layer]
    assert channels == [
      shape[2] for shape, layer in zip(counted.shapes, made.layers, strict=True) if layer.kind in (CONV, NORM)
    ]


@pytest.mark.long
def test_random_networks_run_forward_and_backward():
  image = (9, 8, 3)
  for k, arch in enumerate(random_archs(20)):
    child = conv.build(conv.InputSpec(image, 5, 4, 4), NetworkOptions(pools=(3,)) if k % 2 else NetworkOptions(2))
    spec = conv.ChildSpec(arch, SETTINGS._replace(weight_decay=1e-4))
    params = child.init(spec, jax.random.key(k))
    drawn = jnp.asarray(RNG.normal(size=(4, *image)), jnp.float32), jnp.arange(4)
    step = jax.jit(jax.value_and_grad(child.loss, has_aux=True), static_argnums=1)
    (loss, stats), grads = step(params, spec, child.carry(params), drawn, jax.random.key(0))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((loss, stats, grads)))
    assert any(np.asarray(x).any() for x in jax.tree.leaves(grads))


def test_smaller_maps_stand_in_the_middle_by_hand():
  small, large = jnp.ones((1, 1, 2, 1)), jnp.full((1, 4, 3, 1), 2.0)
  found = conv.side_by_side([small, large])
  np.testing.assert_array_equal(found[0, :, :, 0], [[0, 0, 0], [1, 1, 0], [0, 0, 0], [0, 0, 0]])
  np.testing.assert_array_equal(found[0, :, :, 1], np.full((4, 3), 2.0))


def test_pools_by_hand():
  x = jnp.arange(15.0).reshape(1, 3, 5, 1)
  np.testing.assert_array_equal(conv.pooled(x, (2, 2), (2, 2), True)[0, :, :, 0], [[6, 8, 9], [11, 13, 14]])
  np.testing.assert_array_equal(conv.pooled(x, (2, 2), (2, 2), False)[0, :, :, 0], [[3, 5, 6.5], [10.5, 12.5, 14]])


def test_images_are_whitened_each_for_itself():
  images = jnp.asarray(RNG.integers(0, 256, size=(5, 6, 6, 3)), jnp.uint8)
  found = np.asarray(image_batches.whitened(images))
  np.testing.assert_allclose(found.mean((1, 2, 3)), 0, atol=1e-6)
  np.testing.assert_allclose(found.std((1, 2, 3)), 1, rtol=1e-4)
  assert np.isfinite(image_batches.whitened(jnp.full((1, 4, 4, 1), 7, jnp.uint8))).all()  # without any contrast


DRAWS = jnp.asarray(RNG.integers(2**32, size=64, dtype=np.uint32))


def test_crops_and_flips():
  images = jnp.asarray(RNG.normal(size=(64, 5, 6, 1)), jnp.float32)
  turned = np.asarray(image_batches.augmented(DRAWS, images, image_batches.Augment(flip=True)))
  mirrored = np.array([np.array_equal(a, b[:, ::-1]) for a, b in zip(turned, np.asarray(images), strict=True)])
  same = np.array([np.array_equal(a, b) for a, b in zip(turned, np.asarray(images), strict=True)])
  assert (mirrored ^ same).all() and 16 < mirrored.sum() < 48
  large = np.asarray(jax.image.resize(images, (64, 7, 8, 1), 'bilinear'))
  places = set()
  for found, one in zip(image_batches.augmented(DRAWS, images, image_batches.Augment(upsample=2)), large, strict=True):
    windows = {(i, j): one[i : i + 5, j : j + 6] for i in range(3) for j in range(3)}
    (at,) = [place for place, window in windows.items() if np.array_equal(window, found)]
    places.add(at)
  assert len(places) == 9


def test_padded_crops():
  """Crops are exactly the windows of an image that is padded with one pixel of zeros; all of them occur."""
  images = jnp.asarray(RNG.normal(size=(64, 3, 4, 1)), jnp.float32)
  large, places = np.pad(images, [(0, 0), (1, 1), (1, 1), (0, 0)]), set()
  for found, one in zip(image_batches.augmented(DRAWS, images, image_batches.Augment(pad=1)), large, strict=True):
    windows = {(i, j): one[i : i + 3, j : j + 4] for i in range(3) for j in range(3)}
    (at,) = [place for place, window in windows.items() if np.array_equal(window, found)]
    places.add(at)
  assert len(places) == 9


def test_what_a_draw_says():
  """Turned, two down and one to the right of where the frame begins."""
  image = jnp.arange(12.0).reshape(1, 3, 4, 1)
  draws = jnp.asarray([1 | 2 << 1 | 1 << 16], jnp.uint32)
  found = image_batches.augmented(draws, image, image_batches.Augment(pad=1, flip=True))[0, :, :, 0]
  np.testing.assert_array_equal(found, [[7, 6, 5, 4], [11, 10, 9, 8], [0, 0, 0, 0]])


def test_images_meet_other_draws_when_orders_come_round_again():
  data, steps = toy(), 10  # of an epoch
  turned = [
    image_batches.drawn(data, B, jnp.asarray(epoch * steps + 2), image_batches.Augment(flip=True))
    for epoch in (0, image_batches.ORDERS, image_batches.ORDERS**2)
  ]
  for _, labels in turned:
    np.testing.assert_array_equal(labels, turned[0][1])
  assert not np.array_equal(turned[1][0], turned[0][0])
  np.testing.assert_array_equal(turned[2][0], turned[0][0])


def test_weight_decay_spares_batch_norm_and_biases(network):
  params, key = some_params(network), jax.random.key(0)
  drawn = jnp.zeros((B, *IMAGE)), jnp.zeros(B, jnp.int32)

  @jax.jit
  def grads(decay):
    spec = PLAN._replace(hyperparameters=SETTINGS._replace(weight_decay=decay))
    return jax.grad(lambda p: network.loss(p, spec, network.carry(params), drawn, key)[0])(params)

  none, some = grads(0.0), grads(0.1)
  for before, after, own in zip(none['layers'], some['layers'], params['layers'], strict=True):
    for name in own:
      extra = 0.1 * own[name] if name == 'kernel' else 0.0
      np.testing.assert_allclose(after[name], before[name] + extra, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(some['softmax'], none['softmax'] + 0.1 * params['softmax'], rtol=1e-5)
  np.testing.assert_array_equal(some['softmax_bias'], none['softmax_bias'])


def toy():
  """Three classes of images: bright above, bright below, bright at the left."""
  labels = np.arange(60) % 3
  images = RNG.integers(0, 60, size=(60, *IMAGE))
  images[labels == 0, :3] += 120
  images[labels == 1, 4:] += 120
  images[labels == 2, :, :3] += 120
  images, labels = images.astype(np.uint8), labels.astype(np.int32)
  return image_batches.lay_out(Split(images[:40], labels[:40]), [Split(images[40:], labels[40:])], B)[0]


def test_it_learns_and_an_epoch_sees_every_image_once(network):
  data = toy()
  seen = [network.batch(data, jax.random.key(1), jnp.asarray(step))[1] for step in range(10)]
  np.testing.assert_array_equal(np.bincount(np.concatenate(seen)), np.bincount(data.labels))
  other = [network.batch(data, jax.random.key(1), jnp.asarray(step))[1] for step in range(10, 20)]
  assert not np.array_equal(seen, other)
  optimizer = optax.sgd(0.05, momentum=0.9, nesterov=True)
  programs = fit.fitter(planned(network), lambda _: optimizer, 60, 30, layout.child_mesh(jax.devices()[:2]))
  found = fit.fit(programs, (), jax.random.split(jax.random.key(0), 2), data)
  assert (np.asarray(found['accuracy']) > 0.8).all() and (np.asarray(found['failed']) == 0).all()


def planned(network):
  return bind_arch(network, lambda _: PLAN)


def test_scoring_takes_moving_statistics_and_counts_no_filling(network):
  data, params = toy(), some_params(network)
  stats = [(jnp.full_like(m, 0.3), jnp.full_like(v, 2.0)) if len(s) else () for s in network.carry(params)
           for m, v in [s if len(s) else (0.0, 0.0)]]  # fmt: skip
  logits, _ = conv.run(
    params, stats, network_of(ARCH), image_batches.whitened(data.valid_images), SETTINGS.epsilon, False
  )
  right = np.asarray(logits.argmax(-1)) == np.asarray(data.valid_labels)
  assert network.score(params, PLAN, stats, data)['accuracy'] == pytest.approx(right.mean())
  filled = data._replace(valid_labels=data.valid_labels.at[-3:].set(-1))
  assert network.score(params, PLAN, stats, filled)['accuracy'] == pytest.approx(right[:-3].mean())


def test_scored_images_are_filled_up_to_whole_batches():
  images, labels = RNG.integers(0, 256, size=(7, 4, 4, 1)).astype(np.uint8), np.arange(7, dtype=np.int32)
  train, some = Split(images, labels), Split(images[:5], labels[:5])
  one, two = image_batches.lay_out(train, [some, train], 4)
  assert one.valid_images.shape == two.valid_images.shape == (8, 4, 4, 1) and one.images is two.images
  np.testing.assert_array_equal(one.valid_labels, [0, 1, 2, 3, 4, -1, -1, -1])
  np.testing.assert_array_equal(np.sort(one.orders, axis=1), np.tile(np.arange(7), (image_batches.ORDERS, 1)))


def test_channels_are_standardized_by_the_training_images():
  """As in Pham et al. (2018): mean and deviation are of all training pixels of a channel, whatever is scored."""
  images = RNG.integers(0, 256, (50, 4, 3, 3)).astype(np.uint8) // np.array([1, 2, 4], np.uint8)
  images[..., 2] = 7  # this channel does not vary
  train, scored = Split(images, np.zeros(50, np.int32)), Split(images[:9] // 2, np.zeros(9, np.int32))
  (data,) = image_batches.lay_out(train, [scored], 9, 'channel')
  mean, deviation = images.mean((0, 1, 2)), images.std((0, 1, 2))
  np.testing.assert_allclose(data.images[..., :2].mean((0, 1, 2)), 0, atol=1e-5)
  np.testing.assert_allclose(data.images[..., :2].std((0, 1, 2)), 1, rtol=1e-5)
  wanted = (images[:9] // 2 - mean)[..., :2] / deviation[:2]
  np.testing.assert_allclose(data.valid_images[..., :2], wanted, rtol=1e-4, atol=1e-5)
  assert not np.asarray(data.images[..., 2]).any() and np.isfinite(data.valid_images).all()
  # Images keep their differences in brightness, and what is whitened beforehand is used as it is.
  assert image_batches.whitened(data.images) is data.images
  assert np.asarray(data.images).mean((1, 2, 3)).std() > 0.05


def test_zca_decorrelates_the_training_images():
  sources = RNG.normal(size=(4000, 12))
  mixed = sources @ RNG.normal(size=(12, 12)) * 8 + 128
  train = Split(mixed.clip(0, 255).astype(np.uint8).reshape(4000, 2, 3, 2), np.zeros(4000, np.int32))
  (data,) = image_batches.lay_out(train, [Split(train.images[:9], train.labels[:9])], 5, 'zca')
  flat = np.asarray(data.images).reshape(4000, 12)
  exact = image_batches.zca(train.images, 1e-9)(train.images).reshape(4000, 12)
  np.testing.assert_allclose(np.cov(exact.T, bias=True), np.eye(12), atol=2e-3)
  np.testing.assert_allclose(flat.mean(0), 0, atol=1e-4)
  # What is whitened beforehand is used as it is, and by the same turn in both splits.
  assert image_batches.whitened(data.images) is data.images
  np.testing.assert_allclose(data.images[:9], data.valid_images[:9], rtol=1e-4)  # rounding goes by the number of rows
