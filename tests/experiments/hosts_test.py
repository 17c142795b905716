"""Searches over several processes are bit-identical to one process, and all end together if one ends."""

import atexit
import concurrent.futures
import dataclasses
import functools
import json
import os
import pathlib
import signal
import socket
import stat
import subprocess
import threading
import time

from absl import flags
import jax
import pytest
import testing
from tools import kill, kill_hosts

from experiments import cell_search, conv_search, enas_search
from experiments.common import connection, launch, prepare_search, systems, watch, workdirs
from nas_jax import config, files, hosts
from nas_jax.systems import conv
from nas_jax.training.recovery import Stopped

SMOKE = ('--preset=smoke', '--nocontrol', '--reliability_children=0', '--yardstick_repeats=0', '--host_patience=20')
CELL = ('cell_search', *SMOKE, '--final_children=0')


@pytest.fixture(autouse=True)
def one_store(with_programs, monkeypatch):
  """The processes of these tests share what they compile."""
  for name in ('ENABLE_COMPILATION_CACHE', 'PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', 'COMPILATION_CACHE_DIR'):
    monkeypatch.setenv(f'JAX_{name}', with_programs[f'JAX_{name}'])


def logs(workdir, count):
  return [kill_hosts.log_of(workdir, host).read_text() for host in range(count)]


def finish(launched, workdir):
  codes = kill_hosts.ends(launched)
  said = logs(workdir, len(codes))
  assert codes == [0] * len(codes), '\n'.join(said)
  assert not any('Traceback' in text or 'Check failure' in text for text in said)
  return kill.outcome(workdir)


def agree(tmp_path, command, shapes):
  wanted = finish(kill_hosts.start(command, tmp_path / 'one', 1, 4), tmp_path / 'one')
  for count, devices in shapes:
    workdir = tmp_path / f'{count}x{devices}'
    assert finish(kill_hosts.start(command, workdir, count, devices), workdir) == wanted
    assert sorted(path.name for path in workdir.glob('host-*')) == [f'host-{k}' for k in range(1, count)]
  return wanted


def test_two_processes_end_as_one(tmp_path):
  """Five children are split into two shares of three, the second of which is filled up."""
  wanted = agree(tmp_path, (*CELL, '--m=5', '--max_children=10', '--steps=4'), [(2, 2)])
  assert len(wanted['children.jsonl']) == 10 and wanted['state at the end'][0] == '2'


WHOLE = ('--preset=smoke', '--host_patience=30')
COMMANDS = {
  'cells': ('cell_search', *WHOLE, '--m=4', '--final_children=0', '--rungs=2'),
  'networks': ('conv_search', *WHOLE, '--m=5', '--max_children=10'),
  'networks, specialised': ('conv_search', *WHOLE, '--m=3', '--max_children=6', '--child_program=specialised'),
  'layer by layer': ('per_layer_search', *WHOLE),
}


@pytest.mark.long
@pytest.mark.parametrize('name', COMMANDS)
def test_processes_end_as_one(tmp_path, name):
  """With the random-search baseline, the reliability of the reward, and references."""
  agree(tmp_path, COMMANDS[name], [(2, 2), (4, 1)])


@pytest.mark.long
def test_the_final_choice_is_made_and_the_program_is_measured_once(tmp_path):
  command = ('cell_search', '--preset=smoke', '--m=4', '--child_program=auto', '--reliability_children=0')
  finish(kill_hosts.start(command, tmp_path / 'two', 2, 1), tmp_path / 'two')
  assert json.loads((tmp_path / 'two' / 'config.json').read_text())['child_program'] in ('generic', 'specialised')
  assert (tmp_path / 'two' / 'final' / 'best.json').exists()
  # Both hosts resume with the program that was measured. There is nothing left to train.
  before = (tmp_path / 'two' / 'children.jsonl').read_text()
  finish(kill_hosts.start(command, tmp_path / 'two', 2, 1), tmp_path / 'two')
  assert (tmp_path / 'two' / 'children.jsonl').read_text() == before


# -- how they end ------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_hosts_that_differ_all_end_with_2(tmp_path):
  for host in range(2):
    (tmp_path / f'data-{host}').mkdir()
    for split in ('train', 'valid', 'test'):
      (tmp_path / f'data-{host}' / f'{split}.txt').write_text('some words and more of them\n' * (500 + host))
  own = {host: ('--dataset=text', f'--data_dir={tmp_path}/data-{host}') for host in range(2)}
  cases = {'steps (4 on host 0, 5 on host 1)': {1: ('--steps=5',)}, 'data (sha256)': own}
  for what, differing in cases.items():
    codes = kill_hosts.ends(kill_hosts.start(CELL, tmp_path / 'run', 2, 1, differing))
    for said in logs(tmp_path / 'run', 2):
      assert codes == [2, 2] and what in said and 'Traceback' not in said, said
  assert not (tmp_path / 'run').exists()


@pytest.mark.long
def test_what_one_host_refuses_ends_all(tmp_path):
  command = ('enas_search', '--variant=recurrent', '--preset=smoke', '--host_patience=20')
  codes = kill_hosts.ends(kill_hosts.start(command, tmp_path / 'run', 2, 1))
  assert codes == [2, 2] and all('are trained on one host' in said for said in logs(tmp_path / 'run', 2))
  (tmp_path / 'run').mkdir()
  (tmp_path / 'run' / 'host-1').write_text('no folder')
  codes = kill_hosts.ends(kill_hosts.start(CELL, tmp_path / 'run', 2, 1))
  said = logs(tmp_path / 'run', 2)
  assert codes == [2, 2] and 'host 1: workdir' in said[0] and 'cannot be used' in said[1], said


def wait_for(condition, launched, workdir):
  limit = time.monotonic() + 300
  while not condition():
    running = all(process.poll() is None for process in launched)
    assert time.monotonic() < limit and running, logs(workdir, len(launched))
    time.sleep(0.02)


LONG = (*CELL, '--m=4', '--max_children=8', '--steps=3000', '--steps_per_call=2')


@pytest.mark.long
@pytest.mark.parametrize('told', [0, 1])
def test_a_signal_to_one_host_ends_all_and_nothing_is_lost(tmp_path, told):
  wanted = finish(kill_hosts.start(LONG, tmp_path / 'whole'), tmp_path / 'whole')
  workdir = tmp_path / 'cut'
  launched = kill_hosts.start(LONG, workdir)
  started = workdir / 'host-1' / 'started.jsonl'
  wait_for(lambda: started.exists() and '"training"' in started.read_text(), launched, workdir)
  time.sleep(1)
  launched[told].send_signal(signal.SIGTERM)
  assert kill_hosts.ends(launched) == [143, 143], logs(workdir, 2)
  assert all('stopped by SIGTERM' in said for said in logs(workdir, 2))
  # Each has kept what it was training, host 1 by a file of its own, and goes on with it.
  assert '"kept"' in started.read_text() and list((workdir / 'host-1' / 'training').glob('*/state.npz.sha256'))
  assert finish(kill_hosts.start(LONG, workdir), workdir) == wanted
  begun = [json.loads(line) for line in started.read_text().splitlines() if '"calls"' in line]
  assert any(line['calls'] for line in begun)


@pytest.mark.long
@pytest.mark.parametrize(('victim', 'number', 'counts'), [(0, signal.SIGKILL, False), (1, signal.SIGSEGV, True)])
def test_a_crash_counts_where_it_happened(tmp_path, victim, number, counts):
  """JAX aborts host 1 when host 0 is killed, which counts against no training. Its own crash does count."""
  workdir, command = tmp_path / 'run', (*LONG, '--host_patience=8')
  started = workdir / 'host-1' / 'started.jsonl'

  def processes():
    lines = started.read_text().splitlines() if started.exists() else []
    return [k for k, line in enumerate(lines) if '"process"' in line], lines

  launched = kill_hosts.start(command, workdir)
  wait_for(lambda: started.exists() and '"training"' in started.read_text(), launched, workdir)
  launched[victim].send_signal(number)
  codes = kill_hosts.ends(launched)
  assert codes == ([-9, -signal.SIGABRT] if victim == 0 else [75, -signal.SIGSEGV]), logs(workdir, 2)
  assert (workdir / 'host-1' / 'crash.txt').read_text() and (workdir / 'lost.json').exists() == counts
  launched = kill_hosts.start(command, workdir)
  wait_for(lambda: len(processes()[0]) == 2, launched, workdir)
  launched[1].send_signal(signal.SIGTERM)
  kill_hosts.ends(launched)
  begun, lines = processes()
  assert ('"died"' in lines[begun[1] - 1]) == counts and not (workdir / 'lost.json').exists()


@pytest.mark.long
def test_hosts_that_are_killed(tmp_path):
  kill_hosts.trial('cell', 3, 0, 2, tmp_path)


# -- the watch, over a dict ----------------------------------------------------------------------------------------


class Service:
  """The part of JAX's coordination service that hosts use."""

  def __init__(self):
    self.values, self.changed = {}, threading.Condition()

  def key_value_set_bytes(self, key, value, allow_overwrite):
    with self.changed:
      if key in self.values and not allow_overwrite:
        raise jax.errors.JaxRuntimeError(f'ALREADY_EXISTS: key {key} already exists.')
      self.values[key] = value
      self.changed.notify_all()

  def key_value_dir_get_bytes(self, folder):
    with self.changed:
      return [(key, value) for key, value in self.values.items() if key.startswith(folder)]

  def blocking_key_value_get_bytes(self, key, milliseconds):
    with self.changed:
      if not self.changed.wait_for(lambda: key in self.values, milliseconds / 1000):
        raise jax.errors.JaxRuntimeError('DEADLINE_EXCEEDED: nobody has set it')
      return self.values[key]

  def key_value_delete(self, key):
    del self.values[key]

  def get_live_nodes(self, processes):
    return processes


@pytest.fixture
def service(monkeypatch):
  monkeypatch.setattr(watch, 'BEAT', 0.02)
  monkeypatch.setattr(watch, 'GRACE', 100.0)
  monkeypatch.setattr(jax.distributed, 'shutdown', lambda: None)
  return Service()


def wait_raises(check, kind):
  limit = time.monotonic() + 20
  with pytest.raises(kind) as raised:
    while time.monotonic() < limit:
      check()
      time.sleep(0.01)
  return raised.value


def nothing():
  pass


def test_hosts_meet_at_the_end(service):
  both = [connection.connect(service, host, 2, 20) for host in (0, 1)]
  (first, _), (second, check) = (one.checked(nothing) for one in both)
  first.put('task/0', b'x')
  assert second.get('task/0') == b'x' and next(first.numbers) == next(second.numbers) == 0
  first.drop('task/0')
  check()
  leaving = threading.Thread(target=both[0].leave)
  leaving.start()
  time.sleep(0.1)
  assert leaving.is_alive()  # waits for the other
  both[1].leave()
  leaving.join(20)
  assert not leaving.is_alive() and not any(thread.name.startswith('the watch') for thread in threading.enumerate())


def test_a_silent_host_is_lost_and_all_hear_of_it(service, monkeypatch):
  exits = []
  monkeypatch.setattr(atexit, 'register', lambda function, *args: exits.append((function, args)))
  third = connection.connect(service, 2, 3, 20)
  leader, noted = connection.connect(service, 0, 3, 0.3), []  # host 1 never gives a sign of life
  leader.on_loss(noted.append)
  both, check = leader.checked(nothing)
  wait_raises(check, hosts.Ended)  # first, as `get` would wait for ever if nothing ended it
  error = wait_raises(functools.partial(both.get, 'done/0/1'), hosts.Ended)
  assert error.code == 75 and 'host 1 has been silent for 0.3 s' in str(error) and isinstance(error, Stopped)
  assert noted == [1]
  begun = time.monotonic()
  with pytest.raises(hosts.Ended), leader.meeting(launch.ending):
    raise error
  assert time.monotonic() - begun < 5  # does not wait for the one that is lost
  assert exits == [(watch.leave_at_once, (75,))]
  error = wait_raises(third.checked(nothing)[1], hosts.Ended)
  assert error.code == 75 and 'host 0: host 1 has been silent' in str(error)
  service.key_value_set_bytes('nas_jax/gone/1', b'alone', True)
  third.leave()


def test_a_process_that_does_not_look_is_ended_all_the_same(service, monkeypatch, capsys):
  """Host 1 is lost while host 0 is in a long call. The watching thread prints this and ends the process."""
  exits, ended = [], threading.Event()
  monkeypatch.setattr(watch, 'GRACE', 0.1)
  monkeypatch.setattr(watch, 'leave_at_once', lambda code: (exits.append(code), ended.set()))
  monkeypatch.setattr(atexit, 'register', lambda *args: None)
  leader = connection.connect(service, 0, 2, 0.2)
  assert ended.wait(20) and exits[0] == 75
  assert 'host 1 has been silent for 0.2 s; the same command goes on.' in capsys.readouterr().err
  assert json.loads(service.values['nas_jax/end/0'])[0] == 75 and service.values['nas_jax/gone/0'] == b'alone'
  leader.leave()


def test_an_error_of_one_host_is_told_to_the_others(service, monkeypatch):
  monkeypatch.setattr(atexit, 'register', lambda *args: None)
  both = [connection.connect(service, host, 2, 20) for host in (0, 1)]

  def fail():
    with pytest.raises(OSError), both[1].meeting(launch.ending):
      raise OSError(28, 'No space left on device', 'a.jsonl')

  failing = threading.Thread(target=fail)
  failing.start()
  error = wait_raises(both[0].checked(nothing)[1], hosts.Ended)
  assert error.code == 74 and str(error).startswith('host 1: a.jsonl cannot be written')
  with pytest.raises(hosts.Ended), both[0].meeting(launch.ending):
    raise error
  failing.join(20)
  assert not failing.is_alive()
  # What this process itself was asked comes first.
  with pytest.raises(Stopped, match='15'):
    both[0].checked(functools.partial(launch._check, [signal.SIGTERM]))[1]()


def test_a_process_that_was_started_again_does_not_join_the_search_that_still_runs(service, monkeypatch):
  exits = []
  monkeypatch.setattr(atexit, 'register', lambda function, *args: exits.append((function, args)))
  connection.claim(service, 0)
  connection.claim(service, 1)
  with pytest.raises(hosts.Ended, match='a process 1 has joined this search before') as raised:
    connection.claim(service, 1)
  testing.one_line(raised)
  assert raised.value.code == 75 and exits == [(watch.leave_at_once, (75,))]


# -- what the flags leave open --------------------------------------------------------------------------------------


@pytest.fixture
def prepare_two(service, monkeypatch, tmp_path):
  """Returns a function that prepares a search for networks on two hosts: (flags of both, those of host 1) -> errors."""
  monkeypatch.setattr(launch, 'set_up_jax', lambda: None)  # JAX runs already
  monkeypatch.setattr(atexit, 'register', lambda *args: None)
  both = [connection.connect(service, host, 2, 20) for host in (0, 1)]
  monkeypatch.setattr(
    connection, 'join', lambda values: both[values.process_id]._replace(processes=values.num_processes or 2)
  )

  def prepare(*given, differing=()):
    command = ['conv_search', '--preset=smoke', '--child_program=auto', f'--workdir={tmp_path}/run', *given]
    with concurrent.futures.ThreadPoolExecutor(2) as threads:
      own = [[*command, '--process_id=0'], [*command, *differing, '--process_id=1']]
      errors = [one.exception() for one in [threads.submit(conv_search.prepare, argv) for argv in own]]
      list(threads.map(lambda one: one.leave(), both if errors == [None, None] else ()))
    return errors

  return prepare


@pytest.mark.filterwarnings('ignore:the search goes on with guide_draws=32')
@pytest.mark.parametrize(
  'saved',
  [
    {'child_program': 'specialised', 'data_seed': 5},  # 'auto' was measured
    {'child_program': 'auto', 'data_seed': 5, 'guide_draws': 32, 'guide_mutations': 16},  # defaults of earlier versions
    {'child_program': 'auto'},  # older than data_seed
  ],
)
def test_all_hosts_resume_with_what_host_0_has_saved(prepare_two, tmp_path, saved):
  config_file, whole = tmp_path / 'run' / 'config.json', config.as_json(conv.smoke()) | {'seed': 5}
  del whole['data_seed']
  config_file.parent.mkdir()
  config_file.write_text(json.dumps(whole | saved))
  assert prepare_two('--seed=5') == [None, None]
  assert json.loads(config_file.read_text()) == whole | saved


def test_a_flag_of_host_0_is_not_what_the_others_take(prepare_two, tmp_path):
  errors = prepare_two('--child_program=generic', differing=('--child_program=auto',))
  assert all('child_program (generic on host 0, auto on host 1)' in str(error) for error in errors)
  assert not (tmp_path / 'run').exists()


def test_hosts_must_agree_on_their_number(prepare_two, tmp_path):
  """Otherwise they would cut batches into different shares."""
  errors = prepare_two('--num_processes=2', differing=('--num_processes=3',))
  assert all('num_processes (2 on host 0, 3 on host 1)' in str(error) for error in errors)
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize('changed', [{}, {'max_children': 7}, {'lr': (0.5,)}, {'sha256': 'f' * 64}])
def test_a_host_refuses_trainings_that_are_left_of_another_search(service, tmp_path, changed):
  """They would be recalled for the children of this search, because their names do not tell how they were trained."""
  cfg, one = dataclasses.replace(conv.smoke(), data_seed=0), connection.connect(service, 1, 2, 20)
  data = systems.CONV.load(cfg, '')
  service.values['nas_jax/task/0'] = b''

  def serve(cfg, data):
    service.values['nas_jax/settled'] = json.dumps({'config': config.as_json(cfg), 'lost': []}).encode()
    problem = systems.CONV.make_problem(cfg, data)
    folder = str(tmp_path / 'run' / 'host-1')
    prepare_search._prepare_to_serve(systems.CONV, cfg, data, None, problem, folder, one)(nothing)

  try:
    serve(cfg, data)
    sha256 = changed.pop('sha256', data.sha256)
    other = functools.partial(serve, dataclasses.replace(cfg, **changed), data._replace(sha256=sha256))
    if 'lr' in changed or sha256 != data.sha256:
      with pytest.raises(files.Unusable, match='host-1.*(lr|other data).*remove it') as error:
        other()
      testing.one_line(error)
    else:
      other()
  finally:
    service.values |= {f'nas_jax/gone/{host}': b'alone' for host in range(2)}
    one.leave()


# -- what is refused before any process waits for another ----------------------------------------------------------


@pytest.mark.parametrize(
  ('given', 'why'),
  [
    (['--coordinator=127.0.0.1:1'], 'belong together'),
    (['--process_id=0', '--num_processes=2'], 'belong together'),
    (['--coordinator=127.0.0.1:1', '--process_id=2', '--num_processes=2'], 'must be less than num_processes'),
    (['--hosts'], 'no job over several hosts is detected'),
    (['--coordinator=10.0.0.1', '--process_id=0', '--num_processes=2'], 'must be the address and a port'),
    (['--coordinator=10.0.0.1', '--process_id=1', '--num_processes=2'], 'must be the address and a port'),
    (['--coordinator=10.0.0.1:99999', '--process_id=0', '--num_processes=2'], 'must be the address and a port'),
  ],
)
def test_flags_that_do_not_fit_together(tmp_path, monkeypatch, given, why):
  from jax._src import distributed

  monkeypatch.setattr(jax.distributed, 'initialize', distributed.State().initialize)  # although JAX runs already
  with pytest.raises(ValueError, match=why) as error:
    cell_search.prepare(['cell_search', '--preset=smoke', f'--workdir={tmp_path}/run', *given])
  testing.one_line(error)
  assert not (tmp_path / 'run').exists()


def test_a_port_of_another_search_is_not_shared_with_it(tmp_path, monkeypatch):
  monkeypatch.setattr(jax.distributed, 'initialize', None)
  with socket.create_server(('127.0.0.1', 0)) as other:
    address = f'127.0.0.1:{other.getsockname()[1]}'
    flags = [f'--coordinator={address}', '--num_processes=2', '--process_id=0', f'--workdir={tmp_path}/run']
    with pytest.raises(ValueError, match=f'coordinator .={address!r}.*cannot listen on this port') as error:
      cell_search.prepare(['cell_search', '--preset=smoke', *flags])
  testing.one_line(error)


@pytest.mark.parametrize(('process', 'folder'), [(0, '.'), (1, 'host-1')])
def test_a_process_that_runs_already_is_not_started_again(tmp_path, monkeypatch, process, folder):
  """It would join the search that runs, and its failure would end this search."""
  monkeypatch.setattr(connection, 'join', None)
  lock = workdirs.lock(str(tmp_path / 'run' / folder))
  flags = ['--coordinator=127.0.0.1:1', '--num_processes=2', f'--process_id={process}', f'--workdir={tmp_path}/run']
  with lock, pytest.raises(ValueError, match='in use by another process') as error:
    cell_search.prepare(['cell_search', '--preset=smoke', *flags])
  testing.one_line(error)


def test_ctrl_c_ends_a_process_that_waits_for_the_others(tmp_path):
  flags = (f'--coordinator=127.0.0.1:{kill_hosts.free_port()}', '--num_processes=2', '--process_id=0')
  (process,), log = kill_hosts.start((*CELL, *flags), tmp_path / 'run', 1, 1), kill_hosts.log_of(tmp_path / 'run', 0)
  wait_for(lambda: 'recoverable' in log.read_text(), [process], tmp_path / 'run')  # JAX's service has begun
  process.send_signal(signal.SIGINT)
  assert kill_hosts.ends([process], 60) == [130] and 'stopped by SIGINT before' in log.read_text(), log.read_text()


@pytest.mark.parametrize('prepare', [cell_search.prepare, enas_search.prepare])
def test_one_host_of_several_must_say_that_it_knows(tmp_path, monkeypatch, prepare):
  monkeypatch.setattr(jax, 'process_count', lambda: 4)
  monkeypatch.setattr(launch, 'set_up_jax', lambda: None)  # JAX runs already
  with pytest.raises(ValueError, match='one of 4 hosts.*--hosts') as error:
    prepare(['search', '--preset=smoke', f'--workdir={tmp_path}/run'])
  testing.one_line(error)


def test_no_flags_means_one_host():
  values = flags.FlagValues()
  connection.define_flags(values)
  values(['search'])
  assert connection.join(values) is connection.UNCONNECTED


# -- scripts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
  ('codes', 'starts'), [((75, 134, 137, 0), 4), ((75, 143), 2), ((2, 0), 1), ((74,), 1), ((1,), 1)]
)
def test_a_command_is_run_again_if_it_can_go_on(tmp_path, codes, starts):
  script = tmp_path / 'command.sh'
  script.write_text(
    f'n=$(cat {tmp_path}/n 2>/dev/null || echo 0); echo $((n + 1)) > {tmp_path}/n; c=({" ".join(map(str, codes))}); '
    'exit ${c[$n]}'
  )
  again = (str(kill.ROOT / 'experiments' / 'again.sh'), 'bash', str(script))
  done = subprocess.run(again, env={**os.environ, 'AGAIN_SECONDS': '0'}, capture_output=True, check=False)
  assert done.returncode == codes[starts - 1] and (tmp_path / 'n').read_text().strip() == str(starts)


def test_a_slice_is_started_on_all_hosts(tmp_path):
  """The script, with a fake gcloud that only records its commands."""
  fake = tmp_path / 'gcloud'
  fake.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" >> {tmp_path}/asked\n')
  fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
  script = pathlib.Path(kill.ROOT / 'experiments' / 'tpu_vm.sh')
  run = functools.partial(
    subprocess.run, cwd=kill.ROOT, env={**os.environ, 'GCLOUD': str(fake)}, capture_output=True, text=True, check=False
  )
  done = run([script, 'start', 'mine', 'zone', 'conv_search', '--layer_types=conv,max pool', '--workdir=/mnt/it is'])
  asked = (tmp_path / 'asked').read_text()
  assert done.returncode == 0, done.stderr
  assert '--worker=all' in asked and '-m experiments.conv_search --hosts' in asked
  # The flags survive the shell of the host.
  command = asked[asked.index('.venv/bin/python -m') :].split(' >> ')[0]
  shown = subprocess.run(['bash', '-c', f'printf "%s\\n" {command}'], capture_output=True, text=True, check=True).stdout
  assert shown.splitlines()[-2:] == ['--layer_types=conv,max pool', '--workdir=/mnt/it is']
  assert run([script, 'start', 'mine']).returncode == 2
