"""Which decisions mattered: the share of the variance between children that each single decision explains."""

from collections.abc import Sequence
import html
from typing import NamedTuple

import numpy as np
from scipy import stats

from nas_jax.search.journal import REPEAT, Record
from nas_jax.space import Kind, Slot

FEWEST = 20  # the least number of children that can be analysed


class Decision(NamedTuple):
  """One token of the sequence, and what it explains."""

  name: str
  share: float  # of the variance of ranks, 0 to 1
  best: str  # the label whose children have the best mean rank


def measure(slots: Sequence[Slot], records: Sequence[Record], key: str, lower: bool) -> list[Decision]:
  """Returns the share of the variance of the children's ranks that each token explains by itself, greatest first.

  It is the omega squared of a one-way analysis of variance over the labels of the token, with negative values set to
  0; a token that does not matter has about 0. Scores are replaced by their ranks, so that no outlier decides. Children
  that failed are left out, and so are those that do not have the token, because they are too shallow or because another
  token rules it out. Interactions of tokens are not measured.

  Args:
    slots: the slots of the space.
    records: the records of the children. Prefer random search, since the tokens of a trained controller are correlated.
    key: the name of the score.
    lower: whether lower is better.

  Returns:
    One entry for each token that some children have with different labels; none for fewer than `FEWEST` children.
  """
  trained = [record for record in records if record.get(REPEAT) is None]  # a repeat is no measurement of its own
  sound = [record for record in trained if record['failed'] is None and record.get(key) is not None]
  if len(sound) < FEWEST:
    return []
  scores = np.array([record[key] for record in sound], float)
  ranks = stats.rankdata(scores if lower else -scores)
  tokens = np.array([record['tokens'] for record in sound])
  depths = np.array([record.get('depth', len(slots)) for record in sound])
  found, position, governor = list[Decision](), 0, 0
  for slot in slots:
    governor = position if slot.selects else governor
    for k in range(slot.tokens):
      column = tokens[:, position]
      there = (slot.layer < depths) & np.array([slot.selects or slot.exists(token) for token in tokens[:, governor]])
      name = f'{slot.title}, {slot.label(k)}' if slot.kind == Kind.LINK else slot.title
      labels = ('no link', 'link') if slot.kind == Kind.LINK else [slot.label(token) for token in range(slot.width)]
      position += 1
      if len(np.unique(column[there])) > 1:
        share, best = _explained(column[there], ranks[there])
        found.append(Decision(name, share, labels[best]))
  return sorted(found, key=lambda decision: -decision.share)


def _explained(labels: np.ndarray, ranks: np.ndarray) -> tuple[float, int]:
  """Returns omega squared of the labels, and the label with the least mean rank."""
  groups = {label: ranks[labels == label] for label in np.unique(labels)}
  total = ((ranks - ranks.mean()) ** 2).sum()
  between = sum(len(group) * (group.mean() - ranks.mean()) ** 2 for group in groups.values())
  within = (total - between) / max(len(ranks) - len(groups), 1)
  share = (between - (len(groups) - 1) * within) / (total + within) if total + within > 0 else 0.0
  return float(np.clip(share, 0.0, 1.0)), int(min(groups, key=lambda label: groups[label].mean()))


def render(decisions: Sequence[Decision], whose: str, most: int = 12) -> str:
  """Returns a bar chart in HTML of the `most` decisions that explain most; '' if there are no decisions.

  Args:
    decisions: as `measure` returns them.
    whose: whose children they were measured on.
    most: how many to show.
  """
  if not decisions:
    return ''
  rows = ''.join(
    f'<dt>{html.escape(one.name)}</dt><dd><span class="bar" style="width:{100 * one.share:.1f}%"></span> '
    f'{one.share:.1%}, best: {html.escape(one.best)}</dd>'
    for one in decisions[:most]
  )
  words = (
    f'How much of the differences in rank between the children of {whose} each decision explains by itself, without '
    'the others (omega squared of its labels). A decision that only matters together with another is not seen.'
  )
  return f'<p>{html.escape(words)}</p><dl class="bars">{rows}</dl>'
