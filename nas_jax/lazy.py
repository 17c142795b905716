"""Packages whose modules load when they are first used (PEP 562)."""

from collections.abc import Callable, Sequence
import importlib
from typing import Any


def modules(package: str, names: Sequence[str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
  """`__getattr__` and `__dir__` for a package that offers the modules `names`."""

  def load(name: str) -> Any:
    if name not in names:
      raise AttributeError(f'module {package!r} has no attribute {name!r}: it has {", ".join(names)}.')
    return importlib.import_module(f'{package}.{name}')

  return load, lambda: list(names)
