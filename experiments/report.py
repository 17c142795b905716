"""Writes the report of a search, report.html, into its workdir. The search may still be running.

Two workdirs are compared in one page: beside-NAME.html in the first workdir, where NAME is that of the second.

Examples:
  python -m experiments.report --workdir=runs/cell_search-demo
  python -m experiments.report --workdir=runs/cell_search-demo --pictures=docs
  python -m experiments.report runs/first runs/second
"""

from collections.abc import Sequence
import os

from absl import flags

from experiments.common import arguments, launch, reports, workdirs
from nas_jax.report import comparison, page


def own_flags(values: flags.FlagValues) -> None:
  """Defines the flags of this launcher."""
  flags.DEFINE_string('workdir', '', 'folder of the search', flag_values=values)
  flags.DEFINE_list('compare', [], 'folders of two searches to compare; plain words mean the same', flag_values=values)
  help = 'folder for two pictures: best.svg, the best architecture, and search.svg, the best score so far'
  flags.DEFINE_string('pictures', '', help, flag_values=values)
  help = 'how many of the best different architectures to write to top.json; by default that file stays as it is'
  flags.DEFINE_integer('top', None, help, 1, flag_values=values)


def prepare(argv: Sequence[str]) -> launch.Work:
  """Reads the workdir, or the two that are compared, and renders the page; --top also writes top.json."""
  values = arguments.parse(argv, __doc__, own_flags, words='compare')
  if values.compare:
    return _prepare_comparison(values)
  if not values.workdir:
    raise ValueError('--workdir is missing: name the folder of a search.')
  if values.pictures and not os.path.isdir(values.pictures):
    raise ValueError(f'pictures (={values.pictures!r}) is no folder: name one that exists.')
  if values.top is not None:
    reports.write_top(values.workdir, values.top)
  found = reports.read(values.workdir)
  drawn = reports.pictures(found) if values.pictures else {}
  text = page.render(found)

  def work(check: launch.Check) -> None:
    reports.write(values.workdir, text)
    for name, svg in drawn.items():
      path = os.path.join(values.pictures, name)
      workdirs.write(path, svg)
      print(f'picture: {path}')

  return work


def _prepare_comparison(values: flags.FlagValues) -> launch.Work:
  if len(values.compare) != 2 or values.workdir or values.pictures or values.top:
    raise ValueError(
      f'compare (={",".join(values.compare)}) must be the folders of two searches, and no other flag beside it; the '
      'report of one search takes --workdir=FOLDER.'
    )
  first, second = (os.path.abspath(folder) for folder in values.compare)
  text = comparison.render(reports.read(first), reports.read(second))
  return lambda check: reports.write(first, text, f'beside-{os.path.basename(second)}.html')


if __name__ == '__main__':
  launch.main(prepare)
