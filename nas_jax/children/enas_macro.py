"""The whole networks of ENAS (Pham et al. 2018, Sec. 2.3), one alone or all of them with shared weights.

After a 3 x 3 convolution each layer is a 1 x 1 convolution, batch norm and ReLU, then its operation; to that the skips
are added, and batch norm ends it. After a third and two thirds of the layers all outputs so far are halved, each by
weights of its own.

Skip j of a layer is the output of layer j, as in `MacroArch`; in the released code it is what stands before layer j.
There layer 0 has no batch norm at its end.
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
from nas_jax.types import Array, Key, PyTree


class NetworkOptions(NamedTuple):
  """What a network makes of its architecture; the paper's search has 12 layers of 36 filters and keeps .9."""

  layers: int
  filters: int
  operations: tuple[str, ...] = MACRO_OPERATIONS  # that a traced arch may have
  keep: float = 1.0  # share of the features that the classifier is left with in training
  norm: str = 'moving'  # statistics that batch norm takes in scoring: these, or 'batch', those of the images scored
  double: bool = False  # twice the filters after each reduction, as in the final network
  concat: bool = False  # skips concatenated, then ReLU, 1 x 1 convolution and batch norm, as there


def build(inputs: conv.InputSpec, options: NetworkOptions) -> Child:
  """The networks of a form, to be trained one by one or with shared weights.

  Args:
    inputs: as in `conv.build`; batch norm always comes before the ReLU.
    options: of all networks.

  Returns:
    A child whose arch is a `conv.ChildSpec`. With a static `MacroArch` it has that network's weights; with a traced one
    those of all, and steps touch what `own` takes from them. Its carry is the moving statistics, which move where a
    network has weights.

  Raises:
    ValueError: a form that cannot be, here; a static arch of another space, in `init`.
  """
  space = enas_macro_space(options.layers, options.operations)

  return enas_layers.child(inputs, options, space, lambda: _room(inputs, options), own, run)


def own(tree: PyTree, arch: MacroArch) -> PyTree:
  """Of shared weights, or their statistics or gradients, those of the network of a static arch, as that alone has."""
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
  """Logits [B, classes] of images [B, H, W, C], and the moving statistics after them; in training with a key."""
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
  """One operation of a layer, and the statistics of all after it."""
  found = list[PyTree]()
  for part, old in zip(own[name], moving[name], strict=True):
    x, new = enas_layers.unit(x, part, old, epsilon, how, relu=True)
    found.append(new)
  kind, size = name.rsplit(maxsplit=1)
  if 'pool' in kind:
    x = image_ops.pool_around(x, int(size), kind == 'max pool')
  return x, moving | {name: found}


def _joined(x, outputs, skips, own, moving, epsilon, how):
  """What the operation gave, and the skips."""
  if 'kernel' in own:
    return enas_layers.joined([*outputs, x], [*skips, 1], own, moving, epsilon, how)
  for image, skip in zip(outputs, skips, strict=True):
    if not is_static(skip):
      x += jnp.where(skip != 0, image, 0.0)
    elif skip:
      x += image
  return enas_layers.normed(x, own, moving, epsilon, how)


def _reduced(outputs, needed, own, moving, epsilon, how):
  """All outputs halved, but for those that no later layer reads, and the statistics after it."""

  def halve(x, own, moving):
    return enas_layers.reduced(x, own, moving, epsilon, how)

  def leave(x, own, moving):
    return jnp.zeros_like(halve(x, own, moving)[0]), moving  # the shape alone

  found = []
  for x, need, part, old in zip(outputs, needed, own, moving, strict=True):
    if is_static(need) and not need:
      found.append((None, old))
    else:
      found.append(enas_layers.choose(need, (leave, halve), x, part, old))
  halved, after = zip(*found, strict=True)
  return list(halved), list(after)


def _skips(arch: MacroArch, i: int) -> Sequence[Any]:
  """[i] whether layer i adds the output of layer 0, 1, ..."""
  first = i * (i - 1) // 2
  return [arch.links[first + j] for j in range(i)]


def _needed(arch: MacroArch, layers: int, cut: int) -> list[Any]:
  """[cut] whether a layer from `cut` on reads the output of layer 0, 1, ...; layer `cut` reads the one before it."""

  def read(j):
    links = [_skips(arch, i)[j] for i in range(cut, layers)]
    return int(any(links)) if is_static(links) else functools.reduce(jnp.maximum, links)

  return [*map(read, range(cut - 1)), 1]


def _room(inputs: conv.InputSpec, options: NetworkOptions) -> PyTree:
  """Zeros in the shapes of all weights."""

  def operation(name, channels, filters):
    kind, size = name.rsplit(maxsplit=1)
    first = enas_layers.capacity(1, channels, filters)
    return [first] if 'pool' in kind else [first, enas_layers.capacity(int(size), filters, filters, kind == 'sepconv')]

  filters, layers, reductions = options.filters, [], []
  for i in range(options.layers):
    join = enas_layers.joined_room(i + 1, filters) if options.concat else enas_layers.norm_room(filters)
    layers.append({'branches': {name: operation(name, filters, filters) for name in options.operations}, 'join': join})
    if i + 1 in enas.cuts(options.layers):
      before, filters = filters, filters * (1 + options.double)
      reductions.append([enas_layers.capacity(1, before, filters) for _ in range(i + 1)])
  return {
    'stem': enas_layers.capacity(3, inputs.image[2], options.filters),
    'layers': layers,
    'reductions': reductions,
    'softmax': jnp.zeros((filters, inputs.classes)),
    'softmax_bias': jnp.zeros(inputs.classes),
  }
