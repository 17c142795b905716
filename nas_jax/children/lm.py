"""The language model child: an embedding, a stack of recurrent cells, a softmax (Zoph & Le 2017, Sec. 4.2)."""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from nas_jax import tree_cell
from nas_jax.child import Child
from nas_jax.data import Text
from nas_jax.types import Array, Key, PyTree


class Cell(NamedTuple):
  """A kind of recurrent cell: what `build` stacks."""

  init: Callable[[Key, PyTree, int, int], PyTree]  # (key, arch, in_features, features) -> params
  carry: Callable[[int, int], PyTree]  # (batch, features) -> zeros
  unroll: Callable[[PyTree, PyTree, PyTree, Array], tuple[PyTree, Array]]  # (params, arch, carry, xs) -> carry, ys


def tree(operations: tree_cell.Operations = tree_cell.EVERY) -> Cell:
  """Tree cells; traced ones may hold only the given (combine, activate) ids."""

  def carry(batch: int, features: int) -> PyTree:
    return jnp.zeros((batch, features)), jnp.zeros((batch, features))

  def unroll(params, arch, carry, xs):
    return tree_cell.unroll(params, arch, carry, xs, operations=operations)

  return Cell(tree_cell.init, carry, unroll)


def flax_cell(make: Callable[[int], nn.RNNCellBase]) -> Cell:
  """A Flax cell, e.g. `flax_cell(nn.SimpleCell)`, as a yardstick; the architecture is ignored."""

  def init(key, arch, in_features, features):
    del arch
    cell = make(features)
    zeros = cell.initialize_carry(key, (1, in_features))
    return cell.init(key, zeros, jnp.zeros((1, in_features)))

  def carry(batch, features):
    return make(features).initialize_carry(jax.random.key(0), (batch, features))

  def unroll(params, arch, carry, xs):
    del arch
    cell = make(jax.tree.leaves(carry)[0].shape[-1])
    return jax.lax.scan(lambda carry, x: cell.apply(params, carry, x), carry, xs)

  return Cell(init, carry, unroll)


class Data(NamedTuple):
  """A text laid out for truncated backpropagation: time first, `B` streams side by side."""

  train: np.ndarray  # [steps an epoch, bptt + 1, B] int32; a step's last tokens are the next one's first
  valid: tuple[np.ndarray, ...]  # inputs, targets [windows, bptt, C] int32; weight 0 or 1: each target counts once


def lay_out(text: Text, batch: int, bptt: int, score_batch: int) -> Data:
  """Arrays for `build`. Raises ValueError if the training split is too short for one step."""
  steps = (len(text.train) // batch - 1) // bptt
  if steps < 1:
    raise ValueError(
      f'the training split has {len(text.train)} tokens, one step of batch (={batch}) streams of bptt (={bptt}) needs '
      f'{batch * (bptt + 1)}: take a smaller batch or bptt, or more text.'
    )
  columns = len(text.train) // batch
  streams = text.train[: batch * columns].reshape(batch, columns).T
  train = np.stack([streams[i * bptt : (i + 1) * bptt + 1] for i in range(steps)])
  return Data(train, _windows(text.valid, score_batch, bptt))


def _windows(tokens: np.ndarray, streams: int, bptt: int) -> tuple[np.ndarray, ...]:
  """All predictions of a split in `streams` columns, padded at the end with weight 0."""
  count = len(tokens) - 1
  streams = min(streams, count)
  length = -(-count // streams)
  length += -length % bptt
  rows = []
  for values in (tokens[:-1], tokens[1:], np.ones(count, np.float32)):
    padded = np.zeros(streams * length, values.dtype)
    padded[:count] = values
    rows.append(padded.reshape(streams, -1, bptt).transpose(1, 2, 0))
  return tuple(rows)


def build(vocabulary: int, hidden: int, layers: int, batch: int, init_scale: float, cell: Cell) -> Child:
  """The network, for arrays that `lay_out` made.

  Args:
    vocabulary: V.
    hidden: H, also the width of the embedding.
    layers: cells stacked.
    batch: B, the training streams.
    init_scale: embedding and softmax weights start uniform within +- this, as in Zaremba et al. (2014).
    cell: the kind of cell.

  Returns:
    A child whose score is {'perplexity': ...} per token over the whole validation split, the state carried through.
  """

  def init(arch: PyTree, key: Key) -> PyTree:
    embed_key, softmax_key, *cell_keys = jax.random.split(key, 2 + layers)

    def uniform(key, shape):
      return jax.random.uniform(key, shape, minval=-init_scale, maxval=init_scale)

    return {
      'embedding': uniform(embed_key, (vocabulary, hidden)),
      'cells': [cell.init(cell_key, arch, hidden, hidden) for cell_key in cell_keys],
      'softmax': uniform(softmax_key, (hidden, vocabulary)),
      'softmax_bias': jnp.zeros(vocabulary),
    }

  def zeros(streams: int) -> PyTree:
    return [cell.carry(streams, hidden) for _ in range(layers)]

  def run(params, arch, carries, inputs, targets):
    """Losses [T, B] in nats, and the carries after."""
    x, after = params['embedding'][inputs], []
    for cell_params, carry in zip(params['cells'], carries, strict=True):
      carry, x = cell.unroll(cell_params, arch, carry, x)
      after.append(carry)
    logits = x @ params['softmax'] + params['softmax_bias'][None, None]
    return optax.softmax_cross_entropy_with_integer_labels(logits, targets), after

  def take(data: Data, key: Key, step: Array) -> tuple[Array, Array]:
    del key
    return data.train[step % len(data.train)], step % len(data.train) == 0

  def loss(params, arch, carry, batch, key):
    del key
    tokens, first = batch
    carry = jax.tree.map(lambda value: jnp.where(first, 0.0, value), carry)
    losses, carry = run(params, arch, carry, tokens[:-1], tokens[1:])
    return losses.mean(), carry

  def score(params, arch, data):
    def window(state, inputs):
      carry, total = state
      tokens, targets, weight = inputs
      losses, carry = run(params, arch, carry, tokens, targets)
      return (carry, total + (losses * weight).sum()), None

    start = zeros(data.valid[0].shape[-1]), jnp.zeros(())
    (_, total), _ = jax.lax.scan(window, start, data.valid)
    return {'perplexity': jnp.exp(total / data.valid[2].sum())}

  return Child(init, lambda params: zeros(batch), take, loss, score)
