"""Asynchronous replicas against the synchronous search, sums by hand, and other layouts of themselves."""

import itertools

import jax
from jax.flatten_util import ravel_pytree
import jax.numpy as jnp
import numpy as np
import pytest
import testing

from nas_jax import replicas, search, space
from nas_jax.search import per_layer
from nas_jax.search.algorithms import ALGORITHMS
from nas_jax.systems import cell
from nas_jax.types import Outcome

KEY = jax.random.key(0)


@jax.jit
def reward(tokens, keys):
  return jnp.sin(tokens @ jnp.array([1.7, 0.3, 2.1])) + 0.1 * jax.vmap(jax.random.uniform)(keys)


def rewarded(**changes):
  """Returns a search whose rewards are a function of tokens and keys."""

  def evaluate(batch):
    return Outcome(reward(batch.tokens, batch.keys))

  cfg = testing.search_config(**({'m': 2, 'controller_lr': 0.05} | changes))
  return search.build(testing.SPACES['choice'], cfg, evaluate)


@pytest.fixture(scope='module')
def s():
  return rewarded()


@pytest.fixture(scope='module')
def machine(s):
  """Three replicas, and an update from every two gradients."""
  return replicas.build(s, 3, accumulate=2)


def told(machine, order, fleet=None):
  """Returns the fleets, batches and infos when replicas answer in this order."""
  fleets, batches, infos = [fleet or machine.init(KEY)], [], []
  for r in order:
    batches.append(machine.ask(fleets[-1], r))
    fleet, info = machine.tell(fleets[-1], r, batches[-1], machine.search.evaluate(batches[-1]))
    fleets.append(fleet)
    infos.append(info)
  return fleets, batches, infos


def flat(tree):
  return np.asarray(ravel_pytree(tree)[0])


def same(one, other):
  """Whether two fleets are equal to the bit."""
  leaves = [jax.tree.leaves(fleet._replace(server=fleet.server._replace(key=()))) for fleet in (one, other)]
  return all((np.asarray(a) == np.asarray(b)).all() for a, b in zip(*leaves, strict=True))


@pytest.mark.parametrize(
  ('algorithm', 'updates'),
  [
    (name, 200) if name == 'reinforce' else pytest.param(name, 10, marks=pytest.mark.long if name != 'random' else ())
    for name in ALGORITHMS
  ],
)
def test_one_replica_writes_what_the_search_writes(algorithm, updates):
  """The two are different programs, so their parameters are equal only up to rounding."""
  s, tokens, states = rewarded(algorithm=algorithm), [], []
  for each in (s, replicas.simulated(replicas.build(s, 1))):
    found = []
    hook = search.Hook(children=lambda lines, found=found: found.extend(line['tokens'] for line in lines))
    states.append(search.run(each, each.init(KEY), [hook], search.Budget(2 * updates)))
    tokens.append(found)
  state, fleet = states
  assert tokens[0] == tokens[1] and len(tokens[0]) == 2 * updates and len(set(map(tuple, tokens[0][-50:]))) > 1
  assert fleet.best.reward == state.best.reward and fleet.server.worst == state.worst
  if s.gradient:
    assert not np.allclose(flat(state.algorithm.theta), flat(s.init(KEY).algorithm.theta), atol=1e-3 * updates / 10)
    np.testing.assert_allclose(fleet.server.algorithm.theta.reshape(-1), flat(state.algorithm.theta), atol=1e-3)


def test_n_gradients_at_the_parameters_they_were_sampled_with_make_an_update(s, machine):
  """Answers 0 and 1 make the first update. Answers 2 and 3 were asked for before it, and make the second."""
  fleets, batches, infos = told(machine, (2, 0, 1, 2, 0))
  start = s.init(KEY)
  base, gradients, outcomes = start, [], [s.evaluate(batch) for batch in batches]
  for batch, outcome in zip(batches[:4], outcomes, strict=False):
    sampled = base._replace(algorithm=base.algorithm._replace(theta=start.algorithm.theta))
    gradients.append(s.gradient(sampled, batch, outcome))
    base, _ = s.apply(base, gradients[-1], batch, outcome)  # for its baseline, which moves with each answer
  after = start
  for i in (0, 2):
    mean = jax.tree.map(lambda a, b: (a + b) / 2, *gradients[i : i + 2])
    after, _ = s.apply(after, mean, batches[i], outcomes[i])
  assert (fleets[1].server.algorithm.theta == fleets[0].server.algorithm.theta).all()
  np.testing.assert_allclose(fleets[4].server.algorithm.theta.reshape(-1), flat(after.algorithm.theta), atol=2e-6)
  np.testing.assert_allclose(fleets[4].server.algorithm.baseline.value, base.algorithm.baseline.value, rtol=1e-6)

  assert [fleet.waiting.item() for fleet in fleets] == [0, 1, 0, 1, 0, 1]
  assert [fleet.versions.item() for fleet in fleets] == [0, 0, 1, 1, 2, 2]
  assert [info['staleness'].item() for info in infos] == [0, 0, 1, 1, 1]
  assert [batch.ids.tolist() for batch in batches] == [[4, 5], [0, 1], [2, 3], [6, 7], [8, 9]]
  assert fleets[-1].numbers.tolist() == [7, 5, 6] and int(fleets[-1].step) == 5
  best = max(zip(batches, outcomes, strict=True), key=lambda pair: pair[1].reward.max())
  assert fleets[-1].best.id == best[0].ids[best[1].reward.argmax()]


def test_an_answer_that_arrives_twice_counts_once(machine):
  fleets, batches, _ = told(machine, (1, 0))
  again, info = machine.tell(fleets[-1], 1, batches[0], machine.search.evaluate(batches[0]))
  assert again is fleets[-1] and info == {}
  assert machine.ask(again, 1).ids.tolist() == [6, 7]


def test_a_batch_is_the_same_whenever_it_is_asked_for(machine):
  """So another worker or a resumed process can train it."""
  fleets, batches, _ = told(machine, (0, 1, 0))
  first, later = machine.ask(fleets[0], 2), machine.ask(fleets[-1], 2)
  assert first.tokens.tolist() == later.tokens.tolist() and first.ids.tolist() == later.ids.tolist() == [4, 5]
  assert (jax.random.key_data(first.keys) == jax.random.key_data(later.keys)).all()
  assert first.tokens.tolist() != batches[2].tokens.tolist()


@pytest.mark.long
def test_ppo_compares_with_the_policy_that_proposed_a_child():
  """Seven replicas answer in turn, each with parameters that are six updates old."""
  search_of_ppo = rewarded(algorithm='ppo', ppo_batches=2, m=1, controller_lr=0.3)
  fleets, batches, _ = told(replicas.build(search_of_ppo, 7), [n % 7 for n in range(20)])
  log_prob, asked = search_of_ppo.algorithm.log_prob, search_of_ppo.init(KEY).algorithm

  def under(fleet, theta):
    shapes = ravel_pytree(asked.theta)[1]
    return log_prob(asked._replace(theta=shapes(flat(theta)[: len(flat(asked.theta))])), batches[-1])

  # The last answer is of replica 5, which has read the parameters after its answer before.
  proposed, now = under(fleets[-2], fleets[-2].held[5]), under(fleets[-2], fleets[-2].server.algorithm.theta)
  kept = fleets[-1].server.algorithm.recent.log_prob[-1:]
  np.testing.assert_allclose(kept, proposed, rtol=1e-5)
  assert np.abs(kept - now).max() > 0.01


def test_shards_change_nothing_if_all_receive_every_gradient(s):
  """Bit-identical, for numbers of shards that divide the parameters and for one that does not."""
  fleets = [
    told(replicas.build(s, 3, 2, shards), itertools.islice(itertools.cycle((2, 0, 1)), 9))[0][-1]
    for shards in (1, 2, 20)
  ]
  size = flat(s.init(KEY).algorithm.theta).size
  assert size % 20
  for fleet, shards in zip(fleets, (1, 2, 20), strict=True):
    own = fleet.server.algorithm
    assert own.theta.shape[0] == shards and fleet.versions.tolist() == [4] * shards
    assert (own.theta.reshape(-1)[:size] == fleets[0].server.algorithm.theta[0]).all()
    for cut, whole in zip(
      jax.tree.leaves(own.opt_state), jax.tree.leaves(fleets[0].server.algorithm.opt_state), strict=True
    ):
      assert (cut.reshape(-1)[:size] == whole[0]).all() if cut.ndim > 1 else (cut == whole[0]).all()


@pytest.mark.long
def test_a_shard_that_is_late_takes_each_gradient_once_and_in_order(s):
  late, prompt = (told(replicas.build(s, 2, 1, 2, lags=lags), (0, 1, 0, 1))[0] for lags in ((0, 2), None))
  assert [fleet.versions.tolist() for fleet in late] == [[0, 0], [1, 0], [2, 0], [3, 1], [4, 2]]
  first, second = (late[i].server.algorithm.theta for i in (1, 3))
  assert (first[0] == prompt[1].server.algorithm.theta[0]).all()  # until then both have sampled the same
  np.testing.assert_allclose(second[1], prompt[1].server.algorithm.theta[1], atol=1e-7)
  assert late[3].seen.tolist() == [[3, 1], [2, 0]]


def test_whoever_ends_first_answers_next(s):
  """The times of the two children of each batch are drawn from the seed, and the slower child counts."""

  def delay(key):
    return 1.0 + jax.random.uniform(key)

  simulated = replicas.simulated(replicas.build(s, 3, delay=delay))
  key = jax.random.fold_in(s.init(KEY).key, np.uint32(2**32 - 1))
  spent = [max(map(float, map(delay, jax.random.split(jax.random.fold_in(key, number), 2)))) for number in range(9)]
  ends, numbers, wanted = spent[:3], [0, 1, 2], []
  for event in range(6):
    r = int(np.argmin(ends))
    wanted.append((numbers[r], ends[r]))
    numbers[r], ends[r] = event + 3, ends[r] + spent[event + 3]
  fleet, found = simulated.init(KEY), []
  for _ in range(6):
    batch = simulated.ask(fleet)
    found.append((batch.ids[0].item() // 2, batch.extra.time.item()))
    fleet, _ = simulated.tell(fleet, batch, simulated.evaluate(batch))
  assert [number for number, _ in found] == [number for number, _ in wanted] != sorted(number for number, _ in wanted)
  np.testing.assert_allclose([time for _, time in found], [time for _, time in wanted], rtol=1e-6)
  assert simulated.spent(fleet) == 12 and simulated.over(fleet, 12) and not simulated.over(fleet, 13)


@pytest.mark.long
def test_many_seeds_in_one_program_are_the_loop_for_each(machine):
  simulated = replicas.simulated(machine)
  keys = jax.random.split(jax.random.key(3), 2)
  fleets, (tokens, outcomes) = search.run_seeds(simulated, keys, 12)
  for k in range(2):
    lines = []
    state = search.run(simulated, simulated.init(keys[k]), [search.Hook(children=lines.extend)], search.Budget(24))
    assert tokens[k].reshape(24, -1).tolist() == [line['tokens'] for line in lines]
    for name in ('replica', 'event', 'staleness'):
      assert outcomes.metrics[name][k].reshape(-1).tolist() == [line[name] for line in lines]
    np.testing.assert_allclose(fleets.server.algorithm.theta[k], state.server.algorithm.theta, atol=1e-5)


def test_random_search_is_asked_in_another_order_for_the_same_children():
  """It has no gradient; a replica holds all of its state."""
  s = rewarded(algorithm='random')
  fleets, batches, _ = told(replicas.build(s, 3, accumulate=5, shards=7), (2, 0, 2, 1))
  state, tokens = s.init(KEY), {}
  for _ in range(4):
    batch = s.ask(state)
    tokens |= dict(zip(batch.ids.tolist(), batch.tokens.tolist(), strict=True))
    state, _ = s.tell(state, batch, s.evaluate(batch))
  for batch in batches:
    assert batch.tokens.tolist() == [tokens[number] for number in batch.ids.tolist()]
  assert int(fleets[-1].step) == 4 and fleets[-1].server.algorithm.seen == 8


def test_the_view_is_a_state_of_the_search(s, machine):
  fleet = told(machine, (0, 1, 2))[0][-1]
  view = machine.view(fleet)
  assert jax.tree.structure(view.algorithm.theta) == jax.tree.structure(s.init(KEY).algorithm.theta)
  assert (flat(view.algorithm.theta) == fleet.server.algorithm.theta[0]).all()
  keys = jax.random.split(KEY, 3)
  for one, other in zip(
    s.policy_summary(view, keys), replicas.simulated(machine).policy_summary(fleet, keys), strict=True
  ):
    assert (one == other).all()


def test_replicas_of_the_papers_cells_need_their_parameters_once_each():
  """There are 400 replicas. Only shapes are computed."""
  s = search.ask_tell(space.tree_cell_space(8), cell.paper())
  machine = replicas.build(s, 400, 10, 20)
  fleet = jax.eval_shape(machine.init, KEY)
  parameters = sum(x.size for x in jax.tree.leaves(jax.eval_shape(s.init, KEY).algorithm.theta))
  size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(fleet._replace(server=fleet.server._replace(key=()))))
  assert 400 * 4 * parameters < size < 406 * 4 * parameters < 100e6


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ((0,), 'at least 1'),
    ((1, 0), 'at least 1'),
    ((1, 1, 10**6), 'more than the controller has'),
    ((1, 1, 2, replicas.lognormal, (1,)), 'each of 2 shards'),
  ],
)
def test_numbers_that_do_not_fit_are_refused(s, arguments, message):
  with pytest.raises(ValueError, match=message) as error:
    replicas.build(s, *arguments)
  testing.one_line(error)


def test_children_that_are_not_trained_by_themselves_are_refused(s):
  chain = space.chain_space(('conv 2 3 1', 'max pool 2 2'), 2)
  for each in (s._replace(shared=True), per_layer.build(chain, per_layer.Config(), lambda batch: None)):
    with pytest.raises(ValueError, match='train by themselves'):
      replicas.build(each, 2)
