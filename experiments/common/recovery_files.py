"""What a workdir keeps of trainings under way, so that none is lost when the process ends."""

from collections import Counter
from collections.abc import Callable
import json
import math
import os
import shutil
import threading
import time
from typing import Any, NamedTuple
import warnings

import jax
import jax.numpy as jnp
import numpy as np

from nas_jax.search import journal
from nas_jax.training import checkpoint
from nas_jax.training.recovery import Limits, Metrics, Recovery, Stopped
from nas_jax.types import Array, PyTree

SECONDS = 60  # of training, after which it is kept where it stands, in between


class Standing(NamedTuple):
  """Where a training stands."""

  calls: Array  # [] int32, program calls done
  states: PyTree


def recovery(workdir: str, limits: Limits, check: Callable[[], None]) -> Recovery:
  """A keeper with files: started.jsonl, starts and ends of trainings, and training/, where long ones stand.

  started.jsonl has lines of three kinds: a `training` by its name, begun after so many `calls`; one that was `kept`
  after so many; and the `metrics` that one gave. `check` raises `Stopped` if the process was asked to end.
  """
  path, folder = os.path.join(workdir, 'started.jsonl'), os.path.join(workdir, 'training')
  lock, kept = threading.Lock(), dict[str, float]()  # when each was kept the last time
  ended, failed_starts = _history(path, os.path.join(workdir, 'damaged'))

  def note(line: dict[str, Any]) -> None:
    # Not forced to the disk: that the process dies does not lose it, and a lost line costs one training.
    with lock, open(path, 'a', encoding='utf-8') as file:
      file.write(json.dumps(line) + '\n')

  def begin(name: str, fresh: PyTree) -> tuple[int, PyTree]:
    check()
    start = Standing(jnp.zeros((), jnp.int32), fresh)
    found = checkpoint.restore(os.path.join(folder, name), start) or start
    note({'training': name, 'calls': int(found.calls)})
    kept[name] = time.monotonic()
    return int(found.calls), found.states

  def keep(name: str, calls: int, states: PyTree) -> None:
    try:
      check()
    except Stopped:
      put(name, calls, states)
      raise
    if time.monotonic() - kept[name] > SECONDS:
      put(name, calls, states)
      kept[name] = time.monotonic()

  def put(name: str, calls: int, states: PyTree) -> None:
    save, close = checkpoint.saver(os.path.join(folder, name), keep=2)
    save(calls, Standing(jnp.asarray(calls, jnp.int32), jax.device_get(states)))
    close()  # before the next call, which uses the states up
    note({'training': name, 'kept': calls})

  def end(name: str, metrics: Metrics) -> None:
    note({'training': name, 'metrics': {key: [str(value.dtype), value.tolist()] for key, value in metrics.items()}})
    shutil.rmtree(os.path.join(folder, name), ignore_errors=True)

  timeout = limits.child_timeout or math.inf
  return Recovery(ended.get, lambda name: failed_starts[name], begin, keep, end, check, timeout, limits.child_starts)


def _history(path: str, aside: str) -> tuple[dict[str, Metrics], Counter[str]]:
  """What trainings gave that ended, and how often others were begun since they last got anywhere."""
  if count := journal.drop_damaged_lines(path, aside, ('training',)):
    warnings.warn(f'{path}: {count} damaged lines, moved to {aside}.', stacklevel=3)
  ended, failed_starts = dict[str, Metrics](), Counter[str]()
  lines = list[dict[str, Any]]()
  if os.path.exists(path):
    with open(path, encoding='utf-8') as file:
      lines = [json.loads(line) for line in file]
  for line in lines:
    name = str(line['training'])
    failed_starts[name] = failed_starts[name] + 1 if 'calls' in line else 0
    try:
      if 'metrics' in line:
        ended[name] = {key: np.array(values, dtype) for key, (dtype, values) in line['metrics'].items()}
    except (TypeError, ValueError, AttributeError):
      continue  # no metrics, whatever happened to the line: it costs one training
  return ended, failed_starts
