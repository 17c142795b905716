"""The child that reads sequences of numbers: layers of recurrent cells, and a linear map of the last output.

It is an image classifier (`conv.classifier`) with a network of its own: a sequence is laid out as an image of T x 1
pixels. Channel 0 is 1 up to the end of the sequence and 0 after it; the other channels are the features.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nas_jax.children import conv, language_model
from nas_jax.children.language_model import Cell, Dropout
from nas_jax.datasets.own_sequences import Split
from nas_jax.datasets.splits import Scale
from nas_jax.nn import precision as precision_lib
from nas_jax.nn import products
from nas_jax.training.child import Child
from nas_jax.types import Array, Key, PyTree


class Hyperparameters(NamedTuple):
  """Hyperparameters of a child: numbers, or arrays if one program trains children with different ones."""

  lr: float | Array
  weight_decay: float | Array  # of all weights but the biases of the outputs
  dropout: float | Array | None = None  # rate for inputs of the linear map and all cells but the first


def laid_out(part: Split, standard: Scale) -> np.ndarray:
  """Returns sequences as the network reads them, [n, T, 1, 1 + F] float32, with features standardized."""
  inside = (np.arange(part.sequences.shape[1]) < part.lengths[:, None])[..., None]
  features = np.where(inside, (part.sequences - standard.mean) / standard.deviation, 0.0)
  return np.concatenate([inside, features], -1).astype(np.float32)[:, :, None]


def build(inputs: conv.InputSpec, hidden: int, layers: int, cell: Cell, together: int = 1) -> Child:
  """Returns the child, for sequences as `laid_out` returns them, in the layout of `image_batches.lay_out`.

  Args:
    inputs: the properties of the sequences; `image` is (T, 1, 1 + F), and `classes` the number of outputs.
    hidden: H.
    layers: number of layers of cells.
    cell: the kind of cell.
    together: time steps that are unrolled in one iteration of the compiled loops over time.

  Returns:
    A child that is scored as `conv.build` says. The `arch` argument of its functions is a `conv.ChildSpec` with
    `Hyperparameters` of this module. With the metric R2 it predicts k numbers, and their squared errors are averaged.
  """
  widths = (inputs.image[-1] - 1, *(hidden,) * layers)
  scale = hidden**-0.5

  def init(spec: conv.ChildSpec, key: Key) -> PyTree:
    softmax_key, *cell_keys = jax.random.split(key, 1 + layers)
    cells = [cell.init(k, spec.arch, width, hidden, scale) for k, width in zip(cell_keys, widths[:-1], strict=True)]
    softmax = jax.random.uniform(softmax_key, (hidden, inputs.classes), minval=-scale, maxval=scale)
    return {'cells': cells, 'softmax': softmax, 'softmax_bias': jnp.zeros(inputs.classes)}

  def forward(params, carry, spec, x, key):
    masks = language_model.no_masks(layers)
    if key is not None and (rate := spec.hyperparameters.dropout) is not None:
      masks = language_model.draw_masks(key, Dropout(input=rate, output=rate), 0, widths, len(x))
    return run(cell, params, spec.arch, x, masks, inputs.precision, together), carry

  def decayed(params: PyTree) -> list[Array]:
    return jax.tree.leaves((params['cells'], params['softmax']))

  found = conv.classifier(init, lambda params: (), forward, decayed, inputs)
  return found._replace(compiler_options=lambda platform: {})  # those are for convolutions


def run(
  cell: Cell,
  params: PyTree,
  arch: PyTree,
  x: Array,
  masks: language_model.Masks,
  precision: str = 'float32',
  together: int = 1,
) -> Array:
  """Returns outputs [B, K], logits or numbers, from the last outputs of the cells.

  Args:
    cell: the kind of cell.
    params: the weights of the child.
    arch: static or traced.
    x: [B, T, 1, 1 + F] as `laid_out`.
    masks: the masks of dropout. What enters the first layer is never dropped.
    precision: the precision of matrix products and the values between them; outputs are float32.
    together: as in `build`.
  """
  end = (x[:, :, 0, 0] > 0).sum(1) - 1
  xs, bias = x[:, :, 0, 1:].swapaxes(0, 1), params['softmax_bias']
  params, xs, masks = precision_lib.lowered(precision, (params, xs, masks))
  zeros = precision_lib.lowered(precision, [cell.carry(len(x), len(params['softmax'])) for _ in params['cells']])
  _, outputs = language_model.run_layers(cell, params['cells'], arch, zeros, xs, masks, together)
  last = jnp.take_along_axis(outputs, end[None, :, None], 0)[0]
  return products.projected(last, params['softmax'], dtype=bias.dtype) + bias[None]
