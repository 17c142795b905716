"""The replay tree against a dictionary of prefixes, its walks against enumeration."""

import itertools
import json
import math

import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nas_jax.search import replay_tree

K, T = 3, 4
CAPACITIES = (6, 20, 50)  # the first is soon full
LABELS = ('a', 'b', 'c')

insert, insert_all, lookup, log_prob = map(
  jax.jit, (replay_tree.insert, replay_tree.insert_all, replay_tree.lookup, replay_tree.log_prob)
)
draw = jax.jit(replay_tree.draw, static_argnums=2)
FIELDS = ('reward', 'trained', 'used', 'length')


class Plain:
  """The replay tree in plain Python: a dictionary prefix -> [reward, trained, used, length], in order of insertion."""

  def __init__(self, capacity):
    self.capacity, self.nodes = capacity, {}

  def insert(self, tokens, depth, rewards, fresh, length):
    for end in range(1, depth + 1):
      prefix = tuple(tokens[:end])
      if prefix not in self.nodes:
        if len(self.nodes) + 1 == self.capacity:
          return
        self.nodes[prefix] = [np.float32(0), 0, 0, 0]
      node, reward = self.nodes[prefix], np.float32(rewards[end - 1])
      reward = reward if np.isfinite(reward) else np.float32(np.nan)
      node[2] += 1
      if fresh[end - 1] and (length > node[3] or (length == node[3] and np.isnan(node[0]))):
        node[0], node[1], node[3] = reward, 1, length
      elif fresh[end - 1] and length == node[3] and np.isfinite(reward):
        node[1] += 1
        node[0] += (reward - node[0]) / np.float32(node[1])

  def next(self, prefix):
    return [(*prefix, token) for token in range(K) if (*prefix, token) in self.nodes]

  def lookup(self, tokens, depth):
    order = list(self.nodes)
    prefixes = [tuple(tokens[: end + 1]) for end in range(T)]
    return [order.index(p) + 1 if p in self.nodes and len(p) <= depth else 0 for p in prefixes]

  def probability(self, prefix, power):
    """Returns the probability of the last step to this prefix."""
    if prefix not in self.nodes:
      return 0.0
    weights = {p: float(np.nan_to_num(self.nodes[p][0])) ** power for p in self.next(prefix[:-1])}
    return weights[prefix] / sum(weights.values()) if sum(weights.values()) else 1 / len(weights)

  def nested(self, prefix=()):
    return [
      {
        'layer': LABELS[p[-1]],
        **dict(zip(FIELDS, self.nodes[p], strict=True)),
        'reward': None if np.isnan(self.nodes[p][0]) else self.nodes[p][0],
        'next': self.nested(p),
      }
      for p in self.next(prefix)
    ]


def prefixes(tree):
  """Returns the prefix of each node, following parents; asserts that child and parent links agree."""
  size, found = int(tree.size), [()]
  parent, token, children = (np.asarray(x) for x in (tree.parent, tree.token, tree.children))
  for node in range(1, size):
    assert parent[node] < node and children[parent[node], token[node]] == node
    found.append((*found[parent[node]], int(token[node])))
  assert np.count_nonzero(children) == size - 1
  for values in tree[1:-1]:
    assert not np.asarray(values)[size:].any()
  return found


def same(tree, plain):
  assert prefixes(tree) == [(), *plain.nodes]
  columns = zip(*(np.asarray(getattr(tree, name))[1 : len(plain.nodes) + 1] for name in FIELDS), strict=True)
  np.testing.assert_equal([list(values) for values in columns], list(plain.nodes.values()))


def strings(tokens, rewards, fresh):
  return jnp.array(tokens, jnp.int32), jnp.array(rewards, jnp.float32), jnp.array(fresh, bool)


TOKENS = st.lists(st.integers(0, K - 1), min_size=T, max_size=T)
DEPTH = st.integers(0, T)
REWARDS = st.lists(
  st.one_of(st.integers(0, 1000).map(lambda n: n / 1000), st.sampled_from([0.0, math.nan, math.inf])),
  min_size=T,
  max_size=T,
)
FRESH = st.lists(st.booleans(), min_size=T, max_size=T)
POWER = st.sampled_from([0.0, 0.5, 1.0, 3.0])
OPERATION = st.one_of(
  st.tuples(st.just('insert'), TOKENS, DEPTH, REWARDS, FRESH, st.integers(1, 3)),
  st.tuples(st.just('insert'), TOKENS, DEPTH, REWARDS, FRESH, st.integers(1, 3)),
  st.tuples(st.just('lookup'), TOKENS, DEPTH),
  st.tuples(st.just('draw'), st.integers(0, 99), POWER),
  st.tuples(st.just('log_prob'), TOKENS, POWER),
  st.tuples(st.just('grow')),
  st.tuples(st.just('json')),
)


@pytest.mark.parametrize('examples', [25, pytest.param(150, marks=pytest.mark.long)])
def test_a_tree_is_a_dictionary_of_prefixes(examples):
  sampled = hypothesis.given(st.lists(OPERATION, min_size=10, max_size=40))(is_a_dictionary_of_prefixes)
  hypothesis.settings(max_examples=examples, deadline=None, derandomize=True, database=None)(sampled)()


def is_a_dictionary_of_prefixes(operations):
  tree, plain = replay_tree.empty(K, CAPACITIES[0]), Plain(CAPACITIES[0])
  for name, *args in operations:
    if name == 'insert':
      tokens, depth, rewards, fresh, length = args
      string, earned, trained = strings(tokens, rewards, fresh)
      tree = insert(tree, string, depth, earned, trained, length)
      plain.insert(*args)
      same(tree, plain)
    elif name == 'lookup':
      assert lookup(tree, jnp.array(args[0], jnp.int32), args[1]).tolist() == plain.lookup(*args)
    elif name == 'draw':
      tokens, depth = (x.tolist() for x in draw(tree, jax.random.key(args[0]), T, args[1]))
      prefix = tuple(tokens[:depth])
      assert not any(tokens[depth:]) and not plain.next(prefix) and (prefix in plain.nodes or not plain.nodes)
      assert all(plain.probability(prefix[:end], args[1]) > 0 for end in range(1, depth + 1))
    elif name == 'log_prob':
      tokens, power = args
      steps = [plain.probability(tuple(tokens[:end]), power) for end in range(1, T + 1)]
      found = np.asarray(log_prob(tree, jnp.array(tokens, jnp.int32), power))
      np.testing.assert_allclose(np.exp(found), np.cumprod(steps), rtol=1e-4)
    elif name == 'grow':
      plain.capacity = next((capacity for capacity in CAPACITIES if capacity > plain.capacity), CAPACITIES[-1])
      tree = replay_tree.grow(tree, plain.capacity)
      assert replay_tree.capacity(tree) == plain.capacity
      same(tree, plain)
    else:
      assert json.loads(replay_tree.as_json(tree, LABELS), parse_float=np.float32) == {'next': plain.nested()}


def planted(rewards, capacity=20):
  """Returns a tree of the sequences in `rewards`, each with the reward of its last node; inner nodes earn nothing."""
  tree = replay_tree.empty(K, capacity)
  for word, reward in rewards.items():
    tokens = [LABELS.index(letter) for letter in word] + [0] * (T - len(word))
    last = [i == len(word) - 1 for i in range(T)]
    tokens, earned, fresh = strings(tokens, [reward] * T, last)
    tree = insert(tree, tokens, len(word), earned, fresh, 1)
  return tree


# a .2 of which aa .1, ac .3; b .6 of which bb 0, bc 0; c 0, whose ca (0) and cb (NaN) earn nothing either.
SMALL = {'a': 0.2, 'b': 0.6, 'c': 0.0, 'aa': 0.1, 'ac': 0.3, 'bb': 0.0, 'bc': 0.0, 'ca': 0.0, 'cb': math.nan}
LEAVES = [(0, 0), (0, 2), (1, 1), (1, 2), (2, 0), (2, 1)]


def leaf_log_prob(tree, power):
  padded = jnp.array([(*leaf, 0, 0) for leaf in LEAVES], jnp.int32)
  return np.asarray(jax.vmap(lambda tokens: log_prob(tree, tokens, power))(padded))


def test_log_prob_by_hand():
  tree = planted(SMALL)
  first = leaf_log_prob(tree, 1.0)
  # 1/4 to a, 3/4 to b, never to c; from a 1/4 and 3/4; from b, where no one earns, 1/2; from c too, but after 0.
  np.testing.assert_allclose(np.exp(first[:, 0]), [1 / 4, 1 / 4, 3 / 4, 3 / 4, 0, 0], rtol=1e-5)
  np.testing.assert_allclose(np.exp(first[:, 1]), [1 / 16, 3 / 16, 3 / 8, 3 / 8, 0, 0], rtol=1e-5)
  # Squares: 1/10 and 9/10 both times. And at power 0 all are alike.
  np.testing.assert_allclose(np.exp(leaf_log_prob(tree, 2.0)[:2, 1]), [1 / 100, 9 / 100], rtol=1e-5)
  np.testing.assert_allclose(np.exp(leaf_log_prob(tree, 0.0)[:, 1]), [1 / 6] * 6, rtol=1e-5)
  # No walk goes on beyond a leaf, nor to what is not there.
  assert (first[:, 2:] == -np.inf).all()
  assert log_prob(tree, jnp.array([0, 1, 0, 0], jnp.int32), 1.0).tolist()[1:] == [-np.inf] * 3
  assert (log_prob(replay_tree.empty(K, 20), jnp.zeros(T, jnp.int32), 1.0) == -np.inf).all()


def test_a_high_power_takes_the_best_and_never_overflows():
  tree = planted({'a': 1e-3, 'b': 2e-3, 'c': 0.0})
  found = np.exp(log_prob(tree, jnp.array([1, 0, 0, 0], jnp.int32), 100.0))  # 1e-3 ** 100 is 0 in float32
  assert found.tolist() == [1, 0, 0, 0]


@pytest.mark.parametrize('power', [0.0, 1.0, 2.5])
def test_walks_are_as_frequent_as_they_are_likely(power):
  tree, n = planted(SMALL), 20_000
  likely = np.exp(leaf_log_prob(tree, power)[:, 1])
  np.testing.assert_allclose(likely.sum(), 1, rtol=1e-5)
  keys = jax.random.split(jax.random.key(3), n)
  tokens, depth = map(np.asarray, jax.jit(jax.vmap(lambda key: replay_tree.draw(tree, key, T, power)))(keys))
  assert (depth == 2).all() and not tokens[:, 2:].any()
  counts = [int((tokens[:, :2] == leaf).all(1).sum()) for leaf in LEAVES]
  assert sum(counts) == n
  # Five standard deviations; what cannot be never is.
  assert (abs(counts - n * likely) <= 5 * np.sqrt(n * likely * (1 - likely))).all()


def test_rewards_that_are_no_numbers_are_walked_around():
  tree = planted({'a': 0.5, 'b': 0.5, 'c': 0.5})
  for bad in (math.nan, math.inf, -math.inf, -1.0):
    broken = tree._replace(reward=tree.reward.at[jnp.array([1, 2])].set(bad))
    found = [float(log_prob(broken, jnp.full(T, token, jnp.int32), 2.0)[0]) for token in range(K)]
    assert found == [-np.inf, -np.inf, 0]
    # All of them so: each as likely. At power 0 they always are.
    worst = tree._replace(reward=tree.reward.at[1:].set(bad))
    for each, power in ((worst, 2.0), (worst, 0.0), (broken, 0.0)):
      found = [float(log_prob(each, jnp.full(T, token, jnp.int32), power)[0]) for token in range(K)]
      np.testing.assert_allclose(found, math.log(1 / 3), rtol=1e-5)
      assert int(draw(each, jax.random.key(0), T, power)[1]) == 1


def test_walks_shorter_and_longer_than_the_tree():
  tree = planted({'abca': 0.5})
  assert [x.tolist() for x in draw(tree, jax.random.key(0), 4, 1.0)] == [[0, 1, 2, 0], 4]
  assert [x.tolist() for x in draw(tree, jax.random.key(0), 6, 1.0)] == [[0, 1, 2, 0, 0, 0], 4]
  assert [x.tolist() for x in draw(tree, jax.random.key(0), 2, 1.0)] == [[0, 1], 2]
  assert [x.tolist() for x in draw(replay_tree.empty(K, 1), jax.random.key(0), T, 1.0)] == [[0] * T, 0]


def random_strings(m, seed=0):
  rng = np.random.default_rng(seed)
  tokens, rewards, fresh = strings(
    rng.integers(0, K, (m, T)), rng.integers(0, 100, (m, T)) / 100, rng.random((m, T)) < 0.7
  )
  return tokens, jnp.array(rng.integers(0, T + 1, m), jnp.int32), rewards, fresh


@pytest.mark.parametrize('capacity', CAPACITIES)
def test_many_at_once_are_one_by_one(capacity):
  """Also one by one without jit, and in two trees at once."""
  batch = random_strings(12)
  together, apart, plain = (
    insert_all(replay_tree.empty(K, capacity), *batch, 2),
    replay_tree.empty(K, capacity),
    Plain(capacity),
  )
  for each in zip(*batch, strict=True):
    apart = replay_tree.insert(apart, *each, 2)
    plain.insert(*(x.tolist() for x in each), 2)
  same(together, plain)
  jax.tree.map(np.testing.assert_array_equal, together, apart)
  two = [random_strings(12), random_strings(12, seed=1)]
  trees = [insert_all(replay_tree.empty(K, capacity), *each, 2) for each in two]
  stacked = jax.tree.map(lambda *x: jnp.stack(x), *two)
  both = jax.vmap(lambda *each: replay_tree.insert_all(replay_tree.empty(K, capacity), *each, 2))(*stacked)
  jax.tree.map(np.testing.assert_array_equal, both, jax.tree.map(lambda *x: jnp.stack(x), *trees))


def test_the_longest_trainings_are_averaged():
  tree, tokens = replay_tree.empty(K, 4), jnp.array([1, 0, 0, 0], jnp.int32)

  def train(tree, reward, length, fresh=True):
    return insert(tree, tokens, 1, jnp.full(T, reward), jnp.full(T, fresh), length)

  def node(tree):
    assert tree.size == 2
    return [float(tree.reward[1]), *(int(x[1]) for x in (tree.trained, tree.used, tree.length))]

  tree = train(tree, 0.9, 2, fresh=False)
  assert node(tree) == [0, 0, 1, 0]  # known, not yet trained
  tree = train(train(tree, 0.25, 2), 0.75, 2)
  assert node(tree) == [0.5, 2, 3, 2]
  tree = train(train(tree, 1.0, 1), math.nan, 1)  # shorter
  assert node(tree) == [0.5, 2, 5, 2]
  tree = train(tree, math.nan, 3)  # longer, but it failed: nothing is known of this length
  assert math.isnan(node(tree)[0]) and node(tree)[1:] == [1, 6, 3]
  tree = train(train(tree, 0.75, 3), math.nan, 3)  # one that failed does not change the mean of the others
  assert node(tree) == [0.75, 1, 8, 3]


def test_a_full_tree_keeps_what_it_has():
  tree = planted({'ab': 0.5, 'c': 0.25}, capacity=4)
  assert int(tree.size) == replay_tree.capacity(tree) == 4
  tokens, rewards, fresh = strings([0, 2, 1, 0], [1.0] * T, [True] * T)
  after = insert(tree, tokens, 3, rewards, fresh, 1)
  # `a` is used and trained once more; `ac` has no room, and so `acb` has no parent.
  assert prefixes(after) == [(), (0,), (0, 1), (2,)] and after.used.tolist() == [0, 2, 1, 1]
  assert lookup(after, tokens, 3).tolist() == [1, 0, 0, 0] and after.reward.tolist() == [0, 1, 0.5, 0.25]
  assert prefixes(insert(replay_tree.grow(tree, 5), tokens, 3, rewards, fresh, 1))[4:] == [
    (0, 2)
  ]  # room for one of two


def test_growing_changes_nothing():
  tree = planted(SMALL, capacity=10)
  grown = replay_tree.grow(tree, 50)
  assert replay_tree.as_json(grown, LABELS) == replay_tree.as_json(tree, LABELS)
  for tokens in itertools.islice(itertools.product(range(K), repeat=T), 0, 81, 7):
    string = jnp.array(tokens, jnp.int32)
    for ask in (lambda t, s=string: lookup(t, s, 4), lambda t, s=string: log_prob(t, s, 1.0)):
      np.testing.assert_array_equal(ask(tree), ask(grown))
  for seed in range(5):
    one, other = (draw(t, jax.random.key(seed), T, 1.0) for t in (tree, grown))
    jax.tree.map(np.testing.assert_array_equal, one, other)
  jax.tree.map(np.testing.assert_array_equal, replay_tree.grow(tree, 10), tree)


def test_double_precision_around_a_tree(x64):
  batch = jax.tree.map(lambda x: jnp.asarray(np.asarray(x).tolist()), random_strings(12))  # int64, float64
  tree = jax.jit(replay_tree.insert_all)(replay_tree.empty(K, 50), *batch, jnp.array(2))
  assert {x.dtype for x in tree} == {np.dtype(np.int32), np.dtype(np.float32)}


def test_json_by_hand():
  tree = planted({'b': 0.1, 'bc': 1.0, 'a': 0.25})
  leaf = {'trained': 1, 'used': 1, 'length': 1, 'next': []}
  b = {
    'layer': 'b',
    'reward': 0.1,
    'trained': 1,
    'used': 2,
    'length': 1,
    'next': [{'layer': 'c', 'reward': 1.0} | leaf],
  }
  assert replay_tree.as_json(tree, LABELS) == json.dumps({'next': [{'layer': 'a', 'reward': 0.25} | leaf, b]})
  assert replay_tree.as_json(replay_tree.empty(K, 1), LABELS) == '{"next": []}'


def test_complaints():
  with pytest.raises(ValueError, match=r'choices=3 and capacity=0 .* want at least 1 of each'):
    replay_tree.empty(3, 0)
  with pytest.raises(ValueError, match=r'room for 20 nodes cannot shrink to 19: want at least as many'):
    replay_tree.grow(planted(SMALL), 19)
  with pytest.raises(ValueError, match=r'^2 labels for a tree of 3 choices: want one for each'):
    replay_tree.as_json(planted(SMALL), ['a', 'b'])


def test_what_is_written_is_read_again():
  labels = ('a', 'b', 'c')
  tree = replay_tree.empty(3, 16)
  for tokens, rewards in (((1, 2, 0), (0.5, 0.25, 0.125)), ((0, 0, 0), (0.1, 0.2, 0.3)), ((1, 0, 2), (0.9, 0.7, 0.6))):
    tree = replay_tree.insert(tree, jnp.array(tokens), 3, jnp.array(rewards), jnp.ones(3, bool), 2)
  text = replay_tree.as_json(tree, labels)
  again = replay_tree.from_json(text, labels)
  assert replay_tree.as_json(again, labels) == text and replay_tree.capacity(again) == int(tree.size) == 9
  path = jnp.array([1, 0, 2])
  assert (again.reward[replay_tree.lookup(again, path, 3)] == tree.reward[replay_tree.lookup(tree, path, 3)]).all()
  assert replay_tree.from_json('{"next": []}', labels).size == 1
  failed = replay_tree.insert(tree, jnp.array([2, 0, 0]), 1, jnp.full(3, jnp.nan), jnp.ones(3, bool), 2)
  text = replay_tree.as_json(failed, labels)
  assert '"reward": null' in text and replay_tree.as_json(replay_tree.from_json(text, labels), labels) == text
  for wrong in ('', '[]', '{"next": [{"layer": "z"}]}', '{"next": [{"layer": "a", "next": []}]}'):
    with pytest.raises(ValueError, match='not a replay tree of these 3 layers'):
      replay_tree.from_json(wrong, labels)
