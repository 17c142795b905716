"""The image classifier child: layers that read any of those before them (Zoph & Le 2017, Sec. 3.3 and 4.1), or a chain.

Weights come in units: a convolution and the batch norm after it, {'kernel', 'scale', 'shift'}, or such a norm alone. A
layer has one, a pool {}, and a residual block a list of its two or three.
"""

from collections.abc import Callable, Sequence
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from nas_jax.datasets import image_batches
from nas_jax.nn import image_ops
from nas_jax.space.conv import CONV, IMAGE, MAX_POOL, NORM
from nas_jax.space.network import RESIDUAL, Network, NetworkOptions, joined, network
from nas_jax.training.child import Child
from nas_jax.types import Array, Key, PyTree

MOMENTUM = 0.9  # of batch norm's moving statistics


class Hyperparameters(NamedTuple):
  """Hyperparameters of a child: numbers, or arrays where one program trains children that differ in them."""

  lr: float | Array
  decay_epoch: float | Array  # epochs at that rate, where it decays by epochs
  weight_decay: float | Array  # of kernels and the classifier, not of batch norm or biases
  epsilon: float | Array  # of batch norm


class ChildSpec(NamedTuple):
  """All that one child is made from."""

  arch: PyTree  # a ConvArch or a ChainArch
  hyperparameters: Hyperparameters


class InputSpec(NamedTuple):
  """What a network must know of its images, and how its layers treat them."""

  image: tuple[int, int, int]  # height, width and channels
  classes: int  # labels are below it
  batch: int  # images of a training step
  score_batch: int  # of a validation step
  augment: image_batches.Augment = image_batches.Augment()  # of training images
  norm_first: bool = True  # convolution, batch norm, ReLU; else ReLU before batch norm


def build(inputs: InputSpec, options: NetworkOptions = NetworkOptions()) -> Child:  # noqa: B008 - a NamedTuple cannot change
  """The network of a static arch; what the trainer calls its arch is a `ChildSpec`.

  Args:
    inputs: an epoch is as many whole batches as there are images, in an order of its own, the same for all children
      as is what happens to each image.
    options: what the network makes of the arch.

  Returns:
    A child whose score is {'accuracy': ...} over the validation split, batch norm by moving statistics. Its carry is
    these, a (mean, variance) for each unit.
  """

  def forward(params, stats, spec, x, key):
    train = key is not None
    return run(params, stats, network(spec.arch, options), x, spec.hyperparameters.epsilon, train, inputs.norm_first)

  def init(spec: ChildSpec, key: Key) -> PyTree:
    return init_params(key, network(spec.arch, options), inputs.image, inputs.classes)

  def carry(params: PyTree) -> PyTree:
    return unmoved(params['layers'])

  def decayed(params: PyTree) -> list[Array]:
    units = jax.tree.leaves(params['layers'], is_leaf=_is_unit)
    return [unit['kernel'] for unit in units if 'kernel' in unit] + [params['softmax']]

  return classifier(init, carry, forward, decayed, inputs)


def classifier(
  init: Callable[[ChildSpec, Key], PyTree],
  carry: Callable[[PyTree], PyTree],
  forward: Callable[[PyTree, PyTree, ChildSpec, Array, Key | None], tuple[Array, PyTree]],
  decayed: Callable[[PyTree], list[Array]],
  inputs: InputSpec,
) -> Child:
  """The child of a network; `build` says what it does with images.

  Args:
    init: (plan, key) -> params.
    carry: (params) -> moving statistics.
    forward: (params, statistics, plan, images, key) -> logits [B, classes], statistics; in evaluation without a key.
    decayed: (params) -> the weights that weight decay is for, none if the optimizer sees to it.
    inputs: as in `build`.
  """

  def take(data: image_batches.Data, key: Key, step: Array) -> tuple[Array, Array]:
    del key
    return image_batches.drawn(data, inputs.batch, step, inputs.augment)

  def loss(params, spec, stats, drawn, key):
    images, labels = drawn
    logits, stats = forward(params, stats, spec, images, key)
    # The gradient of the penalty is the weight decay of the paper's momentum optimizer.
    penalty = 0.5 * spec.hyperparameters.weight_decay * image_ops.square_sum(decayed(params))
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean() + penalty, stats

  def score(params, spec, stats, data):
    def one(right, drawn):
      images, labels = drawn
      logits, _ = forward(params, stats, spec, image_batches.whitened(images), None)
      return right + (logits.argmax(-1) == labels).sum(dtype=jnp.int32), None

    batches = jax.tree.map(
      lambda x: x.reshape(-1, inputs.score_batch, *x.shape[1:]), (data.valid_images, data.valid_labels)
    )
    right, _ = jax.lax.scan(one, jnp.zeros((), jnp.int32), batches)
    return {'accuracy': right / (data.valid_labels >= 0).sum()}

  return Child(init, carry, take, loss, score, image_ops.compiler_options)


def unmoved(units: PyTree) -> PyTree:
  """The moving statistics before training: a (mean, variance) in the place of each unit."""

  def fresh(unit):
    return jnp.zeros_like(unit['shift']), jnp.ones_like(unit['shift'])

  return jax.tree.map(fresh, units, is_leaf=_is_unit)


def _is_unit(node: PyTree) -> bool:
  return 'shift' in node


def init_params(key: Key, made: Network, image: tuple[int, int, int], classes: int) -> PyTree:
  """Kernels by He et al. (2015), batch norm's scale 1 and shift 0, a classifier of zeros."""
  shapes: list[tuple[int, int, int]] = []
  found: list[PyTree] = []
  kernels: list[tuple[dict[str, Array], tuple[int, ...]]] = []
  for layer in made.layers:
    height, width, channels = joined([image if j == IMAGE else shapes[j] for j in layer.reads])
    out, own = layer.filters or channels, layer.kernels(channels)
    units = [{'scale': jnp.ones(out), 'shift': jnp.zeros(out)} for _ in range(len(own) + (layer.kind == NORM))]
    kernels += zip(units, own, strict=False)  # a norm alone has none
    found.append(units if layer.kind == RESIDUAL else units[0] if units else {})
    shapes.append((-(-height // layer.stride[0]), -(-width // layer.stride[1]), out))
  # One draw for all: each would cost a compilation of its own.
  drawn, at = jax.random.normal(key, (sum(math.prod(shape) for _, shape in kernels),)), 0
  for unit, shape in kernels:
    kernel = drawn[at : at + math.prod(shape)].reshape(shape)
    unit['kernel'] = kernel * (2.0 / math.prod(shape[:3])) ** 0.5
    at += kernel.size
  *_, features = joined([shapes[i] for i in made.ends])
  return {'layers': found, 'softmax': jnp.zeros((features, classes)), 'softmax_bias': jnp.zeros(classes)}


def warm_start_params(fresh: PyTree, old: PyTree) -> PyTree:
  """The parameters of a chain that begins as another does, from those of that other; its classifier stays fresh.

  Args:
    fresh: of the longer chain, perhaps with leading axes.
    old: of the shorter one; the same axes.
  """
  known = len(old['layers'])
  return fresh | {'layers': [*old['layers'], *fresh['layers'][known:]]}


def run(
  params: PyTree,
  stats: PyTree,
  made: Network,
  x: Array,
  epsilon: float | Array,
  train: bool,
  norm_first: bool = True,
) -> tuple[Array, PyTree]:
  """Logits [B, classes] of images [B, H, W, C], and the moving statistics after them."""
  outputs, after = list[Array](), []
  for layer, own, moving in zip(made.layers, params['layers'], stats, strict=True):
    y = side_by_side([x if j == IMAGE else outputs[j] for j in layer.reads])
    if layer.kind == CONV:
      y = image_ops.conv(y, own['kernel'], layer.stride)
      y = y if norm_first else jax.nn.relu(y)
    if layer.kind == RESIDUAL:
      y, moving = residual(y, layer.stride, own, moving, epsilon, train)
    elif layer.kind in (CONV, NORM):
      y, moving = normed(y, own, moving, epsilon, train, relu=layer.kind == CONV and norm_first)
    else:
      y = pooled(y, layer.window, layer.stride, layer.kind == MAX_POOL)
    outputs.append(y)
    after.append(moving)
  features = side_by_side([outputs[i] for i in made.ends]).mean((1, 2))
  return features @ params['softmax'] + params['softmax_bias'][None], after


def residual(x, stride, own, moving, epsilon, train):
  """A block of He et al. (2016), the ReLU after the sum: y [B, ceil(H / sh), ceil(W / sw), F], and moving statistics.

  Convolution with the stride, batch norm, ReLU, convolution, batch norm, all added to x; where `Layer.kernels` says so,
  x comes by a 1 x 1 convolution of that stride, and batch norm.
  """

  def unit(k, x, stride, relu):
    return normed(image_ops.conv(x, own[k]['kernel'], stride), own[k], moving[k], epsilon, train, relu)

  y, *after = unit(0, x, stride, True)
  y, *second = unit(1, y, (1, 1), False)
  x, *third = unit(2, x, stride, False) if len(own) == 3 else (x,)
  return jax.nn.relu(x + y), after + second + third


def normed(x, own, moving, epsilon, train, relu):
  """Batch norm, by the batch or by the moving statistics, and these after it."""
  if not train:
    return image_ops.normalize(x, own['scale'], own['shift'], *moving, epsilon, relu), moving
  y, mean, variance = image_ops.batch_norm(x, own['scale'], own['shift'], epsilon, relu)
  return y, moved(moving, (mean, variance))


def moved(moving: PyTree, found: PyTree) -> PyTree:
  """Moving statistics after those of one more batch."""
  return jax.tree.map(lambda old, new: MOMENTUM * old + (1 - MOMENTUM) * new, moving, found)


def side_by_side(images: Sequence[Array]) -> Array:
  """The channels of all [B, H, W, C], the smaller in the middle of zeros (the paper's third rule; it names no side)."""
  height, width = (max(image.shape[axis] for image in images) for axis in (1, 2))

  def padded(image: Array) -> Array:
    missing = height - image.shape[1], width - image.shape[2]
    return jnp.pad(image, [(0, 0), *((n // 2, n - n // 2) for n in missing), (0, 0)])

  return jnp.concatenate([padded(image) for image in images], -1)


def pooled(x: Array, window: tuple[int, int], stride: tuple[int, int], largest: bool) -> Array:
  """The largest, or the mean, of each window [B, ceil(H / sh), ceil(W / sw), C].

  They begin at 0, s, 2 s, ...; those that reach beyond the edge are smaller.
  """
  size, steps = (1, *window, 1), (1, *stride, 1)
  padding = [(0, max(0, (n - 1) // s * s + k - n)) for n, k, s in zip(x.shape, size, steps, strict=True)]
  if largest:
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, size, steps, padding)

  def summed(x):
    return jax.lax.reduce_window(x, 0.0, jax.lax.add, size, steps, padding)

  # One pixel of each place is counted: XLA would count those of the whole batch, once, for seconds.
  return summed(x) / summed(jnp.ones((1, *x.shape[1:3], 1), x.dtype))
