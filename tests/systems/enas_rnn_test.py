"""Searches of ENAS from their flags to their page."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import testing

from experiments import enas_search, retrain
from experiments.common import launch, search_flow, workdirs
from experiments.common.systems import ENAS, RECURRENT
from nas_jax import published, space
from nas_jax.datasets import image_batches, text_batches
from nas_jax.datasets import text as text_lib
from nas_jax.search import journal
from nas_jax.systems import classifier, enas_images, enas_rnn
from nas_jax.training import evaluators
from nas_jax.types import Batch

IMAGES, TEXT = testing.pictures(), testing.text()


@pytest.mark.parametrize(
  ('system', 'preset'),
  [(system, preset) for system in ENAS for preset in system.presets],
  ids=lambda x: getattr(x, 'kind', x),
)
def test_presets_are_sound(system, preset):
  """Each is of a space, and its fields can be; on other data, for those of the papers are not here."""
  cfg = system.presets[preset]()
  made = system.make_space(cfg)
  assert cfg.samples == cfg.passes * cfg.controller_updates * cfg.m and made.size() > 1
  assert dataclasses.replace(cfg, max_children=3).samples == 3
  if system is not RECURRENT:
    enas_images.check(cfg)
  else:
    words = text_lib.Text(*(np.arange(20_500, dtype=np.int32) % 7 for _ in range(3)), tuple('abcdefg'), 'none')
    assert enas_rnn.make_problem(cfg, words).steps >= 1


def test_the_papers_spaces_hold_the_published_cells():
  micro = enas_images.make_space(enas_images.paper_micro())
  assert micro.check(published.ENAS_MICRO) == 1 and enas_images.make_space(enas_images.paper_macro()).size() > 1e29
  assert enas_rnn.make_space(enas_rnn.paper()).check(published.ENAS_RNN) == 1


@pytest.mark.parametrize(
  ('build', 'words'),
  [
    (lambda: enas_images.make_problem(testing.macro_config(operations=('conv 4',)), IMAGES), 'operations .*conv 3'),
    (lambda: enas_images.make_problem(testing.micro_config(blocks=0), IMAGES), r'blocks \(=0\)'),
    (lambda: enas_images.make_problem(testing.micro_config(norm='none'), IMAGES), r'norm \(=none\).*batch, moving'),
    (lambda: enas_images.make_problem(testing.macro_config(depth_start=2), IMAGES), r'depth_start \(=2\)'),
    (lambda: enas_rnn.make_problem(testing.rnn_config(activate=('tanh', 'gelu')), TEXT), 'activate .*sigmoid'),
    (lambda: enas_rnn.make_problem(testing.rnn_config(batch=500), TEXT), r'batch \(=500\)'),
    (lambda: enas_rnn.make_problem(testing.rnn_config(passes=0), TEXT), r'passes \(=0\)'),
  ],
)
def test_what_cannot_be_is_one_line(build, words):
  with pytest.raises(ValueError, match=words) as error:
    build()
  assert '\n' not in str(error.value)


@pytest.mark.parametrize(
  ('flags', 'words'),
  [
    (['--variant=micro', '--layers=3'], ('--layers', '--variant=macro')),
    (['--variant=macro', '--nodes=3'], ('--nodes', '--variant=recurrent')),
    (['--variant=macro', '--preset=code'], ("'code'", '--variant=macro', 'paper, small')),
    (['--variant=cells'], ('variant', 'macro')),
    (['--controller_updates=0'], ('controller_updates (=0)', 'at least 1')),
    (['--max_children=-1'], ('max_children (=-1)', 'at least 0')),
  ],
)
def test_a_wrong_flag_is_one_line(monkeypatch, tmp_path, flags, words):
  monkeypatch.setattr(launch, 'set_up_jax', lambda at_most=None: None)
  preset = [] if any('preset' in flag for flag in flags) else ['--preset=smoke']
  with pytest.raises((ValueError, launch.flags.Error)) as error:
    enas_search.prepare(['enas_search', f'--workdir={tmp_path}/run', *preset, *flags])
  assert all(word in str(error.value) for word in words), error.value
  assert not (tmp_path / 'run').exists()


def test_a_minibatch_is_a_part_of_the_validation_split():
  cfg = testing.macro_config()
  (images,) = classifier.set_up(cfg, IMAGES).data
  starts = set()
  for number in range(20):
    part = enas_images.part_of(images, 4, jax.random.key(number))
    (start,) = (
      at
      for at in range(0, len(images.valid_labels), 4)
      if np.array_equal(images.valid_images[at : at + 4], part.valid_images)
      and np.array_equal(images.valid_labels[at : at + 4], part.valid_labels)
    )
    starts.add(start)
  assert starts == set(range(0, len(images.valid_labels), 4)) and isinstance(part, image_batches.Data)
  text = text_batches.lay_out(TEXT, 3, 5, 4)
  some = enas_rnn.part_of(text, 3, jax.random.key(0))
  assert [x.shape for x in some.valid] == [(3, *x.shape[1:]) for x in text.valid]
  assert enas_rnn.part_of(text, 10**6, jax.random.key(0)).valid[0].shape == text.valid[0].shape


def test_alone_is_a_training_of_its_own():
  """From its own initial weights, whatever the batch; scored on the whole split by a metric of another name."""
  cfg = testing.rnn_config(epochs=2)
  problem = enas_rnn.make_problem(cfg, TEXT)
  tokens = jnp.array([[0, 0, 1, 1, 2], [1, 0, 0, 0, 1]], jnp.int32)
  keys = jax.random.split(jax.random.key(0), 2)
  train = evaluators.build(problem)

  def score(places):
    at = jnp.array(places)
    batch = Batch(at, keys[at], tokens[at], problem.space.decode_batch(tokens[at]))
    return train(batch)

  both, second = score([0, 1]), score([1, 1])
  assert set(both.metrics) == {'perplexity', 'loss', 'failed'}
  np.testing.assert_allclose(both.metrics['perplexity'][1], second.metrics['perplexity'], rtol=1e-6)
  np.testing.assert_allclose(both.reward, 80.0 / both.metrics['perplexity'], rtol=1e-6)
  assert both.metrics['perplexity'].max() < 5.0  # uniform would be 5


@pytest.mark.filterwarnings('ignore::DeprecationWarning')
@pytest.mark.long
def test_a_search_to_its_page_and_again(tmp_path, capsys):
  """With its control, and more to it after its end; the last time trains nothing and says the same."""
  cfg, workdir = testing.rnn_config(), tmp_path / 'search'
  workdirs.open_config(str(workdir), cfg)
  search_flow.run(RECURRENT, dataclasses.replace(cfg, max_children=4), TEXT, str(workdir))
  early = {name: json.loads((workdir / f'{name}.json').read_text()) for name in ('derived', 'ranks')}
  assert len(journal.read(str(workdir / 'children.jsonl'))) == 4 and early['derived'][0]['step'] == 2
  capsys.readouterr()
  search_flow.run(RECURRENT, cfg, TEXT, str(workdir))
  late = {name: json.loads((workdir / f'{name}.json').read_text()) for name in early}
  assert late['derived'][0]['step'] == 4 and late['ranks']['step'] == [4, 4]
  assert late['ranks']['alone'] == early['ranks']['alone'] and late['ranks']['shared'] != early['ranks']['shared']
  shown = capsys.readouterr().out
  for words in ('derived cell', 'c_0 = sigmoid', 'reinforce, derived', 'random, derived', 'Kendall', 'times as long'):
    assert words in shown, words
  assert 'validation perplexity' in shown and 'shared-weight validation perplexity' in shown
  records = journal.read(str(workdir / 'children.jsonl'))
  assert sorted(records) == list(range(8))
  assert all('shared_perplexity' in record and 'perplexity' not in record for record in records.values())
  derived = json.loads((workdir / 'derived.json').read_text())
  scores = [line['shared_perplexity'] for line in derived]
  assert scores == sorted(scores) and len(scores) == 3
  best = json.loads((workdir / 'best.json').read_text())
  assert best['tokens'] == derived[0]['tokens'] and space.from_json(json.dumps(best)).activate
  alone = journal.read(str(workdir / 'alone.jsonl'))
  assert [alone[k]['tokens'] for k in range(3)] == [alone[k]['tokens'] for k in range(3, 6)]
  assert sorted(alone) == [0, 1, 2, 3, 4, 5] and all('perplexity' in line for line in alone.values())
  random = json.loads((workdir / 'random.json').read_text())
  assert random['tokens'] == min((alone[k] for k in range(3)), key=lambda line: line['perplexity'])['tokens']
  ranks = json.loads((workdir / 'ranks.json').read_text())
  assert ranks['alone'] == [alone[k]['perplexity'] for k in range(3)]
  assert set(ranks['kendall']) == {'reinforce', 'random', 'two seeds'}
  assert all(-1 <= value <= 1 for value in ranks['kendall'].values())
  page = (workdir / 'report.html').read_text()
  wanted = ('Derived after the search', 'Scores are by weights shared for 2 passes', 'Kendall', 'random, derived')
  for words in (*wanted, 'the weights that they share learn', '<svg'):
    assert words in page, words
  named = retrain.best_of(str(workdir), 1, RECURRENT)
  assert named == {f'derived {derived[0]["id"]}': space.from_json(json.dumps(best))}
  before = {name: (workdir / name).read_text() for name in ('children.jsonl', 'derived.json', 'alone.jsonl')}
  search_flow.run(RECURRENT, cfg, TEXT, str(workdir))
  assert {name: (workdir / name).read_text() for name in before} == before
  assert capsys.readouterr().out.split('derived cell')[1] == shown.split('derived cell')[1]
