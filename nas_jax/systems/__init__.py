"""The systems, one a module, loaded when first used: a Config, its presets, and `build`."""

import importlib
from typing import Any

__all__ = ['cell', 'table']


def __getattr__(name: str) -> Any:
  if name not in __all__:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}: it has {", ".join(__all__)}.')
  return importlib.import_module(f'{__name__}.{name}')


def __dir__() -> list[str]:
  return __all__
