"""What all launchers share: flags made from a config, and how they end."""

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
  """Runs a launcher: `prepare(argv)` reads and checks all input, the function that it returns does
  the work.

  Each of these ends it with one line on stderr: whatever is wrong with the input, exit code 2; a file that cannot be
  written, 74; SIGTERM, 143, and Ctrl-C, 130, as soon as what runs is over, and at once the second time.
  """
  absl_logging.set_verbosity(absl_logging.FATAL)  # what Orbax logs it also raises
  logging.getLogger('asyncio').setLevel(logging.CRITICAL)
  signal.signal(signal.SIGINT, signal.default_int_handler)  # no longer that of the imports, in `experiments`
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
  """Returns the exit code and the line that an error of `prepare` ends the process with."""
  if isinstance(error, flags.Error | ValueError | ImportError):
    return 2, str(error)
  if isinstance(error, OSError) and error.errno not in workdirs.FULL:
    return 2, f'{error.filename or "a file"} cannot be used ({error.strerror})'
  if isinstance(error, KeyboardInterrupt):
    return 128 + signal.SIGINT, 'stopped by SIGINT before anything was begun.'
  return ending(error)


def ending(error: BaseException) -> tuple[int, str]:
  """Returns the exit code and the line that an error of the work ends the process with.

  An error with the code `FAULT` is one of the program, and is shown with its traceback.
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
  """Prints warnings, and errors in threads beside the search or in destructors, as single lines, each of them once."""
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
  """The signals that asked the process to end, as they come; a second one of a kind ends it at once."""
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
  """Prints one line on stderr, which begins with the name of the launcher."""
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
  """Parses `argv`: the launcher's `own` flags and one for each field of the configs, of which one will be made.

  `configs` maps the purpose of each config ('' if there is only one) to its presets. `words` names a list flag whose
  values may also be given as plain words. `elsewhere` maps flags that this launcher lacks to the launchers that have
  them. Raises ValueError on an unknown flag, and suggests known ones.
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
    # Where one config has a list and another a single value, a list is read, and `overlay` wants one entry.
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
  """Replaces a leading ~ of a flag by the user's folder: a shell does so only at the beginning of a word."""
  given = values[name].value
  if isinstance(given, str):
    values[name].value = os.path.expanduser(given)
  elif isinstance(given, list):
    values[name].value = [os.path.expanduser(entry) for entry in given]


def search_flags(presets: Mapping[str, Any], launcher: str) -> Callable[[flags.FlagValues], None]:
  """The flags that all searches have beside their config's fields."""

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
  """The config of the chosen preset with the given flags laid over it, checked."""
  cfg = overlay(values, presets[values.preset]())
  if values.data_dir and not os.path.isdir(values.data_dir):
    raise ValueError(f'data_dir (={values.data_dir!r}) is no folder: name one that exists, or leave the flag out.')
  return cfg


def own_preset(values: flags.FlagValues, presets: Mapping[str, Any], whose: str) -> None:
  """Raises ValueError if the preset is not one of `presets`: a launcher may take those of several configs."""
  if values.preset not in presets:
    raise ValueError(f'preset (={values.preset!r}) is none for {whose}: take one of {", ".join(presets)}.')


def own_fields(values: flags.FlagValues, own: type, others: Mapping[str, type]) -> None:
  """Raises ValueError if a given flag is a field of one of the configs `others`, by owner, and not of `own`."""
  names = {item.name for item in dataclasses.fields(own)}
  for whose, other in others.items():
    for item in dataclasses.fields(other):
      if item.name not in names and values[item.name].value is not None:
        raise ValueError(f'--{item.name} is for {whose}, and means nothing here: leave it out.')


def overlay(values: flags.FlagValues, cfg: Any) -> Any:
  """`cfg` with the given flags laid over it, checked.

  If a flag gives the algorithm, `proposals` and `known` are reset to their defaults unless flags give them too.
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
  """Converts the entries of a list flag to the type of the field's default; only one for a field that is no list."""
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
  """Returns how many cores this process may use; where the system cannot say so, how many the machine has."""
  if hasattr(os, 'sched_getaffinity'):  # on Linux alone
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def set_up_jax(at_most: int | None = None) -> None:
  """Makes each core of a CPU machine a device (`at_most` so many), and keeps compiled programs for the next time.

  Call it before JAX is first used. The number of devices has no effect on accelerators; JAX_NUM_CPU_DEVICES overrides
  it. Programs are kept in nas_jax of the user's cache folder, or where JAX_COMPILATION_CACHE_DIR says;
  JAX_ENABLE_COMPILATION_CACHE=false keeps none.
  """
  if 'JAX_NUM_CPU_DEVICES' not in os.environ:
    jax.config.update('jax_num_cpu_devices', min(cores(), at_most or 1000))
  if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
    home = os.environ.get('XDG_CACHE_HOME') or os.path.join(os.path.expanduser('~'), '.cache')
    jax.config.update(CACHE, os.path.join(home, 'nas_jax'))
    jax.config.update('jax_compilation_cache_max_size', 2 * 1024**3)  # bytes; the least used go first
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.3)


def check_processes(known: int = 1) -> None:
  """Raises ValueError if JAX counts more processes than this one knows of, such as on a host of a TPU slice."""
  if jax.process_count() > known:
    raise ValueError(
      f'this is one of {jax.process_count()} hosts, each of which would do all the work: add --hosts to a search whose '
      'children have weights of their own, or use a machine with one host.'
    )


def drop_damaged_programs(warning: str) -> str:
  """Removes the compiled programs that JAX warns it cannot read. JAX itself would never replace them.

  The warning gives only the name of a program, which several may share. All of these are removed; those in use are
  compiled again.

  Returns:
    The name; '' if the warning is another one, or nothing is kept.
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
  """The architecture of a known name, or those in the file of that name. Raises ValueError if it is neither."""
  if name in known:
    return {name: known[name]}
  if not os.path.exists(name):
    near = config.did_you_mean(name, known)
    raise ValueError(f'{name} is neither a file nor a known architecture{near}: known are {", ".join(known)}.')
  return read_archs(name, functools.partial(space.from_json, kind=kind))


def read_arch(path: str, kind: str = '') -> Any:
  """The architecture in a file. Raises ValueError, naming the file, if it holds none or one of another kind."""
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
    found = None  # what reads an architecture says what is wrong
  if not isinstance(found, list):
    return [(path, text)]
  if not found:
    raise ValueError('it is an empty list, and there is no architecture in it.')
  return [(f'{path} {place}', json.dumps(one)) for place, one in enumerate(found, 1)]


def read_file(path: str, parse: Callable[[str], Any]) -> Any:
  """Returns `parse` of the text of a file. Raises ValueError, naming the file, if `parse` does or it is no text."""
  try:
    with open(path, encoding='utf-8') as file:
      return parse(file.read())
  except (OSError, UnicodeDecodeError) as error:
    raise ValueError(f'{path} cannot be read ({error}): name a file like a best.json.') from None
  except ValueError as error:
    raise ValueError(f'{path}: {error}') from None
