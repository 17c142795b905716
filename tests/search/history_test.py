"""The record of the children of a search, and how it treats children that repeat an earlier one."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import testing
from testing import LAYERED, one_line

from nas_jax import search, space
from nas_jax.search import history, journal
from nas_jax.systems import cell, enas_images, table
from nas_jax.types import Batch, Outcome

SMALL = space.choice_space({'a': 'xyz', 'b': 'pq'})  # 6 token sequences


def told(kept, *children):
  """Returns the record after children (tokens, depth, id, reward); a reward of None is a reservation."""
  for tokens, depth, number, reward in children:
    trained = reward is not None
    failed = trained and not np.isfinite(reward)
    columns = jnp.array([tokens], jnp.int32), jnp.array([depth]), jnp.array([number]), jnp.array([trained])
    kept = history.insert(kept, *columns, jnp.array([reward if trained else 0.0]), jnp.array([failed]))
  return kept


def rows(kept):
  """Returns (tokens, depth, id, reward, trained, sound) of each row in use."""
  columns = [np.asarray(x)[: int(kept.size)].tolist() for x in kept[:6]]
  return [tuple(row) for row in zip(*columns, strict=True)]


def test_a_row_is_the_mean_over_its_trainings_that_did_not_fail():
  nan = float('nan')
  kept = told(
    history.empty(2, 4),
    ([1, 0], 2, 0, 3.0), ([1, 0], 2, 1, nan), ([1, 0], 1, 2, 5.0), ([0, 0], 2, 3, nan), ([1, 0], 2, 4, 6.0),
  )  # fmt: skip
  assert rows(kept) == [([1, 0], 2, 0, 4.5, 3, 2), ([1, 0], 1, 2, 5.0, 1, 1), ([0, 0], 2, 3, 0.0, 1, 0)]


def test_a_reserved_child_is_known_and_has_no_reward_until_it_is_told():
  kept = told(history.empty(1, 4), ([1], 1, 0, None))
  assert rows(kept) == [([1], 1, 0, 0.0, 0, 0)]
  assert history.are_known(kept, jnp.array([[0], [1]]), 1).tolist() == [False, True]
  assert rows(told(kept, ([1], 1, 0, 2.0))) == [([1], 1, 0, 2.0, 1, 1)]


def test_a_full_record_leaves_out_what_is_new_and_keeps_the_rest():
  kept = told(history.empty(1, 2), ([0], 1, 0, 1.0), ([1], 1, 1, 2.0), ([2], 1, 2, 9.0), ([1], 1, 3, 4.0))
  assert rows(kept) == [([0], 1, 0, 1.0, 1, 1), ([1], 1, 1, 3.0, 2, 2)]
  grown = told(history.grow(kept, 4), ([2], 1, 4, 7.0))
  assert rows(grown) == [*rows(kept), ([2], 1, 4, 7.0, 1, 1)] and len(grown.depth) == 4


def test_repeats_name_the_child_that_was_trained():
  kept = told(history.empty(1, 8), ([0], 1, 5, 2.0), ([1], 1, 6, float('nan')), ([2], 1, 7, None))
  tokens, ids = jnp.array([[3], [0], [1], [3], [2], [2]]), jnp.arange(10, 16)
  found = history.repeats(kept, tokens, 1, ids)
  # The second 3 and the second 2 repeat siblings; the first 2 is reserved, so that nothing is known of it.
  assert found.known.tolist() == [False, True, True, True, False, True]
  assert found.source.tolist() == [10, 5, 6, 10, 14, 14]
  batch = Batch(ids, None, tokens, None, repeats=found)
  given = Outcome(jnp.array([1.0, 9.0, 9.0, 9.0, 4.0, 9.0]), failed=jnp.array([True, True, False, False, False, False]))
  filled = history.fill(batch, given)
  assert filled.failed.tolist() == [True, False, True, True, False, False]
  assert filled.reward[jnp.array([1, 4, 5])].tolist() == [2.0, 4.0, 4.0]


def test_without_failures_what_a_repeat_earns_is_that_of_its_source():
  found = history.repeats(history.empty(1, 4), jnp.array([[1], [1]]), 1, jnp.array([0, 1]))
  filled = history.fill(Batch(jnp.array([0, 1]), None, None, None, repeats=found), Outcome(jnp.array([3.0, 8.0])))
  assert filled.reward.tolist() == [3.0, 3.0] and filled.failed.tolist() == [False, False]


def counting():
  """An evaluator with a new reward at each call, and the list of tokens that it was asked to train."""
  trained = list[tuple[int, ...]]()

  def evaluate(batch):
    wanted = ~np.asarray(batch.repeats.known) if batch.repeats else np.ones(len(batch.ids), bool)
    trained.extend(tuple(row) for row in np.asarray(batch.tokens)[wanted].tolist())
    return Outcome(len(trained) + jnp.arange(len(batch.ids)) / 8, {'score': np.arange(len(batch.ids)) + 0.5})

  return trained, evaluate


@functools.cache
def built(known):
  return search.ask_tell(SMALL, search.Config(m=4, algorithm='random', known=known))


def run(name, evaluate, children, known=None):
  """Returns the records of a search, and its last state."""
  s, found = built(name), list[journal.Record]()
  s = s._replace(evaluate=history.reusing(evaluate))
  hook = search.Hook(children=found.extend)
  return found, search.run(s, s.init(jax.random.key(1)), [hook], search.Budget(children), known)


def test_train_trains_each_child():
  trained, evaluate = counting()
  records, state = run('train', evaluate, 24)
  assert len(trained) == len(records) == 24 and state.history == ()
  assert not any(journal.REPEAT in record for record in records)


@pytest.mark.parametrize('known', ['reuse', 'avoid'])
def test_no_token_sequence_is_trained_twice(known):
  trained, evaluate = counting()
  records, state = run(known, evaluate, 24)
  assert len(records) == 24 and len(trained) == len(set(trained)) == 6 == int(state.history.size)
  first = {}
  for record in records:
    tokens = tuple(record['tokens'])
    if journal.REPEAT not in record:
      first[tokens] = record
      continue
    source = first[tokens]
    assert record[journal.REPEAT] == source['id'] and record['seconds'] == 0.0
    assert (record['reward'], record['score']) == (source['reward'], source['score'])
  # The six are found as soon as possible if what is known is avoided, and later if it is only not trained again.
  assert (max(record['id'] for record in first.values()) == 5) == (known == 'avoid')


def test_an_evaluator_may_return_rewards_as_a_list():
  cfg = testing.search_config(known='reuse')
  s = search.build(SMALL, cfg, lambda batch: Outcome([float(tokens.sum()) for tokens in batch.tokens]))
  state = search.run(s, s.init(jax.random.key(0)), [], search.Budget(children=12))
  assert float(state.best.reward) == state.best.tokens.sum()


def test_reuse_proposes_what_train_proposes():
  tokens = [(s := built(known)).ask(s.init(jax.random.key(3))).tokens for known in ('train', 'reuse')]
  assert (tokens[0] == tokens[1]).all()


def test_a_repeat_of_a_failed_child_has_failed_and_is_not_trained():
  trained, evaluate = counting()

  def failing(batch):
    outcome = evaluate(batch)
    return outcome._replace(failed=batch.tokens[:, 0] == 0)

  records, state = run('reuse', failing, 24)
  assert len(trained) == 6
  for record in records:
    assert (record['failed'] is not None) == (record['tokens'][0] == 0)
  repeats = [record for record in records if journal.REPEAT in record and record['failed']]
  assert repeats and all(record['reward'] == 0.0 for record in repeats)
  assert state.best.tokens[0] != 0


@pytest.mark.parametrize('known', ['reuse', 'avoid'])
def test_from_the_journal_a_search_comes_to_the_same_state(known):
  trained, evaluate = counting()
  records, state = run(known, evaluate, 24)
  again, other = run(known, evaluate, 24, {record['id']: record for record in records})
  assert again == [] and len(trained) == 6
  for a, b in zip(*(jax.tree.leaves(x._replace(key=())) for x in (state, other)), strict=True):
    np.testing.assert_array_equal(a, b)


@pytest.mark.long
def test_the_record_grows_with_the_search_and_its_size_follows_from_the_step():
  cfg = search.Config(m=200, algorithm='random', known='avoid')
  many = space.choice_space({f'slot {k}': 'abcdef' for k in range(8)})
  s = search.ask_tell(many, cfg)
  state = s.init(jax.random.key(0))
  assert len(state.history.depth) == 256
  for step in range(1, 4):
    batch = s.ask(state)
    state, info = s.tell(state, batch, jnp.arange(200.0))
    assert len(state.history.depth) == len(s.sized(s.init(jax.random.key(1)), step).history.depth)
    assert int(state.history.size) == 200 * step and int(info['repeats']) == 0
  assert len(state.history.depth) == 1024


@pytest.mark.parametrize('algorithm', ['random', 'reinforce', 'pqt', 'ppo'])
def test_children_that_are_not_told_yet_are_not_asked_for_again(algorithm):
  """With a fake delay: batches are told two asks later, the newest first."""
  cfg = search.Config(m=2, algorithm=algorithm, known='avoid', controller_units=4)
  s = search.ask_tell(space.choice_space({'a': 'pqrstu', 'b': 'xyz'}), cfg)
  state, asked, waiting = s.init(jax.random.key(0)), list[tuple[int, ...]](), list[Batch]()
  ids = list[int]()
  for _ in range(9):
    batch = s.ask(state)
    asked += [tuple(row) for row in batch.tokens.tolist()]
    ids += batch.ids.tolist()
    state = s.reserve(state, batch)
    waiting.append(batch)
    if len(waiting) == 3:
      state, _ = s.tell(state, waiting.pop(), batch.tokens.sum(1))
  assert ids == list(range(18)) and len(set(asked)) == 18
  assert int(state.history.waiting) == 2 and int(state.step) == 7
  for batch in waiting:
    state, _ = s.tell(state, batch, batch.tokens.sum(1))
  assert int(state.history.waiting) == 0 and s.spent(state) == 18
  assert (state.history.trained[:18] == 1).all() and int(state.history.size) == 18


def test_depths_are_told_apart():
  cfg = testing.search_config(m=2, algorithm='random', known='avoid', depth_start=1, depth_step=1, depth_every=4)
  s = search.ask_tell(LAYERED, cfg)
  state, seen = s.init(jax.random.key(0)), list[tuple[int, tuple[int, ...]]]()
  for _ in range(6):
    batch = s.ask(state)
    seen += [(int(batch.depth), tuple(row)) for row in batch.tokens.tolist()]
    state, _ = s.tell(state, batch, [1.0, 2.0])
  # At depth 1 there are two token sequences, so that the third and fourth child repeat them.
  assert len(set(seen)) == 10 and [depth for depth, _ in seen] == [1] * 4 + [2] * 4 + [3] * 4
  assert sorted(set(state.history.depth[:10].tolist())) == [1, 2, 3]


@pytest.mark.long
def test_whole_searches_in_one_program():
  ops = np.array(list(itertools.product(range(3), range(3), range(3))))
  cfg = table.Config(m=3, controller_units=4, controller_layers=1, known='avoid')
  s = table.build(cfg, ops, np.arange(27.0))
  states, (tokens, _) = search.run_seeds(s, jax.random.split(jax.random.key(0), 2), steps=9)
  for seed in range(2):
    assert len({tuple(row) for row in np.asarray(tokens[seed]).reshape(-1, 3).tolist()}) == 27
  assert (states.best.reward == 26.0).all()


def test_rewards_of_layers_are_refused():
  s = search.ask_tell(LAYERED, testing.search_config(known='reuse'))
  state = s.init(jax.random.key(0))
  with pytest.raises(ValueError, match=r'known=reuse.*known=train') as error:
    s.tell(state, s.ask(state), jnp.ones((3, 3)))
  one_line(error)


@pytest.mark.long
@pytest.mark.parametrize('program', ['generic', 'specialised'])
def test_children_that_train_leave_out_those_that_repeat(program):
  """The reward of a child does not depend on whether its neighbour in the batch is trained."""
  cfg = testing.cell_config(m=3, known='reuse', child_program=program)
  s = cell.build(cfg, testing.text())
  batch = s.ask(s.init(jax.random.key(0)))
  tokens = batch.tokens.at[1].set(batch.tokens[0])
  batch = batch._replace(tokens=tokens, archs=s.space.decode_batch(tokens))
  whole = s.evaluate(batch._replace(repeats=None))
  known = history.repeats(history.empty(s.space.length), tokens, 1, batch.ids)
  assert known.known.tolist() == [False, True, False]
  part = s.evaluate(batch._replace(repeats=known))
  assert part.reward[jnp.array([0, 2])].tolist() == whole.reward[jnp.array([0, 2])].tolist()
  assert part.reward[1] == whole.reward[0] != whole.reward[1]
  assert part.metrics['failed'].tolist() == [0, 1, 0] and not part.failed.any()


def test_searches_that_share_weights_refuse_it():
  cfg = dataclasses.replace(testing.macro_config(), known='avoid')
  with pytest.raises(ValueError, match='known .*share weights') as error:
    enas_images.make_problem(cfg, testing.pictures())
  one_line(error)
