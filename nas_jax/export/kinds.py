"""The three functions of the package that dispatch on the type of the architecture."""

from collections.abc import Callable
import functools
from typing import Any

import flax.linen as nn

from nas_jax.export import conv, enas, language, sequences
from nas_jax.export.enas_source import macro_source, micro_source
from nas_jax.export.language_source import recurrent_source
from nas_jax.export.source import conv_source
from nas_jax.operations import BUILT_IN, Operations
from nas_jax.space import ChainArch, ConvArch, MacroArch, MicroArch, RnnArch, TreeArch
from nas_jax.space.checks import check_static
from nas_jax.types import PyTree


@functools.singledispatch
def module(arch: Any, **options: Any) -> nn.Module:
  """Returns the network of a static architecture as a Flax module.

  Args:
    arch: the architecture. 'LSTM' stands for standard LSTM cells.
    **options: attributes of the module: see `ConvNetwork`, `MacroNetwork`, `MicroNetwork` and `RecurrentNetwork`.
      Recurrent cells with `outputs` make a `SequenceNetwork`.

  Returns:
    A module of nn.Conv, nn.BatchNorm, nn.Dense, ... Image networks map whitened images [B, H, W, C] to logits
    [B, classes], and take `train`. Language models map tokens [B, T] to a carry and logits [B, T, V], networks for
    sequences [B, T, F] to outputs [B, K]. Dropout and drop path are left out.

  Raises:
    ValueError: there is no function for the type of the architecture, or it is invalid or traced.

  >>> import jax, jax.numpy as jnp
  >>> from nas_jax import export, published
  >>> network = export.module(published.XU_CIFAR10, classes=10)
  >>> images = jnp.zeros((2, 8, 8, 3))
  >>> logits = jax.eval_shape(lambda: network.init_with_output(jax.random.key(0), images)[0])
  >>> logits.shape
  (2, 10)
  """
  raise _unknown(arch, module)


@functools.singledispatch
def variables(arch: Any, params: PyTree, carry: PyTree) -> PyTree:
  """Returns the variables of the module of a network from the parameters and the carry of its child.

  Args:
    arch: a static architecture.
    params: the weights of the child, as its `init` returns them; for one network, without a leading axis.
    carry: the carry of the child: moving statistics of batch norm. The carry of recurrent cells is not used.

  Returns:
    {'params': ..., 'batch_stats': ...} for `module.apply`; 'batch_stats' only if the network has batch norm.

  Raises:
    ValueError: as `module`.
  """
  raise _unknown(arch, variables)


@functools.singledispatch
def to_source(arch: Any, **options: Any) -> str:
  """Returns a Python file with the network of a static architecture, which needs only JAX and Flax.

  Args:
    arch: as in `module`.
    **options: as in `module`.

  Returns:
    A file with a Flax module `Network`, or `LanguageModel` if it reads text. It takes the same variables as the module
    that `module` returns.

  Raises:
    ValueError: as `module`.

  >>> from nas_jax import export, published
  >>> file = {}
  >>> exec(export.to_source(published.ENAS_RNN, vocabulary=100, features=64), file)
  >>> file['LanguageModel']().features
  64
  """
  raise _unknown(arch, to_source)


def _unknown(arch: Any, function: Any) -> ValueError:
  known = ', '.join(kind.__name__ for kind in function.registry if kind is not object)
  return ValueError(f'a {type(arch).__name__} cannot be exported: want one of {known}.')


def _recurrent(arch: language.Arch, **options: Any) -> nn.Module:
  """Returns a network of recurrent cells, which reads text, or with `outputs` sequences of numbers."""
  return (sequences.SequenceNetwork if 'outputs' in options else language.RecurrentNetwork)(arch, **options)


def _check(arch: Any, operations: Operations | None = None) -> None:
  """Raises ValueError if an architecture is invalid or traced, or a string is not 'LSTM'."""
  if not isinstance(arch, str):
    check_static(arch, type(arch), operations=operations)
  elif arch != 'LSTM':
    raise ValueError(f"the architecture is {arch!r}: the only cell that is exported by its name is 'LSTM'.")


def _register(kind: type, make: Callable[..., nn.Module], convert: Callable[..., PyTree], write: Callable) -> None:
  """Registers functions for a type of architecture: its module, the variables of that, and the source file of that."""

  def checked(arch: Any, **options: Any) -> nn.Module:
    _check(arch, options.get('operations', BUILT_IN))
    return make(arch, **options)

  def converted(arch: Any, params: PyTree, carry: PyTree) -> PyTree:
    _check(arch)
    return convert(arch, params, carry)

  module.register(kind, checked)
  variables.register(kind, converted)
  to_source.register(kind, lambda arch, **options: write(checked(arch, **options)))


_register(ConvArch, conv.ConvNetwork, conv.variables, conv_source)
_register(ChainArch, conv.ConvNetwork, conv.variables, conv_source)
_register(MacroArch, enas.MacroNetwork, enas.macro_variables, macro_source)
_register(MicroArch, enas.MicroNetwork, enas.micro_variables, micro_source)
_register(TreeArch, _recurrent, language.variables, recurrent_source)
_register(RnnArch, _recurrent, language.variables, recurrent_source)
_register(str, _recurrent, language.variables, recurrent_source)
