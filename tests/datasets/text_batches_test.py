"""Texts in batches."""

import numpy as np
import pytest
import testing

from nas_jax.datasets import text_batches

B, T = 3, 5


@pytest.fixture(scope='module')
def laid_out():
  return text_batches.lay_out(testing.text(), B, T, 4)


def test_training_batches_follow_one_another(laid_out):
  text, train = testing.text(), np.asarray(laid_out.train)
  assert train.shape[1:] == (T + 1, B)
  assert (train[:-1, -1] == train[1:, 0]).all()
  # Stream b starts where the b-th third of the text does.
  columns = len(text.train) // B
  assert (train[0].T == [text.train[b * columns : b * columns + T + 1] for b in range(B)]).all()


def test_every_prediction_of_the_validation_split_counts_once(laid_out):
  text = testing.text()
  inputs, targets, weight = map(np.asarray, laid_out.valid)
  assert weight.sum() == len(text.valid) - 1
  # Back to streams: [windows, T, C] -> [C, windows * T], joined and cut at the end, is the split itself.
  for values, wanted in ((inputs, text.valid[:-1]), (targets, text.valid[1:])):
    assert (values.transpose(2, 0, 1).reshape(-1)[: len(wanted)] == wanted).all()
  assert (weight.transpose(2, 0, 1).reshape(-1)[: len(text.valid) - 1] == 1).all()


def test_all_whole_steps_are_taken():
  # A step of 5 predictions needs 6 tokens of a stream, and two steps 11: the last of the one is the first of the other.
  for columns, steps in ((6, 1), (10, 1), (11, 2), (15, 2), (16, 3)):
    text = testing.text(B * columns)._replace(train=np.arange(B * columns, dtype=np.int32))
    train = text_batches.lay_out(text, B, T, 4).train
    assert train.shape == (steps, T + 1, B)
    assert train[-1, -1].tolist() == [b * columns + steps * T for b in range(B)]


def test_two_tokens_are_one_prediction():
  inputs, targets, weight = text_batches.windows(np.array([3, 1], np.int32), 4, T)
  assert inputs.shape == (1, T, 1) and weight.sum() == 1 and (inputs[0, 0, 0], targets[0, 0, 0]) == (3, 1)
  with pytest.raises(ValueError, match='has 1 token: want at least 2'):
    text_batches.windows(np.array([3], np.int32), 4, T)


def test_no_stream_is_padding_alone():
  """Of 65 tokens to predict, windows of 64 make one stream of two windows, where four streams were asked for."""
  tokens = np.arange(66, dtype=np.int32)
  inputs, _, weight = text_batches.windows(tokens, 4, 64)
  assert inputs.shape == (1, 64, 2) and weight.sum() == 65 and (weight[0, 0] == 1).all()
  inputs, _, weight = text_batches.windows(tokens, 4, 16)
  assert inputs.shape == (2, 16, 3) and weight.sum() == 65 and weight[:, :, :2].all()


def test_a_text_too_short_is_refused():
  with pytest.raises(ValueError, match='needs 18'):
    text_batches.lay_out(testing.text()._replace(train=np.zeros(17, np.int32)), B, T, 4)
  with pytest.raises(ValueError, match='bptt'):
    text_batches.lay_out(testing.text(60), 20, 35, 4)
