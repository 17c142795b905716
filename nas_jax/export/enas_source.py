"""Python files of the networks of ENAS for images."""

from collections.abc import Iterable, Iterator

from nas_jax.export.enas import SIDES, MacroNetwork, MicroNetwork, read_later
from nas_jax.export.source import image_classifier, norm
from nas_jax.space import enas
from nas_jax.space.enas import MACRO_OPERATIONS, MICRO_OPERATIONS

_FUNCTIONS = {
  'average_pool': """
def average_pool(x, size):
  return nn.avg_pool(x, (size, size), padding='SAME', count_include_pad=False)
""",
  'max_pool': """
def max_pool(x, size):
  return nn.max_pool(x, (size, size), padding='SAME')
""",
}
_CONV = """
def conv(x, name, filters, size=1):
  x = nn.Conv(filters, (size, size), use_bias=False, name=f'{name}_conv')(x)
  return norm(x, name)
"""
_SEPCONV = """
def sepconv(x, name, filters, size):
  count = x.shape[-1]
  x = nn.Conv(count, (size, size), feature_group_count=count, use_bias=False, name=f'{name}_depthwise')(x)
  return conv(x, name, filters)
"""
_REDUCE = '''
def reduce(x, name, filters):
  """Half the height and width: half of the filters read every second pixel, the others those between."""
  between = jnp.pad(x, [(0, 0), (0, 1), (0, 1), (0, 0)])[:, 1:, 1:]
  even = nn.Conv(filters // 2, (1, 1), 2, use_bias=False, name=f'{name}_even_conv')(x)
  odd = nn.Conv(filters - filters // 2, (1, 1), 2, use_bias=False, name=f'{name}_odd_conv')(between)
  return norm(jnp.concatenate([even, odd], -1), name)
'''
_REDUCE_1 = '''
def reduce(x, name, filters):
  """Half the height and width: its one filter reads the pixels between those at 0, 2, ..."""
  between = jnp.pad(x, [(0, 0), (0, 1), (0, 1), (0, 0)])[:, 1:, 1:]
  return norm(nn.Conv(1, (1, 1), 2, use_bias=False, name=f'{name}_odd_conv')(between), name)
'''
_JOIN = """
def join(images, name, filters):
  return conv(nn.relu(jnp.concatenate(images, -1)), name, filters)
"""


def _helpers(epsilon: float, filters: int) -> dict[str, str]:
  """Returns the helpers of both kinds of network; `filters` are those of the first reduction."""
  reduce = _REDUCE if filters > 1 else _REDUCE_1  # Flax cannot initialize a convolution without filters
  return norm(epsilon) | {'conv': _CONV, 'sepconv': _SEPCONV, 'reduce': reduce, 'join': _JOIN}


def _named(names: Iterable[int], of: str) -> str:
  return ', '.join(f'{of}{i}' for i in names)


_MACRO = {
  'conv_layer': """
def conv_layer(x, name, filters, size):
  x = nn.relu(conv(x, f'{name}_a', filters))
  return nn.relu(conv(x, f'{name}_b', filters, size))
""",
  'sepconv_layer': """
def sepconv_layer(x, name, filters, size):
  x = nn.relu(conv(x, f'{name}_a', filters))
  return nn.relu(sepconv(x, f'{name}_b', filters, size))
""",
  'average_pool_layer': """
def average_pool_layer(x, name, filters, size):
  return average_pool(nn.relu(conv(x, f'{name}_a', filters)), size)
""",
  'max_pool_layer': """
def max_pool_layer(x, name, filters, size):
  return max_pool(nn.relu(conv(x, f'{name}_a', filters)), size)
""",
}


def macro_source(made: MacroNetwork) -> str:
  """Returns the file of a whole network of ENAS."""
  count, skips = len(made.arch.operation), enas.skips_of(made.arch)

  def lines() -> Iterator[str]:
    filters, before = made.filters, 'x'
    yield f"x = conv(x, 'stem', {filters}, 3)"
    for i, operation in enumerate(made.arch.operation):
      kind, size = MACRO_OPERATIONS[operation].rsplit(maxsplit=1)
      x, name = f"{kind.replace(' ', '_')}_layer({before}, 'layer_{i}', {filters}, {size})", f"'layer_{i}_join'"
      if made.concat:
        yield f'y{i} = join([{_named([*skips[i]], "y")}{", " if skips[i] else ""}{x}], {name}, {filters})'
      else:
        yield f'y{i} = norm({" + ".join([x, *(f"y{j}" for j in skips[i])])}, {name})'
      if i + 1 in enas.cuts(count):
        number, filters = enas.cuts(count).index(i + 1), filters * (1 + made.double)
        for j in read_later(made.arch, i + 1):
          yield f"y{j} = reduce(y{j}, 'reduction_{number}_layer_{j}', {filters})"
      before = f'y{i}'

  helpers = _helpers(made.epsilon, made.filters * (1 + made.double)) | _MACRO
  return image_classifier(made.arch, made.classes, _FUNCTIONS, helpers, '\n'.join(lines()), f'y{count - 1}')


_MICRO = {
  'sep_twice': """
def sep_twice(x, name, size):
  x = sepconv(nn.relu(x), f'{name}_a', x.shape[-1], size)
  return sepconv(nn.relu(x), f'{name}_b', x.shape[-1], size)
""",
  'bring': """
def bring(x, name, filters, halve):
  x = nn.relu(x)
  return reduce(x, name, filters) if halve else conv(x, name, filters)
""",
}


def micro_source(made: MicroNetwork) -> str:
  """Returns the file of a network of ENAS cells."""
  stack, kinds = made.stack(), enas.cells_of(made.arch)
  reductions = [cell.filters for cell in stack if True in cell.halved]

  def lines() -> Iterator[str]:
    yield f"older = newer = conv(x, 'stem', {made.filters}, 3)"
    for k, cell in enumerate(stack):
      halve = f', halve={cell.halved}' if True in cell.halved else ''
      yield f"older, newer = newer, {cell.kind}_cell(older, newer, 'cell_{k}', {cell.filters}{halve})"

  helpers = _helpers(made.epsilon, min(reductions, default=2)) | _MICRO
  helpers |= {f'{kind}_cell': _micro_cell(kind, *cell) for kind, cell in kinds.items()}
  return image_classifier(made.arch, made.classes, _FUNCTIONS, helpers, '\n'.join(lines()), 'nn.relu(newer)')


def _micro_cell(kind: str, reads: tuple[int, ...], operations: tuple[int, ...]) -> str:
  """Returns the helper function of one kind of cell."""

  def side(p: int) -> str:
    x, name = f'h{reads[p]}', f"f'{{name}}_block_{p // 2}_{SIDES[p % 2]}'"
    word, _, size = MICRO_OPERATIONS[operations[p]].rpartition(' ')
    if word == 'sepconv':
      return f'sep_twice({x}, {name}, {size})'
    return f'{word.replace(" ", "_")}({x}, {size})' if word else x

  nodes = 2 + len(reads) // 2
  lines = [
    f'def {kind}_cell(older, newer, name, filters, halve=(False, False)):',
    "  h0 = bring(older, f'{name}_input_0', filters, halve[0])",
    "  h1 = bring(newer, f'{name}_input_1', filters, halve[1])",
    *(f'  h{2 + b} = {side(2 * b)} + {side(2 * b + 1)}' for b in range(len(reads) // 2)),
    f"  return join([{_named(enas.loose_ends(reads, nodes), 'h')}], f'{{name}}_ends', filters)",
  ]
  return '\n'.join(lines)
