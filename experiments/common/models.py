"""Saves the networks that `retrain` has trained, each in a folder that `nas_jax.load` reads."""

from collections.abc import Mapping
import os
from typing import Any

import jax
import numpy as np

from nas_jax import export
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
  """Writes trained networks, each with its scores, to folders named model-SIZE-NUMBER. What was there is replaced.

  A training that failed, whose test score is not finite, leaves none.

  Args:
    folder: of the trainings of the architecture.
    recipe: how it was trained.
    cfg: of the recipe.
    data: as the system's `load` returns it.
    arch: the architecture.
    size: as `recipe.sizes` has it.
    point: the hyperparameters, which all trainings had.
    best: the child's weights, and the carry with them, of each training [m, ...], or of more.
    found: what trainings.json will say of them: 'valid' or, of the grid, 'validated', if there are any; and 'test'.

  Returns:
    The cost of such a network.

  Raises:
    OSError: a file cannot be written.
  """
  card = recipe.card(cfg, data, arch, size, point)
  cost = export.cost(export.module(card.arch, **card.options), card.inputs.example)
  valid = found.get('valid') or found.get('validated') or [None]
  for k, test in enumerate(found['test']):
    if not np.isfinite(test):
      continue
    params, carry = jax.tree.map(lambda leaf, k=k: np.asarray(leaf[k]), best)
    export.save(
      os.path.join(folder, f'model-{size}-{k}'),
      card,
      export.variables(arch, params, carry),
      scores={'metric': recipe.metric, 'valid': valid[min(k, len(valid) - 1)], 'test': test},
      **cost._asdict(),
      settings=recipe.describe(point),
      training=recipe.setting(cfg, data),
    )
  return cost
