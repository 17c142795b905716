"""Trains one network here and in PyTorch from the same weights, on the same images in the same order.

This is no test, as PyTorch is not among the requirements. It prints the validation accuracy after each epoch, by seed.
  python tests/tools/beside_torch.py DATA_DIR
"""

import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import nn
import torch.nn.functional as F

sys.path.extend(str(folder) for folder in pathlib.Path(__file__).resolve().parents[1:3])  # tests/ and the checkout

from nas_jax.children import conv
from nas_jax.datasets import image_batches
from nas_jax.space import conv_space
from nas_jax.space.network import network
from nas_jax.systems import classifier
from nas_jax.training import child as child_lib
from nas_jax.training import fit, layout

EPOCHS, SEEDS = 3, 3
CFG = classifier.Config(dataset='cifar10', max_examples=11_000, valid_share=1 / 11, schedule='constant', epochs=EPOCHS)
SETTINGS = conv.Hyperparameters(lr=0.05, decay_epoch=0.0, weight_decay=1e-4, epsilon=1e-5)
# 24 filters of 3 x 3, 36 of 3 x 3 with stride 2, and 48 of 5 x 5 that read both.
LAYERS = (0, 0, 0, 0, 0), (0, 0, 1, 1, 1, 1), (1, 1, 0, 0, 2, 1, 1)
ARCH = conv_space(3, (3, 5), (3, 5), (24, 36, 48), strides=(1, 2)).decode(sum(LAYERS, ()))


class Net(nn.Module):
  """The network ARCH in PyTorch, with the weights of one of our children."""

  def __init__(self, params):
    super().__init__()
    self.made = network(ARCH)
    self.kernels = nn.ParameterList(tensor(layer['kernel']).permute(3, 2, 0, 1) for layer in params['layers'])
    self.norms = nn.ModuleList(nn.BatchNorm2d(layer['scale'].shape[0], SETTINGS.epsilon) for layer in params['layers'])
    self.softmax = nn.Parameter(tensor(params['softmax']))
    self.bias = nn.Parameter(tensor(params['softmax_bias']))

  def forward(self, x):
    outputs = []
    for layer, kernel, norm in zip(self.made.layers, self.kernels, self.norms, strict=True):
      y = joined([x if j < 0 else outputs[j] for j in layer.reads])
      pad = [side for k in layer.window[::-1] for side in ((k - 1) // 2, k // 2)]
      outputs.append(F.relu(norm(F.conv2d(F.pad(y, pad), kernel, stride=layer.stride))))
    return joined([outputs[j] for j in self.made.ends]).mean((2, 3)) @ self.softmax + self.bias


def tensor(x):
  return torch.tensor(np.asarray(x))


def joined(maps):
  """Concatenates maps [B, C, H, W] along channels; smaller ones are padded with zeros on all sides."""
  height, width = (max(y.shape[axis] for y in maps) for axis in (2, 3))

  def padded(y):
    rest = (width - y.shape[3], height - y.shape[2])
    return F.pad(y, [side for n in rest for side in (n // 2, n - n // 2)])

  return torch.cat([padded(y) for y in maps], 1)


def by_torch(params, data):
  """Trains in PyTorch. Returns the loss of the first step, and the validation accuracy after each epoch."""
  net = Net(params)
  decayed = [*net.kernels, net.softmax]
  rest = [net.bias, *net.norms.parameters()]
  groups = [{'params': decayed, 'weight_decay': SETTINGS.weight_decay}, {'params': rest, 'weight_decay': 0.0}]
  optimizer = torch.optim.SGD(groups, SETTINGS.lr, momentum=CFG.momentum, nesterov=True)
  images, valid = (tensor(image_batches.whitened(x)).permute(0, 3, 1, 2) for x in (data.images, data.valid_images))
  labels, first, curve = tensor(data.labels).long(), None, []
  for epoch in range(EPOCHS):
    net.train()
    order = torch.tensor(np.asarray(data.orders[epoch]))
    for at in order[: len(order) // CFG.batch * CFG.batch].split(CFG.batch):
      loss = F.cross_entropy(net(images[at]), labels[at])
      first = loss.item() if first is None else first
      optimizer.zero_grad()
      loss.backward()
      optimizer.step()
    net.eval()
    with torch.no_grad():
      right = torch.cat([net(part).argmax(1) for part in valid.split(500)]) == tensor(data.valid_labels)
    curve.append(right.float().mean().item())
  return first, curve


def here(child, setup, keys):
  """Trains here with each key [k]. Returns the initial weights, first losses [k], and accuracies [k, EPOCHS]."""
  plan = conv.ChildSpec(ARCH, SETTINGS)
  planned = child_lib.bind_arch(child, lambda _: plan)
  (data,), epoch = setup.data, setup.pass_steps
  programs = classifier.fitter(setup, planned, lambda _: SETTINGS, EPOCHS * epoch, layout.child_mesh())
  states, archs, keys = fit.begin(programs, (), keys)
  start, curve, first = jax.tree.map(np.asarray, states.params), [], None
  for _ in range(EPOCHS):
    for count in (1, epoch - 1):
      states = programs.chunk(data, jnp.asarray(count), states, archs, keys)
      first = np.asarray(states.loss) if first is None else first
    curve.append(np.asarray(programs.score(data, states, archs)['accuracy']))
  return start, first, np.stack(curve, 1)


def main():
  images = classifier.load(CFG, sys.argv[1])
  setup = classifier.set_up(CFG, images)
  keys = jax.random.split(jax.random.key(0), SEEDS)
  start, first, curves = here(conv.build(setup.inputs), setup, keys)
  found = [by_torch(jax.tree.map(lambda x, k=k: x[k], start), setup.data[0]) for k in range(SEEDS)]
  for k, (loss, curve) in enumerate(found):
    print(f'seed {k}  first loss {first[k]:.5f} here, {loss:.5f} in PyTorch, without weight decay')
    print(f'  accuracy by epoch: {curves[k].round(3).tolist()} here, {np.round(curve, 3).tolist()} in PyTorch')
  ours, theirs = curves.mean(0), np.mean([curve for _, curve in found], 0)
  spread = np.std([*curves, *(curve for _, curve in found)], axis=0, ddof=1)
  print(f'means {ours.round(3).tolist()} and {theirs.round(3).tolist()}; deviation over all {spread.round(3).tolist()}')


if __name__ == '__main__':
  main()
