"""The pages in Markdown: lines are short, links lead somewhere, and commands have the flags that they show."""

import importlib
import json
import pathlib
import re
import shlex
import subprocess

from absl import flags
import pytest

from experiments.common import arguments, prepare_search
from experiments.common.systems import SYSTEMS

ROOT = pathlib.Path(__file__).parent.parent
PAGES = sorted(str(path.relative_to(ROOT)) for path in (*ROOT.glob('*.md'), *ROOT.glob('docs/**/*.md')))


NOTEBOOKS = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob('notebooks/*.ipynb'))


def read(page):
  """Returns the text of a page, or of all cells of a notebook."""
  text = (ROOT / page).read_text()
  return '\n'.join(''.join(cell['source']) for cell in json.loads(text)['cells']) if page in NOTEBOOKS else text


def commands(page):
  """Returns the launchers that a page names, each with its arguments."""
  found = re.findall(r'python -m experiments\.(\w+)([^`\n]*)', read(page).replace('\\\n', ' '))
  return [(name, shlex.split(words, comments=True)) for name, words in found]


def anchors(page):
  """Returns the anchors of a page: headings in lower case, without punctuation, with hyphens for blanks."""
  headings = re.findall(r'^#+ (.*)$', read(page), re.MULTILINE)
  return {re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-') for heading in headings}


@pytest.mark.parametrize('page', PAGES)
def test_lines_are_short_but_for_tables(page):
  long = [line for line in read(page).splitlines() if len(line) > 100 and not line.startswith('|')]
  assert not long


@pytest.mark.parametrize('page', PAGES)
def test_links_lead_somewhere(page):
  for target in re.findall(r'\]\(([^)]*)\)', read(page)):
    if not target.startswith('http'):
      path, _, anchor = target.partition('#')
      there = (ROOT / page).parent / path if path else ROOT / page
      assert there.exists(), target
      assert not anchor or anchor in anchors(there.relative_to(ROOT)), target


@pytest.mark.parametrize('page', [*PAGES, *NOTEBOOKS])
def test_commands_have_the_flags_they_show(page):
  for name, words in commands(page):
    folder = (ROOT / 'experiments' / name).is_dir()
    launcher = importlib.import_module(f'experiments.{name}.__main__' if folder else f'experiments.{name}')
    try:
      with pytest.raises(SystemExit) as left:
        launcher.prepare([name, *words, '--help'])  # which reads all flags, and leaves
    except flags.Error as error:
      pytest.fail(f'{name} {words}: {error}')
    assert not left.value.code, words
  for path in re.findall(r'python ((?:docs|tests)/[\w/]+\.py)', read(page)):
    assert (ROOT / path).exists(), path


# In docs/extending.md the reader adds new settings before they are used.
@pytest.mark.parametrize('page', sorted({*PAGES, *NOTEBOOKS} - {'docs/extending.md'}))
def test_searches_have_possible_settings(page):
  """A preset and the flags laid over it may each be right and contradict each other."""
  for name, words in commands(page):
    if systems := [system for system in SYSTEMS if system.launcher == name]:
      presets = {system.variant: system.presets for system in systems}
      values = arguments.parse([name, *words], '', prepare_search.own_flags(systems), presets)
      values.data_dir = ''  # a reader's folder
      variant = values.variant if len(systems) > 1 else systems[0].variant
      try:
        arguments.configure(values, presets[variant])
      except ValueError as error:
        pytest.fail(f'{name} {words}: {error}')


def test_the_repository_has_one_address_which_one_replacement_puts_everywhere():
  """Until the address is known, all these files have a placeholder for OWNER/NAME, and no other file has it."""
  notebooks = sorted(f'notebooks/{path.name}' for path in (ROOT / 'notebooks').glob('*.ipynb'))
  places = ['README.md', 'CITATION.cff', 'setup.cfg', *notebooks]
  one = r'(?:github\.com/|colab\.research\.google\.com/github/)(REPOSITORY|[\w.-]+/[\w-]+)'
  found = {place: re.findall(one, read(place)) for place in places}
  assert all(found.values()) and len({address for addresses in found.values() for address in addresses}) == 1
  badges = re.findall(r'\]\(https://colab\S+/blob/main/(notebooks/\S+)\)', read('README.md'))
  assert sorted(badges) == notebooks
  command = ['git', 'grep', '-lF', 'REPOSITORY', '--', ':!tests']
  listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
  assert set(listed) <= set(places)
