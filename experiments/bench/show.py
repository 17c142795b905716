"""Writes rows as a table in plain text, as JSON, and as a picture."""

from collections.abc import Mapping, Sequence
import json
import math
from typing import Any

from experiments.bench.timing import Bar, Row
from nas_jax.report import rankings

Found = Mapping[str, Sequence[Row]]  # by section
MISSED, MET, PLAIN = 'tab:red', 'tab:green', '0.55'


def table(found: Found) -> str:
  """Returns all rows as text, each section under its name."""
  lines = [
    [name.upper(), '', '', '', ''] if row is None else _line(row)
    for name, rows in found.items()
    for row in (None, *rows)
  ]
  return rankings.table(['what', 'median', 'spread', 'bar', ''], lines)


def as_json(found: Found, facts: Mapping[str, Any]) -> str:
  """Returns all rows as JSON, with the facts of the machine."""
  rows = [{'section': name, **plain(row)} for name, rows in found.items() for row in rows]
  return json.dumps({**facts, 'rows': rows}, indent=2) + '\n'


def picture(found: Found, path: str) -> None:
  """Draws how many times better than its bar each figure is, with its spread. The path's ending sets the format."""
  import matplotlib
  from matplotlib.figure import Figure

  rows = [(row, row.bar) for rows in found.values() for row in rows if row.bar and row.value > 0][::-1]
  with matplotlib.rc_context():
    matplotlib.rcParams.update({'axes.spines.top': False, 'axes.spines.right': False, 'svg.hashsalt': 'nas_jax'})
    figure = Figure(figsize=(9, 0.8 + 0.32 * max(1, len(rows))))
    ax = figure.subplots()
    for place, (row, bar) in enumerate(rows):
      value, color = beyond(bar, row.value), MET if row.met else MISSED
      spread = [beyond(bar, each) for each in row.spread or (row.value, row.value)]
      ax.plot(spread, [place, place], color=color, alpha=0.35, lw=5, solid_capstyle='butt')
      ax.plot(value, place, 'o', color=color, ms=5)
      ax.annotate(f'{figure_of(row.value)} {row.unit}', (value, place), (6, 5), textcoords='offset points', fontsize=7)
    ax.axvline(1.0, color=PLAIN, lw=1)
    ax.set_yticks(range(len(rows)), [f'{row.name}  ({_bar(row)})' for row, _ in rows], fontsize=8)
    ax.set_xscale('log', base=2)
    ax.xaxis.set_major_formatter('{x:g}')
    ax.set(xlabel='times better than the bar', ylim=(-0.6, len(rows) - 0.2))
    figure.tight_layout()
    figure.savefig(path, metadata={'Date': None} if path.endswith('.svg') else None)


def beyond(bar: Bar, value: float) -> float:
  """Returns how many times better than its bar a value is: above 1 where the bar is met."""
  return value / bar.limit if bar.sign == '>=' else bar.limit / max(value, 1e-9)


def figure_of(value: float) -> str:
  """Returns a number as text with three significant digits."""
  if not value or not math.isfinite(value):
    return f'{value:g}'
  places = max(0, 2 - math.floor(math.log10(abs(value))))
  return f'{value:,.{min(places, 4)}f}'


def _line(row: Row) -> list[str]:
  spread = f'{figure_of(row.spread[0])} to {figure_of(row.spread[1])}' if row.spread else ''
  verdict = '' if row.met is None else 'met' if row.met else 'MISSED'
  return [
    f'  {row.name}',
    f'{figure_of(row.value)} {row.unit}',
    spread,
    _bar(row),
    '; '.join(filter(None, (verdict, row.note))),
  ]


def _bar(row: Row) -> str:
  return f'{row.bar.sign} {row.bar.limit:g}' if row.bar else ''


def plain(row: Row) -> dict[str, Any]:
  """Returns a row as JSON values."""
  return row._asdict() | {'bar': row.bar and row.bar._asdict(), 'met': row.met}
