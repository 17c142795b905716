"""The data of every system depends on data_seed alone, which follows the seed of the run unless it is given."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from experiments.common import workdirs
from experiments.common.systems import SYSTEMS
from nas_jax.systems import cell

ALL = pytest.mark.parametrize('system', SYSTEMS, ids=[system.kind for system in SYSTEMS])


def differs(a, b) -> bool:
  return any(not np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


@ALL
def test_the_data_of_a_search(system):
  def data(**changes):
    cfg = dataclasses.replace(system.presets['smoke'](), **changes)
    return system.make_problem(cfg, system.load(cfg, '')).data

  plain = data()
  assert not differs(plain, data(seed=7, data_seed=0))
  assert differs(plain, data(seed=7))
  assert not differs(data(seed=7), data(data_seed=7))


@ALL
def test_the_data_of_a_retraining(system):
  recipe, preset = system.retrain, system.presets['smoke']()
  if recipe is None:
    pytest.skip('nothing retrains its architectures')
  made = system.make_space(preset)
  arch = made.decode(np.zeros(made.length, int))

  def data(**changes):
    cfg = dataclasses.replace(recipe.presets['smoke'](), **changes)
    task = recipe.task(cfg, system.load(cfg, ''), arch, recipe.sizes(cfg)[0], 1, False)
    return task.data, task.test

  plain = data()
  assert not differs(plain, data(seed=7, data_seed=0))
  assert differs(plain[0], data(seed=7)[0])
  assert not differs(data(seed=7), data(data_seed=7))


def test_a_workdir_keeps_its_seed_of_the_data(tmp_path):
  cfg, new, old = dataclasses.replace(cell.smoke(), seed=7), str(tmp_path / 'new'), tmp_path / 'old'
  begun = workdirs.settled(new, cfg)
  assert begun.data_seed == 7
  workdirs.open_config(new, begun)
  assert workdirs.settled(new, cfg) == begun
  # A workdir of before this field had data that did not depend on the seed, and goes on with it.
  saved = json.loads((tmp_path / 'new' / 'config.json').read_text())
  del saved['data_seed']
  old.mkdir()
  (old / 'config.json').write_text(json.dumps(saved))
  resumed = workdirs.settled(str(old), cfg)
  assert resumed.data_seed == 0 and workdirs.open_config(str(old), resumed) == resumed
  with pytest.raises(ValueError, match=r'data_seed \(0 -> 7\)'):
    workdirs.open_config(str(old), begun)


def test_a_damaged_config_does_not_choose_the_data(tmp_path):
  cfg = dataclasses.replace(cell.smoke(), seed=3)
  begun = workdirs.settled(str(tmp_path), cfg)
  workdirs.open_config(str(tmp_path), begun)
  workdirs.write_config(str(tmp_path), begun)
  path = tmp_path / 'config.json'
  path.write_text(path.read_text().replace('"data_seed": 3', '"data_seed": 2'))
  again = workdirs.settled(str(tmp_path), cfg)
  with pytest.warns(UserWarning, match=r'config.json is damaged: taken from origin.json'):
    assert workdirs.open_config(str(tmp_path), again) == begun
