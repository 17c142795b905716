"""Executes the recipes of docs/extending.md as they stand on the page."""

import inspect
import json
import pathlib
import re
import sys
import types

import numpy as np
import pytest
import testing

from experiments.common import prepare_search, systems
from nas_jax.datasets import images as images_lib
from nas_jax.datasets.images import Split
from nas_jax.systems import conv

PAGE = (pathlib.Path(__file__).parents[1] / 'docs' / 'extending.md').read_text()


def blocks(heading):
  """Returns the Python code blocks under a heading of the page."""
  part = PAGE.split(f'\n## {heading}\n')[1].split('\n## ')[0]
  return re.findall(r'```python\n(.*?)```', part, re.DOTALL)


def stripes(n=40):
  """Returns images of two classes: with bright rows, and with bright columns."""
  images, labels = np.zeros((n, 8, 8, 1), np.uint8), np.arange(n) % 2
  images[labels == 0, ::2] = 255
  images[labels == 1, :, ::2] = 255
  return Split(images, labels)


def test_a_data_set():
  arrays, branch = blocks('Add a data set')
  train, test = stripes(), stripes(10)
  names = dict(zip(('train_x', 'train_y', 'test_x', 'test_y'), (*train, *test), strict=True))
  exec(arrays, names)
  assert names['images'].classes == 2 and isinstance(names['search'], type(conv.build(conv.smoke(), names['images'])))
  # The branch stands before the last `else` of the function, as the page says.
  source = inspect.getsource(images_lib.load_images)
  head, tail = source.rsplit('  else:\n', 1)
  module = vars(images_lib) | {'_stripes': lambda: {'train': train, 'test': test}}
  exec(f'from __future__ import annotations\n{head}{branch}  else:\n{tail}', module)
  found = module['load_images']('stripes')
  assert found.classes == 2 and found.class_names == ('rows', 'columns') and len(found.test.labels) == 10


@pytest.mark.long
def test_a_system(monkeypatch, tmp_path):
  recipe, entry, case = blocks('Add a system')
  perceptron = types.ModuleType('perceptron')
  monkeypatch.setitem(sys.modules, 'perceptron', perceptron)  # where `dataclass` looks up types
  exec(recipe, vars(perceptron))
  names = vars(systems) | {'perceptron': perceptron}
  exec(entry, names)
  ((system, cfg, data, steps),) = eval(f'{{{case}}}', names | {'IMAGES': testing.pictures()}).values()
  assert system.make_problem(cfg, data).steps == steps
  monkeypatch.setattr(systems, 'SYSTEMS', (*systems.SYSTEMS, names['PERCEPTRON']))
  for name in ('JAX_NUM_CPU_DEVICES', 'JAX_COMPILATION_CACHE_DIR'):  # JAX is set up already
    monkeypatch.setenv(name, '1')
  argv = ['perceptron_search', '--preset=smoke', f'--workdir={tmp_path}']
  for _ in range(2):  # the second time all results are known
    prepare_search.prepare((names['PERCEPTRON'],), 'A search.', argv)(lambda: None)
    lines = [json.loads(line) for line in (tmp_path / 'children.jsonl').read_text().splitlines()]
    assert len(lines) == 4 and all(line['failed'] is None and line['accuracy'] > 0.1 for line in lines)
  assert 'perceptron' in (tmp_path / 'summary.txt').read_text()
