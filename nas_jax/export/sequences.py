"""Networks that read sequences of numbers: as a Flax module, and as trained models that take raw sequences."""

from collections.abc import Mapping
import dataclasses
import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from nas_jax.datasets import own_sequences
from nas_jax.datasets import sequences as sequences_lib
from nas_jax.datasets.splits import Scale
from nas_jax.export.language import Arch, recurrent_cell
from nas_jax.operations import BUILT_IN, Operations
from nas_jax.types import Array, PyTree
from nas_jax.words import counted

AT_ONCE = 256  # sequences in one program call


class SequenceNetwork(nn.Module):
  """Layers of recurrent cells and a linear map of their last output, as `children.sequence` computes them.

  Attributes:
    arch: a static architecture, or 'LSTM'.
    outputs: K, classes or numbers to predict.
    features: H, the width of the cells.
    layers: number of layers of cells.
    operations: your own operations, if the arch holds any.
  """

  arch: Arch
  outputs: int
  features: int
  layers: int = 1
  operations: Operations = BUILT_IN

  @nn.compact
  def __call__(self, sequences: Array, lengths: Array | None = None) -> Array:
    """Returns logits, or numbers, [B, K] of standardized sequences [B, T, F], each of which has `lengths` [B] steps.

    Later steps are ignored. Without `lengths` each sequence has T steps.
    """
    x: Any = sequences
    for i in range(self.layers):
      x = nn.RNN(recurrent_cell(self.arch, self.features, self.operations, f'cell_{i}'))(x)
    end = jnp.full(len(x), x.shape[1]) if lengths is None else lengths
    return nn.Dense(self.outputs, name='softmax')(jnp.take_along_axis(x, end[:, None, None] - 1, 1)[:, 0])


class SequenceInputs(NamedTuple):
  """The sequences that a network was trained on."""

  steps: int  # T, of the longest sequence; for a forecast, of the window
  classes: tuple[str, ...]  # their names; () if there are none
  standard: Scale  # [F] of the features
  scale: Scale | None = None  # [k] of the numbers that the network predicts; None for a classifier
  horizon: int = 0  # steps that are forecast; 0 if the network does not forecast
  columns: tuple[str, ...] = ()  # [F] names of the features, if the table of a series had them
  numbered: bool = False  # whether labels in training were numbers of classes with names beside them, as class_names

  @classmethod
  def of(cls, data: sequences_lib.Sequences) -> 'SequenceInputs':
    """Returns the description of `data` for networks that are trained on it."""
    own = data.standard, data.scale, data.horizon, data.columns, data.numbered
    return cls(data.shape[0], data.names, *own)

  @property
  def example(self) -> jax.ShapeDtypeStruct:
    """The shape of one standardized sequence."""
    return jax.ShapeDtypeStruct((1, self.steps, np.size(self.standard.mean)), jnp.float32)

  def as_json(self) -> dict[str, Any]:
    """Returns the description as JSON values."""
    found: dict[str, Any] = self._asdict()
    return found | {name: _lists(found[name]) for name in ('standard', 'scale')}

  @classmethod
  def from_json(cls, found: Mapping[str, Any]) -> 'SequenceInputs':
    """Reads what `as_json` returns."""
    scale = _arrays(found['scale']) if found['scale'] else None
    classes, columns = tuple(found['classes']), tuple(found.get('columns', ()))  # earlier versions saved no columns
    numbered = found.get('numbered', False)  # nor whether labels are numbers of classes
    return cls(found['steps'], classes, _arrays(found['standard']), scale, found['horizon'], columns, numbered)


def _lists(scale: Scale | None) -> dict[str, list[float]] | None:
  return {name: np.asarray(value).tolist() for name, value in scale._asdict().items()} if scale else None


def _arrays(found: Mapping[str, list[float]]) -> Scale:
  return Scale(*(np.array(found[name]) for name in Scale._fields))


@dataclasses.dataclass(frozen=True)
class SequenceModel:
  """A trained network that reads raw sequences.

  Attributes:
    module: the network, as `export.module` makes it.
    variables: its parameters, for `module.apply`.
    inputs: the sequences that it takes.
    about: other facts about its training: data, settings, scores.
  """

  module: Any
  variables: PyTree
  inputs: SequenceInputs
  about: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  @property
  def arch(self) -> Any:
    """The architecture."""
    return self.module.arch

  def outputs(self, sequences: Any, lengths: Any = None) -> Array:
    """Returns the outputs [n, K] of the network for raw sequences [n, T, F] or [n, T] of `lengths` [n].

    Raises:
      ValueError: the shapes are wrong, a number is not finite, or F is not that of training.
    """
    given = None if lengths is None else np.asarray(lengths)
    x, own = own_sequences.checked('the input', np.asarray(sequences), given)
    features = self.inputs.example.shape[-1]
    if x.shape[-1] != features:
      raise ValueError(f'the sequences are {x.shape}: want [n, T, {features}], as in training.')
    standard = ((x - self.inputs.standard.mean) / self.inputs.standard.deviation).astype(np.float32)
    parts = [slice(first, first + AT_ONCE) for first in range(0, len(x), AT_ONCE)]
    return jnp.concatenate([_applied(self.module, self.variables, standard[at], own[at]) for at in parts])

  def numbers(self, sequences: Any, lengths: Any = None) -> np.ndarray:
    """Returns numbers [n, k] in the units of the labels, if there are no classes. Errors are those of `outputs`."""
    assert self.inputs.scale is not None
    return self.inputs.scale.mean + self.inputs.scale.deviation * np.asarray(self.outputs(sequences, lengths))


@functools.partial(jax.jit, static_argnums=0)
def _applied(module: Any, variables: PyTree, sequences: Array, lengths: Array) -> Array:
  return module.apply(variables, sequences, lengths)


@dataclasses.dataclass(frozen=True)
class SequenceClassifier(SequenceModel):
  """A trained classifier of sequences."""

  @property
  def classes(self) -> tuple[str, ...]:
    """The names of the classes."""
    return self.inputs.classes

  def __call__(self, sequences: Any, lengths: Any = None) -> Array:
    """Returns probabilities [n, classes]. Arguments and errors are those of `outputs`."""
    return jax.nn.softmax(self.outputs(sequences, lengths))


@dataclasses.dataclass(frozen=True)
class SequenceRegressor(SequenceModel):
  """A trained network that predicts numbers from sequences."""

  def __call__(self, sequences: Any, lengths: Any = None) -> np.ndarray:
    """Returns numbers [n], or [n, k] if there are several. Arguments and errors are those of `outputs`."""
    found = self.numbers(sequences, lengths)
    return found[:, 0] if found.shape[1] == 1 else found


@dataclasses.dataclass(frozen=True)
class Forecaster(SequenceModel):
  """A trained network that forecasts a time series."""

  def __call__(self, series: Any) -> np.ndarray:
    """Returns the values that follow a series [T, F] or [T]: [horizon, F] or [horizon].

    Raises:
      ValueError: the series is not of finite numbers, F is not that of training, or it has fewer steps than a window.
    """
    given = np.asarray(series)
    x, steps = own_sequences.checked_series('the input', given), self.inputs.steps
    if len(x) < steps:
      raise ValueError(f'the series has {counted(len(x), "step")}: want at least {steps}, the window of the training.')
    found = x[-1] + self.numbers(x[None, -steps:]).reshape(self.inputs.horizon, -1)
    return found[:, 0] if given.ndim == 1 else found
