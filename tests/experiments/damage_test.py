"""Damaged files of a real run: moved aside, said so, and the search ends as if nothing had happened."""

import json
import pathlib
import re
import shutil

import jax
import pytest
import testing

from experiments.common import run_search, workdirs
from nas_jax import search
from nas_jax.search import journal
from nas_jax.systems import cell
from nas_jax.training import checkpoint

pytestmark = [
  pytest.mark.filterwarnings('ignore::DeprecationWarning'),
  # Orbax leaves event loops behind when a read fails.
  pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning'),
]
CONFIG = testing.cell_config()


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
  """Everything that a search is at its end."""
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
  """With no sound checkpoint the journal is enough; and the same step may be damaged again."""
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
  with pytest.warns(UserWarning, match=r'children.jsonl: 1 damaged lines, moved to .*; their children are trained ag'):
    run(s, folder, 12)
  assert ending(s, folder) == whole
  assert (folder / 'damaged' / 'children.jsonl').read_text().startswith('{"id"')


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
  assert len(words) == 1 if damage is pathlib.Path.unlink else re.search('is damaged: moved to', words[0])
  assert ending(s, folder) == whole
  if copy:  # which still tells another search
    (folder / 'config.json').unlink()
    with pytest.warns(UserWarning, match='missing'), pytest.raises(ValueError, match=r'hidden \(4 -> 5\)'):
      workdirs.open_config(str(folder), testing.cell_config(hidden=5))


@pytest.mark.parametrize('damage', [truncated, emptied])
def test_measurements_that_are_damaged_are_made_again(tmp_path, damage):
  path = tmp_path / 'reliability.json'
  assert workdirs.cached(str(path), lambda: {'seeds': 0.5}) == {'seeds': 0.5}
  assert workdirs.cached(str(path), lambda: 1 / 0) == {'seeds': 0.5}
  damage(path)
  with pytest.warns(UserWarning, match='reliability.json is damaged: moved to'):
    assert workdirs.cached(str(path), lambda: {'seeds': 0.75}) == {'seeds': 0.75}
  workdirs.cached_each(str(tmp_path / 'all.json'), {'a': lambda: 1})
  damage(tmp_path / 'all.json')
  with pytest.warns(UserWarning, match='moved to'):
    assert workdirs.cached_each(str(tmp_path / 'all.json'), {'a': lambda: 2, 'b': lambda: 3}) == {'a': 2, 'b': 3}
