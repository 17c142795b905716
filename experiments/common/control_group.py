"""The control group of this process, whose counter tells an out-of-memory kill by the kernel from other kills."""

import contextlib
import os
from typing import NamedTuple


class ControlGroup(NamedTuple):
  """The control group of this process."""

  name: str  # different for each boot and container; '' if it is not known
  kills: int  # out-of-memory kills of processes in it


def own(groups: str = '/proc/self/cgroup', root: str = '/sys/fs/cgroup') -> ControlGroup:
  """Returns the control group of this process, version 1 or 2, as Linux describes it at these paths."""
  places = [(root, 'memory.events'), (os.path.join(root, 'memory'), 'memory.oom_control')]
  with contextlib.suppress(OSError):
    with open(groups) as file:
      lines = [line.strip().split(':', 2) for line in file]
    paths = {kinds: path.lstrip('/') for _, kinds, path in lines if kinds in ('', 'memory')}
    places = [
      *((os.path.join(root, path), 'memory.events') for kinds, path in paths.items() if not kinds),
      *(
        (os.path.join(root, 'memory', path), 'memory.oom_control') for kinds, path in paths.items() if kinds == 'memory'
      ),
      *places,  # in a container, whose root is the group itself
    ]
  for folder, name in places:
    with contextlib.suppress(OSError, ValueError):
      with open(os.path.join(folder, name)) as file:
        counts = dict(line.split() for line in file)
      boot = _text('/proc/sys/kernel/random/boot_id')
      return ControlGroup(f'{boot} {os.stat(folder).st_ino}', int(counts.get('oom_kill', 0)))
  return ControlGroup('', 0)


def _text(path: str) -> str:
  with open(path) as file:
    return file.read().strip()
