"""Damaged and hostile .npz files: for every reader of them, each is one line that names the file."""

import io
import struct
import zipfile

import numpy as np
import pytest
from testing import one_line

from experiments.common import pictures
from nas_jax import export
from nas_jax.datasets import image_batches, images, npz, sequences
from nas_jax.systems import table

ARRAYS = {
  'images': {'images': np.zeros((4, 6, 5, 1), np.uint8), 'labels': np.arange(4) % 2},
  'sequences': {'sequences': np.zeros((4, 3, 2)), 'labels': np.arange(4) % 2},
  'table': {'ops': np.array([[0, 1], [1, 0]]), 'reward': np.array([0.1, 0.2])},
}
ARRAYS['new images'] = ARRAYS['images']
INPUTS = export.ImageInputs((6, 5, 1), (), image_batches.Whitening('image'))
READERS = {
  'images': lambda path: images.load_images(path, valid_share=0.5),
  'sequences': lambda path: sequences.load_sequences(path, valid_share=0.5),
  'table': table.load,
  'new images': lambda path: pictures.read([path], INPUTS),
}


def written(arrays, compression=zipfile.ZIP_STORED, **replaced):
  """Returns the bytes of an .npz whose entries may be replaced by other bytes."""
  file = io.BytesIO()
  with zipfile.ZipFile(file, 'w', compression) as made:
    for name, array in arrays.items():
      content = io.BytesIO()
      np.save(content, array)
      made.writestr(f'{name}.npy', replaced.get(name, content.getvalue()))
  return file.getvalue()


def header(descr='<i8', shape=(10**13, 2), version=1):
  content = io.BytesIO()
  write = np.lib.format.write_array_header_1_0 if version == 1 else np.lib.format.write_array_header_2_0
  write(content, {'descr': descr, 'fortran_order': False, 'shape': shape})
  return content.getvalue() + bytes(64)


def words(text):
  """Returns an array whose header is any text."""
  return b'\x93NUMPY\x01\x00' + struct.pack('<H', len(text)) + text.encode() + bytes(64)


def changed(content, offset, value):
  """Returns the zip with a number of two bytes in its first entry of the central directory replaced."""
  at = content.index(b'PK\x01\x02') + offset
  return content[:at] + struct.pack('<H', value) + content[at + 2 :]


FLAGS, METHOD, NEEDED_VERSION = 8, 10, 6  # offsets in an entry of the central directory
DAMAGES = {
  'encrypted': (lambda arrays, _: changed(written(arrays), FLAGS, 1), "File '.*npy' is encrypted"),
  'strongly encrypted': (lambda arrays, _: changed(written(arrays), FLAGS, 0x40), 'strong encryption'),
  'patched': (lambda arrays, _: changed(written(arrays), FLAGS, 0x20), 'patched'),
  'an unknown compression': (lambda arrays, _: changed(written(arrays), METHOD, 99), 'compression'),
  'an old compression': (lambda arrays, _: changed(written(arrays), METHOD, 6), 'compression'),
  'not deflated': (lambda arrays, _: changed(written(arrays), METHOD, zipfile.ZIP_DEFLATED), 'cannot be read'),
  'not bzip2': (lambda arrays, _: changed(written(arrays), METHOD, zipfile.ZIP_BZIP2), 'cannot be read'),
  'not LZMA': (lambda arrays, _: changed(written(arrays), METHOD, zipfile.ZIP_LZMA), 'cannot be read'),
  'a later version': (lambda arrays, _: changed(written(arrays), NEEDED_VERSION, 99), 'version'),
  'many rows': (lambda arrays, name: written(arrays, **{name: header()}), r'header of shape \(10000000000000, 2\)'),
  'many rows, format 2': (lambda arrays, name: written(arrays, **{name: header(version=2)}), 'header of shape'),
  'many rows, deflated': (
    lambda arrays, name: written(arrays, zipfile.ZIP_DEFLATED, **{name: header()}), 'header of shape'
  ),
  'many empty words': (lambda arrays, name: written(arrays, **{name: header('|S0', (10**13,))}), 'header of shape'),
  'rows below zero': (lambda arrays, name: written(arrays, **{name: header(shape=(-5, 2))}), 'cannot be read'),
  'too many for an int': (lambda arrays, name: written(arrays, **{name: header(shape=(0, 10**30))}), 'cannot be read'),
  'pickles': (lambda arrays, name: written(arrays | {name: np.array([{}] * 4)}), 'Object arrays'),
  'no array': (lambda arrays, name: written(arrays, **{name: b'text'}), 'cannot be read'),
  'an empty entry': (lambda arrays, name: written(arrays, **{name: b''}), 'cannot be read'),
  'a later format': (lambda arrays, name: written(arrays, **{name: b'\x93NUMPY\x09\x00'}), 'format'),
  'a long header': (lambda arrays, name: written(arrays, **{name: words(' ' * 20_000)}), 'cannot be read'),
  'a header that is no dictionary': (lambda arrays, name: written(arrays, **{name: words('[[[')}), 'cannot be read'),
  'a deep header': (lambda arrays, name: written(arrays, **{name: words('(' * 9000)}), 'cannot be read'),
  'a strange type': (
    lambda arrays, name: written(arrays, **{name: words("{'descr': [1], 'fortran_order': False, 'shape': (1,)}")}),
    'cannot be read',
  ),
}  # fmt: skip


@pytest.mark.filterwarnings('ignore:Reading `.npy`:UserWarning')  # NumPy repairs headers of Python 2
@pytest.mark.parametrize('reader', READERS)
@pytest.mark.parametrize('damage', DAMAGES)
def test_a_damaged_file_is_one_line(tmp_path, reader, damage):
  arrays, (damaged, says) = ARRAYS[reader], DAMAGES[damage]
  path = tmp_path / 'x.npz'
  path.write_bytes(damaged(arrays, next(iter(arrays))))
  with pytest.raises(ValueError, match=f'^{path} cannot be read .*{says if says != "cannot be read" else ""}') as error:
    READERS[reader](str(path))
  one_line(error)


@pytest.mark.parametrize('reader', READERS)
def test_random_changes_of_bytes_are_read_or_are_one_line(tmp_path, reader):
  rng, path, sound = np.random.default_rng(0), tmp_path / 'x.npz', written(ARRAYS[reader], zipfile.ZIP_DEFLATED)
  for _ in range(60):
    content = bytearray(sound)
    for _ in range(rng.integers(1, 4)):
      content[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
    path.write_bytes(content)
    try:
      READERS[reader](str(path))
    except ValueError as error:
      assert '\n' not in str(error)


def test_some_arrays_are_read_and_others_are_not_looked_at(tmp_path):
  path = tmp_path / 'x.npz'
  path.write_bytes(written({'a': np.arange(3), 'b': np.ones(2)}, b=b'text', compression=zipfile.ZIP_DEFLATED))
  (found,) = npz.read(str(path), '', '', ('a', 'c')).items()
  assert found[0] == 'a'
  np.testing.assert_array_equal(found[1], np.arange(3))
  with pytest.raises(ValueError, match=r'x.npz unpacks to 152 bytes: want at most 100; take less\.'):
    npz.read(str(path), '', 'take less', ('a',), most=100)
