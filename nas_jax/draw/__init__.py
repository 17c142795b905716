"""Describes and draws static architectures, for files or for HTML pages.

`describe`, `svg` and `draw` dispatch on the type of the architecture. To add a type of your own, register a function
for it, as in `draw.svg.register(MyArch, my_svg)`.
"""

import functools
import os

from nas_jax import tree_cell
from nas_jax.draw import conv, enas, tree
from nas_jax.nn import enas_cell
from nas_jax.operations import Operations
from nas_jax.space import Space, network
from nas_jax.space.chain import ChainArch
from nas_jax.space.conv import ConvArch
from nas_jax.space.enas import MacroArch, MicroArch, RnnArch
from nas_jax.space.enas import describe as describe_enas
from nas_jax.space.network import NetworkOptions
from nas_jax.space.tree import TreeArch


@functools.singledispatch
def describe(arch) -> str:
  """Describes an architecture: the equations of a recurrent cell, or a line for each layer or block of a network.

  Raises ValueError if there is no function for the type of the architecture.
  """
  raise _unknown(arch, describe, 'text')


@functools.singledispatch
def svg(arch) -> str:
  """Returns a picture of an architecture as an <svg> element for an HTML page, in the text colour of that page.

  Raises ValueError if there is no function for the type of the architecture.
  """
  raise _unknown(arch, svg, 'picture')


@functools.singledispatch
def draw(arch, path: str | os.PathLike[str]) -> None:
  """Draws an architecture into a file, dark on white. The path ends in .svg, .png or .pdf.

  Raises ValueError if the path ends in anything else, or if there is no function for the type of the architecture.
  """
  raise _unknown(arch, draw, 'picture')


def words(arch, space: Space, *options: NetworkOptions) -> str:
  """Describes an architecture by `describe`, or by its space if `describe` has no function for its type.

  Args:
    arch: a static architecture.
    space: its space.
    *options: of a convolutional network, how it is built from the predicted layers, if not as by default.
  """
  return describe(arch, *_own(arch, space), *options) if type(arch) in describe.registry else space.describe(arch)


def picture(arch, space: Space, *options: NetworkOptions) -> str:
  """Draws an architecture by `svg`; '' if `svg` has no function for its type. The arguments are those of `words`."""
  return svg(arch, *_own(arch, space), *options) if type(arch) in svg.registry else ''


def _own(arch, space: Space) -> tuple[Operations, ...]:
  """Returns the last argument of the functions for recurrent cells, the user's own operations; () for others."""
  return (space.operations,) if isinstance(arch, TreeArch | RnnArch) else ()


def _unknown(arch, function, noun: str) -> ValueError:
  known = ', '.join(kind.__name__ for kind in function.registry if kind is not object)
  return ValueError(f'there is no {noun} of a {type(arch).__name__}: want one of {known}.')


for _kind, _describe, _module in (
  (TreeArch, tree_cell.equations, tree),
  (ConvArch, network.describe, conv),
  (ChainArch, network.describe, conv),
  (MacroArch, describe_enas, enas),
  (MicroArch, describe_enas, enas),
  (RnnArch, enas_cell.equations, enas),
):
  describe.register(_kind, _describe)
  svg.register(_kind, _module.svg)
  draw.register(_kind, _module.draw)
