"""Compiles tree architectures to recurrent cells, Zoph & Le (2017) Sec. 3.4. It imports JAX and Flax only."""

import importlib
from typing import Any

from nas_jax.operations import Operation, Operations
from nas_jax.published import LSTM, NASCELL
from nas_jax.space.tree import TreeArch
from nas_jax.tree_cell.cell import Carry, apply, unroll
from nas_jax.tree_cell.linen import TreeCell
from nas_jax.tree_cell.params import init
from nas_jax.tree_cell.text import equations, to_source

# These are imported on first use: flax.nnx imports optax, and pictures need matplotlib.
_LATER = {'NNXTreeCell': 'nas_jax.tree_cell.nnx', 'draw': 'nas_jax.draw.tree'}

__all__ = [
  'LSTM', 'NASCELL', 'Carry', 'NNXTreeCell', 'Operation', 'Operations', 'TreeArch', 'TreeCell', 'apply', 'draw',
  'equations', 'init', 'to_source', 'unroll',
]  # fmt: skip


def __getattr__(name: str) -> Any:
  if name in _LATER:
    return getattr(importlib.import_module(_LATER[name]), name)
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}: it has {", ".join(__all__)}.')


def __dir__() -> list[str]:
  return list(__all__)
