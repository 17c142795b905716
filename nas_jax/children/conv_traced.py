"""The image classifier child for traced architectures: one program trains every network of one depth."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from nas_jax.children import conv_traced_layers
from nas_jax.children.conv import ChildSpec, InputSpec, classifier, moved
from nas_jax.children.conv_traced_weights import Sizes, Weights, Wires, corner, pairs, present
from nas_jax.space.conv import IMAGE, ConvArch
from nas_jax.space.network import network
from nas_jax.training.child import Child
from nas_jax.types import Array, Key, PyTree


def build(
  depth: int,
  filter_heights: Sequence[int],
  filter_widths: Sequence[int],
  filters: Sequence[int],
  skips: bool,
  inputs: InputSpec,
) -> Child:
  """Returns the child of `conv.build` for traced architectures, whose layers are plain convolutions.

  The weights have the shapes of the largest network of the space. Weights that a network does not have are 0, have no
  effect and get no gradient, so they stay 0.

  Args:
    depth: L, layers of every network.
    filter_heights: filter heights of the space.
    filter_widths: filter widths of the space.
    filters: numbers of filters of the space.
    skips: whether architectures have links; without them each layer reads the one before it.
    inputs: as in `conv.build`.

  Returns:
    A child whose arch is a `ChildSpec` with a `ConvArch` of int32 arrays. Their values must be in the space; this is
    not checked. Its carry is the moving mean and variance [L, F] of every channel.
  """
  sizes = Sizes(inputs.image[2], tuple(filter_heights), tuple(filter_widths), tuple(filters))
  layer, _ = pairs(depth)

  def init(spec: ChildSpec, key: Key) -> PyTree:
    wires = _wires(spec.arch, depth, skips)
    channels = jnp.concatenate([jnp.full(1, inputs.image[2]), wires.filters])
    fan = wires.height * wires.width * (wires.reads * channels[None]).sum(1)
    kernels = jax.random.normal(key, (len(layer), *sizes.most()))
    kernels *= ((2.0 / fan) ** 0.5)[layer][:, None, None, None, None]
    layers = Weights(kernels, jnp.ones((depth, max(filters))), jnp.zeros((depth, max(filters))))
    softmax = jnp.zeros((depth, max(filters), inputs.classes))
    return {'layers': present(sizes, layers, wires), 'softmax': softmax, 'softmax_bias': jnp.zeros(inputs.classes)}

  def carry(params: PyTree) -> PyTree:
    shift = params['layers'].shift
    return jnp.zeros_like(shift), jnp.ones_like(shift)

  def forward(params, stats, spec, x, key):
    train = key is not None
    wires = _wires(spec.arch, depth, skips)
    moving = None if train else stats
    features, used = conv_traced_layers.run(
      sizes, inputs.norm_first, params['layers'], wires, x, spec.hyperparameters.epsilon, moving
    )
    softmax = jnp.where(_ends(sizes, wires), params['softmax'], 0.0)
    logits = jnp.einsum('lbf,lfk->bk', features, softmax) + params['softmax_bias'][None]
    return logits, moved(stats, used) if train else stats

  def decayed(params: PyTree) -> list[Array]:
    return [params['layers'].kernels, params['softmax']]

  return classifier(init, carry, forward, decayed, inputs)


def _wires(arch: ConvArch, depth: int, skips: bool) -> Wires:
  """Returns which layers each layer reads. By the paper's first rule a layer without inputs reads the image."""
  if skips and depth > 1:
    layer, source = pairs(depth - 1)
    links = jnp.zeros((depth, depth), bool).at[layer + 1, source].set(jnp.asarray(arch.links) != 0)
    reads = jnp.concatenate([~links.any(1, keepdims=True), links], 1)
  else:
    reads = jnp.eye(depth, depth + 1, dtype=bool)
  return Wires(reads, *(jnp.asarray(field) for field in (arch.filter_height, arch.filter_width, arch.filters)))


def _ends(sizes: Sizes, wires: Wires) -> Array:
  """Returns the channels that the classifier reads, [L, F, 1] bool: those of layers that no other layer reads."""
  own = jnp.arange(max(sizes.filters))[None] < wires.filters[:, None]
  return (own & ~wires.reads[:, 1:].any(0)[:, None])[..., None]


def narrowed(params: PyTree, stats: PyTree, arch: ConvArch, channels: int) -> tuple[PyTree, PyTree]:
  """Converts the weights and moving statistics of one network to those of the child of `conv.build`.

  Args:
    params: weights of the traced child.
    stats: moving statistics of the traced child.
    arch: the network, static.
    channels: channels of the image.
  """
  (layers, ends), (kernels, scale, shift) = network(arch), params['layers']
  found, moving = [], []
  for i, layer in enumerate(layers):
    top, left = corner(kernels.shape[1:3], layer.window)
    window, own = np.s_[top : top + layer.window[0], left : left + layer.window[1]], slice(layer.filters)
    first = i * (i + 1) // 2 + 1
    read = [(first + j, slice(channels if j == IMAGE else arch.filters[j])) for j in layer.reads]
    kernel = jnp.concatenate([kernels[pair][(*window, source, own)] for pair, source in read], 2)
    found.append({'kernel': kernel, 'scale': scale[i, own], 'shift': shift[i, own]})
    moving.append((stats[0][i, own], stats[1][i, own]))
  softmax = jnp.concatenate([params['softmax'][i, : arch.filters[i]] for i in ends])
  return {'layers': found, 'softmax': softmax, 'softmax_bias': params['softmax_bias']}, moving
