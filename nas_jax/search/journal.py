"""The journal: one line of JSON for every child that was trained, written as soon as it is scored.

Every line of a .jsonl file ends with a checksum of the rest of it, under the key `CHECKSUM`. Readers verify it and
leave it out of the records that they return. Older files have no checksums: lines without one are accepted up to the
first line that has one.
"""

from collections.abc import Callable, Mapping, Sequence
import math
import os
from typing import Any
import zlib

import jax.numpy as jnp
import numpy as np

from nas_jax import files
from nas_jax.files import is_count, is_number
from nas_jax.space import Kind, Space
from nas_jax.training.fit import Status
from nas_jax.types import Batch, Outcome

Record = dict[str, Any]
CHECKSUM = 'crc32'  # the last key of a line: 8 hexadecimal digits
CHILD: files.Schema = {
  'id': is_count,
  'tokens': [is_count],
  'reward': (is_number, [is_number]),
  'depth?': is_count,
  'failed': (str, None),
  'seconds': lambda value: is_number(value) and 0 <= value < math.inf,
}
UPDATE: files.Schema = {'step': is_count, 'children': is_count, 'probabilities?': [[(is_number, None)]]}


def child_of(space: Space) -> Callable[[Record], bool]:
  """Returns the schema of a child of a space with one reward: its tokens are in range, its metrics are numbers."""
  limits = [2 if space.slots[i].kind == Kind.LINK else space.slots[i].width for i in space.owner]

  def fits(record: Record) -> bool:
    if files.mismatch(record, CHILD) or not is_number(record['reward']):
      return False
    tokens, metrics = record['tokens'], (value for name, value in record.items() if name not in _NO_METRICS)
    return (
      len(tokens) == len(limits)
      and all(token < limit for token, limit in zip(tokens, limits, strict=True))
      and 1 <= record.get('depth', 1) <= space.layers
      and all(value is None or is_number(value) for value in metrics)
    )

  return fits


def derived_of(space: Space, metric: str) -> Callable[[Record], bool]:
  """Returns the schema of an architecture that was derived after a search: a child with its score, but no seconds."""
  fits = child_of(space)
  return lambda line: fits({'seconds': 0, **line}) and (line['failed'] is not None or is_number(line.get(metric)))


def update_of(space: Space) -> Callable[[Record], bool]:
  """Returns the schema of an update of a search in a space: it has a probability for each label of each slot."""
  widths = [slot.width for slot in space.slots]

  def fits(record: Record) -> bool:
    return (
      not files.mismatch(record, UPDATE)
      and [len(row) for row in record.get('probabilities', [])] in (widths, [])
      and all(value is None or is_number(value) for name, value in record.items() if name != 'probabilities')
    )

  return fits


def child_of_rung(space: Space) -> Callable[[Record], bool]:
  """Returns the schema of a child that was trained again in a later rung of successive halving; see `child_of`."""
  fits = child_of(space)
  return lambda record: is_count(record.get('rung')) and record['rung'] > 1 and fits(record)


_NO_METRICS = ('tokens', 'failed')
REPEAT = 'repeat_of'  # in the record of a child that was not trained: the id of the child whose training it stands for
REWARD_MISSING = 'no finite reward'  # why a child failed, if its training gave no reason


def records(
  batch: Batch, outcome: Outcome, seconds: float, measured: Mapping[int, Record] | None = None
) -> list[Record]:
  """Returns a record for each child: id, tokens, reward, metrics, why it failed (or null), and wall seconds.

  The children that were trained share `seconds` equally. A child above a bound was not trained, so it has 0 seconds. A
  child that repeats an earlier one has 0 seconds, the metrics of that child, and its id as the metric `REPEAT`. The
  reward of a child that failed is written as 0, and nothing reads it.

  Args:
    batch: the children.
    outcome: of the batch.
    seconds: the wall time of all children together.
    measured: the records of earlier children by id, for those that repeat one.
  """
  columns = {name: np.asarray(values) for name, values in dict(outcome.metrics or {}).items()}
  reward, found = np.asarray(outcome.reward), []
  failed = ~np.isfinite(reward) if outcome.failed is None else ~np.isfinite(reward) | np.asarray(outcome.failed, bool)
  status = columns.pop('failed', np.zeros(len(batch.ids), np.int32))
  source = _sources(batch)
  above = [k for k, one in enumerate(status) if k not in source and Status(int(one)).above_bound]
  each, earlier = seconds / max(1, len(batch.ids) - len(source) - len(above)), dict(measured or {})
  for k, (number, tokens) in enumerate(zip(np.asarray(batch.ids), np.asarray(batch.tokens), strict=True)):
    record = {'id': int(number), 'tokens': tokens.tolist(), 'reward': 0.0 if failed[k] else reward[k].tolist()}
    record |= {} if batch.depth is None else {'depth': int(np.broadcast_to(batch.depth, len(batch.ids))[k])}
    why = REWARD_MISSING if failed[k] else None
    if k in source:
      first = earlier.get(source[k], {})
      record |= {name: value for name, value in first.items() if name not in (*record, 'depth', 'failed', 'seconds')}
      record |= {REPEAT: source[k], 'failed': why and first.get('failed', why), 'seconds': 0.0}
    else:
      why = Status(int(status[k])).reason or why
      record |= {'reward': 0.0} if why else {}
      record |= {name: plain(values[k]) for name, values in columns.items()}
      record |= {'failed': why, 'seconds': 0.0 if k in above else round(each, 4)}
      earlier[record['id']] = record
    found.append(record)
  return found


def _sources(batch: Batch) -> dict[int, int]:
  """Maps the position of each child that repeats an earlier one to the id of the earlier child."""
  if batch.repeats is None:
    return {}
  known, source = np.asarray(batch.repeats.known), np.asarray(batch.repeats.source)
  return {int(k): int(source[k]) for k in np.flatnonzero(known)}


def outcome(lines: Sequence[Record]) -> Outcome:
  """Returns the outcome that the records hold. Its rewards are bit-identical to the original; it has no metrics."""
  failed = jnp.asarray([line['failed'] is not None for line in lines])
  return Outcome(jnp.asarray([line['reward'] for line in lines], jnp.float32), failed=failed)


def agree(lines: Sequence[Record], batch: Batch) -> None:
  """Raises `files.Unusable` if a record has other tokens than the child of its id: the journal is of another search."""
  tokens = dict(zip(batch.ids.tolist(), np.asarray(batch.tokens).tolist(), strict=True))
  for line in lines:
    if line.get('tokens') != tokens[line['id']]:
      raise files.Unusable(
        f'the journal has other tokens for child {line["id"]} than this search asks for: it is of another search; '
        'take a new workdir.'
      )


def encode(record: Record) -> str:
  """Returns a record as a line with its checksum, without the end of the line. See `files.as_json`."""
  text = files.as_json(record)
  return f'{text[:-1]}{_tail(text.encode())}'


def _tail(text: bytes) -> str:
  return f', "{CHECKSUM}": "{zlib.crc32(text):08x}"}}'


_TAIL = len(_tail(b''))


def _decode(line: bytes) -> tuple[Record | None, bool]:
  """Returns the record of a line and whether it has a checksum. The record is None if the line is damaged."""
  line = line.rstrip(b'\r\n')
  text = line[:-_TAIL] + b'}'
  checked = line[-_TAIL:] == _tail(text).encode()
  try:
    record = files.parse(text if checked else line)
  except ValueError:
    return None, checked
  # A checksum that does not fit stays an entry of the record.
  sound = isinstance(record, dict) and (checked or CHECKSUM not in record)
  return (record if sound else None), checked


def _lines(path: str, schema: files.Schema) -> list[tuple[bytes, Record | None]]:
  """Returns the lines of a file with their records, None for those that are damaged or not of the schema."""
  if not os.path.isfile(path):
    return []
  with open(path, 'rb') as file:
    lines = file.read().splitlines(keepends=True)
  found, checksums = list[tuple[bytes, Record | None]](), False
  for line in lines:
    record, checked = _decode(line)
    torn = not line.endswith(b'\n') or (checksums and not checked)
    checksums |= checked
    found.append((line, None if torn or record is None or files.mismatch(record, schema) else record))
  return found


def read_lines(path: str, schema: files.Schema) -> list[Record]:
  """Returns the records of a schema in a file, in order. Damaged lines are left out."""
  return [record for _, record in _lines(path, schema) if record is not None]


def drop_damaged_lines(path: str, aside: str, schema: files.Schema = CHILD) -> int:
  """Moves damaged lines of `path` to a file of the same name in the folder `aside`, and returns how many there were.

  A line is damaged if its checksum is wrong (or missing, after a line that has one), if it does not match the schema,
  or if it has no line end, such as the last line of a killed process. If `path` is not a file, it is moved as a whole.
  """
  if os.path.lexists(path) and not os.path.isfile(path):
    files.set_aside(path, aside)
    return 1
  lines = _lines(path, schema)
  damaged = [line for line, record in lines if record is None]
  if damaged:
    os.makedirs(aside, exist_ok=True)
    with open(os.path.join(aside, os.path.basename(path)), 'ab') as file:
      file.writelines(line.rstrip(b'\n') + b'\n' for line in damaged)
    files.write(path, b''.join(line for line, record in lines if record is not None))
  return len(damaged)


def read(path: str, by: str = 'id', schema: files.Schema = None) -> dict[int, Record]:
  """Returns the records by id, or by the step of an update. If several have the same number, the last one counts.

  Damaged lines, such as the last one of a killed process, are left out.

  Args:
    path: of the file.
    by: 'id' for children, 'step' for updates.
    schema: of the records; by default `CHILD` or `UPDATE`.
  """
  schema = schema or (CHILD if by == 'id' else UPDATE)
  return {record[by]: record for record in read_lines(path, schema)}


def writer(path: str) -> Callable[[list[Record]], None]:
  """Returns a function that appends records to `path`, on a new line, and returns when they are on disk."""

  def write(lines: list[Record]) -> None:
    torn = os.path.exists(path) and os.path.getsize(path) > 0 and not _ends_line(path)
    with open(path, 'a', encoding='utf-8') as file:
      file.write('\n' if torn else '')
      file.writelines(encode(line) + '\n' for line in lines)
      file.flush()
      os.fsync(file.fileno())

  return write


def _ends_line(path: str) -> bool:
  with open(path, 'rb') as file:
    file.seek(-1, os.SEEK_END)
    return file.read() == b'\n'


def plain(value: np.ndarray | np.generic) -> Any:
  """Returns a NumPy scalar as a JSON value: a number, or None if it is not finite."""
  number = value.item()
  return None if isinstance(number, float) and not math.isfinite(number) else number
