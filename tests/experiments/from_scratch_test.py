"""What is trained beside the children of a search, once, and again if the config or a file asks for something else."""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
from testing import cell_config

from experiments.common import from_scratch, workdirs
from experiments.common.progress import Progress
from experiments.common.systems import CELL
from nas_jax.space import choice_space
from nas_jax.training import evaluators, fit
from nas_jax.types import Outcome

CFG = cell_config(yardstick_repeats=2, reliability_children=4)
MADE = CELL.make_space(CFG)
FIRST, SECOND = (MADE.decode([token] * MADE.length) for token in (0, 1))
MINE = 'runs/other/best.json'


class Trainings:
  """Trainings that count themselves. The perplexity of the k-th one is k."""

  count = 0

  def __call__(self, batch):
    scores = self.count + 1.0 + np.arange(len(batch.ids))
    self.count += len(scores)
    failed = np.zeros(len(scores), bool)
    return Outcome(1 / scores, {'perplexity': scores, 'failed': np.full(len(scores), fit.Status.OK)}, failed=failed)


@pytest.fixture
def trainings():
  return Trainings()


@pytest.fixture
def run(tmp_path):
  workdirs.open_config(str(tmp_path), CFG)

  def of(**changes):
    cfg, problem = dataclasses.replace(CFG, **changes), SimpleNamespace(space=choice_space({'width': ('4', '8')}))
    return SimpleNamespace(
      cfg=workdirs.open_config(str(tmp_path), cfg), system=CELL, workdir=str(tmp_path), problem=problem,
      progress=Progress(), beside={MINE: None},
    )  # fmt: skip

  return of


def _known(trainings, mine):
  return {name: evaluators.Known(arch, trainings) for name, arch in (('LSTM', FIRST), (MINE, mine))}


def test_known_architectures_are_trained_as_often_as_asked_for(run, trainings):
  known = _known(trainings, FIRST)
  assert from_scratch.measure_references(run(), known) == {'LSTM': [1, 2], MINE: [3, 4]}
  assert from_scratch.measure_references(run(), known) == {'LSTM': [1, 2], MINE: [3, 4]} and trainings.count == 4
  more = {'LSTM': [5, 6, 7], MINE: [8, 9, 10]}
  assert from_scratch.measure_references(run(yardstick_repeats=3), known) == more
  assert from_scratch.measure_references(run(yardstick_repeats=3), known) == more and trainings.count == 10


def test_a_file_that_holds_another_architecture_is_trained_again(run, trainings):
  from_scratch.measure_references(run(), _known(trainings, FIRST))
  for _ in range(2):
    found = from_scratch.measure_references(run(), _known(trainings, SECOND))
    assert found == {'LSTM': [1, 2], MINE: [5, 6]} and trainings.count == 6


def test_scores_that_an_earlier_version_wrote_are_kept_unless_their_file_may_have_changed(run, trainings, tmp_path):
  (tmp_path / 'yardsticks.json').write_text(json.dumps({'LSTM': [7.5, None], MINE: [8.5, 9.5], 'gone': [1.5]}))
  for _ in range(2):
    found = from_scratch.measure_references(run(), _known(trainings, FIRST))
    assert found == {'LSTM': [7.5, None], MINE: [1, 2]} and trainings.count == 2
  assert workdirs.read(str(tmp_path / 'yardsticks.json'))['gone'] == [1.5]


def test_reliability_is_measured_of_as_many_children_as_asked_for(run, trainings):
  """Two architectures exist: random ones are drawn with repetition, so four and six can be asked for all the same."""
  train = dict.fromkeys(['children', 'longer', 'other data'], trainings)
  four = from_scratch.measure_reliability(run(), CELL.alone, train)
  assert 'of 4 random cells' in four and trainings.count == 3 * 4
  assert from_scratch.measure_reliability(run(), CELL.alone, train) == four and trainings.count == 12
  six = from_scratch.measure_reliability(run(reliability_children=6), CELL.alone, train)
  assert 'of 6 random cells' in six and trainings.count == 12 + 3 * 6 + 4  # three of them longer, in batches of two
  assert from_scratch.measure_reliability(run(reliability_children=6), CELL.alone, train) == six
  assert trainings.count == 34
