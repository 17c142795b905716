"""The language model child: an embedding, layers of recurrent cells, a softmax (Zoph & Le 2017, Sec. 4.2)."""

from collections.abc import Callable, Sequence
import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from nas_jax import tree_cell
from nas_jax.datasets import text_batches
from nas_jax.nn import enas_cell, products
from nas_jax.nn import precision as precision_lib
from nas_jax.nn import recurrent as recurrent_lib
from nas_jax.operations import BUILT_IN, Operations
from nas_jax.training.child import Child
from nas_jax.types import Array, Key, PyTree


class Cell(NamedTuple):
  """A kind of recurrent cell: the functions from which `build` makes layers."""

  # (key, arch, in_features, features, scale) -> params, uniform in [-scale, scale]; scale may be traced
  init: Callable[[Key, PyTree, int, int, float | Array], PyTree]
  carry: Callable[[int, int], PyTree]  # (batch, features) -> zeros
  # (params, arch, carry, xs, h_mask, together) -> carry, ys; the mask is for recurrent dropout, [B, H] or None, and
  # `together` time steps are unrolled in one iteration of the compiled loop
  unroll: Callable[[PyTree, PyTree, PyTree, products.Inputs, Array | None, int], tuple[PyTree, Array]]


def tree(operations: Operations = BUILT_IN) -> Cell:
  """Returns tree cells. Traced architectures may hold only the given operations."""

  def unroll(params, arch, carry, xs, h_mask, together=1):
    return tree_cell.unroll(params, arch, carry, xs, h_mask=h_mask, operations=operations, together=together)

  def init(key, arch, in_features, features, scale):
    return tree_cell.init(key, arch, in_features, features, scale=scale)

  return Cell(init, _two_zeros, unroll)


def enas(operations: Operations = BUILT_IN, normalize: bool = False) -> Cell:
  """Returns recurrent cells of ENAS. Traced architectures share weights and may hold only the given activations.

  `normalize` adds batch norm of the outputs over the streams of the batch, as in the paper's search.
  """

  def init(key, arch, in_features, features, scale):
    return enas_cell.init(key, arch, in_features, features, scale=scale)

  def unroll(params, arch, carry, xs, h_mask, together=1):
    kinds = {'normalize': normalize, 'operations': operations, 'together': together}
    return enas_cell.unroll(params, arch, carry, xs, h_mask=h_mask, **kinds)

  return Cell(init, lambda batch, features: jnp.zeros((batch, features)), unroll)


def lstm() -> Cell:
  """Returns the standard LSTM with biases, as a reference. It ignores the arch."""

  def init(key, arch, in_features, features, scale):
    del arch
    return recurrent_lib.init(key, in_features, features, 4, bias=True, scale=scale)

  def unroll(params, arch, carry, xs, h_mask, together=1):
    del arch
    return recurrent_lib.unroll(recurrent_lib.lstm, None, params, carry, xs, h_mask=h_mask, together=together)

  return Cell(init, _two_zeros, unroll)


def _two_zeros(batch: int, features: int) -> PyTree:
  return jnp.zeros((batch, features)), jnp.zeros((batch, features))


def flax_cell(make: Callable[[int], nn.RNNCellBase]) -> Cell:
  """Returns a Flax cell, e.g. `flax_cell(nn.SimpleCell)`, as a reference. It ignores the arch.

  Its weights are initialized by Flax, and it has no recurrent dropout.
  """

  def init(key, arch, in_features, features, scale):
    del arch, scale
    cell = make(features)
    zeros = cell.initialize_carry(key, (1, in_features))
    return cell.init(key, zeros, jnp.zeros((1, in_features)))

  def carry(batch, features):
    return make(features).initialize_carry(jax.random.key(0), (batch, features))

  def unroll(params, arch, carry, xs, h_mask, together=1):
    del arch, h_mask
    cell = make(jax.tree.leaves(carry)[0].shape[-1])
    step, inputs = functools.partial(cell.apply, params), products.looked_up(xs)
    return jax.lax.scan(step, carry, inputs, unroll=together)

  return Cell(init, carry, unroll)


class Dropout(NamedTuple):
  """Rates of variational dropout (Gal & Ghahramani 2016): one mask for all time steps of a training step.

  None leaves this dropout out of the program. Other rates may be traced, and may be 0.
  """

  embedding: float | Array | None = None  # of whole words of the vocabulary
  input: float | Array | None = None  # of the input of each cell from the layer below
  recurrent: float | Array | None = None  # of h_(t-1) where it enters the cell
  output: float | Array | None = None  # of the input of the softmax


class Hyperparameters(NamedTuple):
  """Hyperparameters of a child: numbers, or arrays if one program trains children with different ones."""

  lr: float | Array  # initial learning rate
  decay_epoch: float | Array  # epochs before it decays, in schedules that count epochs
  init_scale: float | Array  # embedding and softmax are initially uniform within +- this
  cell_scale: float | Array  # the weights of the cells are initially uniform within +- this
  dropout: Dropout = Dropout()


class ChildSpec(NamedTuple):
  """What children may differ in: the architecture and the hyperparameters."""

  arch: PyTree  # static or traced, as the cell takes it
  hyperparameters: Hyperparameters


class Masks(NamedTuple):
  """The factors of dropout: 0 or 1 / (1 - rate). None if nothing is dropped."""

  words: Array | None  # [V, 1]
  between: tuple[Array | None, ...]  # [B, features] below each cell, and above the last
  recurrent: tuple[Array | None, ...]  # [B, H] for each cell


def no_masks(layers: int) -> Masks:
  """Returns the masks of evaluation, where nothing is dropped."""
  return Masks(None, (None,) * (layers + 1), (None,) * layers)


def draw_masks(key: Key, dropout: Dropout, vocabulary: int, widths: Sequence[int], batch: int) -> Masks:
  """Draws the masks of one training step; `widths` are the widths of the input of each cell and of the softmax."""
  layers = len(widths) - 1

  def mask(key: Key, rate: float | Array | None, *shape: int) -> Array | None:
    return None if rate is None else jax.random.bernoulli(key, 1 - rate, shape) / (1 - rate)

  word_key, between_key, recurrent_key = jax.random.split(key, 3)
  between_rates = [dropout.input] * layers + [dropout.output]
  between_keys, recurrent_keys = jax.random.split(between_key, layers + 1), jax.random.split(recurrent_key, layers)
  return Masks(
    mask(word_key, dropout.embedding, vocabulary, 1),
    tuple(mask(k, rate, batch, w) for k, rate, w in zip(between_keys, between_rates, widths, strict=True)),
    tuple(mask(k, dropout.recurrent, batch, w) for k, w in zip(recurrent_keys, widths[1:], strict=True)),
  )


def run(
  cell: Cell,
  params: PyTree,
  arch: PyTree,
  carries: list[PyTree],
  inputs: Array,
  targets: Array,
  masks: Masks,
  precision: str = 'float32',
  together: int = 1,
) -> tuple[Array, list[PyTree]]:
  """Runs the network on a window. Returns losses [T, B] in nats of `targets` given `inputs`, both [T, B]; and carries.

  With the precision 'bfloat16' products and all values between them are bfloat16. Logits, losses and carries are
  float32.
  """
  bias, given = params['softmax_bias'], carries
  params, carries, masks = precision_lib.lowered(precision, (params, carries, masks))

  x: products.Inputs = products.Rows(params['embedding'], inputs)
  if masks.words is not None or masks.between[0] is not None:
    x = products.looked_up(x)
    x = _dropped(x if masks.words is None else x * masks.words[inputs], masks.between[0])
  after, x = run_layers(cell, params['cells'], arch, carries, x, masks, together)
  softmax = params['softmax'] if 'softmax' in params else params['embedding'].T  # tied
  logits = products.projected(x, softmax, dtype=bias.dtype) + bias[None, None]
  after = jax.tree.map(lambda new, old: new.astype(old.dtype), after, given)
  return optax.softmax_cross_entropy_with_integer_labels(logits, targets), after


def run_layers(
  cell: Cell,
  params: list[PyTree],
  arch: PyTree,
  carries: list[PyTree],
  x: products.Inputs,
  masks: Masks,
  together: int = 1,
) -> tuple[list[PyTree], Array]:
  """Runs the layers of cells over inputs [T, B, in], to which dropout has been applied already.

  Returns the carries after the last step, and the outputs [T, B, H] of the last layer, with dropout applied.
  """
  after = list[PyTree]()
  for cell_params, carry, h_mask, above in zip(params, carries, masks.recurrent, masks.between[1:], strict=True):
    carry, outputs = cell.unroll(cell_params, arch, carry, x, h_mask, together)
    x = _dropped(outputs, above)
    after.append(carry)
  return after, products.looked_up(x)


def _dropped(x: Array, mask: Array | None) -> Array:
  return x if mask is None else x * mask[None]


def build(
  vocabulary: int,
  hidden: int,
  layers: int,
  batch: int,
  cell: Cell,
  tied: bool = False,
  embedding: int = 0,
  precision: str = 'float32',
  together: int = 1,
) -> Child:
  """Returns the child, for data of `text_batches.lay_out`. The `arch` argument of its functions is a `ChildSpec`.

  Args:
    vocabulary: V.
    hidden: H.
    layers: number of layers of cells.
    batch: B, streams side by side in training.
    cell: the kind of cell.
    tied: whether the softmax uses the weights of the embedding ("shared embeddings" in Table 2).
    embedding: width of the embedding; 0 for H.
    precision: the precision of matrix products and the values between them, one of `precision.PRECISIONS`.
    together: time steps that are unrolled in one iteration of the compiled loops over time.

  Returns:
    A child whose score is {'perplexity': ...} per token over the whole validation split, with the state carried from
    window to window.

  Raises:
    ValueError: `tied` is true, and the embedding is not as wide as the cells.
  """
  embedding = embedding or hidden
  if tied and embedding != hidden:
    raise ValueError(f'embedding (={embedding}) must be as wide as hidden (={hidden}) to be tied to the softmax.')
  widths = (embedding, *(hidden,) * layers)

  def init(spec: ChildSpec, key: Key) -> PyTree:
    embed_key, softmax_key, *cell_keys = jax.random.split(key, 2 + layers)
    scale, cell_scale = spec.hyperparameters.init_scale, spec.hyperparameters.cell_scale

    def uniform(key, shape):
      return jax.random.uniform(key, shape, minval=-scale, maxval=scale)

    params = {
      'embedding': uniform(embed_key, (vocabulary, embedding)),
      'cells': [
        cell.init(cell_key, spec.arch, width, hidden, cell_scale)
        for cell_key, width in zip(cell_keys, widths[:-1], strict=True)
      ],
      'softmax_bias': jnp.zeros(vocabulary),
    }
    return params if tied else params | {'softmax': uniform(softmax_key, (hidden, vocabulary))}

  def zeros(streams: int) -> PyTree:
    return [cell.carry(streams, hidden) for _ in range(layers)]

  def take(data: text_batches.Data, key: Key, step: Array) -> tuple[Array, Array]:
    del key
    return data.train[step % len(data.train)], step % len(data.train) == 0

  def loss(params, spec, carry, window, key):
    tokens, first = window
    carry = jax.tree.map(lambda value: jnp.where(first, 0.0, value), carry)
    masks = draw_masks(key, spec.hyperparameters.dropout, vocabulary, widths, tokens.shape[1])
    losses, carry = run(cell, params, spec.arch, carry, tokens[:-1], tokens[1:], masks, precision, together)
    return losses.mean(), carry

  def score(params, spec, carry, data):
    del carry  # the split starts from zeros
    whole = no_masks(layers)

    def window(state, inputs):
      carry, total = state
      tokens, targets, weight = inputs
      losses, carry = run(cell, params, spec.arch, carry, tokens, targets, whole, precision, together)
      return (carry, total + (losses * weight).sum()), None

    start = zeros(data.valid[0].shape[-1]), jnp.zeros(())
    (_, total), _ = jax.lax.scan(window, start, data.valid)
    return {'perplexity': jnp.exp(total / data.valid[2].sum())}

  return Child(init, lambda params: zeros(batch), take, loss, score, precision=precision)
