"""The progress of a run: bars in a terminal, few lines elsewhere, and an estimate of the time left."""

import contextlib
import dataclasses
import fcntl
import os
import pty
import re
import struct
import sys
import termios

import numpy as np
import pytest

from experiments.common import final_choice, from_scratch, streams
from experiments.common.progress import Progress, counted, duration
from experiments.common.systems import CELL
from nas_jax.types import Outcome


class Clock:
  now = 100.0

  def __call__(self):
    return self.now


@pytest.fixture
def clock():
  return Clock()


@pytest.mark.parametrize(
  ('seconds', 'words'),
  [(0.4, '0 s'), (59.4, '59 s'), (59.6, '1 min'), (3580, '1 h'), (7830, '2 h 10 min'), (172799, '2 days')],
)
def test_times_are_in_their_largest_units(seconds, words):
  assert duration(seconds) == words


def test_without_a_terminal_there_is_a_line_in_ten_seconds_and_one_for_each_end(clock, capsys):
  """Two phases of 60 s, three seconds a child: 20 calls each, and a line at 0, then each time more than 10 s later."""
  progress = Progress({'search': 20, 'random': 20}, clock)
  for name in ('search', 'random'):
    with progress.phase(name, 20, 'children') as advance:
      for _ in range(20):
        clock.now += 3
        advance(1, 'best 2')
  shown = capsys.readouterr()
  assert not shown.out
  # By hand: at the pace of 3 s there are 40 - 4 children left after four of them, which is 108 s.
  assert shown.err.splitlines() == [
    'search: 0 of 20 children',
    'search: 4 of 20 children, best 2, 12 s, about 2 min left',
    'search: 8 of 20 children, best 2, 24 s, about 2 min left',
    'search: 12 of 20 children, best 2, 36 s, about 1 min left',
    'search: 16 of 20 children, best 2, 48 s, about 1 min left',
    'search: 20 children in 1 min',
    'random: 4 of 20 children, best 2, 12 s, about 48 s left',
    'random: 8 of 20 children, best 2, 24 s, about 36 s left',
    'random: 12 of 20 children, best 2, 36 s, about 24 s left',
    'random: 16 of 20 children, best 2, 48 s, about 12 s left',
    'random: 20 children in 1 min',
  ]


def test_what_is_left_counts_all_phases_by_their_work(clock, capsys):
  """The first call compiled for 500 s, which must not count for the pace."""
  progress = Progress({'quick': 10, 'long': 100, 'unknown': float('nan'), 'not needed': 1000}, clock)
  progress.drop('not needed')
  with progress.phase('quick', 10, 'children') as advance:
    clock.now += 500
    advance(2)
    clock.now += 20
    advance(2)  # 10 s each: 6 + 100 are left
    clock.now += 20
    advance(2)
    clock.now += 40
    advance(4)
  with progress.phase('long', 20, 'trainings', done=10) as advance:  # half of them were done before, 5 of work each
    clock.now += 11
    advance(1, work=10)
  with progress.phase('unknown', 4, 'trainings') as advance:
    clock.now += 20
    advance(1)
  lines = capsys.readouterr().err.splitlines()
  assert lines[2] == 'quick: 4 of 10 children, 9 min, about 18 min left before unknown'
  assert lines[3] == 'quick: 6 of 10 children, 9 min, about 17 min left before unknown'
  assert [line for line in lines if line.startswith('long')] == [
    'long: 11 of 20 trainings, 11 s, about 7 min left before unknown', 'long: 11 trainings in 11 s',
  ]  # fmt: skip
  # Of four as long as the last pace says, until there is another.
  assert lines[-2] == 'unknown: 1 of 4 trainings, 20 s, about 30 s left'


def test_a_phase_may_turn_out_to_be_longer(clock, capsys):
  progress = Progress({'grid': 4, 'rest': 10}, clock)
  with progress.phase('grid', 4, 'epochs') as advance:
    for _ in range(3):
      clock.now += 11
      advance(2)
  # The second call says nothing, as it seemed to be the last.
  assert capsys.readouterr().err.splitlines() == [
    'grid: 0 of 4 epochs',
    'grid: 2 of 4 epochs, 11 s, about 1 min left',
    'grid: 6 of 6 epochs, 33 s, about 55 s left',
    'grid: 6 epochs in 33 s',
  ]


def test_what_was_over_before_says_nothing(capsys):
  with Progress().phase('search', 8, 'children', done=8) as advance:
    advance(0)
  assert not capsys.readouterr().err


def test_an_evaluator_counts_what_it_has_trained():
  done = []
  act = counted(lambda batch: Outcome(batch.ids), lambda count, work: done.append((count, work)), 5.0)
  batch = type('Batch', (), {'ids': np.arange(3)})
  assert act(batch).reward is batch.ids and done == [(3, 15.0)]


@contextlib.contextmanager
def terminal():
  """A terminal of 120 columns that sys.stderr writes to. The value is its reading end."""
  ours, theirs = pty.openpty()
  fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack('HHHH', 40, 120, 0, 0))
  with os.fdopen(theirs, 'w') as stream:
    before, sys.stderr = sys.stderr, stream
    try:
      yield ours
    finally:
      sys.stderr = before


def test_a_terminal_has_a_bar_with_the_time_that_the_run_takes(clock):
  shown = b''
  with terminal() as end, contextlib.suppress(BlockingIOError):
    with Progress({'search': 4, 'random': 100}, clock).phase('search', 4, 'children') as advance:
      for _ in range(4):
        clock.now += 60
        advance(1, 'best 0.5')
    sys.stderr.flush()
    os.set_blocking(end, False)
    while True:
      shown += os.read(end, 65536)
  os.close(end)
  assert re.search(r'\rsearch: 100%.*4/4.*best 0\.5, about 1 h 40 min left', shown.decode())
  assert shown.count(b'\n') == 1 and b'children in' not in shown


def test_a_terminal_that_is_closed_ends_no_run(clock):
  with terminal() as end, streams.tolerant(), Progress(clock=clock).phase('search', 4, 'children') as advance:
    os.close(end)
    for _ in range(4):
      clock.now += 60
      advance(1, 'best 0.5')


def test_the_work_of_a_search_is_that_of_its_trainings():
  """By hand: eight children in batches of three are nine trainings; four longer ones are six, each of work 5."""
  cfg = CELL.presets['smoke']()
  cfg.m, cfg.reliability_children, cfg.yardstick_repeats, cfg.final_children = 3, 8, 2, 0
  data = CELL.load(cfg, '')
  run = type('Run', (), {'system': CELL, 'cfg': cfg, 'data': data, 'beside': {'a.json': None}})
  train = dict.fromkeys(['children', 'longer', 'other data', 'reference LSTM', 'reference NASCELL'])
  work = from_scratch.work(run, train, [cfg, cfg])
  assert work == {from_scratch.RELIABILITY: 3 * 9 + 5 * 6, from_scratch.REFERENCES: 2 * 3}
  # Of eight children two go on, at three times the length, in the search and in that beside it.
  rungs = dataclasses.replace(cfg, rungs=2), dataclasses.replace(cfg, rungs=2, algorithm='random')
  found = from_scratch.work(run, train, rungs)
  assert (found['reinforce, rung 2'], found['random, rung 2']) == (2 * 3, 2 * 3)
  # Two searches of two cells, NASCELL and LSTM; two points of a grid for one epoch, then the four for two of two.
  cfg.final_children = 2
  epoch = len(data.train) / (cfg.steps * cfg.batch * cfg.bptt)
  found = final_choice.of(CELL, cfg, data)
  assert (found.cfg.repeats, found.cfg.epochs, found.cfg.grid_epochs or 2) == (2, 2, 1)
  assert from_scratch.work(run, train, [cfg, cfg])[final_choice.NAME] == pytest.approx(epoch * (6 * 2 * 1 + 4 * 2 * 2))
