"""Rewards for every layer, and the replay tree, on spaces small enough to enumerate."""

import dataclasses
import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.common import run_search
from nas_jax import search, space
from nas_jax.search import per_layer, replay_tree
from nas_jax.search.algorithms import reinforce
from nas_jax.search.algorithms.baseline import Baseline
from nas_jax.training import checkpoint
from nas_jax.types import Batch, Outcome

SPACE = space.chain_space(('conv 1 1 1', 'conv 2 1 1'), 3)
CONFIG = per_layer.Config(m=1, controller_units=5, controller_lr=0.05, controller_init=0.8, replay=0.3, gamma=0.6)
CONTROLLER = reinforce.make_controller(SPACE, CONFIG)
STRINGS = list(itertools.product(range(2), repeat=3))
LEAVES = [((0, 1, 0), 3), ((0, 1, 1), 3), ((1, 0, 0), 2)]  # strings of a tree, one of them not so deep


def score(prefix):
  """Returns the reward of a prefix, which no other prefix has."""
  return (3 + sum((1 + token) * (2 + 3 * t) ** 1.3 for t, token in enumerate(prefix))) / 40


class Trainer:
  """An evaluator that scores prefixes by `score`, and records them."""

  def __init__(self):
    self.trained = []

  def __call__(self, batch):
    paths = [tuple(row[:depth]) for row, depth in zip(batch.tokens.tolist(), batch.depth.tolist(), strict=True)]
    self.trained += [(path, batch.extra.length) for path in paths]
    return Outcome(jnp.array([score(path) for path in paths]), {'accuracy': np.array([score(p) for p in paths])})


def once(trained):
  return jnp.ones((), jnp.int32)


def grown(trained):
  return jnp.where(trained < 5, 1, 2).astype(jnp.int32)


@functools.cache
def compiled(length, **changes):
  trainer = Trainer()
  return per_layer.build(SPACE, dataclasses.replace(CONFIG, **changes), trainer, length), trainer


def built(length=once, **changes):
  s, trainer = compiled(length, **changes)
  trainer.trained.clear()
  return s, trainer


def asked(state, tokens, depth=3):
  """Returns the batch of one token sequence, none of whose prefixes is known."""
  tokens, nothing = jnp.array([tokens], jnp.int32), jnp.zeros((), jnp.int32)
  archs = SPACE.decode_batch(tokens)
  extra = per_layer.Asked(jnp.zeros((1, 3), bool), jnp.zeros((1, 3)), nothing, nothing + 1)
  return Batch(state.step[None], jax.random.split(state.key, 1), tokens, archs, jnp.array([depth]), extra)


def of_one(s, state, tokens, depth=3):
  """Returns the estimate of the gradient from one token sequence."""
  rewards = [score(tokens[: t + 1]) if t < depth else 0.0 for t in range(3)]
  return jax.jit(s.gradient)(state, asked(state, tokens, depth), Outcome(jnp.array([rewards])))


def seasoned(s):
  """Returns a state with a baseline and a tree of three leaves, one of which is not at full depth."""
  state = s.init(jax.random.key(0))
  tree = state.replay.tree
  for tokens, depth in LEAVES:
    rewards = jnp.array([score(tokens[: t + 1]) for t in range(3)])
    tree = replay_tree.insert(tree, jnp.array(tokens), depth, rewards, jnp.ones(3, bool), 1)
  baseline = Baseline(jnp.asarray(0.4), jnp.asarray(7), jnp.asarray(0.0))
  kept = state.algorithm._replace(baseline=baseline) if s.algorithm.gradient else state.algorithm
  return state._replace(algorithm=kept, replay=state.replay._replace(tree=tree))


def wanted(s, state, kind):
  """Returns the exact gradient that is estimated, by its definition over all token sequences."""
  strings = jnp.array(STRINGS)

  def prefixes(theta):
    return jnp.cumsum(jax.vmap(lambda tokens: CONTROLLER.log_prob(theta, tokens))(strings), 1)  # [8, 3]

  earned = np.array([[score(path[: t + 1]) for t in range(3)] for path in STRINGS]) - 0.4

  def objective(theta):
    log_p = prefixes(theta)
    total = 0.0
    for t in range(3):
      before = jax.lax.stop_gradient(log_p[:, t - 1]) if t else 0.0
      now = jnp.exp(before + log_p[:, t] - (log_p[:, t - 1] if t else 0.0))  # only the choice at t moves
      after = jax.lax.stop_gradient(jnp.exp(log_p[:, 2] - log_p[:, t]))
      if kind == 'past':
        credit = earned[:, t]  # what came before does not depend on it
      else:
        credit = sum(CONFIG.gamma ** (u - t) * earned[:, u] for u in range(t, 3))
      total += (now * after * credit).sum()
    return -total

  return jax.grad(objective)(state.algorithm.theta)


def fresh_strings(s, state, share):
  """Returns (probability, estimate) of each token sequence that the controller can sample."""
  return [
    (share * jnp.exp(CONTROLLER.log_prob(state.algorithm.theta, jnp.array(tokens)).sum()), of_one(s, state, tokens))
    for tokens in STRINGS
  ]


def expected(parts):
  assert sum(float(weight) for weight, _ in parts) == pytest.approx(1, abs=1e-5)
  weighted = [jax.tree.map(lambda x, w=weight: w * x, estimate) for weight, estimate in parts]
  return jax.tree.map(lambda *leaves: sum(leaves), *weighted)


@pytest.mark.parametrize('kind', reinforce.RETURNS)
def test_the_gradient_by_enumeration(kind):
  s, _ = built(returns=kind, replay=0.0)
  state = seasoned(s)
  found = expected(fresh_strings(s, state, 1.0))
  chex.assert_trees_all_close(found, wanted(s, state, kind), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize('kind', reinforce.RETURNS)
@pytest.mark.long
def test_replayed_strings_with_their_weights_have_the_same_gradient(kind):
  """Sequences come from the controller and from the tree in the configured mixture; one of the tree's ends early."""
  s, _ = built(returns=kind, importance=True)
  state, p = seasoned(s), CONFIG.replay
  parts = fresh_strings(s, state, 1 - p)
  for tokens, depth in LEAVES:
    drawn = jnp.exp(replay_tree.log_prob(state.replay.tree, jnp.array(tokens), CONFIG.replay_power))[depth - 1]
    parts.append((p * drawn, of_one(s, state, tokens, depth)))
  chex.assert_trees_all_close(expected(parts), wanted(s, state, kind), rtol=1e-3, atol=1e-6)
  plain, _ = built(returns=kind)
  without = expected(
    [
      (w, of_one(plain, state, *string))
      for (w, _), string in zip(parts, [*((x, 3) for x in STRINGS), *LEAVES], strict=True)
    ]
  )
  assert (
    max(
      float(jnp.abs(a - b).max()) for a, b in zip(*map(jax.tree.leaves, (without, wanted(s, state, kind))), strict=True)
    )
    > 1e-3
  )


def test_returns_by_hand():
  value = jnp.array([[1.0, 2.0, 4.0]])
  np.testing.assert_allclose(reinforce.returns(value, 0.5, 'past'), [[1, 2.5, 5.25]])
  np.testing.assert_allclose(reinforce.returns(value, 0.5, 'to go'), [[3, 4, 4]])
  np.testing.assert_allclose(reinforce.returns(value, 0.0, 'past'), value)


def test_credit_reaches_the_tokens_of_its_layer_alone():
  """Without a return from its neighbours, a layer whose reward is the baseline's gets no gradient."""
  s, _ = built(gamma=0.0, replay=0.0)
  state, tokens = seasoned(s), (1, 0, 1)

  def gradient(rewards):
    return s.gradient(state, asked(state, tokens), Outcome(jnp.array([rewards])))

  def layer(t):
    return jax.grad(lambda theta: -CONTROLLER.log_prob(theta, jnp.array(tokens))[t])(state.algorithm.theta)

  assert all(np.allclose(x, 0.0, atol=1e-7) for x in jax.tree.leaves(gradient([0.4, 0.4, 0.4])))
  chex.assert_trees_all_close(gradient([0.4, 1.4, 0.4]), layer(1), rtol=1e-4, atol=1e-6)
  chex.assert_trees_all_close(gradient([2.4, 0.4, 0.4]), jax.tree.map(lambda x: 2 * x, layer(0)), rtol=1e-4, atol=1e-6)


def walk(s, count, seed=0):
  state, batches = s.init(jax.random.key(seed)), []
  for _ in range(count):
    batch = s.ask(state)
    batches.append((state, batch, s.parts.split(batch)))
    state, _ = s.tell(state, batch, s.evaluate(batch))
  return state, batches


def test_a_prefix_is_trained_once():
  s, trainer = built(m=3)
  state, _ = walk(s, 20)
  paths = [path for path, _ in trainer.trained]
  assert len(paths) == len(set(paths)) == s.spent(state) == int(state.replay.tree.size) - 1 <= 14
  tree = state.replay.tree
  for path in paths:
    node = replay_tree.lookup(tree, jnp.array([*path, 0, 0][:3]), len(path))[len(path) - 1]
    assert float(tree.reward[node]) == pytest.approx(score(path)) and int(tree.trained[node]) == 1
  assert int(tree.used[1:].sum()) == 20 * 3 * 3  # all layers of all strings


def test_idle_counts_the_updates_since_a_child_was_trained():
  s, _ = built(m=1)
  state, wanted, found = s.init(jax.random.key(0)), [0], [0]
  for _ in range(20):
    before, batch = s.spent(state), s.ask(state)
    state, _ = s.tell(state, batch, s.evaluate(batch))
    wanted.append(0 if s.spent(state) > before else wanted[-1] + 1)
    found.append(int(state.replay.idle))
  assert found == wanted and wanted.count(0) > 2 and max(wanted) > 1


def test_ids_count_trainings_and_duplicates_are_trained_once():
  s, _ = built(m=4)
  for state, batch, groups in walk(s, 6)[1]:
    ids = [number for group in groups for number in group.ids.tolist()]
    assert ids == list(range(s.spent(state), s.spent(state) + len(ids)))
    strings = [group.extra.string for group in groups]
    assert strings == sorted(strings) and set(strings) <= set(batch.ids.tolist())
    for group in groups:
      assert (group.tokens == np.where(np.arange(3)[None] < group.depth[:, None], group.tokens, 0)).all()
      assert ((group.archs.layers > 0).sum(1) == group.depth).all()


@pytest.mark.long
@pytest.mark.parametrize(('when', 'times'), [('never', 1), ('longer', 2)])
def test_a_longer_training_is_another(when, times):
  s, trainer = built(grown, m=2, train_again=when)
  state, _ = walk(s, 60)
  found = [[length for path, length in trainer.trained if path == one] for one in {p for p, _ in trainer.trained}]
  assert max(map(len, found)) == times and all(lengths == sorted(set(lengths)) for lengths in found)
  assert s.spent(state) == len(trainer.trained)


@pytest.mark.parametrize('again', [{'train_again': 'always'}, {'known': 'train'}])
def test_always_training_again_averages(again):
  s, trainer = built(m=2, replay=0.0, **again)
  state, _ = walk(s, 5)
  assert s.spent(state) == len(trainer.trained) > int(state.replay.tree.size) - 1
  assert int(state.replay.tree.trained.sum()) == s.spent(state)


def test_sequences_that_are_in_the_tree_are_avoided():
  """The 8 sequences of 3 layers are found by the first 8 proposals; then there is nothing new."""
  s, trainer = built(m=2, algorithm='random', known='avoid')
  strings = [tuple(row) for _, batch, _ in walk(s, 4)[1] for row in batch.tokens.tolist()]
  assert sorted(strings) == STRINGS and len(trainer.trained) == len(set(trainer.trained)) == 2 + 4 + 8


def test_as_often_as_asked_a_string_is_of_the_tree():
  s, _ = built(m=200, replay=0.4)
  state = seasoned(s)
  lonely = state.replay.tree._replace(children=state.replay.tree.children.at[0, 1].set(0))  # one way: 0, 1
  batch = s.ask(state._replace(replay=state.replay._replace(tree=lonely)))
  fresh = s.ask(s.init(jax.random.key(0)))
  pair = [(row[0] == 0) & (row[1] == 1) for row in (batch.tokens.T, fresh.tokens.T)]
  often = [float(one.mean()) for one in pair]
  assert often[0] == pytest.approx(0.4 + 0.6 * often[1], abs=0.1)
  assert np.asarray(fresh.depth == 3).all()


def test_random_search_draws_nothing_from_the_tree():
  s, _ = built(m=200, algorithm='random', replay=0.9)
  counts = np.bincount(np.asarray(s.ask(seasoned(s)).tokens @ jnp.array([4, 2, 1])), minlength=8)
  assert counts.min() > 10


def test_the_best_is_the_best_prefix():
  s, _ = built()
  state = s.init(jax.random.key(0))
  batch = asked(state, (1, 1, 1))
  state, info = s.tell(state, batch, Outcome(jnp.array([[0.2, 0.9, 0.1]]), {}, jnp.ones((1, 3), bool)))
  assert state.best.tokens.tolist() == [1, 1, 0] and int(state.best.depth) == 2
  assert float(state.best.reward) == pytest.approx(0.9) and float(info['reward']) == pytest.approx(0.4)


def test_depth_grows_with_children_trained():
  s, _ = built(depth_start=1, depth_every=2, depth_step=1, m=1, replay=0.0)
  for state, batch, _ in walk(s, 12)[1]:
    assert batch.depth.tolist() == [min(3, 1 + s.spent(state) // 2)]


def test_a_search_with_nothing_left_to_train_ends(tmp_path):
  s, trainer = built(patience=4, m=2)
  records = run_search.run(str(tmp_path), s, 0, search.Budget(1000))
  assert len(records) == len(trainer.trained) <= 14
  assert run_search.run(str(tmp_path), s, 0, search.Budget(1000)) == records and len(trainer.trained) == len(records)


@pytest.mark.long
def test_cut_off_and_resumed_it_ends_the_same(tmp_path):
  """Also if the capacity of the tree was increased in between."""
  wide = space.chain_space(tuple(f'conv {n} 1 1' for n in range(1, 9)), 3)
  cfg = dataclasses.replace(CONFIG, m=8, controller_init=0.08, controller_lr=1e-4)

  def run(folder, *budgets):
    for budget in budgets:
      s = per_layer.build(wide, cfg, Trainer())  # as another process would
      records = run_search.run(str(tmp_path / folder), s, 3, search.Budget(budget))
    like = functools.partial(s.sized, s.init(jax.random.key(3)))
    state = checkpoint.restore(str(tmp_path / folder / 'checkpoints'), like)
    assert s.spent(state) == len(records) >= budget and replay_tree.capacity(state.replay.tree) == 1024
    files = [(tmp_path / folder / name).read_text() for name in ('best.json', 'replay.json')]
    return [record | {'seconds': 0} for record in records], files, state._replace(key=0)

  unbroken, cut = run('unbroken', 170), run('cut', 60, 170)
  assert unbroken[:2] == cut[:2]
  assert {record['id'] for record in unbroken[0]} == set(range(len(unbroken[0])))
  chex.assert_trees_all_equal(unbroken[2], cut[2])


@pytest.mark.parametrize('journalled', [2, 3, 4])
def test_children_of_a_step_that_was_cut_off_are_trained_again_group_by_group(journalled):
  """The prefixes of a string are a group: one that is journalled is not trained again, one in part is, all of it."""
  s, trainer = built(m=4)
  lines, state = list[dict](), s.init(jax.random.key(1))
  search.run(s, state, [search.Hook(children=lines.extend)], search.Budget(1))
  first, again = list(trainer.trained), list[dict]()
  search.run(s, state, [search.Hook(children=again.extend)], search.Budget(1), {k: lines[k] for k in range(journalled)})
  assert trainer.trained == first + first[journalled // 3 * 3 :]
  assert [line['id'] for line in again] == [line['id'] for line in lines[journalled:]]


def test_a_space_with_more_than_one_choice_a_layer_is_refused():
  with pytest.raises(ValueError, match='one choice a layer'):
    per_layer.build(space.conv_space(3), CONFIG, Trainer())


def test_a_prefix_that_failed_stays_failed_when_it_is_known():
  """Prefixes that begin with layer 1 fail; all others earn less than 0. Each is trained once and replayed often."""

  def train(batch):
    failed = batch.tokens[:, 0] == 1
    return Outcome(jnp.where(failed, 0.0, -1.0 - batch.depth), failed=failed)

  s = per_layer.build(SPACE, dataclasses.replace(CONFIG, replay=0.5, m=2, patience=5), train)
  state = s.init(jax.random.key(0))
  lines = []
  state = search.run(s, state, [search.Hook(children=lines.extend)], search.Budget(1000))
  assert {line['failed'] is None for line in lines if line['tokens'][0] == 1} == {False}
  assert float(state.best.reward) == -2.0 and state.best.tokens.tolist() == [0, 0, 0] and float(state.worst) == -4.0
  tree = state.replay.tree
  assert np.isnan(tree.reward[tree.children[0, 1]]) and float(tree.reward[tree.children[0, 0]]) == -2.0
  batch = asked(state, (1, 0, 0))
  known = batch.extra._replace(known=jnp.ones((1, 3), bool), reward=jnp.full((1, 3), jnp.nan))
  after, _ = s.tell(state, batch, per_layer.join(batch._replace(extra=known), [], []))
  assert after.best.reward == state.best.reward and float(after.algorithm.baseline.value) > -4.0
