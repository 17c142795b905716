"""Launchers: the only place with flags, paths and processes. They are run from a checkout of the repository."""

import os
import signal
import sys
from typing import Any


def _leave(*_: Any) -> None:
  os.write(2, b'stopped by SIGINT before anything was begun.\n')
  os._exit(130)


_launched = sys.argv[0] == '-m'  # by `python -m experiments.NAME`
if _launched:  # Ctrl-C ends the imports, which take seconds
  signal.signal(signal.SIGINT, _leave)

from nas_jax import lazy  # noqa: E402

# Packages that every search needs beside the library. They are checked now, not after hours of training.
for _package in ('absl', 'filelock', 'matplotlib', 'tensorboardX', 'tqdm'):
  try:
    lazy.require(_package, 'a launcher')
  except ImportError as _error:
    if not _launched:
      raise
    print(_error, file=sys.stderr)
    raise SystemExit(2) from None
