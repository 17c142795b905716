"""Trained models on disk: a folder with the weights (Orbax), and a JSON file that describes the model."""

from collections.abc import Mapping, Sequence
import glob
import json
import os
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nas_jax import files, space
from nas_jax.datasets import npz
from nas_jax.datasets.image_batches import Whitening
from nas_jax.datasets.splits import Scale
from nas_jax.export.kinds import module
from nas_jax.export.model import Classifier, ImageInputs, LanguageModel, Regressor, TextInputs
from nas_jax.export.sequences import Forecaster, SequenceClassifier, SequenceInputs, SequenceModel, SequenceRegressor
from nas_jax.space import ChainArch, ConvArch, MacroArch, MicroArch, RnnArch, TreeArch
from nas_jax.training import checkpoint
from nas_jax.types import PyTree

NAME, WEIGHTS, WHITENING = 'model.json', 'weights', 'whitening.npz'  # of the files in a folder of a model
_KINDS = {
  TreeArch: 'tree_cell', ConvArch: 'conv', ChainArch: 'chain', MacroArch: 'enas_macro', MicroArch: 'enas_micro',
  RnnArch: 'enas_rnn',
}  # fmt: skip
_SCALE: files.Schema = {'mean': [files.is_number], 'deviation': [files.is_number]}
_READS = ('images', 'text', 'sequences')  # the kinds of input; model.json has an entry for one of them
_SCHEMA: files.Schema = {
  'kind': str,
  'arch': {},
  'options': {},
  'images?': {
    'shape': [int],
    'classes': [str],
    'whiten': str,
    'resized': bool,
    'scale?': [files.is_number],
    'numbered?': bool,
  },
  'text?': {'level': str, 'vocabulary': [str]},
  'sequences?': {
    'steps': int,
    'classes': [str],
    'standard': _SCALE,
    'scale': (_SCALE, None),
    'horizon': int,
    'columns?': [str],
    'numbered?': bool,
  },
  'scores': {'metric': str, 'valid': (files.is_number, None), 'test': files.is_number},
}


class Card(NamedTuple):
  """Describes a trained model: everything except its weights."""

  arch: Any  # a static architecture, or 'LSTM'
  options: Mapping[str, Any]  # the options of `export.module`, as JSON values
  inputs: ImageInputs | TextInputs | SequenceInputs


def save(folder: str, card: Card, variables: PyTree, **about: Any) -> None:
  """Writes a trained model into a folder. The folder appears complete or not at all.

  Args:
    folder: its path. Existing contents are replaced.
    card: describes the model.
    variables: the variables of its module, see `export.variables`.
    **about: more entries for the JSON file. The entry 'scores' has the name of the 'metric' (lower is better) and its
      values: 'valid' (None if there is none) and 'test'.

  Raises:
    ValueError: the architecture or the options hold operations of the user's own, which `load` does not know. Nothing
      is written.
    OSError: it cannot be written.
  """
  _check_can_be_loaded(card)
  part = f'{folder}.part'
  files.remove(part)
  write, close = checkpoint.saver(os.path.join(part, WEIGHTS), keep=1)
  write(0, jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), variables))  # the dtype of modules, also under x64
  close()
  if isinstance(card.inputs, ImageInputs):
    shape, classes, (whiten, shift, scale), resized, numbers, numbered = card.inputs
    reads = {'images': {'shape': shape, 'classes': classes, 'whiten': whiten, 'resized': resized, 'numbered': numbered}}
    reads['images'] |= {'scale': list(numbers)} if numbers else {}
    if shift is not None and scale is not None:
      np.savez(os.path.join(part, WHITENING), shift=shift, scale=scale)
  elif isinstance(card.inputs, SequenceInputs):
    reads = {'sequences': card.inputs.as_json()}
  else:
    reads = {'text': card.inputs._asdict()}
  found = _named(card.arch) | {'options': dict(card.options)} | reads | about
  lines = ',\n'.join(f'  {json.dumps(name)}: {files.as_json(value)}' for name, value in found.items())
  files.write(os.path.join(part, NAME), f'{{\n{lines}\n}}\n')
  files.remove(folder)
  os.replace(part, folder)


def _check_can_be_loaded(card: Card) -> None:
  """Raises ValueError if `load` could not read the architecture or the options of a model."""
  named = _named(card.arch)
  try:
    if 'operations' in card.options:
      raise ValueError('its options hold operations')
    if named['arch']:
      space.from_json(json.dumps(named))
  except ValueError as error:
    raise ValueError(
      f'the model cannot be saved, as `load` knows built-in operations alone ({str(error).rstrip(".")}): keep its '
      'variables yourself, and build its module with export.module(arch, ..., operations=space.operations).'
    ) from None


def _named(arch: Any) -> dict[str, Any]:
  if isinstance(arch, str):
    return {'kind': arch, 'arch': {}}
  return {'kind': _KINDS[type(arch)], 'arch': arch._asdict()}


def load(folder: str | os.PathLike[str]) -> Classifier | LanguageModel | SequenceModel:
  """Returns the trained model in a folder that `retrain` has written.

  Args:
    folder: the folder of one training, of the trainings of one architecture, or of all results; or the workdir of a
      search. Of several models the one with the best validation score is taken or, if trainings of one architecture
      have none, the first. In a workdir that has made its final choice, only models of the chosen architecture count.

  Raises:
    ValueError: there is no model, or no single best model, or a file is damaged. The message is one line.

  >>> import nas_jax
  >>> model = nas_jax.load('runs/retrain-demo')  # doctest: +SKIP
  >>> model(images).argmax(-1)  # uint8 images as in training; a language model takes a text  # doctest: +SKIP
  """
  return read(choose(os.fspath(folder)))


def choose(folder: str) -> str:
  """Returns the path of the model that `load` takes. Raises ValueError as `load`."""
  final = os.path.join(folder, 'final')
  wanted = _best_of(final) if os.path.isdir(final) else None
  found = _models(final if wanted else folder)
  if wanted:
    found = {path: card for path, card in found.items() if (card['kind'], card['arch']) == wanted}
  if not found:
    raise ValueError(_why_none(folder))
  if len(found) == 1:
    return next(iter(found))
  results = {os.path.dirname(os.path.dirname(path)) for path in found}
  scored = {path: card['scores']['valid'] for path, card in found.items() if card['scores']['valid'] is not None}
  alike = len({os.path.dirname(path) for path in found}) == 1
  if len(results) > 1 or not (scored or alike):
    why = 'results of several commands' if len(results) > 1 else 'several models without validation scores'
    raise ValueError(f'{folder} holds {why}: name one of {", ".join(sorted(results if len(results) > 1 else found))}.')
  return min(scored, key=lambda path: scored[path]) if scored else next(iter(found))


def read(folder: str) -> Classifier | LanguageModel | SequenceModel:
  """Returns the model in its own folder. Raises ValueError, naming the file, if one is missing or damaged."""
  found, where = _card(os.path.join(folder, NAME)), os.path.join(folder, WEIGHTS)
  options = {name: tuple(value) if isinstance(value, list) else value for name, value in found['options'].items()}
  inputs = _inputs(folder, found)
  try:
    arch = found['kind'] if not found['arch'] else space.from_json(json.dumps(found))
    made = module(arch, **options)
    wanted = jax.eval_shape(made.init, jax.random.key(0), inputs.example)
  except (TypeError, ValueError) as error:
    raise ValueError(f'{os.path.join(folder, NAME)} describes no network ({error}).') from None
  variables = checkpoint.load(where, wanted)
  about = {name: value for name, value in found.items() if name not in ('kind', 'arch', 'options', *_READS)}
  if isinstance(inputs, TextInputs):
    return LanguageModel(made, variables, inputs, about)
  if isinstance(inputs, SequenceInputs):
    kind = Forecaster if inputs.horizon else SequenceRegressor if inputs.scale else SequenceClassifier
    return kind(made, variables, inputs, about)
  return (Regressor if inputs.scale else Classifier)(made, variables, inputs, about)


def _inputs(folder: str, found: Mapping[str, Any]) -> ImageInputs | TextInputs | SequenceInputs:
  """Returns what a model reads. Raises ValueError, naming the file, if its whitening is missing or damaged."""
  if 'text' in found:
    return TextInputs(found['text']['level'], tuple(found['text']['vocabulary']))
  if 'sequences' in found:
    return SequenceInputs.from_json(found['sequences'])
  images = found['images']
  whitening = _whitening(os.path.join(folder, WHITENING), images['whiten'])
  scale = Scale(*images['scale']) if 'scale' in images else None
  shape, classes, numbered = tuple(images['shape']), tuple(images['classes']), images.get('numbered', False)
  return ImageInputs(shape, classes, whitening, images['resized'], scale, numbered)


def _models(folder: str) -> dict[str, dict[str, Any]]:
  """Returns the model.json of each model by the path of its folder.

  The models are those in the folder itself. If it has none, its sub-folders are searched, up to three levels deep; the
  first level with models counts.
  """
  for depth in range(4):
    paths = sorted(glob.glob(os.path.join(glob.escape(folder), *('*',) * depth, NAME)))
    if paths := [path for path in paths if not os.path.dirname(path).endswith('.part')]:
      return {os.path.dirname(path): _card(path) for path in paths}
  return {}


def _card(path: str) -> dict[str, Any]:
  try:
    found = files.read(path, _SCHEMA)
    if found is None or sum(name in found for name in _READS) != 1:
      raise ValueError(f'it describes not one of {", ".join(_READS)} that the model takes')
    return found
  except (OSError, ValueError) as error:
    raise ValueError(f'{path} cannot be read ({error}): train the model again.') from None


def _best_of(final: str) -> tuple[str, dict[str, Any]] | None:
  """Returns the kind and the architecture of best.json in a folder; None if there is none.

  Raises ValueError, naming the file, if it is damaged.
  """
  path = os.path.join(final, 'best.json')
  try:
    found = files.read(path, {'kind': str, 'arch': {}})
  except (OSError, ValueError) as error:
    why = f'{path} cannot be read ({error})'
    raise ValueError(f'{why}: give the command of the search again, or name the folder of one model.') from None
  return (found['kind'], found['arch']) if found else None


def _why_none(folder: str) -> str:
  trained: Sequence[str] = [
    path
    for depth in range(4)
    for path in glob.glob(os.path.join(glob.escape(folder), *('*',) * depth, 'trainings.json'))
  ]
  if trained:
    return (
      f'{folder} holds trainings without weights: they failed, or were made before weights were kept. To train them '
      f'anew, move {sorted(trained)[0]} and its like elsewhere and give the same command again.'
    )
  return f'{folder} holds no trained model: want a folder that experiments.retrain has written, or one inside it.'


def _whitening(path: str, kind: str) -> Whitening:
  if kind == 'image':
    return Whitening(kind)
  layout = "arrays 'shift' and 'scale'; train the model again"
  arrays = npz.read(path, layout, 'train the model again', ('shift', 'scale'))
  if len(arrays) < 2:
    raise ValueError(f'{path} has arrays {list(arrays)}: want {layout}.')
  return Whitening(kind, arrays['shift'], arrays['scale'])
