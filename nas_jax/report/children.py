"""The table of all children of a report, which a reader can sort and filter."""

from collections.abc import Sequence
import html

from nas_jax.report.rankings import word
from nas_jax.search.journal import Record
from nas_jax.training.costs import Cost


def render(runs: Sequence[tuple[str, Sequence[Record]]], key: str, metric: str, lower: bool) -> str:
  """Returns a table of children, best first and those that failed last; '' if there are none.

  In the page a reader can sort it by a click on a heading, and filter its rows by a word.

  Args:
    runs: the name of each search and its records.
    key: the name of the score in the records.
    metric: the name of the score in words.
    lower: whether lower is better.
  """
  children = [(name, record) for name, records in runs for record in records]
  if not children:
    return ''

  def place(child: tuple[str, Record]) -> tuple[bool, float]:
    score = _score(child[1], key)
    return score is None, 0.0 if score is None else score if lower else -score

  shown = [name for name, field in _NUMBERS.items() if any(record.get(field) is not None for _, record in children)]
  header = ['child', 'search', metric, 'reward', *shown, 'seconds', 'failed', 'tokens']
  heads = ''.join(f'<th{"" if name in _WORDS else _RIGHT}>{html.escape(name)}</th>' for name in header)
  rows = []
  for name, record in sorted(children, key=place):
    earned = '' if record['failed'] else word(record['reward'])
    score = _score(record, key)
    cells = [str(record['id']), name, '' if score is None else word(score), earned]
    cells += ['' if (number := record.get(_NUMBERS[column])) is None else str(number) for column in shown]
    cells += [f'{record["seconds"]:.2f}', record['failed'] or '', ' '.join(map(str, record['tokens']))]
    columns = zip(header, cells, strict=True)
    rows.append(
      '<tr>'
      + ''.join(f'<td{"" if name in _WORDS else _RIGHT}>{html.escape(cell)}</td>' for name, cell in columns)
      + '</tr>'
    )
  return (
    '<div class="table tall" tabindex="0"><table class="sortable" data-noun="children">'
    f'<thead><tr>{heads}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
  )


_WORDS = ('search', 'failed', 'tokens')  # columns of text, which are aligned left
# Columns of numbers that some journals lack, with their names in the journal.
_NUMBERS = {'layers': 'depth'} | {name.replace('_', '-'): name for name in Cost._fields}
_RIGHT = ' class="n"'


def _score(record: Record, key: str) -> float | None:
  """Returns the score of a child, None if it failed or has none."""
  return None if record['failed'] else record.get(key)
