"""Converts architectures to networks of layers, by the rules of Zoph & Le (2017) Sec. 3.3, and counts their cost."""

from collections.abc import Sequence
import math
from typing import NamedTuple

from nas_jax.space.chain import KINDS, ChainArch, layer_of
from nas_jax.space.checks import check_static
from nas_jax.space.conv import AVERAGE_POOL, CONV, IMAGE, LAYER_TYPES, MAX_POOL, NORM, ConvArch
from nas_jax.words import counted

NAMES = (*LAYER_TYPES, 'residual')
RESIDUAL = len(LAYER_TYPES)  # a block that a chain may have

Arch = ConvArch | ChainArch


class Layer(NamedTuple):
  """One layer of a network."""

  kind: int  # id into NAMES
  reads: tuple[int, ...]  # the layers that it reads, which are concatenated; or IMAGE alone
  window: tuple[int, int]
  stride: tuple[int, int]
  filters: int  # 0 if the layer keeps the number of channels that it reads

  def kernels(self, channels: int) -> tuple[tuple[int, ...], ...]:
    """Returns the shapes [kh, kw, in, out] of its convolutions, each of which has a batch norm after it.

    A residual block (He et al. 2016) has two convolutions, and a third one in its shortcut if the stride is
    not 1 or the number of filters differs from `channels`.

    Args:
      channels: the number of channels that the layer reads.
    """
    if self.kind not in (CONV, RESIDUAL):
      return ()
    first = (*self.window, channels, self.filters)
    if self.kind == CONV:
      return (first,)
    second = (*self.window, self.filters, self.filters)
    if channels == self.filters and self.stride == (1, 1):
      return first, second
    return first, second, (1, 1, channels, self.filters)


def layers_of(arch: Arch) -> tuple[Layer, ...]:
  """Returns the layers of a static architecture.

  By the first of the paper's rules a layer that reads no other layer reads the image. Each layer of a chain reads the
  one before it; a code of 0 is padding. Raises ValueError as `check_static`, or if a chain has no layer.
  """
  check_static(arch, ConvArch, ChainArch)
  return _chained(arch) if isinstance(arch, ChainArch) else _linked(arch)


def _chained(arch: ChainArch) -> tuple[Layer, ...]:
  chain = [layer_of(code) for code in arch.layers if code]
  if not chain:
    raise ValueError(f'a chain of codes {arch.layers} has no layer: want at least one that is not 0.')
  return tuple(
    Layer(NAMES.index(KINDS[kind]), (i - 1,), (kernel, kernel), (stride, stride), channels)  # -1 is the image
    for i, (kind, channels, kernel, stride) in enumerate(chain)
  )


def _linked(arch: ConvArch) -> tuple[Layer, ...]:
  depth, found = max(len(arch.layer_type), len(arch.filters)), []
  for i in range(depth):
    kind = arch.layer_type[i] if arch.layer_type else CONV
    if arch.links or depth == 1:
      row = arch.links[i * (i - 1) // 2 : i * (i + 1) // 2]
      reads = tuple(j for j, link in enumerate(row) if link) or (IMAGE,)
    else:
      reads = (i - 1,)  # which is the image for layer 0
    if kind == CONV:
      stride = (arch.stride_height[i], arch.stride_width[i]) if arch.stride_height else (1, 1)
      found.append(Layer(kind, reads, (arch.filter_height[i], arch.filter_width[i]), stride, arch.filters[i]))
    elif kind in (MAX_POOL, AVERAGE_POOL):
      found.append(Layer(kind, reads, (arch.pool[i],) * 2, (arch.pool[i],) * 2, 0))
    else:
      found.append(Layer(kind, reads, (1, 1), (1, 1), 0))
  return tuple(found)


class NetworkOptions(NamedTuple):
  """What a network has besides the predicted layers. The third experiment of Sec. 4.1 uses all three options.

  A chain can only have `add_filters`: its residual blocks and pools are predicted layers.
  """

  block: int = 1  # layers for each predicted convolution; each reads the inputs of the block and its earlier layers
  pools: tuple[int, ...] = ()  # layers, counted from 1, before which all earlier outputs are max pooled by 2
  add_filters: int = 0  # added to the filters of every convolution and residual block; taken away if negative


class Network(NamedTuple):
  """Layers in the order in which they run."""

  layers: tuple[Layer, ...]
  ends: tuple[int, ...]  # the layers that the classifier reads


def network(arch: Arch, options: NetworkOptions = NetworkOptions()) -> Network:  # noqa: B008 - a NamedTuple cannot change
  """Returns the network of a static architecture.

  By the paper's second rule the classifier reads the layers that no other layer reads. Reading a block means
  reading all of its layers.

  Raises:
    ValueError: `arch` is no architecture or traced, see `check_static`; a chain has no layer; `options` has blocks or
      pools for a chain, or takes away all filters of a layer.
  """
  if isinstance(arch, ChainArch) and (options.block != 1 or options.pools):
    raise ValueError(
      f'block={options.block}, pools={options.pools} are for a ConvArch: a chain has pools as layers; leave 1 and ().'
    )
  written = layers_of(arch)
  fewest = min((layer.filters for layer in written if layer.filters), default=0)
  if fewest and fewest + options.add_filters < 1:
    raise ValueError(
      f'add_filters (={options.add_filters}) leaves no filter in a layer of {counted(fewest, "filter")}: want at least '
      f'{1 - fewest}.'
    )
  consumed = {j for layer in written for j in layer.reads}
  found, floor = list[Layer](), {IMAGE: 0}  # floor: how many pools come before each layer
  pooled: dict[int, int] = {}
  outputs: dict[int, tuple[int, ...]] = {IMAGE: (IMAGE,)}

  def add(layer: Layer, level: int) -> int:
    found.append(layer)
    floor[len(found) - 1] = level
    return len(found) - 1

  def brought(j: int, level: int) -> int:
    """Returns the layer that holds the output of layer j after `level` pools in all, adding pools as needed."""
    while floor[j] < level:
      if j not in pooled:
        pooled[j] = add(Layer(MAX_POOL, (j,), (2, 2), (2, 2), 0), floor[j] + 1)
      j = pooled[j]
    return j

  place = 0
  for i, layer in enumerate(written):
    members = list[int]()
    for _ in range(options.block if layer.kind == CONV else 1):
      place += 1
      level = sum(place >= pool for pool in options.pools)
      sources = [j for source in layer.reads for j in outputs[source]] + members
      own = layer._replace(reads=tuple(brought(j, level) for j in sources))
      members.append(add(own._replace(filters=own.filters + options.add_filters) if own.filters else own, level))
    outputs[i] = tuple(members)
  loose = [j for i in range(len(written)) if i not in consumed for j in outputs[i]]
  ends = tuple(brought(j, level) for j in loose)
  return Network(tuple(found), ends)


def describe(arch: Arch, options: NetworkOptions = NetworkOptions()) -> str:  # noqa: B008 - a NamedTuple cannot change
  """Describes a network in words: the learning rate if it was chosen, then the layers and the classifier.

  (`Space.describe` lists the decisions of the controller; this function lists the layers that follow from them by the
  paper's rules.)
  """
  made = network(arch, options)
  rate = arch.rate if isinstance(arch, ConvArch) else ()
  lines = [f'training: learning rate {rate[0] / 1e6:g}'] if rate else []
  for i, layer in enumerate(made.layers):
    lines.append(f'layer {i}: {_words(layer)}, {_reads(layer.reads)}')
  return '\n'.join([*lines, f'classifier: {_reads(made.ends)}'])


def _words(layer: Layer) -> str:
  name, stride = NAMES[layer.kind], stride_words(layer)
  if layer.filters:
    name += f' {layer.window[0]}x{layer.window[1]}, {layer.filters} filters'
  elif layer.kind in (MAX_POOL, AVERAGE_POOL):
    name += f' {layer.window[0]}'
  return name + (f', {stride}' if stride else '')


def stride_words(layer: Layer, times: str = 'x') -> str:
  """Returns a stride in words, such as 'stride 2x1'; '' for stride 1, or for a pool whose stride is its window."""
  usual = layer.window if layer.kind in (MAX_POOL, AVERAGE_POOL) else (1, 1)
  return '' if layer.stride == usual else f'stride {layer.stride[0]}{times}{layer.stride[1]}'


def _reads(reads: Sequence[int]) -> str:
  return 'reads ' + ' '.join('image' if j == IMAGE else str(j) for j in reads)


class Counts(NamedTuple):
  """The size and the cost of a network."""

  conv_weights: int
  params: int  # all parameters: also those of batch norm and of the classifier
  macs: int  # multiply-adds for one image
  shapes: tuple[tuple[int, int, int], ...]  # [L] height, width, channels of each layer's output


def count(
  arch: Arch,
  image: tuple[int, int, int] = (32, 32, 3),
  classes: int = 10,
  options: NetworkOptions = NetworkOptions(),  # noqa: B008 - a NamedTuple cannot change
) -> Counts:
  """Counts weights and multiply-adds of a network, and the shapes of its outputs.

  Convolutions have no bias and a batch norm after each; there is one dense layer at the end. The output of a layer with
  stride s is ceil(n / s) high or wide. Inputs of different sizes are padded with zeros to the largest.

  Raises ValueError as `network`.

  >>> from nas_jax import published, space
  >>> counts = space.count(published.FIGURE_7, image=(32, 32, 3), classes=10)
  >>> counts.conv_weights, counts.params, counts.shapes[-1]
  (4119228, 4120990, (32, 32, 48))
  """
  (layers, ends), shapes = network(arch, options), list[tuple[int, int, int]]()
  weights = others = macs = 0
  for layer in layers:
    height, width, channels = joined([image if j == IMAGE else shapes[j] for j in layer.reads])
    out = layer.filters or channels
    height, width = (-(-n // s) for n, s in zip((height, width), layer.stride, strict=True))
    kernels = [math.prod(shape) for shape in layer.kernels(channels)]
    weights, macs = weights + sum(kernels), macs + sum(kernels) * height * width
    others += 2 * out * (len(kernels) + (layer.kind == NORM))
    shapes.append((height, width, out))
  *_, features = joined([shapes[i] for i in ends])
  return Counts(weights, weights + others + (features + 1) * classes, macs + features * classes, tuple(shapes))


def joined(shapes: Sequence[tuple[int, int, int]]) -> tuple[int, int, int]:
  """Returns the shape of concatenated outputs: the greatest height and width (the paper's third rule), all channels."""
  heights, widths, channels = zip(*shapes, strict=True)
  return max(heights), max(widths), sum(channels)
