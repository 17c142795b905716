"""The rewards of children, and whether rewards are a reliable signal."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import testing

from nas_jax import space
from nas_jax.report import reliability
from nas_jax.systems import cell
from nas_jax.training import fit, rewards
from nas_jax.types import Batch, Outcome


def test_reward_of_a_perplexity_by_hand():
  # 80 / 20^2 = 0.2; 80 / 4^2 = 5, cut at 2; an infinite perplexity earns nothing.
  found = rewards.of_perplexity(np.array([20.0, 4.0, np.inf]), c=80.0, limit=2.0)
  np.testing.assert_allclose(found, [0.2, 2.0, 0.0])
  np.testing.assert_allclose(rewards.of_perplexity(np.array([4.0])), [5.0])


@pytest.mark.parametrize(
  ('words', 'wanted'),
  [
    (rewards.perplexity_formula(), '80 / perplexity^2'),
    (rewards.perplexity_formula(7.5, limit=2.0, power=1.0), '7.5 / perplexity, at most 2'),
    (rewards.accuracy_formula(), 'accuracy^3'),
    (rewards.accuracy_formula(1.0), 'accuracy'),
  ],
)
def test_rewards_in_words_are_those_that_are_paid(words, wanted):
  assert words == wanted


def test_a_child_that_fails_earns_nothing():
  # At such a learning rate every cell with a gradient blows up.
  cfg = testing.cell_config(lr=1e30, optimizer='sgd', schedule='constant', clip=1e30, m=4)
  s = cell.build(cfg, testing.text())
  outcome = s.evaluate(s.ask(s.init(jax.random.key(0))))
  failed = outcome.metrics['failed'] == fit.Status.NOT_FINITE
  assert failed.any()
  assert (np.asarray(outcome.reward)[failed] == 0).all() and np.isfinite(outcome.reward).all()


def test_the_evaluator_pays_by_the_metrics_it_reports():
  cfg = testing.cell_config(reward_c=7.0)
  s = cell.build(cfg, testing.text())
  outcome = s.evaluate(s.ask(s.init(jax.random.key(0))))
  np.testing.assert_allclose(outcome.reward, 7.0 / outcome.metrics['perplexity'] ** 2, rtol=1e-6)


@pytest.mark.parametrize(
  ('a', 'b', 'wanted'),
  [
    ([1, 2, 3, 4], [1, 4, 9, 16], 1.0),
    ([1, 2, 3, 4], [4, 3, 2, 1], -1.0),
    # Ranks 1 2 3 4 and 1.5 1.5 3 4: covariance 4.75 - 0.25 = 4.5, variances 5 and 4.5, so 4.5 / sqrt(22.5).
    ([1, 2, 3, 4], [0, 0, 5, 6], 4.5 / math.sqrt(22.5)),
  ],
)
def test_spearman_by_hand(a, b, wanted):
  assert reliability.spearman(np.array(a), np.array(b)) == pytest.approx(wanted)


def test_a_constant_reward_has_no_rank():
  assert math.isnan(reliability.spearman(np.ones(4), np.arange(4)))


def test_reliability_tells_signal_from_noise():
  sp = space.choice_space({'a': [str(i) for i in range(50)], 'b': [str(i) for i in range(50)]})

  def signal(batch: Batch) -> Outcome:
    return Outcome(batch.tokens.sum(1).astype(jnp.float32))

  def noise(batch: Batch) -> Outcome:
    return Outcome(jax.vmap(jax.random.uniform)(batch.keys))

  # 30 children in batches of 4: the last batch is filled up.
  found = reliability.measure(sp, signal, jax.random.key(0), 30, 4, noise, 20)
  assert found.seeds == (pytest.approx(1.0), pytest.approx(1.0), 0, 0.0) and found.children == 30
  assert abs(found.budget.all) < 0.6 and found.data_seeds is None
  assert abs(reliability.measure(sp, noise, jax.random.key(0), 60, 4).seeds.all) < 0.4
  assert reliability.measure(sp, signal, jax.random.key(0), 30, 4).budget is None
  assert reliability.measure(sp, signal, jax.random.key(0), 30, 4, other_data=signal).data_seeds.all == pytest.approx(1)


def test_children_that_failed_are_counted_apart_and_have_no_rank():
  # A third of the children fail, good and bad ones. Were their rewards read, the ranks of the trainings would differ.
  sp = space.choice_space({'a': [str(i) for i in range(99)]})

  def some_fail(batch: Batch) -> Outcome:
    tokens = batch.tokens[:, 0]
    noise = jax.vmap(jax.random.uniform)(batch.keys)
    return Outcome(jnp.where(tokens % 3 == 0, 100 * noise, tokens).astype(jnp.float32), failed=tokens % 3 == 0)

  found = reliability.measure(sp, some_fail, jax.random.key(0), 40, 4)
  assert 5 < found.seeds.failed < 25
  assert found.seeds[:2] == (pytest.approx(1.0), pytest.approx(1.0))


def test_ranks_by_hand():
  # Of ten children one fails in each training, and the best quarter of the other eight is too small to be ranked.
  first, second = np.arange(10.0), np.arange(10.0)
  first[3], second[5] = np.nan, -np.inf
  found = reliability.ranks(first, second)
  assert found[0] == pytest.approx(1.0) and math.isnan(found.quarter) and found.failed == 2
  turned = np.array([*range(9), 11.0, 10.0, 9.0])  # the best three of twelve in the opposite order
  assert reliability.ranks(turned, np.arange(12.0)).quarter == pytest.approx(-1.0)
  nothing = reliability.ranks(np.full(3, np.nan), np.arange(3.0))
  assert math.isnan(nothing.all) and math.isnan(nothing.quarter) and nothing.failed == 3 and math.isnan(nothing.regret)


def test_regret_by_hand():
  # By perplexity: the short training ranks the third first, then the first and the fourth.
  full, short = np.array([4.0, 5.0, 6.0, np.inf]), np.array([21.0, 30.0, 20.0, 22.0])
  assert reliability.regret(full, short) == 0.5  # 6 against 4
  assert reliability.regret(full, short, 2) == 0.0
  assert reliability.regret(full, -short) == 0.25  # the second, 5 against 4
  assert reliability.regret(full, np.array([3.0, 2.0, 1.0, 0.0])) == np.inf  # the one that failed
  assert reliability.regret(full, np.array([3.0, 2.0, 1.0, 0.0]), 2) == 0.5
  # By rewards, of which more is better: the first training chooses 0.6 by the second one, whose best is 0.8.
  found = reliability.ranks(np.array([0.5, 0.9, 0.7, np.nan]), np.array([0.8, 0.6, 0.7, 1.0]))
  assert found.regret == pytest.approx(0.25) and found.failed == 1  # the 1.0 failed in the first training
  assert math.isnan(reliability.regret(np.full(2, np.inf), np.ones(2)))
  assert math.isnan(reliability.regret(np.array([0.0, 1.0]), np.ones(2)))


def test_reliability_is_json_without_nan():
  found = reliability.Reliability(
    reliability.Ranks(0.5, math.nan, 2, 0.125), reliability.Ranks(math.nan, math.nan, 8), None, 8
  )
  text = json.dumps(reliability.as_json(found), allow_nan=False)
  again = reliability.from_json(json.loads(text))
  assert repr(again) == repr(found) and reliability.as_json(again) == json.loads(text)
  assert list(reliability.in_words(found, 'short', 'long')) == ['two seeds', 'two seeds with other data seeds']
  old = reliability.from_json({'seeds': 0.25, 'budget': math.nan, 'children': 8})
  assert (
    old.seeds.all == 0.25
    and math.isnan(old.seeds.regret)
    and old.seeds.failed is None
    and old.budget
    and math.isnan(old.budget.all)
  )
