"""The benchmark of one accelerator, measured in parts that can be resumed.

Each part runs in its own process for a limited time, so that a part that hangs, crashes or runs out of memory does not
affect the others. The figures that it has measured by then are kept. The most important part comes first.
"""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any, NamedTuple

from experiments.bench import rivals, show
from experiments.bench.gpu_parts import PARTS, ROW
from experiments.bench.timing import Bar, Row, Setup
from experiments.common import launch, workdirs

LEAST = 15.0  # the least seconds that must be left for another part to begin
REASONS = 'Error', 'Unknown flag', 'Illegal value'  # one of these is in the line that says why a process ended
DONE, FAILED, STOPPED = 'done', 'failed', 'stopped'  # how a part ended


class Ended(NamedTuple):
  """The results of a part."""

  how: str  # DONE, FAILED or STOPPED
  seconds: float
  rows: list[Row]
  why: str = ''  # the error, if it failed


def check(path: str, facts: Mapping[str, Any]) -> None:
  """Raises ValueError if the file at `path` has figures of a run with other facts, such as other repeats."""
  known = (workdirs.read(path) if path else None) or {}
  if different := [f'{name} {known[name]!r}' for name in facts if name in known and known[name] != facts[name]]:
    raise ValueError(
      f'json (={path!r}) has figures of {", ".join(different)}: give the same flags to go on, or name another file.'
    )


def run(setup: Setup, minutes: float, path: str, facts: dict[str, Any], check: launch.Check) -> None:
  """Measures the parts that the file at `path` lacks, one after another, for at most `minutes` in all (0: no limit).

  The file is written after each figure. A part that failed or was stopped is measured again by the next run. If that
  gets less far, as little time is left, the figures of before are kept.
  """
  end, found = time.monotonic() + 60 * (minutes or math.inf), read(path)
  for name, part in PARTS.items():
    check()
    if name in found and found[name].how == DONE:
      print(f'{name}: measured before', flush=True)
      continue
    if (left := end - time.monotonic()) < LEAST:
      print(f'{name}: no time is left', flush=True)
      continue

    before = found[name].rows if name in found else []

    def note(ended: Ended, name: str = name, before: list[Row] = before) -> None:
      further = ended.how == DONE or len(ended.rows) >= len(before)
      found[name] = ended if further else ended._replace(rows=before)
      write(path, found, facts)

    ended = measured(name, setup, min(part.limit, left), note)
    note(ended)
    print(
      f'\n{show.table({name: ended.rows})}\n{name}: {ended.how} after {ended.seconds:.0f} s {ended.why}', flush=True
    )


def measured(name: str, setup: Setup, limit: float, note: Callable[[Ended], None]) -> Ended:
  """Measures a part in a process that is stopped after `limit` seconds. Calls `note` after each figure."""
  begun, rows = time.monotonic(), list[Row]()
  command = [sys.executable, '-m', 'experiments.bench.gpu_parts', name, json.dumps(setup)]
  flags = f'{os.environ.get("XLA_FLAGS", "")} {PARTS[name].flags}'.strip()  # XLA takes a lone space for a file's name
  environment = os.environ | {'XLA_FLAGS': flags}
  with (
    tempfile.TemporaryFile('w+') as errors,
    subprocess.Popen(
      command,
      stdout=subprocess.PIPE,
      stderr=errors,
      text=True,
      cwd=rivals.ROOT,
      env=environment,
      start_new_session=True,
    ) as process,
    ThreadPoolExecutor(1) as waiting,
  ):
    stopped = waiting.submit(_stopped, process, limit)
    try:
      assert process.stdout is not None
      for line in process.stdout:  # until the process ends, by itself or because it is stopped
        if line.startswith(ROW):
          rows.append(_row(json.loads(line.removeprefix(ROW))))
          note(Ended(STOPPED, time.monotonic() - begun, rows))
    finally:
      _kill(process)
    errors.seek(0)
    said = [line for line in errors.read().splitlines() if any(word in line for word in REASONS)][-1:]
  taken = time.monotonic() - begun
  if stopped.result():
    return Ended(STOPPED, taken, rows)
  return Ended(FAILED, taken, rows, said[0] if said else '') if process.returncode else Ended(DONE, taken, rows)


def _stopped(process: subprocess.Popen, limit: float) -> bool:
  """Waits for a process, stops it after `limit` seconds, and returns whether it had to be stopped."""
  try:
    process.wait(limit)
    return False
  except subprocess.TimeoutExpired:
    _kill(process)
    return True


def _kill(process: subprocess.Popen) -> None:
  """Kills a process and all processes of its group."""
  with contextlib.suppress(ProcessLookupError):
    os.killpg(process.pid, signal.SIGKILL)
  process.wait()


def read(path: str) -> dict[str, Ended]:
  """Returns the results of earlier runs in a file, by part."""
  known = (workdirs.read(path) if path else None) or {}
  return {
    name: Ended(part['how'], part['seconds'], [_row(each) for each in part['rows']], part['why'])
    for name, part in known.get('parts', {}).items()
  }


def write(path: str, found: dict[str, Ended], facts: dict[str, Any]) -> None:
  """Writes the file that `read` reads, if there is a path."""
  if path:
    parts = {
      name: ended._asdict() | {'rows': [show.plain(each) for each in ended.rows]} for name, ended in found.items()
    }
    workdirs.write(path, json.dumps({**facts, 'parts': parts}, indent=2) + '\n')


def _row(known: dict[str, Any]) -> Row:
  bar, spread = known['bar'], known['spread']
  own = {name: known[name] for name in ('name', 'value', 'unit', 'note')}
  return Row(**own, bar=Bar(**bar) if bar else None, spread=tuple(spread) if spread else None)
