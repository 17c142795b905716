"""Convolutional networks, Zoph & Le (2017) Sec. 3.1 and 3.3: layers in a row, each reading any of those before it."""

from collections.abc import Iterable, Iterator, Sequence
import json
from typing import Any, NamedTuple

from nas_jax.space.base import Kind, Slot, Space

LAYER_TYPES = ('conv', 'max pool', 'average pool', 'norm')
CONV, MAX_POOL, AVERAGE_POOL, NORM = range(4)
IMAGE = -1  # what a layer reads where it is told to read none


class ConvArch(NamedTuple):
  """A network of L layers, each field a tuple with an entry a layer; a field that the space does not decide is ()."""

  layer_type: tuple[int, ...]  # ids into LAYER_TYPES; () where all are convolutions
  filter_height: tuple[int, ...]  # 0 in a layer that does not convolve, as in the four below
  filter_width: tuple[int, ...]
  stride_height: tuple[int, ...]  # () where all are 1
  stride_width: tuple[int, ...]
  filters: tuple[int, ...]
  pool: tuple[int, ...]  # window, and stride, of a pooling layer, 0 in others
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
  """All networks of up to `max_depth` layers, in the paper's order of emission (Sec. 4.1).

  A layer emits its filter height and width, its stride height and width, its number of filters, and then its anchor
  point: a vector with a link to each earlier layer. At 15 layers without strides there are 64^15 * 2^105 = 2^195.

  Args:
    max_depth: layers of the deepest network.
    filter_heights: labels, odd.
    filter_widths: likewise.
    filters: labels, numbers of filters.
    strides: labels of stride height and width, (1, 2, 3) in Sec. 4.1; None leaves all at 1 and emits no such token.
    layer_types: names from LAYER_TYPES that a first token of each layer chooses from; None makes all convolutions. The
      other tokens of a layer exist where its type has them.
    pools: labels of the window and stride of pooling layers, if a type is one.
    rates: learning rates that one first token chooses from; None for no such token.
    skips: without them a layer reads the one before it and emits no anchor point.

  Raises:
    ValueError: names the argument and what fits.

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
  if not isinstance(max_depth, int) or max_depth < 1:
    raise ValueError(f'max_depth (={max_depth}) must be an int from 1 up: the layers of the deepest network.')
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
  """A hyperparameter of a layer."""

  name: str
  field: str
  labels: Sequence[int]
  types: tuple[int, ...]  # tokens of the types of layer that have it


def _layer_slots(layer: int, types: Sequence[int], choices: Sequence[_Choice], skips: bool) -> Iterator[Slot]:
  """What a layer emits: its type, if `types` has any, its hyperparameters, and its anchor point."""

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
  """A network of any labels from JSON, checked. Raises ValueError, in one line, on anything that is none."""
  try:
    arch = json.loads(text)['arch']
    labels = {name: sorted({int(value) for value in arch[name]} - {0}) for name in ConvArch._fields}
    depth, types = max(len(arch['layer_type']), len(arch['filters'])), {LAYER_TYPES[k] for k in arch['layer_type']}
    # In a space of several types every layer has an entry for what any of them needs.
    types |= {LAYER_TYPES[kind] for kind, name in ((CONV, 'filters'), (MAX_POOL, 'pool')) if types and arch[name]}
    strides = sorted({*labels['stride_height'], *labels['stride_width']})
    rates = [rate / 1e6 for rate in labels['rate']]
  except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError, OverflowError):
    return conv_space(1).from_json(text)  # no network at all: the smallest space says what is wrong
  return conv_space(
    depth,
    labels['filter_height'] or (1,),
    labels['filter_width'] or (1,),
    labels['filters'] or (1,),
    (strides or (1,)) if arch['stride_height'] else None,
    sorted(types) or None,
    labels['pool'] or (1,),
    rates or None,
    bool(arch['links']),
  ).from_json(text)


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
