"""The report of every system is made only from the files of a workdir."""

import contextlib
import dataclasses
import io
import json
import types

import numpy as np
import pytest

from experiments.common import from_scratch, reports, systems, workdirs
from nas_jax import draw, files, words
from nas_jax.report import rankings
from nas_jax.search import journal
from nas_jax.space import network
from nas_jax.types import Batch, Outcome

DERIVED = {'id': 0, 'tokens': [0, 0, 3, 0, 1], 'reward': 16.0, 'failed': None, 'step': 4, 'shared_perplexity': 5.0}


@pytest.mark.parametrize(
  'change', [{'shared_perplexity': 'x'}, {'shared_perplexity': None}, {'tokens': [9, 0, 3, 0, 1]}, {'tokens': [0]}]
)
def test_a_derived_architecture_that_does_not_fit_is_one_line(tmp_path, change):
  system = systems.RECURRENT
  cfg = dataclasses.replace(system.presets['smoke'](), nodes=3)
  workdirs.write_config(str(tmp_path), cfg)
  workdirs.note_origin(str(tmp_path), system.launcher, ['x'], cfg)
  path = tmp_path / 'derived.json'
  path.write_text(json.dumps([DERIVED]))
  assert reports.read(str(tmp_path)).derived == {'reinforce': 5.0}
  path.write_text(json.dumps([DERIVED, DERIVED | change]))
  with pytest.raises(files.Unusable, match=r'derived.json cannot be read.*shared_perplexity.*remove it\.$'):
    reports.make(str(tmp_path))


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

  found = reports.read(str(tmp_path))
  assert [record['failed'] for record in found.runs[0].records] == [None, journal.REWARD_MISSING, None]
  assert found.standings[1][0][1] == (4.0 if system.metric.lower else 8.0)
  text = reports.make(str(tmp_path))
  assert journal.REWARD_MISSING in text
  # The numbers in the heading, in the table of scores and in the table of all children are the same.
  assert 'In 3 children (1 failed) the search found' in text
  assert found.standings[1][0][4].startswith('3 children, ') and found.standings[1][0][4].endswith(' 1 failed')
  assert text.partition('class="sortable"')[2].count('<td>the search</td>') == 3

  assert f'{words.counted(system.children(cfg), "child", "children")}, ' in dict(found.glance)['budget']
  workdirs.note_origin(str(tmp_path), system.launcher, ['x'], cfg, max_children=2)
  budget = dict(reports.read(str(tmp_path)).glance)['budget']
  assert budget.startswith('2 children (3 were trained, because the last update was finished), ')


def test_blocks_and_pools_are_shown(tmp_path):
  """Each predicted layer is two, and before the second one features are pooled: the network that was trained."""
  system, options = systems.CONV, network.NetworkOptions(block=2, pools=(2,))
  cfg = dataclasses.replace(system.presets['smoke'](), block=2, pool_at=(2,))
  made = system.make_space(cfg)
  record = {'id': 0, 'tokens': [0, 0, 0, 0, 0, 0, 1], 'reward': 0.5, 'accuracy': 0.8, 'failed': None, 'seconds': 1.0}
  arch = made.decode(record['tokens'])
  workdirs.write_config(str(tmp_path), cfg)
  workdirs.note_origin(str(tmp_path), system.launcher, ['x'], cfg)
  journal.writer(str(tmp_path / 'children.jsonl'))([record])
  workdirs.write(str(tmp_path / 'best.json'), rankings.best_json(made, record))
  wanted = network.describe(arch, options)
  assert wanted.count('conv') == 4 and 'max pool 2' in wanted != network.describe(arch)
  found = reports.read(str(tmp_path))
  (winner,) = found.winners
  assert winner.text == wanted and winner.drawing == draw.svg(arch, options) != draw.svg(arch)
  with contextlib.redirect_stdout(io.StringIO()) as shown:
    exec(found.use[0].code.replace(f"open('{tmp_path}/best.json').read()", repr(made.to_json(arch))), {})
  assert shown.getvalue() == wanted + '\n'
  run = types.SimpleNamespace(system=system, cfg=cfg, problem=types.SimpleNamespace(space=made))
  assert from_scratch.best_child(run, types.SimpleNamespace(folder=str(tmp_path), records=[record])).endswith(wanted)
