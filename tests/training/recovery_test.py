"""Trainings that are interrupted, given up, or restored."""

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.common import control_group, recovery_files
from nas_jax import config
from nas_jax.space import ChainArch
from nas_jax.training import evaluators, fit, layout
from nas_jax.training.child import Child
from nas_jax.training.recovery import NO_RECOVERY, Limits, Stopped, fingerprint
from nas_jax.types import Batch

pytestmark = pytest.mark.filterwarnings('ignore::DeprecationWarning')
ROOT = pathlib.Path(__file__).parents[2]
STEPS, M = 6, 3
DEVICES = 2


def child():
  """A child whose weights depend on its architecture, on all batches and on all earlier steps."""

  def loss(params, arch, carry, batch, key):
    noise = jax.random.normal(key, (3,))
    return jnp.sum(jnp.sin(params * arch + noise) ** 2), carry + batch

  return Child(
    lambda arch, key: jax.random.normal(key, (3,)),
    lambda params: jnp.zeros(()),
    lambda data, key, step: jax.random.uniform(key) + data,
    loss,
    lambda params, arch, carry, data: {'size': jnp.sum(params) + carry},
  )


@pytest.fixture(scope='module')
def programs():
  mesh = layout.child_mesh(jax.devices()[:DEVICES])
  return fit.fitter(child(), lambda arch: optax.adam(0.1), STEPS, 1, mesh, scored=2)


ARCHS = jnp.array([1.0, 2.0, 3.0])
KEYS = jax.random.split(jax.random.key(0), M)
DATA = jnp.asarray(0.5)


def batch():
  ids = jnp.arange(M)
  return Batch(ids, KEYS, ids[:, None], ARCHS)


def reward(metrics):
  return metrics['size']


def stopping(after):
  """Returns a check that raises `Stopped` after `after` calls."""
  left = [after]

  def check():
    left[0] -= 1
    if left[0] < 0:
      raise Stopped

  return check


def kept(folder, check=lambda: None, **limits):
  return recovery_files.recovery(str(folder), Limits(**limits), check)


@pytest.fixture(scope='module')
def whole(programs):
  return evaluators.from_scratch(programs, DATA, reward)(batch())


@pytest.mark.parametrize('after', range(STEPS))
def test_stopped_anywhere_it_ends_the_same(programs, whole, tmp_path, after):
  """The check is called at the start and after each call but the last, and an interrupted state is saved."""
  with pytest.raises(Stopped):
    evaluators.from_scratch(programs, DATA, reward, kept(tmp_path, stopping(after)))(batch())
  assert [path.name for path in (tmp_path / 'training').glob('*/*')] == ([str(after)] if after else [])
  outcome = evaluators.from_scratch(programs, DATA, reward, kept(tmp_path))(batch())
  np.testing.assert_array_equal(outcome.reward, whole.reward)
  assert not list((tmp_path / 'training').glob('*/*'))  # what is over is not kept


def test_what_is_over_is_not_trained_again(programs, whole, tmp_path):
  evaluators.from_scratch(programs, DATA, reward, kept(tmp_path))(batch())
  broken = programs._replace(chunk=None)  # would fail
  outcome = evaluators.from_scratch(broken, DATA, reward, kept(tmp_path))(batch())
  np.testing.assert_array_equal(outcome.reward, whole.reward)
  for name in ('size', 'loss', 'failed'):
    assert outcome.metrics[name].dtype == whole.metrics[name].dtype
    np.testing.assert_array_equal(outcome.metrics[name], whole.metrics[name])


def test_long_trainings_are_kept_now_and_then(programs, tmp_path, monkeypatch):
  monkeypatch.setattr(recovery_files, 'SECONDS', 0)
  seen = []

  def look():
    seen.append(sorted(path.name for path in (tmp_path / 'training').glob('*/*')))

  evaluators.from_scratch(programs, DATA, reward, kept(tmp_path, look))(batch())
  assert seen[:5] == [[], [], ['1'], ['1', '2'], ['2', '3']]  # after a call, before it is kept; the newest two stay


def test_a_name_stands_for_all_that_decides_the_outcome(programs, tmp_path):
  recovery = kept(tmp_path)
  names = []
  spy = recovery._replace(end=lambda name, metrics: names.append(name), recall=lambda name: None)

  def trained(archs=ARCHS, keys=KEYS, made=programs):
    ids = jnp.arange(len(keys))
    evaluators.from_scratch(made, DATA, reward, spy)(Batch(ids, keys, ids[:, None], archs))

  trained()
  trained(archs=ARCHS.at[2].set(4.0))
  trained(keys=jax.random.split(jax.random.key(1), M))
  trained(made=programs._replace(steps=STEPS + 1))
  trained(made=fit.fitter(child(), lambda arch: optax.sgd(0.1), STEPS, 1, programs.mesh))  # another optimizer's state
  assert len(set(names)) == 5
  trained()
  assert names[-1] == names[0]


def test_fingerprints_by_parts():
  same = fingerprint((1, 'a'), jnp.ones(2), jax.random.key(0))
  assert same == fingerprint((1, 'a'), jnp.ones(2), jax.random.key(0))
  others = [
    fingerprint((1, 'b'), jnp.ones(2), jax.random.key(0)),
    fingerprint((1, 'a'), jnp.ones(3), jax.random.key(0)),
    fingerprint((1, 'a'), jnp.ones(2, int), jax.random.key(0)),
    fingerprint((1, 'a'), jnp.ones(2), jax.random.key(1)),
    fingerprint((1, 'a', None), (jnp.ones(2),), jax.random.key(0)),
  ]
  assert len({same, *others}) == 6


def test_children_that_take_too_long_fail_and_are_not_tried_again(programs, whole, tmp_path):
  slow = programs._replace(chunk=lambda *args: (time.sleep(0.02), programs.chunk(*args))[1])
  evaluate = evaluators.from_scratch(slow, DATA, reward, kept(tmp_path, child_timeout=0.02 / M))
  outcome = evaluate(batch())
  np.testing.assert_array_equal(outcome.reward, np.zeros(M))
  assert {fit.Status(code).reason for code in outcome.metrics['failed']} == {'took too long'}
  again = evaluators.from_scratch(programs._replace(chunk=None), DATA, reward, kept(tmp_path))(batch())
  np.testing.assert_array_equal(again.metrics['failed'], outcome.metrics['failed'])
  # Enough time changes nothing; compiling does not count.
  patient = NO_RECOVERY._replace(timeout=60.0)
  np.testing.assert_array_equal(evaluators.from_scratch(programs, DATA, reward, patient)(batch()).reward, whole.reward)


def own(arch, mesh):
  one = child()
  fixed = one._replace(
    init=lambda _, key: one.init(arch, key),
    loss=lambda params, _, carry, batch, key: one.loss(params, arch[0], carry, batch, key),
  )
  return fit.fitter(fixed, lambda _: optax.adam(0.1), STEPS, 1, mesh)


def alone(folder, check=lambda: None, made=own, **limits):
  return evaluators.static_programs(made, DATA, reward, jax.devices()[:DEVICES], kept(folder, check, **limits))


def static_batch():
  ids = jnp.arange(M)
  return Batch(ids, KEYS, ids[:, None], ChainArch(np.array([[1.0], [2.0], [3.0]])))


def own_arch(arch, mesh):
  return own(arch.layers, mesh)


@pytest.mark.parametrize('after', [4, *(pytest.param(calls, marks=pytest.mark.long) for calls in (0, 9, 15))])
def test_programs_of_their_own_are_stopped_and_gone_on_with_one_by_one(tmp_path, whole, after):
  with pytest.raises(Stopped):
    alone(tmp_path, stopping(after), own_arch)(static_batch())
  outcome = alone(tmp_path, made=own_arch)(static_batch())
  np.testing.assert_array_equal(
    outcome.reward, evaluators.static_programs(own_arch, DATA, reward, jax.devices()[:1])(static_batch()).reward
  )
  np.testing.assert_allclose(outcome.reward, whole.reward, rtol=1e-5)  # the same children, generic
  lines = [json.loads(line) for line in (tmp_path / 'started.jsonl').read_text().splitlines()]
  assert sum('metrics' in line for line in lines) == M  # none ended twice


class Died(BaseException):
  """The end of a process, without any handlers or cleaning up."""


def died():
  raise Died


def dying(programs, who, die=died):
  """Returns programs that end the process when they train the child of the architecture `who`."""

  def chunk(data, steps, states, archs, keys):
    if bool(((archs == who) & (states.failed == fit.Status.OK)).any()):
      die()
    return programs.chunk(data, steps, states, archs, keys)

  return programs._replace(chunk=chunk)


def processes(evaluate, at_most, folder, trace='Fatal Python error: Aborted'):
  """Starts one process after another until one ends by itself. Returns how many died, and the outcome.

  A process that dies leaves the trace in crash.txt of the folder; '' is that of one that was killed.
  """
  for count in range(at_most):
    try:
      return count, evaluate()
    except Died:
      (folder / 'crash.txt').write_text(trace)
  return at_most, None


@pytest.mark.parametrize(('starts', 'deaths'), [(3, 3), (2, 2), (1, 2)])
def test_the_child_that_the_process_dies_of_is_found(programs, whole, tmp_path, starts, deaths):
  """All children start together except in the last process. The rewards of siblings are then bit-identical."""
  fatal = dying(programs, 2.0)
  count, outcome = processes(
    lambda: evaluators.from_scratch(fatal, DATA, reward, kept(tmp_path, child_starts=starts))(batch()), 6, tmp_path
  )
  assert count == deaths
  assert [fit.Status(code).reason for code in outcome.metrics['failed']] == ['', 'the process died of it', '']
  np.testing.assert_array_equal(outcome.reward, np.where(np.arange(M) == 1, 0.0, whole.reward))


def test_a_process_may_die_as_often_as_one_likes_if_so_asked(programs, tmp_path):
  fatal = dying(programs, 2.0)
  count, _ = processes(
    lambda: evaluators.from_scratch(fatal, DATA, reward, kept(tmp_path, child_starts=0))(batch()), 6, tmp_path
  )
  assert count == 6


@pytest.mark.parametrize('limits', [{}, {'child_starts': 1}])
def test_a_process_that_is_killed_fails_no_child(programs, whole, tmp_path, limits):
  """SIGKILL leaves no trace, however often it comes and whatever is trained then."""
  fatal = dying(programs, 2.0)
  count, _ = processes(
    lambda: evaluators.from_scratch(fatal, DATA, reward, kept(tmp_path, **limits))(batch()), 5, tmp_path, trace=''
  )
  assert count == 5
  outcome = evaluators.from_scratch(programs, DATA, reward, kept(tmp_path, **limits))(batch())
  np.testing.assert_array_equal(outcome.reward, whole.reward)


def test_siblings_with_programs_of_their_own_are_not_blamed(tmp_path):
  """While the crashing child and a long sibling train at the same time, it is unknown which of them crashes."""
  lines = [{'process': 'a', 'kills': 0}, *({'training': name, 'calls': 0} for name in 'xy'), {'died': 'Aborted'}]
  found = recovery_files.history(lines * 5)
  assert found.suspects == {'x', 'y'} and not found.crashes
  alone = [{'process': 'a', 'kills': 0}, {'training': 'x', 'calls': 0}, {'died': 'Aborted'}]
  assert recovery_files.history(lines + alone * 2).crashes == {'x': 2}


def test_history_by_hand():
  begun, died, process = {'training': 'x', 'calls': 0}, {'died': 'Aborted'}, {'process': 'a', 'kills': 0}
  metrics = {'training': 'x', 'metrics': {'failed': ['int32', [0]]}}
  for lines, crashes in (
    ([process, begun, process, begun, process, begun], 0),  # killed
    ([process, begun, died, process, begun, died], 2),
    ([process, begun, {'training': 'x', 'kept': 3}, died], 0),
    ([process, begun, died, process, begun, {'training': 'x', 'kept': 3}, process, begun, died], 1),
    ([process, begun, metrics, died], 0),
    ([process, begun, {'training': 'x', 'left': True}, died], 0),
    ([process, begun, process, died], 0),  # before anything was begun
    ([begun, begun, begun, begun], 0),  # as earlier versions wrote of any end
  ):
    assert recovery_files.history(lines).crashes['x'] == crashes, lines


def test_out_of_memory_kills_are_counted(tmp_path, monkeypatch):
  group = tmp_path / 'pod'
  group.mkdir()
  (tmp_path / 'groups').write_text('0::/pod\n')
  count = control_group.own

  def kills(number, name='memory.events'):
    (group / name).write_text(f'low 0\noom 7\noom_kill {number}\n')
    return count(str(tmp_path / 'groups'), str(tmp_path))

  assert kills(3).kills == 3 and kills(3) == kills(3) and kills(4).name == kills(3).name
  assert count(str(tmp_path / 'none'), str(tmp_path / 'none')) == ('', 0)
  (group / 'memory.events').unlink()
  (tmp_path / 'groups').write_text('9:cpu:/\n4:memory:/pod\n')
  (tmp_path / 'memory').symlink_to(tmp_path)
  assert kills(5, 'memory.oom_control').kills == 5
  # A process that ends while a child is trained alone fails it if the kernel counted a kill, and else does not.
  workdir = tmp_path / 'run'
  workdir.mkdir()
  for number in (0, 0, 1, 2):
    monkeypatch.setattr(control_group, 'own', lambda number=number: control_group.ControlGroup('a', number))
    recovery = kept(workdir)
    recovery.begin('x', jnp.zeros(()))
  assert recovery.failed_starts('x') == 2
  monkeypatch.setattr(control_group, 'own', lambda: control_group.ControlGroup('another', 9))
  assert kept(workdir).failed_starts('x') == 2


@pytest.mark.parametrize(
  ('number', 'crashed'), [('SIGKILL', 0), ('SIGTERM', 0), ('SIGINT', 0), ('SIGSEGV', 1), ('SIGABRT', 1)]
)
def test_the_signals_of_a_crash_leave_a_trace(tmp_path, number, crashed):
  code = (
    'import os, signal, sys; from experiments.common import recovery_files as r\n'
    'with r.recording_crashes(sys.argv[1]):\n'
    '  signal.signal(signal.SIGINT, signal.SIG_DFL); os.kill(os.getpid(), signal.' + number + ')'
  )
  kept(tmp_path).begin('x', jnp.zeros(()))
  ended = subprocess.run([sys.executable, '-c', code, tmp_path], cwd=ROOT, capture_output=True, timeout=300)
  assert ended.returncode == -getattr(signal, number), ended.stderr
  for _ in range(2):  # a trace counts once
    assert kept(tmp_path).failed_starts('x') == crashed


def test_a_training_that_gets_on_is_not_begun_in_vain(programs, whole, tmp_path, monkeypatch):
  """The process dies again and again for other reasons, each time a little later."""
  monkeypatch.setattr(recovery_files, 'SECONDS', 0)

  def mortal(calls):
    left = [calls]

    def chunk(*args):
      left[0] -= 1
      if left[0] < 0:
        raise Died
      return programs.chunk(*args)

    return programs._replace(chunk=chunk)

  def evaluate():
    return evaluators.from_scratch(mortal(2), DATA, reward, kept(tmp_path, child_starts=1))(batch())

  count, outcome = processes(evaluate, 10, tmp_path)
  assert count == 2  # two of six calls each time
  np.testing.assert_array_equal(outcome.reward, whole.reward)


def test_a_child_of_its_own_program_is_failed_alone(tmp_path):
  def fatal(arch, mesh):
    made = own_arch(arch, mesh)
    return made._replace(chunk=killed) if arch.layers[0] == 2.0 else made

  def killed(*_):
    raise Died

  count, outcome = processes(lambda: alone(tmp_path, made=fatal)(static_batch()), 9, tmp_path)
  # Three times alone, before which it may have been one of two.
  assert count in (3, 4)
  assert [fit.Status(code).reason for code in outcome.metrics['failed']] == ['', 'the process died of it', '']


def test_limits_are_checked():
  with pytest.raises(ValueError, match='child_starts'):
    config.check(dataclasses.replace(Limits(), child_starts=-1))


@pytest.mark.long
def test_a_child_that_aborts_the_process(programs, whole, tmp_path):
  """With real processes, which one child ends as a crash in native code does."""
  code = (
    'import os, jax; jax.config.update("jax_num_cpu_devices", 4); import recovery_test as k;'
    'made = k.fit.fitter(k.child(), lambda arch: k.optax.adam(0.1), k.STEPS, 1,'
    ' k.layout.child_mesh(jax.devices()[: k.DEVICES]), scored=2);'
    f'trace = k.recovery_files.recording_crashes({str(tmp_path)!r}); trace.__enter__();'
    f'keeper = k.kept({str(tmp_path)!r});'
    'outcome = k.evaluators.from_scratch(k.dying(made, 2.0, os.abort), k.DATA, k.reward, keeper)(k.batch());'
    'print(outcome.reward.tolist(), outcome.metrics["failed"].tolist())'
  )
  env = {
    **os.environ,
    'PYTHONPATH': os.pathsep.join([str(ROOT), str(ROOT / 'tests'), str(ROOT / 'tests' / 'training')]),
  }
  for starts in range(4):
    ended = subprocess.run([sys.executable, '-c', code], env=env, capture_output=True, text=True, timeout=300)
    assert ended.returncode == (-signal.SIGABRT if starts < 3 else 0), ended.stderr[-2000:]
  wanted = np.where(np.arange(M) == 1, 0.0, whole.reward)
  assert ended.stdout.strip() == f'{wanted.astype(np.float32).tolist()} {[0, int(fit.Status.CRASHED), 0]}'
