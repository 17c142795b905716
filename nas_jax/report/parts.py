"""The parts of pages as HTML: sections, figures and tables, and the frame around them."""

from collections.abc import Iterable, Sequence
import html
import re

from nas_jax.report.rankings import word
from nas_jax.report.script import SCRIPT
from nas_jax.report.style import STYLE

_NUMBER = re.compile(r'-|[-+±\d.,e ]*')


def frame(title: str, head: str, sections: Iterable[str], refresh: int = 0) -> str:
  """Returns a whole page that needs no other file.

  Args:
    title: the title of the window, which also stands above the headline.
    head: the HTML of the header below the title.
    sections: as `section` returns them.
    refresh: seconds after which a browser reads the page again; 0 for never.
  """
  meta = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
  meta += '<meta name="color-scheme" content="light dark">'
  meta += f'<meta http-equiv="refresh" content="{refresh}">' if refresh else ''
  top = f'<header><p class="over">{escape(title)}</p>{head}</header>'
  body = f'{top}<main>{"".join(sections)}</main><script>{SCRIPT}</script>'
  style = f'{meta}<title>{escape(title)}</title><style>{STYLE}</style>'
  return f'<!doctype html>\n<html lang="en"><head>{style}</head>\n<body>{body}</body></html>\n'


def section(title: str, body: str) -> str:
  """Returns a section with a heading; '' if it has no body."""
  return f'<section><h2>{escape(title)}</h2>{body}</section>\n' if body else ''


def figure(svg: str, title: str, caption: str) -> str:
  """Returns a picture with its caption."""
  return f'<figure>{svg}<figcaption><b>{escape(title)}.</b> {escape(caption)}</figcaption></figure>'


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
  """Returns a table. Columns of numbers are aligned right, others left."""
  cells = [[word(value) for value in row] for row in rows]
  columns = list(zip(*cells, strict=True)) or [()] * len(header)
  sides = [' class="n"' if all(map(_NUMBER.fullmatch, column)) else '' for column in columns]

  def line(tag: str, texts: Sequence[str]) -> str:
    each = (f'<{tag}{side}>{escape(text)}</{tag}>' for side, text in zip(sides, texts, strict=True))
    return f'<tr>{"".join(each)}</tr>'

  body = ''.join(line('td', row) for row in cells)
  return f'<div class="table"><table><thead>{line("th", header)}</thead><tbody>{body}</tbody></table></div>'


def definitions(pairs: Iterable[tuple[str, str]]) -> str:
  """Returns terms and their definitions as a list."""
  return f'<dl>{"".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in pairs)}</dl>'


def escape(text: object) -> str:
  """Returns text with the special characters of HTML escaped."""
  return html.escape(str(text))
