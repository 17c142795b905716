"""The whole networks of ENAS (Pham et al. 2018, Sec. 2.3), each by itself or all with shared weights.

A network begins with a 3 x 3 convolution. Each layer is a 1 x 1 convolution, batch norm and ReLU, then its operation;
the skips are added to the result, and batch norm follows. After a third and after two thirds of the layers all outputs
so far are reduced to half their height and width, each by its own weights.

Skip j of a layer is the output of layer j, as in `MacroArch`. In the released code it is the input of layer j, and
layer 0 has no batch norm at its end.
"""

from collections.abc import Sequence
import functools
from typing import Any, NamedTuple

import jax.numpy as jnp

from nas_jax.children import conv, enas_layers
from nas_jax.nn import image_ops
from nas_jax.space import enas
from nas_jax.space.base import is_static
from nas_jax.space.enas import MACRO_OPERATIONS, MacroArch, enas_macro_space
from nas_jax.training.child import Child
from nas_jax.training.costs import Count
from nas_jax.types import Array, Key, PyTree


class NetworkOptions(NamedTuple):
  """What all networks have in common. The paper's search has 12 layers of 36 filters and keep = 0.9."""

  layers: int
  filters: int
  operations: tuple[str, ...] = MACRO_OPERATIONS  # that architectures may have
  keep: float = 1.0  # share of the classifier's features that dropout keeps in training
  norm: str = 'moving'  # statistics that batch norm uses in scoring: 'moving', or 'batch', those of the scored images
  double: bool = False  # twice the filters after each reduction, as in the paper's final network
  concat: bool = False  # concatenate skips, then ReLU, 1 x 1 convolution, batch norm, as in that network; else add


def build(inputs: conv.InputSpec, options: NetworkOptions) -> Child:
  """Returns the child of these networks. Each is trained by itself, or all with shared weights.

  Args:
    inputs: as in `conv.build`; batch norm always comes before the ReLU.
    options: what all networks have in common.

  Returns:
    A child whose arch is a `conv.ChildSpec`. With a static `MacroArch` it has the weights of that network. With a
    traced one it has the weights of all networks, and a training step changes only the part that `own` selects. Its
    carry is the moving statistics; a step changes the same part of the statistics.

  Raises:
    ValueError: `options` has an invalid value; or, in its functions, a static arch is not of the space.
  """
  space = enas_macro_space(options.layers, options.operations)

  return enas_layers.child(inputs, options, space, lambda: _zeros(inputs, options), own, run)


def counter(inputs: conv.InputSpec, options: NetworkOptions) -> Count:
  """Returns a function that counts what the network of one static architecture costs."""

  def halvings(part: str, place: int) -> int:
    return place + 1 if part == 'reductions' else sum(cut <= place for cut in enas.cuts(options.layers))

  return enas_layers.counter(inputs.image, lambda: _zeros(inputs, options), own, halvings)


def own(tree: PyTree, arch: MacroArch) -> PyTree:
  """Selects the part of the shared weights (or statistics, or gradients) that one static architecture uses."""
  layers = []
  for i, layer in enumerate(tree['layers']):
    name = MACRO_OPERATIONS[arch.operation[i]]
    join = enas_layers.own_joined(layer['join'], [*_skips(arch, i), 1])
    layers.append({'branches': {name: layer['branches'][name]}, 'join': join})
  reductions = [
    [part if needed else {} for part, needed in zip(parts, _needed(arch, len(layers), cut), strict=True)]
    for parts, cut in zip(tree['reductions'], enas.cuts(len(layers)), strict=True)
  ]
  return tree | {'layers': layers, 'reductions': reductions}


def run(
  params: PyTree, stats: PyTree, arch: MacroArch, options: NetworkOptions, x: Array, epsilon: Any, key: Key | None
) -> tuple[Array, PyTree]:
  """Returns logits [B, classes] of images [B, H, W, C], and the moving statistics; a key means training."""
  how, cuts = enas_layers.mode(options.norm, key), enas.cuts(options.layers)
  ids = [MACRO_OPERATIONS.index(name) for name in options.operations]
  branches = [functools.partial(_branch, name, how) for name in options.operations]
  x, stem = enas_layers.unit(x, params['stem'], stats['stem'], epsilon, how)
  outputs, layers, reductions = list[Any](), list[PyTree](), list[PyTree]()
  for i, (layer, moving) in enumerate(zip(params['layers'], stats['layers'], strict=True)):
    operation = enas_layers.place(arch.operation[i], ids)
    x, after = enas_layers.choose(operation, branches, x, layer['branches'], moving['branches'], epsilon)
    x, join = _joined(x, outputs, _skips(arch, i), layer['join'], moving['join'], epsilon, how)
    layers.append({'branches': after, 'join': join})
    outputs.append(x)
    if i + 1 in cuts:
      parts, old = (tree['reductions'][cuts.index(i + 1)] for tree in (params, stats))
      outputs, after = _reduced(outputs, _needed(arch, options.layers, i + 1), parts, old, epsilon, how)
      reductions.append(after)
    x = outputs[-1]
  return enas_layers.classified(params, x, options.keep, key), {
    'stem': stem,
    'layers': layers,
    'reductions': reductions,
  }


def _branch(name: str, how: str, x: Array, own: PyTree, moving: PyTree, epsilon: Array) -> tuple[Array, PyTree]:
  """Computes one operation. Also returns the statistics of all operations, in which those of this one are new."""
  found = list[PyTree]()
  for part, old in zip(own[name], moving[name], strict=True):
    x, new = enas_layers.unit(x, part, old, epsilon, how, relu=True)
    found.append(new)
  kind, size = name.rsplit(maxsplit=1)
  if 'pool' in kind:
    x = image_ops.pool_around(x, int(size), kind == 'max pool')
  return x, moving | {name: found}


def _joined(x, outputs, skips, own, moving, epsilon, how):
  """Joins the result of the operation and the skips, and applies batch norm."""
  if 'kernel' in own:
    return enas_layers.joined([*outputs, x], [*skips, 1], own, moving, epsilon, how)
  for image, skip in zip(outputs, skips, strict=True):
    if not is_static(skip):
      x += jnp.where(skip != 0, image, 0.0)
    elif skip:
      x += image
  return enas_layers.normed(x, own, moving, epsilon, how)


def _reduced(outputs, needed, own, moving, epsilon, how):
  """Reduces all outputs that a later layer reads. Returns them and the statistics."""

  def halve(x, own, moving):
    return enas_layers.reduced(x, own, moving, epsilon, how)

  def leave(x, own, moving):
    return jnp.zeros_like(halve(x, own, moving)[0]), moving  # only the shape matters

  found = []
  for x, need, part, old in zip(outputs, needed, own, moving, strict=True):
    if is_static(need) and not need:
      found.append((None, old))
    else:
      found.append(enas_layers.choose(need, (leave, halve), x, part, old))
  halved, after = zip(*found, strict=True)
  return list(halved), list(after)


def _skips(arch: MacroArch, i: int) -> Sequence[Any]:
  """Returns [i], whether layer i adds the output of layer 0, 1, ..."""
  first = i * (i - 1) // 2
  return [arch.links[first + j] for j in range(i)]


def _needed(arch: MacroArch, layers: int, cut: int) -> list[Any]:
  """Returns [cut], whether any layer from `cut` on reads the output of layer 0, 1, ..., cut - 1."""

  def read(j):
    links = [_skips(arch, i)[j] for i in range(cut, layers)]
    return int(any(links)) if is_static(links) else functools.reduce(jnp.maximum, links)

  return [*map(read, range(cut - 1)), 1]


def _zeros(inputs: conv.InputSpec, options: NetworkOptions) -> PyTree:
  """Returns zeros in the shapes of all weights."""

  def operation(name, channels, filters):
    kind, size = name.rsplit(maxsplit=1)
    first = enas_layers.zero_unit(1, channels, filters)
    return [first] if 'pool' in kind else [first, enas_layers.zero_unit(int(size), filters, filters, kind == 'sepconv')]

  filters, layers, reductions = options.filters, [], []
  for i in range(options.layers):
    join = enas_layers.zero_joined(i + 1, filters) if options.concat else enas_layers.zero_norm(filters)
    layers.append({'branches': {name: operation(name, filters, filters) for name in options.operations}, 'join': join})
    if i + 1 in enas.cuts(options.layers):
      before, filters = filters, filters * (1 + options.double)
      reductions.append([enas_layers.zero_unit(1, before, filters) for _ in range(i + 1)])
  return {
    'stem': enas_layers.zero_unit(3, inputs.image[2], options.filters),
    'layers': layers,
    'reductions': reductions,
    'softmax': jnp.zeros((filters, inputs.classes)),
    'softmax_bias': jnp.zeros(inputs.classes),
  }
