"""Exports found networks: as Flax modules, as Python files, and as trained models that take raw input.

`module`, `variables` and `to_source` dispatch on the type of the architecture. To add a type of your own, register a
function for it, as in `export.module.register(MyArch, MyNetwork)`.
"""

from nas_jax.export.conv import ConvNetwork
from nas_jax.export.counting import Cost, cost
from nas_jax.export.enas import MacroNetwork, MicroNetwork
from nas_jax.export.files import Card, choose, load, read, save
from nas_jax.export.kinds import module, to_source, variables
from nas_jax.export.language import EnasCell, RecurrentNetwork
from nas_jax.export.model import Classifier, ImageInputs, LanguageModel, Regressor, Scored, TextInputs
from nas_jax.export.sequences import (
  Forecaster,
  SequenceClassifier,
  SequenceInputs,
  SequenceModel,
  SequenceNetwork,
  SequenceRegressor,
)

__all__ = [
  'Card', 'Classifier', 'ConvNetwork', 'Cost', 'EnasCell', 'Forecaster', 'ImageInputs', 'LanguageModel', 'MacroNetwork',
  'MicroNetwork', 'RecurrentNetwork', 'Regressor', 'Scored', 'SequenceClassifier', 'SequenceInputs', 'SequenceModel',
  'SequenceNetwork', 'SequenceRegressor', 'TextInputs', 'choose', 'cost', 'load', 'module', 'read', 'save', 'to_source',
  'variables',
]  # fmt: skip
