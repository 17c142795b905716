"""Scores against what children cost: the front, and what the charts say."""

import html
import json
import re

import numpy as np
import pytest

from nas_jax.report import children, model, pareto

METRIC = model.Metric('score', 'loss')


def record(number, score, weights=None, **more):
  line = {'id': number, 'tokens': [0], 'reward': 0.5, 'score': score, 'failed': None, 'seconds': 1.0}
  return line | ({} if weights is None else {'weights': weights}) | more


def run(name, records):
  return model.Run(name, records, [], [])


def test_a_front_by_hand():
  # 1 is dearer and worse than 0; 2 costs as much as 0 and is worse; 3 is dearer and better; 4 equals 3.
  lines = [record(0, 5.0, 10), record(1, 6.0, 20), record(2, 5.5, 10), record(3, 4.0, 30), record(4, 4.0, 30)]
  assert [one['id'] for one in pareto.front(lines, 'weights', 'score', True)] == [0, 3]
  # Where more is better, the cheapest are 0 and 2, of which 2 is better; 1 is better still, and nothing beats it.
  assert [one['id'] for one in pareto.front(lines, 'weights', 'score', False)] == [2, 1]
  assert pareto.front([], 'weights', 'score', True) == []


@pytest.mark.parametrize('lower', [True, False])
@pytest.mark.parametrize('seed', range(5))
def test_a_front_by_brute_force(seed, lower):
  rng = np.random.default_rng(seed)
  lines = [record(k, int(rng.integers(12)), int(rng.integers(12))) for k in range(40)]

  def beats(a, b):
    better = a['score'] < b['score'] if lower else a['score'] > b['score']
    no_worse = better or a['score'] == b['score']
    return a['weights'] <= b['weights'] and no_worse and (better or a['weights'] < b['weights'])

  unbeaten = {(b['weights'], b['score']) for b in lines if not any(beats(a, b) for a in lines)}
  found = pareto.front(lines, 'weights', 'score', lower)
  assert [(one['weights'], one['score']) for one in found] == sorted(unbeaten)


def said(figure):
  return [words for *_, words in json.loads(html.unescape(re.search(r'data-points="([^"]*)"', figure)[1]))]


def test_a_chart_says_what_each_child_costs_and_which_are_on_the_front():
  own = [record(0, 5.0, 1000), record(1, 6.0, 2000), record(2, 9.0, 500, failed='took too long'), record(3, 4.0, 3000)]
  (figure,) = pareto.figures([run('reinforce', own), run('random', [record(0, 7.5, 1500)])], METRIC)
  assert said(figure) == [
    'the search, child 0: 5 with 1,000 weights, on the front',
    'the search, child 1: 6 with 2,000 weights',
    'the search, child 3: 4 with 3,000 weights, on the front',
    'random search, child 0: 7.5 with 1,500 weights, on the front',
  ]
  assert 'Loss against weights' in figure and '>1k<' in figure


def test_children_that_all_cost_the_same_have_no_chart_and_nor_has_a_journal_of_before():
  assert pareto.figures([run('reinforce', [record(0, 5.0, 10), record(1, 4.0, 10)])], METRIC) == []
  assert pareto.figures([run('reinforce', [record(0, 5.0), record(1, 4.0)])], METRIC) == []
  mixed = [record(0, 5.0), record(1, 4.0, 10), record(2, 3.0, 20)]  # a search that went on with a newer version
  assert len(said(pareto.figures([run('reinforce', mixed)], METRIC)[0])) == 2


def test_the_table_of_children_has_the_costs_that_the_journal_has():
  def cells(records, tag):
    table = children.render([('the search', records)], 'score', 'loss', True)
    return [re.sub(r'<[^>]*>', '', cell) for cell in re.findall(rf'<{tag}[ >].*?</{tag}>', table)]

  mixed = [record(0, 5.0), record(1, 4.0, 12345, multiply_adds=10**9)]
  assert cells(mixed, 'th')[4:6] == ['weights', 'multiply-adds']
  assert [cells(mixed, 'td')[4:6], cells(mixed, 'td')[13:15]] == [['12345', '1000000000'], ['', '']]
  assert 'weights' not in cells([record(0, 5.0)], 'th')
