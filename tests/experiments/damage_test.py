"""Damaged files of a real run are moved aside and reported, and the search ends as if nothing had happened."""

import dataclasses
import json
import math
import pathlib
import re
import shutil

import jax
import pytest
import testing

from experiments.common import run_search, search_flow, workdirs
from experiments.common.systems import RECURRENT
from nas_jax import files, search
from nas_jax.search import journal
from nas_jax.systems import cell
from nas_jax.training import checkpoint

pytestmark = [
  pytest.mark.filterwarnings('ignore::DeprecationWarning'),
  # Orbax leaves event loops behind when a read fails.
  pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning'),
]
CONFIG = testing.cell_config()
MEASURED = {'seeds': 0.5, 'budget': 0.25, 'children': 8}


@pytest.fixture(scope='module')
def s():
  return cell.build(CONFIG, testing.text())


def run(s, folder, children):
  workdirs.open_config(str(folder), CONFIG)
  return run_search.run(str(folder), s, 0, search.Budget(children))


@pytest.fixture(scope='module')
def half(s, tmp_path_factory):
  """A run with a checkpoint after each of its first three updates."""
  folder = tmp_path_factory.mktemp('half') / 'run'
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(run_search, 'SECONDS', -1)
    run(s, folder, 6)
  workdirs.note_origin(str(folder), 'cell_search', ['x'], CONFIG)
  return folder


def ending(s, folder):
  """Returns all results of a search that has ended."""
  state = checkpoint.restore(str(folder / 'checkpoints'), s.init(jax.random.key(0)))
  numbers = jax.tree.map(lambda x: x.tolist(), state._replace(key=jax.random.key_data(state.key)))
  lines = {number: {**line, 'seconds': 0} for number, line in journal.read(str(folder / 'children.jsonl')).items()}
  return repr(numbers), lines, json.loads((folder / 'best.json').read_text())


@pytest.fixture(scope='module')
def whole(s, half, tmp_path_factory):
  folder = tmp_path_factory.mktemp('whole') / 'run'
  shutil.copytree(half, folder)
  run(s, folder, 12)
  return ending(s, folder)


def flipped(path):
  content = bytearray(path.read_bytes())
  for place in range(len(content) // 3, len(content), max(1, len(content) // 3)):
    content[place] ^= 0x10
  path.write_bytes(content)


def truncated(path):
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def emptied(path):
  path.write_bytes(b'')


def newest(folder):
  return folder / 'checkpoints' / '3'


def of_arrays(damage):
  def hit(folder):
    # Not all that Orbax writes is read again: every file that may hold arrays is hit.
    for path in (newest(folder) / 'state').glob('**/d/*'):
      damage(path)

  return hit


def of_all(damage):
  def hit(folder):
    for path in newest(folder).rglob('*'):
      if path.is_file():
        damage(path)

  return hit


def half_written(folder):
  shutil.rmtree(newest(folder) / 'digest')


def without_arrays(folder):
  shutil.rmtree(newest(folder) / 'state')


CHECKPOINTS = {
  **{f'arrays {damage.__name__}': of_arrays(damage) for damage in (flipped, truncated, emptied, pathlib.Path.unlink)},
  **{f'all {damage.__name__}': of_all(damage) for damage in (truncated, emptied)},
  'half written': half_written,
  'without arrays': without_arrays,
}


@pytest.mark.parametrize('name', CHECKPOINTS)
def test_a_damaged_checkpoint(s, half, whole, tmp_path, name):
  folder = tmp_path / 'run'
  shutil.copytree(half, folder)
  CHECKPOINTS[name](folder)
  with pytest.warns(UserWarning, match=r'checkpoint 3 is damaged \(.+\): moved to .*damaged'):
    run(s, folder, 12)
  assert ending(s, folder) == whole
  (aside,) = (folder / 'damaged').iterdir()
  assert aside.name.startswith('3-')


def test_one_damaged_after_another(s, half, whole, tmp_path):
  """Without a sound checkpoint the journal suffices, even if the same step is damaged again."""
  folder = tmp_path / 'run'
  shutil.copytree(half, folder)
  for _ in range(2):
    for step in (folder / 'checkpoints').iterdir():
      shutil.rmtree(step / 'digest')
    with pytest.warns(UserWarning, match='is damaged'):
      run(s, folder, 6)
  run(s, folder, 12)
  assert ending(s, folder) == whole
  assert len(list((folder / 'damaged').iterdir())) == 4


def test_what_orbax_was_writing_when_it_was_killed_goes(s, half, whole, tmp_path):
  folder = tmp_path / 'run'
  shutil.copytree(half, folder)
  shutil.copytree(newest(folder), folder / 'checkpoints' / '4.orbax-checkpoint-tmp-7')
  run(s, folder, 12)
  assert ending(s, folder) == whole and not list((folder / 'checkpoints').glob('*tmp*'))


@pytest.mark.parametrize('lines, lost', [(3, 30), (6, 1)])
def test_a_torn_journal(s, half, whole, tmp_path, lines, lost):
  folder = tmp_path / 'run'
  shutil.copytree(half, folder)
  shutil.rmtree(folder / 'checkpoints')  # else nobody would ask for what was journalled
  path = folder / 'children.jsonl'
  path.write_bytes(b''.join(path.read_bytes().splitlines(keepends=True)[:lines])[:-lost])
  with pytest.warns(UserWarning, match=r'children.jsonl: 1 damaged line, moved to .*; what was lost is trained ag'):
    run(s, folder, 12)
  assert ending(s, folder) == whole
  assert (folder / 'damaged' / 'children.jsonl').read_text().startswith('{"id"')


def misspelt(path, key='"id"', at=1):
  lines = path.read_text().splitlines(keepends=True)
  lines[at] = lines[at].replace(key, '"ix"')
  path.write_text(''.join(lines))


def without_checksums(path):
  """Returns a journal as earlier versions wrote it, where damage that keeps the schema is not detected."""
  path.write_text(''.join(json.dumps(line) + '\n' for line in journal.read(str(path)).values()))


@pytest.mark.parametrize('old', [False, True])
@pytest.mark.parametrize('damage', [misspelt, emptied, pathlib.Path.unlink])
def test_a_child_that_the_journal_lost_is_had_again(s, half, whole, tmp_path, damage, old):
  """The search has ended, and all of its checkpoints are ahead of the damaged journal."""
  folder = tmp_path / 'run'
  shutil.copytree(half, folder)
  run(s, folder, 12)
  if old:
    without_checksums(folder / 'children.jsonl')
  damage(folder / 'children.jsonl')
  with pytest.warns(UserWarning) as said:
    assert len(run(s, folder, 12)) == 12
  lost = 1 if damage is misspelt else 0
  assert f'is ahead of the journal, which lacks child {lost}: moved to' in str(said[-1].message)
  assert ending(s, folder) == whole


def test_a_lost_child_of_shared_weights_leaves_best_json_alone(s, half, tmp_path):
  """Its score could only be had by repeating the whole search."""
  folder = tmp_path / 'run'
  shutil.copytree(half, folder)
  best = json.loads((folder / 'best.json').read_text())
  misspelt(folder / 'children.jsonl', at=best['id'])
  with pytest.warns(UserWarning) as said:
    run(s._replace(shared=True), folder, 6)
  assert [f'child {best["id"]} is lost' in str(one.message) for one in said] == [False, True]
  assert json.loads((folder / 'best.json').read_text()) == best
  assert (folder / 'checkpoints' / '3').is_dir()


@pytest.fixture(scope='module')
def shared(tmp_path_factory):
  """A search with shared weights that has ended, the workdir of its first half, and a function that runs all of it."""
  cfg, data = testing.rnn_config(rank_children=2), testing.text()
  problem = RECURRENT.make_problem(cfg, data)

  def go_on(folder, **changes):
    workdirs.open_config(str(folder), cfg)
    search_flow.run(RECURRENT, dataclasses.replace(cfg, **changes), data, str(folder), problem=problem)

  half, ended = (tmp_path_factory.mktemp(name) / 'run' for name in ('half', 'ended'))
  go_on(half, max_children=4)
  shutil.copytree(half, ended)
  go_on(ended)
  return half, ended, go_on


@pytest.mark.long
@pytest.mark.parametrize('damage', [emptied, pathlib.Path.unlink])
@pytest.mark.parametrize('begun', [True, False])
def test_a_search_with_shared_weights_goes_on_without_its_journal(shared, tmp_path, damage, begun):
  """The weights are in the checkpoint alone. Its children are not had again, and all that is derived stays as it is."""
  half, ended, go_on = shared
  folder = tmp_path / 'run'
  shutil.copytree(half if begun else ended, folder)
  count = len(journal.read(str(folder / 'children.jsonl')))
  damage(folder / 'children.jsonl')
  with pytest.warns(UserWarning, match=f'{count} children, 0 the first of them, are lost. The search goes on'):
    go_on(folder)
  now, whole = (journal.read(str(one / 'children.jsonl')) for one in (folder, ended))
  assert list(now) == [number for number in whole if number >= count] and len(whole) == (8 if begun else count)
  assert all(now[number] | {'seconds': 0} == whole[number] | {'seconds': 0} for number in now)
  for name in ('best.json', 'derived.json'):
    assert (folder / name).read_text() == (ended / name).read_text()
  (step, same) = (max((one / 'checkpoints').iterdir(), key=lambda path: int(path.name)) for one in (folder, ended))
  assert step.name == same.name and not (folder / 'damaged').exists()
  text = (folder / 'report.html').read_text()
  assert 'The best cell derived after' in text if now else 'No child has been trained yet.' in text


def test_checkpoints_of_another_seed_are_refused(s, half, tmp_path):
  folder = tmp_path / 'run'
  shutil.copytree(half, folder)
  before = sorted(path for path in folder.rglob('*'))
  with pytest.raises(files.Unusable, match='checkpoints is of a search with another seed than 1'):
    run_search.run(str(folder), s, 1, search.Budget(12))
  assert sorted(path for path in folder.rglob('*')) == before


@pytest.mark.parametrize(
  ('name', 'value'), [('jax_threefry_partitionable', False), ('jax_default_prng_impl', 'rbg'), ('jax_enable_x64', True)]
)
@pytest.mark.parametrize('noted', [True, False])
def test_other_settings_of_jax_are_refused_and_nothing_is_moved(half, tmp_path, name, value, noted):
  folder = tmp_path / 'run'
  shutil.copytree(half, folder)
  if not noted:  # by an earlier version, which did not note them
    (folder / 'origin.json').unlink()
  before = sorted(path for path in folder.rglob('*'))
  default = getattr(jax.config, name)
  jax.config.update(name, value)
  try:
    with pytest.raises(ValueError, match=f'holds results of other settings of JAX: {name}') as error:
      workdirs.open_config(str(folder), CONFIG)
    assert '\n' not in str(error.value)
    workdirs.open_config(str(tmp_path / 'new'), CONFIG)
  finally:
    jax.config.update(name, default)
  assert sorted(path for path in folder.rglob('*')) == before
  with pytest.raises(ValueError, match=f'other settings of JAX: {name}'):
    workdirs.open_config(str(tmp_path / 'new'), CONFIG)


@pytest.mark.parametrize(('old', 'new'), [('"hidden"', '"hiddem"'), (': 4,', ': 5,')])
def test_a_config_that_only_its_copy_contradicts_is_taken_from_there(half, tmp_path, old, new):
  folder = tmp_path / 'run'
  shutil.copytree(half, folder)
  sound = (folder / 'config.json').read_text()
  (folder / 'config.json').write_text(sound.replace(old, new))
  with pytest.warns(UserWarning, match='config.json is damaged: taken from origin.json'):
    workdirs.open_config(str(folder), CONFIG)
  assert (folder / 'config.json').read_text() == sound


def test_a_link_in_the_way_is_not_followed(tmp_path):
  (tmp_path / 'other').write_text('precious')
  (tmp_path / 'best.json.part').symlink_to(tmp_path / 'other')
  workdirs.write(str(tmp_path / 'best.json'), 'new')
  assert (tmp_path / 'other').read_text() == 'precious' and (tmp_path / 'best.json').read_text() == 'new'


@pytest.mark.parametrize('damage', [pathlib.Path.unlink, truncated, emptied])
@pytest.mark.parametrize('copy', [True, False])
def test_a_config_that_is_gone(s, half, whole, tmp_path, damage, copy):
  folder = tmp_path / 'run'
  shutil.copytree(half, folder)
  damage(folder / 'config.json')
  if not copy:
    (folder / 'origin.json').unlink()
  source = 'origin.json' if copy else 'the flags'
  with pytest.warns(UserWarning) as said:
    run(s, folder, 12)
  words = [str(one.message) for one in said]
  assert words[-1].endswith(f'config.json is missing: taken from {source}.')
  assert len(words) == 1 if damage is pathlib.Path.unlink else re.search(r'is damaged \(.+\): moved to', words[0])
  assert ending(s, folder) == whole
  if copy:  # which still tells another search
    (folder / 'config.json').unlink()
    with pytest.warns(UserWarning, match='missing'), pytest.raises(ValueError, match=r'hidden \(4 -> 5\)'):
      workdirs.open_config(str(folder), testing.cell_config(hidden=5))


def test_measurements_that_are_not_finite_are_written_as_null(tmp_path):
  (tmp_path / 'ranks.json').write_text('{}')  # does not fit, so it is measured again
  ranks = {'children': 1, 'passes': 1, 'kendall': {'x': math.nan}, 'spearman': {}, 'seconds': 1.0, 'step': [1]}
  with pytest.warns(UserWarning, match='is damaged'):
    found = workdirs.cached(str(tmp_path / 'ranks.json'), lambda: ranks)
  assert found == ranks | {'kendall': {'x': None}}
  measures = {'a': lambda: [math.inf, 1.0], 'b': lambda: [-math.inf]}
  workdirs.cached_each(str(tmp_path / 'yardsticks.json'), measures)
  assert workdirs.read(str(tmp_path / 'yardsticks.json')) == {'a': [None, 1.0], 'b': [None]}
  workdirs.note_origin(str(tmp_path), 'cell_search', ['x'], CONFIG, fact=math.nan)
  assert workdirs.read(str(tmp_path / 'origin.json'))['fact'] is None


@pytest.mark.parametrize('damage', [truncated, emptied])
def test_measurements_that_are_damaged_are_made_again(tmp_path, damage):
  path, again = tmp_path / 'reliability.json', MEASURED | {'seeds': 0.75}
  assert workdirs.cached(str(path), lambda: MEASURED) == MEASURED
  assert workdirs.cached(str(path), lambda: 1 / 0) == MEASURED
  damage(path)
  with pytest.warns(UserWarning, match=r'reliability.json is damaged \(.+\): moved to'):
    assert workdirs.cached(str(path), lambda: again) == again
  workdirs.cached_each(str(tmp_path / 'all.json'), {'a': lambda: 1})
  damage(tmp_path / 'all.json')
  with pytest.warns(UserWarning, match='moved to'):
    assert workdirs.cached_each(str(tmp_path / 'all.json'), {'a': lambda: 2, 'b': lambda: 3}) == {'a': 2, 'b': 3}
