"""Networks for images with equal numbers of weights: every layer gets, or loses, the same number of filters."""

from collections.abc import Callable
import functools

from nas_jax import space
from nas_jax.datasets import images as images_lib
from nas_jax.space import ConvArch, Space
from nas_jax.space.network import Arch, layers_of
from nas_jax.systems import classifier
from nas_jax.training import child as child_lib


def weights(cfg: classifier.BlockConfig, images: images_lib.Images, arch: Arch, add: int) -> int:
  """Returns the number of weights of a network with `add` filters added to every layer."""
  return space.count(arch, images.shape, images.classes, classifier.network_options(cfg, add)).params


def least(arch: Arch) -> int:
  """Returns the least number of filters to add that leaves each layer a filter; 1 if no layer has filters."""
  return 1 - min((layer.filters for layer in layers_of(arch) if layer.filters), default=0)


def sized(cfg: classifier.BlockConfig, images: images_lib.Images, wanted: int) -> Callable[[ConvArch], ConvArch]:
  """Returns a function that changes the filters of a static network so that its weights are nearest to `wanted`.

  If `wanted` is 0, or the network has no layer with filters, it returns the network as it is. Nothing is compiled.
  """

  @functools.cache
  def changed(arch: ConvArch) -> ConvArch:
    first = least(arch)
    if not wanted or first > 0:
      return arch
    add = child_lib.nearest_size(functools.partial(weights, cfg, images, arch), wanted, first)
    return arch._replace(filters=tuple(filters and filters + add for filters in arch.filters))  # 0 if no conv

  return changed


def check(cfg: classifier.BlockConfig, images: images_lib.Images, made: Space, wanted: int) -> None:
  """Raises ValueError if some network of a space cannot have as few weights as `wanted`, or that is too many.

  `wanted` is the field `child_weights` of a search, 0 for none. Nothing is compiled.
  """
  if not wanted:
    return
  child_lib.check_weights(wanted, 'a smaller child_weights.')
  widest = classifier.widest(made)
  (labels,) = {slot.values for slot in made.slots if slot.field == 'filters'}
  each = range(len(widest.filters))
  narrow = [
    widest._replace(filters=tuple(min(labels) if i == j else max(labels) for j in each)) for i in each
  ]  # one narrow layer keeps the others from losing more
  fewest = max(weights(cfg, images, arch, least(arch)) for arch in narrow)
  if fewest > wanted:
    raise ValueError(
      f'child_weights (={wanted}): a network of this space may have {fewest} weights even with as few filters as '
      'possible; ask for at least as many, or take fewer numbers of filters, smaller windows, or a smaller max_depth.'
    )
