"""Writes comparisons as tables in plain text, and as a picture."""

from collections.abc import Mapping, Sequence
import math
from typing import Any

from experiments.compare.statistics import Curve, compare
from nas_jax.report import rankings

Curves = Mapping[str, Curve]  # by algorithm, in the order given
_COLOURS = ('#2a6fb0', '#c0632d', '#00866a', '#6a51a3', '#cc6f9f', '#a68a00', '#5c6670', '#1d2125')
_STYLES = ('-', '--', ':', '-.')


def table(curves: Curves, checkpoints: Sequence[int]) -> str:
  """Returns a table with a row for each checkpoint (number of evaluations) and algorithm."""
  first_name, first = next(iter(curves.items()))
  tested = any(value is not None for value in first.test)
  header = ['algorithm', 'evaluations', 'best', 's.e.', f'less {first_name}', 's.e.', 'p', 'as good after', 'seeds']
  header += ['test'] if tested else []
  rows = list[list[str]]()
  for place, count in enumerate(checkpoints):
    for name, one in curves.items():
      row, own = compare(one, first, place, count), one is first
      reaches = 'never' if row.reaches is None else f'{row.reaches} ({count / row.reaches:.1f}x)'
      beside = ['', '', '', ''] if own else [*map(_number, (row.difference, row.difference_error)), _p(row.p), reaches]
      cells = [name, str(count), _number(row.mean), _number(row.error), *beside, str(len(one.at[place]))]
      rows.append([*cells, _number(one.test[place])] if tested else cells)
  return rankings.table(header, rows)


def costs(curves: Curves) -> str:
  """Returns a table of the different token sequences in a search and the milliseconds an evaluation."""
  rows = [[name, f'{one.different:.0f}', f'{1000 * one.seconds:.2f}'] for name, one in curves.items()]
  return rankings.table(['algorithm', 'different token sequences', 'ms an evaluation'], rows)


def _number(value: float | None) -> str:
  return '-' if value is None or not math.isfinite(value) else f'{value:.5f}'


def _p(value: float) -> str:
  return '-' if not math.isfinite(value) else '<0.0001' if value < 1e-4 else f'{value:.4f}'


def picture(found: Mapping[str, Curves], optima: Mapping[str, float | None], path: str) -> None:
  """Draws a chart for each benchmark: the mean best reward after each evaluation, plus and minus a standard error."""
  import matplotlib
  from matplotlib.figure import Figure

  columns = min(3, len(found))
  rows = -(-len(found) // columns)
  with matplotlib.rc_context():
    hidden: dict[Any, Any] = {'axes.spines.top': False, 'axes.spines.right': False, 'svg.hashsalt': 'nas_jax'}
    matplotlib.rcParams.update(hidden)
    figure = Figure(figsize=(0.6 + 4.4 * columns, 0.9 + 3.3 * rows))
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, (title, curves) in zip(grid, found.items(), strict=False):
      for k, (name, one) in enumerate(curves.items()):
        look = {'color': _COLOURS[k % len(_COLOURS)], 'label': name, 'lw': 1.6}
        evaluations = range(1, len(one.mean) + 1)
        axes.plot(evaluations, one.mean, linestyle=_STYLES[k // len(_COLOURS) % len(_STYLES)], **look)
        bands = [[mean + side * error for mean, error in zip(one.mean, one.error, strict=True)] for side in (-1, 1)]
        axes.fill_between(evaluations, *bands, color=look['color'], alpha=0.2, lw=0)
      optimum = optima[title]
      if optimum is not None:
        axes.axhline(optimum, color='0.6', lw=1, linestyle=':')
      # The first twentieth is left out: rewards rise so much there that the rest of the chart would be flat.
      shown = [one.mean[len(one.mean) // 20] for one in curves.values()]
      top = max(-math.inf if optimum is None else optimum, *(one.mean[-1] for one in curves.values()))
      last = len(next(iter(curves.values())).mean)
      axes.set(title=title, xlabel='evaluations', xscale='log', xlim=(max(1, last // 20), last))
      axes.set_ylim(min(shown), top + 0.04 * (top - min(shown) or 1))
    for axes in grid[len(found) :]:
      axes.set_axis_off()
    grid[0].set_ylabel('best reward, mean over seeds')
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc='upper center', ncols=min(4, len(labels)), frameon=False, fontsize=8)
    figure.tight_layout(rect=(0, 0, 1, 1 - (0.1 + 0.2 * -(-len(labels) // 4)) / figure.get_figheight()))
    figure.savefig(path, metadata={'Date': None} if path.endswith('.svg') else None)
