"""Applies a trained network to images or to a text, and prints what it says.

The model is what `retrain` has kept: a folder of results, of one training, or the workdir of a search that made its
final choice. Images are a folder, perhaps with a sub-folder for each class, files, or an .npz with an array 'images'
[n, H, W, C], 0 to 255, and perhaps 'labels' [n]. Examples:
  python -m experiments.predict --model=runs/retrain-demo --images=photos
  python -m experiments.predict --model=runs/cell_search-demo --text=letter.txt --sample=200
"""

from collections.abc import Sequence
import json
import os
from typing import Any

from absl import flags
import jax
import numpy as np

from experiments.common import launch, pictures
from nas_jax import export
from nas_jax.datasets import splits
from nas_jax.report import rankings

AT_ONCE = 256  # images in one program call


def own_flags(values: flags.FlagValues) -> None:
  """What this launcher takes."""
  flags.DEFINE_string('model', '', 'folder of the trained model, or of results with several', flag_values=values)
  flags.DEFINE_list(
    'images', [], 'a folder of images, image files, or one .npz with an array images', flag_values=values
  )
  flags.DEFINE_string('text', '', 'a file of UTF-8 text', flag_values=values)
  flags.DEFINE_bool('resize', False, 'scale images to the size that the model takes', flag_values=values)
  flags.DEFINE_integer('top', 3, 'how many classes to show for each image', 1, flag_values=values)
  flags.DEFINE_integer('sample', 0, 'how many tokens to continue the text by', 0, flag_values=values)
  flags.DEFINE_float(
    'temperature', 1.0, 'of --sample: below 1, likely tokens become likelier', 1e-3, flag_values=values
  )
  flags.DEFINE_integer('seed', 0, 'of the continuation', 0, flag_values=values)
  flags.DEFINE_bool('json', False, 'print JSON, with the probabilities of all classes', flag_values=values)


def prepare(argv: Sequence[str]) -> launch.Work:
  """Reads the model and what it is applied to."""
  values = launch.parse(argv, __doc__, own_flags)
  if not values.model:
    raise ValueError('--model is missing: name a folder that retrain has written.')
  if bool(values.images) == bool(values.text):
    raise ValueError('give either --images or --text.')
  launch.set_up_jax(1)
  path = export.choose(values.model)
  model = export.read(path)
  if isinstance(model, export.Classifier) != bool(values.images):
    takes = 'images' if isinstance(model, export.Classifier) else 'text'
    raise ValueError(f'{path} takes {takes}: give --{takes}.')
  if isinstance(model, export.Classifier):
    given = pictures.read(values.images, model.inputs, values.resize)
    if isinstance(model, export.Regressor):
      numbers = model
      return lambda check: show_numbers(path, numbers, given, values.json)
    labels = pictures.class_numbers(given.labels, model.classes)
    return lambda check: show_images(path, model, given, labels, values)
  words = launch.read_file(values.text, str)
  model.numbers(words)  # raises ValueError
  return lambda check: show_text(path, model, words, values)


def show_images(
  path: str, model: export.Classifier, given: pictures.Pictures, labels: np.ndarray | None, values: flags.FlagValues
) -> None:
  """Prints the classes of images, likeliest first, and the accuracy if the labels are known."""
  parts = range(0, len(given.names), AT_ONCE)
  probabilities = np.concatenate([np.asarray(model(given.images[first : first + AT_ONCE])) for first in parts])
  likeliest = probabilities.argsort(-1)[:, ::-1]
  found: dict[str, Any] = {'model': path}
  if labels is not None:
    found['accuracy'] = float(np.mean(likeliest[:, 0] == labels))
  if values.json:
    found['images'] = [
      {
        'image': name,
        'class': model.classes[order[0]],
        'probabilities': dict(zip(model.classes, map(float, row), strict=True)),
      }
      for name, order, row in zip(given.names, likeliest, probabilities, strict=True)
    ]
    print(json.dumps(found))
    return
  top = min(values.top, len(model.classes))
  header = ['image', 'class', 'probability', *['or', ''] * (top - 1)]
  lines = [
    [name, *(word for k in order[:top] for word in (model.classes[k], float(row[k])))]
    for name, order, row in zip(given.names, likeliest, probabilities, strict=True)
  ]
  print(f'model: {path}\n{rankings.table(header, lines)}')
  if labels is not None:
    print(f'accuracy: {found["accuracy"]:.4f} of {rankings.counted(len(labels), "image")}')


def show_numbers(path: str, model: export.Regressor, given: pictures.Pictures, as_json: bool) -> None:
  """Prints the number that is predicted of each image, and the root mean squared error if the labels are known."""
  parts = range(0, len(given.names), AT_ONCE)
  numbers = np.concatenate([np.asarray(model(given.images[first : first + AT_ONCE])) for first in parts])
  found: dict[str, Any] = {'model': path}
  if given.labels is not None:
    splits.check_numbers('given', given.labels)
    found['rmse'] = float(np.sqrt(np.mean((numbers - given.labels) ** 2)))
  if as_json:
    lines = zip(given.names, map(float, numbers), strict=True)
    print(json.dumps(found | {'images': [{'image': name, 'number': number} for name, number in lines]}))
    return
  rows = [[name, float(number)] for name, number in zip(given.names, numbers, strict=True)]
  print(f'model: {path}\n{rankings.table(["image", "number"], rows)}')
  if 'rmse' in found:
    print(f'root mean squared error: {found["rmse"]:.4g} of {rankings.counted(len(numbers), "image")}')


def show_text(path: str, model: export.LanguageModel, words: str, values: flags.FlagValues) -> None:
  """Prints the perplexity of a text, and how it may go on."""
  scored = model(words)
  found: dict[str, Any] = {
    'model': path,
    'tokens': len(scored.tokens),
    'perplexity': scored.perplexity,
    'bits': float(np.log2(scored.perplexity)),
  }
  if values.sample:
    key = jax.random.key(values.seed)
    found['sample'] = model.sample(words, values.sample, key, values.temperature)
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
