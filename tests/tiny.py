"""Small things that several tests share."""

import numpy as np

from nas_jax import data, images
from nas_jax.systems import cell, chain, conv, enas_images, enas_rnn, retrain_cell


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


def pictures(count: int = 60, shape: tuple[int, int, int] = (6, 5, 1)) -> images.Images:
  """Images that can be told apart: bright above, bright below, bright at the left."""
  rng = np.random.default_rng(0)
  labels = np.arange(count) % 3
  pixels = rng.integers(0, 60, size=(count, *shape))
  pixels[labels == 0, : shape[0] // 2] += 120
  pixels[labels == 1, shape[0] // 2 :] += 120
  pixels[labels == 2, :, : shape[1] // 2] += 120
  pixels, labels, part = pixels.astype(np.uint8), labels.astype(np.int32), count // 4
  train, test = images.Split(pixels[part:], labels[part:]), images.Split(pixels[:part], labels[:part])
  return images.split_images(train, test, 3, 0.2)


def conv_config(**changes) -> conv.Config:
  """A search whose children train in milliseconds."""
  space = {'max_depth': 2, 'filter_heights': (1, 3), 'filter_widths': (3,), 'filters': (2, 3)}
  small = {'m': 2, 'batch': 9, 'epochs': 2, 'last_epochs': 1, 'score_batch': 4, 'controller_units': 4, 'lr': (0.05,)}
  return conv.Config(**(space | small | {'max_children': 4} | changes))


def chain_config(**changes) -> chain.Config:
  """A search whose children train in milliseconds; each is a program of its own."""
  layers = ('conv 2 3 1', 'residual 3 3 2', 'max pool 2 2')
  small = {'m': 1, 'max_depth': 2, 'layers': layers, 'batch': 9, 'epochs': 2, 'score_batch': 4, 'controller_units': 4}
  return chain.Config(**(small | {'lr': 0.05, 'schedule': 'cosine', 'max_children': 4} | changes))


_SHARED = {'m': 2, 'controller_units': 4, 'controller_layers': 1, 'passes': 2, 'controller_updates': 2, 'epochs': 1}
_AFTER = {'derive_children': 3, 'rank_children': 3}


def macro_config(**changes) -> enas_images.MacroConfig:
  """Two layers, or as many as asked for, by shared weights."""
  network = {'layers': 2, 'operations': ('conv 3', 'max pool 3'), 'filters': 2, 'skip_weight': 0.0}
  small = {'batch': 9, 'score_batch': 4, 'lr': 0.05, 'schedule': 'cosine'}
  return enas_images.MacroConfig(**(_SHARED | _AFTER | network | small | changes))


def micro_config(**changes) -> enas_images.MicroConfig:
  """One cell of one block, likewise; too few for a reduction."""
  network = {'blocks': 1, 'cells': 1, 'operations': ('identity', 'sepconv 3'), 'filters': 2, 'drop_path': 1.0}
  small = {'batch': 9, 'score_batch': 4, 'lr': 0.05, 'schedule': 'cosine'}
  return enas_images.MicroConfig(**(_SHARED | _AFTER | network | small | changes))


def rnn_config(**changes) -> enas_rnn.Config:
  """Cells of three nodes, likewise."""
  small = {'nodes': 3, 'hidden': 4, 'batch': 3, 'bptt': 5, 'score_batch': 4, 'optimizer': 'adam', 'lr': 0.01}
  return enas_rnn.Config(**(_SHARED | _AFTER | small | changes))
