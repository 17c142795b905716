"""What the networks of ENAS (Pham et al. 2018) are put together from, for one architecture or for all of them.

As in `conv`, weights come in units, {'kernel', 'scale', 'shift'}: a convolution and the batch norm after it. A
separable one has a window for each channel before it, 'depthwise'. Its moving statistics, (mean, variance), go along.

An architecture is *static*, Python ints, and its network has weights of its own and nothing else; or it is *traced*,
and one tree holds the weights of every network, of which a step takes and moves those that are asked for.
"""

from collections.abc import Callable, Sequence
import math
from typing import Any

import jax
import jax.numpy as jnp

from nas_jax.children import conv
from nas_jax.nn import image_ops
from nas_jax.space.base import Space, is_static
from nas_jax.training.child import Child
from nas_jax.types import Array, Key, PyTree

NORMS = ('moving', 'batch')  # whose statistics normalize in scoring
TRAIN = 'train'  # the third way: those of the batch, which move the others


def child(
  inputs: conv.InputSpec, options: Any, space: Space, capacity: Callable, own: Callable, run: Callable
) -> Child:
  """The child of `macro` or `micro`, by what each says of its weights and how they work.

  Weight decay is not in its loss, but the optimizer's: this gradient is 0 for all weights that a network does not have.

  Args:
    inputs: as in `conv.build`.
    options: of all networks.
    space: of their architectures; a static one of another is refused.
    capacity: () -> zeros in the shapes of all weights.
    own: (tree, static arch) -> those of its network.
    run: (params, statistics, arch, form, images, epsilon, key or None) -> logits, statistics.
  """
  mode(options.norm, None)

  def init(spec: conv.ChildSpec, key: Key) -> PyTree:
    if not is_static(spec.arch):
      return drawn(key, jax.eval_shape(capacity))
    space.check(spec.arch)
    return drawn(key, jax.eval_shape(lambda: own(capacity(), spec.arch)))

  def forward(params, stats, spec, x, key):
    return run(params, stats, spec.arch, options, x, spec.hyperparameters.epsilon, key)

  return conv.classifier(init, unmoved, forward, lambda params: [], inputs)


def choose(k: Any, branches: Sequence[Callable], *operands: PyTree) -> Any:
  """`branches[k](*operands)`; of a traced k that branch alone runs where children run one by one (not under `vmap`)."""
  return branches[k](*operands) if is_static(k) else jax.lax.switch(jnp.asarray(k, jnp.int32), branches, *operands)


def place(value: Any, values: Sequence[int]) -> Any:
  """Where `value`, which is one of them, stands among `values`."""
  return values.index(value) if is_static(value) else (jnp.asarray(values) == value).argmax()


def mode(norm: str, key: Key | None) -> str:
  """How batch norm works: in training there is a key. Raises ValueError if scoring has no such norm."""
  if norm not in NORMS:
    raise ValueError(f'norm (={norm!r}) must be one of {", ".join(NORMS)}.')
  return norm if key is None else TRAIN


def normed(x: Array, own: PyTree, moving: PyTree, epsilon: Array, how: str, relu: bool = False) -> tuple[Array, PyTree]:
  """Batch norm, and the moving statistics after it; `how` is one of NORMS or TRAIN."""
  y, after = conv.normed(x, own, moving, epsilon, how != 'moving', relu)
  return y, after if how == TRAIN else moving


def unit(x: Array, own: PyTree, moving: PyTree, epsilon: Array, how: str, relu: bool = False) -> tuple[Array, PyTree]:
  """A convolution and batch norm."""
  if 'depthwise' in own:
    x = image_ops.depthwise(x, own['depthwise'])
  return normed(image_ops.conv(x, own['kernel']), own, moving, epsilon, how, relu)


def reduced(x: Array, own: PyTree, moving: PyTree, epsilon: Array, how: str) -> tuple[Array, PyTree]:
  """Half as high and wide, rounded up, and batch norm.

  Half of the filters, rounded down, see the pixels at 0, 2, ... of both sides, the others those at 1, 3, ..., where
  what is beyond the edge is 0.
  """
  half = own['kernel'].shape[3] // 2
  shifted = jnp.pad(x, [(0, 0), (0, 1), (0, 1), (0, 0)])[:, 1:, 1:]
  kernels = own['kernel'][..., :half], own['kernel'][..., half:]
  halves = [image_ops.conv(image[:, ::2, ::2], kernel) for image, kernel in zip((x, shifted), kernels, strict=True)]
  return normed(jnp.concatenate(halves, -1), own, moving, epsilon, how)


def joined(
  images: Sequence[Any], taken: Sequence[Any], own: PyTree, moving: PyTree, epsilon: Array, how: str
) -> tuple[Array, PyTree]:
  """The images that are taken, concatenated; ReLU, 1 x 1 convolution, batch norm.

  A kernel for all of them, [n, 1, 1, C, F], is a sum over those taken, which is the same.
  """
  if own['kernel'].ndim == 4:
    side_by_side = jnp.concatenate([image for image, take in zip(images, taken, strict=True) if take], -1)
    return unit(jax.nn.relu(side_by_side), own, moving, epsilon, how)

  def add(total, image, kernel):
    return total + image_ops.conv(jax.nn.relu(image), kernel)

  total = jnp.zeros((*images[0].shape[:3], own['kernel'].shape[4]), images[0].dtype)
  for image, take, kernel in zip(images, taken, own['kernel'], strict=True):
    total = choose(take, (lambda total, *_: total, add), total, image, kernel)
  return normed(total, own, moving, epsilon, how)


def own_joined(tree: PyTree, taken: Sequence[int]) -> PyTree:
  """The unit of `joined` for those taken alone; statistics, and a batch norm alone, stay as they are."""
  if not isinstance(tree, dict) or 'kernel' not in tree:
    return tree
  kernels = [kernel for kernel, take in zip(tree['kernel'], taken, strict=True) if take]
  return tree | {'kernel': jnp.concatenate(kernels, 2)}


def classified(params: PyTree, x: Array, keep: float, key: Key | None) -> Array:
  """Logits [B, classes] of the mean over pixels, of which in training a share `keep` is kept."""
  features = x.mean((1, 2))
  if key is not None and keep < 1.0:
    features = jnp.where(jax.random.bernoulli(key, keep, features.shape), features / keep, 0.0)
  return features @ params['softmax'] + params['softmax_bias'][None]


def unmoved(params: PyTree) -> PyTree:
  """The moving statistics before training."""
  return conv.unmoved({name: tree for name, tree in params.items() if not name.startswith('softmax')})


def decayed(params: PyTree, norms: bool = False) -> PyTree:
  """Returns a bool for each weight, whether weight decay acts on it.

  Args:
    params: the weights.
    norms: true for all weights, as in the released code; false for kernels and the classifier's matrix alone.
  """
  names = 'kernel', 'depthwise', 'softmax'
  return jax.tree.map_with_path(lambda path, _: norms or path[-1].key in names, params)


def capacity(
  window: int, channels: int, filters: int, separable: bool = False, each: Sequence[int] = ()
) -> dict[str, Array]:
  """A unit of zeros; `each` are leading axes, for units of which one is taken, or a kernel's alone in `joined`."""
  kernel = (1, 1) if separable else (window, window)
  found = norm_room(filters, each) | {'kernel': jnp.zeros((*each, *kernel, channels, filters))}
  return found | ({'depthwise': jnp.zeros((*each, window, window, channels))} if separable else {})


def norm_room(filters: int, each: Sequence[int] = ()) -> dict[str, Array]:
  """A batch norm of zeros."""
  return {'scale': jnp.zeros((*each, filters)), 'shift': jnp.zeros((*each, filters))}


def joined_room(count: int, filters: int) -> dict[str, Array]:
  """The unit of `joined` for any of so many images."""
  return norm_room(filters) | {'kernel': jnp.zeros((count, 1, 1, filters, filters))}


def drawn(key: Key, shapes: PyTree) -> PyTree:
  """Kernels by He et al. (2015), scales of 1, all else 0."""
  leaves, tree = jax.tree.flatten_with_path(shapes)
  fans = {'kernel': slice(-4, -1), 'depthwise': slice(-3, -1)}  # the axes that one output reads
  names = [path[-1].key for path, _ in leaves]
  # One draw for all: each would cost a compilation of its own.
  count = sum(leaf.size for name, (_, leaf) in zip(names, leaves, strict=True) if name in fans)
  normal, at, found = jax.random.normal(key, (count,)), 0, []
  for name, (_, leaf) in zip(names, leaves, strict=True):
    if name in fans:
      kernel = normal[at : at + leaf.size].reshape(leaf.shape)
      found.append(kernel * (2.0 / math.prod(leaf.shape[fans[name]])) ** 0.5)
      at += leaf.size
    else:
      found.append(jnp.ones(leaf.shape) if name == 'scale' else jnp.zeros(leaf.shape))
  return jax.tree.unflatten(tree, found)
