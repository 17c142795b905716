"""Python files of image networks: what they have in common, and `to_source` of convolutional networks and chains."""

from collections.abc import Iterator, Mapping, Sequence
import re
import textwrap
from typing import Any

from nas_jax.children.conv import MOMENTUM
from nas_jax.export.conv import ConvNetwork
from nas_jax.space.conv import CONV, IMAGE, MAX_POOL, NORM
from nas_jax.space.network import RESIDUAL, Layer


def image_classifier(
  arch: Any, classes: int, helpers: Mapping[str, str], own: Mapping[str, str], body: str, last: str
) -> str:
  """Returns the file of an image network.

  Args:
    arch: a static architecture, for the docstring.
    classes: their number.
    helpers: functions by name, for the top of the file. Of these and of `own`, only functions that are called are
      written.
    own: functions by name, for the top of `__call__`. Each may call those before it.
    body: the body of `__call__`, without indentation: statements that compute features from x.
    last: the expression of the features [B, H, W, C] whose means over pixels the classifier reads.
  """
  # Python allows line breaks inside brackets, and all long lines have brackets.
  lines = [textwrap.fill(line, 110, subsequent_indent='  ', break_long_words=False) for line in body.splitlines()]
  inner = ''.join(f'{text.strip()}\n\n' for text in _called(own, body + last)) + '\n'.join(lines)
  functions = ''.join(f'\n\n{text.strip()}\n' for text in _called(helpers, inner + last))
  return _FILE.format(
    arch=arch_words(arch),
    arrays='import jax.numpy as jnp\n' if 'jnp.' in functions + inner + last else '',
    functions=functions,
    classes=classes,
    body=textwrap.indent(inner, '    '),
    last=last,
  )


def arch_words(arch: Any) -> str:
  """Returns an architecture as Python, in lines of at most 100 characters."""
  return textwrap.fill(str(arch), 100, subsequent_indent='  ', break_long_words=False)


def norm(epsilon: float) -> dict[str, str]:
  """Returns the helper for batch norm by its name."""
  return {'norm': _NORM.format(momentum=MOMENTUM, epsilon=float(epsilon))}


def _called(texts: Mapping[str, str], body: str) -> list[str]:
  """Returns the functions that `body` calls, directly or through a later function that is itself called."""
  kept = list[str]()
  for name, text in reversed(list(texts.items())):
    if re.search(rf'(?<![\w.]){name}\(', '\n'.join([*kept, body])):
      kept.insert(0, text)
  return kept


_FILE = '''"""An image classifier found by architecture search. It needs only JAX and Flax.

{arch}
"""

import flax.linen as nn
{arrays}{functions}

class Network(nn.Module):
  """Maps images [batch, height, width, channels] to logits [batch, classes].

  To train it, apply it with train=True and mutable='batch_stats'.
  """

  classes: int = {classes}

  @nn.compact
  def __call__(self, x, train=False):
{body}
    return nn.Dense(self.classes, name='classifier')({last}.mean((1, 2)))
'''

_NORM = """
def norm(x, name):
  how = {{'momentum': {momentum}, 'epsilon': {epsilon!r}, 'use_fast_variance': False}}
  return nn.BatchNorm(not train, name=f'{{name}}_norm', **how)(x)
"""

_FUNCTIONS = {
  'edge': '''
def edge(x, window, stride):
  """Padding by which windows that begin at 0, stride, 2 stride, ... are cut off at the edge."""
  return [(0, max(0, (n - 1) // stride * stride + window - n)) for n in x.shape[1:3]]
''',
  'max_pool': """
def max_pool(x, window, stride):
  return nn.max_pool(x, (window, window), (stride, stride), edge(x, window, stride))
""",
  'average_pool': """
def average_pool(x, window, stride):
  padding = edge(x, window, stride)
  return nn.avg_pool(x, (window, window), (stride, stride), padding, count_include_pad=False)
""",
  'side_by_side': '''
def side_by_side(*images):
  """Concatenates channels; smaller images are padded evenly with zeros."""
  height, width = (max(image.shape[axis] for image in images) for axis in (1, 2))

  def padded(image):
    missing = height - image.shape[1], width - image.shape[2]
    return jnp.pad(image, [(0, 0), *((n // 2, n - n // 2) for n in missing), (0, 0)])

  return jnp.concatenate([padded(image) for image in images], -1)
''',
}
_OWN = {
  'conv': """
def conv(x, name, filters, window, strides=(1, 1)):
  padding = [((k - 1) // 2, k // 2) for k in window]
  return nn.Conv(filters, window, strides, padding, use_bias=False, name=f'{name}_conv')(x)
""",
  'residual': """
def residual(x, name, filters, window, strides=(1, 1)):
  y = nn.relu(norm(conv(x, f'{name}_a', filters, window, strides), f'{name}_a'))
  y = norm(conv(y, f'{name}_b', filters, window), f'{name}_b')
  if x.shape[-1] != filters or strides != (1, 1):
    x = norm(conv(x, f'{name}_shortcut', filters, (1, 1), strides), f'{name}_shortcut')
  return nn.relu(x + y)
""",
}
_LAYER = {
  True: """
def layer(x, name, *how):
  return nn.relu(norm(conv(x, name, *how), name))
""",
  False: """
def layer(x, name, *how):
  return norm(nn.relu(conv(x, name, *how)), name)
""",
}


def conv_source(made: ConvNetwork) -> str:
  """Returns the file of a convolutional network or a chain."""
  layers, ends = made.network()
  resized = any(layer.stride != (1, 1) for layer in layers)  # else all images are of one size

  def read(reads: Sequence[int]) -> str:
    names = ['x' if j == IMAGE else f'y{j}' for j in reads]
    if len(names) == 1:
      return names[0]
    return f'side_by_side({", ".join(names)})' if resized else f'jnp.concatenate([{", ".join(names)}], -1)'

  def lines() -> Iterator[str]:
    for i, layer in enumerate(layers):
      yield f'y{i} = {_call(layer, f"layer_{i}", read(layer.reads))}'
    if len(ends) > 1:
      yield f'x = {read(ends)}'

  own = norm(made.epsilon) | _OWN | {'layer': _LAYER[made.norm_first]}
  return image_classifier(
    made.arch, made.classes, _FUNCTIONS, own, '\n'.join(lines()), 'x' if len(ends) > 1 else read(ends)
  )


def _call(layer: Layer, name: str, x: str) -> str:
  """Returns the expression of a layer."""
  if layer.kind == NORM:
    return f"norm({x}, '{name}')"
  if layer.kind in (CONV, RESIDUAL):
    strides = '' if layer.stride == (1, 1) else f', {layer.stride}'
    function = 'layer' if layer.kind == CONV else 'residual'
    return f"{function}({x}, '{name}', {layer.filters}, {layer.window}{strides})"
  function = 'max_pool' if layer.kind == MAX_POOL else 'average_pool'
  return f'{function}({x}, {layer.window[0]}, {layer.stride[0]})'
