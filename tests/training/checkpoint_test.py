"""Checkpoints are restored as they were saved, and damage is detected."""

import json
import os
import pathlib
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nas_jax import search, space
from nas_jax.training import checkpoint

pytestmark = pytest.mark.filterwarnings('ignore::DeprecationWarning')


@pytest.fixture(scope='module')
def states():
  s = search.ask_tell(space.tree_cell_space(2), search.Config(controller_units=4, m=2))
  return s.init(jax.random.key(0)), s.init(jax.random.key(1))


@pytest.fixture
def folder(tmp_path, states):
  folder = str(tmp_path / 'checkpoints')
  save, close = checkpoint.saver(folder)
  for step in (1, 2):
    save(step, states[step - 1])
  close()
  return folder


def same(a, b):
  a, b = (jax.tree.map(lambda x: jax.random.key_data(x) if 'key' in str(x.dtype) else x, tree) for tree in (a, b))
  return jax.tree.structure(a) == jax.tree.structure(b) and all(
    np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  )


def test_the_newest_state_comes_back(folder, states):
  found = checkpoint.restore(folder, states[0])
  assert same(found, states[1]) and not same(found, states[0])
  # The key is a key again, not its numbers.
  assert jax.random.uniform(found.key) == jax.random.uniform(states[1].key)


def test_only_a_saver_deletes_what_is_half_written(folder, states):
  """Orbax deletes in a thread that it does not wait for: beside a saver's, one of the two would find files missing."""
  half = pathlib.Path(folder, '3.orbax-checkpoint-tmp-7')
  half.mkdir()
  before = set(threading.enumerate())
  checkpoint.restore(folder, states[0])
  for thread in set(threading.enumerate()) - before:
    thread.join(5)
  assert half.exists()
  save, close = checkpoint.saver(folder)
  save(3, states[0])
  close()
  assert not half.exists()


def test_nothing_there(tmp_path, states):
  assert checkpoint.restore(str(tmp_path / 'none'), states[0]) is None


def test_a_digest_that_does_not_fit_is_damage(folder, states):
  # Whatever Orbax itself lets pass: here the arrays are sound, and not those that were saved.
  path = pathlib.Path(folder, '2', 'digest', 'metadata')
  found = json.loads(path.read_text())
  path.write_text(json.dumps(found | {'sha256': '0' * 64}))
  with pytest.warns(UserWarning, match='its digest does not fit'):
    assert same(checkpoint.restore(folder, states[0]), states[0])


def test_what_was_saved_on_other_devices_is_read(folder, states, recwarn):
  """On a GPU, say, by a process that trained there, while this one has CPUs alone."""
  shardings = list(pathlib.Path(folder).glob('*/state/_sharding'))
  for path in shardings:
    written = path.read_text()
    assert 'cpu:0' in written
    path.write_text(written.replace('cpu:0', 'cuda:3'))
  assert len(shardings) == 2 and same(checkpoint.load(folder, states[0]), states[1])
  assert same(checkpoint.restore(folder, states[0]), states[1]) and not recwarn.list


@pytest.mark.parametrize('arrays', [np, jnp])
@pytest.mark.parametrize('count', [3, 5])
def test_a_state_of_another_shape_is_refused(tmp_path, arrays, count):
  save, close = checkpoint.saver(str(tmp_path / 'checkpoints'))
  save(1, {'weights': arrays.zeros(4, 'float32')})
  close()
  with pytest.raises(ValueError, match='its arrays have other shapes'):
    checkpoint.load(str(tmp_path / 'checkpoints'), {'weights': jnp.zeros(count)})


def test_savers_side_by_side(tmp_path, states):
  """Threads save children with static programs, each in its own folder, without waiting for another."""
  together, done = threading.Barrier(4), []

  def keep(k):
    for step in range(4):
      save, close = checkpoint.saver(str(tmp_path / str(k)))
      together.wait(30)
      save(step, states[k % 2])
      close()
    done.append(k)

  threads = [threading.Thread(target=keep, args=(k,), daemon=True) for k in range(4)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join(30)
  assert sorted(done) == [0, 1, 2, 3]
  assert all(same(checkpoint.restore(str(tmp_path / str(k)), states[0]), states[k % 2]) for k in range(4))


def test_only_the_newest_are_kept(tmp_path, states):
  folder = str(tmp_path / 'checkpoints')
  save, close = checkpoint.saver(folder, keep=2)
  for step in range(5):
    save(step, states[0])
  close()
  assert sorted(name for name in os.listdir(folder) if name.isdigit()) == ['3', '4']


def flip(path):
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 1
  path.write_bytes(content)


def empty(path):
  path.write_bytes(b'')


# Orbax leaves event loops behind when a read fails.
@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
@pytest.mark.parametrize('damage', [flip, empty, pathlib.Path.unlink])
def test_damage_is_moved_aside_and_the_one_before_taken(folder, states, damage):
  # Not all of what Orbax writes is read again: every file that may hold arrays is hit.
  for path in pathlib.Path(folder, '2', 'state').glob('**/d/*'):
    damage(path)
  with pytest.warns(UserWarning, match='checkpoint 2 is damaged'):
    found = checkpoint.restore(folder, states[0])
  assert same(found, states[0])
  (aside,) = pathlib.Path(folder, '..', 'damaged').iterdir()
  assert aside.name.startswith('2-') and (aside / 'state').is_dir()


def test_what_only_looks_like_a_checkpoint_is_moved_aside(folder, states):
  pathlib.Path(folder, '\u00b2').mkdir()
  pathlib.Path(folder, '007').mkdir()
  pathlib.Path(folder, '9').write_text('')
  with pytest.warns(UserWarning, match='is no checkpoint: moved to'):
    assert same(checkpoint.restore(folder, states[0]), states[1])
  assert sorted(path.name for path in pathlib.Path(folder, '..', 'damaged').iterdir()) == ['007', '9', '\u00b2']


def test_a_file_in_place_of_the_folder_is_moved_aside(tmp_path, states):
  (tmp_path / 'checkpoints').write_text('x')
  with pytest.warns(UserWarning, match='is no checkpoint'):
    assert checkpoint.restore(str(tmp_path / 'checkpoints'), states[0]) is None
  checkpoint.saver(str(tmp_path / 'checkpoints'))[1]()


def test_a_state_that_is_not_wanted_makes_place_for_the_one_before(folder, states):
  with pytest.warns(UserWarning, match='checkpoint 2 is too new: moved to'):
    found = checkpoint.restore(folder, states[0], reject=lambda state: '' if same(state, states[0]) else 'is too new')
  assert same(found, states[0])


def test_what_refuses_a_state_moves_nothing(folder, states):
  def refuse(state):
    raise ValueError('of another search')

  with pytest.raises(ValueError, match='of another search'):
    checkpoint.restore(folder, states[0], reject=refuse)
  assert sorted(os.listdir(folder)) == ['1', '2'] and not os.path.exists(os.path.join(folder, '..', 'damaged'))
