"""The probabilities of a controller over a search as HTML, with a strip for each slot of the space."""

from collections.abc import Iterable, Sequence
import html

import numpy as np

from nas_jax.search.journal import Record
from nas_jax.space import Kind, Slot

_BANDS = 6  # slots of at most this many labels have bands in the page's colours `--label-N`; others a row per label


def render(slots: Sequence[Slot], updates: Sequence[Record]) -> str:
  """Returns a strip for each of `slots`, from the `probabilities` in some of `updates`; '' if there are none."""
  looks = [line for line in updates if len(line.get('probabilities') or ()) == len(slots)]
  if not looks:
    return ''
  colours = _colours(slots)
  cards: dict[str, list[str]] = {}
  wide = set()
  for number, slot in enumerate(slots):
    if slot.width:
      shares = np.nan_to_num(np.asarray([line['probabilities'][number] for line in looks], float))
      if number not in colours:
        wide.add(slot.group)
      x = [line['children'] for line in looks]
      cards.setdefault(slot.group, []).append(_slot(slot, x, shares, colours.get(number)))
  legend: dict[tuple[tuple[str, int], ...], list[str]] = {}
  for number, chosen in colours.items():
    slot = slots[number]
    key = tuple((slot.label(k), colour) for k, colour in enumerate(chosen))
    legend.setdefault(key, []).append(slot.name)
  shown = ''.join(_legend(dict.fromkeys(names), key) for key, names in legend.items())
  grid = ''.join(
    f'<div class="card{" wide" if group in wide else ""}"><h3>{_e(group)}</h3>{"".join(strips)}</div>'
    for group, strips in cards.items()
  )
  words = (
    f'Probabilities from the first update on the left (child {looks[0]["children"]}) to the last on the right '
    f'({looks[-1]["children"]}), means over samples. A strip of one colour is a decision that has been made. Decisions '
    'with many labels, and links, have a row for each label, which is darker if the label is more likely.'
  )
  return f'<p>{_e(words)}</p>{shown}<div class="cards">{grid}</div>'


def _slot(slot: Slot, x: Sequence[float], shares: np.ndarray, colours: Sequence[int] | None) -> str:
  labels, last = [slot.label(k) for k in range(slot.width)], shares[-1]
  order = np.argsort(-last, kind='stable')[: 1 if colours is not None else 3]
  ends = ', '.join(f'{labels[k]} {last[k]:.2f}' for k in order)
  begin = ', '.join(f'{labels[k]} {shares[0][k]:.2f}' for k in order)
  spoken = f'{slot.title}: at first {begin}; at last {ends}'
  if colours is not None:
    strip = _bands(spoken, x, shares, colours)
  else:
    ends_of = dict.fromkeys((labels[0], labels[-1]))
    rows = f'<span class="rows">{"".join(f"<span>{_e(label)}</span>" for label in ends_of)}</span>'
    strip = f'<div class="heat">{rows}{_heat(spoken, shares)}</div>'
  return f'<div class="slot">{strip}<p><span>{_e(slot.name)}</span> <b>{_e(ends)}</b></p></div>'


def _colours(slots: Sequence[Slot]) -> dict[int, list[int]]:
  """Returns the colours of the labels of slots drawn in bands. If possible a label has one colour in all slots."""
  few = {n: slot for n, slot in enumerate(slots) if slot.kind != Kind.LINK and 0 < slot.width <= _BANDS}
  words = list(dict.fromkeys(slot.label(k) for slot in few.values() for k in range(slot.width)))
  if len(words) <= _BANDS:
    return {n: [words.index(slot.label(k)) for k in range(slot.width)] for n, slot in few.items()}
  return {n: list(range(slot.width)) for n, slot in few.items()}


def _legend(names: Iterable[str], key: Sequence[tuple[str, int]]) -> str:
  marks = ' '.join(f'<span><i style="background:var(--label-{colour})"></i>{_e(label)}</span>' for label, colour in key)
  return f'<p class="legend"><span>{_e(", ".join(name for name in names if name))}</span> {marks}</p>'


def _bands(label: str, x: Sequence[float], shares: np.ndarray, colours: Sequence[int]) -> str:
  """Draws probabilities that sum to 1, stacked over time, with the first label on top. The page sets the size.

  Args:
    label: a description for screen readers.
    x: [P] ascending.
    shares: [P, K].
    colours: [K] indices N of the page's colours `--label-N`.
  """
  if len(x) == 1:  # a single point in time is drawn as a strip, with one colour for each label
    x, shares = [0, 1], np.repeat(shares, 2, 0)
  across = (np.asarray(x, float) - x[0]) / max(x[-1] - x[0], 1) * 100
  edges = np.concatenate([np.zeros((len(shares), 1)), np.cumsum(shares, 1)], 1) * 100
  parts = []
  for k, colour in enumerate(colours):
    there = [f'{a:.1f},{b:.1f}' for a, b in zip(across, edges[:, k], strict=True)]
    back = [f'{a:.1f},{b:.1f}' for a, b in zip(across[::-1], edges[::-1, k + 1], strict=True)]
    parts.append(f'<path d="M{"L".join(there + back)}z" style="fill:var(--label-{colour})"/>')
  return _strip(label, parts, 100)


def _heat(label: str, shares: np.ndarray) -> str:
  """Draws probabilities [P, K] over time as rows of cells, darker for greater ones: for many labels, or for links.

  The first label is on top. There are at most 50 columns.
  """
  places = np.linspace(0, len(shares) - 1, min(50, len(shares))).round().astype(int)
  width = 100 / len(places)
  levels: dict[int, list[str]] = {}
  for column, place in enumerate(places):
    for k, share in enumerate(shares[place]):
      if (level := round(float(share) * 20)) > 0:
        levels.setdefault(level, []).append(f'M{column * width:.1f} {k}h{width:.1f}v1h-{width:.1f}z')
  parts = [f'<path d="{"".join(cells)}" opacity="{level / 20:g}"/>' for level, cells in sorted(levels.items())]
  rows = shares.shape[1]
  return _strip(label, parts, rows, f' style="height:min(8.5rem,{1.6 * rows:g}rem)"')


def _strip(label: str, parts: Sequence[str], height: int, style: str = '') -> str:
  label = _e(label)
  box = f'viewBox="0 0 100 {height}" preserveAspectRatio="none"'
  head = f'<svg class="strip" role="img" {box} aria-label="{label}"{style}>'
  return f'{head}<title>{label}</title>{"".join(parts)}</svg>'


def _e(text: object) -> str:
  return html.escape(str(text))
