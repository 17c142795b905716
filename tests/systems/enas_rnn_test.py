"""Searches of ENAS from their flags to their page."""

import dataclasses
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import testing

from experiments import enas_search, retrain
from experiments.common import launch, search_flow, workdirs
from experiments.common import weight_sharing as flow
from experiments.common.progress import Progress
from experiments.common.stages import Run
from experiments.common.systems import ENAS, RECURRENT
from nas_jax import published, space
from nas_jax.datasets import image_batches, text_batches
from nas_jax.datasets import text as text_lib
from nas_jax.search import journal, weight_sharing
from nas_jax.systems import classifier, enas_images, enas_rnn, retrain_cell
from nas_jax.training import evaluators, fit, schedules
from nas_jax.training.recovery import NO_RECOVERY
from nas_jax.types import Batch

IMAGES, TEXT = testing.pictures(), testing.text()


@pytest.mark.parametrize(
  ('system', 'preset'),
  [(system, preset) for system in ENAS for preset in system.presets],
  ids=lambda x: getattr(x, 'kind', x),
)
def test_presets_are_sound(system, preset):
  """Each preset has a space and valid fields. Other data stand in for those of the papers."""
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
    (lambda: enas_images.make_problem(testing.macro_config(norm_first=False), IMAGES), r'norm_first \(=False\)'),
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
  monkeypatch.setattr(launch, 'set_up_jax', lambda at_most=None, processes=1: None)
  preset = [] if any('preset' in flag for flag in flags) else ['--preset=smoke']
  with pytest.raises((ValueError, launch.flags.Error)) as error:
    enas_search.prepare(['enas_search', f'--workdir={tmp_path}/run', *preset, *flags])
  assert all(word in str(error.value) for word in words), error.value
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize('norms', [True, False])
@pytest.mark.parametrize('first', [True, False])
def test_weight_decay_of_shared_weights(norms, first):
  """As in the released code, lambda times the sum of all squares is part of the loss whose gradient is clipped.

  So where the loss has no gradient and momentum is fresh, a step of Nesterov is 1.9 times the rate along 2 lambda w.
  """
  lamb, clip, lr = 0.05, 0.3, 0.5
  cfg = testing.macro_config(
    weight_decay=2 * lamb, decay_norms=norms, decay_before_clip=first, clip=clip, lr=lr, schedule='constant'
  )
  params = {'stem': {'kernel': jnp.array([3.0, 4.0]), 'scale': jnp.array([2.0]), 'shift': jnp.array([1.0])}}
  optimizer = enas_images.make_problem(cfg, IMAGES).optimizer(1)(())
  found, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
  whole = jax.grad(lambda params: lamb * sum((leaf**2).sum() for leaf in jax.tree.leaves(params)))(params)
  if not norms:
    whole['stem'] |= {'scale': jnp.zeros(1), 'shift': jnp.zeros(1)}
  norm = optax.tree.norm(whole)
  assert norm > clip
  scale = clip / norm if first else 1.0
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, -lr * 1.9 * scale * b, rtol=1e-5), found, whole)


@pytest.mark.parametrize('first', [True, False])
def test_weight_decay_of_recurrent_cells(first):
  cfg = testing.rnn_config(optimizer='sgd', schedule='constant', lr=1.0, clip=0.5, weight_decay=0.1)
  cfg = dataclasses.replace(cfg, decay_before_clip=first)
  optimizer = enas_rnn.make_problem(cfg, TEXT).optimizer(1)(())
  weights, grads = jnp.array([30.0, 40.0]), jnp.array([0.3, 0.0])
  found, _ = optimizer.update(grads, optimizer.init(weights), weights)
  wanted = grads + 0.1 * weights
  np.testing.assert_allclose(found, -(0.5 * wanted / jnp.linalg.norm(wanted) if first else wanted), rtol=1e-5)


def test_the_papers_presets_have_the_numbers_of_the_released_code():
  """Of scripts/*.sh of that code, where L2 is lambda times the sum of squares and dropout is a share that is kept."""
  macro, micro, code = enas_images.paper_macro(), enas_images.paper_micro(), enas_rnn.code()
  for cfg, lamb in ((macro, 2.5e-4), (micro, 1e-4)):
    assert cfg.entropy_weight == 1e-4 and cfg.weight_decay == pytest.approx(2 * lamb)
    assert cfg.decay_norms and cfg.decay_before_clip and cfg.whiten == 'channel'
  assert (macro.skip_weight, macro.skip_target, macro.skip_penalty) == (0.8, 0.4, 'mean')
  for preset in enas_images.MICRO_PRESETS.values():  # the code has drop path in the final network alone
    assert preset().drop_path == 1.0
  assert (code.controller_updates, code.m, code.batch, code.hidden, code.passes) == (100, 10, 20, 720, 100)
  assert (code.lr, code.lr_decay, code.clip, code.bptt) == (0.25, 0.95, 10.0, 35)
  rates = code.dropout_embedding, code.dropout_input, code.dropout_recurrent, code.dropout_output
  assert rates == (1 - 0.75, 1 - 0.25, 1 - 0.75, 1 - 0.25)
  # Its rate is 0.25 * 0.95^max(0, epoch - 12), with epochs counted from 0.
  rate = schedules.rate(code.schedule, code.lr, 100 * 7, 7, code.decay_epoch, code.lr_decay)
  found = [float(rate(7 * epoch)) for epoch in range(20)]
  np.testing.assert_allclose(found, [0.25 * 0.95 ** max(0, epoch - 12) for epoch in range(20)], rtol=1e-6)


def test_the_loss_of_recurrent_cells_is_summed_over_time_as_in_their_retraining():
  """With equal rate and clipping norm, a mean would make the steps of small gradients 35 times smaller."""
  final = retrain_cell.enas()
  for cfg in (enas_rnn.paper(), enas_rnn.code()):
    assert cfg.sum_over_time and cfg.bptt == final.bptt == 35
  assert (enas_rnn.paper().lr, enas_rnn.paper().clip) == (final.lr[0], final.clip) and final.sum_over_time
  text = text_lib.Text(*(np.arange(9_000, dtype=np.int32) % 7 for _ in range(3)), tuple('abcdefg'), 'none')
  cfg = dataclasses.replace(enas_rnn.paper(), hidden=4, weight_decay=0.0, schedule='constant')
  steps = []
  for one in (cfg, dataclasses.replace(cfg, sum_over_time=False)):
    optimizer = enas_rnn.make_problem(one, text).optimizer(1)(())
    steps.append(optimizer.update(jnp.array([1e-3]), optimizer.init(jnp.ones(1)), jnp.ones(1))[0])
  np.testing.assert_allclose(steps[0], 35 * steps[1], rtol=1e-5)


@pytest.mark.parametrize('changes', [{'score_batch': 1}, {'batch': 1}])
def test_one_stream_cannot_be_normalised(changes):
  cfg = testing.rnn_config(normalize=True, **changes)
  with pytest.raises(ValueError, match='normalize .=True. is over the streams .* at least 2') as error:
    enas_rnn.make_problem(cfg, TEXT)
  testing.one_line(error)


def test_a_minibatch_is_a_part_of_the_validation_split():
  cfg = testing.macro_config()
  (images,) = classifier.set_up(cfg, IMAGES).data
  starts, count = set(), len(IMAGES.valid.labels)
  assert (count, len(images.valid_labels)) == (9, 12)  # the last three fill up
  for number in range(60):
    part = enas_images.part_of(images, 4, count, jax.random.key(number))
    (start,) = (
      at
      for at in range(len(images.valid_labels) - 3)
      if np.array_equal(images.valid_images[at : at + 4], part.valid_images)
      and np.array_equal(images.valid_labels[at : at + 4], part.valid_labels)
    )
    starts.add(start)
  assert starts == set(range(count - 3)) and isinstance(part, image_batches.Data)
  text = text_batches.lay_out(TEXT, 3, 5, 4)
  some = enas_rnn.part_of(text, 3, jax.random.key(0))
  assert [x.shape for x in some.valid] == [(3, *x.shape[1:]) for x in text.valid]
  assert enas_rnn.part_of(text, 10**6, jax.random.key(0)).valid[0].shape == text.valid[0].shape


def test_alone_is_a_training_of_its_own():
  """It has its own initial weights in any batch, and is scored on the whole split by a metric of another name."""
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


def test_ranks_where_trainings_failed(tmp_path, monkeypatch):
  """A training that failed has no rank; its reward of 0 is no number. If all have failed, nothing is best."""
  cfg = testing.rnn_config(rank_children=4)
  problem = enas_rnn.make_problem(cfg, TEXT)
  run = Run(RECURRENT, cfg, TEXT, problem, str(tmp_path), NO_RECOVERY, {}, lambda cfg: TEXT, Progress())

  def trained(scores):
    lines = zip(scores, 3 * list(testing.random_tokens(problem.space, 4)), strict=True)
    score = {'failed': None, 'seconds': 1.0}
    return [
      {'id': k, 'tokens': tokens.tolist(), 'reward': 1 / (x or np.inf), 'perplexity': x, **score}
      | ({} if x else {'failed': 'loss'})
      for k, (x, tokens) in enumerate(lines)
    ]

  def rank(scores, shared):
    status = np.where(np.isfinite(shared), 0, fit.Status.NOT_FINITE)
    monkeypatch.setattr(flow, 'train_alone', lambda run: trained(scores))
    monkeypatch.setattr(flow, '_last_state', lambda found, cfg: types.SimpleNamespace(step=len(set(scores))))
    metrics = {'shared_perplexity': np.asarray(shared), 'failed': status}
    monkeypatch.setattr(weight_sharing, 'score', lambda *args: metrics)
    flow.rank(run, None, {'reinforce': None})
    return json.loads((tmp_path / 'ranks.json').read_text(), parse_constant=pytest.fail)

  # The second and the third of these orders agree wherever both trained.
  found = rank([2.0, 3.0, 4.0, None, 2.5, 3.5, None, 1.0, 4.0, 3.0, 2.0, 1.0], [2.0, np.nan, 3.0, 4.0])
  assert found['kendall'] == {'reinforce': 1.0, 'two seeds': 1.0, 'two seeds with other data seeds': -1.0}
  assert found['failed'] == {'reinforce': 2, 'two seeds': 2, 'two seeds with other data seeds': 1}
  assert found['alone'] == [2.0, 3.0, 4.0, None] and found['shared']['reinforce'][1] is None
  assert json.loads((tmp_path / 'random.json').read_text())['id'] == 0
  (tmp_path / 'random.json').unlink()
  found = rank([None] * 12, [2.0, 1.0, 3.0, 4.0])
  assert set(found['kendall'].values()) == {None} and not (tmp_path / 'random.json').exists()
  assert 'not measurable' in flow._in_words(run, found, [{'seconds': 0.0}])


@pytest.mark.parametrize(
  ('alone', 'shared', 'words'),
  [
    (10.0, 0.5, '; its 2 cells alone, 10 s each, would have taken 20 s: 20 times as long\n'),
    (0.001, 5.0, '; its 2 cells alone, 0.001 s each, would have taken 0.002 s: 0.0002 times as long\n'),
    (0.0, 0.5, '; its 2 cells alone, 0 s each, would have taken 0 s\n'),  # too fast for the clock
    (10.0, 0.0, 'the search took 0 s; its 2 cells alone, 10 s each, would have taken 20 s\n'),
  ],
)
def test_what_sharing_saves_is_said_only_where_it_was_measured(alone, shared, words):
  ranks = {'children': 1, 'passes': 1, 'kendall': {'reinforce': 0.5}, 'seconds': alone}
  run = types.SimpleNamespace(system=RECURRENT)
  text = flow._in_words(run, ranks, [{'seconds': shared}] * 2)
  assert text.endswith(words) and ' 0.0 times' not in text and ' 0 times' not in text
  assert text.startswith('Kendall rank correlation with 1 pass alone, 1 random cell: reinforce 0.50\n')


@pytest.mark.filterwarnings('ignore::DeprecationWarning')
@pytest.mark.long
def test_a_search_to_its_page_and_again(tmp_path, capsys):
  """With random search, and continued after its end. The last run trains nothing and prints the same."""
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
  for other in (range(3, 6), range(6, 9)):
    assert [alone[k]['tokens'] for k in range(3)] == [alone[k]['tokens'] for k in other]
  assert sorted(alone) == list(range(9)) and all('perplexity' in line for line in alone.values())
  random = json.loads((workdir / 'random.json').read_text())
  assert random['tokens'] == min((alone[k] for k in range(3)), key=lambda line: line['perplexity'])['tokens']
  ranks = json.loads((workdir / 'ranks.json').read_text())
  assert ranks['alone'] == [alone[k]['perplexity'] for k in range(3)]
  assert set(ranks['kendall']) == {'reinforce', 'random', 'two seeds', 'two seeds with other data seeds'}
  assert all(-1 <= value <= 1 for value in ranks['kendall'].values())
  page = (workdir / 'report.html').read_text()
  wanted = (
    'Derived after the search',
    'Scores are by weights shared for 2 passes',
    'Kendall',
    'random search, derived',
  )
  for words in (*wanted, 'because their shared weights are trained', '<svg'):
    assert words in page, words
  named = retrain.best_of(str(workdir), 1, RECURRENT)
  assert named == {f'derived {derived[0]["id"]}': space.from_json(json.dumps(best))}
  before = {name: (workdir / name).read_text() for name in ('children.jsonl', 'derived.json', 'alone.jsonl')}
  search_flow.run(RECURRENT, cfg, TEXT, str(workdir))
  assert {name: (workdir / name).read_text() for name in before} == before
  assert capsys.readouterr().out.split('derived cell')[1] == shown.split('derived cell')[1]
