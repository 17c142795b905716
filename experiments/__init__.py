"""Launchers: the only place with flags, paths and processes. They are run from a checkout of the repository."""

import os
import signal
import sys
from typing import Any


def _leave(*_: Any) -> None:
  os.write(2, b'stopped by SIGINT before anything was begun.\n')
  os._exit(130)


if sys.argv[0] == '-m':  # `python -m experiments.NAME`: Ctrl-C ends the imports, which take seconds
  signal.signal(signal.SIGINT, _leave)

from nas_jax import lazy  # noqa: E402

# Packages that every search needs beside the library. They are checked now, not after hours of training.
for _package in ('absl', 'filelock', 'matplotlib', 'tensorboardX', 'tqdm'):
  lazy.require(_package, 'a launcher')
