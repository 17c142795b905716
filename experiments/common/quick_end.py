"""Ends a process that is asked to end while it compiles, if this loses no work.

Python runs signal handlers between two bytecodes of the main thread, and XLA compiles for seconds, on a busy machine
for minutes, in one call. So a thread waits for signals too. It ends the process if
nothing but compilation is under way.
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

  It then ends with the line and the exit code that it would end with after the compilation. A second signal ends it in
  any case. For the main thread, in which handlers of both signals are set.

  Args:
    unsaved: names of what would be lost if the process ended; it changes as the search goes on.
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
  """Reads the numbers of signals, a byte each, until there is no writer any more."""
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
  """Returns whether a thread of ours traces or compiles a program while all other threads of ours wait."""
  mine = threading.get_ident()
  doing = {_doing(frame) for ident, frame in sys._current_frames().items() if ident != mine}
  return 'compiles' in doing and 'works' not in doing


def _doing(frame: types.FrameType | None) -> str:
  """Returns what a thread does, by its innermost frame: 'compiles', 'works' or 'waits'. Without our code it 'waits'.

  JAX traces, lowers and compiles below a function of its pjit.py. The call that runs what was compiled is below it too.
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
