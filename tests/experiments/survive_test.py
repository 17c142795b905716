"""A process that is stopped, killed or refused, or that finds its files damaged, loses nothing."""

import json
import os
import pathlib
import random
import re
import resource
import signal
import subprocess
import sys
import time

import pytest
from tools import kill

from experiments.common import recovery_files, workdirs
from nas_jax.search import journal

ROOT = pathlib.Path(__file__).parents[2]
# Long enough to receive signals in the middle. All tests have the same flags, so that they share compiled programs.
FLAGS = (
  '--preset=smoke',
  '--nocontrol',
  '--reliability_children=0',
  '--yardstick_repeats=0',
  '--final_children=0',
  '--steps_per_call=2',
)


@pytest.fixture
def cell_search(tmp_path, with_programs):
  """A function that starts a search in tmp_path/run, which is killed at the end of the test."""
  begun = []

  def start(*flags, workdir='run', within=(), **kwargs):
    command = [
      *within,
      sys.executable,
      '-m',
      'experiments.cell_search',
      *FLAGS,
      f'--workdir={tmp_path / workdir}',
      *flags,
    ]
    pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'text': True}
    begun.append(subprocess.Popen(command, cwd=ROOT, env=with_programs, **pipes, **kwargs))
    return begun[-1]

  yield start
  for process in begun:
    process.kill()
    process.communicate()


def ends(process, code):
  """Waits for a process, asserts its exit code, and returns its stdout and the last line of its stderr."""
  shown, error = process.communicate(timeout=300)
  assert process.returncode == code, error
  assert 'Traceback' not in error and error.count('\n') < 12, error
  return shown, error.strip().splitlines()[-1]


def until(condition, process):
  limit = time.monotonic() + 240
  while not condition() and process.poll() is None and time.monotonic() < limit:
    time.sleep(0.01)
  assert condition(), process.communicate()[1]


def lines(folder):
  path = folder / 'children.jsonl'
  return path.read_text().count('\n') if path.exists() else 0


def earned(folder):
  return kill.outcome(folder)


@pytest.fixture(scope='module')
def unbroken(tmp_path_factory, with_programs):
  """An uninterrupted search of twenty children."""
  folder = tmp_path_factory.mktemp('whole') / 'run'
  command = [sys.executable, '-m', 'experiments.cell_search', *FLAGS, f'--workdir={folder}', '--max_children=20']
  subprocess.run(command, cwd=ROOT, env=with_programs, check=True, capture_output=True, timeout=300)
  return folder


@pytest.mark.long
@pytest.mark.parametrize(('number', 'code'), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_told_to_end_it_ends_soon_and_is_gone_on_with(cell_search, tmp_path, unbroken, number, code):
  """First with children too long to end in the test, then with short ones, to compare the resumed search."""
  started, begun = tmp_path / 'endless' / 'started.jsonl', 0
  for seconds in (1.0, 10.0, 30.0):  # on a busy machine the first call may not be over: then there is nothing to keep
    endless = cell_search('--steps=2000000', workdir='endless')
    until(lambda begun=begun: started.exists() and started.read_text().count('"calls"') > begun, endless)
    begun += 1
    time.sleep(seconds)
    endless.send_signal(number)
    _, said = ends(endless, code)
    assert said == f'cell_search: stopped by {signal.Signals(number).name}; the same command goes on.'
    if kept := list((tmp_path / 'endless' / 'training').glob('*/*')):
      break
  (kept,) = kept
  assert int(kept.name) > 0 and lines(tmp_path / 'endless') == 0
  # The same command goes on from there.
  again = cell_search('--steps=2000000', workdir='endless')
  until(lambda: started.read_text().count('"calls"') == begun + 1, again)
  assert json.loads(started.read_text().splitlines()[-1])['calls'] == int(kept.name)


@pytest.mark.long
def test_stopped_between_children_it_ends_as_if_unbroken(cell_search, tmp_path, unbroken):
  first = cell_search('--max_children=20')
  until(lambda: lines(tmp_path / 'run') >= 6, first)
  first.send_signal(signal.SIGTERM)
  ends(first, 143)
  assert 6 <= lines(tmp_path / 'run') < 20
  ends(cell_search('--max_children=20'), 0)
  assert earned(tmp_path / 'run') == earned(unbroken)


@pytest.mark.parametrize('kills', [1, pytest.param(4, marks=pytest.mark.long)])
def test_killed_in_one_training_it_fails_no_child(cell_search, tmp_path, unbroken, kills):
  """Kills are like those of a preempted machine. A process that aborts leaves a trace, and its child fails at last."""
  started = tmp_path / 'run' / 'started.jsonl'
  for k in range(kills):
    endless = cell_search('--steps=2000000')
    until(lambda k=k: started.exists() and started.read_text().count('"calls"') > k, endless)
    endless.kill()
    endless.communicate()
  found = recovery_files.history(journal.read_lines(str(started), recovery_files.STARTED))
  assert not found.crashes and not found.suspects and not found.ended
  endless = cell_search('--steps=2000000')
  until(lambda: started.read_text().count('"calls"') > kills, endless)
  endless.send_signal(signal.SIGABRT)
  endless.communicate()
  again = cell_search('--steps=2000000')
  until(lambda: started.read_text().count('"calls"') > kills + 1, again)
  found = recovery_files.history(journal.read_lines(str(started), recovery_files.STARTED))
  assert list(found.crashes.values()) == [1]


@pytest.mark.long
@pytest.mark.parametrize('broken', ['stdout', 'stderr', 'closed'])
def test_streams_that_nobody_reads_end_no_search(cell_search, tmp_path, unbroken, broken):
  """Its report is still written, and no output gets into its files."""
  if broken == 'closed':
    process = cell_search('--max_children=20', within=('sh', '-c', 'exec "$0" "$@" >&- 2>&-'))
  else:
    process = cell_search('--max_children=20')
    getattr(process, broken).close()
    setattr(process, broken, None)
  process.communicate(timeout=300)
  assert process.returncode == 0
  assert (tmp_path / 'run' / 'report.html').exists() and earned(tmp_path / 'run') == earned(unbroken)


@pytest.mark.long
def test_one_process_a_workdir(cell_search, tmp_path):
  first = cell_search('--steps=2000000')
  until((tmp_path / 'run' / 'started.jsonl').exists, first)
  before = (tmp_path / 'run' / 'origin.json').read_bytes()
  _, said = ends(cell_search('--steps=2000000', '--max_children=9'), 2)
  assert 'is in use by another process: wait for its end, or name another --workdir.' in said
  assert (tmp_path / 'run' / 'origin.json').read_bytes() == before and first.poll() is None
  first.kill()  # whatever ends it, the folder is free again
  first.communicate()
  again = cell_search('--steps=2000000')
  until(lambda: (tmp_path / 'run' / 'started.jsonl').read_text().count('"calls"') >= 2, again)


@pytest.mark.long
def test_budgets_end_a_search_and_larger_ones_go_on(cell_search, tmp_path, unbroken):
  rewards = [line['reward'] for _, line in sorted(journal.read(str(unbroken / 'children.jsonl')).items())]
  target = sorted(rewards[:10])[-1]  # which some early child earns
  shown, _ = ends(cell_search('--max_children=20', f'--target_reward={target}'), 0)
  done = lines(tmp_path / 'run')
  assert done == next(k for k, reward in enumerate(rewards) if reward >= target) // 2 * 2 + 2 and 'best cell' in shown
  assert (tmp_path / 'run' / 'report.html').exists()
  ends(cell_search('--max_children=20', '--max_seconds=1e-9'), 0)
  assert lines(tmp_path / 'run') == done  # which are more seconds than that
  ends(cell_search('--max_children=14'), 0)
  assert lines(tmp_path / 'run') == 14
  ends(cell_search('--max_children=20'), 0)
  assert earned(tmp_path / 'run') == earned(unbroken)


@pytest.mark.long
def test_a_full_disk_ends_it_in_one_line_and_it_resumes(cell_search, tmp_path, unbroken):
  """From some moment on no file may grow beyond the size that the journal has then."""
  path = tmp_path / 'run' / 'children.jsonl'
  cut = cell_search('--max_children=20')
  until(lambda: lines(tmp_path / 'run') >= 6, cut)
  room = path.stat().st_size + 10
  resource.prlimit(cut.pid, resource.RLIMIT_FSIZE, (room, room))
  _, said = ends(cut, 74)
  assert 'cannot be written' in said and said.endswith('once that is mended the same command goes on.')
  # Not by a function before exec: that forks, of which JAX warns once it has threads.
  limit = 'resource.setrlimit(resource.RLIMIT_FSIZE, (512, 512))'
  code = f'import os, resource, sys; {limit}; os.execv(sys.argv[1], sys.argv[1:])'
  full = cell_search('--max_children=20', within=(sys.executable, '-c', code))
  _, said = ends(full, 74)
  assert 'cannot be written' in said and 'None' not in said
  assert lines(tmp_path / 'run') < 20
  ends(cell_search('--max_children=20'), 0)
  assert earned(tmp_path / 'run') == earned(unbroken)


def test_a_workdir_that_cannot_be_written_is_refused(cell_search, tmp_path):
  (tmp_path / 'run').mkdir()
  (tmp_path / 'run' / 'lock').mkdir()  # root may write where others may not, but not this
  _, said = ends(cell_search(), 2)
  assert "workdir (='" in said and 'cannot be used' in said


@pytest.mark.long
@pytest.mark.parametrize('system', kill.FLAGS)
def test_killed_once_it_ends_as_if_unbroken(system, tmp_path, with_programs, monkeypatch):
  monkeypatch.setattr(os, 'environ', with_programs)
  kill.trial(system, 1, random.randrange(1000), tmp_path)


@pytest.mark.long
def test_memory_stays_where_it_is():
  """In a process of its own: at most a tenth above the level after the first tenth."""
  shown = subprocess.run([sys.executable, 'tests/tools/leaks.py'], cwd=ROOT, capture_output=True, text=True)
  found = re.findall(r'(\w+): at most (\S+)%', shown.stdout)
  assert [kind for kind, _ in found] == ['generic', 'specialised'], shown.stderr[-2000:]
  assert all(float(percent) <= 10 for _, percent in found), shown.stdout


@pytest.mark.long
@pytest.mark.parametrize(('system', 'kills'), [('cell', 4), ('conv', 3), ('shared', 3)])
def test_killed_ten_times_in_all_they_end_as_if_unbroken(system, kills, tmp_path, with_programs, monkeypatch):
  monkeypatch.setattr(os, 'environ', with_programs)
  kill.trial(system, kills, random.randrange(1000), tmp_path)


def test_where_files_cannot_be_locked_it_says_so(tmp_path, monkeypatch):
  def refuse(*_, **__):
    raise NotImplementedError('FileSystem does not appear to support flock')

  monkeypatch.setattr(workdirs.filelock.FileLock, 'acquire', refuse)
  with pytest.warns(UserWarning, match='let no other process use it'):
    lock = workdirs.lock(str(tmp_path / 'run'))
  with lock:
    assert (tmp_path / 'run').is_dir()
