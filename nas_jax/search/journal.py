"""The journal: one line of JSON for every child that was trained, written as soon as it is scored."""

from collections.abc import Callable, Sequence
import json
import math
import os
from typing import Any

import jax.numpy as jnp
import numpy as np

from nas_jax.training.fit import Status
from nas_jax.types import Batch, Outcome

Record = dict[str, Any]
REWARD_MISSING = 'no finite reward'  # why a child failed whose training did not say


def records(batch: Batch, outcome: Outcome, seconds: float) -> list[Record]:
  """Returns a record for each child: id, tokens, reward, metrics, why it failed (or null), and its wall seconds.

  The reward of a child that failed is noted as 0, and nothing reads it.
  """
  columns = {name: np.asarray(values) for name, values in dict(outcome.metrics or {}).items()}
  reward, found = np.asarray(outcome.reward), []
  failed = ~np.isfinite(reward) if outcome.failed is None else ~np.isfinite(reward) | np.asarray(outcome.failed, bool)
  status = columns.pop('failed', np.zeros(len(batch.ids), np.int32))
  for k, (number, tokens) in enumerate(zip(np.asarray(batch.ids), np.asarray(batch.tokens), strict=True)):
    why = Status(int(status[k])).reason or (REWARD_MISSING if failed[k] else None)
    record = {'id': int(number), 'tokens': tokens.tolist(), 'reward': 0.0 if why else reward[k].tolist()}
    record |= {} if batch.depth is None else {'depth': int(np.broadcast_to(batch.depth, len(batch.ids))[k])}
    record |= {name: plain(values[k]) for name, values in columns.items()}
    record |= {'failed': why, 'seconds': round(seconds / len(batch.ids), 4)}
    found.append(record)
  return found


def outcome(lines: Sequence[Record]) -> Outcome:
  """Returns the outcome that was journalled. Its rewards are equal to the bit; it has no metrics."""
  failed = jnp.asarray([line['failed'] is not None for line in lines])
  return Outcome(jnp.asarray([line['reward'] for line in lines], jnp.float32), failed=failed)


def agree(lines: Sequence[Record], batch: Batch) -> None:
  """Raises ValueError if a record has other tokens than the child of its id: the journal is of another search."""
  tokens = dict(zip(batch.ids.tolist(), np.asarray(batch.tokens).tolist(), strict=True))
  for line in lines:
    if line.get('tokens') != tokens[line['id']]:
      raise ValueError(
        f'the journal has other tokens for child {line["id"]} than this search asks for: it is of another search; '
        'take a new workdir.'
      )


def drop_damaged_lines(
  path: str, aside: str, need: Sequence[str] = ('id', 'tokens', 'reward', 'failed', 'seconds')
) -> int:
  """Moves damaged lines of `path` to a file of the same name in the folder `aside`, and returns how many there were.

  A line is damaged if it is not a JSON object with all entries of `need`, such as the last line of a killed process.
  """
  if not os.path.exists(path):
    return 0
  with open(path, 'rb') as file:
    lines = file.read().splitlines(keepends=True)
  records = [_record(line) if line.endswith(b'\n') else None for line in lines]
  sound = [record is not None and all(name in record for name in need) for record in records]
  if not all(sound):
    os.makedirs(aside, exist_ok=True)
    with open(os.path.join(aside, os.path.basename(path)), 'ab') as file:
      file.writelines(line.rstrip(b'\n') + b'\n' for line, fine in zip(lines, sound, strict=True) if not fine)
    with open(path + '.part', 'wb') as file:
      file.writelines(line for line, fine in zip(lines, sound, strict=True) if fine)
      file.flush()
      os.fsync(file.fileno())
    os.replace(path + '.part', path)
  return sound.count(False)


def _record(line: bytes | str) -> Record | None:
  try:
    record = json.loads(line)
  except ValueError:
    return None
  return record if isinstance(record, dict) else None


def read(path: str, by: str = 'id') -> dict[int, Record]:
  """Returns the records by id, or by another number that all have. Of several with one number the last counts.

  Damaged lines, such as the last one of a killed process, are left out.
  """
  found: dict[int, Record] = {}
  if os.path.exists(path):
    with open(path, encoding='utf-8', errors='replace') as file:
      for line in file:
        record = _record(line)
        if record is not None and isinstance(record.get(by), int):
          found[record[by]] = record
  return found


def writer(path: str) -> Callable[[list[Record]], None]:
  """Returns a function that appends records to `path` and returns when they are on disk."""

  def write(lines: list[Record]) -> None:
    torn = os.path.exists(path) and os.path.getsize(path) > 0 and not _ends_line(path)
    with open(path, 'a', encoding='utf-8') as file:
      file.write('\n' if torn else '')
      file.writelines(json.dumps(line) + '\n' for line in lines)
      file.flush()
      os.fsync(file.fileno())

  return write


def _ends_line(path: str) -> bool:
  with open(path, 'rb') as file:
    file.seek(-1, os.SEEK_END)
    return file.read() == b'\n'


def plain(value: np.ndarray | np.generic) -> Any:
  """Returns a number that JSON can hold: None if it is not finite."""
  number = value.item()
  return None if isinstance(number, float) and not math.isfinite(number) else number
