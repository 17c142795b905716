"""Architectures from the papers, as data.

>>> from nas_jax import published, space
>>> space.tree_cell_space(base=8).check(published.NASCELL), space.tree_cell_space(base=8).check(published.LSTM)
(1, 1)
>>> space.conv_space().check(published.FIGURE_7), space.chain_space().check(published.XU_CIFAR10)  # layers
(15, 9)
>>> space.enas_micro_space().check(published.ENAS_MICRO), space.enas_rnn_space().check(published.ENAS_RNN)
(1, 1)
"""

from nas_jax.operations import ADD, IDENTITY, MULT, RELU, SIGMOID, TANH
from nas_jax.space.chain import ChainArch, code, parse
from nas_jax.space.conv import ConvArch
from nas_jax.space.enas import MicroArch, RnnArch
from nas_jax.space.tree import TreeArch

# The cell found on Penn Treebank, Zoph & Le (2017) Fig. 8; the equations of TensorFlow's NASCell.
NASCELL = TreeArch(
  combine=(ADD, ADD, ADD, MULT, ADD, ADD, ADD, ADD, MULT, ADD, MULT, ADD, MULT, ADD, MULT),
  activate=(
    *(SIGMOID, RELU, SIGMOID, RELU, TANH, SIGMOID, TANH, SIGMOID),
    *(TANH, TANH, TANH, SIGMOID),
    *(IDENTITY, TANH),
    TANH,
  ),
  inject=(ADD, TANH),
  index=(12, 8),
)

# The LSTM as a cell of the base-8 space, exact: the forget gate is leaves 0 + 1, the input gate 2, the candidate 3, the
# output gate 4 + 5 + 6 + 7. The weights of a gate are the sums of the weights of its leaves.
LSTM = TreeArch(
  combine=(ADD,) * 9 + (MULT,) + (ADD,) * 4 + (MULT,),
  activate=(
    *(IDENTITY, IDENTITY, SIGMOID, TANH, IDENTITY, IDENTITY, IDENTITY, IDENTITY),
    *(SIGMOID, IDENTITY, IDENTITY, IDENTITY),
    *(TANH, SIGMOID),
    IDENTITY,
  ),
  inject=(MULT, IDENTITY),
  index=(12, 8),
)

_FIGURE_7_READS = (
  *((), (0,), (1, 0), (2, 0, 1), (3, 2), (4, 1, 2, 3), (5, 1, 2, 3, 4), (6, 0, 5), (7, 0, 4, 5)),
  *((8, 0, 2, 3, 4, 5, 6, 7), (9, 0, 1, 4, 5, 6, 7, 8), (10, 0, 1, 2, 3, 5), (11, 0, 2, 5, 6, 7, 8, 9, 10)),
  *((12, 2, 6, 11), (13, 6, 10, 11, 12)),
)

# The 15-layer network without strides or pooling found on CIFAR-10, Zoph & Le (2017) Fig. 7; skips are concatenated.
FIGURE_7 = ConvArch(
  layer_type=(),
  filter_height=(3, 3, 3, 5, 3, 7, 7, 7, 7, 7, 5, 7, 7, 7, 7),
  filter_width=(3, 3, 3, 5, 7, 7, 7, 3, 1, 7, 7, 7, 5, 5, 5),
  stride_height=(),
  stride_width=(),
  filters=(36, 48, 36, 36, 48, 48, 48, 36, 36, 36, 36, 48, 48, 48, 48),
  pool=(),
  links=tuple(int(j in reads) for i, reads in enumerate(_FIGURE_7_READS) for j in range(i)),
  rate=(),
)

# The best network of Olga Xu's augmented search on CIFAR-10, 86.13%. Her poster does not name the kernel sizes of the
# residual blocks, nor the kind of the pools that are not max pools.
XU_CIFAR10 = ChainArch(
  tuple(
    code(parse(word))
    for word in (
      *('residual 128 3 1', 'conv 32 3 1', 'conv 32 3 1', 'residual 64 3 1', 'average pool 2 2'),
      *('residual 64 3 1', 'residual 64 3 1', 'conv 128 4 1', 'conv 64 3 1'),
    )
  )
)

# The micro cells in the released code of ENAS. A row is a block: (node read, operation) twice.
_ENAS_NORMAL = ((0, 2, 0, 0), (0, 4, 0, 1), (0, 4, 1, 1), (1, 0, 0, 1), (0, 2, 1, 1))
_ENAS_REDUCTION = ((1, 0, 1, 0), (0, 3, 0, 2), (1, 1, 3, 1), (1, 0, 0, 4), (0, 3, 1, 1))

ENAS_MICRO = MicroArch(
  normal_input=tuple(block[k] for block in _ENAS_NORMAL for k in (0, 2)),
  normal_operation=tuple(block[k] for block in _ENAS_NORMAL for k in (1, 3)),
  reduction_input=tuple(block[k] for block in _ENAS_REDUCTION for k in (0, 2)),
  reduction_operation=tuple(block[k] for block in _ENAS_REDUCTION for k in (1, 3)),
)

# The recurrent cell of the same code.
ENAS_RNN = RnnArch(
  activate=(TANH, TANH, RELU, RELU, TANH, TANH, RELU, TANH, RELU, RELU, RELU, RELU),
  previous=(0, 1, 2, 2, 2, 5, 1, 6, 8, 8, 8),
)
