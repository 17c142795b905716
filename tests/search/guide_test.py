"""The Gaussian process that chooses among proposals."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
import testing
from testing import SPACES, one_line, strings

from nas_jax import search, space
from nas_jax.search import guide, history, per_layer
from nas_jax.systems import enas_rnn
from nas_jax.training import checkpoint
from nas_jax.types import Outcome

SPACE = space.choice_space({f'slot {k}': 'xy' for k in range(7)})


def record(tokens, reward, failed=(), pending=()):
  """A history of token sequences."""
  count, kept = len(tokens), history.empty(np.shape(tokens)[1])
  told = jnp.array([k not in pending for k in range(count)])
  lost = jnp.array([k in failed for k in range(count)])
  columns = jnp.ones(count, jnp.int32), jnp.arange(count), told, jnp.asarray(reward, jnp.float32), lost
  return history.insert(kept, jnp.asarray(tokens, jnp.int32), *columns)


@functools.cache
def made():
  """A Gaussian process fitted to nine sequences, and their history."""
  rows = strings(SPACE)[np.random.default_rng(1).permutation(128)[:9]]
  kept = record(rows, rows.sum(1) + np.sin(np.arange(9.0)))
  return jax.jit(guide.update, static_argnums=2)(guide.empty(), kept, 9), kept, rows


def kernel(a, b, scale):
  return np.exp(-(np.asarray(a)[:, None] != np.asarray(b)[None]).sum(-1) / scale)


def test_it_is_the_process_that_a_factorization_gives():
  model, kept, rows = made()
  found = guide.fit(model, kept)
  values = np.asarray(guide.normalized(model, kept), np.float64)[:9]
  scales = np.array(guide.LENGTHS) * 7
  evidence = []
  for scale in scales:
    matrix = kernel(rows, rows, scale) + guide.NOISE * np.eye(9)
    variance = values @ np.linalg.solve(matrix, values) / 9
    evidence.append(stats.multivariate_normal(np.zeros(9), variance * matrix).logpdf(values))
  scale = scales[np.argmax(evidence)]
  assert float(found.scale) == pytest.approx(scale)
  matrix = kernel(rows, rows, scale) + guide.NOISE * np.eye(9)
  deviation = np.sqrt(values @ np.linalg.solve(matrix, values) / 9)
  assert float(found.deviation) == pytest.approx(deviation, rel=1e-4)
  others = strings(SPACE)[::9]
  cross = kernel(others, rows, scale)
  mean, variance, _ = guide.predict(found, kept, jnp.asarray(others), 1)
  np.testing.assert_allclose(mean, cross @ np.linalg.solve(matrix, values), rtol=1e-3, atol=1e-4)
  wanted = 1 - np.einsum('ij,ji->i', cross, np.linalg.solve(matrix, cross.T))
  np.testing.assert_allclose(variance, wanted, rtol=1e-3, atol=1e-4)


def test_rows_come_one_by_one_or_together_and_it_may_grow():
  model, kept, _ = made()
  kept = history.grow(kept, 300)
  single, update = guide.grow(guide.empty(), 300), jax.jit(guide.update, static_argnums=2)
  for k in range(9):
    single = update(single, kept._replace(size=jnp.int32(k + 1)), 1)
  assert int(single.size) == 9 and len(single.believed) == 300 and len(guide.grow(single, 5000).believed) == 1024
  np.testing.assert_allclose(single.inverse[:, :256, :256], model.inverse, rtol=1e-5, atol=1e-6)


def test_rewards_count_by_their_order():
  kept = record([[0], [1], [2], [3], [4]], [5.0, -1e9, 0.0, 5.0, 0.0], failed=[2], pending=[4])
  model = guide.empty()._replace(size=jnp.int32(5), believed=jnp.zeros(256).at[4].set(0.7))
  # Of the four that are told the one that failed is last, then the worst; the other two are equal.
  wanted = [*stats.norm.ppf([3 / 4, 1.5 / 4, 0.5 / 4, 3 / 4]), 0.7]
  np.testing.assert_allclose(guide.normalized(model, kept)[:6], [*wanted, 0.0], rtol=1e-4)


@pytest.mark.parametrize(('mean', 'deviation'), [(0.3, 1.0), (-1.0, 0.5), (-3.0, 0.5), (-6.0, 0.4)])
def test_the_improvement_is_expected(mean, deviation):
  x = np.linspace(0.0, 12.0, 400_001)
  wanted = np.log(np.trapezoid(x * stats.norm(mean, deviation).pdf(x), x))
  found = guide.log_improvement(jnp.float32(mean - 2.0), jnp.float32(deviation), jnp.float32(-2.0))
  assert float(found) == pytest.approx(wanted, abs=0.15 if mean / deviation < -4 else 2e-3)


def ask(s, state, rewards, steps):
  """Returns the state after `steps` steps, and all tokens that were asked for."""
  asked = []
  for _ in range(steps):
    batch = s.ask(state)
    asked += [(int(batch.depth or 0), *row) for row in batch.tokens.tolist()]
    state, _ = s.tell(state, batch, rewards(batch.tokens))
  return state, asked


@functools.cache
def built(where=None, **changes):
  settings = {'m': 4, 'algorithm': 'random', 'known': 'avoid', 'proposals': 'guided'}
  return search.ask_tell(SPACES[where] if where else SPACE, search.Config(**(settings | changes)))


def planted(tokens):
  return (tokens == jnp.array([1, 0, 1, 1, 0, 1, 0])[None]).mean(1)


def test_it_finds_one_of_128_in_40_children_and_asks_for_none_twice():
  s = built()
  found = []
  for seed in range(4):
    state, asked = ask(s, s.init(jax.random.key(seed)), planted, 10)
    assert len(set(asked)) == 40
    found.append(float(state.best.reward))
  assert found == [1.0] * 4
  assert int(state.guide.size) == 40


def test_children_of_a_batch_are_chosen_in_view_of_each_other():
  """Once the best candidate is chosen, its neighbours are less uncertain and so less promising."""
  model, kept, _ = made()
  kept = kept._replace(trained=kept.trained.at[9].set(1))  # a tenth, so that the process is asked
  keys, ids = jax.random.split(jax.random.key(3), 2), jnp.array([0, 3])
  uniform = search.algorithms.build(SPACE, search.Config(algorithm='random'))
  state = uniform.init(jax.random.key(0))
  tokens = guide.propose(SPACE, model, kept, uniform.propose, state, keys, ids, None, draws=32, mutations=16)
  own_keys, mutation_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
  drawn = uniform.propose(state, jax.vmap(lambda key: jax.random.split(key, 32))(own_keys).reshape(-1), None)
  pool = jnp.concatenate([drawn, guide.mutants(SPACE, kept, drawn.reshape(2, 32, 7)[:, :16], mutation_keys, None)])
  pool = pool[~history.are_known(kept, pool, 1)]
  found = guide.fit(model, kept)
  mean, variance, _ = guide.predict(found, kept, pool, 1)
  first = pool[jnp.argmax(guide.log_improvement(mean, found.deviation * jnp.sqrt(variance), found.best))]
  np.testing.assert_array_equal(tokens[0], first)
  # The second is what a process chooses that has the first, at the reward that was expected of it.
  more = history.insert(
    kept._replace(size=jnp.int32(9)), first[None], *(jnp.array([x]) for x in (1, 9, False, 0.0, False))
  )
  more = more._replace(trained=more.trained.at[9].set(0))
  believed = guide.update(guide.believe(model, more, first[None], jnp.array([1])), more, 1)
  again = guide.fit(believed, more)._replace(scale=found.scale, deviation=found.deviation)
  index = int(jnp.argmin(abs(guide.length_scales(7) - found.scale)))
  again = again._replace(inverse=believed.inverse[index])
  values = guide.normalized(believed, more)
  again = again._replace(weights=again.inverse @ values, best=values[:10].max())
  rest = pool[(pool != first[None]).any(1)]
  mean, variance, _ = guide.predict(again, more, rest, 1)
  second = rest[jnp.argmax(guide.log_improvement(mean, found.deviation * jnp.sqrt(variance), again.best))]
  np.testing.assert_array_equal(tokens[1], second)


@pytest.mark.parametrize('where', ['layered', 'pointer', 'typed'])
def test_children_are_of_the_space_and_failures_do_no_harm(where):
  s, allowed = built(where), {tuple(row) for row in strings(SPACES[where]).tolist()}
  state, asked = ask(s, s.init(jax.random.key(0)), lambda t: jnp.where(t[:, 0] == 0, jnp.nan, t.sum(1) * 1.0), 7)
  assert {row[1:] for row in asked} <= allowed and len(set(asked)) == 28
  assert not any(np.isnan(x).any() for x in jax.tree.leaves(state._replace(key=())))


def test_when_all_is_known_a_proposal_stands():
  s = built('choice')
  state, asked = ask(s, s.init(jax.random.key(0)), lambda tokens: tokens.sum(1), 5)
  assert len(set(asked[:12])) == 12 == len(set(asked))
  assert s.ask(state).repeats.known.all()


@pytest.mark.long
def test_depths_grow():
  s = built('layered', depth_start=1, depth_step=1, depth_every=8, m=2)
  _, asked = ask(s, s.init(jax.random.key(0)), lambda tokens: tokens.sum(1), 12)
  assert [row[0] for row in asked] == [1] * 8 + [2] * 8 + [3] * 8
  assert len(set(asked)) >= 2 + 7 + 8


@pytest.mark.filterwarnings('ignore::DeprecationWarning')
def test_saved_and_restored_it_goes_on_the_same(tmp_path):
  s = built()
  middle, _ = ask(s, s.init(jax.random.key(0)), planted, 4)
  save, close = checkpoint.saver(str(tmp_path / 'checkpoints'))
  save(4, middle)
  close()
  restored = checkpoint.restore(str(tmp_path / 'checkpoints'), functools.partial(s.sized, s.init(jax.random.key(9))))
  assert ask(s, restored, planted, 3)[1] == ask(s, middle, planted, 3)[1]


def test_children_that_are_not_told_yet_are_believed_to_earn_what_is_expected():
  """A fake delay of two batches. Rewards told later replace the expected ones."""
  s = built()
  state, waiting, asked = s.init(jax.random.key(1)), [], []
  for _ in range(10):
    batch = s.ask(state)
    asked += [tuple(row) for row in batch.tokens.tolist()]
    expected, _, _ = guide.predict(guide.fit(state.guide, state.history), state.history, batch.tokens, 1)
    state = s.reserve(state, batch)
    waiting.append(batch)
    if len(waiting) == 3:
      state, _ = s.tell(state, waiting[0], planted(waiting.pop(0).tokens))
  assert len(set(asked)) == 40 and float(state.best.reward) > 0.8
  model, kept = state.guide, state.history
  values = guide.normalized(model, kept)
  assert int(model.size) == 40 and (kept.trained[:40] == 0).sum() == 8
  np.testing.assert_allclose(values[36:40], expected, atol=1e-5)
  for batch in waiting:
    state, _ = s.tell(state, batch, planted(batch.tokens))
  assert (state.history.trained[:40] == 1).all() and int(state.history.waiting) == 0


def test_the_number_of_candidates(monkeypatch):
  """The process chooses among as many proposals and mutations as are asked for."""
  model, kept, _ = made()
  kept = kept._replace(trained=kept.trained.at[9].set(1))
  uniform = search.algorithms.build(SPACE, search.Config(algorithm='random'))
  state, keys, seen = uniform.init(jax.random.key(0)), jax.random.split(jax.random.key(3), 1), []

  def propose(*args):
    seen.append(uniform.propose(*args))
    return seen[-1]

  pools, predict = [], guide.predict
  monkeypatch.setattr(guide, 'predict', lambda *args: pools.append(args[2]) or predict(*args))
  guide.propose(SPACE, model, kept, propose, state, keys, jnp.array([0]), None, draws=5, mutations=2)
  assert seen[0].shape == (5, 7) and pools[0].shape == (5 + 2, 7)
  with pytest.raises(ValueError, match=r'guide_mutations \(=65\) must be at most guide_draws \(=64\)'):
    search.ask_tell(SPACE, search.Config(proposals='guided', guide_mutations=65))


def test_where_rewards_do_not_stay_or_are_of_layers_it_is_refused():
  with pytest.raises(ValueError, match='proposals .*share weights') as error:
    enas_rnn.make_problem(testing.rnn_config(proposals='guided'), testing.text())
  one_line(error)
  with pytest.raises(ValueError, match='proposals .*every layer') as error:
    per_layer.build(SPACE, per_layer.Config(proposals='guided'), lambda batch: Outcome(batch.tokens.sum(1)))
  one_line(error)
