"""Measures speed: most figures are ratios within one run, and the machine's ceilings are measured beside them.

Sections: cells, conv, controller, searches, devices, or all of these; precision measures children in bfloat16; presets
measures the paper's children at full size, for accelerators. gpu runs alone: it has all figures for one accelerator, in
at most --minutes, and the same command measures those that its file lacks.
Examples:
  python -m experiments.bench cells --json=OUT --picture=OUT.svg
  python -m experiments.bench all --torch_python=OTHER/bin/python --repeats=7
  python -m experiments.bench gpu --minutes=8 --json=OUT --repeats=3
"""

from collections.abc import Mapping, Sequence
import os
import subprocess
import sys
from typing import Any

from absl import flags
import jax

from experiments.bench import cells, controller, conv, devices, gpu, machine, precision, presets, searches, show
from experiments.bench.timing import Setup
from experiments.common import arguments, launch, workdirs

SECTIONS = {
  'cells': cells.rows,
  'conv': conv.rows,
  'controller': controller.rows,
  'searches': searches.rows,
  'devices': devices.rows,
  'precision': precision.rows,
  'presets': presets.rows,
}
ALL = [name for name in SECTIONS if name not in ('precision', 'presets')]


def own_flags(values: flags.FlagValues) -> None:
  """Defines the flags of the benchmark."""
  flags.DEFINE_list(
    'what',
    'all',
    f'sections to measure, of {", ".join(SECTIONS)}, gpu; all: all but the last three; also as plain words',
    flag_values=values,
  )
  flags.DEFINE_string('json', '', 'file to write the figures to, as JSON', flag_values=values)
  flags.DEFINE_string('picture', '', 'file to draw the figures to: .svg, .png or .pdf', flag_values=values)
  flags.DEFINE_integer('repeats', 5, 'times that each measurement is repeated', 1, flag_values=values)
  flags.DEFINE_float('minutes', 0.0, 'minutes after which the section gpu ends; 0: no limit', 0.0, flag_values=values)
  flags.DEFINE_boolean(
    'small', False, 'measure tiny shapes, in seconds: to see whether it runs, not how fast', flag_values=values
  )
  flags.DEFINE_string(
    'torch_python', sys.executable, 'path of a Python that has PyTorch, to compare with', flag_values=values
  )
  flags.DEFINE_boolean('torch_compile', False, 'measure torch.compile too, which takes minutes', flag_values=values)


def prepare(argv: Sequence[str]) -> launch.Work:
  """Reads the flags, checks whether PyTorch is installed, and returns the function that does the work."""
  values = arguments.parse(argv, __doc__, own_flags, words='what')
  what = list(dict.fromkeys(section for name in values.what for section in (ALL if name == 'all' else [name])))
  if 'gpu' in what and len(what) > 1:
    raise ValueError('gpu is measured alone: leave the other sections out.')
  if unknown := [name for name in what if name not in (*SECTIONS, 'gpu')]:
    raise ValueError(f'there is no section {unknown[0]!r}: take of {", ".join(SECTIONS)}, or all, or gpu.')
  for path in (values.json, values.picture):
    if path and not os.path.isdir(os.path.dirname(path) or '.'):
      raise ValueError(f'{path} is in no folder: name a file that can be written.')
  if values.picture and not values.picture.endswith(('.svg', '.png', '.pdf')):
    raise ValueError(f'picture (={values.picture!r}) must end in .svg, .png or .pdf.')
  torch = with_torch(values.torch_python) if {'cells', 'conv', 'gpu'} & set(what) else ''
  setup = Setup(values.repeats, values.small, torch and values.torch_python, values.torch_compile)
  if what == ['gpu']:  # its parts are processes of their own, and this one leaves the accelerator to them
    facts = {'torch': torch, 'repeats': setup.repeats, 'small': setup.small, 'jax': jax.__version__}
    gpu.check(values.json, facts)
    return lambda check: gpu.run(setup, values.minutes, values.json, facts, check)
  launch.set_up_jax()
  jax.config.update('jax_enable_compilation_cache', False)  # compile times are measured
  return lambda check: run(what, setup, {'torch': torch, 'what': what}, values.json, values.picture, check)


def with_torch(python: str) -> str:
  """Returns the version of PyTorch of a Python interpreter. If it has none, returns '' and prints a message."""
  try:
    asked = [python, '-c', 'import torch; print(torch.__version__)']
    return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
  except (OSError, subprocess.CalledProcessError):
    print(f'{python} has no PyTorch, so nothing is compared with it: install the extra bench, or name --torch_python.')
    return ''


def run(
  what: Sequence[str], setup: Setup, facts: Mapping[str, Any], path: str, picture: str, check: launch.Check
) -> None:
  """Measures the sections in turn and prints their tables. After each figure it writes all figures so far to `path`."""
  if setup.small:
    print('tiny shapes: figures and bars say nothing but that everything runs\n')
  found = {'machine': machine.rows(setup)}
  print(show.table(found), flush=True)
  devices = f'{jax.local_device_count()} {jax.default_backend()}'
  facts = {**facts, 'repeats': setup.repeats, 'small': setup.small, 'devices': devices, 'jax': jax.__version__}
  for name in what:
    check()
    found[name] = []
    for each in SECTIONS[name](setup):
      found[name].append(each)
      if path:
        workdirs.write(path, show.as_json(found, facts))
    print(f'\n{show.table({name: found[name]})}', flush=True)
    if picture:
      show.picture(found, picture)


if __name__ == '__main__':
  launch.main(prepare)
