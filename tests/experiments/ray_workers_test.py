"""Workers of a search, some of which are lost, with a fake of Ray and with Ray itself."""

import collections
import importlib.util
import os
import pathlib
import random
import signal
import subprocess
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import testing
from tools import kill_ray

from experiments import cell_search, enas_search
from experiments.common import ray_workers
from nas_jax import arrays, crew, files, hosts, replicas, search
from nas_jax.training.recovery import Stopped
from nas_jax.types import Batch, Outcome

ROOT = pathlib.Path(__file__).parents[2]
SPACE = testing.SPACES['choice']


def evaluate(batch):
  reward = jnp.sin(batch.tokens @ jnp.array([1.7, 0.3, 2.1]) + jax.vmap(jax.random.uniform)(batch.keys))
  return Outcome(reward, {'loss': np.asarray(2 * reward)}, failed=jnp.zeros(len(reward), bool))


class FakeRay:
  """A fake of Ray that answers calls in any order. `lose` of them fail as if their actor had died."""

  def __init__(self, seed=0, lose=0.0):
    self.rng, self.lose, self.calls, self.spawned = random.Random(seed), lose, {}, collections.Counter()
    errors = {name: type(name, (Exception,), {}) for name in ('RayActorError', 'RayTaskError')}
    errors['ActorDiedError'] = type('ActorDiedError', (errors['RayActorError'],), {})
    self.exceptions = types.SimpleNamespace(**errors)

  def spawn(self, index):
    self.spawned[index] += 1

    def method(call):
      def remote(*args):
        number = len(self.calls)
        self.calls[number] = call, args
        return number

      return types.SimpleNamespace(remote=remote)

    return types.SimpleNamespace(ready=method(self.ready), train=method(self.train))

  def wait(self, refs, num_returns, timeout):
    assert refs and num_returns == 1 and timeout == ray_workers.PATIENCE
    return [self.rng.choice(refs)], []

  def get(self, ref):
    if self.rng.random() < self.lose:
      raise self.rng.choice([self.exceptions.RayActorError, self.exceptions.ActorDiedError])('it died')
    call, args = self.calls[ref]
    return call(*args)

  def ready(self):
    pass

  def train(self, task):
    name, batch = arrays.unpack(task, [Batch, SPACE.arch_type])
    assert name == 'children'
    return arrays.pack((evaluate(hosts.on_device(batch)), 0.25))


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
  monkeypatch.setattr(ray_workers, 'PATIENCE', 0.0)


def crew_of(ray, size=3, check=lambda: None):
  return ray_workers.crew_of(ray, ray.spawn, size, check)


@pytest.fixture(scope='module')
def s():
  return search.build(SPACE, testing.search_config(m=5), evaluate)


@pytest.fixture(scope='module')
def batch(s):
  return s.ask(s.init(jax.random.key(0)))


@pytest.mark.filterwarnings('ignore:worker')
@pytest.mark.parametrize('size', [1, 2, 3, 9])
def test_a_batch_in_shares_earns_what_it_earns_as_a_whole(batch, size):
  """This holds even if two calls of five fail."""
  found = crew.elsewhere(crew_of(FakeRay(size, 0.4), size), ['children'], uniform=True)['children'](batch)
  wanted = evaluate(batch)
  assert found.reward.tolist() == wanted.reward.tolist()
  assert found.metrics['loss'].tolist() == wanted.metrics['loss'].tolist() and not found.failed.any()


@pytest.mark.filterwarnings('ignore:worker')
def test_replicas_end_as_their_journal_says_however_many_workers_are_lost(s):
  """Each batch counts exactly once, and an actor that has died is replaced."""
  simulated, ray, lines, states = replicas.simulated(replicas.build(s, 4, 2)), FakeRay(1, 0.4), [], []
  hook = search.Hook(children=lines.extend, step=lambda state, info: states.append(state))
  crew.run(simulated, simulated.init(jax.random.key(0)), [hook], search.Budget(60), None, crew_of(ray))
  known = {line['id']: line for line in lines}
  assert len(known) == len(lines) == 60 and lines[0]['seconds'] == 0.05 and sum(ray.spawned.values()) > 3
  again = crew.run(simulated, simulated.init(jax.random.key(0)), [], search.Budget(60), known)
  assert (again.server.algorithm.theta == states[-1].server.algorithm.theta).all()


def test_a_worker_that_never_starts_ends_the_search(batch):
  ray = FakeRay(0, 1.0)
  ray.exceptions.RayActorError = ray.exceptions.ActorDiedError
  with pytest.raises(files.Unusable, match='worker 0 cannot be started: it died'):
    crew.elsewhere(crew_of(ray, 1), ['children'], True)['children'](batch)


@pytest.mark.filterwarnings('ignore:worker')
def test_a_worker_that_is_starting_again_is_waited_for(batch):
  """Ray reports at each call that the actor is not available yet."""
  ray, asked = FakeRay(), []

  def ready():
    asked.append(0)
    if len(asked) < 50:
      raise ray.exceptions.RayActorError('it is starting again')

  ray.ready = ready
  found = crew.elsewhere(crew_of(ray, 1), ['children'], True)['children'](batch)
  assert found.reward.tolist() == evaluate(batch).reward.tolist() and len(asked) == 50


def test_a_worker_with_other_data_ends_the_search(batch):
  ray = FakeRay()

  def ready():
    raise ray.exceptions.RayTaskError('Traceback ...\nValueError: its data are others')

  ray.ready = ready
  with pytest.raises(files.Unusable, match='worker . cannot train: ValueError: its data are others'):
    crew.elsewhere(crew_of(ray), ['children'], True)['children'](batch)


def test_who_waits_for_workers_can_be_stopped(batch):
  def check():
    raise Stopped

  with pytest.raises(Stopped):
    crew.elsewhere(crew_of(FakeRay(), check=check), ['children'], True)['children'](batch)


@pytest.mark.parametrize(
  ('launcher', 'flags', 'message'),
  [
    (enas_search, ('--workers=2',), 'share weights.*--workers'),
    (cell_search, ('--ray_address=here:1',), '--workers'),
  ],
)
def test_flags_that_do_not_fit_are_refused(launcher, flags, message, tmp_path):
  with pytest.raises(ValueError, match=message) as error:
    launcher.prepare(['search', '--preset=smoke', f'--workdir={tmp_path}', *flags])
  testing.one_line(error)


def test_without_ray_it_says_how_to_install_it(monkeypatch):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(ImportError, match=r"--workers needs ray.*'nas_jax\[ray\]'"):
    ray_workers.start('')


# -- with Ray --------------------------------------------------------------------------------------------------------


@pytest.fixture
def started(tmp_path):
  """A function that starts searches in tmp_path/run. They are killed at the end of the test."""
  begun = []

  def start(system, *flags):
    command = kill_ray.command(system, tmp_path / 'run', *flags)
    begun.append(subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
    return begun[-1]

  yield start
  for process in begun:
    process.kill()
    process.wait()


def until(condition, process, seconds=400):
  limit = time.monotonic() + seconds
  while not condition() and process.poll() is None and time.monotonic() < limit:
    time.sleep(0.05)
  assert condition(), process.communicate()[0]


needs_ray = pytest.mark.skipif(importlib.util.find_spec('ray') is None, reason='Ray is not installed')


@pytest.mark.long
@needs_ray
@pytest.mark.parametrize('system', kill_ray.FLAGS)
def test_real_children_of_replicas_through_the_death_of_a_worker_and_of_the_search(system, tmp_path, started):
  """The last state is bit-identical to that of a replay of the journal, and no child counts twice."""
  folder = tmp_path / 'run'
  process = started(system, *kill_ray.REPLICAS)
  until(lambda: len(kill_ray.children(folder)) >= 4, process)
  os.kill(kill_ray.holder(folder / 'worker-0' / 'crash.txt'), signal.SIGKILL)
  before = len(kill_ray.children(folder))
  until(lambda: len(kill_ray.children(folder)) >= before + 2, process)
  process.kill()
  process.communicate()
  process = started(system, *kill_ray.REPLICAS)
  said, _ = process.communicate(timeout=500)
  assert process.returncode == 0, said
  kill_ray.compare_with_replay(system, folder)


@pytest.mark.long
@needs_ray
def test_a_synchronous_search_by_workers_is_that_of_one_process(tmp_path, started):
  """Two workers with one device each, one of which is killed, are bit-identical to one process with two devices."""
  process = started('cell')
  folder = tmp_path / 'run'
  until(lambda: len(kill_ray.children(folder)) >= 4, process)
  os.kill(kill_ray.holder(folder / 'worker-1' / 'crash.txt'), signal.SIGKILL)
  said, _ = process.communicate(timeout=500)
  assert process.returncode == 0, said
  command = [word for word in kill_ray.command('cell', tmp_path / 'alone') if not word.startswith('--workers')]
  env = {**os.environ, 'JAX_NUM_CPU_DEVICES': '2'}
  subprocess.run(command, cwd=ROOT, env=env, check=True, capture_output=True, timeout=500)
  by_workers, alone = (
    [{key: line[key] for key in ('id', 'tokens', 'reward')} for line in kill_ray.children(tmp_path / name)]
    for name in ('run', 'alone')
  )
  assert by_workers == alone
