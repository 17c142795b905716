"""Workers of a search, some of which are lost, with a fake of Ray and with Ray itself."""

import collections
import dataclasses
import importlib.util
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import testing
from tools import kill_ray

from experiments import cell_search, enas_search
from experiments.common import launch, ray_workers, systems
from nas_jax import arrays, config, crew, files, hosts, replicas, search
from nas_jax.systems import cell
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
    errors['RayTaskError'].cause = None
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

    return types.SimpleNamespace(**{name: method(getattr(self, name)) for name in ('runs', 'ready', 'train')})

  def wait(self, refs, num_returns, timeout):
    assert refs and num_returns == 1 and timeout == ray_workers.PATIENCE
    return [self.rng.choice(refs)], []

  def get(self, ref):
    if self.rng.random() < self.lose:
      raise self.rng.choice([self.exceptions.RayActorError, self.exceptions.ActorDiedError])('it died')
    call, args = self.calls[ref]
    return call(*args)

  def runs(self):
    pass

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

  def runs():
    asked.append(0)
    if len(asked) < 50:
      raise ray.exceptions.RayActorError('it is starting again')

  ray.runs = runs
  found = crew.elsewhere(crew_of(ray, 1), ['children'], True)['children'](batch)
  assert found.reward.tolist() == evaluate(batch).reward.tolist() and len(asked) == 50


def test_a_worker_that_always_crashes_before_it_is_ready_ends_the_search(batch):
  """Ray starts its process again each time, and reports only that it is not available."""
  ray, asked = FakeRay(), []

  def ready():
    asked.append(0)
    raise ray.exceptions.RayActorError('it is not available')

  ray.ready = ready
  with pytest.raises(files.Unusable, match='worker 0 cannot be started: it is not available'):
    crew.elsewhere(crew_of(ray, 1, bounded(200)), ['children'], True)['children'](batch)
  assert len(asked) == ray_workers.STARTS + 1


def bounded(looks):
  """Returns a check that fails after some calls."""
  seen = []

  def check():
    seen.append(0)
    assert len(seen) < looks, 'it waits for ever'

  return check


def test_a_worker_with_other_data_ends_the_search(batch):
  ray = FakeRay()

  def ready():
    raise ray.exceptions.RayTaskError('Traceback ...\nValueError: its data are others')

  ray.ready = ready
  with pytest.raises(files.Unusable, match='worker . cannot train: ValueError: its data are others'):
    crew.elsewhere(crew_of(ray), ['children'], True)['children'](batch)


@pytest.mark.parametrize('call', ['ready', 'train'])
def test_a_full_disk_of_a_worker_ends_the_search_as_its_own_would(batch, call):
  ray = FakeRay()

  def fail(*_):
    error = ray.exceptions.RayTaskError('Traceback ...\nOSError: [Errno 28] No space left on device')
    error.cause = OSError(28, 'No space left on device', 'worker-0/started.jsonl')
    raise error

  setattr(ray, call, fail)
  with pytest.raises(OSError, match='No space left') as raised:
    crew.elsewhere(crew_of(ray), ['children'], True)['children'](batch)
  code, message = launch.ending(raised.value)
  assert code == 74 and message.startswith('worker-0/started.jsonl cannot be written')


def trainer(cfg, folder, sha256=''):
  system = systems.CELL
  sha256 = sha256 or system.load(cfg, '').sha256
  return ray_workers.Trainer(system.name, json.dumps(config.as_json(cfg)), '', sha256, str(folder), 1)


def test_a_worker_refuses_trainings_that_are_left_of_another_search(tmp_path, monkeypatch):
  """They would be recalled for the children of this search, because their names do not tell how they were trained."""
  monkeypatch.setattr(launch, 'set_up_jax', lambda cores: None)  # JAX runs already
  cfg = dataclasses.replace(cell.smoke(), data_seed=0)
  for changed in ({}, {}, {'max_children': 7}, {'lr': 0.5}):
    one = trainer(dataclasses.replace(cfg, **changed), tmp_path / 'worker-0')
    with one._open:
      if 'lr' not in changed:
        one.ready()
        continue
      with pytest.raises(files.Unusable, match=r'worker-0.*lr \(.* -> 0.5\).*remove it') as error:
        one.ready()
      testing.one_line(error)


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


@pytest.mark.parametrize(
  ('flag', 'variable', 'wanted'), [('', '', 'local'), ('', 'there:1', 'there:1'), ('here:1', 'there:1', 'here:1')]
)
def test_a_new_cluster_is_started_unless_one_is_named(monkeypatch, flag, variable, wanted):
  """Given None, Ray joins a cluster that was started on this machine before, even one that has crashed."""
  asked = []
  ray = types.SimpleNamespace(init=lambda address, **_: asked.append(address))
  monkeypatch.setitem(sys.modules, 'ray', ray)
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: name)
  monkeypatch.setattr(jax.config, 'update', lambda *_: None)
  monkeypatch.setenv('RAY_ADDRESS', variable)
  assert ray_workers.start(flag) is ray and asked == [wanted]


def refused(*_, **__):
  try:
    raise RuntimeError('Last connection error: Traceback ...\nAuthenticationError: the token is missing\n\n')
  except RuntimeError as error:
    raise ConnectionError('Failed to connect') from error


def too_slow(*_, **__):
  raise Exception('The current node timed out.\nSee the logs.')  # this type indeed


@pytest.mark.parametrize(
  ('init', 'why'),
  [(refused, r'Failed to connect \(AuthenticationError: the token is missing\)'), (too_slow, 'The current node timed')],
)
def test_a_cluster_that_cannot_be_used_is_reported_in_one_line(monkeypatch, init, why):
  monkeypatch.setitem(sys.modules, 'ray', types.SimpleNamespace(init=init))
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: name)
  with pytest.raises(ValueError, match=f"ray_address .='here:1'.: {why}") as error:
    ray_workers.start('here:1')
  testing.one_line(error)


def test_workers_find_a_data_set_in_the_current_folder_of_the_search(monkeypatch, tmp_path):
  """A worker of a running cluster is in the folder in which the cluster was started."""
  given = []

  def remote(**options):
    return lambda kind: types.SimpleNamespace(remote=lambda *args: given.append(args))

  ray = types.SimpleNamespace(cluster_resources=dict, remote=remote)
  monkeypatch.setattr(ray_workers, 'crew_of', lambda ray, spawn, size, check: spawn(0))
  monkeypatch.chdir(tmp_path)
  ray_workers.hire(ray, systems.CELL, cell.smoke(), '', 'sha256', 'run', 1, lambda: None)
  ((_, _, data_dir, _, folder, _),) = given
  assert (data_dir, folder) == (str(tmp_path), str(tmp_path / 'run' / 'worker-0'))


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
