"""Hosts that exchange data by a dict: data arrives unchanged, and results are bit-identical to those of one host."""

import concurrent.futures
import functools
import itertools
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import testing

from experiments.common import recovery_files
from nas_jax import arrays, hosts
from nas_jax.search.per_layer import Group
from nas_jax.systems import cell, chain, conv
from nas_jax.training import evaluators, layout
from nas_jax.types import Batch, Outcome, Repeats

TEXT, IMAGES = testing.text(), testing.pictures()


# -- trees of arrays as bytes ------------------------------------------------------------------------------------


def test_a_tree_comes_back_as_it_was():
  keys = jax.random.split(jax.random.key(3), 2)
  tree = ('x', {'half': jnp.asarray([1.5, -2], jnp.bfloat16), 'none': None}, Group(4, 7), [True, 2.5], (), keys)
  found = arrays.unpack(arrays.pack(tree), [Group])
  assert found[0] == 'x' and found[2] == Group(4, 7) and type(found[2]) is Group and found[3] == [True, 2.5]
  assert found[1]['none'] is None and found[1]['half'].dtype == jnp.bfloat16 and found[1]['half'].tolist() == [1.5, -2]
  assert found[4] == () and jnp.array_equal(jax.random.key_data(found[5]), jax.random.key_data(keys))


def test_what_is_damaged_or_unknown_is_refused():
  content = arrays.pack(Group(1, 2))
  for place in (0, 40, len(content) - 1):
    broken = bytearray(content)
    broken[place] ^= 1
    with pytest.raises(ValueError, match='digest'):
      arrays.unpack(bytes(broken), [Group])
  with pytest.raises(ValueError, match='digest'):
    arrays.unpack(content[:-1], [Group])
  with pytest.raises(ValueError, match='a Group, which is none of Batch'):
    arrays.unpack(content, [Batch])
  with pytest.raises(ValueError, match='[Pp]ickle'):  # Python objects are not sent at all
    arrays.pack(np.array([print]))


# -- hosts over a dict -------------------------------------------------------------------------------------------


def group(processes):
  """Returns hosts that share a dict."""
  store, changed = {}, threading.Condition()

  def put(key, value):
    with changed:
      store[key] = value
      changed.notify_all()

  def get(key):
    with changed:
      assert changed.wait_for(lambda: key in store, timeout=120), key
      return store[key]

  return store, [hosts.Hosts(k, processes, put, get, store.pop, itertools.count()) for k in range(processes)]


def together(*calls):
  """Returns the results or errors of calls that run at the same time, each in a thread."""
  with concurrent.futures.ThreadPoolExecutor(len(calls)) as threads:
    found = [threads.submit(call) for call in calls]
    return [one.exception() or one.result() for one in found]


def batch_of(m, **changes):
  ids = jnp.arange(m, dtype=jnp.int32)
  return Batch(ids, jax.random.split(jax.random.key(0), m), ids[:, None], Group(ids, 2 * ids))._replace(**changes)


@pytest.mark.parametrize(
  ('m', 'count', 'uniform', 'wanted'),
  [
    (4, 2, True, [[0, 1], [2, 3]]),
    (5, 2, True, [[0, 1, 2], [3, 4, 4]]),
    (5, 2, False, [[0, 1, 2], [3, 4]]),
    (5, 4, True, [[0, 1], [2, 3], [4, 4], []]),
    (1, 3, True, [[0], [], []]),
    (3, 1, True, [[0, 1, 2]]),
  ],
)
def test_shares(m, count, uniform, wanted):
  parts = [hosts.share(batch_of(m, depth=jnp.arange(m)), k, count, uniform) for k in range(count)]
  assert [part.ids.tolist() for part in parts] == wanted
  for part in parts:
    assert part.tokens[:, 0].tolist() == part.depth.tolist() == part.archs.string.tolist() == part.ids.tolist()
    assert (part.archs.length == 2 * part.ids).all()
    data = jax.random.key_data(batch_of(m).keys)[part.ids]
    assert jnp.array_equal(jax.random.key_data(part.keys), data)
  assert hosts.share(batch_of(3, depth=2), 0, 2, True).depth == 2


def test_outcomes_are_joined_without_the_copies():
  """All children of the second share failed, so it has no metric except the status."""
  first = Outcome(
    jnp.float32([1, 2, 3]), {'failed': np.zeros(3, int), 'loss': np.float32([4, 5, 6])}, (), jnp.zeros(3, bool)
  )
  second = Outcome(jnp.float32([7, 8, 9]), {'failed': np.full(3, 4)}, (), jnp.array([False, True, True]))
  found = hosts.join([first, second], 5, 3)
  assert found.reward.tolist() == [1, 2, 3, 7, 8] and found.failed.tolist() == [False] * 4 + [True]
  assert found.metrics['failed'].tolist() == [0, 0, 0, 4, 4]
  assert found.metrics['loss'][:3].tolist() == [4, 5, 6] and np.isnan(found.metrics['loss'][3:]).all()
  # A host without a child sends nothing.
  assert hosts.join([first._replace(reward=jnp.float32([1]))], 1, 1).reward.tolist() == [1]


@pytest.mark.parametrize('facts', [[{'m': 2}, {'m': 2}, {'m': 2}], [{'m': 2}, {'m': 3}, {'m': 2, 'lr': 0.5}]])
def test_all_hosts_learn_whether_they_agree(facts):
  found = together(*(functools.partial(hosts.agree, one, fact) for one, fact in zip(group(3)[1], facts)))
  if facts[0] == facts[1]:
    assert found == [None] * 3
  else:
    assert {type(error) for error in found} == {ValueError} and len({str(error) for error in found}) == 1
    assert 'm (2 on host 0, 3 on host 1), lr (None on host 0, 0.5 on host 2)' in str(found[0])


def test_all_hosts_take_what_host_0_reads():
  read = [functools.partial(dict, host=k) for k in range(3)]
  found = together(
    *(functools.partial(hosts.from_host_0, one, 'saved', value) for one, value in zip(group(3)[1], read))
  )
  assert found == [{'host': 0}] * 3


def test_one_host_agrees_with_itself():
  hosts.agree(hosts.ALONE, {'m': 2})
  assert hosts.from_host_0(hosts.ALONE, 'saved', lambda: {'m': 2}) == {'m': 2}


def test_a_host_trains_only_what_is_its_own_and_nothing_stays_in_the_store():
  seen, (store, (leader, *others)) = {}, group(3)

  def own(host):
    def evaluate(batch):
      seen.setdefault(host, []).append(batch.ids.tolist())
      return Outcome(batch.tokens.sum(1).astype(float), {}, (), batch.ids > 2)

    return {'children': evaluate, 'longer': lambda batch: evaluate(batch)._replace(reward=batch.ids + 0.5)}

  def search():
    train = hosts.lead(leader, own(0), uniform=False)
    first = train['children'](batch_of(5))
    second = train['longer'](batch_of(1))
    hosts.dismiss(leader)
    return first, second

  serving = [functools.partial(hosts.serve, one, own(one.process), Group) for one in others]
  (first, second), *_ = together(search, *serving)
  assert first.reward.tolist() == [0, 1, 2, 3, 4] and first.failed.tolist() == [False] * 3 + [True] * 2
  assert second.reward.tolist() == [0.5]
  assert seen == {0: [[0, 1], [0]], 1: [[2, 3]], 2: [[4]]}
  assert store == {'task/2': b''}


def test_a_host_that_is_to_end_does_not_wait_for_the_others():
  def lost(key):
    raise hosts.Ended(hosts.LOST, 'host 1 has been silent')

  leader = group(2)[1][0]._replace(get=lost)
  train = hosts.lead(leader, {'children': lambda batch: Outcome(batch.ids, {})}, uniform=True)
  with pytest.raises(hosts.Ended, match='silent') as ended:
    train['children'](batch_of(2))
  assert ended.value.code == 75


# -- real children -----------------------------------------------------------------------------------------------


def cells(kind):
  cfg = testing.cell_config(child_program=kind)
  return cell.make_problem(cfg, TEXT), evaluators.build


def networks(kind):
  return conv.make_problem(testing.conv_config(child_program=kind), IMAGES), evaluators.build


SYSTEMS = {
  'cells, generic': lambda: cells('generic'),
  'cells, specialised': lambda: cells('specialised'),
  'networks, generic': lambda: networks('generic'),
  'networks, specialised': lambda: networks('specialised'),
  'chains': lambda: (chain.make_problem(testing.chain_config(), IMAGES), chain.build_evaluator),
}


def agree(name, m, counts):
  """Asserts that m children train bit-identically on one host with four devices and on hosts that share these."""
  problem, build = SYSTEMS[name]()
  batch, devices = evaluators.random_batch(problem.space, jax.random.key(0), m), jax.devices()[:4]
  if name == 'chains':
    batch = batch._replace(depth=jnp.full(m, 2), extra=Group(0, 1))
  wanted = build(problem, layout.child_mesh(devices))(batch)
  assert wanted.reward.shape == (m,) and not wanted.failed.any()
  for count in counts:
    own = [{'children': build(problem, layout.child_mesh(devices[k::count][: 4 // count]))} for k in range(count)]
    leader, *others = group(count)[1]

    def search(leader=leader, own=own):
      outcome = hosts.lead(leader, own[0], not problem.own_programs)['children'](batch)
      hosts.dismiss(leader)
      return outcome

    serving = [functools.partial(hosts.serve, one, own[one.process], problem.space.arch_type) for one in others]
    found = together(search, *serving)[0]
    assert isinstance(found, Outcome), found
    assert np.array_equal(found.reward, wanted.reward) and np.array_equal(found.failed, wanted.failed)
    assert found.metrics.keys() == wanted.metrics.keys()
    for metric, values in wanted.metrics.items():
      assert np.array_equal(found.metrics[metric], values), metric


def test_children_that_repeat_others_are_not_trained_by_any_host():
  known = np.array([False, True, False, True, True])
  earned = Repeats(jnp.asarray(known), jnp.arange(5) - 1, jnp.arange(5) / 2, jnp.zeros(5, bool))
  leader, other = group(2)[1]
  asked = []

  def own(batch):
    asked.append((batch.ids.tolist(), batch.repeats.known.tolist(), batch.repeats.source.tolist()))
    return Outcome(batch.ids, {}, (), jnp.zeros(len(batch.ids), bool))

  def search():
    found = hosts.lead(leader, {'children': own}, uniform=True)['children'](batch_of(5, repeats=earned))
    hosts.dismiss(leader)
    return found

  found, _ = together(search, functools.partial(hosts.serve, other, {'children': own}, Group))
  assert found.reward.tolist() == [0, 1, 2, 3, 4]
  assert sorted(asked) == [([0, 1, 2], [False, True, False], [-1, 0, 1]), ([3, 4, 4], [True, True, True], [2, 3, 3])]


@pytest.mark.long
@pytest.mark.parametrize('m', [4, 5])
@pytest.mark.parametrize('name', SYSTEMS)
def test_two_and_four_hosts_earn_the_bits_of_one(name, m):
  agree(name, m, [2, 4])


# -- what hosts other than the first keep of long trainings ------------------------------------------------------


def standing(value):
  return recovery_files.Standing(jnp.int32(value), {'w': jnp.full((2, 3), value, jnp.float32), 'b': np.arange(value)})


def test_a_long_training_is_kept_in_one_file(tmp_path):
  save, restore = recovery_files.ONE_FILE
  folder = str(tmp_path / 'training' / 'abc')
  assert restore(folder, standing(3)) is None
  save(folder, 2, standing(3)._replace(calls=jnp.int32(2)))
  save(folder, 3, standing(3))
  found = restore(folder, standing(3))
  assert int(found.calls) == 3 and jax.tree.all(jax.tree.map(np.array_equal, found, standing(3)))
  assert [path.name for path in (tmp_path / 'training' / 'abc').iterdir()] == [recovery_files.STATE]


@pytest.mark.parametrize('how', ['flipped', 'torn', 'of another shape'])
def test_a_kept_training_that_cannot_be_gone_on_with_moves_aside(tmp_path, how):
  save, restore = recovery_files.ONE_FILE
  folder = tmp_path / 'training' / 'abc'
  save(str(folder), 3, standing(3 if how != 'of another shape' else 4))
  path = folder / recovery_files.STATE
  content = bytearray(path.read_bytes())
  content[-40] ^= how == 'flipped'
  path.write_bytes(content[: -1 if how == 'torn' else None])
  with pytest.warns(UserWarning, match='is damaged'):
    assert restore(str(folder), standing(3)) is None
  assert (tmp_path / 'damaged' / recovery_files.STATE).exists() and not path.exists()
