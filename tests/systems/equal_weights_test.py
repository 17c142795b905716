"""Networks that are compared at equal weights: the number of filters that brings each to a number of weights."""

import dataclasses
import itertools
import json

import jax
import numpy as np
import pytest
import testing

from experiments.common import retraining, top
from experiments.common.systems import CONV
from nas_jax import config, draw, load, published, space
from nas_jax.space.base import Kind
from nas_jax.space.network import NetworkOptions, network
from nas_jax.systems import conv, equal_weights, retrain, retrain_conv, retrain_enas
from nas_jax.training import evaluators

IMAGES = testing.pictures()  # 6 x 5 x 1, three classes
# 3 x 3 with 2 filters, then 1 x 3 with 3 filters, which reads the first layer alone.
TWO = space.ConvArch((), (3, 1), (3, 3), (), (), (2, 3), (), (1,), ())
POOLS = space.chain_space(('max pool 2 2',), 2).decode([0, 0])
SPACES = (
  space.conv_space(4, (1, 3), (3, 5), (3, 6, 20), layer_types=space.LAYER_TYPES, pools=(2,)),
  space.chain_space(('conv 9 3 1', 'residual 5 3 2', 'residual 9 3 1', 'max pool 2 2'), 4),
)


def config_of(*weights, **changes):
  small = {'batch': 9, 'epochs': 1, 'score_batch': 4, 'schedule': 'constant', 'lr': (0.05,)}
  return retrain_conv.Config(**(small | {'weights': weights} | changes))


def added(arch, size):
  return retrain_conv.added_filters(config_of(size), IMAGES, arch, size)


@pytest.mark.parametrize(
  ('size', 'add'),
  [
    ('0.03k', -1),
    ('0.04k', -1),  # 10 from 30, 18 from 58
    ('0.044k', -1),  # 14 from both: the smaller network
    ('0.045k', 0),
    ('0.058k', 0),
    ('0.076k', 1),  # 18 from 58, 16 from 92
  ],
)
def test_two_layers_by_hand(size, add):
  """With a filters more: kernels, batch norms and the classifier.

  9 (2 + a) + 2 (2 + a) + 3 (2 + a) (3 + a) + 2 (3 + a) + 3 (3 + a + 1) is 30, 58, 92 for a = -1, 0, 1.
  """
  counted = [space.count(TWO, IMAGES.shape, 3, NetworkOptions(add_filters=a)).params for a in (-1, 0, 1)]
  assert counted == [30, 58, 92]
  assert added(TWO, size) == add


def wider(arch, add):
  """Returns an architecture that has `add` filters more in each layer."""
  if isinstance(arch, space.ConvArch):
    return arch._replace(filters=tuple(n + add if n else 0 for n in arch.filters))
  layers = [space.chain.layer_of(code) for code in arch.layers if code]
  return space.ChainArch(
    tuple(space.chain.code(one._replace(channels=one.channels + add if one.channels else 0)) for one in layers)
  )


@pytest.mark.parametrize('made', SPACES, ids=('conv', 'chain'))
def test_of_all_numbers_of_filters_it_is_the_nearest(made):
  """By enumeration, for random networks and numbers of weights."""
  archs = space.unstack(evaluators.random_batch(made, jax.random.key(0), 14).archs)
  drawn, tried = np.random.default_rng(0), 0
  for arch in archs:
    filters = [layer.filters for layer in network(arch).layers if layer.filters]
    if not filters:
      continue
    sizes = {add: space.count(wider(arch, add), IMAGES.shape, 3).params for add in range(1 - min(filters), 26)}
    for wanted in drawn.integers(min(sizes.values()), max(sizes.values()), 5):
      off = {add: abs(size - wanted) for add, size in sizes.items()}
      found = added(arch, f'{wanted / 1000}k')
      assert off[found] == min(off.values()), (arch, wanted, found)
      tried += 1
  assert tried > 30


@pytest.mark.parametrize('name', retrain_conv.KNOWN)
def test_published_networks_of_a_million_weights(name):
  arch, shape = retrain_conv.KNOWN[name], (32, 32, 3)
  images = testing.pictures(shape=shape)
  cfg = config_of('1M')
  retrain_conv.validate(cfg, images, arch)
  task = retrain_conv.task(cfg, images, arch, '1M', 1)
  add = int(task.size)
  assert task.size.startswith(('+', '-')) and task.weights == space.count(wider(arch, add), shape, 3).params
  assert abs(task.weights - 1e6) < 0.05e6


@pytest.mark.parametrize('arch', [published.ENAS_MICRO, space.MacroArch((5, 4, 1), (1, 0, 1))], ids=('micro', 'macro'))
def test_networks_of_shared_weights(arch):
  """The number of filters in the first layers, by counting the networks themselves."""
  cfg = retrain_enas.Config(batch=9, cells=1, weights=('3k',))
  retrain_enas.check(cfg)
  found = retrain_enas.first_filters(cfg, IMAGES, arch, '3k')
  sizes = [retrain_enas._weights(retrain_enas._build(cfg, IMAGES, arch, n), arch) for n in range(1, found + 2)]
  assert found == 1 + int(np.argmin(np.abs(np.array(sizes) - 3000))) > 1
  task = retrain_enas.task(cfg, IMAGES, arch, '3k', 1)
  assert (task.size, task.weights) == (str(found), sizes[found - 1])


@pytest.mark.parametrize('changes', [{}, {'strides': (1, 2)}, {'block': 2, 'pool_at': (3,)}], ids=str)
def test_children_of_a_search_are_sized_as_retrained_networks_are(changes):
  cfg = testing.conv_config(filters=(3, 6, 20), child_program='specialised', child_weights=5000, **changes)
  archs = space.unstack(evaluators.random_batch(conv.make_space(cfg), jax.random.key(0), 12).archs)
  weights = conv.make_problem(cfg, IMAGES).cost_of
  other = config_of('5k', block=cfg.block, pool_at=cfg.pool_at)
  for arch in archs:
    add = retrain_conv.added_filters(other, IMAGES, arch, '5k')
    found = equal_weights.sized(cfg, IMAGES, 5000)(arch)
    assert found == wider(arch, add) and weights(arch).weights == equal_weights.weights(cfg, IMAGES, arch, add)
    assert abs(weights(arch).weights - 5000) < 500


def test_a_child_is_the_network_of_those_filters():
  """Its reward is that of the wider network where children are trained as they are."""
  cfg = testing.conv_config(filters=(2, 3), child_program='specialised', child_weights=200)
  plain = dataclasses.replace(cfg, child_weights=0)
  s, other = conv.build(cfg, IMAGES), conv.build(plain, IMAGES)
  batch = s.ask(s.init(jax.random.key(0)))
  archs = space.unstack(batch.archs)
  wide = [equal_weights.sized(cfg, IMAGES, 200)(arch) for arch in archs]
  assert all(one.filters != other.filters for one, other in zip(wide, archs, strict=True))
  mine, its = s.evaluate(batch), other.evaluate(batch._replace(archs=space.stack(wide)))
  for name in ('weights', 'multiply_adds', 'loss'):
    np.testing.assert_array_equal(mine.metrics[name], its.metrics[name])
  np.testing.assert_array_equal(mine.reward, its.reward)


def test_layers_without_filters_stay_so():
  """A network of another space, given by --beside, may have pools."""
  made, sized = SPACES[0], equal_weights.sized(testing.conv_config(), IMAGES, 5000)
  kinds = {'conv': 0, 'other': 0}
  for arch in space.unstack(evaluators.random_batch(made, jax.random.key(0), 12).archs):
    found = sized(arch)
    assert [n > 0 for n in found.filters] == [n > 0 for n in arch.filters]
    weights = space.count(found, IMAGES.shape, 3).params
    assert abs(weights - 5000) < 800 if any(arch.filters) else found == arch
    kinds['conv' if all(arch.filters) else 'other'] += 1
  assert kinds['other'] > 5


def test_the_least_number_of_weights_of_a_space_by_enumeration():
  """It is that of the network with the most weights where every layer has lost as many filters as it can."""
  cfg = testing.conv_config(filters=(2, 5), filter_heights=(1, 3), filter_widths=(3,), max_depth=3)
  made = conv.make_space(cfg)
  choices = [[slot.width] if slot.kind == Kind.CHOICE else [2] * slot.width for slot in made.slots]
  every = itertools.product(*(range(options) for of_slot in choices for options in of_slot))
  archs = [made.decode(tokens) for tokens in every]
  assert len(archs) == made.size() == 4**3 * 2**3
  most = max(equal_weights.weights(cfg, IMAGES, arch, equal_weights.least(arch)) for arch in archs)
  conv.check(dataclasses.replace(cfg, child_program='auto', child_weights=most), IMAGES)
  with pytest.raises(ValueError, match=rf'child_weights \(={most - 1}\): a network of this space may have {most} '):
    conv.check(dataclasses.replace(cfg, child_program='auto', child_weights=most - 1), IMAGES)


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    ({'layer_types': ('conv', 'max pool')}, r'child_weights \(=3000\) needs filters in every layer'),
    ({'child_program': 'generic'}, 'child_program .*equal weights.*take specialised'),
    ({'child_weights': 10**12}, 'want at most .*a smaller child_weights'),
  ],
)
def test_a_search_that_cannot_have_equal_weights_is_one_line(changes, words):
  cfg = testing.conv_config(**({'child_program': 'specialised', 'child_weights': 3000} | changes))
  with pytest.raises(ValueError, match=words) as error:
    conv.check(cfg, IMAGES)
  testing.one_line(error)


def test_the_command_that_retrains_has_the_weights_of_the_search():
  cfg = testing.conv_config(child_weights=3500)
  assert ' --weights=3.5k' in top.retrain_command('--arch=FILE', CONV, cfg, {})
  assert CONV.length(cfg) == '2 epochs at 3,500 weights' and CONV.length(testing.conv_config()) == '2 epochs'


def test_fewer_filters_are_drawn_and_described():
  options = NetworkOptions(add_filters=-1)
  assert [layer.filters for layer in network(TWO, options).layers] == [1, 2]
  assert '1x3, 2 filters' in space.network.describe(TWO, options)
  assert draw.conv.svg(TWO, options) == draw.conv.svg(wider(TWO, -1))
  assert network(POOLS, options) == network(POOLS)


@pytest.mark.long
def test_a_network_of_fewer_filters_is_trained_resumed_and_loaded(tmp_path, monkeypatch, capsys):
  cfg = config_of('0.03k', '0.09k', epochs=2)
  retraining.run(CONV, cfg, IMAGES, {'mine': TWO}, str(tmp_path))
  rows = json.loads((tmp_path / 'result.json').read_text())['rows']
  assert [(row['size'], row['parameters']) for row in rows] == [('-1', 30), ('+1', 92)]
  assert ' -1 ' in capsys.readouterr().out
  (folder,) = tmp_path.glob('mine-*')
  kept = json.loads((folder / 'trainings.json').read_text())
  assert [(key.split(',')[0], one['size']) for key, one in kept.items()] == [('0.03k', '-1'), ('0.09k', '+1')]
  for row, name in zip(rows, ('model-0.03k-0', 'model-0.09k-0')):
    model = load(folder / name)
    assert model.module.add_filters == int(row['size']) and model.about['weights'] == row['parameters']
    error = np.mean(np.asarray(model(IMAGES.test.images).argmax(-1)) != IMAGES.test.labels)
    np.testing.assert_allclose(error, row['test'][0], rtol=1e-5)
  monkeypatch.setattr(retraining, 'train_stage', None)  # would fail
  retraining.run(CONV, cfg, IMAGES, {'mine': TWO}, str(tmp_path))


def test_without_weights_trainings_have_the_names_they_had():
  """A folder of results from before resumes: its trainings are called '0, lr ...' and their size '+0'."""
  cfg = config_of(add_filters=(0, 2))
  assert retrain_conv.RECIPE.sizes(cfg) == ['0', '2']
  assert [retrain_conv.task(cfg, IMAGES, TWO, size, 1).size for size in ('0', '2')] == ['+0', '+2']
  saved = config.as_json(cfg)
  del saved['weights']
  assert not config.differences(saved, cfg) and config.from_json(retrain_conv.Config, saved) == cfg


@pytest.mark.parametrize(
  ('make', 'words'),
  [
    (lambda: added(TWO, '0.029k'), r'weights \(=0.029k\): .* has 30; ask for at least'),
    (lambda: added(POOLS, '1k'), r'weights \(=1k\): the network has no convolution'),
    (lambda: retrain_conv.check(config_of('100')), "weights: '100' must be a number of weights, as 500k"),
    (lambda: retrain_conv.check(config_of('1k', 'infM')), "weights: 'infM' must be"),
    (lambda: retrain_conv.check(config_of(3)), r'weights \(=3\) must be of type str'),
    (lambda: retrain_conv.check(config_of('9000M')), 'would have 9000000000 weights.*fewer weights'),
    (lambda: retrain_conv.check(config_of('1k', add_filters=(1,))), r'both name sizes: leave add_filters at \(0,\)'),
    (
      lambda: retrain_enas.check(retrain_enas.Config(weights=('1k',), filters=(8,))),
      r'both name sizes: leave filters at \(36,\)',
    ),
    (
      lambda: retrain_enas.first_filters(retrain_enas.Config(cells=1), IMAGES, published.ENAS_MICRO, '0.01k'),
      r'weights \(=0.01k\): .* ask for at least',
    ),
    (lambda: network(TWO, NetworkOptions(add_filters=-2)), r'add_filters \(=-2\) .* of 2 filters: want at least -1'),
  ],
)
def test_what_cannot_be_is_one_line(make, words):
  with pytest.raises(ValueError, match=words) as error:
    make()
  testing.one_line(error)


def test_numbers_of_weights():
  words = ('500k', '4.65M', '72.858k', '100', 'k', '', '-1k', 'nank', '0k')
  assert [retrain.parse_weights(one) for one in words] == [500_000, 4_650_000, 72_858, *[None] * 6]
