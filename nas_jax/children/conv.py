"""The image classifier child: layers that each read any layers before them (Zoph & Le 2017, Sec. 3.3), or a chain.

A *unit* is a convolution and the batch norm after it, {'kernel', 'scale', 'shift'}, or a batch norm by itself. A
convolution or a norm has one unit, a pool has {}, and a residual block has a list of its two or three units.
"""

from collections.abc import Callable, Sequence
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from nas_jax.datasets import image_batches
from nas_jax.nn import image_ops, precision
from nas_jax.space.conv import CONV, IMAGE, MAX_POOL, NORM
from nas_jax.space.network import RESIDUAL, Network, NetworkOptions, joined, network
from nas_jax.training import metrics
from nas_jax.training.child import Child
from nas_jax.types import Array, Key, PyTree

MOMENTUM = 0.9  # of batch norm's moving statistics


class Hyperparameters(NamedTuple):
  """Hyperparameters of a child: numbers, or arrays if one program trains children with different ones."""

  lr: float | Array
  decay_epoch: float | Array  # epochs before the learning rate decays, in schedules that count epochs
  weight_decay: float | Array  # of kernels and the classifier, not of batch norm or biases
  epsilon: float | Array  # added to the variance in batch norm


class ChildSpec(NamedTuple):
  """What children may differ in: the architecture and the hyperparameters."""

  arch: PyTree  # a ConvArch or a ChainArch
  hyperparameters: Any  # `Hyperparameters`, or those of another network, with a `weight_decay`


class InputSpec(NamedTuple):
  """The images that networks take, and how networks are trained and scored on them."""

  image: tuple[int, int, int]  # height, width and channels
  classes: int  # number of classes
  batch: int  # images of a training step
  score_batch: int  # images of a validation step
  augment: image_batches.Augment = image_batches.Augment()  # of training images
  norm_first: bool = True  # whether batch norm comes before the ReLU, or after it
  precision: str = 'float32'  # of convolutions and of the images between them, one of `precision.PRECISIONS`
  metric: str = 'accuracy'  # one of `metrics.NAMES`; if not accuracy or R2, all scores of classes are computed
  class_weights: tuple[float, ...] = ()  # [classes] weight of the loss of each image by its class; () for 1 each


def build(inputs: InputSpec, options: NetworkOptions = NetworkOptions()) -> Child:  # noqa: B008 - a NamedTuple cannot change
  """Returns the child of static architectures. The `arch` argument of its functions is a `ChildSpec`.

  An epoch consists of whole batches; images that do not fill one are left out of it. Each epoch has its own order of
  the images and its own augmentation, which are the same for all children.

  Args:
    inputs: the images.
    options: the options of networks that are not part of an architecture.

  Returns:
    A child whose score on the validation split is {'accuracy': ...}, {'r2': ...}, or for any other metric all scores of
    classes. Its carry is the moving statistics of batch norm, a (mean, variance) for each unit, which are used for
    scoring.
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
  """Returns an image classifier as a child, given its network; see `build` for batches and scores.

  Args:
    init: (spec, key) -> params.
    carry: (params) -> moving statistics.
    forward: (params, statistics, spec, images, key) -> logits [B, classes], statistics. The key is None in evaluation.
      If the images are bfloat16, so are convolutions and their results; statistics and logits stay float32.
    decayed: (params) -> the weights that the loss decays; none if the optimizer decays weights.
    inputs: as in `build`.
  """

  low = functools.partial(precision.lowered, inputs.precision)

  def take(data: image_batches.Data, key: Key, step: Array) -> tuple[Array, Array]:
    del key
    return image_batches.drawn(data, inputs.batch, step, inputs.augment)

  def loss(params, spec, stats, drawn, key):
    images, labels = drawn
    logits, stats = forward(params, stats, spec, low(images), key)
    # The gradient of the penalty is the weight decay of the paper's momentum optimizer.
    penalty = 0.5 * spec.hyperparameters.weight_decay * image_ops.square_sum(decayed(params))
    if inputs.metric == 'r2':
      return jnp.mean((_numbers(logits, labels) - labels) ** 2) + penalty, stats
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    if inputs.class_weights:
      losses *= jnp.asarray(inputs.class_weights, losses.dtype)[labels]
    return losses.mean() + penalty, stats

  def score(params, spec, stats, data):
    def logits(images):
      return forward(params, stats, spec, low(image_batches.whitened(images)), None)[0]

    def said(images):
      return logits(images).argmax(-1)

    def squares(sofar, drawn):
      images, labels = drawn
      return sofar + jnp.nansum((_numbers(logits(images), labels) - labels) ** 2), None

    def right(sofar, drawn):
      images, labels = drawn
      return sofar + (said(images) == labels).sum(dtype=jnp.int32), None

    def counted(sofar, drawn):
      images, labels = drawn
      return jax.tree.map(jnp.add, sofar, metrics.count(said(images), labels, inputs.classes)), None

    batches = jax.tree.map(
      lambda x: x.reshape(-1, inputs.score_batch, *x.shape[1:]), (data.valid_images, data.valid_labels)
    )
    if inputs.metric == 'accuracy':
      found, _ = jax.lax.scan(right, jnp.zeros((), jnp.int32), batches)
      return {'accuracy': found / (data.valid_labels >= 0).sum()}
    if inputs.metric == 'r2':
      errors, _ = jax.lax.scan(squares, jnp.zeros(()), batches)
      return {'r2': metrics.r2(errors, data.valid_labels)}
    nothing = metrics.Counts(*jnp.zeros((3, inputs.classes), jnp.int32))
    return metrics.scores(jax.lax.scan(counted, nothing, batches)[0])

  return Child(init, carry, take, loss, score, image_ops.compiler_options, inputs.precision)


def _numbers(outputs: Array, labels: Array) -> Array:
  """Returns the predictions for `labels`: all `outputs` [n, K] for labels [n, K], the first column for labels [n]."""
  return outputs if labels.ndim > 1 else outputs[:, 0]


def unmoved(units: PyTree) -> PyTree:
  """Returns the moving statistics before training: a (mean, variance) for each unit."""

  def fresh(unit):
    return jnp.zeros_like(unit['shift']), jnp.ones_like(unit['shift'])

  return jax.tree.map(fresh, units, is_leaf=_is_unit)


def _is_unit(node: PyTree) -> bool:
  return 'shift' in node


def init_params(key: Key, made: Network, image: tuple[int, int, int], classes: int) -> PyTree:
  """Returns initial weights: kernels by He et al. (2015), scale 1 and shift 0 in batch norm, a classifier of zeros."""
  shapes: list[tuple[int, int, int]] = []
  found: list[PyTree] = []
  kernels: list[tuple[dict[str, Array], tuple[int, ...]]] = []
  for layer in made.layers:
    height, width, channels = joined([image if j == IMAGE else shapes[j] for j in layer.reads])
    out, own = layer.filters or channels, layer.kernels(channels)
    units = [{'scale': jnp.ones(out), 'shift': jnp.zeros(out)} for _ in range(len(own) + (layer.kind == NORM))]
    kernels += zip(units, own, strict=False)  # a batch norm by itself has no kernel
    found.append(units if layer.kind == RESIDUAL else units[0] if units else {})
    shapes.append((-(-height // layer.stride[0]), -(-width // layer.stride[1]), out))
  # A single draw for all kernels, because each separate draw would have to be compiled.
  drawn, at = jax.random.normal(key, (sum(math.prod(shape) for _, shape in kernels),)), 0
  for unit, shape in kernels:
    kernel = drawn[at : at + math.prod(shape)].reshape(shape)
    unit['kernel'] = kernel * (2.0 / math.prod(shape[:3])) ** 0.5
    at += kernel.size
  *_, features = joined([shapes[i] for i in made.ends])
  return {'layers': found, 'softmax': jnp.zeros((features, classes)), 'softmax_bias': jnp.zeros(classes)}


def warm_start_params(fresh: PyTree, old: PyTree) -> PyTree:
  """Returns initial weights of a chain, with the first layers taken from a trained shorter chain.

  Args:
    fresh: initial weights of the longer chain, perhaps with leading axes. Its classifier is kept.
    old: weights of the shorter chain, whose layers are the first of the longer one; with the same axes.
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
  """Returns logits [B, classes] of images [B, H, W, C], and the moving statistics after them."""
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
  features = image_ops.pixel_means(side_by_side([outputs[i] for i in made.ends]))
  return features @ params['softmax'] + params['softmax_bias'][None], after


def residual(x, stride, own, moving, epsilon, train):
  """Returns the output of a residual block (He et al. 2016), [B, ceil(H / sh), ceil(W / sw), F], and its statistics.

  The block applies a convolution with the stride, batch norm, ReLU, a convolution and batch norm, adds x, and applies
  ReLU. If it has a third unit, the shortcut is a 1 x 1 convolution with the stride, and batch norm.
  """

  def unit(k, x, stride, relu):
    return normed(image_ops.conv(x, own[k]['kernel'], stride), own[k], moving[k], epsilon, train, relu)

  y, *after = unit(0, x, stride, True)
  y, *second = unit(1, y, (1, 1), False)
  x, *third = unit(2, x, stride, False) if len(own) == 3 else (x,)
  return jax.nn.relu(x + y), after + second + third


def normed(x, own, moving, epsilon, train, relu):
  """Applies batch norm by the batch's statistics in training, else by `moving`. Also returns the new `moving`."""
  if not train:
    return image_ops.normalize(x, own['scale'], own['shift'], *moving, epsilon, relu), moving
  y, mean, variance = image_ops.batch_norm(x, own['scale'], own['shift'], epsilon, relu)
  return y, moved(moving, (mean, variance))


def moved(moving: PyTree, found: PyTree) -> PyTree:
  """Updates moving statistics with the statistics of a batch."""
  return jax.tree.map(lambda old, new: MOMENTUM * old + (1 - MOMENTUM) * new, moving, found)


def side_by_side(images: Sequence[Array]) -> Array:
  """Concatenates the channels of [B, H, W, C]; smaller images are padded evenly with zeros (the paper's third rule)."""
  height, width = (max(image.shape[axis] for image in images) for axis in (1, 2))

  def padded(image: Array) -> Array:
    missing = height - image.shape[1], width - image.shape[2]
    return jnp.pad(image, [(0, 0), *((n // 2, n - n // 2) for n in missing), (0, 0)])

  return jnp.concatenate([padded(image) for image in images], -1)


def pooled(x: Array, window: tuple[int, int], stride: tuple[int, int], largest: bool) -> Array:
  """Applies max or average pooling. Returns [B, ceil(H / sh), ceil(W / sw), C].

  Windows begin at 0, s, 2 s, ... and are cut off at the edge.
  """
  size, steps = (1, *window, 1), (1, *stride, 1)
  padding = [(0, max(0, (n - 1) // s * s + k - n)) for n, k, s in zip(x.shape, size, steps, strict=True)]
  if largest:
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, size, steps, padding)

  def summed(x):
    return jax.lax.reduce_window(x, 0.0, jax.lax.add, size, steps, padding)

  # The sizes of windows are computed for one image: folding the constants of a whole batch would take XLA seconds.
  return summed(x) / summed(jnp.ones((1, *x.shape[1:3], 1), x.dtype))
