"""Saves the networks that `retrain` has trained, each in a folder that `nas_jax.load` reads."""

from collections.abc import Mapping
import os
from typing import Any

import jax
import numpy as np

from nas_jax import export, files
from nas_jax.systems import retrain


def keep(
  folder: str,
  recipe: retrain.Recipe,
  cfg: retrain.Config,
  data: Any,
  arch: retrain.Arch,
  size: str,
  point: Any,
  best: Any,
  found: Mapping[str, Any],
) -> export.Cost:
  """Writes trained networks, each with its scores, to folders named model-SIZE-NUMBER. Existing ones are replaced.

  A training that failed, so that its test score is not finite, leaves no network, nor that of fewer epochs.

  Args:
    folder: of the trainings of the architecture.
    recipe: the recipe of the training.
    cfg: of the recipe.
    data: as the system's `load` returns it.
    arch: the architecture.
    size: one of `recipe.sizes(cfg)`.
    point: the hyperparameters of all trainings.
    best: (weights, carry) of the trainings, leaves [m, ...]; further rows are ignored.
    found: 'test' [m], and 'valid' [m] or the grid's 'validated' [1], which may be empty: the losses to save.

  Returns:
    The cost of one of these networks, which are equally large.

  Raises:
    OSError: a file cannot be written.
  """
  card = recipe.card(cfg, data, arch, size, point)
  cost = export.cost(export.module(card.arch, **card.options), card.inputs.example)
  valid = found.get('valid') or found.get('validated') or [None]
  for k, test in enumerate(found['test']):
    path = os.path.join(folder, f'model-{size}-{k}')
    if not np.isfinite(test):
      files.remove(path)
      continue
    params, carry = jax.tree.map(lambda leaf, k=k: np.asarray(leaf[k]), best)
    export.save(
      path,
      card,
      export.variables(arch, params, carry),
      scores={'metric': recipe.metric, 'valid': valid[min(k, len(valid) - 1)], 'test': test},
      **cost._asdict(),
      settings=recipe.describe(point),
      training=recipe.setting(cfg, data),
    )
  return cost
