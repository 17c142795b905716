"""Runs notebooks and stores what they show, so that they can be read on a page.

Example:
  python -m docs.notebooks the_idea digits
"""

import pathlib
import sys

import nbclient
import nbformat

NOTEBOOKS = pathlib.Path(__file__).parent.parent / 'notebooks'


def main(names: list[str]) -> None:
  """Runs the notebooks of these names, or all of them, one after another."""
  for path in sorted(NOTEBOOKS.glob('*.ipynb')):
    if not names or path.stem in names:
      notebook = nbformat.read(path, as_version=4)
      run(notebook, NOTEBOOKS)
      nbformat.write(notebook, path)
      print(path.name, flush=True)


def run(notebook: nbformat.NotebookNode, folder: pathlib.Path) -> None:
  """Runs a notebook in a folder. It then has its outputs, and nothing that differs from run to run but for these."""
  nbclient.NotebookClient(notebook, timeout=1800, resources={'metadata': {'path': str(folder)}}).execute()
  notebook.metadata['language_info'] = {'name': 'python'}
  for cell in notebook.cells:
    cell.metadata.pop('execution', None)  # when it was run


if __name__ == '__main__':
  main(sys.argv[1:])
