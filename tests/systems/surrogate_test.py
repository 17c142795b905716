"""Models of children, against rewards that are known and against models fitted without one child."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from testing import one_line

from nas_jax.space import choice_space
from nas_jax.systems import surrogate
from nas_jax.types import Batch

SPACE = choice_space({f'slot {t}': [str(k) for k in range(4)] for t in range(6)})
VALUES = np.random.default_rng(1).normal(size=(6, 4))


def _reward(tokens):
  return 3 + VALUES[np.arange(6), tokens].sum(-1)


def _records(count, noise=0.0, seed=0):
  rng = np.random.default_rng(seed)
  tokens = rng.integers(4, size=(count, 6))
  rewards = _reward(tokens) + noise * rng.normal(size=count)
  return [{'tokens': t.tolist(), 'reward': float(r), 'failed': None} for t, r in zip(tokens, rewards, strict=True)]


def test_a_model_predicts_token_sequences_that_it_has_not_seen():
  model = surrogate.fit(SPACE, _records(150, noise=0.1))
  unseen = np.random.default_rng(9).integers(4, size=(100, 6))
  predicted = np.array([surrogate.predict(model, jnp.asarray(tokens)) for tokens in unseen])
  assert np.corrcoef(predicted, _reward(unseen))[0, 1] > 0.97
  assert abs(predicted.mean() - _reward(unseen).mean()) < 0.2
  assert model.explained > 0.9 and model.ranked > 0.95
  assert 0.05 < model.noise < 0.4


def test_noise_that_explains_all_is_found():
  rng = np.random.default_rng(0)
  records = [line | {'reward': float(rng.normal())} for line in _records(100)]
  model = surrogate.fit(SPACE, records)
  assert model.explained < 0.2 and model.noise > 0.6 * model.spread


def test_leaving_one_out_is_fitting_without_it():
  records = _records(40, noise=0.3)
  model = surrogate.fit(SPACE, records)
  tokens, reward = np.array([r['tokens'] for r in records]), np.array([r['reward'] for r in records])
  kernel = surrogate._kernel((tokens[:, None] == tokens[None]).mean(-1), model.slope, model.scale, model.norm)
  target, noise = (reward - reward.mean()) / reward.std(), (model.noise / model.spread) ** 2
  lost = []
  for k in range(40):
    rest = np.arange(40) != k
    gram = (1 - noise) * kernel[np.ix_(rest, rest)] + noise * np.eye(39)
    lost.append(target[k] - (1 - noise) * kernel[k, rest] @ np.linalg.solve(gram, target[rest]))
  assert model.explained == pytest.approx(1 - np.mean(np.square(lost)), abs=1e-3)


def test_a_child_that_repeats_another_is_no_measurement():
  records = _records(40, noise=0.5)
  repeats = [record | {'repeat_of': k} for k, record in enumerate(records)]
  failed = [{'tokens': [0] * 6, 'reward': 0.0, 'failed': 'not finite', 'repeat_of': 0}]
  one, other = surrogate.fit(SPACE, records), surrogate.fit(SPACE, [*records, *repeats, *failed])
  np.testing.assert_array_equal(one.weights, other.weights)
  assert (one.noise, one.explained, one.failed) == (other.noise, other.explained, other.failed)


def test_the_reward_has_noise_by_the_key_of_the_child():
  model = surrogate.fit(SPACE, _records(60, noise=0.5))
  benchmark = surrogate.benchmark(SPACE, model)
  tokens = jnp.zeros((2000, 6), jnp.int32)
  keys = jax.random.split(jax.random.key(3), 2000)
  outcome, again = (benchmark.evaluate((), Batch(jnp.arange(2000), keys, tokens, None)) for _ in range(2))
  np.testing.assert_array_equal(outcome.reward, again.reward)
  np.testing.assert_allclose(outcome.metrics['test'], surrogate.predict(model, tokens[0]), rtol=1e-5)
  assert float((outcome.reward - outcome.metrics['test']).std()) == pytest.approx(float(model.noise), rel=0.1)


def test_failed_children_are_left_out_and_too_few_are_refused():
  records = _records(40)
  failed = [{'tokens': [0] * 6, 'reward': 0.0, 'failed': 'not finite'}] * 5
  one, other = surrogate.fit(SPACE, records), surrogate.fit(SPACE, [*records, *failed])
  np.testing.assert_array_equal(one.weights, other.weights)
  assert (one.failed, other.failed) == (0, 5) and '5 failed' in surrogate.describe(other)
  for few in (records[:10], [line | {'reward': 1.0} for line in records]):
    with pytest.raises(ValueError, match='needs 30 children') as error:
      surrogate.fit(SPACE, few)
    one_line(error)
