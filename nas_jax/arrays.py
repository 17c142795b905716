"""Converts trees of arrays to bytes and back. The bytes are a SHA-256 digest and a NumPy .npz archive.

Reading them runs no code, because pickle is not used.
"""

from collections.abc import Sequence
import hashlib
import io
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nas_jax.types import PyTree

_DIGEST = hashlib.sha256().digest_size
_TREE = 'tree'  # the entry of the .npz that holds the structure of the tree; the arrays are entries named by numbers


def pack(tree: PyTree) -> bytes:
  """Returns a tree as bytes.

  Args:
    tree: tuples, NamedTuples, lists and dicts (with strings as keys) of arrays, random keys, and JSON values.
  """
  arrays = dict[str, np.ndarray]()

  def add(array: Any) -> list[str]:
    name, value = str(len(arrays)), np.asarray(array)
    arrays[name] = value
    return [name, str(value.dtype)]  # numpy's format does not name types such as bfloat16

  def built(node: PyTree) -> Any:
    if isinstance(node, dict):
      return {'dict': {key: built(value) for key, value in node.items()}}
    if isinstance(node, tuple | list):
      return {type(node).__name__: [built(value) for value in node]}
    if isinstance(node, jax.Array) and jax.dtypes.issubdtype(node.dtype, jax.dtypes.prng_key):
      return {'key': [*add(jax.random.key_data(node)), str(jax.random.key_impl(node))]}
    return {'array': add(node)} if isinstance(node, jax.Array | np.ndarray | np.generic) else {'value': node}

  said = json.dumps(built(tree)).encode()
  file = io.BytesIO()
  np.savez(file, allow_pickle=False, **{_TREE: np.frombuffer(said, np.uint8)}, **arrays)
  content = file.getvalue()
  return hashlib.sha256(content).digest() + content


def unpack(content: bytes, types: Sequence[type] = ()) -> PyTree:
  """Returns the tree that `pack` was given, with arrays of numpy.

  Args:
    content: what `pack` returned.
    types: the NamedTuples that the tree may hold.

  Raises:
    ValueError: the content is damaged, or it holds a NamedTuple of another type.

  >>> import numpy as np
  >>> unpack(pack({'reward': np.float32([1, 2]), 'depth': 3, 'extra': ()}))
  {'reward': array([1., 2.], dtype=float32), 'depth': 3, 'extra': ()}
  """
  digest, content = content[:_DIGEST], content[_DIGEST:]
  if hashlib.sha256(content).digest() != digest:
    raise ValueError('its digest does not fit')
  known = {kind.__name__: kind for kind in types}
  with np.load(io.BytesIO(content), allow_pickle=False) as arrays:

    def of(name: str, dtype: str) -> np.ndarray:
      return arrays[name].view(jnp.dtype(dtype))

    def made(node: Any) -> PyTree:
      ((kind, inner),) = node.items()
      if kind == 'value':
        return inner
      if kind == 'array':
        return of(*inner)
      if kind == 'key':
        return jax.random.wrap_key_data(jnp.asarray(of(*inner[:2])), impl=inner[2])
      if kind == 'dict':
        return {key: made(value) for key, value in inner.items()}
      parts = [made(value) for value in inner]
      if kind in ('tuple', 'list'):
        return tuple(parts) if kind == 'tuple' else parts
      if kind not in known:
        raise ValueError(f'it holds a {kind}, which is none of {", ".join(known) or "no types"}')
      return known[kind](*parts)

    return made(json.loads(arrays[_TREE].tobytes()))
