"""Children that share weights: phases, search, resuming, deriving. The children are tree cells."""

import functools
import itertools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import testing

from experiments.common import run_search
from nas_jax import search, space
from nas_jax.children import language_model
from nas_jax.datasets import text_batches
from nas_jax.search import journal, weight_sharing
from nas_jax.systems import enas, enas_rnn
from nas_jax.training import checkpoint, fit, layout
from nas_jax.training import child as child_lib
from nas_jax.training.problem import Problem
from nas_jax.types import Outcome

SPACE = space.tree_cell_space(2)
DATA = text_batches.lay_out(testing.text(), 3, 5, 4)
SETTINGS = language_model.Hyperparameters(0.1, 4.0, 0.1, 0.5)
STEPS = len(DATA.train)


def config(**changes) -> weight_sharing.Config:
  small = {'m': 2, 'passes': 3, 'controller_updates': 2, 'derive_children': 5, 'controller_units': 4}
  return weight_sharing.Config(**(small | {'controller_layers': 1, 'controller_lr': 0.02} | changes))


def child():
  network = language_model.build(5, 4, 1, 3, language_model.tree())
  return child_lib.bind_arch(network, lambda arch: language_model.ChildSpec(arch, SETTINGS))


def problem(optimizer=None) -> Problem:
  def minibatch(data, key):
    return enas_rnn.part_of(data, 2, key)

  made = optimizer or optax.sgd(0.5)
  return Problem(
    SPACE,
    child(),
    DATA,
    lambda steps: lambda arch: made,
    steps=STEPS,
    pass_steps=STEPS,
    steps_per_call=STEPS,
    metric='perplexity',
    reward=lambda found: 1.0 / found,
    minibatch=minibatch,
  )


@pytest.fixture(scope='module')
def programs():
  return enas.build_programs(problem(), config())


@pytest.fixture(scope='module')
def s(programs):
  return enas.build(problem(), config(), programs)


def archs(*shape, seed=0):
  """Returns traced cells [*shape]."""
  keys = jax.random.split(jax.random.key(seed), shape)
  draw = lambda key: jax.random.randint(key, (SPACE.length,), 0, 2)  # noqa: E731 - two labels are in every slot
  for _ in shape:
    draw = jax.vmap(draw)
  return SPACE.decode_batch(draw(keys))


def weights_of(state):
  return jax.tree.leaves((state.children.params, state.children.opt_state, state.children.carry))


def same(a, b):
  return all(np.array_equal(x, y) for x, y in zip(weights_of(a), weights_of(b), strict=True))


@pytest.mark.long
def test_a_pass_is_a_step_for_each_child(programs):
  """Compared with the steps written out one by one."""
  start, cells, key = programs.init(jax.random.key(1)), archs(STEPS, 1), jax.random.key(2)
  found = programs.learn(start, cells, key)
  params, carry, optimizer = start.params, start.carry, optax.sgd(0.5)
  opt_state, one = optimizer.init(params), child()
  value_and_grad = jax.jit(jax.value_and_grad(one.loss, has_aux=True))
  for step in range(3):
    arch = jax.tree.map(lambda x, step=step: x[step, 0], cells)
    batch = one.batch(DATA, key, jnp.asarray(step))
    (loss, carry), grads = value_and_grad(params, arch, carry, batch, key)
    updates, opt_state = optimizer.update(grads, opt_state)
    params = optax.apply_updates(params, updates)
  some = programs.learn(start, cells, key)  # pure: the start was not used up
  short = jax.tree.map(lambda x: x[:3], cells)
  after = programs.learn(start, short, key)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), after.params, params)
  np.testing.assert_allclose(after.loss, loss, rtol=1e-5)
  assert int(found.step) == STEPS and int(found.failed) == 0 and int(after.step) == 3
  jax.tree.map(np.testing.assert_array_equal, some, found)


@pytest.mark.long
def test_a_minibatch_may_be_averaged_over_children(programs):
  """M = 2: the step is along the mean of two gradients; the second child begins with the carry of the first."""
  start, cells, key, one = programs.init(jax.random.key(1)), archs(1, 2), jax.random.key(2), child()
  batch, carry, grads = one.batch(DATA, key, jnp.asarray(0)), start.carry, []
  gradient = jax.jit(jax.grad(one.loss, has_aux=True))
  for k in range(2):
    arch = jax.tree.map(lambda x, k=k: x[0, k], cells)
    found, carry = gradient(start.params, arch, carry, batch, key)
    grads.append(found)
  after = programs.learn(start, cells, key)
  wanted = jax.tree.map(lambda p, a, b: p - 0.5 * (a + b) / 2, start.params, *grads)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), after.params, wanted)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), after.carry, carry)


def test_a_step_that_is_not_finite_is_left_out():
  """One child in two overflows: the weights stay as they are for its steps, and are trained in the others."""
  plain = child()

  def loss(params, arch, carry, batch, key):
    value, carry = plain.loss(params, arch, carry, batch, key)
    return jnp.where(arch.combine[0] == 0, jnp.inf, value), carry

  one = problem()._replace(child=plain._replace(loss=loss))
  made = enas.build_programs(one, config())
  start, cells = made.init(jax.random.key(1)), archs(6, 1)
  bad = np.asarray(cells.combine)[:, 0, 0] == 0
  assert 0 < bad.sum() < 6
  after = made.learn(start, cells, jax.random.key(2))
  assert int(after.failed) == bad.sum() and int(after.step) == 6
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(after.params))
  only_bad = jax.tree.map(lambda x: x[bad], cells)
  still = made.learn(start, only_bad, jax.random.key(2))
  jax.tree.map(np.testing.assert_array_equal, still.params, start.params)


def test_the_gradient_is_clipped():
  """The length of a step of plain SGD is at most the rate times the clipping norm."""
  one = problem(optax.chain(optax.clip_by_global_norm(1e-3), optax.sgd(0.5)))
  made = enas.build_programs(one, config())
  start = made.init(jax.random.key(1))
  after = made.learn(start, archs(1, 1), jax.random.key(2))
  moved = optax.tree.norm(jax.tree.map(lambda a, b: a - b, after.params, start.params))
  np.testing.assert_allclose(moved, 0.5e-3, rtol=1e-3)


def test_scores_are_those_of_each_child_and_of_any_number_of_devices(programs):
  weights, cells, key = programs.init(jax.random.key(1)), archs(3), jax.random.key(3)
  found = programs.score(weights, cells, key)
  part, score = enas_rnn.part_of(DATA, 2, key), jax.jit(child().score)
  for k in range(3):
    arch = jax.tree.map(lambda x, k=k: x[k], cells)
    wanted = score(weights.params, arch, weights.carry, part)['perplexity']
    np.testing.assert_allclose(found['shared_perplexity'][k], wanted, rtol=1e-6)
  assert found['failed'].tolist() == [0, 0, 0] and set(found) == {'shared_perplexity', 'failed'}
  alone = enas.build_programs(problem(), config(), layout.child_mesh(jax.devices()[:1]))
  np.testing.assert_array_equal(alone.score(weights, cells, key)['shared_perplexity'], found['shared_perplexity'])


def test_phases_alternate(s, programs):
  """Weights change before every second update, the controller at each update. Each phase is one program."""
  states, before = [s.init(jax.random.key(0))], programs.compilations()
  for _ in range(4):
    batch = s.ask(states[-1])
    outcome = s.evaluate(batch)
    states.append(s.tell(states[-1], batch, outcome)[0])
    assert outcome.metrics['shared_perplexity'].shape == (2,) and 'perplexity' not in outcome.metrics
  assert [same(a, b) for a, b in itertools.pairwise(states)] == [False, True, False, True]
  assert int(states[-1].children.step) == 2 * STEPS
  thetas = [jax.tree.leaves(state.algorithm.theta)[0] for state in states]
  assert all((a != b).any() for a, b in itertools.pairwise(thetas))
  after = programs.compilations()
  assert all(after[name] <= before[name] + 1 for name in after)  # or none, where another test had them compiled


def test_updates_of_one_program_are_those_one_by_one(s):
  """`updates` asks for the same children as `ask`, `evaluate` and `tell`, with numbers equal up to rounding."""
  start = s.init(jax.random.key(0))
  first = s.updates(start, 5)
  assert len(first) == 2, 'no more than come before the next pass'
  (third,) = s.updates(first[-1].state, 1)
  state = start
  for update in (*first, third):
    batch = s.ask(state)
    outcome = s.evaluate(batch)
    state, info = s.tell(state, batch, outcome)
    np.testing.assert_array_equal(update.batch.tokens, batch.tokens)
    np.testing.assert_array_equal(update.batch.ids, batch.ids)
    np.testing.assert_allclose(update.outcome.reward, outcome.reward, rtol=1e-5)
    assert set(update.outcome.metrics) == set(outcome.metrics) and set(update.info) == set(info)
    for name, value in outcome.metrics.items():
      np.testing.assert_allclose(update.outcome.metrics[name], value, rtol=1e-5)
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
      update.state._replace(key=0),
      state._replace(key=0),
    )


def test_updates_in_parts_are_the_same_to_the_bit(s):
  """The result does not depend on how many updates one call makes: here two, or one and one."""
  start = s.init(jax.random.key(0))
  both = s.updates(start, 2)
  (one,) = s.updates(start, 1)
  (other,) = s.updates(one.state, 1)
  for a, b in zip(both, (one, other), strict=True):
    jax.tree.map(np.testing.assert_array_equal, a.state._replace(key=0), b.state._replace(key=0))
    np.testing.assert_array_equal(a.outcome.reward, b.outcome.reward)


@pytest.mark.parametrize('limit', ['reward', 'seconds'])
def test_a_limit_within_a_program_ends_the_search_there(s, limit):
  """Updates that a program made beyond the limit are discarded: neither journal nor state has them."""
  start, lines, states = s.init(jax.random.key(0)), [], []
  first = s.updates(start, 2)[0]
  hook = search.Hook(children=lines.extend, step=lambda state, info: states.append(int(state.step)))
  limits = {'reward': float(first.state.best.reward)} if limit == 'reward' else {'seconds': 1e-9}
  state = search.run(s, start, [hook], search.Budget(100, **limits))
  assert int(state.step) == 1 and [line['id'] for line in lines] == [0, 1] and states == [1]


def test_a_time_limit_ends_a_resumed_search_where_the_journal_says(s):
  """Four children took one second each and the limit is 3 s: both updates count, and they are repeated."""
  start, lines = s.init(jax.random.key(0)), []
  search.run(s, start, [search.Hook(children=lines.extend)], search.Budget(4))
  known, again = {line['id']: {**line, 'seconds': 1.0} for line in lines}, []
  state = search.run(s, start, [search.Hook(children=again.extend)], search.Budget(100, seconds=3.0), known)
  assert len(known) == 4 and int(state.step) == 2 and again == []


def test_rewards_of_ones_own_leave_the_weights(s):
  state = s.init(jax.random.key(0))
  after, _ = s.tell(state, s.ask(state), Outcome(jnp.array([0.5, 1.0])))
  assert same(state, after)


def test_derived_is_the_best_first_on_the_whole_split(s, programs):
  state, one = s.init(jax.random.key(0)), problem()
  batch = s.ask(state)
  state, _ = s.tell(state, batch, s.evaluate(batch))
  made = functools.partial(
    weight_sharing.derive, SPACE, s.algorithm, programs, state, one.shared_reward, jax.random.key(5), 5
  )
  found, by_fives, score = made(2), made(5), jax.jit(child().score)
  assert [one.reward for one in found] == sorted((one.reward for one in found), reverse=True)
  assert sorted(one.place for one in found) == [0, 1, 2, 3, 4]
  for a, b in zip(found, by_fives, strict=True):
    assert (a.tokens == b.tokens).all() and a.reward == pytest.approx(b.reward, rel=1e-6)
    arch = jax.tree.map(lambda x: x[0], SPACE.decode_batch(jnp.asarray(a.tokens)[None]))
    wanted = score(state.children.params, arch, state.children.carry, DATA)['perplexity']
    assert a.metrics == {'shared_perplexity': pytest.approx(float(wanted), rel=1e-5)}


def test_derived_that_cannot_be_scored_are_last_and_say_why(s, programs):
  def half_fail(weights, archs):
    del weights
    bad = np.arange(len(archs[0])) % 2 == 0
    return {'shared_perplexity': np.where(bad, np.nan, 5.0), 'failed': np.where(bad, fit.Status.NOT_FINITE, 0)}

  broken, state = programs._replace(score_all=half_fail), s.init(jax.random.key(0))
  found = weight_sharing.derive(SPACE, s.algorithm, broken, state, problem().shared_reward, jax.random.key(5), 4, 2)
  assert [one.failed for one in found] == [None, None] + ['loss or gradient not finite'] * 2
  assert found[0].reward > 0 and [one.place for one in found] == [1, 3, 0, 2]


@pytest.mark.filterwarnings('ignore::DeprecationWarning')
def test_cut_off_it_goes_on_as_if_unbroken(s, tmp_path, monkeypatch):
  """Children of a journal ahead of the checkpoint train the weights again, and are not journalled twice."""

  def run(folder, children):
    return run_search.run(str(tmp_path / folder), s, 0, search.Budget(children))

  def lines(folder):
    text = (tmp_path / folder / 'children.jsonl').read_text()
    return [json.loads(line) | {'seconds': 0, journal.CHECKSUM: ''} for line in text.splitlines()]

  run('unbroken', 12)
  run('broken', 4)

  class Cut(Exception):
    pass

  def stop(*args):
    raise Cut

  whole = search.run

  def cut(search_, state, hooks, budget, known):
    stopping = search.Hook(step=lambda state, info: stop() if int(state.step) == 5 else None, vital=True)
    return whole(
      search_, state, [hook for hook in hooks if not hook.step.__name__ == 'keep'] + [stopping], budget, known
    )

  monkeypatch.setattr(search, 'run', cut)
  with pytest.raises(Cut):
    run('broken', 12)  # dies at the fifth update: the checkpoint is of the second, the program made the sixth too
  monkeypatch.undo()
  assert len(lines('broken')) == 12
  run('broken', 12)
  assert lines('broken') == lines('unbroken') and [line['id'] for line in lines('broken')] == list(range(12))
  updates = [journal.read(str(tmp_path / name / 'updates.jsonl'), by='step') for name in ('broken', 'unbroken')]
  assert updates[0] == updates[1] and len(updates[0]) == 6
  ends = [restored(s, tmp_path / name) for name in ('broken', 'unbroken')]
  assert same(*ends) and int(ends[0].children.step) == 3 * STEPS


def restored(s, folder):
  return checkpoint.restore(str(folder / 'checkpoints'), s.init(jax.random.key(9)))


def test_a_child_that_failed_earns_nothing():
  metrics = {'shared_perplexity': np.array([2.0, np.nan, np.inf]), 'failed': np.array([0, 2, 2])}
  assert weight_sharing.earned(metrics, problem().shared_reward).tolist() == [0.5, 0.0, 0.0]


def test_a_journal_of_another_search_is_refused(s, tmp_path):
  run_search.run(str(tmp_path), s, 0, search.Budget(4))
  text = (tmp_path / 'children.jsonl').read_text()
  first = json.loads(text.splitlines()[0])
  del first[journal.CHECKSUM]
  wrong = first | {'tokens': [1 - min(first['tokens'][0], 1), *first['tokens'][1:]]}
  (tmp_path / 'children.jsonl').write_text(journal.encode(wrong) + '\n')
  shutil.rmtree(tmp_path / 'checkpoints')
  with pytest.raises(ValueError, match='of another search'):
    run_search.run(str(tmp_path), s, 0, search.Budget(4))
