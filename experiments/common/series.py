"""Reads a user's sequences of numbers for a trained network."""

from typing import NamedTuple

import numpy as np

from nas_jax import export
from nas_jax.datasets import npz, sequences

LAYOUT = "arrays 'sequences' [n, T, F] and perhaps 'lengths' [n] and 'labels' [n]"


class Given(NamedTuple):
  """The sequences that a network is applied to."""

  sequences: np.ndarray  # [n, T, F]; for a forecast the series [T, F]
  lengths: np.ndarray  # [n]; for a forecast []
  labels: np.ndarray | None  # [n] or [n, k], if they are known


def read(path: str, model: export.SequenceModel) -> Given:
  """Reads the array 'series' of an .npz if the model forecasts, else 'sequences' and optionally 'lengths' and 'labels'.

  Raises:
    ValueError: the file cannot be read, has other arrays, or does not fit the model. The message is one line.
  """
  if isinstance(model, export.Forecaster):
    layout = "one array 'series' [T, F]"
    arrays = npz.read(path, layout, 'take fewer steps')
    if list(arrays) != ['series']:
      raise ValueError(f'{path} has arrays {", ".join(arrays)}: want {layout}, which the model forecasts.')
    found = sequences.checked_series(path, arrays['series'])
    model(found)  # raises ValueError
    return Given(found, np.array(len(found)), None)
  arrays = npz.read(path, LAYOUT, 'take fewer sequences')
  if 'sequences' not in arrays or not arrays.keys() <= {'sequences', 'lengths', 'labels'}:
    raise ValueError(f'{path} has arrays {", ".join(arrays)}: want {LAYOUT}.')
  made, lengths = sequences.checked(path, arrays['sequences'], arrays.get('lengths'))
  features, labels = model.inputs.example.shape[-1], arrays.get('labels')
  if made.shape[-1] != features:
    raise ValueError(f'{path} has sequences {made.shape}: want [n, T, {features}], as in training.')
  outputs = (len(made),) if model.inputs.scale is None else (len(made), np.size(model.inputs.scale.mean))
  if labels is not None and labels.size != np.prod(outputs):
    raise ValueError(f'{path} has labels {labels.shape} of sequences {made.shape}: want {outputs}.')
  return Given(made, lengths, labels)
