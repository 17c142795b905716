"""Children that grow deeper during a search, Zoph & Le (2017) Sec. 4.1."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nas_jax import search, space
from nas_jax.report import rankings
from nas_jax.search import core, journal
from nas_jax.search.algorithms import baseline as baseline_lib
from nas_jax.search.algorithms import reinforce
from nas_jax.types import Outcome

SPACE = space.conv_space(3, (1, 3), (1, 3), (4, 8))
CONFIG = search.Config(m=2, controller_units=4, controller_lr=0.05, depth_start=1, depth_step=1, depth_every=4)


def evaluate(batch):
  """An evaluator whose rewards are a hash of the token sequence and of the child's key."""
  reward = jnp.sin(batch.tokens.sum(1) * 1.7 + jax.vmap(jax.random.uniform)(batch.keys))
  return Outcome(reward.astype(jnp.float32), {'score': np.asarray(reward)})


@pytest.fixture(scope='module')
def s():
  return search.ask_tell(SPACE, CONFIG)._replace(evaluate=evaluate)


@pytest.fixture(scope='module')
def walked(s):
  """Returns all records, and the state after each of eight steps."""
  lines, states = [], [s.init(jax.random.key(0))]
  hook = search.Hook(children=lines.extend, step=lambda state, info: states.append(state))
  search.run(s, states[0], [hook], search.Budget(16))
  return {line['id']: line for line in lines}, states


def test_the_papers_schedule():
  cfg = search.Config(depth_start=6)
  wide = space.conv_space(15)
  assert [core.depth_of(cfg, wide, n) for n in (0, 1599, 1600, 3200, 12_799)] == [6, 6, 8, 10, 15]


def test_children_are_as_deep_as_their_step(s, walked):
  lines, states = walked
  assert [lines[number]['depth'] for number in range(16)] == [1] * 4 + [2] * 4 + [3] * 8
  for step, depth in ((0, 1), (2, 2), (4, 3), (7, 3)):
    batch = s.ask(states[step])
    there = np.asarray(SPACE.exists(batch.tokens, depth))
    assert (np.asarray(batch.tokens)[~there] == 0).all()
    archs = [SPACE.decode(tokens, depth) for tokens in np.asarray(batch.tokens)]
    assert space.unstack(batch.archs) == archs and len(archs[0].filters) == depth
  best = max(lines.values(), key=lambda line: line['reward'])
  assert (int(states[-1].best.id), int(states[-1].best.depth)) == (best['id'], best['depth'])


def test_the_gradient_is_that_of_the_tokens_there_are(s, walked):
  _, states = walked
  state = states[2]
  batch = s.ask(state)
  outcome = evaluate(batch)
  value, _ = baseline_lib.advantage(state.algorithm.baseline, outcome.reward, CONFIG.baseline_decay)

  controller = reinforce.make_controller(SPACE, CONFIG)

  def loss(theta):
    log_prob = jnp.stack([controller.log_prob(theta, tokens, 2) for tokens in batch.tokens])
    return -(log_prob.sum(1) * value).mean()

  wanted = jax.grad(loss)(state.algorithm.theta)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7), s.gradient(state, batch, outcome), wanted
  )


@pytest.mark.parametrize(('step', 'lost'), [(0, ()), (1, (3,)), (3, (8, 11))])
def test_resumed_it_is_unbroken(s, walked, step, lost):
  lines, states = walked
  known = {number: line for number, line in lines.items() if number < 12 and number not in lost}
  again = []
  state = search.run(s, states[step], [search.Hook(children=again.extend)], search.Budget(16), known)
  for line in again:
    assert {**line, 'seconds': 0} == {**lines[line['id']], 'seconds': 0}
  for a, b in zip(jax.tree.leaves(state._replace(key=0)), jax.tree.leaves(states[-1]._replace(key=0)), strict=True):
    np.testing.assert_array_equal(a, b)


def test_the_report_reads_depths(walked):
  lines, _ = walked
  ranked = rankings.ranking(lines.values(), SPACE, 'score', lower=False)
  assert len(rankings.arch_of(SPACE, ranked[0]).filters) == ranked[0]['depth']
  found = rankings.best_json(SPACE, ranked[0])
  assert SPACE.from_json(found) == rankings.arch_of(SPACE, ranked[0])


def test_a_journal_says_no_depth_where_there_is_none():
  flat = search.ask_tell(SPACE, search.Config(m=2, controller_units=4))
  batch = flat.ask(flat.init(jax.random.key(0)))
  assert batch.depth is None
  assert all('depth' not in record for record in journal.records(batch, evaluate(batch), 1.0))
