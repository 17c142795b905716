"""Other ways to train the same children, each in a process of its own, with which it is spoken by files.

A folder holds job.json, weights-K.npz of each child and batches.npz; a process reads it, trains the children one after
another, and prints one line of JSON: {'losses': [m, CHECKED], 'seconds': [m], 'compiling': [m]}.
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
CLOSE = 1e-3  # the greatest difference of losses


def write(
  folder: str, archs: Sequence[Any], params: Sequence[PyTree], batches: Sequence[np.ndarray], **job: Any
) -> None:
  """Writes a job.

  Args:
    folder: where.
    archs: static, one for each child, as JSON can say them.
    params: of each child; leaves are named by their path, 'cells.0.kernel'.
    batches: arrays [n, ...], which all children train on in turn.
    **job: what else the processes must know: kind, steps, settings.
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
    self.command, self.losses = command, losses  # what to run; [m, CHECKED] that it must find
    self.close = close  # the greatest difference that is allowed
    self.compiling = 0.0  # seconds a child, of the first step in PyTorch

  def __call__(self) -> float:
    """Runs the process. Raises ValueError if its losses are not ours."""
    sharing = os.environ | {'XLA_PYTHON_CLIENT_PREALLOCATE': 'false'}  # this process has most of a GPU's memory
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
  """Returns the rivals that can run here, by their names in NAMES. Losses may differ from ours by `close`."""
  torch = [setup.torch_python, os.path.join(HERE, 'torch_child.py'), folder]
  commands = {'naive': [sys.executable, '-m', 'experiments.bench.naive_child', folder]}
  commands |= {'torch': torch} if setup.torch_python else {}
  commands |= {'compile': [*torch, '--compile']} if setup.torch_python and setup.torch_compile else {}
  return {name: Rival(command, losses, close) for name, command in commands.items()}


def rows(
  size: str, program: str, found: Mapping[str, np.ndarray], others: Mapping[str, Rival], bar: Bar | None
) -> list[Row]:
  """Returns how many times faster than each rival `program` is, by seconds [repeats] for the same children.

  The bar is for PyTorch eager.
  """
  shown = list[Row]()
  for key, rival in others.items():
    eager = key == 'torch'
    note = '' if eager else f'without its {rival.compiling:.2g} s of compiling a child'
    ratio = found[key] / found[program]
    shown.append(row(f'{size}: {program} against {NAMES[key]}', ratio, bar=bar if eager else None, note=note))
  return shown
