"""Code that all launchers share: flags made from configs, signals, and exit codes."""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import dataclasses
import functools
import glob
import json
import logging
import os
import re
import signal
import sys
import threading
import types
from typing import Any, NoReturn
import warnings

from absl import flags
from absl import logging as absl_logging
import jax

from experiments.common import streams, usage, workdirs
from nas_jax import config, files, space
from nas_jax.hosts import Ended
from nas_jax.training.recovery import Stopped

Check = Callable[[], None]  # raises `Stopped` if the process was asked to end
Work = Callable[[Check], None]
FAULT, CANNOT_WRITE = 1, 74  # exit codes: an error of the program, a file that cannot be written
CACHE = 'jax_compilation_cache_dir'
_DEFINE: dict[type, Callable[..., Any]] = {
  bool: flags.DEFINE_boolean,
  int: flags.DEFINE_integer,
  float: flags.DEFINE_float,
  str: flags.DEFINE_string,
  tuple: flags.DEFINE_list,
}


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
    try:
      work = prepare(sys.argv)
    except (Exception, KeyboardInterrupt) as error:
      _end(error, *ending_before_work(error))
    with _signals() as asked:
      try:
        work(functools.partial(_check, asked))
      except Exception as error:
        _end(error, *ending(error))


def _end(error: BaseException, code: int, message: str) -> NoReturn:
  if code == FAULT:
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
    return 128 + signal.SIGINT, 'stopped by SIGINT before anything was begun.'
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


def parse(
  argv: Sequence[str],
  doc: str,
  own: Callable[[flags.FlagValues], None],
  configs: Mapping[str, usage.Presets] = types.MappingProxyType({}),
  words: str = '',
  elsewhere: Mapping[str, str] = types.MappingProxyType({}),
) -> flags.FlagValues:
  """Parses `argv`. The flags are the launcher's `own` and one for each field of the configs.

  --help prints the page of all flags and exits. A leading ~ in the launcher's own flags becomes the home folder.

  Args:
    argv: the command line.
    doc: the launcher's docstring, for --help.
    own: defines the flags that are no fields of a config.
    configs: the presets of each config, by its purpose ('' if there is only one). One of the configs will be made.
    words: name of a list flag whose values may also be given as plain words.
    elsewhere: for flags that this launcher lacks, the launchers that have them.

  Raises:
    ValueError: a flag is unknown (the message suggests known ones), or there are plain words and `words` is ''.
  """
  values = flags.FlagValues()
  values.set_gnu_getopt(bool(words))  # flags may come after words
  own(values)
  names = list(values)
  flags.DEFINE_boolean('help', False, 'show this and leave', short_name='h', flag_values=values)
  fields: dict[str, list[Any]] = {}
  for presets in configs.values():
    for item in dataclasses.fields(next(iter(presets.values()))()):
      fields.setdefault(item.name, []).append(item)
  for name, items in fields.items():
    kinds = {tuple if item.metadata['pair'] else type(item.default) for item in items}
    helps = ' '.join(item.metadata['help'] for item in items)
    # Where one config has a list and another a single value, the flag is a list, and `overlay` requires one entry.
    _DEFINE[kinds.pop() if len(kinds) == 1 else tuple](name, None, helps, flag_values=values)
  try:
    rest = values(list(argv))
  except flags.UnrecognizedFlagError as error:
    if where := elsewhere.get(error.flagname):
      raise ValueError(f'there is no flag --{error.flagname} here, it is one of {where}: leave it out.') from None
    near = usage.suggestions(error.flagname, {name: values[name].help or '' for name in values if len(name) > 1})
    ask = f' (did you mean {" or ".join(f"--{name}" for name in near)}?)' if near else ''
    raise ValueError(f'there is no flag --{error.flagname}{ask}: --help lists all.') from None
  if values.help:
    print(usage.page(doc, values, names, configs))
    raise SystemExit(0)
  if words and len(rest) > 1:
    setattr(values, words, rest[1:])
  elif len(rest) > 1:
    raise ValueError(f'{rest[1]!r} is no flag: write --name=value; --help lists the names.')
  for name in names:
    _expand_home(values, name)
  return values


def _expand_home(values: flags.FlagValues, name: str) -> None:
  """Replaces a leading ~ in a flag's value by the home folder; a shell does so only at the beginning of a word."""
  given = values[name].value
  if isinstance(given, str):
    values[name].value = os.path.expanduser(given)
  elif isinstance(given, list):
    values[name].value = [os.path.expanduser(entry) for entry in given]


def search_flags(presets: Mapping[str, Any], launcher: str) -> Callable[[flags.FlagValues], None]:
  """Returns a function that defines the flags of every search that are no fields of its config."""

  def define(values: flags.FlagValues) -> None:
    flags.DEFINE_enum(
      'preset',
      'demo' if 'demo' in presets else next(iter(presets)),
      sorted(presets),
      'named configuration that the other flags are laid over',
      flag_values=values,
    )
    flags.DEFINE_string(
      'workdir',
      '',
      f'folder of results, in which a search resumes; runs/{launcher}-PRESET by default',
      flag_values=values,
    )
    flags.DEFINE_string('data_dir', '', 'folder that data sets are read from', flag_values=values)
    flags.DEFINE_boolean('control', True, 'run a random search on the same budget, to compare', flag_values=values)

  return define


def configure(values: flags.FlagValues, presets: Mapping[str, Callable[[], Any]]) -> Any:
  """Returns the config of the chosen preset, overridden by the given flags.

  Raises ValueError if the config is invalid or --data_dir is no folder.
  """
  cfg = overlay(values, presets[values.preset]())
  if values.data_dir and not os.path.isdir(values.data_dir):
    raise ValueError(f'data_dir (={values.data_dir!r}) is no folder: name one that exists, or leave the flag out.')
  return cfg


def own_preset(values: flags.FlagValues, presets: Mapping[str, Any], whose: str) -> None:
  """Raises ValueError if --preset is not one of `presets`, as a launcher may accept presets of several configs."""
  if values.preset not in presets:
    raise ValueError(f'preset (={values.preset!r}) is none for {whose}: take one of {", ".join(presets)}.')


def own_fields(values: flags.FlagValues, own: type, others: Mapping[str, type]) -> None:
  """Raises ValueError if a given flag is no field of the config `own`, but of one of `others` (by owner)."""
  names = {item.name for item in dataclasses.fields(own)}
  for whose, other in others.items():
    for item in dataclasses.fields(other):
      if item.name not in names and values[item.name].value is not None:
        raise ValueError(f'--{item.name} is for {whose}, and means nothing here: leave it out.')


def overlay(values: flags.FlagValues, cfg: Any) -> Any:
  """Overrides fields of `cfg` in place by the given flags, and returns it. Raises ValueError if it is then invalid.

  If --algorithm is given, `proposals` and `known` are reset to their defaults unless flags give them too.
  """
  alone = ('proposals', 'known') if 'algorithm' in values and values.algorithm is not None else ()
  for item in dataclasses.fields(cfg):
    given = values[item.name].value
    if given is not None:
      setattr(cfg, item.name, _entries(item, given) if isinstance(given, list) else given)
    elif item.name in alone:
      setattr(cfg, item.name, item.default)
  config.check(cfg)
  return cfg


def _entries(item: Any, given: Sequence[str]) -> Any:
  """Returns the entries of a list flag in the type of the field's default.

  Raises ValueError if one cannot be converted, or if there are several and the field is neither a list nor a pair.
  """
  single = not isinstance(item.default, tuple)
  wanted = type(item.default if single else item.default[0])
  try:
    entries = tuple(wanted(entry) for entry in given)
    if not single or len(entries) == 1:
      return entries[0] if single else entries
    if item.metadata['pair'] and len(entries) == 2:
      return entries
  except ValueError:
    pass
  one = f'one {wanted.__name__}{", or two" if item.metadata["pair"] else ""}'
  what = one if single else f'a list of {wanted.__name__}s'
  raise ValueError(f'{item.name} (={",".join(given)}) must be {what}.')


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


def named_archs(name: str, known: Mapping[str, Any], kind: str = '') -> dict[str, Any]:
  """Returns the known architecture of a name, or the architectures in the file of that name, by name.

  Raises ValueError if it is neither.
  """
  if name in known:
    return {name: known[name]}
  if not os.path.exists(name):
    near = config.did_you_mean(name, known)
    raise ValueError(f'{name} is neither a file nor a known architecture{near}: known are {", ".join(known)}.')
  return read_archs(name, functools.partial(space.from_json, kind=kind))


def read_arch(path: str, kind: str = '') -> Any:
  """Returns the architecture in a file. Raises ValueError, naming the file, if it has none or one of another kind."""
  return read_file(path, functools.partial(space.from_json, kind=kind))


def read_archs(path: str, parse: Callable[[str], Any] = space.from_json) -> dict[str, Any]:
  """Returns the result of `parse` for each architecture in a file: one as in best.json, or a list as in top.json.

  Each is named by the path and, in a list, by its position, counted from 1. Raises ValueError as `read_file`.
  """
  return read_file(path, lambda text: {name: parse(one) for name, one in _entries_of(path, text)})


def _entries_of(path: str, text: str) -> list[tuple[str, str]]:
  """Returns the name and the JSON text of each architecture in a file."""
  try:
    found = json.loads(text)
  except ValueError:
    found = None  # the parser of architectures reports the error
  if not isinstance(found, list):
    return [(path, text)]
  if not found:
    raise ValueError('it is an empty list, and there is no architecture in it.')
  return [(f'{path} {place}', json.dumps(one)) for place, one in enumerate(found, 1)]


def read_file(path: str, parse: Callable[[str], Any]) -> Any:
  """Returns `parse(text)` for the text of a file.

  Raises ValueError, naming the file, if it cannot be read, is no UTF-8 text, or `parse` raises ValueError.
  """
  try:
    with open(path, encoding='utf-8') as file:
      return parse(file.read())
  except (OSError, UnicodeDecodeError) as error:
    raise ValueError(f'{path} cannot be read ({error}): name a file like a best.json.') from None
  except ValueError as error:
    raise ValueError(f'{path}: {error}') from None
