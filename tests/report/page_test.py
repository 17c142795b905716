"""The report as a page: what it says, that it is sound HTML, and that it stands alone."""

from html.parser import HTMLParser
import re

import numpy as np
import pytest

from nas_jax import space
from nas_jax.report import charts, page, probabilities, rankings
from nas_jax.space import Kind, Slot

SPACE = space.choice_space({'a': 'xyz', 'b': 'pq'})
NAN = float('nan')
HOSTILE = '<script>alert("1")</script>&\'$x^2$'


def record(number, score, tokens=(0, 0)):
  """A child with a score, or a failed one."""
  sound = {'reward': 1 / score, 'score': score, 'failed': None} if score else {}
  return {'id': number, 'tokens': list(tokens), 'reward': 0.0, 'score': None, 'failed': 'time', 'seconds': 1.0} | sound


def run(name, scores, updates=(), lower=True):
  records = [record(k, score, (k % 3, k % 2)) for k, score in enumerate(scores)]
  best, top = (rankings.progress(records, SPACE, 'score', lower, k) for k in (1, 5))
  return page.Run(name, records, best, top, updates)


def update(step, shares=((0.2, 0.3, 0.5), (0.9, 0.1))):
  noted = {'probabilities': [list(row) for row in shares]} if shares else {}
  return {'step': step, 'children': 2 * step, 'reward': 0.1, 'baseline': 0.05 * step, 'entropy': 5.0 - step, **noted}


def build(**changes):
  lower = changes.get('metric', page.Metric('score', 'score')).lower
  own = run('reinforce', [9.0, None, 4.5, 3.25], [update(1), update(2, None), update(3)], lower)
  control = run('random', [8.0, 7.5, None, None], [update(1), update(2)], lower)
  whole = page.Report(
    title='Search for a thing',
    noun='thing',
    metric=page.Metric('score', 'score'),
    budget=4,
    runs=(own, control),
    slots=SPACE.slots,
    reliability=[page.Correlation('two seeds', 0.61, 0.7), page.Correlation('short and long', 0.75, 0.5)],
    winners=[page.Winner('1. Child 3', 'y = x < 1'), page.Winner('2. Child 2', 'y', '<svg id="mine"></svg>')],
    standings=(('score', 'best'), [('reinforce', 3.25), ('random', 7.5), ('known', '')]),
    retrained=[
      {
        'setting': 'words of 20 epochs',
        'rows': [
          {
            'name': 'found',
            'size': '64',
            'parameters': 1234567,
            'epochs': 20,
            'repeats': 2,
            'valid': [90.0, 92.0],
            'test': [],
          }
        ],
      }
    ],
    facts=[('seed', '17'), ('command', 'python -m x')],
    config={'lr': 0.125, 'word': 'plain'},
    caveat='short budgets',
  )
  return whole._replace(**changes)


VARIANTS = {
  'whole': {},
  'no control': {'runs': (run('reinforce', [9.0, 8.0]),)},
  'no updates': {'runs': (run('reinforce', [9.0, 8.0]), run('random', [7.0]))},
  'one child': {'runs': (run('reinforce', [9.0], [update(1)]),)},
  'all failed': {'runs': (run('reinforce', [None, None]), run('random', [None])), 'winners': []},
  'control not begun': {'runs': (run('reinforce', [9.0, 8.0]), run('random', []))},
  'nothing yet': {
    'runs': (run('reinforce', []),),
    'winners': [],
    'standings': ((), ()),
    'reliability': [],
    'config': {},
  },
  'equal scores': {'runs': (run('reinforce', [2.0, 2.0, 2.0]),)},
  'negative scores': {'runs': (run('reinforce', [-2.0, -90.0, -1.0]),)},
  'hostile': {
    'title': HOSTILE,
    'noun': HOSTILE,
    'metric': page.Metric('score', HOSTILE),
    'runs': (run(HOSTILE, [9.0, 2.0], [update(1)]),),
    'slots': [Slot(HOSTILE, HOSTILE, Kind.CHOICE, 3, 'a', labels=(HOSTILE, 'y', 'z')), SPACE.slots[1]],
    'reliability': [page.Correlation(HOSTILE, NAN, 0.5)],
    'winners': [page.Winner(HOSTILE, HOSTILE)],
    'standings': ((HOSTILE,), [(HOSTILE,)]),
    'retrained': [{'setting': HOSTILE, 'rows': []}],
    'facts': [(HOSTILE, HOSTILE)],
    'config': {HOSTILE: HOSTILE},
    'caveat': HOSTILE,
  },
}


@pytest.fixture(scope='module')
def pages():
  return {name: page.render(build(**changes)) for name, changes in VARIANTS.items()}


class Checker(HTMLParser):
  """Raises AssertionError on tags that do not nest; collects ids, references and text."""

  def __init__(self, text):
    super().__init__()
    self.open, self.ids, self.references, self.tags, self.text = [], [], [], set(), ''
    self.feed(text)
    assert self.open == []

  def handle_starttag(self, tag, attrs):
    self.handle_startendtag(tag, attrs)
    if tag != 'meta':
      self.open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.tags.add(tag)
    for name, value in attrs:
      assert not name.startswith('on')
      if name == 'id':
        self.ids.append(value)
      if name in ('href', 'src', 'xlink:href'):
        self.references.append(value)
      self.references += re.findall(r'url\((.*?)\)', value or '')

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    if self.open[-1:] != ['style']:
      self.text += data + ' '


@pytest.mark.parametrize('name', VARIANTS)
def test_it_nests_stands_alone_and_has_unique_ids(pages, name):
  found = Checker(pages[name])
  assert not found.tags & {'script', 'link', 'iframe', 'img', 'object'}
  assert len(set(found.ids)) == len(found.ids)
  # What is drawn refers to what is on the page, and to nothing else.
  assert all(value[0] == '#' and value[1:] in found.ids for value in found.references)
  assert '@import' not in pages[name] and 'url(' not in re.search(r'<style>(.*?)</style>', pages[name], re.DOTALL)[1]
  assert '#01010' not in pages[name]  # every colour of the drawing became one of the page
  assert not re.search(r'\b(nan|inf|None)\b', found.text)
  assert (HOSTILE in found.text) == (name == 'hostile')


def test_it_says_the_numbers(pages):
  words = ' '.join(Checker(pages['whole']).text.split())
  for part in (
    'In 4 children (1 failed) the controller found a thing of score 3.250; '
    'random search, in 4 (2 failed), one of 7.500.',
    'The controller passed the best of random search (4 children) after 3 children.',
    'two seeds 0.610 at least 0.7 too little',
    'short and long 0.750 at least 0.5 enough',
    'y = x < 1',
    'reinforce 3.250',
    '91.000 ± 1.414',  # (90 + 92) / 2, and sqrt 2 with one degree of freedom
    '1,234,567',
    'Words of 20 epochs',
    'seed 17',
    'lr 0.125',
    'short budgets',
    'z 0.50',
    'p 0.90',
  ):
    assert part in words
  assert '<svg id="mine"></svg>' in pages['whole']


@pytest.mark.parametrize(
  ('name', 'words'),
  [
    ('no control', 'In 2 children (0 failed) the controller found a thing of score 8.000.'),
    ('one child', 'In 1 child (0 failed) the controller found'),
    ('all failed', 'In 2 children (2 failed) the controller found no thing that could be scored.'),
    ('nothing yet', 'No child has been trained yet.'),
  ],
)
def test_headlines(pages, name, words):
  assert words in Checker(pages[name]).text


def test_an_unfinished_search_says_so(pages):
  assert 'The controller is at 2 of 4 children' in pages['no control']
  assert 'Random search is at 0 of 4 children' in pages['control not begun']
  assert ' is at ' not in Checker(pages['whole']).text


def test_more_is_better_where_it_is():
  metric = page.Metric('score', 'accuracy', lower=False)
  runs = run('reinforce', [0.5, 0.7, 0.6], lower=False), run('random', [0.4, 0.9, None], lower=False)
  text = page.render(build(metric=metric, runs=runs, budget=3))
  assert 'found a thing of accuracy 0.700' in text and 'one of 0.900' in text
  assert 'The controller has not passed the best of random search' in text


def test_the_same_report_is_the_same_bytes(pages):
  assert page.render(build()) == pages['whole']


def test_charts_say_what_they_are(pages):
  assert len(re.findall(r'<svg class="chart" role="img"[^>]* aria-label="[^"]+"><title>', pages['whole'])) == 4
  assert pages['whole'].count('<figcaption>') == 4
  assert pages['no updates'].count('<figcaption>') == 3  # no entropy was noted


def test_many_children_are_a_page_that_can_be_sent():
  scores = np.random.default_rng(0).uniform(5, 50, 5000).tolist()
  lines = [charts.Line('a', range(5000), scores), charts.Line('b', range(5000), scores)]
  assert len(charts.rewards('reward', 'label', lines, charts.Line('baseline', [], []))) < 1_000_000


def test_a_moving_mean_by_hand():
  np.testing.assert_allclose(charts.moving_mean([1, 3, NAN, 5, 7], 3), [1, 2, 2, 4, 6])
  assert np.isnan(charts.moving_mean([NAN], 2)).all()


def test_strips_by_hand():
  slots = [Slot('g', 'few', Kind.CHOICE, 2, 'a', labels=('x', 'y')), Slot('g', 'links', Kind.LINK, 3, 'b', start=4)]
  looks = [{'children': 2, 'probabilities': [[0.25, 0.75], [0.0, 1.0, 0.5]]}]
  looks.append({'children': 4, 'probabilities': [[1.0, 0.0], [1.0, 1.0, 0.0]]})
  text = probabilities.render(slots, looks)
  # x fills the strip from the top: a quarter of it on the left, all of it on the right.
  assert 'd="M0.0,0.0L100.0,0.0L100.0,100.0L0.0,25.0z" style="fill:var(--label-0)"' in text
  assert 'aria-label="g few: at first x 0.25; at last x 1.00"' in text
  # Of the links the column from 50 to 100 has the first two rows, that before it the second, and half the third.
  assert 'd="M0.0 1h50.0v1h-50.0zM50.0 0h50.0v1h-50.0zM50.0 1h50.0v1h-50.0z" opacity="1"' in text
  assert 'd="M0.0 2h50.0v1h-50.0z" opacity="0.5"' in text
  assert probabilities.render(slots, [{'children': 2}]) == ''


def test_words_have_one_colour_where_there_are_enough():
  slots = [
    Slot('g', 'a', Kind.CHOICE, 2, 'a', labels=('x', 'y')),
    Slot('g', 'b', Kind.CHOICE, 2, 'b', labels=('z', 'y')),
  ]
  text = probabilities.render(slots, [{'children': 1, 'probabilities': [[0.5, 0.5], [0.5, 0.5]]}])
  assert re.findall(r'--label-(\d)\)"></i>(\w)', text) == [('0', 'x'), ('1', 'y'), ('2', 'z'), ('1', 'y')]


def test_small_numbers_are_not_rounded_away():
  lines = [charts.Line('x', [1, 2, 3], [1e-4, 3e-4, 5e-4])]
  svg = charts.rewards('a', 'label', lines, charts.Line('baseline', [], []))
  assert '>0.0002<' in svg and '>0.0005<' in svg
  assert not re.findall(r'<[^>]*\d\.\d{3,}[^>]*>', svg)  # but where things stand is
