"""Language models of found recurrent cells as Flax modules, Zoph & Le (2017) Sec. 4.2."""

import itertools

import flax.linen as nn
import jax.numpy as jnp

from nas_jax import operations as operations_lib
from nas_jax.operations import BUILT_IN, Operations
from nas_jax.space.checks import check_static
from nas_jax.space.enas import RnnArch, loose_ends
from nas_jax.space.tree import TreeArch
from nas_jax.tree_cell import TreeCell
from nas_jax.types import Array, Key, PyTree

Arch = TreeArch | RnnArch | str  # 'LSTM': the standard LSTM with biases, which no tree cell equals


class EnasCell(nn.RNNCellBase):
  """A recurrent cell of ENAS for Flax, e.g. for `nn.RNN`; see `nn.enas_cell` for its equations. The carry is h.

  Attributes:
    features: H.
    arch: a static architecture.
    operations: your own operations, if the arch holds any.
  """

  features: int
  arch: RnnArch
  operations: Operations = BUILT_IN

  @nn.compact
  def __call__(self, carry: Array, inputs: Array) -> tuple[Array, Array]:
    """Computes one step: maps h [..., H] and x [..., in] to (h, h).

    Raises ValueError if the architecture is invalid or traced.
    """
    check_static(self.arch, RnnArch, operations=self.operations)
    reads = (None, *self.arch.previous)

    def product(x: Array, name: str) -> Array:
      return nn.Dense(2 * self.features, use_bias=False, name=name)(x)

    values = list[Array]()
    for node, (activate, read) in enumerate(zip(self.arch.activate, reads, strict=True)):
      before = carry if read is None else values[read]
      sums = product(inputs, 'input') + product(carry, 'recurrent') if read is None else product(before, f'node_{node}')
      gate, value = jnp.split(sums, 2, -1)
      value = operations_lib.activate(self.operations, activate, value)
      values.append(before + nn.sigmoid(gate) * (value - before))
    ends = [values[i] for i in loose_ends(self.arch.previous, len(values))]
    h = sum(ends[1:], ends[0]) / len(ends)
    return h, h

  @nn.nowrap
  def initialize_carry(self, rng: Key, input_shape: tuple[int, ...]) -> Array:
    """Returns zeros; `input_shape` is [..., in]."""
    del rng
    return jnp.zeros((*input_shape[:-1], self.features))

  @property
  def num_feature_axes(self) -> int:
    """One: the last axis of the inputs."""
    return 1


class RecurrentNetwork(nn.Module):
  """A language model: an embedding, layers of recurrent cells and a softmax, as `children.language_model` computes it.

  Attributes:
    arch: a static architecture, or 'LSTM'.
    vocabulary: V.
    features: H, the width of the cells.
    layers: number of layers of cells.
    embedding: width of the embedding; 0 for H.
    tied: whether the softmax uses the weights of the embedding.
    operations: your own operations, if the arch holds any.
  """

  arch: Arch
  vocabulary: int
  features: int
  layers: int = 1
  embedding: int = 0
  tied: bool = False
  operations: Operations = BUILT_IN

  @nn.compact
  def __call__(self, tokens: Array, carry: list[PyTree] | None = None) -> tuple[list[PyTree], Array]:
    """Returns the carry of each layer after the last token, and logits [B, T, V] of the token that follows each token.

    `carry` is the carry after the tokens before these; None for zeros.
    """
    embed = nn.Embed(self.vocabulary, self.embedding or self.features, name='embedding')
    x, after = embed(tokens), list[PyTree]()
    for i in range(self.layers):
      cell = recurrent_cell(self.arch, self.features, self.operations, f'cell_{i}')
      state, x = nn.RNN(cell, return_carry=True)(x, initial_carry=carry[i] if carry else None)
      after.append(state)
    if not self.tied:
      return after, nn.Dense(self.vocabulary, name='softmax')(x)
    bias = self.param('softmax_bias', nn.initializers.zeros_init(), (self.vocabulary,))
    return after, embed.attend(x) + bias[None, None]


def recurrent_cell(arch: Arch, features: int, operations: Operations, name: str) -> nn.RNNCellBase:
  """Returns a cell as a Flax module, to be called inside an `nn.compact` method."""
  if isinstance(arch, str):
    return nn.OptimizedLSTMCell(features, name=name)
  if isinstance(arch, RnnArch):
    return EnasCell(features, arch, operations=operations, name=name)
  # float is float64 under x64: so are the weights of a child, and the initial carry must match
  return TreeCell(features, arch, operations=operations, param_dtype=float, name=name)


def variables(arch: Arch, params: PyTree, carry: PyTree) -> PyTree:
  """Returns the variables of a network of recurrent cells from those of the child; see `export.variables`."""
  del carry
  convert = _of_lstm if isinstance(arch, str) else dict if isinstance(arch, TreeArch) else _of_enas
  weights = {f'cell_{i}': convert(cell) for i, cell in enumerate(params['cells'])}
  if 'embedding' in params:  # of a language model
    weights['embedding'] = {'embedding': params['embedding']}
  if 'softmax' in params:
    weights['softmax'] = {'kernel': params['softmax'], 'bias': params['softmax_bias']}
  else:
    weights['softmax_bias'] = params['softmax_bias']
  return {'params': weights}


def _of_lstm(cell: PyTree) -> PyTree:
  """Converts the weights of an LSTM: Flax has a matrix for each gate, and biases only beside the recurrent matrices."""

  def gates(name):
    return dict(zip('igfo', jnp.split(cell[name], 4, -1), strict=True))

  kernels, recurrent, bias = map(gates, ('kernel', 'recurrent_kernel', 'bias'))
  return {f'i{gate}': {'kernel': kernels[gate]} for gate in kernels} | {
    f'h{gate}': {'kernel': recurrent[gate], 'bias': bias[gate]} for gate in recurrent
  }


def _of_enas(cell: PyTree) -> PyTree:
  nodes = {f'node_{i}': {'kernel': kernel} for i, kernel in zip(itertools.count(1), cell['nodes'])}
  return {'input': {'kernel': cell['kernel']}, 'recurrent': {'kernel': cell['recurrent_kernel']}} | nodes
