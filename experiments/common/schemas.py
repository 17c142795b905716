"""The schemas of the JSON files of a workdir, by file name; see `files.mismatch`. `journal` has those of journals."""

from collections.abc import Mapping
import os
import types
from typing import Any

from nas_jax import files
from nas_jax.files import Each, is_count, is_number

# Files of losses. Null in them is the loss of a training that has no finite one.
WITH_LOSSES = ('trainings.json', 'result.json')
_LOSSES = [(is_number, None)]
_MEASURED = (is_number, None)  # None if it could not be measured
_RESULT: files.Schema = {
  'parameters': int,
  'multiply_adds?': int,
  'size': (str, is_count),
  'valid?': _LOSSES,
  'test?': _LOSSES,
}


def _some_losses(value: Any) -> bool:
  return isinstance(value, list) and bool(value) and not files.mismatch(value, _LOSSES)


def _derived(value: Any) -> bool:
  line: files.Schema = {
    'id': is_count,
    'tokens': [is_count],
    'reward': is_number,
    'failed': (str, None),
    'step': is_count,
  }
  return isinstance(value, list) and bool(value) and not files.mismatch(value, [line])


def _trainings(value: Any) -> bool:
  """Returns whether a value fits trainings.json: see `retraining.train_stage`.

  Entries of the grid have validation scores, others test scores. All lists of an entry are of its m trainings.
  """

  def fits(key: str, entry: Mapping[str, Any]) -> bool:
    curve, scores = entry['curve'], [entry[name] for name in ('valid', 'test') if name in entry]
    return (
      len({len(losses) for losses in curve}) == 1
      and len(curve[0]) > 0
      and all(len(losses) == len(curve) for losses in scores)
      and ('valid' if key.startswith('grid at ') else 'test') in entry
    )

  return not files.mismatch(value, Each({**_RESULT, 'curve': [_LOSSES]})) and all(
    fits(key, entry) for key, entry in value.items()
  )


SCHEMAS: Mapping[str, files.Schema] = types.MappingProxyType(
  {
    'config.json': {},
    'origin.json': {
      'config?': {},
      'jax_settings?': {},
      'kind?': str,
      'system?': str,
      'command?': str,
      'dataset?': str,
      'sha256?': str,
      'devices?': str,
      'hosts?': is_count,
      'jax?': str,
      'max_children?': is_count,
      'start_from?': Each(str),
    },
    'best.json': {'kind': str, 'arch': {}},
    'top.json': [{'kind': str, 'arch': {}}],
    'start.json': {'files': Each(str), 'told': [{}], 'first': [[is_count]], 'said': [str], 'sha256': str},
    'reliability.json': {
      'seeds': _MEASURED,
      'data_seeds?': _MEASURED,
      'budget?': _MEASURED,
      'children': is_count,
      'quarter?': Each(_MEASURED),
      'failed?': Each(is_count),
      'regret?': Each(_MEASURED),
    },
    'ranking.json': {
      'setting': str,
      'cells': is_count,
      'unfinished': is_count,
      'failed': is_count,
      'best': [{'cell': str, 'perplexity': is_number}],
      'rows': [
        {
          'recipe': str,
          'settings': str,
          'steps': is_count,
          'steps_each': is_count,
          'failed': is_count,
          'all': _MEASURED,
          'quarter': _MEASURED,
          'regret': _MEASURED,
          'regret5': _MEASURED,
        }
      ],
    },
    'yardsticks.json': Each(([_MEASURED], {'arch': str, 'scores': [_MEASURED]})),
    'derived.json': _derived,
    'ranks.json': {
      'children': is_count,
      'passes': is_count,
      'kendall': Each(_MEASURED),
      'spearman': Each(_MEASURED),
      'failed?': Each(is_count),
      'seconds': is_number,
      'step': [is_count],
    },
    'trainings.json': _trainings,
    'result.json': {
      'rows': [
        {
          **_RESULT,
          'name': str,
          'epochs': is_count,
          'repeats': is_count,
          'settings?': str,
          'valid': _LOSSES,
          'test': _some_losses,
        }
      ],
      'setting': str,
    },
    'cells.json': Each({}),
    'lost.json': [is_count],
  }
)


def of(path: str) -> files.Schema:
  """Returns the schema of a JSON file; for a name that no workdir has, it is `object`, which accepts everything."""
  return SCHEMAS.get(os.path.basename(path), object)
