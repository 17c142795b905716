"""Ends a process at once if a signal asks it to end during a compilation and no work would be lost.

Python runs signal handlers between two bytecodes of the main thread. XLA compiles in one call, for seconds, or minutes
on a busy machine. So a thread also waits for signals, and ends the process if it does nothing but compile.
"""

from collections.abc import Iterator
import contextlib
import os
import select
import signal
import sys
import threading
import types

import experiments
from experiments.common import launch
import nas_jax
from nas_jax.training.recovery import Stopped

GRACE, EVERY = 0.5, 0.1  # seconds that the main thread has to end by itself, and between looks at what is under way
_FOLDERS = tuple(os.path.join(package.__path__[0], '') for package in (experiments, nas_jax))
_WAITING = (threading.__file__, os.path.join('concurrent', 'futures', '_base.py'))


@contextlib.contextmanager
def while_compiling(unsaved: set[str]) -> Iterator[None]:
  """Lets SIGTERM and Ctrl-C end the process at once while it compiles and `unsaved` is empty.

  The message and the exit code are the same as after the compilation. A second SIGTERM or Ctrl-C like the first ends
  the process even if work is lost. Enter the context in the main thread, with handlers set for both signals.

  Args:
    unsaved: names of work that would be lost if the process ended. The search updates the set.
  """
  reading, writing = os.pipe()
  os.set_blocking(writing, False)
  before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
  thread = threading.Thread(target=_watch, args=(reading, unsaved), name='the watch over compilations', daemon=True)
  thread.start()
  try:
    yield
  finally:
    signal.set_wakeup_fd(before)
    os.close(writing)
    thread.join()
    os.close(reading)


def _watch(reading: int, unsaved: set[str]) -> None:
  """Reads the numbers of signals, one byte each, until the pipe is closed. May end the process: `while_compiling`."""
  asked, wait = list[int](), None
  while True:
    if select.select([reading], [], [], wait)[0]:
      numbers = os.read(reading, 16)
      if not numbers:
        return
      asked += [number for number in numbers if number in (signal.SIGTERM, signal.SIGINT)]
      wait = GRACE if asked else None
    elif not unsaved and only_compiling():
      _leave(asked[0])
    else:
      wait = EVERY
    if len(asked) != len(set(asked)):
      _leave(asked[-1])


def _leave(number: int) -> None:
  code, message = launch.ending(Stopped(number))
  launch.say(message)
  for stream in (sys.stdout, sys.stderr):
    stream.flush()
  os._exit(code)


def only_compiling() -> bool:
  """Returns whether one of our threads traces or compiles a program while our others wait. The caller's is ignored."""
  mine = threading.get_ident()
  doing = {_doing(frame) for ident, frame in sys._current_frames().items() if ident != mine}
  return 'compiles' in doing and 'works' not in doing


def _doing(frame: types.FrameType | None) -> str:
  """Returns whether a thread 'compiles', 'works' or 'waits', from its innermost frame. Without our code it 'waits'.

  JAX traces, lowers and compiles below a function of its pjit.py. It also runs compiled programs there.
  """
  if frame and frame.f_code.co_filename.endswith(_WAITING):
    return 'waits'
  ours = compiles = runs = False
  while frame:
    path, name = frame.f_code.co_filename, frame.f_code.co_qualname
    ours |= path.startswith(_FOLDERS)
    compiles |= path.endswith(os.path.join('jax', '_src', 'pjit.py'))
    runs |= name.startswith('ExecuteReplicated.')
    frame = frame.f_back
  if not ours:
    return 'waits'
  return 'compiles' if compiles and not runs else 'works'
