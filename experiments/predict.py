"""Applies a trained network to images, a text or sequences of numbers, and prints its predictions.

--model is a folder that `retrain` wrote (results, or one training), or the workdir of a search with a final choice.
Images are files, a folder with or without a sub-folder for each class, or an .npz with an array 'images'
[n, H, W, C], 0 to 255, and optionally 'labels' [n]. Sequences are a folder of .csv, .tsv or .npy files, with or
without a sub-folder for each class, one such file, or an .npz with an array 'sequences' [n, T, F], and optionally
'lengths' [n] and 'labels' [n]. A series to forecast is one such file, or an .npz with 'series' [T, F]. Examples:
  python -m experiments.predict --model=runs/retrain-demo --images=photos
  python -m experiments.predict --model=runs/cell_search-demo --text=letter.txt --sample=200
  python -m experiments.predict --model=runs/mine --sequences=new_recordings
  python -m experiments.predict --model=runs/series --sequences=measurements.csv
"""

from collections.abc import Sequence
import json
import os
from typing import Any

from absl import flags
import jax
import numpy as np

from experiments.common import arguments, launch, pictures, series
from nas_jax import export, words
from nas_jax.datasets import text as text_lib
from nas_jax.report import rankings


def own_flags(values: flags.FlagValues) -> None:
  """Defines the flags of this launcher."""
  flags.DEFINE_string('model', '', 'folder of the trained model, or of results with several', flag_values=values)
  flags.DEFINE_list(
    'images', [], 'a folder of images, image files, or one .npz with an array images', flag_values=values
  )
  flags.DEFINE_string('text', '', 'a file of UTF-8 text', flag_values=values)
  flags.DEFINE_string(
    'sequences',
    '',
    'a folder of sequences, a .csv, .tsv or .npy file of one, or an .npz with an array sequences, or series',
    flag_values=values,
  )
  flags.DEFINE_bool('resize', False, 'scale images to the size that the model takes', flag_values=values)
  flags.DEFINE_integer('top', 3, 'how many classes to show for each image or sequence', 1, flag_values=values)
  flags.DEFINE_integer('sample', 0, 'how many tokens to continue the text by', 0, flag_values=values)
  flags.DEFINE_float(
    'temperature', 1.0, 'of --sample: below 1, likely tokens become likelier', 1e-3, flag_values=values
  )
  flags.DEFINE_integer('seed', 0, 'of the continuation', 0, flag_values=values)
  flags.DEFINE_bool('json', False, 'print JSON, with the probabilities of all classes', flag_values=values)


def prepare(argv: Sequence[str]) -> launch.Work:
  """Reads the model and its inputs, and checks that they fit together."""
  values = arguments.parse(argv, __doc__, own_flags)
  if not values.model:
    raise ValueError('--model is missing: name a folder that retrain has written.')
  given = [name for name in ('images', 'text', 'sequences') if values[name].value]
  if len(given) != 1:
    raise ValueError('give one of --images, --text and --sequences.')
  launch.set_up_jax(1)
  path = export.choose(values.model)
  model = export.read(path)
  takes = next(name for name, kind in _TAKES.items() if isinstance(model, kind))
  if given != [takes]:
    raise ValueError(f'{path} takes {takes}: give --{takes}.')
  _check_flags(model, values)
  if isinstance(model, export.SequenceModel):
    return _prepare_sequences(path, model, values)
  if isinstance(model, export.Classifier):
    return _prepare_images(path, model, values)
  text = text_lib.read(values.text)
  model.check(text)  # raises ValueError
  return lambda check: show_text(path, model, text, values)


_TAKES = {'images': export.Classifier, 'text': export.LanguageModel, 'sequences': export.SequenceModel}


def _check_flags(model: Any, values: flags.FlagValues) -> None:
  """Raises ValueError if a flag is given that changes nothing for this model and these flags."""
  with_classes = isinstance(model, export.Classifier | export.SequenceClassifier) and bool(model.classes)
  for name, whose, used in (
    ('resize', 'models of images', isinstance(model, export.Classifier)),
    ('top', 'tables of classes', with_classes and not values.json),
    ('sample', 'models of text', isinstance(model, export.LanguageModel)),
    ('temperature', '--sample', values.sample > 0),
    ('seed', '--sample', values.sample > 0),
  ):
    if values[name].present and not used:
      raise ValueError(f'--{name} is for {whose}, and means nothing here: leave it out.')


def _prepare_images(path: str, model: export.Classifier, values: flags.FlagValues) -> launch.Work:
  given = pictures.read(values.images, model.inputs, values.resize)
  images = model.check(given.images)
  if isinstance(model, export.Regressor):
    labels = pictures.finite_numbers(given.labels)
    return lambda check: show_numbers(path, 'image', given.names, np.asarray(model(images)), labels, values.json)
  classes, labels = model.classes, pictures.class_numbers(given.labels, model.classes, model.inputs.numbered)
  return lambda check: show_classes(path, 'image', classes, given.names, np.asarray(model(images)), labels, values)


def _prepare_sequences(path: str, model: export.SequenceModel, values: flags.FlagValues) -> launch.Work:
  given = series.read(values.sequences, model)
  if isinstance(model, export.Forecaster):
    ahead = model(given.sequences)
    return lambda check: show_forecast(path, ahead, model.inputs.columns, values.json)
  assert isinstance(model, export.SequenceClassifier | export.SequenceRegressor)
  names, found = given.names, lambda: np.asarray(model(given.sequences, given.lengths))
  if isinstance(model, export.SequenceRegressor):
    labels = pictures.finite_numbers(given.labels)
    return lambda check: show_numbers(path, 'sequence', names, found(), labels, values.json)
  classes, labels = model.classes, pictures.class_numbers(given.labels, model.classes, model.inputs.numbered)
  return lambda check: show_classes(path, 'sequence', classes, names, found(), labels, values)


def show_classes(
  path: str,
  what: str,
  classes: Sequence[str],
  names: Sequence[str],
  probabilities: np.ndarray,
  labels: np.ndarray | None,
  values: flags.FlagValues,
) -> None:
  """Prints the classes of images or sequences, most probable first, and the accuracy if the labels are known."""
  likeliest = probabilities.argsort(-1)[:, ::-1]
  found: dict[str, Any] = {'model': path}
  if labels is not None:
    found['accuracy'] = float(np.mean(likeliest[:, 0] == labels))
  if values.json:
    found[f'{what}s'] = [
      {what: name, 'class': classes[order[0]], 'probabilities': dict(zip(classes, map(float, row), strict=True))}
      for name, order, row in zip(names, likeliest, probabilities, strict=True)
    ]
    print(json.dumps(found))
    return
  top = min(values.top, len(classes))
  header = [what, 'class', 'probability', *['or', ''] * (top - 1)]
  lines = [
    [name, *(word for k in order[:top] for word in (classes[k], float(row[k])))]
    for name, order, row in zip(names, likeliest, probabilities, strict=True)
  ]
  print(f'model: {path}\n{rankings.table(header, lines)}')
  if labels is not None:
    print(f'accuracy: {found["accuracy"]:.4f} of {words.counted(len(labels), what)}')


def show_numbers(
  path: str, what: str, names: Sequence[str], numbers: np.ndarray, labels: np.ndarray | None, as_json: bool
) -> None:
  """Prints the predicted numbers [n] or [n, k], and the root mean squared error if the labels are known."""
  found: dict[str, Any] = {'model': path}
  if labels is not None:
    found['rmse'] = float(np.sqrt(np.mean((numbers - labels.reshape(numbers.shape)) ** 2)))
  if as_json:
    lines = [{what: name, 'number': number} for name, number in zip(names, numbers.tolist(), strict=True)]
    print(json.dumps(found | {f'{what}s': lines}))
    return
  rows = [[name, *np.atleast_1d(number).tolist()] for name, number in zip(names, numbers, strict=True)]
  header = [what, 'number'] if numbers.ndim == 1 else [what, *(f'number {k + 1}' for k in range(numbers.shape[1]))]
  print(f'model: {path}\n{rankings.table(header, rows)}')
  if 'rmse' in found:
    print(f'root mean squared error: {found["rmse"]:.4g} of {words.counted(len(numbers), what)}')


def show_forecast(path: str, ahead: np.ndarray, columns: Sequence[str], as_json: bool) -> None:
  """Prints the forecast values [horizon, F], below the names of the columns [F] if the model has them."""
  if as_json:
    print(json.dumps({'model': path, 'columns': list(columns), 'forecast': ahead.tolist()}))
    return
  rows = [[f'+{step}', *row] for step, row in enumerate(ahead.tolist(), 1)]
  header = ['step', *(columns or (f'feature {k + 1}' for k in range(ahead.shape[1])))]
  print(f'model: {path}\n{rankings.table(header, rows)}')


def show_text(path: str, model: export.LanguageModel, text: str, values: flags.FlagValues) -> None:
  """Prints the perplexity of a text and, with --sample, a sampled continuation."""
  scored = model(text)
  found: dict[str, Any] = {
    'model': path,
    'tokens': len(scored.tokens),
    'perplexity': scored.perplexity,
    'bits': float(np.log2(scored.perplexity)),
  }
  if values.sample:
    key = jax.random.key(values.seed)
    found['sample'] = model.sample(text, values.sample, key, values.temperature)
  if values.json:
    print(json.dumps(found | {'log_prob': scored.log_prob.tolist()}))
    return
  header = ['text', 'tokens', 'perplexity', 'bits a token']
  line = [os.path.basename(values.text), found['tokens'], found['perplexity'], found['bits']]
  print(f'model: {path}\n{rankings.table(header, [line])}')
  if values.sample:
    print(f'goes on:\n{found["sample"]}')


if __name__ == '__main__':
  launch.main(prepare)
