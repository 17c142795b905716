"""Chains of layers as networks: counted, in words, trained and drawn."""

import functools
import json
import math

import flax.linen as nn
from hypothesis import given, settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from testing import sound

from nas_jax import published, space
from nas_jax.children import conv
from nas_jax.draw import conv as draw_conv
from nas_jax.space.chain import ChainArch, code, default_layers, parse, word_of
from nas_jax.space.conv import AVERAGE_POOL, CONV, IMAGE, MAX_POOL
from nas_jax.space.network import RESIDUAL, Layer, NetworkOptions, describe, layers_of, network

SETTINGS = conv.Hyperparameters(lr=0.1, decay_epoch=1.0, weight_decay=0.0, epsilon=1e-3)
RNG = np.random.default_rng(0)


def chain(*words):
  return ChainArch(tuple(code(parse(word)) for word in words))


def test_the_layers_of_a_chain_by_hand():
  arch = chain('conv 8 4 2', 'residual 8 3 1', 'average pool 2 2', 'max pool 3 2')
  want = (
    Layer(CONV, (IMAGE,), (4, 4), (2, 2), 8),
    Layer(RESIDUAL, (0,), (3, 3), (1, 1), 8),
    Layer(AVERAGE_POOL, (1,), (2, 2), (2, 2), 0),
    Layer(MAX_POOL, (2,), (3, 3), (2, 2), 0),
  )
  assert network(arch) == (want, (3,))
  assert describe(arch).splitlines() == [
    'layer 0: conv 4x4, 8 filters, stride 2x2, reads image',
    'layer 1: residual 3x3, 8 filters, reads 0',
    'layer 2: average pool 2, reads 1',
    'layer 3: max pool 3, stride 2x2, reads 2',
    'classifier: reads 3',
  ]
  # Padding is no layer, and more filters are more in what convolves.
  padded = ChainArch((*arch.layers[:2], 0, *arch.layers[2:], 0, 0))
  assert layers_of(padded) == want and space.count(padded) == space.count(arch)
  assert [layer.filters for layer in network(arch, NetworkOptions(add_filters=5)).layers] == [13, 13, 0, 0]


def test_no_convolutional_space_has_residual_blocks():
  assert RESIDUAL == len(space.LAYER_TYPES) and 'residual' not in space.LAYER_TYPES
  with pytest.raises(ValueError, match='layer_types'):
    space.conv_space(layer_types=('conv', 'residual'))


@pytest.mark.parametrize(
  ('arch', 'options', 'says'),
  [
    (ChainArch(()), NetworkOptions(), r'codes \(\) has no layer: want at least one'),
    (ChainArch((0, 0)), NetworkOptions(), r'codes \(0, 0\) has no layer'),
    (published.XU_CIFAR10, NetworkOptions(block=2), 'block=2, pools=.. are for a ConvArch'),
    (published.XU_CIFAR10, NetworkOptions(pools=(2,)), r'block=1, pools=\(2,\) are for a ConvArch'),
  ],
)
def test_what_is_no_network_is_refused(arch, options, says):
  for make in (network, describe, lambda arch, options: space.count(arch, options=options), draw_conv.svg):
    with pytest.raises(ValueError, match=says) as error:
      make(arch, options)
    assert '\n' not in str(error.value)


def test_xus_network_by_hand():
  found = space.count(published.XU_CIFAR10)
  weights = (
    9 * 3 * 128 + 9 * 128 * 128 + 3 * 128,  # residual, 3 channels to 128
    9 * 128 * 32,
    9 * 32 * 32,
    9 * 32 * 64 + 9 * 64 * 64 + 32 * 64,  # residual, 32 to 64
    0,
    9 * 64 * 64 * 2,  # residuals that add what they read
    9 * 64 * 64 * 2,
    16 * 64 * 128,
    9 * 128 * 64,
  )
  assert found.conv_weights == sum(weights) == 606_976
  # Batch norms: three of 128, two of 32, three of 64, four of 64, one of 128 and one of 64 channels.
  assert found.params == sum(weights) + 2 * (3 * 128 + 2 * 32 + 7 * 64 + 128 + 64) + 65 * 10
  assert found.macs == sum(weights[:4]) * 32**2 + sum(weights[5:]) * 16**2 + 640
  channels = (128, 32, 32, 64, 64, 64, 64, 128, 64)
  assert found.shapes == tuple((n, n, c) for n, c in zip([32] * 4 + [16] * 5, channels, strict=True))
  params, after, logits = built(published.XU_CIFAR10, (32, 32, 3), 10)
  assert sum(leaf.size for leaf in jax.tree.leaves(params)) == found.params and logits.shape == (2, 10)
  assert sum(kernel.size for kernel in kernels(params)) == found.conv_weights
  assert space.chain_space().check(published.XU_CIFAR10) == 9
  assert [len(layer) for layer in after] == [3, 2, 2, 3, 0, 2, 2, 2, 2]  # units of a residual, or mean and variance


def built(arch, image, classes, norm_first=True):
  """Shapes of the child's params, of its statistics after a training step and of its logits."""
  child = conv.build(conv.InputSpec(image, classes, 2, 2, norm_first=norm_first))

  def step():
    params = child.init(conv.ChildSpec(arch, SETTINGS), jax.random.key(0))
    logits, after = conv.run(params, child.carry(params), network(arch), jnp.zeros((2, *image)), 1e-3, True, norm_first)
    assert jax.tree.structure(after) == jax.tree.structure(child.carry(params))
    return params, after, logits

  return jax.eval_shape(step)


def kernels(params):
  return [leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params) if 'kernel' in jax.tree_util.keystr(path)]


LAYERS = (*default_layers(), 'residual 32 4 2', 'max pool 2 3')
CHAINS = st.lists(st.sampled_from(LAYERS), min_size=1, max_size=15)
SIZES = st.integers(4, 9)


@pytest.mark.parametrize('examples', [10, pytest.param(80, marks=pytest.mark.long)])
def test_any_chain_has_the_counted_shapes(examples):
  sampled = given(CHAINS, SIZES, SIZES, st.booleans())(has_the_counted_shapes)
  settings(max_examples=examples, deadline=None, derandomize=True, database=None)(sampled)()


def has_the_counted_shapes(words, height, width, norm_first):
  arch, image = chain(*words), (height, width, 3)
  counted = space.count(arch, image, 5)
  params, after, logits = built(arch, image, 5, norm_first)
  assert logits.shape == (2, 5)
  assert sum(leaf.size for leaf in jax.tree.leaves(params)) == counted.params
  assert sum(leaf.size for leaf in kernels(params)) == counted.conv_weights
  made, channels = network(arch), 3
  for layer, own, moving, (*size, out) in zip(made.layers, params['layers'], after, counted.shapes, strict=True):
    height, width = (math.ceil(n / layer.stride[0]) for n in (height, width))
    assert size == [height, width]
    units = own if layer.kind == RESIDUAL else [own] * bool(own)
    assert [unit['kernel'].shape for unit in units] == list(layer.kernels(channels))
    assert {leaf.shape for leaf in jax.tree.leaves(moving)} <= {(out,)}
    channels = out


def everywhere(tree):
  return jax.tree.map(lambda x: jnp.asarray(RNG.normal(size=x.shape), x.dtype), tree)


class Block(nn.Module):
  """The residual block of He et al. in Flax's layers."""

  channels: int
  kernel: int
  stride: int

  @nn.compact
  def __call__(self, x):
    exact = {'dtype': jnp.float64, 'param_dtype': jnp.float64}
    norm = functools.partial(
      nn.BatchNorm, False, momentum=0.9, epsilon=SETTINGS.epsilon, force_float32_reductions=False, **exact
    )
    convolve = functools.partial(nn.Conv, self.channels, use_bias=False, **exact)
    window, padding = (self.kernel,) * 2, [((self.kernel - 1) // 2, self.kernel // 2)] * 2
    y = nn.relu(norm(name='norm0')(convolve(window, self.stride, padding, name='conv0')(x)))
    y = norm(name='norm1')(convolve(window, 1, padding, name='conv1')(y))
    if self.stride != 1 or x.shape[-1] != self.channels:
      x = norm(name='norm2')(convolve((1, 1), self.stride, 0, name='conv2')(x))
    return nn.relu(x + y)


@pytest.mark.parametrize(('channels', 'kernel', 'stride', 'units'), [(4, 3, 1, 2), (4, 4, 2, 3), (6, 3, 1, 3)])
def test_a_residual_block_is_the_one_of_flax(x64, channels, kernel, stride, units):
  x, weight = jnp.asarray(RNG.normal(size=(3, 5, 6, 4))), jnp.asarray(RNG.normal(size=(3, 1, 1, channels)))
  arch = chain(f'residual {channels} {kernel} {stride}')
  child = conv.build(conv.InputSpec((5, 6, 4), 2, 3, 3))
  params = everywhere(child.init(conv.ChildSpec(arch, SETTINGS), jax.random.key(0)))['layers'][0]
  stats = jax.tree.map(lambda s: jnp.abs(s) + 0.5, everywhere(child.carry({'layers': [params]})))[0]
  assert len(params) == len(stats) == units
  theirs = {f'norm{k}': {'mean': mean, 'var': variance} for k, (mean, variance) in enumerate(stats)}

  def flax(params, x):
    named = {f'conv{k}': {'kernel': unit['kernel']} for k, unit in enumerate(params)}
    named |= {f'norm{k}': {'scale': unit['scale'], 'bias': unit['shift']} for k, unit in enumerate(params)}
    with jax.numpy_rank_promotion('allow'):
      variables = {'params': named, 'batch_stats': theirs}
      y, after = Block(channels, kernel, stride).apply(variables, x, mutable=['batch_stats'])
    after = [(after['batch_stats'][f'norm{k}']['mean'], after['batch_stats'][f'norm{k}']['var']) for k in range(units)]
    return (y**2 * weight).sum(), (y, after)

  def own(params, x):
    y, after = conv.residual(x, (stride, stride), params, stats, SETTINGS.epsilon, True)
    return (y**2 * weight).sum(), (y, after)

  found, want = (jax.jit(jax.value_and_grad(f, (0, 1), has_aux=True))(params, x) for f in (own, flax))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9), found, want)
  assert found[0][1][0].shape == (3, -(-5 // stride), -(-6 // stride), channels)
  assert np.abs(found[1][1]).min() > 0
  # In evaluation by the moving statistics, which stay.
  y, same = conv.residual(x, (stride, stride), params, stats, SETTINGS.epsilon, False)
  jax.tree.map(np.testing.assert_array_equal, same, stats)
  assert not np.allclose(y, want[0][1][0])


def test_weight_decay_and_first_weights_of_all_units():
  arch = chain('residual 16 3 2', 'max pool 3 2', 'conv 8 3 1', 'residual 8 3 1')
  child = conv.build(conv.InputSpec((6, 6, 16), 3, 2, 2))
  spec = conv.ChildSpec(arch, SETTINGS._replace(weight_decay=0.1))
  params = child.init(spec, jax.random.key(0))
  assert [len(kernels(layer)) for layer in params['layers']] == [3, 0, 1, 2] and child.carry(params)[1] == {}
  for kernel in kernels(params):  # He et al. (2015): each by its own fan-in
    assert kernel.std() == pytest.approx((2 / math.prod(kernel.shape[:3])) ** 0.5, rel=0.15)
  assert len({round(float(kernel.ravel()[0] / kernel.std()), 6) for kernel in kernels(params)}) == 6
  drawn = jnp.asarray(RNG.normal(size=(2, 6, 6, 16)), jnp.float32), jnp.arange(2)

  @jax.jit
  def losses(params):
    args = child.carry(params), drawn, jax.random.key(0)
    return child.loss(params, spec, *args)[0] - child.loss(params, spec._replace(hyperparameters=SETTINGS), *args)[0]

  some = everywhere(params)
  want = 0.05 * (sum((kernel**2).sum() for kernel in kernels(some)) + (some['softmax'] ** 2).sum())
  np.testing.assert_allclose(losses(some), want, rtol=1e-4)


@pytest.mark.parametrize(
  'words',
  [
    ('residual 32 3 1', 'max pool 3 2', 'conv 32 4 2', 'average pool 2 2', 'residual 64 3 1', 'conv 32 5 2'),
    ('max pool 3 2', 'residual 8 4 2', 'conv 8 5 2', 'residual 8 3 2', 'max pool 2 3', 'average pool 3 1'),
  ],
)
def test_chains_run_forward_and_backward(words):
  image = (7, 5, 3)
  child = conv.build(conv.InputSpec(image, 4, 4, 4))
  spec = conv.ChildSpec(chain(*words), SETTINGS._replace(weight_decay=1e-4))
  params = child.init(spec, jax.random.key(1))
  params |= {'softmax': jnp.asarray(RNG.normal(size=params['softmax'].shape), jnp.float32)}
  drawn = jnp.asarray(RNG.normal(size=(4, *image)), jnp.float32), jnp.arange(4)
  step = jax.jit(jax.value_and_grad(child.loss, has_aux=True), static_argnums=1)
  (loss, stats), grads = step(params, spec, child.carry(params), drawn, jax.random.key(0))
  assert all(np.isfinite(x).all() for x in jax.tree.leaves((loss, stats, grads)))
  assert all(np.asarray(x).any() for x in jax.tree.leaves(grads))


@pytest.mark.parametrize(('window', 'stride'), [((3, 3), (2, 2)), ((2, 2), (2, 2)), ((3, 2), (1, 3)), ((1, 2), (3, 4))])
def test_pools_of_any_stride_by_a_loop(window, stride):
  x = RNG.normal(size=(2, 6, 7, 3)).astype(np.float32) - 9  # below 0: padding would show
  high, wide = (math.ceil(n / s) for n, s in zip((6, 7), stride, strict=True))
  largest, mean = np.zeros((2, 2, high, wide, 3))
  for i in range(high):
    for j in range(wide):
      top, left = i * stride[0], j * stride[1]
      part = x[:, top : top + window[0], left : left + window[1]]
      largest[:, i, j], mean[:, i, j] = part.max((1, 2)), part.mean((1, 2))
  np.testing.assert_array_equal(conv.pooled(x, window, stride, True), largest)
  np.testing.assert_allclose(conv.pooled(x, window, stride, False), mean, rtol=1e-6)


def test_a_chain_is_drawn_straight_up():
  arch = chain('residual 128 9 2', 'average pool 2 2', 'max pool 3 2', 'residual 64 3 1', 'conv 999 5 2')
  place = sound(network(arch))
  assert [(box.number, box.word, box.note, box.shaded) for box in place.boxes] == [
    ('', 'image', '', False),
    ('0', '9×9, 128', 'residual, stride 2×2', False),
    ('1', 'average pool 2', '', True),
    ('2', 'max pool 3', 'stride 2×2', True),
    ('3', '3×3, 64', 'residual', False),
    ('4', '5×5, 999', 'stride 2×2', False),
    ('', 'softmax', '', False),
  ]
  assert all(arrow.color == -1 for arrow in place.arrows) and len(place.arrows) == 6
  text = draw_conv.svg(arch)
  assert text.startswith('<svg') and text != draw_conv.svg(arch, NetworkOptions(add_filters=1))


@pytest.mark.parametrize('word', [*default_layers(), 'residual 999 9 9', 'max pool 1 9'])
def test_a_chain_of_any_layers_in_a_file(word):
  arch = chain('conv 7 9 3', word, 'conv 7 9 3', word)
  made = space.chain_space(('conv 7 9 3', word), 5)
  text = made.to_json(arch)
  assert space.chain.chain_from_json(text) == arch and word_of(arch.layers[1]) == word
  assert space.kind_of(text) == 'chain'


@pytest.mark.parametrize(
  ('layers', 'says'),
  [
    ('[]', "arch field 'layers' has 0 entries"),
    ('[106431, 0]', '^0 is no code of a layer: want one such as 106431'),
    ('[5]', '^5 is no code'),
    ('[106401]', '^106401 is no code'),  # a kernel of 0
    ('[300522]', '^300522 is no code'),  # a pool of 5 channels
    ('[400022]', '^400022 is no code'),  # no kind
    ('[-99978]', '^-99978 is no code'),
    ('[true]', '^True is no code'),
    ('[106431.0]', '^106431.0 is no code'),
    ('[[1]]', r'^\[1\] is no code'),
    ('106431', 'want a list of ints'),
    ('{}', 'want a list of ints'),
    ('null', 'want a list of ints'),
    ('[106431], "more": []', 'arch has the fields'),
  ],
)
def test_what_is_no_chain_in_a_file(layers, says):
  with pytest.raises(ValueError, match=says) as error:
    space.chain.chain_from_json(f'{{"kind": "chain", "arch": {{"layers": {layers}}}}}')
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('text', ['', '{}', '[]', '{"arch": {"layers": [106431]}}', '{"kind": "chain"}', '[' * 100_000])
def test_what_is_no_architecture_in_a_file(text):
  with pytest.raises(ValueError, match='^not JSON|^not an architecture') as error:
    space.chain.chain_from_json(text)
  assert '\n' not in str(error.value)


def test_a_file_of_another_kind():
  text = space.conv_space(1).to_json(space.conv_space(1).decode([0, 0, 0]))
  with pytest.raises(ValueError, match="kind is 'conv', this space wants 'chain'"):
    space.chain.chain_from_json(text)


def test_the_space_of_a_chain_is_known_by_its_file():
  made = space.chain_space(('residual 8 3 1', 'max pool 2 2'), 2)
  arch = made.decode([1, 0])
  text = json.dumps(json.loads(made.to_json(arch)) | {'space': made.spec})
  again = space.space_of(text)
  assert again.slots == made.slots and again.from_json(text) == arch
