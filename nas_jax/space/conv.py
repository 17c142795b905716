"""Convolutional networks, Zoph & Le (2017) Sec. 3.1 and 3.3: layers in a row, which may read any earlier layers."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
import json
from typing import Any, NamedTuple

from nas_jax.operations import Operations
from nas_jax.space.base import Kind, Slot, Space, check_layers
from nas_jax.space.checks import check_arch, check_fields

LAYER_TYPES = ('conv', 'max pool', 'average pool', 'norm')
CONV, MAX_POOL, AVERAGE_POOL, NORM = range(4)
IMAGE = -1  # stands for the image among the layers that a layer reads


class ConvArch(NamedTuple):
  """A network of L layers. A field has an entry for each layer; the field is () if the space leaves no choice."""

  layer_type: tuple[int, ...]  # indices into LAYER_TYPES; () if all layers are convolutions
  filter_height: tuple[int, ...]  # this and the next four are 0 in a layer that is not a convolution
  filter_width: tuple[int, ...]
  stride_height: tuple[int, ...]  # () if all are 1
  stride_width: tuple[int, ...]
  filters: tuple[int, ...]
  pool: tuple[int, ...]  # window and stride of a pooling layer; 0 in other layers
  links: tuple[int, ...]  # [L (L - 1) / 2] whether layer 1 reads 0, layer 2 reads 0, 1, layer 3 ...; () without skips
  rate: tuple[int, ...]  # [1] learning rate in millionths, or ()


def conv_space(
  max_depth: int = 15,
  filter_heights: Sequence[int] = (1, 3, 5, 7),
  filter_widths: Sequence[int] = (1, 3, 5, 7),
  filters: Sequence[int] = (24, 36, 48, 64),
  strides: Sequence[int] | None = None,
  layer_types: Sequence[str] | None = None,
  pools: Sequence[int] = (2, 3),
  rates: Sequence[float] | None = None,
  skips: bool = True,
) -> Space:
  """Returns the space of all networks of up to `max_depth` layers, with tokens in the paper's order (Sec. 4.1).

  The tokens of a layer are its filter height and width, its stride height and width, its number of filters, and its
  anchor point: a link to each earlier layer. Without strides there are 64^15 * 2^105 = 2^195 networks of 15 layers.

  Args:
    max_depth: layers of the deepest network.
    filter_heights: odd numbers to choose from.
    filter_widths: odd numbers to choose from.
    filters: numbers of filters to choose from.
    strides: stride heights and widths to choose from, (1, 2, 3) in Sec. 4.1; None for stride 1 and no such tokens.
    layer_types: names from LAYER_TYPES that the first token of a layer chooses from; None if all are convolutions.
      A layer then has only the tokens that its type uses.
    pools: windows of pooling layers to choose from; the stride equals the window.
    rates: learning rates that the first token of the sequence chooses from; None for no such token.
    skips: whether layers have anchor points; without them each layer reads the one before it.

  Raises:
    ValueError: an argument has an invalid value; the message names it and says what fits.

  >>> from nas_jax import space
  >>> space.conv_space().size() == 2**195
  True
  >>> sp = space.conv_space(max_depth=2, filter_heights=(1, 3), filter_widths=(1, 3), filters=(8, 16))
  >>> print(sp.describe(sp.decode([1, 1, 0, 0, 1, 1, 1])))
  layer 0: filter height 3, filter width 3, filters 8
  layer 1: filter height 1, filter width 3, filters 16, reads 0
  """
  types = _types(layer_types)
  _labels('filter_heights', filter_heights, odd=True)
  _labels('filter_widths', filter_widths, odd=True)
  _labels('filters', filters)
  _labels('pools', pools)
  if strides is not None:
    _labels('strides', strides)
  check_layers('max_depth', max_depth, 'the layers of the deepest network')
  here = tuple(k for k, kind in enumerate(types) if kind == CONV)
  pooling = tuple(k for k, kind in enumerate(types) if kind in (MAX_POOL, AVERAGE_POOL))
  choices = [
    _Choice('filter height', 'filter_height', filter_heights, here),
    _Choice('filter width', 'filter_width', filter_widths, here),
    _Choice('stride height', 'stride_height', strides or (), here),
    _Choice('stride width', 'stride_width', strides or (), here),
    _Choice('filters', 'filters', filters, here),
    _Choice('pool', 'pool', pools, pooling),
  ]
  slots = [_rate_slot(rates)] if rates is not None else []
  for i in range(max_depth):
    slots += _layer_slots(i, types if layer_types else (), [c for c in choices if c.labels and c.types], skips)
  spec = {
    'max_depth': max_depth,
    'filter_heights': list(filter_heights),
    'filter_widths': list(filter_widths),
    'filters': list(filters),
    'strides': None if strides is None else list(strides),
    'layer_types': None if layer_types is None else list(layer_types),
    'pools': list(pools),
    'rates': None if rates is None else list(rates),
    'skips': skips,
  }
  return Space('conv', spec, ConvArch, tuple(slots))


class _Choice(NamedTuple):
  """A setting of a layer, such as its filter height, that one token chooses."""

  name: str
  field: str
  labels: Sequence[int]
  types: tuple[int, ...]  # tokens of the layer types that have this setting


def _layer_slots(layer: int, types: Sequence[int], choices: Sequence[_Choice], skips: bool) -> Iterator[Slot]:
  """Yields the slots of a layer: its type (if `types` is not empty), its settings, and its anchor point."""

  def choice(name: str, field: str, values: Sequence[int], words: Iterable[str], **more: Any) -> Slot:
    more |= {'head': name, 'layer': layer}
    return Slot(f'layer {layer}', name, Kind.CHOICE, len(values), field, tuple(values), tuple(words), **more)

  if types:
    yield choice('type', 'layer_type', types, (LAYER_TYPES[kind] for kind in types), selects=True)
  for name, field, labels, active_if in choices:
    yield choice(name, field, labels, map(str, labels), active_if=active_if if types else ())
  if skips:
    yield Slot(f'layer {layer}', 'reads', Kind.LINK, layer, 'links', head='anchor', anchor=True, layer=layer)


def conv_from_json(text: str) -> ConvArch:
  """Reads and checks a network from JSON. Raises ValueError, in one line, if the text is not a network."""
  try:
    smallest = _smallest_space(json.loads(text)['arch'])
  except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError):
    return conv_space(1).from_json(text)  # not a network: the check of the smallest space says what is wrong
  return conv_space(**smallest).from_json(text)


@check_arch.register
def check_conv(arch: ConvArch, operations: Operations | None = None) -> None:
  """Checks a network of any depth where it is used: see `check_arch`."""
  del operations
  if check_fields(arch, ConvArch):
    conv_space(**_smallest_space(arch._asdict())).check(arch)


def _smallest_space(fields: Mapping[str, Sequence[int]]) -> dict[str, Any]:
  """Returns the arguments of the smallest space that can hold a network, from the fields of its architecture."""
  labels = {name: sorted({int(value) for value in fields[name]} - {0}) for name in ConvArch._fields}
  types = {LAYER_TYPES[kind] for kind in fields['layer_type'] if kind in range(len(LAYER_TYPES))}
  # In a space of several types every layer has an entry for each setting that any of the types has.
  types |= {LAYER_TYPES[kind] for kind, name in ((CONV, 'filters'), (MAX_POOL, 'pool')) if types and fields[name]}
  return {
    'max_depth': max(len(fields['layer_type']), len(fields['filters'])),
    'filter_heights': labels['filter_height'] or (1,),
    'filter_widths': labels['filter_width'] or (1,),
    'filters': labels['filters'] or (1,),
    'strides': (sorted({*labels['stride_height'], *labels['stride_width']}) or (1,))
    if fields['stride_height']
    else None,
    'layer_types': sorted(types) or None,
    'pools': labels['pool'] or (1,),
    'rates': [rate / 1e6 for rate in labels['rate']] or None,
    'skips': bool(fields['links']),
  }


def _types(names: Sequence[str] | None) -> tuple[int, ...]:
  if names is None:
    return (CONV,)
  unknown = [name for name in names if name not in LAYER_TYPES]
  if unknown or not names or len(set(names)) < len(names):
    raise ValueError(f'layer_types (={tuple(names)}) must name at least one of {LAYER_TYPES}, each once.')
  return tuple(LAYER_TYPES.index(name) for name in names)


def _labels(name: str, labels: Sequence[int], odd: bool = False) -> None:
  sound = all(isinstance(label, int) and label >= 1 and (label % 2 or not odd) for label in labels)
  if not sound or not labels or len(set(labels)) < len(labels):
    raise ValueError(f'{name} (={tuple(labels)}) must be different {"odd " if odd else ""}numbers from 1 up.')


def _rate_slot(rates: Sequence[float]) -> Slot:
  values = tuple(round(rate * 1e6) for rate in rates)
  if not values or min(values) < 1 or len(set(values)) < len(values):
    raise ValueError(f'rates (={tuple(rates)}) must be different learning rates of 1e-6 or more.')
  return Slot('training', 'learning rate', Kind.CHOICE, len(values), 'rate', values, tuple(map(str, rates)), 'rate')
