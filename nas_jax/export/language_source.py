"""Python files of networks of recurrent cells: language models, and networks for sequences of numbers."""

from nas_jax import operations as operations_lib
from nas_jax import tree_cell
from nas_jax.export.language import RecurrentNetwork
from nas_jax.export.sequences import SequenceNetwork
from nas_jax.export.source import arch_words
from nas_jax.operations import Operations
from nas_jax.space.enas import RnnArch, loose_ends
from nas_jax.space.tree import TreeArch


def recurrent_source(made: RecurrentNetwork | SequenceNetwork) -> str:
  """Returns the file of a network of recurrent cells."""
  if isinstance(made.arch, TreeArch):
    name, text = 'Cell', _tree_cell(made.arch, made.operations)
  elif isinstance(made.arch, RnnArch):
    name, text = 'Cell', _enas_cell(made.arch, made.operations)
  else:
    name, text = 'nn.OptimizedLSTMCell', ''
  what = 'recurrent cells found by architecture search' if text else 'standard LSTM cells'
  use = 'A network for sequences' if isinstance(made, SequenceNetwork) else 'A language model'
  head = _HEAD.format(use=use, what=what, arch=f'\n\n{arch_words(made.arch)}\n' if text else '')
  model = _NETWORK.format(made=made, cell=name) if isinstance(made, SequenceNetwork) else _model(made, name)
  return head + _imports(text + model) + text + model


def _imports(text: str) -> str:
  lines = ['import flax.linen as nn', *(['import jax'] if 'jax.' in text else []), 'import jax.numpy as jnp']
  return '\n'.join(lines if 'jnp.' in text else lines[:1]) + '\n'


def _tree_cell(arch: TreeArch, operations: Operations) -> str:
  """Returns the step function of `tree_cell.to_source`, the functions it calls, and a Flax cell around it."""
  text = tree_cell.to_source(arch, operations)
  start, init, step, unroll = (text.index(f'{word}') for word in ('jnp\n', 'def init(', 'def step(', 'def unroll('))
  definitions = text[start:init].removeprefix('jnp\n').strip()
  leaves = len(arch.combine) // 2 + 1
  return (
    (definitions and f'\n{definitions}\n') + f'\n\n{text[step:unroll].strip()}\n' + _TREE_CELL.format(leaves=leaves)
  )


def _enas_cell(arch: RnnArch, operations: Operations) -> str:
  definitions: dict[str, str] = {}
  lines = []
  for node, activate in enumerate(arch.activate):
    operation = operations_lib.find('activate', operations, activate)
    function = operation.source
    if not function.replace('.', '').isidentifier():
      function = f'_{operation.name}'
      definitions[function] = operation.source
    before = f'h{arch.previous[node - 1]}' if node else 'h'
    sums = f"product({before}, 'node_{node}')" if node else "product(x, 'input') + product(h, 'recurrent')"
    lines.append(f'    h{node} = node({before}, {sums}, {function})')
  ends = [f'h{i}' for i in loose_ends(arch.previous, len(arch.activate))]
  mean = f'({" + ".join(ends)}) / {len(ends)}' if len(ends) > 1 else ends[0]
  lines.append(f'    h = {mean}')
  own = ''.join(f'{name} = {source}\n' for name, source in definitions.items())
  return (own and f'\n{own}') + _ENAS_CELL.format(lines='\n'.join(lines))


def _model(made: RecurrentNetwork, cell: str) -> str:
  logits = _TIED if made.tied else _OWN
  width = made.embedding if made.embedding not in (0, made.features) else 'self.features'
  return _MODEL.format(made=made, width=width, cell=cell, logits=logits)


_HEAD = '''"""{use} of {what}. It needs only JAX and Flax.{arch}"""

'''
_TREE_CELL = '''

class Cell(nn.RNNCellBase):
  """The cell for Flax; its carry is (c, h)."""

  features: int

  @nn.compact
  def __call__(self, carry, x):
    limit, width = self.features**-0.5, {leaves} * self.features

    def init(key, shape):
      return jax.random.uniform(key, shape, minval=-limit, maxval=limit)

    rows = {{'kernel': x.shape[-1], 'recurrent_kernel': self.features}}
    return step({{name: self.param(name, init, (count, width)) for name, count in rows.items()}}, carry, x)

  @nn.nowrap
  def initialize_carry(self, rng, input_shape):
    zeros = jnp.zeros((*input_shape[:-1], self.features))
    return zeros, zeros

  @property
  def num_feature_axes(self):
    return 1
'''
_ENAS_CELL = '''

def node(before, sums, activate):
  gate, value = jnp.split(sums, 2, -1)
  return before + nn.sigmoid(gate) * (activate(value) - before)


class Cell(nn.RNNCellBase):
  """The cell for Flax; its carry is h."""

  features: int

  @nn.compact
  def __call__(self, h, x):
    def product(x, name):
      return nn.Dense(2 * self.features, use_bias=False, name=name)(x)

{lines}
    return h, h

  @nn.nowrap
  def initialize_carry(self, rng, input_shape):
    return jnp.zeros((*input_shape[:-1], self.features))

  @property
  def num_feature_axes(self):
    return 1
'''
_MODEL = '''

class LanguageModel(nn.Module):
  """Maps tokens [batch, time] to the carry after the last and logits [batch, time, vocabulary] of the next ones."""

  vocabulary: int = {made.vocabulary}
  features: int = {made.features}
  layers: int = {made.layers}

  @nn.compact
  def __call__(self, tokens, carry=None):
    embed = nn.Embed(self.vocabulary, {width}, name='embedding')
    x, after = embed(tokens), []
    for i in range(self.layers):
      rnn = nn.RNN({cell}(self.features, name=f'cell_{{i}}'), return_carry=True)
      state, x = rnn(x, initial_carry=carry[i] if carry else None)
      after.append(state)
{logits}'''
_OWN = """    return after, nn.Dense(self.vocabulary, name='softmax')(x)
"""
_TIED = """    bias = self.param('softmax_bias', nn.initializers.zeros_init(), (self.vocabulary,))
    return after, embed.attend(x) + bias[None, None]
"""
_NETWORK = '''

class Network(nn.Module):
  """Maps standardized sequences [batch, time, features], and perhaps their lengths [batch], to outputs."""

  outputs: int = {made.outputs}
  features: int = {made.features}
  layers: int = {made.layers}

  @nn.compact
  def __call__(self, sequences, lengths=None):
    x = sequences
    for i in range(self.layers):
      x = nn.RNN({cell}(self.features, name=f'cell_{{i}}'))(x)
    end = jnp.full(len(x), x.shape[1]) if lengths is None else lengths
    return nn.Dense(self.outputs, name='softmax')(jnp.take_along_axis(x, end[:, None, None] - 1, 1)[:, 0])
'''
