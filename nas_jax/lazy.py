"""Modules that load when they are first used (PEP 562), and packages that may not be installed."""

from collections.abc import Callable, Mapping, Sequence
import importlib
import importlib.util
import types
from typing import Any


def modules(
  package: str, names: Sequence[str], members: Mapping[str, str] = types.MappingProxyType({})
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
  """Returns `__getattr__` and `__dir__` for a package whose modules `names` are imported on first use.

  Args:
    package: the name of the package.
    names: the names of its modules, and the names in `members`.
    members: the names of objects that are not modules, each with the module that defines the object.
  """

  def load(name: str) -> Any:
    if name not in names:
      raise AttributeError(f'module {package!r} has no attribute {name!r}: it has {", ".join(names)}.')
    module = importlib.import_module(f'{package}.{members.get(name, name)}')
    return getattr(module, name) if name in members else module

  return load, lambda: list(names)


def require(package: str, user: str, extra: str = 'experiments') -> None:
  """Raises ImportError if an optional package is not installed. The message says how to install it.

  Args:
    package: the name by which the package is imported.
    user: what needs the package; the first words of the message.
    extra: the extra of nas_jax that installs the package.
  """
  if importlib.util.find_spec(package) is None:
    raise ImportError(f"{user} needs {package}, which is not installed: pip install 'nas_jax[{extra}]'.")
