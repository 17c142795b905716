"""The style sheet of the page, for light and dark, wide and narrow, screen and paper; and a function that turns
its pictures into files."""

import re

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #fff; --ink: #1d2125; --soft: #5c6670; --grid: #dfe3e8; --tint: #f6f7f9;
  --search: #2a6fb0; --control: #c0632d;
  --label-0: #6a51a3; --label-1: #cbbfe3; --label-2: #aeb6bf;
  --label-3: #00866a; --label-4: #e8c33c; --label-5: #cc6f9f;
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    --paper: #15181b; --ink: #e3e6e9; --soft: #9ba5af; --grid: #31373e; --tint: #1c2024;
    --search: #6db3f2; --control: #f0985c;
    --label-0: #8f78c8; --label-1: #d9cff0; --label-2: #7d8791;
    --label-3: #17a085; --label-4: #e3bf45; --label-5: #d583ad;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0 auto; padding: 4rem 1.5rem 6rem; max-width: 62rem;
  background: var(--paper); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  font-variant-numeric: tabular-nums;
}
header { max-width: 46rem; }
h1 {
  font-size: 1.85rem; line-height: 1.28; font-weight: 600; letter-spacing: -0.012em; margin: 0 0 1rem;
  text-wrap: balance;
}
h2 { font-size: 1.2rem; font-weight: 600; margin: 0 0 1rem; }
h3 { font-size: 0.875rem; font-weight: 600; margin: 0 0 0.5rem; }
p { margin: 0 0 1rem; max-width: 46rem; }
.over { color: var(--soft); font-size: 0.875rem; margin-bottom: 0.75rem; }
.lede { font-size: 1.06rem; color: var(--soft); margin-bottom: 0.25rem; }
section { margin-top: 4rem; }
figure { margin: 0; break-inside: avoid; }
figcaption, .note { color: var(--soft); font-size: 0.875rem; line-height: 1.45; margin-top: 0.5rem; }
figcaption b { color: var(--ink); font-weight: 600; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 21rem), 1fr)); gap: 2.5rem 2rem; }
.chart { display: block; width: 100%; height: auto; color: var(--soft); }
.chart * { stroke-linejoin: round; stroke-linecap: butt; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 13rem), 1fr)); gap: 1.75rem 1.5rem; }
.cards .wide { grid-column: 1 / -1; }
.card { break-inside: avoid; min-width: 0; }
.cards .wide { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); gap: 0 1.5rem; }
.cards .wide h3 { grid-column: 1 / -1; }
.strip { display: block; width: 100%; height: 1.6rem; background: var(--tint); fill: var(--ink); }
.heat { display: grid; grid-template-columns: auto 1fr; gap: 0.4rem; }
.rows {
  display: flex; flex-direction: column; justify-content: space-between; font-size: 0.72rem; line-height: 1;
  color: var(--soft); text-align: right;
}
.slot p { display: flex; justify-content: space-between; gap: 0.5rem; font-size: 0.8rem; margin: 0.15rem 0 0.6rem; }
.slot p span { color: var(--soft); }
.slot b { font-weight: 500; }
.legend { font-size: 0.875rem; margin-bottom: 0.3rem; }
.legend + .cards { margin-top: 1.5rem; }
.legend > span { margin-right: 0.9rem; white-space: nowrap; }
.legend > span:first-child { color: var(--soft); white-space: normal; }
.legend i { display: inline-block; width: 0.75em; height: 0.75em; margin-right: 0.35em; }
.winners { display: grid; gap: 2.5rem; }
.winners .card { display: grid; grid-template-columns: minmax(0, 2fr) minmax(0, 1fr); gap: 0.5rem 1.5rem; }
.winners h3, .winners pre:nth-child(2) { grid-column: 1 / -1; }
.drawing { align-self: center; }
.view + .view { margin-top: 1.5rem; }
.drawing { overflow-x: auto; }
.drawing svg { display: block; width: 100%; max-width: 44rem; height: auto; margin: 0 auto; }
.glance { margin-top: 2rem; }
.glance .two { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); gap: 1rem 2rem; }
.glance .two > div { min-width: 0; }
.glance dl { margin: 0 0 1.25rem; }
.glance pre { overflow-wrap: anywhere; margin-bottom: 1rem; }
.bars dd { display: flex; align-items: center; gap: 0.6rem; }
.bar { display: inline-block; height: 0.8em; min-width: 1px; max-width: 60%; background: var(--search); }
.tall { max-height: 28rem; overflow: auto; }
.tall thead th { position: sticky; top: 0; background: var(--paper); }
.tall td:nth-child(2) { white-space: nowrap; }
.tall td:last-child { white-space: nowrap; color: var(--soft); font-size: 0.8rem; }
th button { all: unset; cursor: pointer; font-weight: 500; }
th button:focus-visible { outline: 2px solid var(--search); }
th[aria-sort="ascending"] button::after { content: " \\2191"; }
th[aria-sort="descending"] button::after { content: " \\2193"; }
.filter { display: block; color: var(--soft); font-size: 0.875rem; margin-bottom: 0.75rem; }
.filter input {
  font: inherit; width: min(100%, 20rem); padding: 0.25rem 0.5rem; color: var(--ink); background: var(--tint);
  border: 1px solid var(--grid);
}
.tip {
  position: absolute; padding: 0.2rem 0.55rem; background: var(--ink); color: var(--paper); font-size: 0.8rem;
  pointer-events: none; max-width: 22rem;
}
a { color: var(--search); }
pre {
  font: 0.8rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; margin: 0; padding: 0.9rem 1rem;
  background: var(--tint); white-space: pre-wrap;
}
.table { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.925rem; }
th, td { padding: 0.4rem 1.4rem 0.4rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--grid); }
th { font-weight: 500; color: var(--soft); vertical-align: bottom; }
.n { text-align: right; }
td.n { white-space: nowrap; }
dl {
  display: grid; grid-template-columns: max-content 1fr; gap: 0.35rem 1.4rem; font-size: 0.925rem; margin: 1.5rem 0;
}
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; min-width: 0; }
summary { cursor: pointer; color: var(--soft); font-size: 0.925rem; margin-bottom: 0.75rem; }
@media (max-width: 40rem) {
  body { padding: 2rem 1.1rem 4rem; }
  h1 { font-size: 1.4rem; }
  section { margin-top: 3rem; }
  .cards { grid-template-columns: 1fr 1fr; gap: 1.25rem 1rem; }
  .winners .card { grid-template-columns: minmax(0, 1fr); }
  th, td { padding-right: 0.9rem; }
  table:has(th:nth-child(5)) { min-width: 34rem; }
  td:first-child { min-width: 8rem; }
  dl { grid-template-columns: 1fr; gap: 0; }
  dd { margin-bottom: 0.6rem; }
}
@media print {
  body { max-width: none; padding: 0; font-size: 10pt; }
  section { margin-top: 2rem; }
  .charts { grid-template-columns: 1fr 1fr; }
  .cards { grid-template-columns: repeat(4, 1fr); }
  h2, h3 { break-after: avoid; }
  .filter, .tip { display: none; }
  .tall { max-height: none; }
  .strip, .bar, .legend i { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""


def as_file(svg: str) -> str:
  """Turns an SVG element of the page into the text of an SVG file that any renderer shows, on white.

  The file uses no style sheet of a page: variables and `currentColor` become the light colours of `STYLE`, and the size
  is given as `width` and `height`. (Some renderers read the CSS rule `height: auto` as a height of 0.)
  """
  colours = dict(re.findall(r'(--[\w-]+): (#\w+)', STYLE[: STYLE.index('@media')]))
  svg = re.sub(r'var\((--[\w-]+)\)', lambda found: colours[found[1]], svg).replace('currentColor', colours['--ink'])
  head, body = svg.split('>', 1)
  head = re.sub(r' (style|class|width|height|xmlns)="[^"]*"', '', head)
  *_, width, height = head.split('viewBox="')[1].split('"')[0].split()
  look = 'stroke-linejoin="round" font-family="system-ui, sans-serif"'
  paper = f'<rect width="100%" height="100%" fill="{colours["--paper"]}"/>'
  return f'{head} xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" {look}>{paper}{body}\n'
