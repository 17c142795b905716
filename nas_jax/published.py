"""Architectures from the papers, as data."""

from nas_jax.space.tree import ADD, IDENTITY, MULT, RELU, SIGMOID, TANH, TreeArch

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

# An LSTM is in the base-8 space exactly: forget gate from leaves 0 + 1, input gate from 2, candidate from 3, output
# gate from 4 + 5 + 6 + 7; an LSTM's gate weights are the sums of its leaves' weights.
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
