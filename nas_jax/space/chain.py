"""Chains of layers, one token each: the space of Olga Xu's augmented search."""

from collections.abc import Sequence
import contextlib
import json
from typing import NamedTuple

from nas_jax.operations import Operations
from nas_jax.space.base import Kind, Slot, Space, check_layers
from nas_jax.space.checks import check_arch, check_fields

KINDS = ('conv', 'residual', 'average pool', 'max pool')


class ChainArch(NamedTuple):
  """A network of L layers, each reading the one before it."""

  layers: tuple[int, ...]  # [L] codes, see `code`; 0 is padding, for chains of different lengths in one `stack`


class ChainLayer(NamedTuple):
  """One layer of a chain."""

  kind: int  # id into KINDS
  channels: int  # 0 for a pool, which keeps the number of channels
  kernel: int  # height and width of the window; a residual block uses it in both of its convolutions
  stride: int


def default_layers() -> tuple[str, ...]:
  """Returns 24 layers to choose from. Xu's poster names only some of its 24; this list agrees with the poster."""
  convolutions = [f'conv {channels} {kernel} {stride}' for channels in (32, 64, 128) for kernel in (3, 4, 5)
                  for stride in (1, 2)]  # fmt: skip
  residual = [f'residual {channels} 3 1' for channels in (32, 64, 128)]
  return (*convolutions, *residual, 'average pool 2 2', 'max pool 2 2', 'max pool 3 2')


def chain_space(layers: Sequence[str] | None = None, max_depth: int = 15) -> Space:
  """Returns the space of all chains of up to `max_depth` layers. By default there are 24^15 chains of 15 layers.

  Args:
    layers: the layers that each token chooses from: 'conv CHANNELS KERNEL STRIDE', 'residual CHANNELS KERNEL STRIDE',
      'average pool KERNEL STRIDE' or 'max pool KERNEL STRIDE'; by default `default_layers`.
    max_depth: layers of the deepest chain.

  Raises:
    ValueError: a layer is unknown or named twice, or `layers` is empty; the message names it and says what fits.

  >>> from nas_jax import space
  >>> sp = space.chain_space(['conv 8 3 1', 'conv 16 3 2', 'max pool 2 2'], max_depth=3)
  >>> sp.size()
  27
  >>> print(sp.describe(sp.decode([0, 2, 1])))
  layer 0: conv 8 3 1
  layer 1: max pool 2 2
  layer 2: conv 16 3 2
  """
  words = tuple(default_layers() if layers is None else layers)
  codes = tuple(code(parse(word)) for word in words)
  if not codes or len(set(codes)) < len(codes):
    raise ValueError(f'layers (={words}) must name at least one layer, each once.')
  check_layers('max_depth', max_depth, 'the layers of the deepest chain')
  slots = [
    Slot(f'layer {i}', '', Kind.CHOICE, len(codes), 'layers', codes, words, head='layer', layer=i)
    for i in range(max_depth)
  ]
  return Space('chain', {'layers': list(words), 'max_depth': max_depth}, ChainArch, tuple(slots))


def chain_from_json(text: str) -> ChainArch:
  """Reads and checks a chain from JSON. Raises ValueError, in one line, if the text is not a chain."""
  try:
    codes = json.loads(text)['arch']['layers']
    words = tuple(dict.fromkeys(word_of(code) for code in codes))
  except (TypeError, KeyError, json.JSONDecodeError, RecursionError):
    return chain_space(max_depth=1).from_json(text)  # not a chain: the check of the smallest space says what is wrong
  return chain_space(words or None, max(len(codes), 1)).from_json(text)


@check_arch.register
def check_chain(arch: ChainArch, operations: Operations | None = None) -> None:
  """Checks a chain of any depth where it is used, which may hold padding: see `check_arch`."""
  del operations
  if check_fields(arch, ChainArch):
    for number in filter(None, arch.layers):
      word_of(int(number))


def parse(word: str) -> ChainLayer:
  """Reads a layer such as 'conv 64 3 1' or 'max pool 2 2'. Raises ValueError if `word` is not a layer."""
  for kind, name in enumerate(KINDS):
    if isinstance(word, str) and word.startswith(f'{name} '):
      numbers = word.removeprefix(name).split()
      wanted = 2 if name.endswith('pool') else 3
      if len(numbers) == wanted and all(number.isdecimal() and 1 <= int(number) < 1000 for number in numbers):
        *channels, kernel, stride = map(int, numbers)
        if max(kernel, stride) < 10:
          return ChainLayer(kind, channels[0] if channels else 0, kernel, stride)
  raise ValueError(
    f'{word!r} is no layer: want conv or residual CHANNELS KERNEL STRIDE, average pool or max pool KERNEL STRIDE, as '
    "'conv 64 3 1' or 'max pool 2 2', with channels below 1000, kernel and stride below 10."
  )


def code(layer: ChainLayer) -> int:
  """Returns the code of a layer, the same in every space. Its digits: kind, channels (three), kernel, stride."""
  return ((layer.kind * 1000 + layer.channels) * 10 + layer.kernel) * 10 + layer.stride


def word_of(number: int) -> str:
  """Returns the words of the layer with a given code, as `parse` reads them. Raises ValueError on other numbers."""
  if isinstance(number, int) and 0 <= number < code(ChainLayer(len(KINDS), 0, 0, 0)):
    layer = layer_of(number)
    word = ' '.join(map(str, (KINDS[layer.kind], *(layer[1:] if layer.channels else layer[2:]))))
    with contextlib.suppress(ValueError):  # a word that `parse` refuses is not returned
      parse(word)
      return word
  raise ValueError(f"{number!r} is no code of a layer: want one such as 106431, which is 'residual 64 3 1'.")


def layer_of(code: int) -> ChainLayer:
  """The inverse of `code`."""
  return ChainLayer(code // 100_000, code // 100 % 1000, code // 10 % 10, code % 10)
