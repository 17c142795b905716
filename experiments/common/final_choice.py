"""The final choice of a search: its best children are trained to convergence, and one of them is chosen.

The short training of children does not separate the best few reliably. So these are trained by the recipe of `retrain`,
and the best by validation is chosen. The random-search baseline makes its choice in the same way. Both chosen
architectures are then trained again with new seeds, and compared with known architectures with as many weights.
"""

from collections.abc import Mapping
import os

from experiments.common import retraining, rung_stage, workdirs
from experiments.common.stages import Found, Run
from experiments.common.systems import Arch, Config, Data, System, goal
from nas_jax import draw, search, words
from nas_jax.report import rankings, rungs
from nas_jax.search import journal
from nas_jax.systems.retrain import FinalChoice

NAME = 'final choice'  # the phase of a run


def of(system: System, cfg: Config, data: Data) -> FinalChoice | None:
  """Returns the settings of a search's final choice, or None if it makes none.

  Raises:
    ValueError: a final choice is impossible with this data. Nothing has been compiled by then.
  """
  if not (system.alone and system.alone.final and cfg.final_children):
    return None
  try:
    return system.alone.final(cfg, data)
  except ValueError as error:
    raise _refused(cfg, error) from None


def check(system: System, cfg: Config, data: Data, workdir: str) -> None:
  """Raises ValueError if the final choice of a search is impossible, or its workdir has one of other settings.

  Nothing has been compiled by then.
  """
  if choice := of(system, cfg, data):
    try:
      workdirs.check_config(os.path.join(workdir, 'final'), choice.cfg)
    except ValueError as error:
      raise _refused(cfg, error) from None


def _refused(cfg: Config, error: ValueError) -> ValueError:
  """Returns the error that also says how to do without a final choice."""
  return ValueError(f'final_children (={cfg.final_children}): {error} Or leave it out: --final_children=0.')


def work(run: Run, searches: int) -> float:
  """Returns the work of the final choice of this many searches, in trainings of a child; 0 if they make none."""
  choice = of(run.system, run.cfg, run.data)
  if choice is None:
    return 0.0
  cfg = choice.cfg
  groups, known = searches + len(choice.references), len(choice.references)
  return choice.epoch * retraining.epochs_of_choice(run.system, cfg, searches * run.cfg.final_children + known, groups)


def run(run: Run, found: Mapping[str, Found]) -> str:
  """Makes the final choice or completes it, and returns its results as text; '' if the search makes none.

  Every training is kept in the folder `final` of the workdir, so that none is repeated. The folder is a folder of
  results of `retrain`, with best.json for the chosen child.

  Args:
    run: the search.
    found: the search and its random-search baseline, by the name of the algorithm.
  """
  system, choice = run.system, of(run.system, run.cfg, run.data)
  if choice is None:
    return ''
  folder, made = os.path.join(run.workdir, 'final'), run.problem.space
  workdirs.open_config(folder, choice.cfg)
  records: dict[str, journal.Record] = {}
  groups: dict[str, Mapping[str, Arch]] = {}
  for name, searched in found.items():
    each = rung_stage.of(system, run.cfg, made, searched.folder, searched.records)
    best = rungs.best_first(each, made, goal(system, run.cfg))[: run.cfg.final_children]
    named = {f'{name} child {record["id"]}': record for _, record in best}
    groups[name] = {who: rankings.arch_of(made, record) for who, record in named.items()}
    records |= named
  groups |= {name: {name: arch} for name, arch in choice.references.items()}
  trainings = retraining.epochs_of_choice(
    system, choice.cfg, sum(map(len, groups.values())), len(list(filter(None, groups.values())))
  )
  with run.progress.phase(NAME, trainings, 'epochs') as advance:
    result = retraining.choose(system, choice.cfg, run.data, groups, folder, run.recovery.check, advance)
  chosen = [row['name'] for row in result['rows'] if row['name'] in groups[search.title(run.cfg)]]
  own = [f'{who}:\n{draw.words(rankings.arch_of(made, records[who]), made)}' for who in chosen[:1]]
  if chosen:
    workdirs.write(os.path.join(folder, 'best.json'), rankings.best_json(made, records[chosen[0]]))
  return '\n'.join(
    [
      f'Trained to convergence, mean and standard deviation over {words.counted(choice.cfg.repeats, "training")}:',
      '',
      retraining.table(result['rows'], system),
      result['setting'],
      retraining.candidates(result, system),
      *own,
      '',
      f'The scores that follow are those of the search itself, {system.length(run.cfg)} for each {system.noun}.',
      f'So short a training favours {system.noun}s that learn fast: these scores differ from those above, and so may '
      'their order.',
      '',
    ]
  )
