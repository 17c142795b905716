"""Searches by other libraries, driven through `ask` and `tell`, one evaluation at a time.

Each treats the tokens of a space as independent choices. The extra `peers` installs the libraries.
"""

from collections.abc import Callable, Sequence
import importlib
import logging
from typing import Any, NamedTuple
import warnings


class Peer(NamedTuple):
  """A search that has begun."""

  ask: Callable[[], list[int]]  # the tokens of the next architecture
  tell: Callable[[float], None]  # takes the reward of the architecture of the last `ask`; greater is better


def tpe(widths: Sequence[int], evaluations: int, seed: int) -> Peer:
  """Returns Optuna's tree-structured Parzen estimator (Bergstra et al. 2011) with Optuna's default settings."""
  del evaluations
  optuna = importlib.import_module('optuna')
  optuna.logging.set_verbosity(optuna.logging.WARNING)
  study = optuna.create_study(direction='maximize', sampler=optuna.samplers.TPESampler(seed=seed))
  trials = list[Any]()

  def ask() -> list[int]:
    trials.append(study.ask())
    return [trials[-1].suggest_categorical(f'token {t}', range(width)) for t, width in enumerate(widths)]

  return Peer(ask, lambda reward: study.tell(trials[-1], reward))


def nevergrad(widths: Sequence[int], evaluations: int, seed: int) -> Peer:
  """Returns nevergrad's NGOpt, which selects an optimizer according to the space and the budget."""
  ng = importlib.import_module('nevergrad')
  space = ng.p.Tuple(*(ng.p.Choice(range(width)) for width in widths))
  space.random_state.seed(seed)
  optimizer = ng.optimizers.NGOpt(parametrization=space, budget=evaluations, num_workers=1)
  asked = list[Any]()

  def ask() -> list[int]:
    asked.append(optimizer.ask())
    return [int(token) for token in asked[-1].value]

  return Peer(ask, lambda reward: optimizer.tell(asked[-1], -reward))


def pyglove(widths: Sequence[int], evaluations: int, seed: int) -> Peer:
  """Returns PyGlove's regularized evolution (Real et al. 2019) with a population of 50 and tournaments of 10."""
  del evaluations
  pg = importlib.import_module('pyglove')
  evolution = importlib.import_module('pyglove.ext.evolution')
  spec = pg.dna_spec(pg.List([pg.oneof(range(width)) for width in widths]))
  mutator = evolution.mutators.Uniform(seed=seed)
  search = evolution.regularized_evolution(mutator=mutator, population_size=50, tournament_size=10, seed=seed)
  search.setup(spec)
  asked = list[Any]()

  def ask() -> list[int]:
    asked.append(search.propose())
    return [int(token) for token in asked[-1].to_numbers()]

  return Peer(ask, lambda reward: search.feedback(asked[-1], reward))


PEERS: dict[str, Callable[[Sequence[int], int, int], Peer]] = {'tpe': tpe, 'nevergrad': nevergrad, 'pyglove': pyglove}
_LIBRARIES = {'tpe': 'optuna', 'nevergrad': 'nevergrad', 'pyglove': 'pyglove'}


def first_seed(seed: int) -> int:
  """Returns the first of the consecutive seeds, modulo 2**32, that the searches by a peer get for a --seed.

  The default --seed=0 has those from 0. Knuth's multiplicative hashing spreads the others over all 32-bit seeds, so
  that small values of --seed have no seed in common.
  """
  return seed * 2_654_435_761 % 2**32


def check(names: Sequence[str]) -> None:
  """Raises ImportError with a one-line message if the library of a peer is not installed."""
  logging.getLogger('optuna').setLevel(logging.WARNING)
  for name in names:
    try:
      with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        importlib.import_module(_LIBRARIES[name])
    except ImportError as error:
      raise ImportError(
        f'{name} needs {_LIBRARIES[name]}, which is not installed ({error}): pip install nas_jax[peers], or leave '
        f'{name} out of --algorithms.'
      ) from None
