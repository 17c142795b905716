"""Mutation testing: measures whether the tests detect a wrong line of the core.

Changes one place of the core at a time in a copy of the checkout, and runs the tests that should detect it until the
first fails. The kinds of change are: another operator, another number, a negated condition, two arguments exchanged, a
named argument or a statement left out. The changes are drawn from all possible ones, the same number from each file.

  python tests/tools/mutate.py --log=mutants.jsonl --number=100

Each change is a line of the log with the test that detected it, or null. The same command continues the log; its last
line of output says how many changes were detected. Programs that a change does not affect are compiled only once: the
copy has a cache.
"""

import argparse
import ast
from collections.abc import Iterator
import itertools
import json
import os
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parents[2]
# For each file of the core the tests that should detect a fault in it, quick ones first.
CORE = {
  'nas_jax/controller.py': ['tests/controller_test.py', 'tests/search/algorithms/reinforce_test.py'],
  'nas_jax/search/algorithms/reinforce.py': ['tests/search/algorithms', 'tests/search/per_layer_test.py'],
  'nas_jax/search/algorithms/baseline.py': ['tests/search/algorithms'],
  'nas_jax/search/core.py': ['tests/search/core_test.py', 'tests/search/depth_test.py', 'tests/search/loop_test.py'],
  'nas_jax/search/outcomes.py': ['tests/search/core_test.py', 'tests/search/history_test.py'],
  'nas_jax/search/per_layer.py': ['tests/search/per_layer_test.py'],
  'nas_jax/search/replay_tree.py': ['tests/search/replay_tree_test.py', 'tests/search/per_layer_test.py'],
  'nas_jax/search/journal.py': ['tests/search/journal_test.py', 'tests/experiments/damage_test.py'],
  'nas_jax/tree_cell/cell.py': ['tests/tree_cell'],
  'nas_jax/training/checkpoint.py': ['tests/training/checkpoint_test.py', 'tests/experiments/damage_test.py'],
  'nas_jax/training/evaluators.py': ['tests/training/evaluators_test.py', 'tests/training/recovery_test.py'],
  'nas_jax/training/fit.py': ['tests/training/fit_test.py', 'tests/training/recovery_test.py'],
  'nas_jax/training/layout.py': ['tests/training/fit_test.py', 'tests/training/full_training_test.py'],
  'nas_jax/training/full_training.py': ['tests/systems/retrain_test.py', 'tests/training/full_training_test.py'],
  'nas_jax/training/rewards.py': ['tests/training/rewards_test.py', 'tests/training/metrics_test.py'],
  'nas_jax/training/schedules.py': ['tests/training/schedules_test.py'],
  'nas_jax/children/language_model.py': ['tests/children/language_model_test.py', 'tests/systems/retrain_test.py'],
  'nas_jax/children/conv.py': ['tests/children/conv_test.py', 'tests/children/chain_test.py'],
  'nas_jax/children/conv_traced.py': ['tests/children/conv_traced_test.py'],
  'nas_jax/datasets/image_batches.py': ['tests/children/conv_test.py', 'tests/datasets/images_test.py'],
  'nas_jax/datasets/text_batches.py': ['tests/datasets/text_batches_test.py'],
  'nas_jax/systems/language.py': [
    'tests/systems/problem_test.py',
    'tests/systems/retrain_test.py',
    'tests/systems/enas_rnn_test.py',
  ],
}
ARITHMETIC = {ast.Add: '-', ast.Sub: '+', ast.Mult: '/', ast.Div: '*', ast.FloorDiv: '*', ast.Mod: '//', ast.Pow: '*'}
COMPARISONS = {
  ast.Lt: '<=', ast.LtE: '<', ast.Gt: '>=', ast.GtE: '>', ast.Eq: '!=', ast.NotEq: '==', ast.Is: 'is not',
  ast.IsNot: 'is', ast.In: 'not in', ast.NotIn: 'in',
}  # fmt: skip
CACHE = """
jax.config.update('jax_enable_compilation_cache', True)
jax.config.update('jax_compilation_cache_dir', {folder!r})
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.2)
"""


class Change(NamedTuple):
  """One way to break a file."""

  file: str
  line: int
  start: int  # where the text to replace begins in the file, in bytes
  end: int
  before: str
  after: str

  @property
  def name(self) -> str:
    """The name of the change in the log."""
    return f'{self.file}:{self.line}: {self.before!r} -> {self.after!r}'


def changes(file: str, text: str) -> Iterator[Change]:
  """Yields all possible changes of a file, in the order of its text within each function."""
  data = text.encode()
  starts = [0]
  for line in data.splitlines(keepends=True):
    starts.append(starts[-1] + len(line))

  def place(node: ast.AST) -> tuple[int, int]:
    return starts[node.lineno - 1] + node.col_offset, starts[node.end_lineno - 1] + node.end_col_offset

  def change(start: int, end: int, after: str) -> Change:
    line = data[:start].count(b'\n') + 1
    return Change(file, line, start, end, data[start:end].decode(), after)

  def between(left: ast.AST, right: ast.AST, after: str) -> Change:
    """Returns the change of the operator between two operands. Brackets and blanks around it stay."""
    start, end = place(left)[1], place(right)[0]
    part = data[start:end].decode()
    operator = part.strip('() \n\\')
    first = start + len(part[: part.index(operator)].encode())
    return change(first, first + len(operator.encode()), after)

  def source(node: ast.AST) -> str:
    start, end = place(node)
    return data[start:end].decode()

  for function in ast.walk(ast.parse(text)):
    if not isinstance(function, ast.FunctionDef):
      continue
    bound = {argument.arg for argument in [*function.args.args, *function.args.kwonlyargs]}
    for node in _own_nodes(function):
      match node:
        case ast.BinOp() if type(node.op) in ARITHMETIC and not _is_text(node.left):
          yield between(node.left, node.right, ARITHMETIC[type(node.op)])
        case ast.Compare() if len(node.ops) == 1:
          yield between(node.left, node.comparators[0], COMPARISONS[type(node.ops[0])])
        case ast.BoolOp():
          yield between(node.values[0], node.values[1], 'or' if isinstance(node.op, ast.And) else 'and')
        case ast.UnaryOp(op=ast.Not() | ast.USub() | ast.Invert()):
          yield change(place(node)[0], place(node.operand)[0], '')
        case ast.Constant(value=int() | float()) if not isinstance(node.value, bool):
          yield change(*place(node), str(node.value + 1) if isinstance(node.value, int) else repr(node.value * 2 + 0.5))
        case ast.If() | ast.IfExp():
          yield change(*place(node.test), f'(not ({source(node.test)}))')
        case ast.Call() if len(node.args) > 1 and not any(isinstance(one, ast.Starred) for one in node.args[-2:]):
          parts = [source(one) for one in node.args[-2:]]
          if _exchangeable(node) and parts[0] != parts[1]:
            yield change(place(node.args[-2])[0], place(node.args[-1])[1], ', '.join(reversed(parts)))
        case ast.Expr(value=ast.Call()) | ast.AugAssign():
          yield change(*place(node), 'pass')
        case ast.Assign() if all(isinstance(one, ast.Name) and one.id in bound for one in node.targets):
          yield change(*place(node), 'pass')  # the name keeps the value that it had before
      if (
        isinstance(node, ast.Call) and node.keywords and node.keywords[-1].arg and (node.args or len(node.keywords) > 1)
      ):
        previous = node.keywords[-2].value if len(node.keywords) > 1 else node.args[-1]
        yield change(place(previous)[1], place(node.keywords[-1].value)[1], '')
      bound |= {x.id for x in ast.walk(node) if isinstance(x, ast.Name) and isinstance(x.ctx, ast.Store)}


def _is_text(node: ast.AST) -> bool:
  return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def _exchangeable(call: ast.Call) -> bool:
  """Whether exchanging the last two arguments can change the result without an immediate type error."""
  if ast.unparse(call.func).split('.')[-1] in ('minimum', 'maximum', 'min', 'max', 'isinstance', 'getattr'):
    return False
  return all(isinstance(one, ast.Name | ast.Subscript | ast.BinOp | ast.Call | ast.Attribute) for one in call.args[-2:])


def _own_nodes(function: ast.FunctionDef) -> Iterator[ast.AST]:
  """Yields the nodes of a function's body, except nested functions and classes, errors, warnings and f-strings."""
  waiting: list[ast.AST] = list(reversed(function.body))
  while waiting:
    node = waiting.pop()
    if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Raise | ast.JoinedStr | ast.Assert):
      continue
    if isinstance(node, ast.Call) and ast.unparse(node.func) == 'warnings.warn':
      continue
    yield node
    inner = [x for x in ast.iter_child_nodes(node) if not (isinstance(node, ast.AnnAssign) and x is node.annotation)]
    waiting.extend(reversed(inner))


def chosen(number: int, seed: int, only: list[str]) -> list[Change]:
  """Returns `number` random changes: equally many from each file, no two of one line.

  A smaller number gives the first ones of a larger number.
  """
  rng, ways = random.Random(seed), dict[str, list[Change]]()
  for file in CORE:
    found = list(changes(file, (ROOT / file).read_text()))
    rng.shuffle(found)
    ways[file] = list({one.line: one for one in found}.values())
  rounds = itertools.zip_longest(*ways.values())
  return [one for one in itertools.chain.from_iterable(rounds) if one and any(part in one.file for part in only)][
    :number
  ]


def run(folder: pathlib.Path, tests: list[str], limit: float | None = None) -> tuple[str | None, float]:
  """Runs tests in a checkout until the first fails. Returns that test, or None if all pass, and the seconds taken."""
  command = [sys.executable, '-m', 'pytest', '-q', '-x', '-m', 'not long', '-p', 'no:cacheprovider', '--tb=no', *tests]
  begun = time.monotonic()
  try:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=limit)
  except subprocess.TimeoutExpired:
    return 'took too long', time.monotonic() - begun
  seconds = time.monotonic() - begun
  if done.returncode == 0:
    return None, seconds
  lines = [line for line in done.stdout.splitlines() if line.startswith(('FAILED', 'ERROR'))]
  return (lines or [f'pytest ended with {done.returncode}'])[0][:200], seconds


def main() -> None:
  """Makes and tests the changes one by one."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--number', type=int, default=100, help='how many changes')
  parser.add_argument('--seed', type=int, default=0, help='of their choice')
  parser.add_argument('--only', nargs='+', default=[''], help='only in files whose names have one of these in them')
  parser.add_argument('--log', type=pathlib.Path, default=pathlib.Path('mutants.jsonl'))
  parser.add_argument('--seconds', type=float, default=float('inf'), help='begin no change after so long')
  parser.add_argument('--list', action='store_true', help='print the changes and test none')
  values = parser.parse_args()
  todo, begun = chosen(values.number, values.seed, values.only), time.monotonic()
  if values.list:
    print(*(one.name for one in todo), sep='\n')
    return
  known = {line['change']: line for line in map(json.loads, values.log.open() if values.log.exists() else [])}
  with tempfile.TemporaryDirectory() as scratch:
    copy = pathlib.Path(scratch, 'checkout')
    ignored = shutil.ignore_patterns('.git', '.venv', 'build', 'runs', '__pycache__', '.*_cache', 'shared')
    shutil.copytree(ROOT, copy, ignore=ignored)
    os.makedirs(cache := os.path.join(scratch, 'programs'))
    with open(copy / 'tests' / 'conftest.py', 'a') as file:
      file.write(CACHE.format(folder=cache))
    usual = dict[str, float]()
    for one in todo:
      if one.name in known:
        continue
      if time.monotonic() - begun > values.seconds:
        break
      if one.file not in usual:
        broken, usual[one.file] = run(copy, CORE[one.file])
        assert broken is None, f'unchanged, {broken}'
      path, sound = copy / one.file, (ROOT / one.file).read_bytes()
      path.write_bytes(sound[: one.start] + one.after.encode() + sound[one.end :])
      seen, seconds = run(copy, CORE[one.file], 60 + 5 * usual[one.file])
      path.write_bytes(sound)
      known[one.name] = {'change': one.name, 'seen': seen, 'seconds': round(seconds, 1)}
      with values.log.open('a') as file:
        file.write(json.dumps(known[one.name]) + '\n')
      print(f'{one.name}: {seen or "NOT SEEN"} ({seconds:.0f} s)', flush=True)
  tried = [known[one.name] for one in todo if one.name in known]
  print(f'{sum(line["seen"] is not None for line in tried)} of {len(tried)} seen')


if __name__ == '__main__':
  main()
