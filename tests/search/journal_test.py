"""The journal, as lines of a file."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nas_jax import space
from nas_jax.search import journal
from nas_jax.training import fit
from nas_jax.types import Batch, Outcome


def batch():
  return Batch(jnp.array([4, 5]), jax.random.split(jax.random.key(0), 2), jnp.array([[0, 1], [2, 0]]), ())


def outcome():
  metrics = {
    'perplexity': np.array([3.5, np.inf], np.float32),
    'failed': np.array([fit.Status.OK, fit.Status.NOT_FINITE]),
  }
  return Outcome(jnp.array([0.1, 0.0], jnp.float32), metrics)


def test_records_by_hand():
  first, second = journal.records(batch(), outcome(), seconds=3.0)
  assert first == {
    'id': 4,
    'tokens': [0, 1],
    'reward': float(np.float32(0.1)),
    'perplexity': 3.5,
    'failed': None,
    'seconds': 1.5,
  }
  assert second['failed'] == 'loss or gradient not finite' and second['perplexity'] is None


def test_failure_is_noted_beside_the_reward_and_read_back():
  found = journal.records(batch(), outcome(), 1.0)
  assert journal.outcome(found).failed.tolist() == [False, True]
  own = Outcome(jnp.array([jnp.nan, -2.0]), failed=jnp.array([False, True]))  # of an evaluator without a `Status`
  lines = journal.records(batch(), own, 1.0)
  assert [(line['reward'], line['failed']) for line in lines] == [(0.0, journal.REWARD_MISSING)] * 2
  assert journal.records(batch(), Outcome(jnp.array([-1.0, -2.0])), 1.0)[1]['failed'] is None


def test_written_read_and_given_back_to_the_bit(tmp_path):
  path = str(tmp_path / 'children.jsonl')
  rewards = jnp.array([1 / 3, math.pi], jnp.float32)
  journal.writer(path)(journal.records(batch(), Outcome(rewards), 1.0))
  found = journal.read(path)
  assert (journal.outcome([found[4], found[5]]).reward == rewards).all()


def test_numbers_that_are_not_finite_become_null(tmp_path):
  """An evaluator of the user's own may put anything into its metrics."""
  path, odd = (
    tmp_path / 'children.jsonl',
    {'loss': math.inf, 'scores': (1.5, [-math.inf, math.nan]), 'more': {'x': math.nan}},
  )
  line = {'id': 0, 'tokens': [1], 'reward': 0.5, 'failed': None, 'seconds': 1.0}
  journal.writer(str(path))([line | odd])
  text = path.read_text()
  json.loads(text, parse_constant=lambda name: pytest.fail(f'{name} is not JSON'))
  assert journal.read(str(path)) == {0: line | {'loss': None, 'scores': [1.5, [None, None]], 'more': {'x': None}}}
  assert journal.encode(line).startswith(json.dumps(line)[:-1])  # other lines are as they were


@pytest.mark.parametrize('torn', ['{"id": 7, "tok', '[1]', 'null', '"x"', '\x00\x00', '{"tokens": []}'])
def test_a_torn_line_is_left_out_and_written_over(tmp_path, torn):
  path = tmp_path / 'children.jsonl'
  write = journal.writer(str(path))
  write(journal.records(batch(), outcome(), 1.0))
  with open(path, 'a') as file:
    file.write(torn)
  assert sorted(journal.read(str(path))) == [4, 5]
  later = batch()._replace(ids=jnp.array([6, 7]))
  write(journal.records(later, outcome(), 1.0))
  assert sorted(journal.read(str(path))) == [4, 5, 6, 7]
  assert json.loads(path.read_text().splitlines()[-1])['id'] == 7


def test_of_several_lines_of_a_step_the_last_counts(tmp_path):
  path = tmp_path / 'updates.jsonl'
  write = journal.writer(str(path))
  first, second, again = (
    {'step': step, 'children': 2 * step, 'reward': x} for step, x in ((1, 0.5), (2, 0.25), (2, 1))
  )
  write([first, second])
  with open(path, 'a') as file:
    file.write('{"step": 3, "rew')  # killed here, and resumed from step 1
  write([again])
  assert journal.read(str(path), by='step') == {1: first, 2: again}
  assert journal.read(str(path)) == {}


def test_no_journal_is_an_empty_one(tmp_path):
  assert journal.read(str(tmp_path / 'none')) == {}


def test_a_journal_of_another_search_is_refused():
  lines = journal.records(batch(), outcome(), 1.0)
  lines[1]['tokens'] = [9, 9]
  with pytest.raises(ValueError, match='child 5'):
    journal.agree(lines, batch())
  journal.agree(lines[:1], batch())


@pytest.mark.parametrize(
  'damaged', ['{"id": 7, "tok', '[1]', 'null', '{"id": 5}', '{"id": 9, "tokens": [1], "reward": 0.5, "failed": null}']
)
@pytest.mark.parametrize('last', [True, False])
def test_damaged_lines_are_moved_aside(tmp_path, damaged, last):
  path = tmp_path / 'children.jsonl'
  write = journal.writer(str(path))
  write(journal.records(batch(), outcome(), 1.0))
  sound = path.read_text()
  assert journal.drop_damaged_lines(str(path), str(tmp_path / 'damaged')) == 0 and not (tmp_path / 'damaged').exists()
  path.write_text(sound + damaged if last else damaged + '\n' + sound)
  assert journal.drop_damaged_lines(str(path), str(tmp_path / 'damaged')) == 1
  assert path.read_text() == sound and (tmp_path / 'damaged' / 'children.jsonl').read_text() == damaged + '\n'
  # Even a whole record is torn without the end of its line: what comes next would be appended to it.
  path.write_text(sound[:-1])
  assert journal.drop_damaged_lines(str(path), str(tmp_path / 'damaged')) == 1 and sorted(journal.read(str(path))) == [
    4
  ]
  assert journal.drop_damaged_lines(str(tmp_path / 'none'), str(tmp_path / 'damaged')) == 0


def test_no_flipped_bit_is_another_record(tmp_path):
  """Flips each bit of a journal in turn: the line is found to be damaged, or its record is unchanged."""
  path = tmp_path / 'children.jsonl'
  journal.writer(str(path))(journal.records(batch(), outcome(), 1.0))
  content, wanted = path.read_bytes(), journal.read(str(path))
  fewer = 0
  for bit in range(8 * len(content)):
    flipped = bytearray(content)
    flipped[bit // 8] ^= 1 << bit % 8
    path.write_bytes(flipped)
    found = journal.read(str(path))
    fewer += len(found) < len(wanted)
    for number, record in found.items():  # where the name of the checksum itself is hit, it is one more entry
      assert {name: record.get(name) for name in wanted[number]} == wanted[number], bytes(flipped)
  assert fewer > 7 * len(content)


def test_lines_without_a_checksum_are_older_ones(tmp_path):
  path = tmp_path / 'children.jsonl'
  old, new = ({'id': k, 'tokens': [0], 'reward': 0.5, 'failed': None, 'seconds': 0.1} for k in (0, 1))
  path.write_text(json.dumps(old) + '\n')
  assert journal.read(str(path)) == {0: old}
  journal.writer(str(path))([new])
  assert journal.read(str(path)) == {0: old, 1: new}
  with open(path, 'a') as file:  # not an older one, after a line that has one
    file.write(json.dumps(old | {'id': 2}) + '\n')
  assert journal.read(str(path)) == {0: old, 1: new}
  assert journal.drop_damaged_lines(str(path), str(tmp_path / 'damaged')) == 1


@pytest.mark.parametrize(
  'change',
  [
    {'id': '0'}, {'id': True}, {'id': -1}, {'id': 2**40}, {'tokens': 'ab'}, {'tokens': [0.0, 1]}, {'tokens': [0]},
    {'tokens': [0, 9]}, {'tokens': [0, -1]}, {'reward': '0.5'}, {'reward': None}, {'reward': [0.5]}, {'reward': {}},
    {'seconds': None}, {'seconds': -1}, {'failed': 3}, {'depth': 0}, {'depth': 3}, {'perplexity': '3'},
    {'perplexity': [3.5]}, {'reward': 10**30},
  ],
)  # fmt: skip
def test_a_child_has_a_schema(change):
  fits = journal.child_of(space.choice_space({'a': 'xy', 'b': 'xyz'}))
  record = {'id': 0, 'tokens': [1, 2], 'reward': 0.5, 'depth': 1, 'perplexity': 3.5, 'failed': None, 'seconds': 0.1}
  assert fits(record) and fits(record | {'perplexity': None, 'failed': 'out of memory'})
  assert not fits(record | change)
  for name in ('id', 'tokens', 'reward', 'failed', 'seconds'):
    assert not fits({key: value for key, value in record.items() if key != name})
