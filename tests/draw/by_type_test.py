"""Words and pictures by the type of an architecture, and architectures read by the kind in their file."""

import re
from typing import NamedTuple
from xml.etree import ElementTree

import jax
import pytest
import testing

from nas_jax import draw, published, space, tree_cell
from nas_jax.draw import conv, enas, tree
from nas_jax.nn import enas_cell
from nas_jax.operations import Operation, Operations
from nas_jax.space import TreeArch, network

MACRO = space.MacroArch((5, 4, 5), (1, 0, 1))
# Of each kind one architecture, what its words are, the module that draws it, and a space that it is of.
KINDS = [
  (published.LSTM, tree_cell.equations, tree, space.tree_cell_space()),
  (published.FIGURE_7, network.describe, conv, space.conv_space()),
  (published.XU_CIFAR10, network.describe, conv, space.chain_space()),
  (MACRO, space.enas.describe, enas, space.enas_macro_space(3)),
  (published.ENAS_MICRO, space.enas.describe, enas, space.enas_micro_space()),
  (published.ENAS_RNN, enas_cell.equations, enas, space.enas_rnn_space()),
]


@pytest.mark.parametrize(('arch', 'words', 'module', 'made'), KINDS)
def test_each_kind_has_its_own_words_and_picture(tmp_path, arch, words, module, made):
  assert draw.describe(arch) == words(arch)
  assert draw.svg(arch) == module.svg(arch)
  draw.draw(arch, tmp_path / 'by_type.svg')
  module.draw(arch, tmp_path / 'by_module.svg')
  assert (tmp_path / 'by_type.svg').read_bytes() == (tmp_path / 'by_module.svg').read_bytes()
  assert space.from_json(made.to_json(arch)) == arch == space.from_json(made.to_json(arch), made.kind)


def letters(element, scale=1.0):
  """Yields the size of each letter in the units of its drawing; matplotlib draws letters at 100 units."""
  scale *= float((re.findall(r'scale\(([\d.]+)', element.get('transform', '')) or [1.0])[0])
  if element.tag.endswith('}use') and scale < 1.0:  # arrowheads and the like are not scaled
    yield 100 * scale
  for part in element:
    yield from letters(part, scale)


LONG = Operation('leaky_relu', jax.nn.leaky_relu, 'jax.nn.leaky_relu')


@pytest.mark.parametrize('arch', [*(arch for arch, *_ in KINDS), published.LSTM._replace(inject=(0, 5))])
def test_letters_can_be_read_on_a_phone(arch):
  """Where a page is narrower than a drawing, its letters are at least 9 CSS pixels high, subscripts included."""
  own = (Operations(activate=('tanh', LONG)),) if isinstance(arch, TreeArch) else ()
  root = ElementTree.fromstring(draw.svg(arch, *own))
  least, width = float(re.search(r'min-width: ([\d.]+)px', root.get('style'))[1]), float(root.get('viewBox').split()[2])
  found = [size * least / width for size in letters(root)]
  assert 9.0 <= min(found) < 9.2 and len(found) > 10


def test_arguments_go_on_to_the_kind():
  options = network.NetworkOptions(add_filters=1)
  assert draw.describe(published.XU_CIFAR10, options) == network.describe(published.XU_CIFAR10, options)
  assert draw.svg(published.XU_CIFAR10, options) != draw.svg(published.XU_CIFAR10)


def test_every_kind_of_space_is_in_the_list():
  """A kind that is added to the files must be added here, and to what can be shown, but for choices."""
  kinds = {made.kind for *_, made in KINDS} | {'choice'}
  with pytest.raises(ValueError) as error:
    space.from_json('{"kind": "none"}')
  assert set(str(error.value).split('want ')[1].rstrip('.').split(', ')) == kinds


def test_choices_are_read_with_the_space_in_their_file():
  made = space.choice_space({'edge': ('none', 'skip'), 'width': ('16', '32')})
  arch = made.decode([1, 0])
  text = made.to_json(arch)
  assert (
    space.from_json(text[:-1] + ', "space": {"choices": {"edge": ["none", "skip"], "width": ["16", "32"]}}}') == arch
  )
  with pytest.raises(ValueError, match="no space of kind 'choice'"):
    space.from_json(text)


def test_another_kind_than_was_asked_for_is_refused():
  with pytest.raises(ValueError, match="of kind 'enas_rnn': want tree_cell") as error:
    space.from_json(space.enas_rnn_space().to_json(published.ENAS_RNN), 'tree_cell')
  testing.one_line(error)


def test_a_type_without_a_picture_is_told_the_types_and_may_join(tmp_path):
  class Mine(NamedTuple):
    size: tuple[int, ...]

  for show in (draw.describe, draw.svg, lambda arch: draw.draw(arch, tmp_path / 'x.svg')):
    with pytest.raises(ValueError, match='of a Mine: want one of TreeArch, ConvArch') as error:
      show(Mine((1,)))
    testing.one_line(error)
  draw.describe.register(Mine, lambda arch: f'{arch.size[0]} wide')
  assert draw.describe(Mine((3,))) == '3 wide'
