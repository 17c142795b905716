"""The child that reads sequences of numbers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import testing

from nas_jax import space
from nas_jax.children import conv, language_model, sequence
from nas_jax.datasets import own_sequences, sequences
from nas_jax.systems import recurrent
from nas_jax.systems import sequence as system
from nas_jax.training import evaluators, fit, layout, problem

DATA = testing.sequences()
CELLS = space.tree_cell_space(2)
ARCH = CELLS.decode([0, 1, 1, 2, 0, 1, 0, 1, 1, 0])
KINDS = {
  'tree': (language_model.tree(), ARCH),
  'traced': (language_model.tree(), jax.tree.map(lambda x: x[0], space.stack([ARCH]))),
  'enas': (language_model.enas(), space.RnnArch((1, 2), (0,))),
  'lstm': (language_model.lstm(), ARCH),
}


def series(horizon=2):
  """A series of which each value follows from the two before it."""
  x = np.sin(np.arange(80.0) * 0.7) * np.array([[2.0], [30.0]])
  sources = own_sequences.windows(x.T, 3, horizon, 0.2, 0.2)
  parts = {name: source.read(np.arange(source.size)) for name, source in sources.items()}
  return sequences.split_sequences(parts, (), horizon=horizon)


@pytest.mark.parametrize(
  'kind', [pytest.param(kind, marks=() if kind == 'traced' else pytest.mark.long) for kind in KINDS]
)
def test_what_stands_after_the_end_is_not_read(kind):
  """A sequence that was padded has the outputs of the same without its padding, in two layers."""
  cell, arch = KINDS[kind]
  child = recurrent.network(testing.sequence_config(layers=2), DATA, cell, 4)
  params, masks = child.init(recurrent.spec(arch), jax.random.key(0)), language_model.no_masks(2)
  run = jax.jit(lambda x: sequence.run(cell, params, arch, x, masks))
  x = jnp.asarray(sequence.laid_out(DATA.train, DATA.standard))
  whole = run(x)
  assert whole.shape == (40, 3)
  shortest = int(DATA.train.lengths.argmin())
  length = DATA.train.lengths[shortest]
  assert length < x.shape[1]
  alone = run(x[shortest : shortest + 1, :length])
  np.testing.assert_allclose(alone[0], whole[shortest], rtol=1e-5, atol=1e-6)


def test_weight_decay_spares_the_biases_of_the_outputs():
  cell, arch = KINDS['tree']
  child = recurrent.network(testing.sequence_config(layers=2), DATA, cell, 4)
  params = child.init(recurrent.spec(arch), jax.random.key(0))
  params['softmax_bias'] += 3.0
  batch = jnp.asarray(sequence.laid_out(DATA.train, DATA.standard))[:9], jnp.asarray(DATA.train.labels)[:9]
  without, decayed = (
    child.loss(params, recurrent.spec(arch, sequence.Hyperparameters(0.1, rate)), (), batch, jax.random.key(1))[0]
    for rate in (0.0, 0.5)
  )
  squares = sum(float((leaf**2).sum()) for leaf in jax.tree.leaves((params['cells'], params['softmax'])))
  np.testing.assert_allclose(decayed - without, 0.25 * squares, rtol=1e-4)


def test_a_layer_and_the_softmax_by_hand():
  """A plain loop over the steps of the cell gives the outputs."""
  cell, arch = KINDS['lstm']
  child = recurrent.network(testing.sequence_config(), DATA, cell, 4)
  params = child.init(recurrent.spec(arch), jax.random.key(1))
  found = sequence.run(
    cell, params, arch, jnp.asarray(sequence.laid_out(DATA.valid, DATA.standard)), language_model.no_masks(1)
  )
  own = jax.tree.map(np.asarray, params)
  for k, (one, length) in enumerate(zip(DATA.valid.sequences, DATA.valid.lengths, strict=True)):
    c = h = np.zeros(4)
    for step in (one[:length] - DATA.standard.mean) / DATA.standard.deviation:
      gates = step @ own['cells'][0]['kernel'] + h @ own['cells'][0]['recurrent_kernel'] + own['cells'][0]['bias']
      i, g, f, o = np.split(gates, 4)
      c = c / (1 + np.exp(-f)) + np.tanh(g) / (1 + np.exp(-i))
      h = np.tanh(c) / (1 + np.exp(-o))
    np.testing.assert_allclose(found[k], h @ own['softmax'] + own['softmax_bias'], rtol=1e-4, atol=1e-5)


def test_dropout_acts_in_training():
  """By one program for any rate; a rate of 0 changes nothing."""
  cell, arch = KINDS['lstm']
  cfg = testing.sequence_config()
  child, data = recurrent.network(cfg, DATA, cell, 4), recurrent.set_up(cfg, DATA).data[0]
  params, batch = child.init(recurrent.spec(arch), jax.random.key(0)), (data.images[:9], data.labels[:9])

  @jax.jit
  def loss(rate, key):
    return child.loss(params, recurrent.spec(arch, sequence.Hyperparameters(0.1, 0.0, rate)), (), batch, key)[0]

  losses = {rate: {float(loss(rate, jax.random.key(k))) for k in range(3)} for rate in (0.0, 0.5)}
  assert len(losses[0.0]) == 1 and len(losses[0.5]) == 3


def trained(cfg, data, archs, **more):
  made = system.make_problem(cfg, data)._replace(**more)
  tokens = [made.space.encode(arch) for arch in archs]
  batch = evaluators.random_batch(made.space, jax.random.key(0), len(archs))
  found = space.stack([made.space.decode(one) for one in tokens])
  programs = problem.traced_fitter(made, made.traced(found), layout.child_mesh(jax.devices()[:1]))
  return {name: np.asarray(value) for name, value in fit.fit(programs, found, batch.keys, made.data).items()}


@pytest.mark.long
def test_children_learn_classes_by_one_program_as_each_by_its_own():
  cfg = testing.sequence_config(epochs=30, lr=0.03, hidden=8, metric='f1', class_weights='balanced')
  other = CELLS.decode([1, 1, 0, 2, 1, 0, 1, 0, 1, 0])
  found = trained(cfg, DATA, [ARCH, other])
  assert set(found) >= {'accuracy', 'balanced_accuracy', 'f1', 'loss'} and found['accuracy'][0] > 0.8
  made = system.make_problem(cfg, DATA)
  static = problem.static_fitter(made, other, layout.child_mesh(jax.devices()[:1]))
  keys = evaluators.random_batch(made.space, jax.random.key(0), 2).keys
  alone = fit.fit(static, (), keys[1:], made.data)
  np.testing.assert_allclose(alone['loss'][0], found['loss'][1], rtol=1e-3)


@pytest.mark.long
def test_a_series_is_forecast_better_than_by_its_last_value():
  found = trained(testing.sequence_config(epochs=60, lr=0.03, metric='r2', hidden=8), series(), [ARCH])
  assert 0.5 < found['r2'][0] < 1.0


def test_persistence_with_drift_scores_nothing():
  """R2 is that of the changes, so a network without weights, whose outputs are the mean changes, scores 0."""
  made = system.make_problem(testing.sequence_config(metric='r2'), series())
  np.testing.assert_allclose(made.reward(np.array([0.0, 1.0])), [0.125, 1.0])
  params = jax.tree.map(jnp.zeros_like, jax.eval_shape(lambda: made.child.init(ARCH, jax.random.key(0))))
  labels = np.asarray(made.data.valid_labels)
  labels = labels[~np.isnan(labels).any(1)]
  score = jax.jit(lambda bias: made.child.score(params | {'softmax_bias': bias}, ARCH, (), made.data)['r2'])
  np.testing.assert_allclose(score(labels.mean(0)), 0.0, atol=1e-5)
  wanted = 1.0 - (labels**2).sum() / ((labels - labels.mean(0)) ** 2).sum()
  np.testing.assert_allclose(score(np.zeros(4, np.float32)), wanted, rtol=1e-4)


def test_what_does_not_fit_is_refused():
  for changes, words in (
    ({'metric': 'r2'}, r'metric \(=r2\) does not fit labels that are classes'),
    ({'hidden': 10**6}, 'narrower cells'),
    ({'base': 3}, 'power of two'),
  ):
    with pytest.raises(ValueError, match=words):
      system.make_problem(testing.sequence_config(**changes), DATA)
  with pytest.raises(ValueError, match='class_weights'):
    system.make_problem(testing.sequence_config(metric='r2', class_weights='balanced'), series())
  with pytest.raises(ValueError, match='batch .* training sequences: take fewer'):
    recurrent.load(dataclasses.replace(testing.sequence_config(), batch=2000))


def test_a_spec_without_hyperparameters_counts_weights():
  assert conv.ChildSpec(ARCH, sequence.Hyperparameters(0.0, 0.0)) == recurrent.spec(ARCH)
  # Two leaves of width 4 that read two features and h; three outputs.
  assert recurrent.weights(testing.sequence_config(), DATA, language_model.tree(), ARCH, 4) == (2 + 4) * 8 + 4 * 3 + 3
