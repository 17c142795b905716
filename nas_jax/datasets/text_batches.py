"""How a text is laid out in batches for truncated backpropagation through time."""

from typing import NamedTuple

import numpy as np

from nas_jax.datasets.text import Text
from nas_jax.words import counted


class Data(NamedTuple):
  """A text laid out for truncated backpropagation, time first, `B` streams side by side."""

  train: np.ndarray  # [steps of an epoch, bptt + 1, B] int32; the last tokens of a step are the first of the next
  valid: tuple[np.ndarray, ...]  # as `windows` returns them


def lay_out(text: Text, batch: int, bptt: int, score_batch: int) -> Data:
  """Lays out the training and the validation split of a text.

  The training split is cut into `batch` streams of equal length, which are read side by side, `bptt` time steps in a
  training step. Tokens at the end that do not fill a step are left out of training; validation leaves none out.

  Args:
    text: the text to lay out.
    batch: B, number of streams side by side in training.
    bptt: time steps of a training step, and of a window of validation.
    score_batch: streams side by side in validation.

  Raises:
    ValueError: the training split is too short for one step, or the validation split has fewer than two tokens.
  """
  steps = (len(text.train) // batch - 1) // bptt
  if steps < 1:
    raise ValueError(
      f'the training split has {counted(len(text.train), "token")}, one step of batch (={batch}) streams of bptt '
      f'(={bptt}) needs {batch * (bptt + 1)}: take a smaller batch or bptt, or more text.'
    )
  columns = len(text.train) // batch
  streams = text.train[: batch * columns].reshape(batch, columns).T
  train = np.stack([streams[i * bptt : (i + 1) * bptt + 1] for i in range(steps)])
  return Data(train, windows(text.valid, score_batch, bptt))


def windows(tokens: np.ndarray, streams: int, bptt: int, split: str = 'validation') -> tuple[np.ndarray, ...]:
  """Lays out a split for scoring, so that each token but the first is predicted exactly once.

  Args:
    tokens: [n] int32.
    streams: C, streams side by side; fewer if so many would leave one without a token to predict.
    bptt: time steps of a window.
    split: the name of the split, for the error.

  Returns:
    Inputs and targets, [windows, bptt, C] int32, and weights of the same shape, float32: 1 for a prediction that
    counts, 0 for the padding at the end.

  Raises:
    ValueError: there are fewer than two tokens.
  """
  count = len(tokens) - 1
  if count < 1:
    raise ValueError(
      f'the {split} split has {len(tokens)} token: want at least 2, since each but the first is predicted.'
    )
  streams = min(streams, count)
  length = -(-count // streams)
  length += -length % bptt
  streams = -(-count // length)
  rows = []
  for values in (tokens[:-1], tokens[1:], np.ones(count, np.float32)):
    padded = np.zeros(streams * length, values.dtype)
    padded[:count] = values
    rows.append(padded.reshape(streams, -1, bptt).transpose(1, 2, 0))
  return tuple(rows)
