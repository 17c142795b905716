"""Small things that several tests share."""

import numpy as np

from nas_jax import data
from nas_jax.systems import cell, retrain_cell


def text(length: int = 600, vocabulary: int = 5) -> data.Text:
  """A text that can be learned: mostly 0 1 2 3 4 0 1 ..., with some noise."""
  rng = np.random.default_rng(0)
  tokens = (np.arange(length) + (rng.random(length) < 0.1)) % vocabulary
  train, valid, test = np.split(tokens.astype(np.int32), [length // 2, length * 3 // 4])
  return data.Text(train, valid, test, tuple('abcdefghij'[:vocabulary]), 'none')


def retrain_config(**changes) -> retrain_cell.Config:
  """Trainings of a few milliseconds."""
  small = {
    'sizes': ('4',),
    'batch': 3,
    'bptt': 5,
    'epochs': 3,
    'score_batch': 4,
    'test_batch': 1,
    'schedule': 'constant',
  }
  return retrain_cell.Config(**(small | changes))


def cell_config(**changes) -> cell.Config:
  """A search whose children train in milliseconds and whose programs compile in seconds."""
  small = {'m': 2, 'base': 2, 'hidden': 4, 'batch': 3, 'bptt': 5, 'steps': 6, 'score_batch': 4, 'controller_units': 4}
  return cell.Config(**(small | {'max_children': 6} | changes))
