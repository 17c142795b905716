from collections.abc import Callable
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from testing import LAYERED, SPACES, TinyArch, one_line, strings

from nas_jax.controller import PENALTIES, Controller, divergence, lstm_controller, policy_summary, uniform_controller
from nas_jax.space import Kind, Slot, Space, conv_space, enas_macro_space, enas_rnn_space, tree_cell_space
from nas_jax.types import Array, Key, PyTree

DRAWS = 10_000


class Scored(NamedTuple):
  """A controller with large weights, and all token sequences of its space, in double precision."""

  space: Space
  controller: Controller
  theta: PyTree
  sample: Callable[..., Array]  # (keys [n], depth) -> tokens [n, T], one program for every depth
  score: Callable[..., tuple[Array, Array]]  # (tokens [n, T], depth) -> log_prob, entropy, also one program
  tokens: np.ndarray  # [n, T]
  log_prob: np.ndarray  # [n, T]
  entropy: np.ndarray  # [n, T]


@functools.cache
def score_all(name: str) -> Scored:
  space = SPACES[name]
  controller = lstm_controller(space, units=5, init_scale=1.0)
  theta, tokens = controller.init(jax.random.key(0)), strings(space)

  def score(row, depth):
    return controller.log_prob(theta, row, depth), controller.entropy(theta, row, depth)

  def sample(key, depth):
    return controller.sample(theta, key, depth)

  sample, score = (jax.jit(jax.vmap(function, (0, None))) for function in (sample, score))
  return Scored(space, controller, theta, sample, score, tokens, *map(np.asarray, score(tokens, space.layers)))


@pytest.fixture(params=SPACES)
def scored(request, x64) -> Scored:
  return score_all(request.param)


@pytest.fixture
def layered(x64) -> Scored:
  return score_all('layered')


def by_hand(space: Space, theta: PyTree, tokens: np.ndarray, shaped=lambda logits: logits) -> np.ndarray:
  """Returns log P of each token [T] by the equations of Zoph & Le (2017) Sec. 3.1 and 3.3 in NumPy, slot by slot."""
  theta = {name: np.asarray(weights) for name, weights in theta.items()}
  heads = sorted({slot.head for slot in space.slots})
  zeros = np.zeros_like(theta['first_input'])
  state = [(zeros, zeros) for _ in theta['lstm']]
  x, memory, queue, log_prob, governor = theta['first_input'], [], list(tokens), [], 0

  def sigmoid(z):
    return 1 / (1 + np.exp(-z))

  for slot in space.slots:
    for layer, (c, h) in enumerate(state):
      gates = np.concatenate([x, h]) @ theta['lstm'][layer] + theta['lstm_bias'][layer]
      enter, new, keep, show = np.split(gates, 4)
      c = sigmoid(keep) * c + sigmoid(enter) * np.tanh(new)
      x = sigmoid(show) * np.tanh(c)
      state[layer] = c, x
    h = x
    token, queue = queue[: slot.tokens], queue[slot.tokens :]
    if slot.kind == Kind.CHOICE:
      head = heads.index(slot.head)
      odds = np.exp(shaped(h @ theta['softmax'][head] + theta['softmax_bias'][head]))[: slot.width]
      log_prob.append(np.log(odds[token[0]] / odds.sum()) if slot.exists(governor) else 0.0)
      governor = token[0] if slot.selects else governor
      x = theta['embedding'][head, token[0]]
    else:
      past = memory[slot.start : slot.start + slot.width]
      u = [shaped(theta['v'] @ np.tanh(h_j @ theta['w_prev'] + h @ theta['w_curr'])) for h_j in past]
      if slot.kind == Kind.POINTER:
        log_prob.append(u[token[0]] - np.log(np.exp(u).sum()))
        x = past[token[0]]
      else:
        log_prob += [np.log(sigmoid(u_j) if taken else 1 - sigmoid(u_j)) for u_j, taken in zip(u, token, strict=True)]
        chosen = [h_j for h_j, taken in zip(past, token, strict=True) if taken]
        x = np.mean(chosen, axis=0) if chosen else zeros
    if slot.anchor:
      memory.append(h)
  return np.array(log_prob)


def keys(seed: int) -> Key:
  return jax.random.split(jax.random.key(seed), DRAWS)


def frequencies(found: Array, tokens: np.ndarray) -> np.ndarray:
  """Returns how often each row of `tokens` occurs in `found`. Raises KeyError if `found` has any other sequence."""
  row = {tuple(string): i for i, string in enumerate(tokens)}
  return np.bincount([row[tuple(string)] for string in np.asarray(found)], minlength=len(tokens))


def chi_squared(seen: np.ndarray, expected: np.ndarray) -> float:
  """Returns Pearson's chi-squared statistic in standard deviations from its mean; above 5 is no accident."""
  freedom = len(seen) - 1
  return (((seen - expected) ** 2 / expected).sum() - freedom) / math.sqrt(2 * freedom)


# -- a distribution over strings --------------------------------------------------------------------------------------


def test_probabilities_of_all_strings_sum_to_1(scored):
  probability = np.exp(scored.log_prob.sum(1))
  assert probability.sum() == pytest.approx(1, abs=1e-12)
  # Otherwise a uniform distribution would pass everywhere below.
  assert probability.max() > 2 * probability.min()


def test_every_conditional_sums_to_1_and_sees_no_future(scored):
  for t in range(scored.space.length):
    after = {}
    for row, log_prob, entropy in zip(scored.tokens, scored.log_prob[:, t], scored.entropy[:, t], strict=True):
      after.setdefault(tuple(row[:t]), {}).setdefault(row[t], []).append((log_prob, entropy))
    for options in after.values():
      # What follows does not matter: strings that agree up to t agree in log P(a_t | a_<t) and in the entropy there.
      assert all(np.ptp(values, axis=0).max() < 1e-12 for values in options.values())
      log_p, entropy = np.array([values[0] for values in options.values()]).T
      assert np.exp(log_p).sum() == pytest.approx(1, abs=1e-12)
      np.testing.assert_allclose(entropy, -np.exp(log_p) @ log_p, atol=1e-12)


def test_log_prob_is_the_papers_equations(scored):
  for tokens, log_prob in zip(scored.tokens, scored.log_prob, strict=True):
    np.testing.assert_allclose(log_prob, by_hand(scored.space, scored.theta, tokens), rtol=1e-10, atol=1e-12)


def test_samples_are_as_frequent_as_their_probability(scored):
  seen = frequencies(scored.sample(keys(1), scored.space.layers), scored.tokens)
  assert chi_squared(seen, DRAWS * np.exp(scored.log_prob.sum(1))) < 5


def test_entropies_add_up_to_that_of_the_string(scored):
  log_prob = scored.log_prob.sum(1)
  probability = np.exp(log_prob)
  # H(a_1 .. a_T) = sum_t E[H(a_t | a_<t)].
  assert probability @ scored.entropy.sum(1) == pytest.approx(-probability @ log_prob, rel=1e-12)
  assert (scored.entropy >= 0).all()


@pytest.fixture
def label_probabilities(scored) -> np.ndarray:
  """Returns the label probabilities [n, S, K] for all token sequences."""
  one = jax.jit(jax.vmap(lambda *string: scored.controller.score(*string).probabilities, (None, 0)))
  return np.asarray(one(scored.theta, scored.tokens))


def test_probabilities_of_labels_are_those_of_the_tokens(scored, label_probabilities):
  token_of_slot = dict.fromkeys(range(len(scored.space.slots)), 0)
  for t, index in enumerate(scored.space.owner):
    slot, tokens = scored.space.slots[index], scored.tokens[:, t]
    if slot.kind == Kind.LINK:
      link = label_probabilities[:, index, token_of_slot[index]]
      found = np.where(tokens == 1, link, 1 - link)
      token_of_slot[index] += 1
    else:
      found = label_probabilities[np.arange(len(tokens)), index, tokens]
    there = np.asarray(scored.space.exists(scored.tokens))[:, t]
    np.testing.assert_allclose(found, np.where(there, np.exp(scored.log_prob[:, t]), 0.0), rtol=1e-10)


def test_probabilities_of_labels_sum_to_1_and_stay_in_their_slot(scored, label_probabilities):
  for index, slot in enumerate(scored.space.slots):
    assert (label_probabilities[:, index, slot.width :] == 0).all()
    if slot.kind != Kind.LINK:
      there = scored.space.slots_exist(scored.tokens)[:, index]
      np.testing.assert_allclose(label_probabilities[:, index].sum(-1), there, atol=1e-12)


def test_a_survey_is_the_marginals_by_enumeration(scored, label_probabilities):
  entropy, found = jax.jit(lambda theta, keys: policy_summary(scored.controller, theta, keys))(
    scored.theta, keys(6)[:4000]
  )
  probability = np.exp(scored.log_prob.sum(1))
  assert entropy == pytest.approx(-probability @ scored.log_prob.sum(1), abs=0.03)
  # The mean over 4000 sequences of a number between 0 and 1 has a standard deviation below .008.
  np.testing.assert_allclose(found, np.einsum('n,nsk->sk', probability, label_probabilities), atol=0.03)
  # The first slot has the same distribution in all samples, so its probabilities are exact.
  first = next(i for i, slot in enumerate(scored.space.slots) if slot.width)
  np.testing.assert_allclose(found[first], label_probabilities[0, first], atol=1e-12)


def test_the_state_is_carried(x64):
  # Two strings that differ in their first token alone: the second step sees it as input, the third only by the state.
  scored = score_all('choice')
  log_prob = {tuple(tokens): values for tokens, values in zip(scored.tokens, scored.log_prob, strict=True)}
  first, other = log_prob[0, 1, 0], log_prob[1, 1, 0]
  assert abs(first[1] - other[1]) > 1e-3
  assert abs(first[2] - other[2]) > 1e-3


def test_skip_probability_by_hand():
  # Layers of nothing but an anchor point, and an LSTM of one unit without inputs whose gates stay half open:
  # c_i = c_(i-1) / 2 + tanh(g) / 2 and h_i = tanh(c_i) / 2; at g = 100 c is 1/2, 3/4, 7/8.
  slots = [Slot(f'layer {i}', 'reads', Kind.LINK, i, 'link', anchor=True) for i in range(3)]
  space = Space('skips', {}, TinyArch, tuple(slots))
  controller = lstm_controller(space, units=1, layers=1)
  theta = jax.tree.map(jnp.zeros_like, controller.init(jax.random.key(0)))
  theta['lstm_bias'] = jnp.array([[0.0, 100.0, 0.0, 0.0]])
  w_prev, w_curr, v = 2.0, -3.0, 5.0
  theta |= {'w_prev': jnp.array([[w_prev]]), 'w_curr': jnp.array([[w_curr]]), 'v': jnp.array([v])}
  h = [math.tanh(c) / 2 for c in (1 / 2, 3 / 4, 7 / 8)]

  def skip(j, i):
    return 1 / (1 + math.exp(-v * math.tanh(w_prev * h[j] + w_curr * h[i])))

  # Tokens: layer 1 reads 0; layer 2 reads 0; layer 2 reads 1.
  wanted = [math.log(skip(0, 1)), math.log(1 - skip(0, 2)), math.log(skip(1, 2))]
  np.testing.assert_allclose(controller.log_prob(theta, jnp.array([1, 0, 1])), wanted, rtol=1e-5)


@pytest.mark.parametrize('made', [enas_macro_space(3, ('conv 3', 'max pool 3')), enas_rnn_space(3)])
def test_temperature_and_tanh_shape_all_logits(x64, made):
  """Logits are c tanh(u / T) as in Pham et al. (2018), for choices, links and pointers, in sampling too."""
  controller = lstm_controller(made, 5, 1, 2.0, temperature=3.0, tanh_constant=1.5)
  theta = controller.init(jax.random.key(0))
  tokens = np.asarray(jax.vmap(lambda key: controller.sample(theta, key))(jax.random.split(jax.random.key(1), 5)))
  for string in tokens:
    wanted = by_hand(made, theta, string, lambda u: 1.5 * np.tanh(u / 3.0))
    np.testing.assert_allclose(controller.log_prob(theta, string), wanted, rtol=1e-6, atol=1e-12)
    assert np.abs(wanted - by_hand(made, theta, string)).max() > 1e-2


def test_divergence_of_links_by_hand(x64):
  made = enas_macro_space(3, ('conv 3', 'max pool 3'))  # slots: an operation and links, by turns
  probabilities = jnp.zeros((6, 2)).at[3, 0].set(0.5).at[5].set(jnp.array([0.4, 1.0])).at[0].set(0.5)
  wanted = 0.5 * math.log(0.5 / 0.4) + 0.5 * math.log(0.5 / 0.6) + math.log(1 / 0.4)
  assert float(divergence(made, probabilities, 0.4)) == pytest.approx(wanted, rel=1e-4)
  gradient = jax.grad(divergence, 1)(made, probabilities, 0.4)
  assert np.isfinite(gradient).all() and not gradient[jnp.array([0, 1, 2, 4])].any()
  assert float(divergence(made, probabilities, 0.4, 'mean')) == pytest.approx(wanted / 2, rel=1e-4)


def test_the_mean_divergence_is_that_of_the_released_code(x64):
  """The released code sums over the skips of a layer, and takes the mean over layers except the first."""
  made, rng = enas_macro_space(12), np.random.default_rng(0)
  probabilities, penalties = np.zeros((24, 11)), []
  for layer in range(1, 12):
    odds = rng.uniform(0.05, 0.95, layer)
    probabilities[2 * layer + 1, :layer] = odds
    penalties.append(np.sum(odds * np.log(odds / 0.4) + (1 - odds) * np.log((1 - odds) / 0.6)))
  found = {penalty: float(divergence(made, jnp.asarray(probabilities), 0.4, penalty)) for penalty in PENALTIES}
  assert found == pytest.approx({'sum': np.sum(penalties), 'mean': np.mean(penalties)}, rel=1e-6)
  assert found['sum'] == pytest.approx(11 * found['mean'])


def test_the_mean_divergence_is_over_layers_and_not_over_links(x64):
  """Twelve layers have 66 links. All are at the target, but for one of layer 1 at 1/2 and two of layer 11 at 4/5.

  These diverge by ln(25/24) / 2 = 0.0204110, and by (4 ln 2 - ln 3) / 5 = 0.3347952 each. The first layer has no link.
  """
  made = enas_macro_space(12)
  probabilities = np.zeros((24, 11))
  for layer in range(1, 12):
    probabilities[2 * layer + 1, :layer] = 0.4
  probabilities[3, 0], probabilities[23, 4], probabilities[23, 10] = 0.5, 0.8, 0.8
  found = {penalty: float(divergence(made, jnp.asarray(probabilities), 0.4, penalty)) for penalty in PENALTIES}
  assert found == pytest.approx({'sum': 0.6900016, 'mean': 0.0627274}, abs=1e-6)  # (0.0204110 + 2 * 0.3347952) / 11


# -- depth ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('depth', (1, 2, 3))
def test_shallow_strings_are_a_distribution_of_their_own(layered, depth):
  exists = np.asarray(LAYERED.exists(np.zeros(LAYERED.length, int), depth))
  shallow = (layered.tokens[:, ~exists] == 0).all(1)
  labels = np.asarray(layered.controller.score(layered.theta, layered.tokens[-1], depth).probabilities)
  np.testing.assert_array_equal(labels.any(1), [slot.layer < depth and slot.width > 0 for slot in LAYERED.slots])
  tokens = layered.tokens[shallow]
  assert len(tokens) == LAYERED.size(depth)
  log_prob, entropy = (np.asarray(values)[shallow] for values in layered.score(layered.tokens, depth))
  for values in (log_prob, entropy):
    np.testing.assert_array_equal(values[:, ~exists], 0)
  probability = np.exp(log_prob.sum(1))
  assert probability.sum() == pytest.approx(1, abs=1e-12)
  assert probability @ entropy.sum(1) == pytest.approx(-probability @ log_prob.sum(1), rel=1e-12)
  seen = frequencies(layered.sample(keys(2), depth), tokens)
  assert chi_squared(seen, DRAWS * probability) < 5


def test_what_deeper_tokens_would_be_changes_nothing(layered):
  # In lexicographic order the 16 strings that agree in layers 0 and 1 stand together.
  for values in layered.score(layered.tokens, 2):
    assert np.ptp(np.asarray(values).reshape(-1, 16, LAYERED.length), axis=1).max() < 1e-12


def test_a_traced_depth_is_a_static_one(layered):
  def static(key, row):
    return layered.controller.sample(layered.theta, key, 2), layered.controller.log_prob(layered.theta, row, 2)

  n = len(layered.tokens)
  tokens, log_prob = jax.jit(jax.vmap(static))(keys(3)[:n], layered.tokens)
  np.testing.assert_array_equal(tokens, layered.sample(keys(3), 2)[:n])
  np.testing.assert_allclose(log_prob, layered.score(layered.tokens, 2)[0], rtol=1e-12)


def test_vmap_is_a_loop_and_no_depth_is_the_deepest(layered):
  one = jax.jit(layered.controller.log_prob)
  for i in range(0, len(layered.tokens), 11):
    np.testing.assert_allclose(one(layered.theta, layered.tokens[i]), layered.log_prob[i], rtol=1e-12)


# -- weights, and none --------------------------------------------------------------------------------------------


def test_weights_start_uniform_in_the_papers_range():
  theta = lstm_controller(tree_cell_space(8)).init(jax.random.key(0))
  # 34 heads of up to 15 labels and 35 units: embeddings and softmax 34 * 15 * 35 each, 34 * 15 softmax biases; two LSTM
  # layers of (35 + 35 + 1) * 4 * 35; the first input. No anchors, so no attention.
  assert sum(leaf.size for leaf in theta.values()) == 2 * 34 * 15 * 35 + 34 * 15 + 2 * 71 * 140 + 35
  weights = np.concatenate([leaf.ravel() for leaf in theta.values()])
  assert 0.0799 < np.abs(weights).max() <= 0.08
  assert weights.std() == pytest.approx(0.08 / math.sqrt(3), rel=0.02)
  assert abs(weights.mean()) < 0.001
  assert len({float(leaf.ravel()[0]) for leaf in theta.values()}) == len(theta)  # every array has a key of its own
  narrow = lstm_controller(LAYERED, units=3, layers=1, init_scale=0.01).init(jax.random.key(0))
  assert {'w_prev', 'w_curr', 'v'} <= narrow.keys()
  assert max(float(jnp.abs(leaf).max()) for leaf in narrow.values()) <= 0.01


@pytest.mark.parametrize('size', ({'units': 0}, {'layers': 0}, {'units': -1}))
def test_sizes_below_1_are_refused(size):
  with pytest.raises(ValueError, match=r'units .* layers .* at least 1'):
    lstm_controller(LAYERED, **size)


@pytest.mark.parametrize('name', SPACES)
def test_uniform_controller(name):
  space = SPACES[name]
  controller = uniform_controller(space)
  theta = controller.init(jax.random.key(0))
  assert theta == ()
  options = [2 if slot.kind == Kind.LINK else slot.width for slot in space.slots for _ in range(slot.tokens)]
  tokens = strings(space)
  wanted = np.where(space.exists(tokens), np.log(options), 0.0)
  for function, sign in ((controller.log_prob, -1), (controller.entropy, 1)):
    values = jax.jit(jax.vmap(function, (None, 0)))(theta, tokens)
    np.testing.assert_allclose(values, sign * wanted, rtol=1e-6)
  if name != 'typed':  # where what exists depends on what was drawn
    entropy, labels = jax.jit(lambda keys: policy_summary(controller, theta, keys))(keys(7)[:2])
    assert entropy == pytest.approx(math.log(space.size()), rel=1e-6)
    for slot, row in zip(space.slots, np.asarray(labels), strict=True):
      each = 1 / 2 if slot.kind == Kind.LINK else 1 / slot.width
      np.testing.assert_allclose(row, np.where(np.arange(len(row)) < slot.width, each, 0), rtol=1e-6)
  found = jax.jit(jax.vmap(controller.sample, (None, 0)))(theta, keys(4))
  assert chi_squared(frequencies(found, tokens), DRAWS * np.exp(-wanted.sum(1))) < 5


def test_uniform_controller_by_depth():
  controller = uniform_controller(LAYERED)
  tokens = jax.vmap(lambda key: controller.sample((), key, 2))(jax.random.split(jax.random.key(5), 200))
  assert set(map(tuple, np.asarray(tokens))) == set(map(tuple, strings(LAYERED, 2)))
  log_prob = controller.log_prob((), tokens[0], 2)
  np.testing.assert_allclose(log_prob, np.log([1 / 2, 1 / 2, 1 / 2, 1, 1, 1, 1, 1]), rtol=1e-6)


def test_called_outside_of_a_program_it_compiles_once():
  space = SPACES['layered']
  controller = lstm_controller(space, units=3)
  theta = controller.init(jax.random.key(0))
  for seed in range(3):
    controller.score(theta, controller.sample(theta, jax.random.key(seed)))
  assert controller.sample._cache_size() == controller.score._cache_size() == 1


def test_what_is_written_is_what_is_read():
  """With such large weights a sequence that is read in another order than it was written has a tiny probability."""
  space = conv_space(5)
  controller = lstm_controller(space, units=8, init_scale=20.0)

  def one(key):
    init_key, sample_key = jax.random.split(key)
    theta = controller.init(init_key)
    return controller.score(theta, controller.sample(theta, sample_key))

  found = jax.jit(jax.vmap(one))(keys(6)[:200])
  surprise = -found.log_prob.sum(1)
  assert surprise.max() < 20 and surprise.mean() < found.entropy.sum(1).mean() + 1


def test_tokens_that_a_string_does_not_have_do_not_act(scored):
  space, depth = scored.space, max(1, scored.space.layers - 1)
  for row in scored.tokens[:: max(1, len(scored.tokens) // 20)]:
    noisy = np.where(np.asarray(space.exists(row, depth)), row, 1).astype(np.int32)
    found, wanted = (scored.score(tokens[None], depth) for tokens in (noisy, row))
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize('double', [False, True])
@pytest.mark.parametrize('dtype', [jnp.bfloat16, jnp.float32])
def test_weights_of_another_type(double, dtype):
  """Weights that were cast, or that were made before x64 was turned on, keep their type."""
  space = SPACES['layered']
  controller = lstm_controller(space, units=3)
  theta = jax.tree.map(lambda weights: weights.astype(dtype), controller.init(jax.random.key(0)))
  with jax.enable_x64(double):
    tokens = controller.sample(theta, jax.random.key(1))
    score = controller.score(theta, tokens)
    assert score.log_prob.dtype == dtype
    single = jax.tree.map(lambda weights: weights.astype(float), theta)
    np.testing.assert_allclose(np.asarray(score.log_prob, float), controller.log_prob(single, tokens), rtol=0.05)


def test_tokens_of_one_sequence_are_wanted():
  space = SPACES['choice']
  controller = lstm_controller(space, units=3)
  theta, tokens = controller.init(jax.random.key(0)), strings(space)[:2]
  with pytest.raises(ValueError, match=r'tokens have shape \(2, 3\), one sequence .* \(3,\): .* jax\.vmap') as error:
    controller.log_prob(theta, tokens)
  one_line(error)
  np.testing.assert_array_equal(
    controller.log_prob(theta, tokens[1].tolist()), controller.log_prob(theta, jnp.asarray(tokens[1]))
  )
