"""Data sets that TensorFlow Datasets has prepared in a folder, read without TensorFlow."""

from collections.abc import Mapping
import glob
import json
import os
from typing import Any

from nas_jax import config, lazy


def prepared(dataset: str, data_dir: str, instead: str) -> Mapping[str, Any]:
  """Returns the splits of a data set, such as {'train': ..., 'test': ...}; each is a sequence of examples.

  The set must be stored as array_record, the format that can be read without TensorFlow.

  Args:
    dataset: its name in TensorFlow Datasets, as 'cifar10'.
    data_dir: the folder that it was prepared in.
    instead: an alternative to name at the end of error messages, as 'or take digits, which needs no folder'.

  Raises:
    ImportError: the packages that read data sets are not installed.
    ValueError: TensorFlow Datasets has no set of this name; `data_dir` is no folder; or the set is not in it as
      array_record, in which case the message has the command that prepares it.
  """
  for package in ('tensorflow_datasets', 'array_record', 'PIL'):  # the last two are used by the first
    lazy.require(package, f'dataset {dataset!r}')
  # A folder for each configuration, if the set has any, and in it one for each version.
  infos = glob.glob(os.path.join(data_dir, dataset.split(':')[0], '**', 'dataset_info.json'), recursive=True)
  if not infos:  # a prepared set need not be known to TFDS: it may be the user's own
    _check_name(dataset, instead)
  if not os.path.isdir(data_dir):
    raise ValueError(f'dataset {dataset!r} is read from a folder, and data_dir (={data_dir!r}) is none: name it.')
  formats = []
  for path in infos:
    with open(path, encoding='utf-8') as file:
      formats.append(json.load(file).get('fileFormat'))
  if 'array_record' not in formats:
    call = f"tfds.builder('{dataset}', data_dir='{data_dir}', file_format='array_record').download_and_prepare()"
    raise ValueError(
      f'{dataset} is not prepared as array_record in data_dir (={data_dir!r}): where TensorFlow is installed, run '
      f'python -c "import tensorflow_datasets as tfds; {call}", {instead}.'
    )
  import tensorflow_datasets as tfds

  return tfds.data_source(dataset, data_dir=data_dir, download=False)


def _check_name(dataset: str, instead: str) -> None:
  """Raises ValueError if TensorFlow Datasets has no set of this name; its list of sets needs no network."""
  import tensorflow_datasets as tfds

  known = tfds.list_builders(with_community_datasets=False)
  name = dataset.split('/')[0].split(':')[0]  # without configuration and version
  if name not in known:
    near = config.did_you_mean(name, known)
    raise ValueError(f'dataset (={dataset!r}) is no set of TensorFlow Datasets{near}: name one of its sets, {instead}.')
