"""The layers of the networks of ENAS (Pham et al. 2018), for a single architecture or for all of them.

As in `conv`, a *unit* is a convolution and the batch norm after it, {'kernel', 'scale', 'shift'}. The unit of a
separable convolution also has 'depthwise', a window for each channel. Each unit has moving statistics: (mean,
variance).

If an architecture is *static* (Python ints), its network has its own weights only. If it is *traced*, one tree holds
the weights of all networks; a training step uses and changes only those of its architecture.
"""

from collections.abc import Callable, Sequence
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nas_jax.children import conv
from nas_jax.nn import image_ops
from nas_jax.space.base import Space, is_static
from nas_jax.space.checks import check_arch
from nas_jax.training.child import Child
from nas_jax.training.costs import Cost, Count
from nas_jax.types import Array, Key, PyTree

NORMS = ('moving', 'batch')  # the statistics that batch norm uses in scoring
KERNELS = ('kernel', 'depthwise', 'softmax')  # the names of weights that are multiplied with inputs
TRAIN = 'train'  # in training: the statistics of the batch, which also update the moving ones


def child(inputs: conv.InputSpec, options: Any, space: Space, zeros: Callable, own: Callable, run: Callable) -> Child:
  """Returns the child of `enas_macro` or `enas_micro`, given its weights and its forward pass.

  The optimizer decays weights; the loss has no penalty, so that its gradient is 0 for weights that a network lacks.

  Args:
    inputs: as in `conv.build`.
    options: the options that all networks share.
    space: the space of the architectures; ValueError is raised for a static architecture of another space.
    zeros: () -> zeros in the shapes of all weights.
    own: (tree, static arch) -> the part of the tree that its network uses.
    run: (params, statistics, arch, options, images, epsilon, key or None) -> logits, statistics.
  """
  mode(options.norm, None)

  def check(arch: PyTree) -> None:
    check_arch(arch)
    if is_static(arch):
      space.check(arch)

  def init(spec: conv.ChildSpec, key: Key) -> PyTree:
    check(spec.arch)
    if not is_static(spec.arch):
      return drawn(key, jax.eval_shape(zeros))
    return drawn(key, jax.eval_shape(lambda: own(zeros(), spec.arch)))

  def forward(params, stats, spec, x, key):
    check(spec.arch)
    return run(params, stats, spec.arch, options, x, spec.hyperparameters.epsilon, key)

  return conv.classifier(init, unmoved, forward, lambda params: [], inputs)


def counter(image: Sequence[int], zeros: Callable, own: Callable, halvings: Callable[[str, int], int]) -> Count:
  """Returns a function that counts what the network of one static architecture costs, from the shapes of its weights.

  Args:
    image: height, width and channels of the images.
    zeros: as in `child`.
    own: as in `child`.
    halvings: (name of a list in the tree of weights, index) -> how often the images there were halved.
  """
  # Views of a single zero: they have shapes, and take no memory.
  tree = jax.tree.map(lambda leaf: np.broadcast_to(np.int8(0), leaf.shape), jax.eval_shape(zeros))

  def pixels(path: Sequence[Any]) -> int:
    """Returns how many pixels a kernel computes; the classifier computes one output from the means over pixels."""
    if path[0].key == 'softmax':
      return 1
    times = 0 if path[0].key == 'stem' else halvings(path[0].key, path[1].idx)
    return math.prod(-(-side // 2**times) for side in image[:2])

  def count(arch: PyTree) -> Cost:
    leaves = jax.tree.leaves_with_path(own(tree, arch))
    adds = (leaf.size * pixels(path) for path, leaf in leaves if path[-1].key in KERNELS)
    return Cost(sum(leaf.size for _, leaf in leaves), sum(adds))

  return count


def choose(k: Any, branches: Sequence[Callable], *operands: PyTree) -> Any:
  """Returns `branches[k](*operands)`. With a traced k only that branch runs, except under `vmap`, where all do."""
  return branches[k](*operands) if is_static(k) else jax.lax.switch(jnp.asarray(k, jnp.int32), branches, *operands)


def place(value: Any, values: Sequence[int]) -> Any:
  """Returns the index of `value` among `values`."""
  return values.index(value) if is_static(value) else (jnp.asarray(values) == value).argmax()


def mode(norm: str, key: Key | None) -> str:
  """Returns the mode of batch norm: TRAIN if there is a key, as in training, else `norm`.

  Raises:
    ValueError: `norm` is unknown.
  """
  if norm not in NORMS:
    raise ValueError(f'norm (={norm!r}) must be one of {", ".join(NORMS)}.')
  return norm if key is None else TRAIN


def normed(x: Array, own: PyTree, moving: PyTree, epsilon: Array, how: str, relu: bool = False) -> tuple[Array, PyTree]:
  """Applies batch norm. Also returns the new moving statistics; `how` is TRAIN or one of NORMS."""
  y, after = conv.normed(x, own, moving, epsilon, how != 'moving', relu)
  return y, after if how == TRAIN else moving


def unit(x: Array, own: PyTree, moving: PyTree, epsilon: Array, how: str, relu: bool = False) -> tuple[Array, PyTree]:
  """Applies a convolution and batch norm. Also returns the new moving statistics."""
  if 'depthwise' in own:
    x = image_ops.depthwise(x, own['depthwise'])
  return normed(image_ops.conv(x, own['kernel']), own, moving, epsilon, how, relu)


def reduced(x: Array, own: PyTree, moving: PyTree, epsilon: Array, how: str) -> tuple[Array, PyTree]:
  """Applies a factorised reduction to half the height and width, rounded up, and batch norm.

  Half of the filters, rounded down, read the pixels at 0, 2, ... of both axes; the others read those at 1, 3, ..., with
  zeros beyond the edge.
  """
  half = own['kernel'].shape[3] // 2
  shifted = jnp.pad(x, [(0, 0), (0, 1), (0, 1), (0, 0)])[:, 1:, 1:]
  kernels = own['kernel'][..., :half], own['kernel'][..., half:]
  halves = [image_ops.conv(image[:, ::2, ::2], kernel) for image, kernel in zip((x, shifted), kernels, strict=True)]
  return normed(jnp.concatenate(halves, -1), own, moving, epsilon, how)


def joined(
  images: Sequence[Any], taken: Sequence[Any], own: PyTree, moving: PyTree, epsilon: Array, how: str
) -> tuple[Array, PyTree]:
  """Concatenates the images that are taken, and applies ReLU, a 1 x 1 convolution and batch norm.

  With a kernel for each image, [n, 1, 1, C, F], the convolution is computed as a sum over the images that are taken.
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
  """Returns a unit of `joined` with only the kernels of the images that are taken; other trees stay unchanged."""
  if not isinstance(tree, dict) or 'kernel' not in tree:
    return tree
  kernels = [kernel for kernel, take in zip(tree['kernel'], taken, strict=True) if take]
  joined = np.concatenate if isinstance(tree['kernel'], np.ndarray) else jnp.concatenate
  return tree | {'kernel': joined(kernels, 2)}


def classified(params: PyTree, x: Array, keep: float, key: Key | None) -> Array:
  """Returns logits [B, classes] from the means over pixels. With a key, dropout keeps a share `keep` of the means."""
  features = image_ops.pixel_means(x)
  if key is not None and keep < 1.0:
    features = jnp.where(jax.random.bernoulli(key, keep, features.shape), features / keep, 0.0)
  return features @ params['softmax'] + params['softmax_bias'][None]


def unmoved(params: PyTree) -> PyTree:
  """Returns the moving statistics before training."""
  return conv.unmoved({name: tree for name, tree in params.items() if not name.startswith('softmax')})


def decayed(params: PyTree, norms: bool = False) -> PyTree:
  """Returns a bool for each weight, whether weight decay acts on it.

  Args:
    params: the weights.
    norms: whether all weights decay, as in the released code; if not, only kernels and the classifier's matrix do.
  """
  return jax.tree.map_with_path(lambda path, _: norms or path[-1].key in KERNELS, params)


def zero_unit(
  window: int, channels: int, filters: int, separable: bool = False, each: Sequence[int] = ()
) -> dict[str, Array]:
  """Returns a unit of zeros; `each` are leading axes, for several units from which one is selected."""
  kernel = (1, 1) if separable else (window, window)
  found = zero_norm(filters, each) | {'kernel': jnp.zeros((*each, *kernel, channels, filters))}
  return found | ({'depthwise': jnp.zeros((*each, window, window, channels))} if separable else {})


def zero_norm(filters: int, each: Sequence[int] = ()) -> dict[str, Array]:
  """Returns a batch norm of zeros."""
  return {'scale': jnp.zeros((*each, filters)), 'shift': jnp.zeros((*each, filters))}


def zero_joined(count: int, filters: int) -> dict[str, Array]:
  """Returns the unit of `joined` for `count` images, of zeros."""
  return zero_norm(filters) | {'kernel': jnp.zeros((count, 1, 1, filters, filters))}


def drawn(key: Key, shapes: PyTree) -> PyTree:
  """Returns initial weights: kernels by He et al. (2015), scales of 1, all else 0."""
  leaves, tree = jax.tree.flatten_with_path(shapes)
  fans = {'kernel': slice(-4, -1), 'depthwise': slice(-3, -1)}  # the axes that one output reads
  names = [path[-1].key for path, _ in leaves]
  # A single draw for all kernels, because each separate draw would have to be compiled.
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
