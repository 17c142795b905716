"""The same children in PyTorch, one after another, in its default layout; `rivals` says what is read and printed.

It wants PyTorch and NumPy alone, so any Python that has them will do.
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
  """All children of a job."""
  with open(os.path.join(folder, 'job.json'), encoding='utf-8') as file:
    job = json.load(file)
  arrays = np.load(os.path.join(folder, 'batches.npz'))
  batches = [[torch.tensor(arrays[name][i]) for name in arrays.files] for i in range(len(arrays[arrays.files[0]]))]
  found = {'losses': [], 'seconds': [], 'compiling': []}
  for k, arch in enumerate(job['archs']):
    weights = np.load(os.path.join(folder, f'weights-{k}.npz'))
    params = {name: nn.Parameter(torch.tensor(weights[name])) for name in weights.files}
    step = CHILDREN[job['kind']](arch, params, job['settings'], compiled)
    begun = time.perf_counter()
    losses = [step(batches[0])]
    first = time.perf_counter() - begun
    losses += [step(batches[i]) for i in range(1, job['checked'])]
    begun = time.perf_counter()
    for i in range(job['checked'], job['checked'] + job['steps']):
      last = step(batches[i % len(batches)])
    taken = time.perf_counter() - begun
    if not torch.isfinite(last):
      raise SystemExit(f'child {k} is not finite')
    found['losses'].append([float(loss) for loss in losses])
    found['seconds'].append(taken)
    found['compiling'].append(first)
  print(json.dumps(found))


def cell(arch, params, settings, compiled):
  """A step of a language model of tree cells: SGD, the gradient clipped, the state carried on."""
  layers, batch, hidden = settings['layers'], settings['batch'], settings['hidden']
  everything = list(params.values())
  optimizer = torch.optim.SGD(everything, settings['lr'])
  recur = torch.compile(tree) if compiled else tree
  carries = [(torch.zeros(batch, hidden), torch.zeros(batch, hidden)) for _ in range(layers)]

  def step(drawn):
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
  """A cell over a sequence [T, B, in]: the carry after it, cut off from the gradient, and its outputs."""
  (c, h), outputs = carry, []
  for gate in (xs @ kernel).unbind(0):  # what x gives to the leaves, for all steps at once
    c, h = recur(arch, gate, h @ recurrent, c)
    outputs.append(h)
  return (c.detach(), h.detach()), torch.stack(outputs)


def tree(arch, x, h, c):
  """c_t and h_t of a tree cell from what x and h_(t-1) give to its leaves, side by side."""
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


CHILDREN = {'cell': cell}

if __name__ == '__main__':
  main(sys.argv[1], '--compile' in sys.argv)
