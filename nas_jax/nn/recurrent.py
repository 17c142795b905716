"""The loop over time for recurrent cells whose weights only multiply x and h: tree cells and the LSTM.

Such a cell is a function without weights. Its inputs are c_(t-1) and the projections of x and of h, one for each of its
k gates (or leaves). Its outputs are c_t and h_t. So the projections of all inputs are one product before the loop, and
the gradient of each weight matrix is one product after it.
"""

from collections.abc import Callable
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from nas_jax.nn.products import (
  Inputs,
  cast,
  projected,
  promoted,
  transposed,
  vary_together,
  weight_gradient,
)
from nas_jax.nn.reverse_only import reverse_only
from nas_jax.types import Array, DType, Key, PyTree

Carry = tuple[Array, Array]  # (c, h), each [B, H]
# (arch, x W [B, k * H], h U + b [B, k * H], c [B, H]) -> (c, h); `arch` is the traced architecture, or None
Cell = Callable[[PyTree, Array, Array, Array], Carry]


def init(
  key: Key, in_features: int, features: int, gates: int, *, bias: bool = False, scale: float | Array | None = None
) -> dict[str, Array]:
  """Returns 'kernel' [in_features, gates * H] and 'recurrent_kernel' [H, gates * H], uniform in [-scale, scale].

  By default scale is 1 / sqrt(H). `bias` adds a 'bias' [gates * H] of zeros.
  """
  width = gates * features
  scale = features**-0.5 if scale is None else scale
  input_key, recurrent_key = jax.random.split(key)
  params = {
    'kernel': jax.random.uniform(input_key, (in_features, width), minval=-scale, maxval=scale),
    'recurrent_kernel': jax.random.uniform(recurrent_key, (features, width), minval=-scale, maxval=scale),
  }
  return params | {'bias': jnp.zeros(width)} if bias else params


def step(
  cell: Cell,
  arch: PyTree,
  params: dict[str, Array],
  carry: Carry,
  x: Array,
  *,
  h_mask: Array | None = None,
  dtype: DType | None = None,
) -> tuple[Carry, Array]:
  """One time step: maps the carry (c, h) [B, H] and x [B, in] to ((c, h), h). Arguments are as in `unroll`."""
  _check_names(params)
  (c, h), (params, x) = carry, cast((params, x), dtype)
  weights, h = _weights(params), h if h_mask is None else h * _leading(h_mask, h.ndim)
  gate = _normalized(x @ params['kernel'], params.get('kernel_scale'), c.shape[-1])
  recurrent = _read(weights, cast(h, dtype) @ weights.kernel, c.shape[-1])
  c, value = cell(arch, *vary_together(promoted((gate, recurrent, c)), arch))
  h = _projected_h(weights, value)
  return (c, h), h


def unroll(
  cell: Cell,
  arch: PyTree,
  params: dict[str, Array],
  carry: Carry,
  xs: Inputs,
  *,
  h_mask: Array | None = None,
  length: Array | None = None,
  hoist: bool = True,
  dtype: DType | None = None,
  backward_cell: Cell | None = None,
  together: int = 1,
) -> tuple[Carry, Array]:
  """Runs a cell over a sequence. B stands for any number of batch axes, including none.

  Args:
    cell: see `Cell`.
    arch: the traced architecture, or None.
    params: 'kernel' [in, k * H] and 'recurrent_kernel' [P, k * H], where P is H without a projection. Optional
      are: 'bias' [k * H], which is added to h U; 'kernel_scale' and 'recurrent_scale' [k * H], the scales of the layer
      norm of each gate of x W and of h U; 'projection_kernel' [H, P], which maps the cell's value to h_t.
    carry: (c, h), [B, H] and [B, P].
    xs: [T, B, in], time first; or `Rows` of a table.
    h_mask: [B, P] or [P], multiplies h_(t-1) where it enters the cell (variational dropout).
    length: [B] int, the number of steps of each row; a row's carry stays as it is after them.
    hoist: computes the gradient of the recurrent weights as one product after the backward loop, and recomputes the
      values inside the cell instead of storing them. This is a `custom_vjp`, so forward-mode derivatives need False.
    dtype: the type of the products with weights, to which params, xs and h are cast; by default the common type of all
      arguments. The rest of the cell, c and h have the common type of `dtype` and the carry.
    backward_cell: the cell that the backward loop recomputes with, if another form of the cell is faster there.
    together: number of time steps in one iteration of the compiled loop, forward and backward.

  Returns:
    The final (c, h) and the outputs h_t [T, B, P]; outputs after a row's length have no meaning.

  Raises:
    ValueError: `params` hold a name that is not listed above.
    TypeError: forward-mode derivatives are taken and `hoist` is True.
  """
  _check_names(params)
  if hoist:
    params, carry, xs, h_mask = reverse_only((params, carry, xs, h_mask), NO_FORWARD_MODE)
  (c, h), (params, xs) = carry, cast((params, xs), dtype)
  mask = jnp.ones_like(h) if h_mask is None else jnp.ones_like(h) * _leading(h_mask, h.ndim)
  gates = _normalized(projected(xs, params['kernel'], hoist), params.get('kernel_scale'), c.shape[-1])
  weights = _weights(params)
  common = jnp.result_type(*jax.tree.leaves((weights, gates, c, h, mask)))
  floats = (*cast((weights, gates), common if dtype is None else dtype), *cast((c, h, mask), common))
  keep = None if length is None else jnp.arange(len(gates)).reshape(-1, *(1,) * c.ndim) < length[None, ..., None]
  loop = functools.partial(jax.lax.scan, unroll=together)
  scan = functools.partial(_hoisted_scan, loop, backward_cell or cell) if hoist else functools.partial(_scan, loop)
  c, h, hs = scan(cell, arch, keep, *vary_together(floats, (arch, keep)))
  return (c, h), hs


NO_FORWARD_MODE = (
  'unroll has a gradient of its own (custom_vjp), of which there is no forward mode (jvp, jacfwd, linearize): pass '
  'hoist=False for the gradient that JAX derives.'
)


def lstm(_: PyTree, x: Array, h: Array, c: Array) -> Carry:
  """The LSTM as a cell of four gates: input, candidate, forget, output; no peepholes (Zaremba et al., 2014, Sec. 3)."""
  i, g, f, o = jnp.split(x + h, 4, -1)
  c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
  return c, jax.nn.sigmoid(o) * jnp.tanh(c)


class _Weights(NamedTuple):
  """The weights that the loop reads, see `unroll`; k * H is as wide as the gates."""

  kernel: Array  # [P, k * H]
  bias: Array  # [k * H], zeros if the cell has none
  scale: Array | None  # [k * H]
  projection: Array | None  # [H, P]


_NAMES = ('kernel', 'recurrent_kernel', 'bias', 'kernel_scale', 'recurrent_scale', 'projection_kernel')


def _check_names(params: dict[str, Array]) -> None:
  """Raises ValueError if there are parameters that no cell has."""
  if unknown := sorted(set(params) - set(_NAMES)):
    raise ValueError(f'params hold {unknown[0]!r}, which is none of {", ".join(_NAMES)}.')


def _weights(params: dict[str, Array]) -> _Weights:
  """Returns the weights that the loop reads."""
  kernel = params['recurrent_kernel']
  bias = params['bias'] if 'bias' in params else jnp.zeros(kernel.shape[1:], kernel.dtype)
  return _Weights(kernel, bias, params.get('recurrent_scale'), params.get('projection_kernel'))


def _read(weights: _Weights, product: Array, features: int) -> Array:
  """Returns the recurrent input of the gates [B, k * H]: the product h U, with layer norm if any, plus the bias."""
  return _normalized(product, weights.scale, features) + _leading(weights.bias, product.ndim)


def _normalized(values: Array, scale: Array | None, features: int) -> Array:
  """Layer norm (Ba et al., 2016) of each gate of `values` [..., k * H] by itself; None leaves them as they are."""
  if scale is None:
    return values
  wide = values.reshape(*values.shape[:-1], -1, features)
  wide = jax.nn.standardize(wide.astype(jnp.promote_types(wide.dtype, jnp.float32)), axis=-1, epsilon=1e-6)
  return wide.reshape(values.shape).astype(values.dtype) * _leading(scale, values.ndim)


def _leading(value: Array, ndim: int) -> Array:
  """Gives a value `ndim` axes, with new ones of length 1 before its own."""
  return value.reshape((1,) * (ndim - value.ndim) + value.shape)


def _projected_h(weights: _Weights, value: Array) -> Array:
  """Returns h_t from the value of the cell [..., H]."""
  if weights.projection is None:
    return value
  return (value.astype(weights.projection.dtype) @ weights.projection).astype(value.dtype)


def _run(cell: Cell, arch: PyTree, gate: Array, recurrent: Array, c: Array) -> Carry:
  """Runs a cell in the type of the carry."""
  return cell(arch, gate.astype(c.dtype), recurrent.astype(c.dtype), c)


def _scan(loop, cell, arch, keep, weights, gates, c, h, mask):
  """The plain loop, whose gradient JAX derives. Returns c, h and the outputs [T, B, P]."""
  (c, h), (hs, *_) = loop(functools.partial(_step, cell, arch, weights, mask), (c, h), (gates, keep))
  return c, h, hs


def _step(cell, arch, weights, mask, carry, inputs):
  """One step. Returns the new carry, and a tuple of the output and the values that the backward pass needs."""
  (c, h), (gate, keep) = carry, inputs
  product = (h * mask).astype(weights.kernel.dtype) @ weights.kernel
  recurrent = _read(weights, product, c.shape[-1])
  new_c, value = _run(cell, arch, gate, recurrent, c)
  new_h = _projected_h(weights, value)
  after = (new_c, new_h) if keep is None else (jnp.where(keep, new_c, c), jnp.where(keep, new_h, h))
  return after, (new_h, c, h, recurrent if weights.scale is None else product)


def _hoisted_scan(loop, backward_cell, cell, arch, keep, *floats):
  """`_scan` whose backward loop recomputes with `backward_cell` and does not contain the gradients of the weights."""

  @jax.custom_vjp
  def scan(arch, keep, *floats):
    return _scan(loop, cell, arch, keep, *floats)

  def forward(arch, keep, weights, gates, c, h, mask):
    step = functools.partial(_step, cell, arch, weights, mask)
    (c, h), (hs, cs, before, products) = loop(step, (c, h), (gates, keep))
    return (c, h, hs), (arch, keep, weights, gates, cs, before, products, mask)

  def backward(residuals, cotangents):
    arch, keep, weights, gates, cs, before, products, mask = residuals
    dc, dh, dhs = cotangents
    normalize, project = weights.scale is not None, weights.projection is not None
    transposed_kernel = transposed(weights.kernel)
    transposed_projection = transposed(weights.projection) if project else None

    def step(carry, inputs):
      dc, dh = carry
      gate, product, c, keep, dh_out = inputs
      if keep is None:
        past_c = past_h = 0.0
      else:  # after the length of a row its cotangent is passed on unchanged
        past_c, past_h = jnp.where(keep, 0.0, dc), jnp.where(keep, 0.0, dh)
        dc, dh = jnp.where(keep, dc, 0.0), jnp.where(keep, dh, 0.0)
      recurrent = _read(weights, product, c.shape[-1]) if normalize else product
      (_, value), vjp = jax.vjp(functools.partial(_run, backward_cell, arch), gate, recurrent, c)
      dh = dvalue = dh_out + dh
      if project:
        dvalue = (dh.astype(transposed_projection.dtype) @ transposed_projection).astype(dh.dtype)
      dgate, drecurrent, dc = vjp((dc, dvalue))
      dproduct = drecurrent
      if normalize:
        dproduct = jax.vjp(lambda product: _read(weights, product, c.shape[-1]), product)[1](drecurrent)[0]
      dmasked = (dproduct @ transposed_kernel).astype(dh.dtype)
      more = (dproduct if normalize else None, (value, dh) if project else None)
      return (dc + past_c, dmasked * mask + past_h), (dgate, drecurrent, dmasked, more)

    inputs = (gates, products, cs, keep, dhs)
    (dc, dh), (dgates, drecurrents, dmasked, more) = loop(step, (dc, dh), inputs, reverse=True)
    dproducts, of_projection = drecurrents if more[0] is None else more[0], more[1]
    dkernel = weight_gradient((before * mask[None]).astype(dproducts.dtype), dproducts, weights.kernel)
    dscale = dprojection = None
    if normalize:
      read = functools.partial(_normalized, products, features=cs.shape[-1])
      (dscale,) = jax.vjp(read, weights.scale)[1](drecurrents)
    if project:
      values, dvalues = cast(of_projection, weights.projection.dtype)
      dprojection = weight_gradient(values, dvalues, weights.projection)
    dbias = drecurrents.sum(tuple(range(drecurrents.ndim - 1)))
    dweights = _Weights(dkernel, dbias, dscale, dprojection)
    return None, None, dweights, dgates, dc, dh, (dmasked * before).sum(0)

  scan.defvjp(forward, backward)
  return scan(arch, keep, *floats)
