"""A process that is asked to end while it compiles ends at once, unless something would be lost."""

import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import pytest

from experiments.common import progress, quick_end

ROOT = pathlib.Path(__file__).parents[2]
# XLA compiles this for ten seconds or more, without the flags by which tests compile quickly. The set `unsaved` is
# emptied as soon as the named file is gone.
CODE = """
import os, sys, threading, time
import jax, jax.numpy as jnp
from experiments.common import launch, progress, quick_end

def deep(x):
  for i in range(800):
    x = jnp.sin(x @ x) + i * jnp.tanh(x)
  return x

def prepare(argv):
  return work

def work(check):
  unsaved = {'a training'}
  def look():
    while os.path.exists(sys.argv[1]):
      time.sleep(0.05)
    unsaved.clear()
  threading.Thread(target=look, daemon=True).start()
  with quick_end.while_compiling(unsaved):
    print('printed, not flushed')
    print('compiling', file=sys.stderr, flush=True)
    run = jax.jit(deep)
    progress.counted(lambda batch: run(jnp.ones((30, 30))), lambda *args, **kwargs: None)(None)

launch.main(prepare)
"""


@pytest.mark.long
def test_it_ends_in_a_compilation_once_nothing_would_be_lost(tmp_path):
  (tmp_path / 'unsaved').touch()
  command = [sys.executable, '-c', CODE, str(tmp_path / 'unsaved')]
  pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'text': True}
  env = {name: value for name, value in os.environ.items() if name != 'XLA_FLAGS'}
  process = subprocess.Popen(command, cwd=ROOT, env=env, **pipes)
  try:
    assert process.stderr.readline() == 'compiling\n'
    time.sleep(2)  # traced by now
    process.send_signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
      process.wait(1.5)
    (tmp_path / 'unsaved').unlink()
    begun = time.monotonic()
    shown, error = process.communicate(timeout=60)
    assert time.monotonic() - begun < 2 and process.returncode == 143
    assert shown == 'printed, not flushed\n' and error.endswith('stopped by SIGTERM; the same command goes on.\n')
  finally:
    process.kill()
    process.communicate()


class Thread:
  """A thread with our code that works, waits or compiles until it is told to end."""

  def __init__(self, act):
    self.begun, self.over = threading.Event(), threading.Event()
    evaluate = progress.counted(lambda batch: act(self), lambda *args, **kwargs: None)
    self.thread = threading.Thread(target=evaluate, args=(type('Batch', (), {'ids': ()}),))
    self.thread.start()
    assert self.begun.wait(60)

  def work(self, x):
    self.begun.set()
    while not self.over.is_set():
      time.sleep(0.005)
    return x

  def wait(self):
    self.begun.set()
    self.over.wait()

  def end(self):
    self.over.set()
    self.thread.join()


def test_all_threads_must_compile_or_wait():
  assert not quick_end.only_compiling()
  waiting = Thread(Thread.wait)  # as one that has given children to others
  assert not quick_end.only_compiling()
  compiling = Thread(lambda thread: jax.jit(lambda x: thread.work(x) + 1)(jnp.ones(3)))  # it is held while it is traced
  assert quick_end.only_compiling()
  working = Thread(lambda thread: thread.work(1))
  assert not quick_end.only_compiling()
  working.end()
  assert quick_end.only_compiling()
  compiling.end()
  assert not quick_end.only_compiling()
  waiting.end()


def test_a_program_that_runs_is_no_compilation():
  def slow(x):
    thread.work(x)
    return x

  def run(self):
    nonlocal thread
    thread = self
    jax.block_until_ready(jax.jit(lambda x: jax.pure_callback(slow, x, x))(jnp.ones(3)))

  thread: Thread | None = None
  running = Thread(run)
  assert not quick_end.only_compiling()
  running.end()
