"""Convolutional networks and chains as Flax modules, Zoph & Le (2017) Sec. 3.3."""

from collections.abc import Iterator

import flax.linen as nn

from nas_jax.children.conv import side_by_side
from nas_jax.export import layers
from nas_jax.space.chain import ChainArch
from nas_jax.space.conv import AVERAGE_POOL, CONV, IMAGE, MAX_POOL, NORM, ConvArch
from nas_jax.space.network import NAMES, RESIDUAL, Network, NetworkOptions, network
from nas_jax.types import Array, PyTree


class ConvNetwork(nn.Module):
  """A network of convolutions: images [B, H, W, C] to logits [B, classes], as `children.conv` computes them.

  Layer i is named layer_I. A residual block has layer_I_a, layer_I_b and perhaps layer_I_shortcut.

  Attributes:
    arch: a static architecture.
    classes: their number.
    block: see `NetworkOptions`.
    pools: see `NetworkOptions`.
    add_filters: see `NetworkOptions`.
    epsilon: added to the variance in batch norm.
    norm_first: whether batch norm comes before the ReLU; if not, it comes after it.
  """

  arch: ConvArch | ChainArch
  classes: int = 10
  block: int = 1
  pools: tuple[int, ...] = ()
  add_filters: int = 0
  epsilon: float = 1e-5
  norm_first: bool = True

  @nn.nowrap
  def network(self) -> Network:
    """Returns the layers in the order in which they run."""
    return network(self.arch, NetworkOptions(self.block, self.pools, self.add_filters))

  @nn.compact
  def __call__(self, images: Array, train: bool = False) -> Array:
    """Returns logits of whitened images. With `train`, apply it with mutable='batch_stats'.

    Raises ValueError if a layer is of a type that this module does not have.
    """
    norm, outputs, made = layers.Norm(self.epsilon, train), list[Array](), self.network()
    for i, layer in enumerate(made.layers):
      x, name = side_by_side([images if j == IMAGE else outputs[j] for j in layer.reads]), f'layer_{i}'
      if layer.kind == CONV:
        x = layers.convolved(x, name, layer.filters, layer.window, layer.stride)
        x = nn.relu(norm(x, name)) if self.norm_first else norm(nn.relu(x), name)
      elif layer.kind == RESIDUAL:
        x = _residual(x, name, layer.filters, layer.window, layer.stride, norm)
      elif layer.kind == NORM:
        x = norm(x, name)
      elif layer.kind in (MAX_POOL, AVERAGE_POOL):
        x = layers.pooled(x, layer.window, layer.stride, layer.kind == MAX_POOL)
      else:
        raise ValueError(f'layer {i} is of type {NAMES[layer.kind]!r}, which exported networks do not have.')
      outputs.append(x)
    features = side_by_side([outputs[i] for i in made.ends]).mean((1, 2))
    return nn.Dense(self.classes, name='classifier')(features)


def _residual(x, name, filters, window, strides, norm):
  def unit(x, name, window, strides=(1, 1)):
    return norm(layers.convolved(x, name, filters, window, strides), name)

  y = unit(nn.relu(unit(x, f'{name}_a', window, strides)), f'{name}_b', window)
  if x.shape[-1] != filters or strides != (1, 1):
    x = unit(x, f'{name}_shortcut', (1, 1), strides)
  return nn.relu(x + y)


def variables(arch: ConvArch | ChainArch, params: PyTree, stats: PyTree) -> PyTree:
  """Returns the variables of `ConvNetwork` from those of the child; see `export.variables`."""
  del arch

  def units() -> Iterator[layers.Unit]:
    for i, (unit, moving) in enumerate(zip(params['layers'], stats, strict=True)):
      if isinstance(unit, list):
        for part, own, old in zip(('a', 'b', 'shortcut'), unit, moving, strict=False):
          yield f'layer_{i}_{part}', own, old
      else:
        yield f'layer_{i}', unit, moving

  return layers.variables(units(), (), params)
