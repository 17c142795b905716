"""JSON files of workdirs in which values are changed at random: the run resumes, or refuses them in one line."""

import fnmatch
import json
import random
import shutil
import warnings
import zlib

import pytest
import testing

from experiments.common import epochs, reports, retraining, search_flow, systems, workdirs
from nas_jax import files, published
from nas_jax.search import journal
from nas_jax.systems.retrain import FinalChoice

pytestmark = pytest.mark.filterwarnings('ignore')
ALONE = {'reliability_children': 4, 'yardstick_repeats': 1, 'max_children': 4, 'm': 2}
RECIPE = testing.retrain_config(lr=(0.003, 0.1), epochs=2, repeats=2)
FINAL = systems.CELL.alone._replace(final=lambda cfg, text: FinalChoice(RECIPE, {'LSTM': 'LSTM'}))
STAGES = {'final_children': 2, 'rungs': 2, 'rung_factor': 2, 'reliability_children': 0, 'yardstick_repeats': 0}
SYSTEMS = {
  'cell': (systems.CELL, testing.cell_config(**ALONE), testing.text),
  'conv': (systems.CONV, testing.conv_config(**ALONE, child_program='generic'), testing.pictures),
  'chain': (systems.CHAIN, testing.chain_config(**ALONE), testing.pictures),
  'macro': (systems.MACRO, testing.macro_config(), testing.pictures),
  'micro': (systems.MICRO, testing.micro_config(), testing.pictures),
  'sequence': (systems.SEQUENCE, testing.sequence_config(**ALONE), testing.sequences),
  # With rungs, and with a final choice.
  'stages': (systems.CELL._replace(alone=FINAL), testing.cell_config(**(ALONE | STAGES)), testing.text),
  'recurrent': (systems.RECURRENT, testing.rnn_config(), testing.text),
}
NAMES = [*SYSTEMS, 'retraining']
VALUES = (None, True, -1, 0, 7, 1.5, float('nan'), 2**70, 'x', '', [], [None], ['x'], {}, {'x': 1})


def search(system, cfg, load):
  """Returns a function that runs a search in a folder."""
  data = load()
  system = testing.one_search(system) if system.alone else system
  problem = system.make_problem(cfg, data)

  def go_on(folder):
    now = workdirs.open_config(str(folder), cfg)
    facts = {'kind': system.kind, 'dataset': 'none', 'sha256': data.sha256, 'max_children': system.children(cfg)}
    workdirs.note_origin(str(folder), system.launcher, ['x'], now, **facts)
    search_flow.run(system, now, data, str(folder), problem=problem)

  return go_on


def retrain(folder):
  """Retrains two cells in a folder of results."""
  epochs.open_results(str(folder), RECIPE)
  workdirs.note_origin(str(folder), 'retrain', ['x'], RECIPE)
  retraining.run(systems.CELL, RECIPE, testing.text(), {'NASCELL': published.NASCELL, 'LSTM': 'LSTM'}, str(folder))


@pytest.fixture(scope='module')
def made(tmp_path_factory):
  """Finished searches by system, each made once, and functions that resume a copy of each."""
  kept = {}

  def of(name):
    if name not in kept:
      folder, go_on = tmp_path_factory.mktemp(name) / 'run', retrain if name == 'retraining' else search(*SYSTEMS[name])
      go_on(folder)
      kept[name] = folder, go_on
    return kept[name]

  return of


def places(value, at=()):
  """Returns the paths (tuples of keys) to all places in a JSON value."""
  found = [at]
  if isinstance(value, dict | list):
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
      found += places(inner, (*at, key))
  return found


def changed(value, rng):
  """Returns the value with one entry replaced, removed or renamed at random."""
  *way, last = ('all', *rng.choice(places(value)))
  whole = inner = {'all': value}
  for key in way:
    inner = inner[key]
  kind = rng.randrange(4)
  if kind == 0 and way:
    del inner[last]
  elif kind == 1 and isinstance(inner, dict) and way:
    inner[f'{last}x'] = inner.pop(last)
  else:
    inner[last] = rng.choice(VALUES)
  return whole['all']


def with_checksum(record):
  """Returns a line of a journal, in which numbers may be NaN, as earlier versions wrote it."""
  text = json.dumps(record)
  return f'{text[:-1]}, "{journal.CHECKSUM}": "{zlib.crc32(text.encode()):08x}"}}'


def mutate(path, rng):
  """Changes a file at random. Returns the change, for the message of a failing test."""
  kind, before = rng.random(), path.read_text()
  if kind < 0.05:
    path.unlink()
    path.mkdir()
    return f'{path} is a folder'
  if kind < 0.1:
    path.write_text('[' * 200_000)
    return f'{path} is deep'
  if path.suffix == '.json':
    path.write_text(json.dumps(changed(json.loads(before), rng)))
  else:
    lines = before.splitlines()
    at = rng.randrange(len(lines))
    record = changed({key: value for key, value in json.loads(lines[at]).items() if key != journal.CHECKSUM}, rng)
    # As damage that no checksum shows: from before there were any, or by somebody's hand.
    lines[at] = with_checksum(record) if isinstance(record, dict) and record else json.dumps(record)
    path.write_text('\n'.join(lines) + '\n')
  return f'{path}: {before[:2000]} -> {path.read_text()[:2000]}'


def written(folder):
  """Returns the JSON files that a run writes into a folder, without those of Orbax."""
  found = sorted(path.relative_to(folder) for path in folder.rglob('*.json*'))
  orbax = ('checkpoints', 'damaged', 'weights', 'ended-', 'running-')
  return [folder / path for path in found if not any(part.startswith(orbax) for part in path.parts)]


def trial(source, go_on, folder, seed):
  """Changes a file of a copy of a workdir and resumes it. Also reads it for a report, before and after."""
  rng = random.Random(seed)
  shutil.rmtree(folder, ignore_errors=True)
  shutil.copytree(source, folder)
  said = mutate(rng.choice(written(folder)), rng)
  for act in (reports.make, go_on, reports.make):
    try:
      act(str(folder))
    except Exception as error:
      # A launcher that only reads may raise any ValueError; one that works, these.
      refused = isinstance(error, ValueError if act is reports.make else files.Unusable) or ' holds ' in str(error)
      if not refused or '\n' in str(error):
        raise AssertionError(f'seed {seed}, {said}: {error!r}') from error


@pytest.mark.parametrize(
  'seed', [*range(15, 18), *(pytest.param(seed, marks=pytest.mark.long) for seed in range(18, 27))]
)
def test_changed_values_are_resumed_or_refused(made, tmp_path, seed):
  source, go_on = made('cell')
  trial(source, go_on, tmp_path / 'run', seed)


@pytest.mark.long
@pytest.mark.parametrize('name', NAMES)
def test_changed_values_in_all_systems(made, tmp_path, name):
  source, go_on = made(name)
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    for seed in range(150):
      trial(source, go_on, tmp_path / 'run', 1000 + seed)


EVERY = {'config.json', 'origin.json'}
SEARCH = EVERY | {'best.json', 'children.jsonl', 'updates.jsonl', 'started.jsonl'}
SEARCH |= {'control/children.jsonl', 'control/config.json'}
FINAL_FILES = {'final/config.json', 'final/best.json', 'final/result.json', 'final/*/trainings.json'}
FILES = {
  'cell': SEARCH | {'reliability.json', 'yardsticks.json'},
  'stages': SEARCH | FINAL_FILES | {'top.json', 'rungs.jsonl', 'control/rungs.jsonl'},
  'recurrent': SEARCH | {'derived.json', 'control/derived.json', 'ranks.json', 'alone.jsonl', 'random.json'},
  'retraining': EVERY | {'result.json', 'NASCELL-*/trainings.json', 'LSTM-*/trainings.json'},
}
SLOW_UNLESS_CELL = [name if name == 'cell' else pytest.param(name, marks=pytest.mark.long) for name in NAMES]


@pytest.mark.parametrize('name', [name for name in SLOW_UNLESS_CELL if name == 'cell' or name.values[0] in FILES])
def test_every_file_is_met(made, name):
  """All files of a run are changed, except those that no launcher reads."""
  source, _ = made(name)
  found = [str(path.relative_to(source)) for path in written(source)]
  assert [pattern for pattern in FILES[name] if not fnmatch.filter(found, pattern)] == []


@pytest.mark.parametrize('name', SLOW_UNLESS_CELL)
def test_no_file_has_numbers_that_json_has_not(made, name):
  source, _ = made(name)
  for path in written(source):
    for text in path.read_text().splitlines() if path.suffix == '.jsonl' else [path.read_text()]:
      json.loads(text, parse_constant=lambda number, path=path: pytest.fail(f'{path} holds {number}'))
