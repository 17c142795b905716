"""The report page: its content, that it is valid HTML, and that it loads no other file."""

import html
from html.parser import HTMLParser
import json
import re
import shutil
import subprocess

import numpy as np
import pytest

from nas_jax import draw, published, space
from nas_jax.report import charts, children, comparison, importance, model, page, probabilities, rankings
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
  return model.Run(name, records, best, top, updates)


def update(step, shares=((0.2, 0.3, 0.5), (0.9, 0.1))):
  noted = {'probabilities': [list(row) for row in shares]} if shares else {}
  return {'step': step, 'children': 2 * step, 'reward': 0.1, 'baseline': 0.05 * step, 'entropy': 5.0 - step, **noted}


def build(**changes):
  lower = changes.get('metric', model.Metric('score', 'score')).lower
  own = run('reinforce', [9.0, None, 4.5, 3.25], [update(1), update(2, None), update(3)], lower)
  control = run('random', [8.0, 7.5, None, None], [update(1), update(2)], lower)
  whole = model.Report(
    title='Search for a thing',
    noun='thing',
    metric=model.Metric('score', 'score'),
    budget=4,
    runs=(own, control),
    slots=SPACE.slots,
    reliability=[model.Correlation('two seeds', 0.61, 0.7), model.Correlation('short and long', 0.75, 0.5)],
    winners=[model.Winner('1. Child 3', 'y = x < 1'), model.Winner('2. Child 2', 'y', '<svg id="mine"></svg>')],
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
    glance=[('reward', '1 / score')],
    use=[model.Use('Use it', 'load(1 < 2)')],
    links=['best.json'],
    name='first',
    explained='known is what is known',
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
    'metric': model.Metric('score', HOSTILE),
    'runs': (run(HOSTILE, [9.0, 2.0], [update(1)]),),
    'slots': [Slot(HOSTILE, HOSTILE, Kind.CHOICE, 3, 'a', labels=(HOSTILE, 'y', 'z')), SPACE.slots[1]],
    'reliability': [model.Correlation(HOSTILE, NAN, 0.5), model.Correlation('no wish, no value', NAN)],
    'winners': [model.Winner(HOSTILE, HOSTILE)],
    'standings': ((HOSTILE,), [(HOSTILE,)]),
    'retrained': [{'setting': HOSTILE, 'rows': []}],
    'facts': [(HOSTILE, HOSTILE)],
    'config': {HOSTILE: HOSTILE},
    'caveat': HOSTILE,
    'glance': [(HOSTILE, HOSTILE)],
    'use': [model.Use(HOSTILE, HOSTILE)],
    'explained': HOSTILE,
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
    if self.open[-1:] not in (['style'], ['script']):
      self.text += data + ' '


@pytest.mark.parametrize('name', VARIANTS)
def test_it_nests_stands_alone_and_has_unique_ids(pages, name):
  found = Checker(pages[name])
  assert not found.tags & {'link', 'iframe', 'img', 'object'} and pages[name].count('<script') == 1
  assert len(set(found.ids)) == len(found.ids)
  # What is drawn refers to what is on the page, and to nothing else. The one link is to a file beside it.
  assert all(value == 'best.json' or (value[0] == '#' and value[1:] in found.ids) for value in found.references)
  assert '@import' not in pages[name] and 'url(' not in re.search(r'<style>(.*?)</style>', pages[name], re.DOTALL)[1]
  assert '#01010' not in pages[name]  # every colour of the drawing became one of the page
  assert not re.search(r'\b(nan|inf|None)\b', found.text)
  assert (HOSTILE in found.text) == (name == 'hostile')


def test_it_says_the_numbers(pages):
  words = ' '.join(Checker(pages['whole']).text.split())
  for part in (
    'In 4 children (1 failed) the search found a thing of score 3.250; random search, in 4 (2 failed), one of 7.500.',
    'The search passed the best of random search (4 children) after 3 children.',
    'two seeds 0.610 at least 0.7 too little',
    'short and long 0.750 at least 0.5 enough',
    'y = x < 1',
    'the search 3.250',
    '91.000 ± 1.414',  # (90 + 92) / 2, and sqrt 2 with one degree of freedom
    '1,234,567',
    'Words of 20 epochs',
    'seed 17',
    'lr 0.125',
    'short budgets',
    'z 0.50',
    'p 0.90',
    'reward 1 / score',
    'Use it load(1 < 2)',
    'known is what is known',
  ):
    assert part in words
  assert '<svg id="mine"></svg>' in pages['whole']


def test_failures_of_the_reliability_are_counted():
  text = Checker(page.render(build(reliability=[model.Correlation('two seeds', 0.61, 0.7, 0.25, 3, 0.0625)]))).text
  assert 'two seeds 0.610 at least 0.7 too little: read the rest with care 0.250 6.2 3' in ' '.join(text.split())


def test_short_trainings_stand_beside_the_full_one(pages):
  row = {'recipe': 'search', 'settings': 'lr 1', 'steps': 100, 'steps_each': 100, 'failed': 1}
  rows = [
    row | {'all': 0.857, 'quarter': 0.44, 'regret': 0.07, 'regret5': 0.023},
    row
    | {
      'recipe': 'final',
      'settings': HOSTILE,
      'all': 0.5,
      'quarter': None,
      'regret': None,
      'regret5': 0.0,
    },  # the choice failed
  ]
  best = [{'cell': f'one {k}', 'perplexity': 3.5 + k} for k in range(4)]
  ranking = {'cells': 74, 'unfinished': 0, 'failed': 2, 'best': best, 'rows': rows, 'setting': 'five epochs'}
  found = ' '.join(Checker(page.render(build(ranking=ranking))).text.split())
  assert 'Short training against full training 74 things were trained' in found
  header = 'recipe, settings steps correlation best quarter regret, % of five, % failed'
  assert f'{header} search, lr 1 100 0.857 0.440 7.0 2.3 1' in found
  assert f'Children by the recipe of the full training {header} final, {HOSTILE} 100 0.500 - failed 0.0 1' in found
  assert 'one 0 (3.500), one 1 (4.500), one 2 (5.500). Five epochs.' in found
  assert 'Short training against' not in pages['whole']


def test_children_that_failed_are_not_drawn_as_if_they_had_earned_nothing(monkeypatch):
  drawn = []
  monkeypatch.setattr(charts, 'rewards', lambda name, label, lines, baseline: drawn.extend(lines) or '')
  page.render(build())
  np.testing.assert_equal(drawn[0].y, [1 / 9, NAN, 1 / 4.5, 1 / 3.25])


def test_the_headline_of_shared_weights_is_what_was_derived():
  # The best child scored 3.25 on one minibatch, the best derived one 4.75 on the whole split.
  text = Checker(page.render(build(shared=True, derived={'reinforce': 4.75, 'random': 8.5}))).text
  wanted = 'The best thing derived after 4 children (1 failed) has a score of 4.750 for the search, 8.500 for random'
  assert wanted in text and ' passed ' not in text
  assert 'a score of 4.750 for the search.' in page.render(build(derived={'reinforce': 4.75}))


@pytest.mark.parametrize(
  ('name', 'words'),
  [
    ('no control', 'In 2 children (0 failed) the search found a thing of score 8.000.'),
    ('one child', 'In 1 child (0 failed) the search found'),
    ('all failed', 'In 2 children (2 failed) the search found no thing that could be scored.'),
    ('nothing yet', 'No child has been trained yet.'),
  ],
)
def test_headlines(pages, name, words):
  assert words in Checker(pages[name]).text


def test_an_unfinished_search_says_so(pages):
  assert 'The search has trained 2 of at most 4 children.' in pages['no control']
  assert 'Random search has trained 0 of at most 4 children.' in pages['control not begun']
  assert ' is at ' not in Checker(pages['whole']).text


def test_more_is_better_where_it_is():
  metric = model.Metric('score', 'accuracy', lower=False)
  runs = run('reinforce', [0.5, 0.7, 0.6], lower=False), run('random', [0.4, 0.9, None], lower=False)
  text = page.render(build(metric=metric, runs=runs, budget=3))
  assert 'found a thing of accuracy 0.700' in text and 'one of 0.900' in text
  assert 'The search has not passed the best of random search' in text


def test_the_same_report_is_the_same_bytes(pages):
  assert page.render(build()) == pages['whole']


def test_the_page_of_a_running_search_is_read_again(pages):
  assert '<meta http-equiv="refresh" content="60">' in page.render(build(), refresh=60)
  assert 'refresh' not in pages['whole']


def test_values_stand_where_they_are_drawn():
  line = charts.Line('a', [1, 2, 3], [0.0, 5.0, 10.0])
  svg = charts.entropy('entropy', 'label', [line])
  points = json.loads(html.unescape(re.search(r'data-points="([^"]*)"', svg)[1]))
  assert [words for *_, words in points] == [
    f'a, after {n} children: entropy in nats {y}' for n, y in ((1, 0), (2, 5), (3, 10))
  ]
  # The line is drawn in the same units: M x y L x y L x y.
  drawn = re.search(r'd="M ([\d.]+) ([\d.]+)\s+L ([\d.]+) ([\d.]+)\s+L ([\d.]+) ([\d.]+)\s*"[^>]*clip-path', svg)
  np.testing.assert_allclose([float(x) for x in drawn.groups()], np.ravel([point[:2] for point in points]), atol=0.51)


def test_all_children_stand_in_the_table_best_first_and_failed_last(pages):
  table = re.search(r'<table class="sortable".*?</table>', pages['whole'])[0]
  rows = [re.findall(r'<td[^>]*>(.*?)</td>', row) for row in table.split('<tr>')[2:]]
  assert [(row[0], row[1], row[2]) for row in rows[:3]] == [
    ('3', 'the search', '3.250'), ('2', 'the search', '4.500'), ('1', 'random search', '7.500'),
  ]  # fmt: skip
  assert len(rows) == 8 and [row[-2] for row in rows] == [''] * 5 + ['time'] * 3
  assert rows[-1][2:4] == ['', '']  # no score and no reward, rather than 0
  assert '<td class="n">0.000</td>' in children.render(
    [('a', [record(0, 8.0) | {'score': 0.0}])], 'score', 'accuracy', False
  )


def test_importance_by_hand():
  # The score is decided by `a` alone; `b` is balanced within each label of it.
  scores = {0: 1.0, 1: 2.0, 2: 3.0}
  lines = [record(k, scores[k % 3] + 1e-3 * (k // 6), (k % 3, k // 3 % 2)) for k in range(60)]
  first, second = importance.measure(SPACE.slots, lines, 'score', True)
  assert (first.name, first.best) == ('a', 'x') and first.share > 0.85
  assert second.name == 'b' and second.share < 0.05
  # More is better: the best label is the other end.
  assert importance.measure(SPACE.slots, lines, 'score', False)[0].best == 'z'
  # Omega squared of two groups of ten with ranks 1 to 10 and 11 to 20, by its definition.
  half = [record(k, 1.0 + k, (0 if k < 10 else 1, 0)) for k in range(20)]
  (only,) = importance.measure(SPACE.slots, half, 'score', True)
  between, total = 10 * (5.5 - 10.5) ** 2 + 10 * (15.5 - 10.5) ** 2, sum((r - 10.5) ** 2 for r in range(1, 21))
  within = (total - between) / 18
  assert only.share == pytest.approx((between - within) / (total + within))
  assert importance.measure(SPACE.slots, half[:19], 'score', True) == []  # too few to say anything
  repeats = [line | {'repeat_of': line['id']} for line in half]
  assert importance.measure(SPACE.slots, half + repeats, 'score', True) == [only]
  assert importance.measure(SPACE.slots, half[:19] + repeats, 'score', True) == []


def test_importance_leaves_out_what_does_not_exist():
  deep = [record(k, 1.0 + k % 7, (k % 3, k % 2)) | {'depth': 1} for k in range(30)]
  layered = [slot._replace(layer=number) for number, slot in enumerate(SPACE.slots)]
  assert [one.name for one in importance.measure(layered, deep, 'score', True)] == ['a']


def test_two_searches_side_by_side():
  other = build(name='second', config={'lr': 0.5, 'word': 'plain', 'new': 1}, runs=(run('reinforce', [8.0, 2.0, 9.0]),))
  found = Checker(comparison.render(build(), other))
  words = ' '.join(found.text.split())
  # After three children, which both have, the first is at 4.5 and the second at 2.
  assert 'After 3 children second has found a score of 2.000, first one of 4.500.' in words
  assert 'lr 0.125 0.5' in words and 'new no such setting 1' in words and 'word' not in words.split('Settings')[1][:60]
  assert len(set(found.ids)) == len(found.ids)
  with pytest.raises(ValueError, match='only searches of one system'):
    comparison.render(build(), other._replace(metric=model.Metric('loss', 'loss')))
  with pytest.raises(ValueError, match='different names'):
    comparison.render(build(), build())


def test_searches_with_shared_weights_are_compared_by_what_they_derived():
  """On one minibatch each, the best child of the second scored 2; on the whole split what it derived has 6."""
  first = build(shared=True, derived={'reinforce': 4.75, 'random': 8.5})
  second = build(name='second', derived={'reinforce': 6.0}, runs=(run('reinforce', [8.0, 2.0, 9.0]),))
  wanted = 'After 4 children first has derived a thing of score 4.750, second one of 6.000 after 3 children.'
  for both in ((first, second), (second, first)):
    assert f'<h1>{wanted}</h1>' in comparison.render(*both)
  assert 'After 3 children second has found' in comparison.render(first, second._replace(derived={}))


CLICKS = """
<script>
const said = [];
addEventListener('error', event => said.push(event.message));
addEventListener('load', () => {
  const table = document.querySelector('table.sortable'), column = k => [...table.tBodies[0].rows]
    .filter(row => !row.hidden).map(row => row.cells[k].textContent).join();
  const head = table.tHead.rows[0].cells[0].firstChild, input = document.querySelector('.filter input');
  head.click(); said.push(column(0));
  head.click(); said.push(column(0));
  input.value = 'random time'; input.dispatchEvent(new Event('input')); said.push(column(5));
  const chart = document.querySelector('svg[data-points]'), [x, y, words] = JSON.parse(chart.dataset.points)[0];
  chart.scrollIntoView();
  const box = chart.getBoundingClientRect(), view = chart.viewBox.baseVal, tip = document.querySelector('.tip');
  chart.dispatchEvent(new PointerEvent('pointermove', {
    clientX: box.left + x * box.width / view.width, clientY: box.top + y * box.height / view.height,
  }));
  const place = tip.getBoundingClientRect();
  said.push(!tip.hidden && tip.textContent === words && place.left >= 0 && place.right <= innerWidth);
  chart.dispatchEvent(new PointerEvent('pointerleave')); said.push(tip.hidden);
  said.push(document.documentElement.scrollWidth <= innerWidth, innerWidth);
  parent.postMessage(said.join(' | '), '*');
});
</script>
"""
FRAME = """
<script>addEventListener('message', event => { document.title = event.data; });</script>
<title></title><iframe src="page.html" width="%d" height="800" style="border: 0"></iframe>
"""  # Chromium has no windows as narrow as a phone


@pytest.mark.long
@pytest.mark.skipif(not shutil.which('chromium'), reason='needs Chromium')
@pytest.mark.parametrize('width', [1200, 390])
@pytest.mark.parametrize('dark', [False, True])
def test_in_a_browser_it_sorts_and_filters_without_an_error(tmp_path, dark, width):
  """It also shows values under the pointer, and is no wider than its window, be it that of a phone."""
  text = page.render(build(winners=[model.Winner('1. Child 3', 'y = x', draw.svg(published.NASCELL))]))
  (tmp_path / 'page.html').write_text(text.replace('<main>', f'{CLICKS}<main>'))
  (tmp_path / 'frame.html').write_text(FRAME % width)
  command = ['chromium', '--headless', '--no-sandbox', '--disable-gpu', '--enable-logging=stderr', '--dump-dom']
  command += ['--blink-settings=preferredColorScheme=0'] * dark
  command += ['--window-size=1300,900', '--virtual-time-budget=5000', f'file://{tmp_path}/frame.html']
  done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
  title = html.unescape(re.search(r'<title>(.*?)</title>', done.stdout)[1])
  assert title == f'0,0,1,1,2,2,3,3 | 3,3,2,2,1,1,0,0 | time,time | true | true | true | {width}'
  assert 'CONSOLE' not in done.stderr


def test_charts_say_what_they_are(pages):
  assert (
    len(re.findall(r'<svg class="chart" role="img"[^>]* aria-label="[^"]+" data-points="\[\[', pages['whole'])) == 5
  )
  assert pages['whole'].count('<figcaption>') == 5
  assert pages['no updates'].count('<figcaption>') == 4  # no entropy was noted


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
  drawn = re.sub(r' data-points="[^"]*"', '', svg)
  assert not re.findall(r'<[^>]*\d\.\d{3,}[^>]*>', drawn)  # but where things stand is
