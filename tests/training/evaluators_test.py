"""Specialised children, each with its own program, equal the generic ones."""

import itertools
import json
import types
from typing import NamedTuple
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import testing

from experiments.common import from_scratch, workdirs
from experiments.common.progress import Progress
from experiments.common.stages import Run
from experiments.common.systems import CELL
from nas_jax import space
from nas_jax.controller import uniform_controller
from nas_jax.published import LSTM, NASCELL
from nas_jax.search import journal
from nas_jax.systems import cell
from nas_jax.training import evaluators, fit, layout, timing
from nas_jax.training.child import Child
from nas_jax.training.recovery import NO_RECOVERY
from nas_jax.types import Batch


def both(batch, **changes):
  """Returns the metrics of a batch trained by each kind of program."""
  for kind in ('generic', 'specialised'):
    cfg = testing.cell_config(child_program=kind, score_batch=3, **changes)
    yield evaluators.build(cell.make_problem(cfg, testing.text()))(batch).metrics


def of_tokens(cell_space, tokens):
  tokens = jnp.asarray(tokens)
  keys = jax.random.split(jax.random.key(1), len(tokens))
  return Batch(jnp.arange(len(tokens)), keys, tokens, cell_space.decode_batch(tokens))


@pytest.mark.long
def test_random_cells_in_double_precision(x64):
  cell_space = space.tree_cell_space(4)
  tokens = jax.vmap(lambda key: uniform_controller(cell_space).sample((), key))(jax.random.split(jax.random.key(0), 5))
  traced, static = both(of_tokens(cell_space, tokens), base=4, steps=50, lr=0.01, layers=2)
  assert (traced['failed'] == 0).all() and len(traced['failed']) == 5  # one more than the four devices
  for name in ('perplexity', 'loss'):
    np.testing.assert_allclose(static[name], traced[name], rtol=1e-9)


@pytest.mark.long
def test_published_cells_in_single_precision():
  cell_space = space.tree_cell_space(8)
  tokens = [cell_space.encode(arch) for arch in (NASCELL, LSTM)]
  traced, static = both(of_tokens(cell_space, tokens), base=8, hidden=8, steps=100, lr=0.01)
  for name in ('perplexity', 'loss'):
    np.testing.assert_allclose(static[name], traced[name], rtol=1e-4)


class Sized(NamedTuple):
  """An architecture that is only a number of weights."""

  width: tuple[int, ...]


def sized_child(arch):
  """A child whose weights all equal its step."""
  return Child(
    lambda _, key: jnp.zeros(arch.width) + jax.random.uniform(key, arch.width),
    lambda params: (),
    lambda data, key, step: (),
    lambda params, _, carry, batch, key: (params.sum(), carry),
    lambda params, _, carry, data: {'width': jnp.asarray(float(arch.width[0]))},
  )


def test_a_child_too_large_for_the_machine_fails_alone():
  def programs(arch, mesh):
    return fit.fitter(sized_child(arch), lambda _: optax.sgd(0.1), 2, 1, mesh)

  evaluate = evaluators.static_programs(programs, (), lambda metrics: metrics['width'], jax.devices()[:2])

  def batch(*widths):
    ids = jnp.arange(len(widths))
    # Too wide a number for int32 stands for itself: only the static architecture is read.
    return Batch(ids, jax.random.split(jax.random.key(0), len(widths)), ids, Sized(np.array(widths)[:, None]))

  with pytest.warns(UserWarning, match='Out of memory'):
    outcome = evaluate(batch(3, 1 << 44, 5))
  np.testing.assert_array_equal(outcome.reward, [3, 0, 5])
  assert [fit.Status(code).reason for code in outcome.metrics['failed']] == ['', 'out of memory', '']
  with pytest.warns(UserWarning, match='Out of memory'):
    outcome = evaluate(batch(1 << 44))
  np.testing.assert_array_equal(outcome.reward, [0])
  assert [line['failed'] for line in journal.records(batch(1 << 44), outcome, 1.0)] == ['out of memory']


@pytest.mark.parametrize(('room', 'calls', 'failed'), [(4, [4], 0), (2, [4, 2, 2], 0), (0, [4, 2, 1, 1, 2, 1, 1], 4)])
def test_children_that_are_too_many_for_the_memory_are_halved(room, calls, failed):
  """One program trains all of them, and memory suffices for `room` at once."""
  made = fit.fitter(sized_child(Sized((2,))), lambda _: optax.sgd(0.1), 2, 1, layout.child_mesh(jax.devices()[:1]))
  asked = []

  def chunk(data, steps, states, archs, keys):
    asked.append(len(keys))
    if len(keys) > room:
      raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: out of memory while trying to allocate\n...')
    return made.chunk(data, steps, states, archs, keys)

  evaluate = evaluators.from_scratch(made._replace(chunk=chunk, steps_per_call=2), (), lambda metrics: metrics['width'])
  ids = jnp.arange(4)
  batch = Batch(ids, jax.random.split(jax.random.key(0), 4), ids, ids[:, None])
  with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter('always')
    outcome = evaluate(batch)
  assert asked == calls and len(said) == len([n for n in calls if n > room])
  assert (outcome.metrics['failed'] == (fit.Status.NO_MEMORY if failed else 0)).all() and len(outcome.reward) == 4
  np.testing.assert_array_equal(outcome.reward, [0 if failed else 2] * 4)


@pytest.mark.parametrize(('room', 'calls'), [(4, [4]), (2, [2, 2]), (1, [1, 1, 1, 1])])
def test_children_are_as_many_as_the_compiled_program_says_fit(room, calls, monkeypatch):
  """The device has as much memory as the program for `room` children plans to use. No larger program is run."""
  made = fit.fitter(sized_child(Sized((64,))), lambda _: optax.sgd(0.1), 2, 1, layout.child_mesh(jax.devices()[:1]))
  asked, ids = [], jnp.arange(4)
  batch = Batch(ids, jax.random.split(jax.random.key(0), 4), ids, ids[:, None])

  def planned(m):
    return made.planned((), *fit.begin(made, batch.archs[:m], batch.keys[:m]))

  assert planned(4) >= planned(2) + 2 * 64 * 4 and planned(2) >= planned(1) + 64 * 4, 'the weights of each child'
  monkeypatch.setattr(layout, 'memory_limit', lambda mesh: planned(room))

  def chunk(data, steps, states, archs, keys):
    asked.append(len(keys))
    return made.chunk(data, steps, states, archs, keys)

  evaluate = evaluators.from_scratch(made._replace(chunk=chunk, steps_per_call=2), (), lambda metrics: metrics['width'])
  outcome = evaluate(batch)
  assert asked == calls and (outcome.metrics['failed'] == 0).all()
  np.testing.assert_array_equal(outcome.reward, [64] * 4)


def test_a_cpu_sets_no_limit():
  assert layout.memory_limit(layout.child_mesh()) == np.inf


def test_a_program_of_all_children_that_cannot_be_compiled_is_no_childs_failure():
  made = fit.fitter(sized_child(Sized((2,))), lambda _: optax.sgd(0.1), 2, 1, layout.child_mesh(jax.devices()[:1]))

  def chunk(*_):
    raise jax.errors.JaxRuntimeError('INTERNAL: no such instruction')

  ids = jnp.arange(2)
  evaluate = evaluators.from_scratch(made._replace(chunk=chunk), (), lambda metrics: metrics['width'])
  with pytest.raises(jax.errors.JaxRuntimeError, match='no such instruction'):
    evaluate(Batch(ids, jax.random.split(jax.random.key(0), 2), ids, ids[:, None]))


def test_a_child_that_cannot_be_compiled_fails_alone():
  def programs(arch, mesh):
    made = fit.fitter(sized_child(arch), lambda _: optax.sgd(0.1), 2, 1, mesh)
    if arch.width[0] == 4:  # as the compiler does
      made = made._replace(init=lambda *_: jax.jit(broken)())
    return made

  def broken():
    raise jax.errors.JaxRuntimeError('INTERNAL: no such instruction\nat ...')

  evaluate = evaluators.static_programs(programs, (), lambda metrics: metrics['width'], jax.devices()[:2])
  ids = jnp.arange(2)
  with pytest.warns(UserWarning, match='a child failed: INTERNAL: no such instruction$'):
    outcome = evaluate(Batch(ids, jax.random.split(jax.random.key(0), 2), ids, Sized(np.array([[4], [2]]))))
  np.testing.assert_array_equal(outcome.reward, [0, 2])
  assert fit.Status(outcome.metrics['failed'][0]).reason == 'cannot be compiled or run'


def test_a_child_starts_from_the_one_before_unless_that_failed():
  started = []

  def programs(arch, mesh):
    made = fit.fitter(sized_child(arch), lambda _: optax.sgd(0.1), 2, 1, mesh)
    return made._replace(chunk=broken) if arch.width[0] == 3 else made

  def broken(*_):
    raise jax.errors.JaxRuntimeError('INTERNAL: no such instruction')

  def warm_start(fresh, before):
    started.append((fresh.shape, before.shape))
    return fresh.at[:, : before.shape[1]].set(before)

  evaluate = evaluators.warm_started(programs, (), lambda metrics: metrics['width'], warm_start, jax.devices()[0])
  ids = jnp.arange(5)
  with pytest.warns(UserWarning, match='no such instruction'):
    outcome = evaluate(
      Batch(ids, jax.random.split(jax.random.key(0), 5), ids, Sized(np.array([[1], [2], [3], [4], [5]])))
    )
  np.testing.assert_array_equal(outcome.reward, [1, 2, 0, 4, 5])
  assert started == [((1, 2), (1, 1)), ((1, 3), (1, 2)), ((1, 5), (1, 4))]


def test_what_is_faster_is_measured_once_and_noted(tmp_path, monkeypatch):
  flags, text = testing.cell_config(child_program='auto'), testing.text()

  def settled(cfg):
    opened = workdirs.open_config(str(tmp_path), cfg)
    return from_scratch.settle_program(
      Run(
        CELL, opened, text, cell.make_problem(cfg, text), str(tmp_path), NO_RECOVERY, {}, lambda cfg: text, Progress()
      )
    )

  monkeypatch.setattr(timing, 'of_problem', lambda problem, *rest: timing.Timing(2.0, 1.0))
  run = settled(flags)
  assert run.cfg.child_program == run.problem.program == 'specialised'
  assert json.loads((tmp_path / 'config.json').read_text())['child_program'] == 'specialised'
  # The same flags again mean what was settled, and nothing is measured; others do not fit.
  monkeypatch.setattr(timing, 'of_problem', None)
  assert settled(flags).problem.program == 'specialised'
  with pytest.raises(ValueError, match=r'child_program \(specialised -> generic\)'):
    settled(testing.cell_config(child_program='generic'))


def test_steps_are_not_lost_in_what_compiling_takes(monkeypatch):
  """Steps take .01 or .015 s, in batches of two; compilations take 5 s plus or minus half. 50 steps are too few."""
  now, a_step = [0.0], {'generic': 0.015, 'specialised': 0.01}
  compiling = itertools.cycle((5.0, 5.0, 5.0, 5.25, 5.0, 4.75))
  monkeypatch.setattr(timing, 'time', types.SimpleNamespace(perf_counter=lambda: now[0]))

  def build(kind, steps):
    calls = itertools.count()

    def evaluate(batch):
      del batch
      now[0] += (next(calls) == 0 or kind == 'specialised') * next(compiling) + steps * a_step[kind]

    return evaluate

  batch = Batch((), np.zeros(2), (), ())
  found = timing.time_programs(build, batch, 2000, 100)
  assert found.generic == pytest.approx((2000 * 0.015) / 2 + 0.05, abs=0.01)
  assert found.specialised == pytest.approx((2000 * 0.01 + 5) / 2, rel=0.1)
  assert timing.time_programs(build, batch, 2000, 100, ('specialised',)).generic == np.inf


@pytest.mark.long
def test_timing_counts_the_compilation_of_every_specialised_child():
  cfg = testing.cell_config(steps=3, max_children=1000)
  found = timing.of_problem(cell.make_problem(cfg, testing.text()), jax.random.key(0), cfg.m, cfg.max_children)
  assert 0 < found.generic < found.specialised  # three steps are nothing beside a compilation
