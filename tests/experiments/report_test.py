"""The report of every system is made only from the files of a workdir."""

import numpy as np
import pytest

from experiments import report
from experiments.common import systems, workdirs
from nas_jax.search import journal
from nas_jax.types import Batch, Outcome


@pytest.mark.parametrize('system', systems.SYSTEMS, ids=lambda system: system.name)
def test_a_search_that_was_cut_off_has_a_page(system, tmp_path):
  """The journal has three children of the smallest preset, one of which has failed."""
  preset = next(name for name in system.presets if 'smoke' in name)
  cfg = system.presets[preset]()
  made, rng = system.make_space(cfg), np.random.default_rng(0)
  limits = [2 if made.slots[i].kind == made.slots[i].kind.LINK else made.slots[i].width for i in made.owner]
  tokens = np.array([[rng.integers(limit) for limit in limits] for _ in range(3)])
  rewards = np.array([0.25, 0.5, 0.125])
  batch = Batch(tokens=tokens, ids=np.arange(3), keys=None, archs=None)
  outcome = Outcome(rewards, {system.metric.key: 1 / rewards}, failed=np.array([False, True, False]))
  workdirs.write_config(str(tmp_path), cfg)
  workdirs.note_origin(str(tmp_path), system.launcher, ['x'], cfg)
  journal.writer(str(tmp_path / 'children.jsonl'))(journal.records(batch, outcome, 1.5))

  found = report.read(str(tmp_path))
  assert [record['failed'] for record in found.runs[0].records] == [None, journal.REWARD_MISSING, None]
  assert found.standings[1][0][1] == (4.0 if system.metric.lower else 8.0)
  assert journal.REWARD_MISSING in report.make(str(tmp_path))
