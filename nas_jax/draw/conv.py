"""Static convolutional networks as pictures, in the manner of Zoph & Le (2017) Fig. 7: the image below, softmax on top.

An arrow goes from each layer to every layer that reads it. To the next layer it goes straight up; to later layers it
goes beside the boxes, in a lane of one colour that branches to each of them. Arrows cross only at right angles.
"""

import functools
import os
from typing import Any

from nas_jax.draw import pen, routing
from nas_jax.space.conv import AVERAGE_POOL, CONV, MAX_POOL
from nas_jax.space.network import NAMES, Arch, Layer, Network, NetworkOptions, network, stride_words

_HIGH = 32.0  # points, the least height of a box with two lines of text


def draw(arch: Arch, path: str | os.PathLike[str], options: NetworkOptions = NetworkOptions()) -> None:  # noqa: B008 - cannot change
  """Draws a static network into a file, dark on white. The ending of the path decides the format.

  The box of a convolution has the height and width of its window and its number of filters; that of a residual block
  also has its name. Layers have the numbers that `describe` uses. The classifier reads the layers that no other
  layer reads.

  Raises:
    ValueError: the path does not end in .svg, .png or .pdf.
  """
  pen.write(functools.partial(_figure, network(arch, options)), path, 'network')


def svg(arch: Arch, options: NetworkOptions = NetworkOptions()) -> str:  # noqa: B008 - cannot change
  """Returns the drawing as an <svg> element for an HTML page. The same network gives the same bytes.

  It has the text colour of the page, see `pen.element`.
  """
  made = network(arch, options)
  widest = f'min(100%, {layout(made).width:g}pt)'  # a narrow drawing must not be stretched to the width of the page
  return pen.element(functools.partial(_figure, made), 'net', tuple(made), 'convolutional network', widest)


def layout(made: Network) -> routing.Layout:
  """Returns the positions of the image, the layers in order and the classifier, in points."""
  layers = [
    routing.Box(word, str(i), note, shaded=not layer.filters, height=_HIGH if note else routing.HEIGHT)
    for i, layer in enumerate(made.layers)
    for word, note in (_words(layer),)
  ]
  boxes = (routing.Box('image', round=True), *layers, routing.Box('softmax', round=True))
  # Box 0 is the image, box i + 1 is layer i.
  reads = [(), *(tuple(j + 1 for j in layer.reads) for layer in made.layers), tuple(j + 1 for j in made.ends)]
  return routing.column(boxes, reads, {})


def _words(layer: Layer) -> tuple[str, str]:
  """Returns the two lines of text in a box."""
  name, stride = NAMES[layer.kind], stride_words(layer, '×')
  if not layer.filters:
    return f'{name} {layer.window[0]}' if layer.kind in (MAX_POOL, AVERAGE_POOL) else name, stride
  notes = ['' if layer.kind == CONV else name, stride]
  return f'{layer.window[0]}×{layer.window[1]}, {layer.filters}', ', '.join(filter(None, notes))


def _figure(made: Network, ink: str) -> Any:
  """Returns a matplotlib figure of a network."""
  return routing.figure(layout(made), ink)
