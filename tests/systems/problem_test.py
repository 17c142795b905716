"""The problem that each system makes of its config and data: nothing is compiled here, only shapes are computed."""

import jax
import numpy as np
import pytest
import testing

from experiments.common.systems import CELL, CHAIN, CONV, ENAS, MACRO, MICRO, RECURRENT, SEQUENCE, SYSTEMS
from nas_jax import space
from nas_jax.training import evaluators, fit, layout, schedules
from nas_jax.training.problem import static_fitter, traced_fitter

IMAGES, TEXT, SEQUENCES = testing.pictures(), testing.text(), testing.sequences()
CASES = {
  CELL.name: (CELL, testing.cell_config(steps=7, steps_per_call=3), TEXT, 7),
  CONV.name: (CONV, testing.conv_config(), IMAGES, 2 * 4),  # two passes over 36 images in batches of 9
  CHAIN.name: (CHAIN, testing.chain_config(), IMAGES, 2 * 4),
  MACRO.name: (MACRO, testing.macro_config(epochs=3), IMAGES, 3 * 4),
  MICRO.name: (MICRO, testing.micro_config(epochs=3, pass_steps=5), IMAGES, 3 * 5),
  RECURRENT.name: (RECURRENT, testing.rnn_config(epochs=3), TEXT, 3 * 19),  # 300 tokens: 3 streams of 19 x 5 and one
  SEQUENCE.name: (SEQUENCE, testing.sequence_config(epochs=3), SEQUENCES, 3 * 4),  # 40 sequences in batches of 9
}
TRACED = {system.name for system in (CELL, CONV, SEQUENCE, *ENAS)}  # they have one program for all architectures


def test_every_system_has_a_case():
  assert {system.name for system in SYSTEMS} == set(CASES)


@pytest.mark.parametrize('name', CASES)
def test_a_problem_trains_and_scores_children_of_its_space(name):
  """As its `traced` and `child` say, by the metric that the system's table shows."""
  system, cfg, data, steps = CASES[name]
  problem = system.make_problem(cfg, data)
  assert problem.space.slots == system.make_space(cfg).slots and problem.steps == steps
  batch, mesh = evaluators.random_batch(problem.space, jax.random.key(0), 2), layout.child_mesh(jax.devices()[:1])
  made = []
  assert problem.traced or name not in TRACED
  if problem.traced:
    made.append((traced_fitter(problem, problem.traced(batch.archs), mesh), batch.archs))
  if system not in ENAS:  # children that share weights are never static
    made.append((static_fitter(problem, space.unstack(batch.archs)[0], mesh), ()))
  assert made
  for programs, archs in made:
    states = fit.shapes(programs, archs, batch.keys)
    scores = jax.eval_shape(programs.score, problem.data, states, archs)
    assert scores[problem.metric].shape == (2,) and programs.steps == steps
  assert system.metric.key == (problem.shared_metric if system in ENAS else problem.metric)


@pytest.mark.parametrize('name', CASES)
def test_a_better_score_earns_more(name):
  system, cfg, data, _ = CASES[name]
  problem = system.make_problem(cfg, data)
  scores = np.array([0.3, 0.6, 0.9]) if problem.metric == 'accuracy' else np.array([9.0, 6.0, 3.0])
  assert system.metric.lower == (scores[0] > scores[1])
  own = problem.own_reward({problem.metric: scores})
  assert (np.diff(own) > 0).all()
  np.testing.assert_array_equal(problem.shared_reward({problem.shared_metric: scores, problem.metric: 0.0}), own)


@pytest.mark.parametrize(
  ('system', 'config'), [(CELL, testing.cell_config), (CONV, testing.conv_config), (CHAIN, testing.chain_config)]
)
def test_a_longer_training_ends_at_the_same_rate(system, config):
  """Five times as many epochs fall as far, a fifth as fast, so that the two trainings differ in length alone."""
  short = config(schedule='epochs', epochs=6, decay_epoch=4.0, lr_decay=0.5)
  rates = []
  for cfg in (short, system.alone.scale_budget(short, 5)):
    rate = schedules.rate(cfg.schedule, 1.0, 0, 10, cfg.decay_epoch, cfg.lr_decay)
    rates.append([float(rate(10 * epoch - 1)) for epoch in (cfg.epochs // 2, cfg.epochs * 5 // 6, cfg.epochs)])
  np.testing.assert_allclose(rates, [[1.0, 0.5, 0.25]] * 2, rtol=1e-6)
