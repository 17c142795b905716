"""Runs an algorithm or a peer on a benchmark from many seeds. Searches with equal keys have the same optimum."""

import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common.launch import Check
from experiments.compare import peers
from nas_jax import search
from nas_jax.space import Kind
from nas_jax.systems import benchmarks, table
from nas_jax.systems.benchmarks import Benchmark
from nas_jax.types import Array, Batch, Key, Outcome


class Found(NamedTuple):
  """The results of n searches."""

  best: np.ndarray  # [n, E] the best reward after each evaluation; `Benchmark.worst` while all have failed
  test: np.ndarray | None  # [n, E] the metric `test` of the architecture with that reward; None without that metric
  different: np.ndarray  # [n] number of different token sequences in a search
  seconds: float  # of all searches together, compilation included


def ours(benchmark: Benchmark, cfg: table.Config, keys: Key, evaluations: int) -> Found:
  """Runs an algorithm of this library from each of the keys [n], all in one program."""
  start, s = time.perf_counter(), benchmarks.build(benchmark, cfg)
  _, (tokens, outcomes) = search.run_seeds(s, keys, -(-evaluations // cfg.m))
  drawn = np.asarray(tokens).reshape(len(keys), -1, benchmark.space.length)[:, :evaluations]
  return _found(benchmark, outcomes, drawn, time.perf_counter() - start)


def peer(benchmark: Benchmark, name: str, keys: Key, first_seed: int, evaluations: int, check: Check) -> Found:
  """Runs a peer from each of the keys [n], one after another, with the library's seeds from `first_seed` on.

  A child that fails gets the same reward as in a search of this library, see `search.outcomes.settle`. Tokens of slots
  that do not exist, given the other tokens, are set to 0.
  """
  start, space = time.perf_counter(), benchmark.space
  s = benchmarks.build(benchmark, table.Config(algorithm='random'))
  widths = [2 if slot.kind == Kind.LINK else slot.width for slot in (space.slots[i] for i in space.owner)]

  @jax.jit
  def score(state: search.SearchState, tokens: Array) -> tuple[Array, Outcome, Array, Array]:
    tokens = jnp.where(space.exists(tokens), tokens, 0)
    ids, _, child_keys = search.core.identify(state, 1)
    hidden = benchmark.hide(state.key)
    batch = Batch(ids, child_keys, tokens[None], space.decode_batch(tokens[None]), extra=hidden)
    outcome = benchmark.evaluate(hidden, batch)
    settled, worst = search.outcomes.settle(state.worst, batch, outcome)
    return tokens, outcome._replace(failed=settled.failed), settled.reward[0], worst

  outcomes, drawn = [], np.zeros((len(keys), evaluations, space.length), np.int32)
  for n, key in enumerate(keys):
    check()
    state, begun = s.init(key), peers.PEERS[name](widths, evaluations, (first_seed + n) % 2**32)
    for step in range(evaluations):
      drawn[n, step], outcome, earned, worst = score(
        state._replace(step=jnp.asarray(step)), np.array(begun.ask(), np.int32)
      )
      begun.tell(float(earned))
      state = state._replace(worst=worst)
      outcomes.append(jax.device_get(outcome))
  rows = jax.tree.map(lambda *leaves: np.stack(leaves).reshape(len(keys), evaluations, 1), *outcomes)
  return _found(benchmark, rows, drawn, time.perf_counter() - start)


def _found(benchmark: Benchmark, outcomes: Outcome, tokens: np.ndarray, seconds: float) -> Found:
  best, test = table.best_so_far(outcomes, tokens.shape[1])
  different = np.array([len(np.unique(each, axis=0)) for each in tokens])
  return Found(np.where(np.isfinite(best), best, benchmark.worst), test, different, seconds)
