"""How a launcher runs and ends: signals, exit codes, messages of one line, and the set-up of JAX."""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import functools
import glob
import logging
import os
import re
import signal
import sys
import threading
from typing import Any, NoReturn
import warnings

from absl import flags
from absl import logging as absl_logging
import jax

from experiments.common import streams, workdirs
from nas_jax import files
from nas_jax.hosts import Ended
from nas_jax.training.recovery import Stopped

Check = Callable[[], None]  # raises `Stopped` if the process was asked to end
Work = Callable[[Check], None]
FAULT, CANNOT_WRITE = 1, 74  # exit codes: an error of the program, a file that cannot be written
CACHE = 'jax_compilation_cache_dir'


def main(prepare: Callable[[Sequence[str]], Work]) -> None:
  """Runs a launcher: `prepare(argv)` reads and checks all input and returns a function, which does the work.

  These end the process with one line on stderr and an exit code: invalid input, 2; a file that cannot be written, 74;
  SIGTERM, 143; Ctrl-C, 130. A signal takes effect when the running step is over, a second one at once. Any other error
  is raised.
  """
  absl_logging.set_verbosity(absl_logging.FATAL)  # what Orbax logs it also raises
  logging.getLogger('asyncio').setLevel(logging.CRITICAL)
  signal.signal(signal.SIGINT, signal.default_int_handler)  # replaces the handler that `experiments` set for imports
  with streams.tolerant(), _one_line_each():
    before = signal.signal(signal.SIGTERM, _interrupt)  # several hosts tell one another why they end
    try:
      work = prepare(sys.argv)
    except (Exception, KeyboardInterrupt) as error:
      _end(error, *ending_before_work(error))
    finally:
      signal.signal(signal.SIGTERM, before)
    with _signals() as asked:
      try:
        work(functools.partial(_check, asked))
      except Exception as error:
        _end(error, *ending(error))


def _interrupt(number: int, frame: Any) -> NoReturn:
  raise KeyboardInterrupt(number)


def _end(error: BaseException, code: int, message: str) -> NoReturn:
  if code == FAULT and not isinstance(error, Ended):  # the host that failed has the traceback
    raise error
  say(message)
  if code == CANNOT_WRITE:
    os._exit(code)  # the output still in the buffers cannot be written either
  raise SystemExit(code)


def ending_before_work(error: BaseException) -> tuple[int, str]:
  """Returns the exit code and the message with which the process ends on an error of `prepare`."""
  if isinstance(error, flags.Error | ValueError | ImportError):
    return 2, str(error)
  if isinstance(error, OSError) and error.errno not in workdirs.FULL:
    return 2, f'{error.filename or "a file"} cannot be used ({error.strerror})'
  if isinstance(error, KeyboardInterrupt):
    number = error.args[0] if error.args else signal.SIGINT
    return 128 + number, f'stopped by {signal.Signals(number).name} before anything was begun.'
  return ending(error)


def ending(error: BaseException) -> tuple[int, str]:
  """Returns the exit code and the message with which the process ends on an error of the work.

  The code `FAULT` marks an error of the program itself, which is raised with its traceback.
  """
  if isinstance(error, Ended):
    return error.code, str(error)
  if isinstance(error, Stopped) and error.args:
    number = error.args[0]
    return 128 + number, f'stopped by {signal.Signals(number).name}; the same command goes on.'
  if isinstance(error, files.Unusable):
    return 2, str(error)
  if isinstance(error, OSError) and error.errno is not None:
    what = error.filename or 'a file of results'
    return CANNOT_WRITE, f'{what} cannot be written ({error.strerror}); once that is mended the same command goes on.'
  return FAULT, f'{type(error).__name__}: {error}'


@contextlib.contextmanager
def _one_line_each() -> Iterator[None]:
  """Prints warnings, and errors in other threads and destructors, as single lines; an error is printed only once.

  A warning that JAX cannot read a cached program also removes that program: see `drop_damaged_programs`.
  """
  before, said = (threading.excepthook, sys.unraisablehook), set[str]()

  def once(message: str) -> None:
    if message not in said:
      said.add(message)
      say(message)

  def warn(message: Warning | str, *_: Any, **__: Any) -> None:
    if removed := drop_damaged_programs(str(message)):
      say(f'{removed}: a compiled program that was kept cannot be read. It is compiled and kept anew.')
    else:
      say(str(message))

  with warnings.catch_warnings():
    warnings.showwarning = warn
    threading.excepthook = lambda failed: once(f'{failed.thread and failed.thread.name} failed: {failed.exc_value}')
    sys.unraisablehook = lambda failed: once(f'{failed.err_msg or "in a destructor"}: {failed.exc_value}')
    try:
      yield
    finally:
      threading.excepthook, sys.unraisablehook = before


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
  """A context whose value lists the SIGTERM and SIGINT received so far; a second one of a kind ends the process."""
  asked = list[int]()

  def ask(number: int, frame: Any) -> None:
    asked.append(number)
    signal.signal(number, signal.SIG_DFL)
    with contextlib.suppress(OSError):
      os.write(2, b'stopping as soon as what runs now is over; once more ends it at once\n')

  before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
  try:
    yield asked
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)


def _check(asked: Sequence[int]) -> None:
  if asked:
    raise Stopped(asked[0])


def say(message: str) -> None:
  """Prints a message as one line on stderr, after the name of the launcher."""
  name = os.path.basename(os.path.splitext(sys.argv[0])[0].removesuffix(f'{os.sep}__main__'))
  print(f'{name}: {" ".join(message.split())}', file=sys.stderr)


def cores() -> int:
  """Returns how many cores this process may use or, where the system does not tell, how many the machine has."""
  if hasattr(os, 'sched_getaffinity'):  # on Linux alone
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def set_up_jax(at_most: int | None = None) -> None:
  """Makes each core of a CPU machine a device, up to `at_most` devices, and enables the cache of compiled programs.

  Call it before JAX is first used. The number of devices has no effect on accelerators; JAX_NUM_CPU_DEVICES overrides
  it. The cache is the folder nas_jax in the user's cache folder, or JAX_COMPILATION_CACHE_DIR;
  JAX_ENABLE_COMPILATION_CACHE=false turns it off.
  """
  if 'JAX_NUM_CPU_DEVICES' not in os.environ:
    jax.config.update('jax_num_cpu_devices', min(cores(), at_most or 1000))
  if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
    home = os.environ.get('XDG_CACHE_HOME') or os.path.join(os.path.expanduser('~'), '.cache')
    jax.config.update(CACHE, os.path.join(home, 'nas_jax'))
    jax.config.update('jax_compilation_cache_max_size', 2 * 1024**3)  # bytes; least recently used programs go first
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.3)


def check_processes(known: int = 1) -> None:
  """Raises ValueError if JAX counts more than the `known` processes, as it does on a host of a TPU slice."""
  if jax.process_count() > known:
    raise ValueError(
      f'this is one of {jax.process_count()} hosts, each of which would do all the work: add --hosts to a search whose '
      'children have weights of their own, or use a machine with one host.'
    )


def drop_damaged_programs(warning: str) -> str:
  """Removes cached programs that JAX warns it cannot read, as JAX itself would never replace them.

  The warning gives only the name of a program, which several may share. All programs of that name are removed, and
  compiled again when they are needed.

  Returns:
    The name, or '' if this is another warning or there is no cache.
  """
  found = re.match(r"Error reading persistent compilation cache entry for '([^']+)'", warning)
  folder = getattr(jax.config, CACHE)
  if not found or not folder:
    return ''
  for path in glob.glob(os.path.join(glob.escape(folder), f'{glob.escape(found[1])}-*')):
    with contextlib.suppress(OSError):
      os.unlink(path)
  return found[1]
