"""Checks of architectures where they are used, so that one line says what is wrong before anything compiles."""

import functools
from typing import Any

import numpy as np

from nas_jax.operations import BUILT_IN, Operations
from nas_jax.space.base import is_static


@functools.singledispatch
def check_arch(arch: Any, operations: Operations | None = BUILT_IN) -> None:
  """Checks an architecture where it is used. This costs nothing in a compiled program.

  The check of a type is registered beside the type: see `tree.check_tree`.

  Args:
    arch: static or traced, of any size.
    operations: your own operations, if a recurrent cell may hold any; None to skip the check of its operations.

  Raises:
    ValueError: in one line, `arch` is no architecture; a field has a wrong type or length; or an entry of a static
      architecture is no int or out of range. The values of a traced architecture are not known, so they are not
      checked.
  """
  known = ', '.join(kind.__name__ for kind in check_arch.registry if kind is not object)
  raise ValueError(f'the architecture is a {type(arch).__name__}: want one of {known}.')


def check_static(arch: Any, *types: type, operations: Operations | None = BUILT_IN) -> None:
  """Checks an architecture where only a static one of some types can be used.

  Raises ValueError as `check_arch` does, and if the architecture is of another type or traced.
  """
  check_type(arch, *types)
  if not is_static(arch):
    raise ValueError(
      f'the {type(arch).__name__} holds arrays: want Python ints here. Name the argument in static_argnums of jax.jit, '
      'or take an architecture of space.unstack.'
    )
  check_arch(arch, operations)


def check_type(arch: Any, *types: type) -> None:
  """Raises ValueError unless an architecture is of one of some types."""
  if not isinstance(arch, types):
    wanted = ' or a '.join(kind.__name__ for kind in types)
    raise ValueError(f'the architecture is a {type(arch).__name__}: want a {wanted}.')


def check_fields(arch: Any, arch_type: type) -> bool:
  """Checks the type of an architecture and of its fields. Returns whether it is static.

  Raises:
    ValueError: in one line, `arch` is no `arch_type`; a field of a static architecture is no tuple of ints; or a field
      of a traced architecture is no array [n].
  """
  check_type(arch, arch_type)
  static = is_static(arch)
  for name, values in arch._asdict().items():
    if static and not isinstance(values, tuple):
      raise ValueError(f'arch field {name!r} is a {type(values).__name__}: want a tuple of ints, which can be hashed.')
    if not static and getattr(values, 'ndim', None) != 1:
      what = f'of shape {values.shape}' if hasattr(values, 'shape') else f'a {type(values).__name__}'
      raise ValueError(
        f'arch field {name!r} is {what} in a traced architecture: want an array [N]. Name the argument in '
        'static_argnums of jax.jit for a program of this architecture alone, or make arrays by space.stack for '
        'jax.vmap.'
      )
    for entry, value in enumerate(values if static else ()):
      if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise ValueError(f'arch field {name!r}, entry {entry} is {value!r}, a {type(value).__name__}: want an int.')
  return static
