"""A space: a flat table of slots, and what each token in them means.

There are three kinds of slot. A CHOICE is one softmax over labels. A POINTER is one softmax over earlier anchors. A
LINK is a set of independent sigmoids, one for each earlier anchor, emitted as one vector. The controller reads only
this table. An architecture is a NamedTuple of tuples of Python ints, so it is hashable. It holds real values (a filter
height of 7, not the index of its token), so it means the same without its space.
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import enum
import functools
import json
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nas_jax.operations import BUILT_IN, Operations
from nas_jax.types import Array, PyTree
from nas_jax.words import counted


class Kind(enum.IntEnum):
  """How a slot's tokens are drawn."""

  CHOICE = 0
  LINK = 1
  POINTER = 2


class Slot(NamedTuple):
  """One decision of the controller: one token, or `width` tokens of 0 or 1 for a LINK.

  A LINK of width 0 emits no token and only sets an anchor, such as the anchor point of the first layer.
  """

  group: str  # the layer, node or block that the decision belongs to: 'node 3', 'layer 2'
  name: str  # the name of the decision within its group, '' if it is the only one: 'activate', 'filter height'
  kind: Kind
  width: int  # labels of a CHOICE; candidates of a LINK or POINTER: anchors start .. start + width - 1
  field: str  # the field of the architecture that the slot's values are appended to
  values: tuple[int, ...] = ()  # CHOICE: the real value of each token
  labels: tuple[str, ...] = ()  # CHOICE or POINTER: the name of each token; () names anchors by their numbers
  head: str = ''  # slots with one head share softmax weights and token embeddings
  start: int = 0  # first candidate anchor of a LINK or POINTER
  anchor: bool = False  # whether the hidden state here becomes the next anchor
  layer: int = 0  # the layer that the slot is credited to; the slot exists when layer < depth
  selects: bool = False  # whether its token decides which later slots exist, up to the next selecting slot of its layer
  active_if: tuple[int, ...] = ()  # tokens of the selecting slot for which this slot exists; () for all
  own: tuple[str, ...] | None = None  # CHOICE of an operation: labels of the user's operations; JSON names them

  @property
  def title(self) -> str:
    """Returns the group and the name of the slot."""
    return f'{self.group} {self.name}'.strip()

  @property
  def tokens(self) -> int:
    """Number of tokens of this slot."""
    return self.width if self.kind == Kind.LINK else 1

  @property
  def options(self) -> int:
    """Number of different outcomes of this slot, exact."""
    return 2**self.width if self.kind == Kind.LINK else self.width

  def exists(self, governor: int) -> bool:
    """Returns whether the slot exists, given the token of the selecting slot."""
    return not self.active_if or governor in self.active_if

  def label(self, token: int) -> str:
    """Returns the name of one token. An anchor without a label is named by its index."""
    return self.labels[token] if self.labels else str(self.start + token)


MOST_LAYERS = 128  # the most layers of a network or cell: each layer adds tokens, and each token enlarges every program


def check_layers(name: str, number: int, what: str) -> None:
  """Raises ValueError unless `number`, of layers, nodes or blocks, is an int from 1 to MOST_LAYERS."""
  if not isinstance(number, int) or not 1 <= number <= MOST_LAYERS:
    raise ValueError(f'{name} (={number}) must be an int from 1 to {MOST_LAYERS}: {what}.')


@dataclasses.dataclass(frozen=True, eq=False)
class Space:
  """What the tokens of one family of architectures mean.

  >>> from nas_jax import space
  >>> sp = space.choice_space({'width': ('16', '32'), 'norm': ('none', 'layer', 'batch')})
  >>> sp.size()
  6
  >>> arch = sp.decode([1, 2])
  >>> print(sp.describe(arch))
  width: 32
  norm: batch
  >>> sp.encode(arch).tolist()
  [1, 2]
  >>> sp.to_json(arch)
  '{"kind": "choice", "arch": {"choice": [1, 2]}}'
  >>> sp.from_json(sp.to_json(arch)) == arch
  True
  """

  kind: str  # 'tree_cell', 'choice', ...
  spec: Mapping[str, Any]  # the arguments that the space was made with, as JSON values
  arch_type: type  # the NamedTuple class of the architectures
  slots: tuple[Slot, ...]
  operations: Operations = BUILT_IN  # the operations that the architectures may hold, if they hold any

  @functools.cached_property
  def owner(self) -> np.ndarray:
    """[T] int32, index of the slot of each token."""
    return np.repeat(np.arange(len(self.slots), dtype=np.int32), [slot.tokens for slot in self.slots])

  @property
  def length(self) -> int:
    """T, the length of the longest token sequence."""
    return len(self.owner)

  @property
  def layers(self) -> int:
    """L, the number of layers that can be credited separately."""
    return 1 + max(slot.layer for slot in self.slots)

  def layer_of_token(self) -> np.ndarray:
    """[T] int, the layer of each token."""
    return np.array([slot.layer for slot in self.slots])[self.owner]

  @functools.cached_property
  def allowed(self) -> np.ndarray:
    """[S, K] bool, whether slot s exists when its selecting slot has token k."""
    widest = max(slot.width for slot in self.slots)
    return np.array([[slot.exists(token) for token in range(widest)] for slot in self.slots])

  @functools.cached_property
  def governor(self) -> np.ndarray:
    """[S] int32, position of the token that decides whether each slot exists; 0 where no token does."""
    starts = np.cumsum([0, *(slot.tokens for slot in self.slots)])[:-1]
    selects = np.array([slot.selects for slot in self.slots])
    return np.maximum.accumulate(np.where(selects, starts, 0)).astype(np.int32)

  def slots_exist(self, tokens, depth=None) -> Array:
    """[..., S] bool, which slots exist in token sequences [..., T] of `depth` layers (all if None; may be traced)."""
    governors = jnp.asarray(tokens, jnp.int32)[..., self.governor]
    here = jnp.asarray(self.allowed)[np.arange(len(self.slots), dtype=np.int32), governors]
    shallow = jnp.array([slot.layer for slot in self.slots]) < (self.layers if depth is None else depth)
    return here & jnp.broadcast_to(shallow, here.shape)

  def exists(self, tokens, depth=None) -> Array:
    """[..., T] bool, which of the tokens [..., T] exist. The others are 0 and have no meaning."""
    return self.slots_exist(tokens, depth)[..., self.owner]

  def size(self, depth: int | None = None) -> int:
    """Returns the exact number of token sequences of `depth` layers; None for all layers."""
    depth, total = self._depth(depth), 1
    slots = [slot for slot in self.slots if slot.layer < depth]
    while slots:
      slot, *slots = slots
      if not slot.selects:
        total *= slot.options
        continue
      end = next((i for i, later in enumerate(slots) if later.selects or later.layer != slot.layer), len(slots))
      here, slots = slots[:end], slots[end:]
      for_each = (math.prod(s.options for s in here if s.exists(token)) for token in range(slot.width))
      total *= sum(for_each)
    return total

  def decode(self, tokens: Sequence[int] | np.ndarray | Array, depth: int | None = None):
    """Returns the architecture of a token sequence [T], as Python ints.

    Raises ValueError on a token out of range, on another shape, and under `jax.jit` and `jax.vmap`.
    """
    if isinstance(tokens, jax.core.Tracer):
      raise ValueError('decode reads the values of tokens, which jax.jit and jax.vmap hide: use decode_batch there.')
    tokens, depth = np.asarray(tokens), self._depth(depth)
    if tokens.shape != (self.length,) or not np.issubdtype(tokens.dtype, np.integer):
      raise ValueError(
        f'tokens is {tokens.dtype} of shape {tokens.shape}, this {self.kind} space wants ints of shape '
        f'({self.length},): decode one token sequence at a time, or use decode_batch.'
      )
    fields: dict[str, list[int]] = {name: [] for name in self._fields}
    governor = 0
    for slot, part in self._split(tokens):
      if slot.layer >= depth:
        continue
      limit = 2 if slot.kind == Kind.LINK else slot.width
      for token in part:
        if not 0 <= token < limit:
          raise ValueError(f'token {token} of {slot.title} is not in 0..{limit - 1}.')
        value = slot.values[token] if slot.values else int(token)
        fields[slot.field].append(value if slot.exists(governor) else 0)
      governor = int(part[0]) if slot.selects else governor
    return self.arch_type(**{name: tuple(values) for name, values in fields.items()})

  def decode_batch(self, tokens: Array, depth: int | None = None) -> PyTree:
    """Decodes token sequences [..., T] into the traced form: the NamedTuple of int32 arrays [..., len(field)].

    Raises ValueError if they have not T tokens. Their values are not checked, because they may be traced.
    """
    tokens, depth = jnp.asarray(tokens), self._depth(depth)
    if not tokens.ndim or tokens.shape[-1] != self.length:
      raise ValueError(f'tokens have shape {tokens.shape}, this {self.kind} space wants [..., {self.length}].')
    fields: dict[str, list[Array]] = {name: [] for name in self._fields}
    exists = self.exists(tokens, depth)
    for position, index in enumerate(self.owner):
      slot = self.slots[index]
      if slot.layer < depth:
        token = tokens[..., position]
        value = jnp.asarray(slot.values, jnp.int32)[token] if slot.values else token
        fields[slot.field].append(jnp.where(exists[..., position], value, 0) if slot.active_if else value)
    none = jnp.zeros((*tokens.shape[:-1], 0), jnp.int32)
    return self.arch_type(**{name: jnp.stack(values, -1) if values else none for name, values in fields.items()})

  def encode(self, arch) -> np.ndarray:
    """Returns the token sequence [T] of an architecture, 0 for missing layers. Raises ValueError as `check` does."""
    depth = self.check(arch)
    queues = {name: list(getattr(arch, name)) for name in self._fields}
    tokens, governor = list[int](), 0
    for slot in self.slots:
      for _ in range(slot.tokens):
        value = queues[slot.field].pop(0) if slot.layer < depth else 0
        if slot.layer < depth and slot.exists(governor) and slot.values:
          value = slot.values.index(value)
        tokens.append(value)
      governor = tokens[-1] if slot.selects else governor
    return np.array(tokens, np.int32)

  def check(self, arch) -> int:
    """Returns the depth of an architecture. Raises ValueError, saying where and why, if it is not of this space."""
    if not isinstance(arch, self.arch_type):
      raise ValueError(f'a {self.kind} space wants a {self.arch_type.__name__}, not a {type(arch).__name__}.')
    if any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(arch)):
      raise ValueError(
        f'the {self.arch_type.__name__} holds arrays: want Python ints here, as decode or space.unstack returns them.'
      )
    lengths = {name: len(getattr(arch, name)) for name in self._fields}
    wanted = [self._lengths(depth) for depth in range(1, self.layers + 1)]
    if lengths not in wanted:
      nearest = max(wanted, key=lambda fits: sum(lengths[name] == fits[name] for name in fits))
      name = next(name for name in self._fields if lengths[name] != nearest[name])
      at = f' at depth {wanted.index(nearest) + 1}' if self.layers > 1 else ''
      raise ValueError(
        f'arch field {name!r} has {counted(lengths[name], "entry", "entries")}, this {self.kind} space '
        f'wants {nearest[name]}{at}.'
      )
    depth = wanted.index(lengths) + 1
    governor = 0
    for slot, entry in self._entries(depth):
      value = getattr(arch, slot.field)[entry]
      allowed = slot.values or tuple(range(2 if slot.kind == Kind.LINK else slot.width))
      allowed = allowed if slot.exists(governor) else (0,)
      where = f'arch field {slot.field!r}, entry {entry} ({slot.title})'
      if isinstance(value, bool) or not isinstance(value, int | np.integer):
        named = isinstance(value, str) and slot.own is not None
        way = ', or hand in the operation of this name as an Operation' if named else ''
        raise ValueError(f'{where} is {value!r}, a {type(value).__name__}: want an int{way}.')
      if value not in allowed:
        raise ValueError(f'{where} is {value}: this space allows {", ".join(map(str, allowed))}.')
      governor = allowed.index(value) if slot.selects else governor
    return depth

  def describe(self, arch) -> str:
    """Describes an architecture in words, one line for each group of decisions."""
    depth, lines, governor = self.check(arch), dict[str, list[str]](), 0
    for slot, part in self._split(self.encode(arch)):
      governor = int(part[0]) if slot.selects else governor
      if slot.layer < depth and slot.tokens and slot.exists(governor):
        if slot.kind == Kind.LINK:
          words = ' '.join(str(slot.start + j) for j in range(slot.width) if part[j]) or 'none'
        else:
          words = slot.label(int(part[0]))
        lines.setdefault(slot.group, []).append(f'{slot.name} {words}'.strip())
    return '\n'.join(f'{group}: {", ".join(words)}' for group, words in lines.items())

  def to_json(self, arch) -> str:
    """Returns a line of JSON, `{"kind": ..., "arch": {field: [ints]}}`, with a user's own operations by name."""
    fields: dict[str, list[int | str]] = {name: [] for name in self._fields}
    for slot, entry in self._entries(self.check(arch)):
      value, own = int(getattr(arch, slot.field)[entry]), slot.own or ()
      label = slot.labels[slot.values.index(value)] if own else ''
      fields[slot.field].append(label if label in own else value)
    return json.dumps({'kind': self.kind, 'arch': fields})

  def from_json(self, text: str):
    """Reads and checks an architecture from JSON, where an operation may be an id or a name.

    Raises ValueError, in one line, if the text is not an architecture of this space.
    """
    try:
      data = json.loads(text)
    except (ValueError, RecursionError) as error:
      raise ValueError(f'not JSON ({error}): want the output of to_json or a best.json.'.replace('\n', ' ')) from None
    if not isinstance(data, dict) or not isinstance(data.get('arch'), dict) or 'kind' not in data:
      raise ValueError('not an architecture: want an object with "kind" and "arch", as to_json writes.')
    if data['kind'] != self.kind:
      raise ValueError(f'kind is {data["kind"]!r}, this space wants {self.kind!r}.')
    if set(data['arch']) != set(self._fields):
      raise ValueError(f'arch has the fields {sorted(data["arch"])}, want {sorted(self._fields)}.')
    for name, values in data['arch'].items():
      if not isinstance(values, list):
        raise ValueError(f'arch field {name!r} is {values!r}: want a list of ints.')
    for slot, entry in self._entries(self.layers):
      values = data['arch'][slot.field]
      if slot.own is not None and entry < len(values) and values[entry] in slot.labels:
        values[entry] = slot.values[slot.labels.index(values[entry])]
    arch = self.arch_type(**{name: tuple(values) for name, values in data['arch'].items()})
    self.check(arch)
    return arch

  @property
  def _fields(self) -> tuple[str, ...]:
    return self.arch_type._fields  # type: ignore[attr-defined]

  def _depth(self, depth: int | None) -> int:
    if depth is None:
      return self.layers
    if not 1 <= depth <= self.layers:
      raise ValueError(
        f'depth (={depth}) must be in 1..{self.layers}, the layers this {self.kind} space was made with.'
      )
    return depth

  def _entries(self, depth: int) -> Iterator[tuple[Slot, int]]:
    """Yields the slot and the index within its field for each entry of an architecture of `depth` layers."""
    filled = dict.fromkeys(self._fields, 0)
    for slot in self.slots:
      for _ in range(slot.tokens if slot.layer < depth else 0):
        yield slot, filled[slot.field]
        filled[slot.field] += 1

  def _lengths(self, depth: int) -> dict[str, int]:
    lengths = dict.fromkeys(self._fields, 0)
    for slot in self.slots:
      if slot.layer < depth:
        lengths[slot.field] += slot.tokens
    return lengths

  def _split(self, tokens: np.ndarray):
    ends = np.cumsum([slot.tokens for slot in self.slots])
    return zip(self.slots, np.split(tokens, ends[:-1]), strict=True)


def stack(archs: Sequence[PyTree]) -> PyTree:
  """Returns the traced form of architectures of one depth: the same NamedTuple with int32 arrays [m, ...].

  >>> from nas_jax import space
  >>> sp = space.choice_space({'width': ('16', '32'), 'norm': ('none', 'layer', 'batch')})
  >>> archs = space.stack([sp.decode([1, 2]), sp.decode([0, 0]), sp.decode([0, 1])])
  >>> archs.choice.shape, space.unstack(archs)[0]
  ((3, 2), ChoiceArch(choice=(1, 2)))
  """
  if not archs:
    raise ValueError('stack got no architectures: want at least one.')
  shapes = {(type(arch).__name__, *map(len, arch)) for arch in archs}
  if len(shapes) > 1:
    raise ValueError(
      f'stack wants architectures of one type and depth, got {sorted(shapes)}: group them by depth first.'
    )
  columns = zip(*archs, strict=True)
  return type(archs[0])(*(jnp.asarray(column, jnp.int32) for column in columns))


def unstack(archs: PyTree) -> list[PyTree]:
  """The inverse of `stack`: returns m static architectures. Raises ValueError unless all fields are arrays [m, n]."""
  columns = [np.asarray(column) for column in archs]
  if any(column.ndim != 2 for column in columns):
    shapes = ', '.join(str(column.shape) for column in columns)
    raise ValueError(
      f'unstack wants fields [m, n] of m architectures, got the shapes {shapes}: give a single architecture a leading '
      'axis, and merge several such axes.'
    )
  return [type(archs)(*map(tuple, row)) for row in zip(*(column.tolist() for column in columns), strict=True)]


def is_static(arch) -> bool:
  """Returns whether `arch` holds Python ints (a program for this one only) and no arrays (one program for all)."""
  return not any(isinstance(leaf, jax.Array | np.ndarray) for leaf in jax.tree.leaves(arch))


@functools.singledispatch
def canonical(arch):
  """Returns a common form of architectures that describe the same network; types without symmetries return `arch`.

  >>> from nas_jax import space
  >>> cell = space.TreeArch(combine=(0, 1, 1), activate=(1, 2, 0), inject=(0, 1), index=(0, 1))
  >>> swapped = space.TreeArch(combine=(1, 0, 1), activate=(2, 1, 0), inject=(0, 1), index=(1, 0))
  >>> space.canonical(cell) == space.canonical(swapped)
  True
  """
  return arch
