"""Compares search algorithms at equal numbers of evaluations, seed by seed.

Benchmarks are tables of known rewards (--table, as for table_search), those that are shipped (--benchmarks) and models
of the children of a search (--surrogate). Algorithms are those of table_search, optionally with settings after a colon,
and three of other libraries, if these are installed (pip install nas_jax[peers]): tpe (Optuna), pyglove (its
regularized evolution) and nevergrad. With --json, the same command resumes an interrupted comparison. Example:
  python -m experiments.compare --benchmarks=hidden_cell,made --seeds=100 --json=OUT --picture=OUT.svg \\
    --algorithms=reinforce,random,reinforce:m=4,controller_lr=0.02
"""

from collections.abc import Callable, Mapping, Sequence
import functools
import hashlib
import json
import os
from typing import Any, NamedTuple

from absl import flags
import jax

from experiments.common import arguments, launch, systems, workdirs
from experiments.compare import peers, runs, show, statistics, variants
from experiments.compare.statistics import Curve
from experiments.compare.variants import Variant
from nas_jax import config, files, words
from nas_jax.search import journal
from nas_jax.systems import benchmarks, surrogate, table
from nas_jax.systems.benchmarks import Benchmark

SHIPPED: Mapping[str, Callable[[], Benchmark]] = {
  'hidden_cell': benchmarks.hidden_cell,
  **{name: functools.partial(benchmarks.made, recipe) for name, recipe in benchmarks.MADE.items()},
}


class Task(NamedTuple):
  """A named benchmark."""

  name: str
  about: str  # in words
  sha256: str  # of the data or recipe that determines its rewards
  benchmark: Benchmark


class Plan(NamedTuple):
  """The benchmarks, algorithms, evaluations and seeds of a comparison."""

  tasks: Sequence[Task]
  algorithms: Sequence[Variant]
  checkpoints: Sequence[int]  # numbers of evaluations, ascending
  seed: int
  seeds: int
  peer_seeds: int


def own_flags(values: flags.FlagValues) -> None:
  """Defines the flags of the comparison."""
  made = f'hidden_cell, {", ".join(benchmarks.MADE)}, or made for all of these tables'
  flags.DEFINE_list('table', [], '.npz files with ops [A, T] and reward [A]', flag_values=values)
  flags.DEFINE_list('benchmarks', [], f'benchmarks that are shipped: {made}', flag_values=values)
  flags.DEFINE_list('surrogate', [], 'workdirs of searches whose children are to be modelled', flag_values=values)
  flags.DEFINE_list(
    'algorithms',
    'reinforce,random',
    'what is compared with the first of them; a setting is written as NAME:field=value,field=value',
    flag_values=values,
  )
  flags.DEFINE_list('evaluations', '50,100,200,500', 'numbers of evaluations to compare after', flag_values=values)
  flags.DEFINE_integer(
    'seed', 0, 'seed that determines the seeds of all searches', 0, config.LAST_SEED, flag_values=values
  )
  flags.DEFINE_integer('seeds', 100, 'searches by each algorithm', 2, flag_values=values)
  flags.DEFINE_integer(
    'peer_seeds', 25, 'searches by each peer, which run one after another; at most --seeds', 2, flag_values=values
  )
  flags.DEFINE_string('json', '', 'file to write the results to, as JSON, and to go on from', flag_values=values)
  flags.DEFINE_string('picture', '', 'file to draw the results to: .svg, .png or .pdf', flag_values=values)


def prepare(argv: Sequence[str]) -> launch.Work:
  """Reads flags, benchmarks and earlier results."""
  values = arguments.parse(argv, __doc__, own_flags)
  algorithms = variants.parse(values.algorithms)
  peers.check([one.name for one in algorithms if one.cfg is None])
  for path in (values.json, values.picture):
    if path and not os.path.isdir(os.path.dirname(path) or '.'):
      raise ValueError(f'{path} is in no folder: name a file that can be written.')
  if values.picture and not values.picture.endswith(('.svg', '.png', '.pdf')):
    raise ValueError(f'picture (={values.picture!r}) must end in .svg, .png or .pdf.')
  names = [name for given in values.benchmarks for name in (benchmarks.MADE if given == 'made' else [given])]
  if unknown := [name for name in names if name not in SHIPPED]:
    near = config.did_you_mean(unknown[0], SHIPPED)
    raise ValueError(f'there is no benchmark {unknown[0]!r}{near}: take of {", ".join(SHIPPED)}, or made.')
  if not (values.table or names or values.surrogate):
    raise ValueError('there is nothing to compare on: give --table, --benchmarks or --surrogate.')
  counts, saved = _counts(values.evaluations), _saved(values.json)
  launch.set_up_jax()
  tasks = [*map(_of_table, values.table), *map(_of_workdir, values.surrogate), *map(_shipped, dict.fromkeys(names))]
  if twice := [task.name for task in tasks if sum(task.name == other.name for other in tasks) > 1]:
    raise ValueError(f'{twice[0]} is given twice: name each benchmark once.')
  seeds = values.seeds
  plan = Plan(tasks, algorithms, counts, values.seed, seeds, min(seeds, values.peer_seeds))
  return lambda check: run(plan, saved, values.json, values.picture, check)


def _counts(entries: Sequence[str]) -> list[int]:
  try:
    counts = sorted({int(entry) for entry in entries})
  except ValueError:
    counts = []
  if not counts or counts[0] < 1:
    raise ValueError(f'evaluations (={",".join(entries)}) must be a list of ints of at least 1.')
  return counts


def _of_table(path: str) -> Task:
  known = table.load(path)
  sha256 = hashlib.sha256(b''.join(part.tobytes() for part in known if part is not None)).hexdigest()
  return Task(path, words.counted(len(known.ops), 'row'), sha256, benchmarks.of_table(known))


def _shipped(name: str) -> Task:
  recipe = benchmarks.MADE.get(name)
  about = f'made of {recipe}' if recipe else 'the share of tokens that agree with a hidden cell'
  return Task(name, about, hashlib.sha256(about.encode()).hexdigest(), SHIPPED[name]())


def _of_workdir(workdir: str) -> Task:
  """Returns the benchmark of a model fitted to the children in a workdir, including those of its random search."""
  saved, origin = (workdirs.peek(os.path.join(workdir, name)) for name in ('config.json', 'origin.json'))
  system = systems.system_of(saved, origin or {}) if saved else None
  if system is None or system.alone is None:
    raise ValueError(f'surrogate (={workdir!r}) is no workdir of a search whose children train alone: name one.')
  space = system.make_space(config.from_json(system.config, saved))
  paths = [os.path.join(workdir, *folder, 'children.jsonl') for folder in ((), ('control',))]
  records = [record for path in paths for record in journal.read_lines(path, journal.child_of(space))]
  model = surrogate.fit(space, records)
  sha256 = hashlib.sha256(b''.join(part.tobytes() for part in model)).hexdigest()
  return Task(workdir, f'model of {surrogate.describe(model)}', sha256, surrogate.benchmark(space, model))


def _saved(path: str) -> dict[str, Any]:
  """Returns the results in a file by `_key`; none without a file. Raises ValueError if the file is another one."""
  schema = {'results': files.Each({name: object for name in Curve._fields})}
  try:
    found = files.read(path, schema) if path else None
  except (OSError, ValueError) as error:
    raise ValueError(f'json (={path!r}) holds something else ({error}): name another file, or remove it.') from None
  return found['results'] if found else {}


def _key(plan: Plan, task: Task, one: Variant) -> str:
  """Returns all settings that determine the result of an algorithm on a benchmark, as JSON text."""
  setting = config.as_json(one.cfg) if one.cfg else {}
  seed = plan.seed if one.cfg else peers.first_seed(plan.seed)
  facts = {'evaluations': plan.checkpoints, 'seed': seed, 'seeds': _seeds(plan, one), 'sha256': task.sha256}
  return json.dumps(
    {'benchmark': task.name, 'algorithm': one.name, **facts, 'setting': setting, 'jax': jax.__version__}
  )


def _seeds(plan: Plan, one: Variant) -> int:
  return plan.seeds if one.cfg else plan.peer_seeds


def run(plan: Plan, saved: Mapping[str, Any], path: str, picture: str, check: launch.Check) -> None:
  """Runs the searches that are not saved, writes each result, prints the table of each benchmark, draws the picture."""
  results, found = dict(saved), dict[str, dict[str, Curve]]()
  for task in plan.tasks:
    found[task.name] = {}
    for one in plan.algorithms:
      check()
      key = _key(plan, task, one)
      if key not in results:
        results[key] = _measure(plan, task.benchmark, one, check)._asdict()
        print(f'measured: {one.name} on {task.name}', flush=True)
        if path:
          workdirs.write(path, json.dumps({'results': results}) + '\n')
      found[task.name][one.name] = Curve(**results[key])
    print(
      f'\n{_title(task)}\n\n{show.table(found[task.name], plan.checkpoints)}\n\n{show.costs(found[task.name])}\n',
      flush=True,
    )
  if picture:
    show.picture(found, {task.name: task.benchmark.best for task in plan.tasks}, picture)


def _measure(plan: Plan, benchmark: Benchmark, one: Variant, check: launch.Check) -> Curve:
  keys = jax.random.split(jax.random.key(plan.seed), _seeds(plan, one))  # the first keys do not depend on their number
  if one.cfg is None:
    done = runs.peer(benchmark, one.name, keys, peers.first_seed(plan.seed), plan.checkpoints[-1], check)
  else:
    done = runs.ours(benchmark, one.cfg, keys, plan.checkpoints[-1])
  return statistics.curve(done, plan.checkpoints)


def _title(task: Task) -> str:
  space, best = task.benchmark.space, task.benchmark.best
  size = words.counted(space.size(), 'token sequence')
  return f'{task.name}: {size} of {words.counted(space.length, "token")}; {task.about}' + (
    '' if best is None else f'; best {best:.5f}'
  )


if __name__ == '__main__':
  launch.main(prepare)
