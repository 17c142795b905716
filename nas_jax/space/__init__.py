"""Spaces of architectures: what each token means, and how architectures are encoded, counted and compared."""

from nas_jax.operations import Operation, Operations
from nas_jax.space.base import Kind, Slot, Space, canonical, is_static, stack, unstack
from nas_jax.space.chain import ChainArch, chain_space
from nas_jax.space.choice import ChoiceArch, choice_space
from nas_jax.space.conv import LAYER_TYPES, ConvArch, conv_space
from nas_jax.space.enas import MacroArch, MicroArch, RnnArch, enas_macro_space, enas_micro_space, enas_rnn_space
from nas_jax.space.network import Counts, count
from nas_jax.space.registry import from_json, kind_of, space_of
from nas_jax.space.tree import ACTIVATE, COMBINE, TreeArch, tree_cell_space

__all__ = [
  'ACTIVATE', 'COMBINE', 'LAYER_TYPES', 'ChainArch', 'ChoiceArch', 'ConvArch', 'Counts', 'Kind', 'MacroArch',
  'MicroArch', 'Operation', 'Operations', 'RnnArch', 'Slot', 'Space', 'TreeArch', 'canonical', 'chain_space',
  'choice_space', 'conv_space', 'count', 'enas_macro_space', 'enas_micro_space', 'enas_rnn_space', 'from_json',
  'is_static', 'kind_of', 'space_of', 'stack', 'tree_cell_space', 'unstack',
]  # fmt: skip
