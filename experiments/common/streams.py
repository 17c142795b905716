"""Standard streams that survive the loss of their reader: the output is dropped and the program continues."""

from collections.abc import Iterator
import contextlib
import errno
import os
import sys
from typing import Any

GONE = {errno.EPIPE, errno.EBADF, errno.EIO, errno.ENXIO}  # the reader, or the terminal


@contextlib.contextmanager
def tolerant() -> Iterator[None]:
  """Makes sys.stdout and sys.stderr accept output without an error, even if they are closed or break later."""
  for number in (0, 1, 2):
    try:
      os.fstat(number)
    except OSError:  # otherwise the file opened next, such as a result, would take the number of the closed stream
      os.open(os.devnull, os.O_RDWR)
  before = sys.stdout, sys.stderr
  sys.stdout, sys.stderr = (Tolerant(stream or open(os.devnull, 'w')) for stream in before)  # type: ignore[assignment]
  try:
    yield
  finally:
    sys.stdout.flush()
    sys.stdout, sys.stderr = before


class Tolerant:
  """A text stream that switches to the null device as soon as its reader is gone."""

  def __init__(self, stream: Any):
    self._stream = stream

  def __getattr__(self, name: str) -> Any:
    return getattr(self._stream, name)

  def write(self, text: str) -> int:
    """Writes the text, or drops it."""
    with self._silent_if_gone():
      self._stream.write(text)
    return len(text)

  def flush(self) -> None:
    """Writes the buffered text, or drops it."""
    with self._silent_if_gone():
      self._stream.flush()

  @contextlib.contextmanager
  def _silent_if_gone(self) -> Iterator[None]:
    try:
      yield
    except OSError as error:
      if error.errno not in GONE:
        raise
      null = os.open(os.devnull, os.O_WRONLY)
      os.dup2(null, self._stream.fileno())  # the text still in the buffer goes there too
      os.close(null)
