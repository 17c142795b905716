"""The same children on one device, on two, and on four: m need not divide, and rounding alone may differ."""

import functools

import jax
import numpy as np
import pytest
import testing

from nas_jax.systems import cell, chain, conv, enas_images, enas_rnn
from nas_jax.training import evaluators, fit, layout

M = 3
# Two steps of plain gradient descent: the second's loss is of weights that the first's gradient made.
IMAGES, TEXT = testing.pictures(), testing.text()


def cells(kind):
  cfg = testing.cell_config(child_program=kind, optimizer='sgd', steps=2)
  return cell.make_space(cfg), functools.partial(evaluators.build, cell.make_problem(cfg, TEXT))


def networks(kind):
  cfg = testing.conv_config(child_program=kind, batch=18, epochs=1)
  return conv.make_space(cfg), functools.partial(evaluators.build, conv.make_problem(cfg, IMAGES))


def chains():
  cfg = testing.chain_config(batch=18, epochs=1)
  return chain.make_space(cfg), functools.partial(chain.build_evaluator, chain.make_problem(cfg, IMAGES))


def shared(problem):
  return problem.space, functools.partial(evaluators.build, problem._replace(steps=2))


SYSTEMS = {
  'cells, generic': lambda: cells('generic'),
  'networks, generic': lambda: networks('generic'),
  'cells, specialised': lambda: cells('specialised'),
  'networks, specialised': lambda: networks('specialised'),
  'chains': chains,
  'macro': lambda: shared(enas_images.make_problem(testing.macro_config(), IMAGES)),
  'micro': lambda: shared(enas_images.make_problem(testing.micro_config(), IMAGES)),
  'recurrent': lambda: shared(enas_rnn.make_problem(testing.rnn_config(), TEXT)),
}
SHORT = ('networks, generic',)  # cells: in train_test


def agree(name, counts):
  made, build = SYSTEMS[name]()
  batch = evaluators.random_batch(made, jax.random.key(0), M)
  found = [build(layout.child_mesh(jax.devices()[:count]))(batch) for count in counts]
  for outcome in found:
    assert outcome.reward.shape == (M,) and (outcome.metrics['failed'] == fit.Status.OK).all()
    for metric, values in found[0].metrics.items():
      np.testing.assert_allclose(outcome.metrics[metric], values, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('name', SHORT)
def test_one_device_and_four(name):
  agree(name, (1, 4))


@pytest.mark.long
@pytest.mark.parametrize('name', SYSTEMS)
def test_one_device_two_and_four(name):
  agree(name, (1, 2, 4))
