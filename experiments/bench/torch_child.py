"""Trains the same children in PyTorch, in its default memory layout. Input and output are as in `rivals`.

It needs only PyTorch and NumPy, so it runs with any Python that has them.
  python torch_child.py FOLDER [--compile]
"""

import json
import os
import sys
import time

import numpy as np
import torch
from torch import nn
import torch.nn.functional as F

COMBINE = (torch.add, torch.mul, torch.maximum)
ACTIVATE = (lambda x: x, torch.tanh, torch.sigmoid, torch.relu, torch.sin)


def main(folder, compiled):
  """Trains all children of a job one after another, and prints the line of JSON."""
  with open(os.path.join(folder, 'job.json'), encoding='utf-8') as file:
    job = json.load(file)
  torch.set_default_device(job['device'])
  if job['device'] != 'cpu':
    torch.set_float32_matmul_precision('high')  # TF32, as in XLA: products round each factor to 10 bits
  arrays = np.load(os.path.join(folder, 'batches.npz'), allow_pickle=False)
  batches = [[torch.tensor(arrays[name][i]) for name in arrays.files] for i in range(len(arrays[arrays.files[0]]))]
  found = {'losses': [], 'seconds': [], 'compiling': []}
  for k, arch in enumerate(job['archs']):
    torch.compiler.reset()  # otherwise programs of earlier children count against the limit of a function
    weights = np.load(os.path.join(folder, f'weights-{k}.npz'), allow_pickle=False)
    params = {name: nn.Parameter(torch.tensor(weights[name])) for name in weights.files}
    step = CHILDREN[job['kind']](arch, params, job['settings'], compiled)
    begun = time.perf_counter()
    losses = [step(batches[0], True).item()]
    first = time.perf_counter() - begun
    losses += [step(batches[i], True) for i in range(1, job['checked'])]
    begun = time.perf_counter()
    for i in range(job['checked'], job['checked'] + job['steps']):
      last = step(batches[i % len(batches)])
    finite = torch.isfinite(last).item()  # waits for the device
    taken = time.perf_counter() - begun
    if not finite:
      raise SystemExit(f'child {k} is not finite')
    found['losses'].append([float(loss) for loss in losses])
    found['seconds'].append(taken)
    found['compiling'].append(first)
  print(json.dumps(found))


def cell(arch, params, settings, compiled):
  """Returns a training step of a language model of tree cells: SGD with clipping; the carry is kept between steps."""
  layers, batch, hidden = settings['layers'], settings['batch'], settings['hidden']
  everything = list(params.values())
  optimizer = torch.optim.SGD(everything, settings['lr'])
  recur = torch.compile(tree) if compiled else tree
  carries = [(torch.zeros(batch, hidden), torch.zeros(batch, hidden)) for _ in range(layers)]

  def step(drawn, whole=False):
    del whole  # the loss has no further terms
    (tokens,) = drawn
    tokens = tokens.long()
    x = F.embedding(tokens[:-1], params['embedding'])
    for i in range(layers):
      carries[i], x = unroll(
        recur, arch, params[f'cells.{i}.kernel'], params[f'cells.{i}.recurrent_kernel'], carries[i], x
      )
    logits = x.flatten(0, 1) @ params['softmax'] + params['softmax_bias']
    loss = F.cross_entropy(logits, tokens[1:].flatten())
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(everything, settings['clip'])
    optimizer.step()
    return loss.detach()

  return step


def unroll(recur, arch, kernel, recurrent, carry, xs):
  """Returns the detached final carry and the outputs of a cell over a sequence [T, B, in]."""
  (c, h), outputs = carry, []
  for gate in (xs @ kernel).unbind(0):  # the projections of x to the leaves, for all steps at once
    c, h = recur(arch, gate, h @ recurrent, c)
    outputs.append(h)
  return (c.detach(), h.detach()), torch.stack(outputs)


def tree(arch, x, h, c):
  """Returns c_t and h_t of a tree cell, from the projections of x and h_(t-1) to all leaves, and c_(t-1)."""
  combine, activate, inject, index = arch
  n = (len(combine) + 1) // 2
  pairs, values = list(zip(x.chunk(n, -1), h.chunk(n, -1), strict=True)), []
  for node in range(2 * n - 1):
    a, b = pairs[node] if node < n else values[2 * (node - n) : 2 * (node - n) + 2]
    value = COMBINE[combine[node]](a, b)
    if node == index[0]:
      c_new = value
    value = ACTIVATE[activate[node]](value)
    if node == index[1]:
      value = ACTIVATE[inject[1]](COMBINE[inject[0]](value, c))
    values.append(value)
  return c_new, values[-1]


def conv(arch, params, settings, compiled):
  """Returns a training step of an image classifier: Nesterov momentum; weight decay for kernels and softmax weights."""
  reads, ends = arch
  kernels = [
    nn.Parameter(params[f'layers.{i}.kernel'].detach().permute(3, 2, 0, 1).contiguous()) for i in range(len(reads))
  ]
  norms = [[params[f'layers.{i}.{name}'] for name in ('scale', 'shift')] for i in range(len(reads))]
  moving = [(torch.zeros_like(scale), torch.ones_like(scale)) for scale, _ in norms]
  softmax, bias = params['softmax'], params['softmax_bias']
  decayed = [*kernels, softmax]
  rest = [bias, *(each for pair in norms for each in pair)]
  groups = [{'params': decayed, 'weight_decay': settings['decay']}, {'params': rest}]
  optimizer = torch.optim.SGD(groups, settings['lr'], momentum=settings['momentum'], nesterov=True)

  def forward(x):
    outputs = []
    for i, kernel in enumerate(kernels):
      y = torch.cat([x if j < 0 else outputs[j] for j in reads[i]], 1)
      y = F.conv2d(y, kernel, padding=(kernel.shape[2] // 2, kernel.shape[3] // 2))
      outputs.append(
        F.relu(F.batch_norm(y, *moving[i], *norms[i], training=True, momentum=0.1, eps=settings['epsilon']))
      )
    return torch.cat([outputs[j] for j in ends], 1).mean((2, 3)) @ softmax + bias

  run = torch.compile(forward) if compiled else forward

  def step(drawn, whole=False):
    images, labels = drawn
    loss = F.cross_entropy(run(images.permute(0, 3, 1, 2).contiguous()), labels.long())
    with torch.no_grad():  # the optimizer's weight decay is the gradient of this penalty
      shown = loss + (0.5 * settings['decay'] * sum((each**2).sum() for each in decayed) if whole else 0.0)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return shown

  return step


CHILDREN = {'cell': cell, 'conv': conv}

if __name__ == '__main__':
  main(sys.argv[1], '--compile' in sys.argv)
