"""Static convolutional networks as pictures, in the manner of Zoph & Le (2017) Fig. 7: the image below, softmax on top.

What a layer gives goes straight up to the layer after it. To all that read it later it goes beside the boxes, in one
lane of one colour, of which each of them has a branch: an arrow a read, and arrows cross but at right angles.
"""

import functools
import os
from typing import Any

from nas_jax.draw import pen, routing
from nas_jax.space.conv import AVERAGE_POOL, CONV, MAX_POOL
from nas_jax.space.network import NAMES, Arch, Layer, Network, NetworkOptions, network, stride_words

_HIGH = 32.0  # points, the least height of a box of two lines


def draw(arch: Arch, path: str | os.PathLike[str], options: NetworkOptions = NetworkOptions()) -> None:  # noqa: B008 - cannot change
  """Draws a static network into a file, dark on white; the format is the path's ending.

  A convolution shows its window, height by width, and its number of filters, a residual block the same with its name
  below; the numbers are those that `describe` calls layers by. What no layer reads goes to the classifier.

  Raises:
    ValueError: the path ends in none of .svg, .png, .pdf.
  """
  pen.write(functools.partial(_figure, network(arch, options)), path, 'network')


def svg(arch: Arch, options: NetworkOptions = NetworkOptions()) -> str:  # noqa: B008 - cannot change
  """The same drawing as an <svg> element to put into HTML; one network is always one text.

  It is in the text colour of the page, as `pen.element` says.
  """
  made = network(arch, options)
  widest = f'min(100%, {layout(made).width:g}pt)'  # a page would make a narrow drawing far too high
  return pen.element(functools.partial(_figure, made), 'net', tuple(made), 'convolutional network', widest)


def layout(made: Network) -> routing.Layout:
  """Where the parts of a network are drawn, in points: the image, the layers in order, the classifier."""
  layers = [
    routing.Box(word, str(i), note, shaded=not layer.filters, height=_HIGH if note else routing.HEIGHT)
    for i, layer in enumerate(made.layers)
    for word, note in (_words(layer),)
  ]
  boxes = (routing.Box('image', round=True), *layers, routing.Box('softmax', round=True))
  # Place 0 is the image, i + 1 layer i.
  reads = [(), *(tuple(j + 1 for j in layer.reads) for layer in made.layers), tuple(j + 1 for j in made.ends)]
  return routing.column(boxes, reads, {})


def _words(layer: Layer) -> tuple[str, str]:
  """What a box says, and under it."""
  name, stride = NAMES[layer.kind], stride_words(layer, '×')
  if not layer.filters:
    return f'{name} {layer.window[0]}' if layer.kind in (MAX_POOL, AVERAGE_POOL) else name, stride
  notes = ['' if layer.kind == CONV else name, stride]
  return f'{layer.window[0]}×{layer.window[1]}, {layer.filters}', ', '.join(filter(None, notes))


def _figure(made: Network, ink: str) -> Any:
  """A matplotlib figure of a network."""
  return routing.figure(layout(made), ink)
