"""Trains the same children in straightforward JAX. Input and output are as in `rivals`.

Each architecture is a jitted program that makes one step a call, on one device; all gradients are JAX's own.
  python -m experiments.bench.naive_child FOLDER
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
import functools
import json
import os
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from nas_jax import tree_cell
from nas_jax.space.tree import TreeArch
from nas_jax.types import Array, PyTree

COMPILERS = 8  # threads

# (params, carry, batch) -> loss, carry; and the initial carry
Network = tuple[Callable[[PyTree, PyTree, list[Array]], tuple[Array, PyTree]], PyTree]


def main(folder: str) -> None:
  """Trains all children of a job one after another, and prints the line of JSON."""
  with open(os.path.join(folder, 'job.json'), encoding='utf-8') as file:
    job = json.load(file)
  arrays = np.load(os.path.join(folder, 'batches.npz'), allow_pickle=False)
  batches = [[jnp.asarray(arrays[name][i]) for name in arrays.files] for i in range(len(arrays[arrays.files[0]]))]
  found: dict[str, list[Any]] = {'losses': [], 'seconds': [], 'compiling': []}

  def made(k: int) -> tuple[Any, PyTree, float]:
    """Returns the compiled step of child k, its initial state, and the seconds of compiling."""
    weights = np.load(os.path.join(folder, f'weights-{k}.npz'), allow_pickle=False)
    params = {name: jnp.asarray(weights[name]) for name in weights.files}
    step, state = trainer(job['settings'], *NETWORKS[job['kind']](job['archs'][k], job['settings']), params)
    begun = time.perf_counter()
    return step.lower(state, batches[0]).compile(), state, time.perf_counter() - begun

  # On an accelerator several programs are compiled at once, as only the time of the steps matters there.
  with ThreadPoolExecutor(1 if job['device'] == 'cpu' else COMPILERS) as threads:
    children = list(threads.map(made, range(len(job['archs']))))
  for k, (compiled, state, compiling) in enumerate(children):
    found['compiling'].append(compiling)
    losses = []
    for i in range(job['checked']):
      state, loss = compiled(state, batches[i])
      losses.append(float(loss))
    begun = time.perf_counter()
    for i in range(job['checked'], job['checked'] + job['steps']):
      state, loss = compiled(state, batches[i % len(batches)])
    if not np.isfinite(loss):
      raise SystemExit(f'child {k} is not finite')
    found['seconds'].append(time.perf_counter() - begun)
    found['losses'].append(losses)
  print(json.dumps(found))


def trainer(settings: dict[str, Any], loss: Callable[..., Any], carry: PyTree, params: PyTree) -> tuple[Any, PyTree]:
  """Returns a jitted step (state, batch) -> (state, loss), and the initial state."""
  momentum = settings.get('momentum')
  clip = [optax.clip_by_global_norm(settings['clip'])] if 'clip' in settings else []
  optimizer = optax.chain(*clip, optax.sgd(settings['lr'], momentum, nesterov=momentum is not None))

  @jax.jit
  def step(state: PyTree, batch: list[Array]) -> tuple[PyTree, Array]:
    params, opt_state, carry = state
    (value, carry), grads = jax.value_and_grad(loss, has_aux=True)(params, carry, batch)
    updates, opt_state = optimizer.update(grads, opt_state)
    return (optax.apply_updates(params, updates), opt_state, carry), value

  return step, (params, optimizer.init(params), carry)


def cell(arch: list[Any], settings: dict[str, Any]) -> Network:
  """Returns the loss and the initial carry of a language model of tree cells."""
  static = TreeArch(*map(tuple, arch))
  layers, zeros = settings['layers'], jnp.zeros((settings['batch'], settings['hidden']))

  def loss(params: PyTree, carries: PyTree, drawn: list[Array]) -> tuple[Array, PyTree]:
    (tokens,), after = drawn, []
    x = params['embedding'][tokens[:-1]]
    for i in range(layers):
      own = {name: params[f'cells.{i}.{name}'] for name in ('kernel', 'recurrent_kernel')}
      carry, x = jax.lax.scan(functools.partial(tree_cell.apply, own, static), carries[i], x)
      after.append(carry)
    logits = x @ params['softmax'] + params['softmax_bias'][None, None]
    return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[1:]).mean(), after

  return loss, [(zeros, zeros)] * layers


def conv(arch: list[Any], settings: dict[str, Any]) -> Network:
  """Returns the loss of an image classifier, without the moving statistics, which training does not need."""
  reads, ends = arch

  def loss(params: PyTree, carry: PyTree, drawn: list[Array]) -> tuple[Array, PyTree]:
    (images, labels), outputs = drawn, list[Array]()
    for i, sources in enumerate(reads):
      kernel, scale, shift = (params[f'layers.{i}.{name}'] for name in ('kernel', 'scale', 'shift'))
      y = jnp.concatenate([images if j < 0 else outputs[j] for j in sources], -1)
      y = jax.lax.conv_general_dilated(y, kernel, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
      mean, variance = y.mean((0, 1, 2), keepdims=True), y.var((0, 1, 2), keepdims=True)
      y = (y - mean) * jax.lax.rsqrt(variance + settings['epsilon']) * scale[None, None, None] + shift[None, None, None]
      outputs.append(jax.nn.relu(y))
    features = jnp.concatenate([outputs[j] for j in ends], -1).mean((1, 2))
    logits = features @ params['softmax'] + params['softmax_bias'][None]
    decayed = [params['softmax'], *(params[f'layers.{i}.kernel'] for i in range(len(reads)))]
    penalty = 0.5 * settings['decay'] * sum(jnp.sum(weights**2) for weights in decayed)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean() + penalty, carry

  return loss, ()


NETWORKS: dict[str, Callable[..., Network]] = {'cell': cell, 'conv': conv}

if __name__ == '__main__':
  main(sys.argv[1])
