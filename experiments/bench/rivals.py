"""Other implementations that train the same children, each in its own process, which gets its job as files.

A folder holds job.json, weights-K.npz for each child K, and batches.npz. A process reads it, trains the children one
after another, and prints one line of JSON: {'losses': [m, CHECKED], 'seconds': [m], 'compiling': [m]}.
"""

from collections.abc import Mapping, Sequence
import json
import os
import subprocess
import sys
from typing import Any

import jax
import numpy as np

from experiments.bench.timing import Bar, Row, Setup, row
from experiments.bench.trained import CHECKED
from nas_jax.types import PyTree

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
NAMES = {
  'torch': 'PyTorch eager',
  'compile': 'torch.compile',
  'naive': 'naive JAX, a program each',
}
CLOSE = 1e-3  # the greatest allowed difference of losses


def write(
  folder: str, archs: Sequence[Any], params: Sequence[PyTree], batches: Sequence[np.ndarray], **job: Any
) -> None:
  """Writes a job to a folder.

  Args:
    folder: the folder.
    archs: a static architecture for each child, as JSON values.
    params: of each child; leaves are named by their path, such as 'cells.0.kernel'.
    batches: arrays [n, ...] with n batches, which every child trains on in turn.
    **job: further entries of job.json: kind, steps, settings.
  """
  for k, own in enumerate(params):
    leaves = jax.tree_util.tree_flatten_with_path(own)[0]
    named = {jax.tree_util.keystr(path, simple=True, separator='.'): np.asarray(leaf) for path, leaf in leaves}
    np.savez(os.path.join(folder, f'weights-{k}.npz'), allow_pickle=False, **named)
  np.savez(os.path.join(folder, 'batches.npz'), *batches)
  with open(os.path.join(folder, 'job.json'), 'w', encoding='utf-8') as file:
    device = 'cuda' if jax.default_backend() == 'gpu' else 'cpu'  # as PyTorch calls it
    json.dump(job | {'archs': archs, 'checked': CHECKED, 'device': device}, file)


class Rival:
  """A process that trains the same children. A call returns the seconds for all, as the process measured them."""

  def __init__(self, command: Sequence[str], losses: np.ndarray, close: float = CLOSE):
    self.command, self.losses = command, losses  # `losses` [m, CHECKED] must be reproduced
    self.close = close  # the greatest allowed difference of losses
    self.compiling = 0.0  # seconds of compiling a child; in PyTorch, of its first step

  def __call__(self) -> float:
    """Runs the process. Raises ValueError if it fails or if its losses differ from ours."""
    sharing = os.environ | {'XLA_PYTHON_CLIENT_PREALLOCATE': 'false'}  # our process already has most of a GPU's memory
    done = subprocess.run(self.command, capture_output=True, text=True, cwd=ROOT, env=sharing)
    if done.returncode:
      raise ValueError(f'{self.command} failed: {done.stderr.strip().splitlines()[-1:]}')
    found = json.loads(done.stdout.splitlines()[-1])
    off = np.abs(np.array(found['losses']) - self.losses).max()
    if not off <= self.close:
      raise ValueError(
        f'{self.command} does not train the same: losses differ by {off:.2g}, {self.close:g} is allowed.'
      )
    self.compiling = float(np.mean(found['compiling']))
    return sum(found['seconds'])


def ways(folder: str, setup: Setup, losses: np.ndarray, close: float = CLOSE) -> dict[str, Rival]:
  """Returns the rivals that `setup` allows, by their keys in NAMES. Their losses may differ from ours by `close`."""
  torch = [setup.torch_python, os.path.join(HERE, 'torch_child.py'), folder]
  commands = {'naive': [sys.executable, '-m', 'experiments.bench.naive_child', folder]}
  commands |= {'torch': torch} if setup.torch_python else {}
  commands |= {'compile': [*torch, '--compile']} if setup.torch_python and setup.torch_compile else {}
  return {name: Rival(command, losses, close) for name, command in commands.items()}


def rows(
  size: str, program: str, found: Mapping[str, np.ndarray], others: Mapping[str, Rival], bar: Bar | None
) -> list[Row]:
  """Returns how many times as fast as each rival `program` is, from the seconds [repeats] in `found`.

  The bar applies to PyTorch eager.
  """
  shown = list[Row]()
  for key, rival in others.items():
    eager = key == 'torch'
    note = '' if eager else f'without its {rival.compiling:.2g} s of compiling a child'
    ratio = found[key] / found[program]
    shown.append(row(f'{size}: {program} against {NAMES[key]}', ratio, bar=bar if eager else None, note=note))
  return shown
