"""The pages in Markdown: lines are short, links lead somewhere, and commands have the flags that they show."""

import importlib
import pathlib
import re
import shlex
import subprocess

from absl import flags
import pytest

ROOT = pathlib.Path(__file__).parent.parent
PAGES = sorted(str(path.relative_to(ROOT)) for path in (*ROOT.glob('*.md'), *ROOT.glob('docs/**/*.md')))


def read(page):
  return (ROOT / page).read_text()


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


@pytest.mark.parametrize('page', PAGES)
def test_commands_have_the_flags_they_show(page):
  text = read(page).replace('\\\n', ' ')
  for name, words in re.findall(r'python -m experiments\.(\w+)([^`\n]*)', text):
    folder = (ROOT / 'experiments' / name).is_dir()
    launcher = importlib.import_module(f'experiments.{name}.__main__' if folder else f'experiments.{name}')
    try:
      with pytest.raises(SystemExit) as left:
        launcher.prepare([name, *shlex.split(words), '--help'])  # which reads all flags, and leaves
    except flags.Error as error:
      pytest.fail(f'{name}{words}: {error}')
    assert not left.value.code, words
  for path in re.findall(r'python ((?:docs|tests)/[\w/]+\.py)', text):
    assert (ROOT / path).exists(), path


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
