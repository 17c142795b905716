"""What all launchers share: flags made from a config, the workdir, hooks, resuming."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import json
import os
import shlex
import sys
import time
from typing import Any, NoReturn

from absl import flags
from absl import logging as absl_logging
import jax
from tqdm import tqdm

from experiments import hooks
from nas_jax import checkpoint, config, journal, report, search

_DEFINE: dict[type, Callable[..., Any]] = {
  bool: flags.DEFINE_boolean,
  int: flags.DEFINE_integer,
  float: flags.DEFINE_float,
  str: flags.DEFINE_string,
  tuple: flags.DEFINE_list,
}


def main(prepare: Callable[[Sequence[str]], Callable[[], None]]) -> None:
  """Runs a launcher: `prepare(argv)` reads and checks all input, what it returns does the work.

  Whatever is wrong with the input is one line on stderr and exit code 2.
  """
  absl_logging.set_verbosity(absl_logging.ERROR)
  try:
    work = prepare(sys.argv)
  except (flags.Error, ValueError) as error:
    _leave(str(error))
  except OSError as error:
    _leave(f'{error.filename} cannot be used ({error.strerror})')
  work()


def _leave(message: str) -> NoReturn:
  name = os.path.splitext(os.path.basename(sys.argv[0]))[0]
  print(f'{name}: {" ".join(message.split())}', file=sys.stderr)
  raise SystemExit(2)


def parse(
  argv: Sequence[str], doc: str, own: Callable[[flags.FlagValues], None], *config_classes: type
) -> flags.FlagValues:
  """Parses `argv`: the launcher's `own` flags and one for each field of the configs, of which one will be made."""
  values = flags.FlagValues()
  own(values)
  flags.DEFINE_boolean('help', False, 'show this and leave', short_name='h', flag_values=values)
  fields: dict[str, list[Any]] = {}
  for item in (item for config_class in config_classes for item in dataclasses.fields(config_class)):
    fields.setdefault(item.name, []).append(item)
  for name, items in fields.items():
    kinds, helps = {type(item.default) for item in items}, {item.metadata['help']: None for item in items}
    # Where one config has a list and another a single value, a list is read, and `overlay` wants one entry.
    _DEFINE[kinds.pop() if len(kinds) == 1 else tuple](name, None, '; or: '.join(helps), flag_values=values)
  rest = values(list(argv))
  if values.help:
    print(f'{doc}\n\nFlags (where no default is shown, the preset decides):\n{values.get_help()}')
    raise SystemExit(0)
  if len(rest) > 1:
    raise ValueError(f'{rest[1]!r} is no flag: write --name=value; --help lists the names.')
  return values


def search_flags(presets: Mapping[str, Any], launcher: str) -> Callable[[flags.FlagValues], None]:
  """The flags that all searches have beside their config's fields."""

  def define(values: flags.FlagValues) -> None:
    flags.DEFINE_enum('preset', 'demo', sorted(presets), 'the config to start from', flag_values=values)
    flags.DEFINE_string('workdir', '', f'folder of results; runs/{launcher}-PRESET by default', flag_values=values)
    flags.DEFINE_string('data_dir', '', 'folder of data sets', flag_values=values)
    flags.DEFINE_boolean('control', True, 'run a random search beside it, on the same budget', flag_values=values)

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
  """Raises ValueError if a flag is given that is no field of the config `own`, but of one of `others`, by owner."""
  names = {item.name for item in dataclasses.fields(own)}
  for whose, other in others.items():
    for item in dataclasses.fields(other):
      if item.name not in names and values[item.name].value is not None:
        raise ValueError(f'--{item.name} is for {whose}, and means nothing here: leave it out.')


def overlay(values: flags.FlagValues, cfg: Any) -> Any:
  """`cfg` with the given flags laid over it, checked."""
  for item in dataclasses.fields(cfg):
    given = values[item.name].value
    if given is not None:
      setattr(cfg, item.name, _entries(item, given) if isinstance(given, list) else given)
  config.check(cfg)
  return cfg


def _entries(item: Any, given: Sequence[str]) -> Any:
  """The entries of a list flag as those of the field's default are, or the only one of a field that is no list."""
  single = not isinstance(item.default, tuple)
  wanted = type(item.default if single else item.default[0])
  try:
    entries = tuple(wanted(entry) for entry in given)
    if not single or len(entries) == 1:
      return entries[0] if single else entries
  except ValueError:
    pass
  what = f'one {wanted.__name__}' if single else f'a list of {wanted.__name__}s'
  raise ValueError(f'{item.name} (={",".join(given)}) must be {what}.')


def set_up_jax(at_most: int | None = None) -> None:
  """Makes each core of a CPU machine a device (`at_most` so many), and keeps compiled programs for the next time.

  Before JAX is first used; accelerators do not care for the former. Programs are kept in nas_jax of the user's cache
  folder, or where JAX_COMPILATION_CACHE_DIR says; JAX_ENABLE_COMPILATION_CACHE=false keeps none.
  """
  jax.config.update('jax_num_cpu_devices', min(len(os.sched_getaffinity(0)), at_most or 1000))
  if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
    home = os.environ.get('XDG_CACHE_HOME') or os.path.join(os.path.expanduser('~'), '.cache')
    jax.config.update('jax_compilation_cache_dir', os.path.join(home, 'nas_jax'))
    jax.config.update('jax_compilation_cache_max_size', 2 * 1024**3)  # bytes; the least used go first
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.3)


def open_workdir(workdir: str, cfg: Any) -> Any:
  """Makes the folder and notes the config, or checks that it is this search's folder.

  Returns:
    `cfg`; what it leaves to be measured ('auto') as it was settled in this folder, if it was.

  Raises:
    ValueError: it cannot be written, or holds a search of another config (says which fields differ).
  """
  path = os.path.join(workdir, 'config.json')
  try:
    os.makedirs(workdir, exist_ok=True)
    if os.path.exists(path):
      with open(path, encoding='utf-8') as file:
        old = json.load(file)
    else:
      old = config.as_json(cfg)
      note_config(workdir, cfg)
  except OSError as error:
    raise ValueError(
      f'workdir (={workdir!r}) cannot be used ({error.strerror}): name one that can be written.'
    ) from None
  except json.JSONDecodeError:
    raise ValueError(f'{path} is not JSON: restore it, or take a new workdir.') from None
  cfg = config.settled(cfg, old)
  different = config.differences(old, cfg)
  if different:
    raise ValueError(
      f'workdir (={workdir!r}) holds a search of another config: {", ".join(different)}. Give the same flags '
      'to resume, or another --workdir.'
    )
  return cfg


def note_config(workdir: str, cfg: Any) -> None:
  """Writes config.json."""
  write(os.path.join(workdir, 'config.json'), json.dumps(config.as_json(cfg), indent=2) + '\n')


def note_origin(workdir: str, launcher: str, argv: Sequence[str], **facts: Any) -> None:
  """Notes in origin.json what a report should say of where its numbers come from: the command, and `facts`."""
  command = shlex.join(['python', '-m', f'experiments.{launcher}', *argv[1:]])
  devices = f'{len(jax.local_devices())} {jax.default_backend()}'
  origin = {'command': command, **facts, 'devices': devices, 'jax': jax.__version__}
  write(os.path.join(workdir, 'origin.json'), json.dumps(origin, indent=2) + '\n')


def write(path: str, text: str) -> None:
  """Writes a file whole or not at all."""
  with open(path + '.part', 'w', encoding='utf-8') as file:
    file.write(text)
    file.flush()
    os.fsync(file.fileno())
  os.replace(path + '.part', path)


def once(path: str, measure: Callable[[], Any]) -> Any:
  """The JSON in `path`; on the first time, what `measure` returns, written there."""
  if not os.path.exists(path):
    write(path, json.dumps(measure(), indent=2) + '\n')
  with open(path, encoding='utf-8') as file:
    return json.load(file)


def once_each(path: str, measures: Mapping[str, Callable[[], Any]]) -> dict[str, Any]:
  """The entries of the JSON in `path` that are asked for; those not there yet are measured and added."""
  found: dict[str, Any] = {}
  if os.path.exists(path):
    with open(path, encoding='utf-8') as file:
      found = json.load(file)
  for name, measure in measures.items():
    if name not in found:
      found[name] = measure()
      write(path, json.dumps(found, indent=2) + '\n')
  return {name: found[name] for name in measures}


def read_arch(path: str, from_json: Callable[[str], Any]) -> Any:
  """The architecture in a file. Raises ValueError, naming the file, as `from_json` does."""
  try:
    with open(path, encoding='utf-8') as file:
      return from_json(file.read())
  except (OSError, UnicodeDecodeError) as error:
    raise ValueError(f'{path} cannot be read ({error}): name a file like a best.json.') from None
  except ValueError as error:
    raise ValueError(f'{path}: {error}') from None


def resume_and_run(workdir: str, s: search.Search, seed: int, children: int, name: str) -> list[journal.Record]:
  """Runs `s` in `workdir` until `children` are trained, going on from whatever is there. Returns the journal, by id.

  The folder then holds children.jsonl, checkpoints/ and best.json, and for people updates.jsonl and events/, and
  replay.json where the search remembers what it tried.
  """
  path, folder = os.path.join(workdir, 'children.jsonl'), os.path.join(workdir, 'checkpoints')
  os.makedirs(workdir, exist_ok=True)
  state = s.init(jax.random.key(seed))
  state = checkpoint.restore(folder, functools.partial(s.sized, state)) or state
  known = journal.read(path)
  save, close = checkpoint.saver(folder)
  watch, stop_watching = hooks.watch(workdir, s, children, s.spent(state))
  saved = time.monotonic()

  def keep(state: search.SearchState, info: Mapping[str, Any]) -> None:
    nonlocal saved
    # Steps since the last checkpoint are asked again and read from the journal, so seconds between them are enough.
    if time.monotonic() - saved > 20 or s.over(state, children):
      save(int(state.step), state)
      saved = time.monotonic()
      if s.parts:
        write(os.path.join(workdir, 'replay.json'), s.parts.export(state) + '\n')

  best = -float('inf')

  def note_best(records: list[journal.Record]) -> None:
    nonlocal best
    for record in records:
      if record['reward'] > best:
        best = record['reward']
        write(os.path.join(workdir, 'best.json'), report.best_json(s.space, record))

  if known:  # whose best may have been journalled just before the end, and noted nowhere
    note_best([max(known.values(), key=lambda record: record['reward'])])
  pause = 1 if sys.stderr.isatty() else 20
  with tqdm(total=children, initial=s.spent(state), desc=name, unit='child', mininterval=pause) as bar:

    def show(state: search.SearchState, info: Mapping[str, Any]) -> None:
      bar.set_postfix(best=f'{float(state.best.reward):.4f}', mean=f'{info["reward"]:.4f}', refresh=False)
      bar.update(min(s.spent(state), children) - bar.n)

    hearers = [
      search.Hook(children=journal.writer(path), vital=True),
      watch,  # before the checkpoint, so that no step that is not done again goes unnoted
      search.Hook(step=keep, vital=True),
      search.Hook(children=note_best, vital=True),
      search.Hook(step=show),
    ]
    state = search.run(s, state, hearers, search.Budget(children), known)
  stop_watching()
  close()
  found = journal.read(path)
  return [found[number] for number in sorted(found) if number < s.spent(state)]
