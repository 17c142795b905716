"""Compiles a `TreeArch` to functions of a recurrent cell, Zoph & Le (2017) Sec. 3.4: a step, and a loop over time.

`program` says how the tree is computed, from a static or a traced architecture.
"""

from nas_jax.nn import recurrent
from nas_jax.nn.products import Inputs
from nas_jax.nn.recurrent import Carry
from nas_jax.operations import BUILT_IN, Operations
from nas_jax.space.tree import TreeArch, leaves
from nas_jax.tree_cell.program import program
from nas_jax.types import Array, DType


def apply(
  params: dict[str, Array],
  arch: TreeArch,
  carry: Carry,
  x: Array,
  *,
  h_mask: Array | None = None,
  dtype: DType | None = None,
  operations: Operations = BUILT_IN,
) -> tuple[Carry, Array]:
  """One time step: maps the carry (c, h) [B, H] and x [B, in] to ((c, h), h).

  B stands for any number of batch axes, including none. `h_mask` and `dtype` are as in `unroll`. `operations` are the
  operations that the arch may hold, as in `Space.operations`; a traced program computes only these. A static arch needs
  them only if it holds operations of your own.

  Raises:
    ValueError: `arch` is invalid, see `space.tree.check_tree`: for example, a static one holds an operation that is
      neither built in nor among `operations`, or a field of a traced one is not an array [N]. Or `params` hold a name
      that `init` does not use, or are those of a cell with another number of leaves or another width.

  >>> import jax, jax.numpy as jnp
  >>> from nas_jax import tree_cell
  >>> params = tree_cell.init(jax.random.key(0), tree_cell.NASCELL, in_features=3, features=4)
  >>> zeros = jnp.zeros((2, 4))  # a batch of two
  >>> (c, h), y = tree_cell.apply(params, tree_cell.NASCELL, (zeros, zeros), jnp.ones((2, 3)))
  >>> c.shape, bool((y == h).all())
  ((2, 4), True)
  """
  compiled = program(arch, operations)
  _check_shapes(params, arch, carry)
  return recurrent.step(*compiled, params, carry, x, h_mask=h_mask, dtype=dtype)


def unroll(
  params: dict[str, Array],
  arch: TreeArch,
  carry: Carry,
  xs: Inputs,
  *,
  h_mask: Array | None = None,
  length: Array | None = None,
  hoist: bool = True,
  dtype: DType | None = None,
  operations: Operations = BUILT_IN,
  together: int = 1,
) -> tuple[Carry, Array]:
  """Runs the cell over a sequence. The projections of all inputs are one product before the loop.

  With `hoist` the gradient of the recurrent weights is one product after the backward loop, not a sum of T products
  inside it, and the values inside the tree are recomputed, not stored. This is a `custom_vjp`: take `hoist=False` for
  forward-mode derivatives.

  Args:
    params: as `init` returns them.
    arch: static or traced.
    carry: (c, h), [B, H] and [B, P], where P is H without a projection. B is any number of axes, including none.
    xs: [T, B, in], time first; or `nn.products.Rows` of a table.
    h_mask: [B, P] or [P], multiplies h_(t-1) where it enters the leaves (variational dropout).
    length: [B] int, the number of steps of each row; a row's carry stays as it is after them.
    hoist: see above.
    dtype: the type of the products with weights, such as bfloat16; by default the common type of all arguments. The
      tree, c and h have the common type of `dtype` and the carry.
    operations: the operations that the arch may hold, see `apply`.
    together: number of time steps in one iteration of the compiled loop. More steps are faster on a GPU, where a small
      cell waits for its kernels to be launched, but take longer to compile. Results change by rounding at most.

  Returns:
    The final (c, h) and the outputs h_t [T, B, P]; outputs after a row's length have no meaning.

  Raises:
    ValueError: as `apply` does.
    TypeError: forward-mode derivatives are taken and `hoist` is True.

  >>> import jax, jax.numpy as jnp
  >>> from nas_jax import tree_cell
  >>> params = tree_cell.init(jax.random.key(0), tree_cell.NASCELL, in_features=3, features=4)
  >>> zeros = jnp.zeros((2, 4))  # a batch of two
  >>> (c, h), ys = tree_cell.unroll(params, tree_cell.NASCELL, (zeros, zeros), jnp.ones((5, 2, 3)))  # five time steps
  >>> ys.shape, bool((ys[-1] == h).all())
  ((5, 2, 4), True)
  """
  cell, traced = program(arch, operations)
  _check_shapes(params, arch, carry)
  backward_cell, _ = program(arch, operations, backward=True)
  return recurrent.unroll(
    cell,
    traced,
    params,
    carry,
    xs,
    h_mask=h_mask,
    length=length,
    hoist=hoist,
    dtype=dtype,
    backward_cell=backward_cell,
    together=together,
  )


def _check_shapes(params: dict[str, Array], arch: TreeArch, carry: Carry) -> None:
  """Raises ValueError if the weights do not have H columns for each leaf of a cell, where H is the width of c."""
  n, features = leaves(arch), carry[0].shape[-1]
  for name in ('kernel', 'recurrent_kernel'):
    if name in params and params[name].shape[-1] != n * features:
      raise ValueError(
        f'the {name} has {params[name].shape[-1]} columns: a cell of {n} leaves, with a c of width {features}, wants '
        f'{n * features}. `init` makes the parameters of an architecture.'
      )
