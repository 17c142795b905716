"""Workdirs as pages: reads the files of a search and writes its report. The search may still be running."""

from collections.abc import Callable, Mapping, Sequence
import functools
import glob
import math
import os
import time
from typing import Any

from experiments.common import arch_files, rung_stage, top, workdirs
from experiments.common.systems import System, for_config, goal, system_of
from experiments.common.weight_sharing import OTHER_DATA
from nas_jax import config, draw, search, space, words
from nas_jax.report import headline, model, page, rankings, reliability, replay_picture, rungs, style
from nas_jax.search import journal, replay_tree


def pictures(report: model.Report) -> dict[str, str]:
  """Returns SVG pictures of the best architecture and of the best score over the search, by file name.

  Raises ValueError if no child has been trained without failing yet.
  """
  if not report.winners:
    raise ValueError('there is nothing to draw: no child has been trained without failing yet.')
  found = {'best.svg': report.winners[0].drawing, 'search.svg': page.best_so_far(report)}
  return {name: style.as_file(svg) for name, svg in found.items()}


def make(workdir: str, cfg: Any = None) -> str:
  """Returns the page of a workdir as HTML. The arguments and errors are those of `read`."""
  return page.render(read(workdir, cfg))


def refresher(workdir: str, cfg: Any = None) -> search.Hook:
  """Returns a hook that rewrites the page of a running search if the page is over `page.REFRESH` seconds old."""
  written = time.monotonic()

  def step(state: search.SearchState, info: Mapping[str, Any]) -> None:
    nonlocal written
    if time.monotonic() - written > page.REFRESH:
      workdirs.write(os.path.join(workdir, 'report.html'), page.render(read(workdir, cfg), page.REFRESH))
      written = time.monotonic()

  return search.Hook(step=step)


def write(workdir: str, text: str, name: str = 'report.html') -> None:
  """Writes a page into a workdir and prints its path."""
  path = os.path.join(workdir, name)
  workdirs.write(path, text)
  print(f'report: {path}')


def read(workdir: str, cfg: Any = None) -> model.Report:
  """Returns the content of a workdir as the data of a page.

  Args:
    workdir: the folder of the search.
    cfg: the config of the search. It is required if the search has operations of the user's own, as config.json has
      only their names.

  Raises:
    ValueError: a file is damaged or missing, and the message names it; or the search has operations of the user's own
      and `cfg` is not given.
  """
  saved, origin, system, cfg = _opened(workdir, cfg)
  made = system.make_space(cfg)
  own, control = search.title(cfg), os.path.join(workdir, 'control')
  folders = {own: workdir} | ({'random': control} if os.path.isdir(control) else {})
  runs = {name: _run(folder, system, made, name) for name, folder in folders.items()}
  measured = workdirs.peek(os.path.join(workdir, 'yardsticks.json')) or {}
  known = {name: workdirs.scores_of(entry) for name, entry in measured.items()}
  records = {name: run.records for name, run in runs.items() if run.records}
  rows = rankings.standings(records, known, made, system.metric.key, system.metric.lower)
  derived = dict[str, float]()
  for name, folder in (own, workdir), ('random', control):
    lines = workdirs.peek_derived(folder, made, system.metric.key)
    rows += rankings.derived(name, lines, system.metric.key)
    if lines and lines[0]['failed'] is None:
      derived[name] = lines[0][system.metric.key]
  each_rung = {name: rung_stage.of(system, cfg, made, folder, runs[name].records) for name, folder in folders.items()}

  def length(rung: int) -> str:
    return rung_stage.length(system, cfg, rung)

  training = system.length(cfg)
  children, (key, _, lower) = runs[own].records, system.metric
  views = [(name, rankings.grouped(children, made, key, lower, kind)) for name, kind in system.views.items()]
  retrained = os.path.join(workdir, 'retrain*', 'result.json')
  converged = _converged(workdir, system)
  return model.Report(
    title=f'Search for a {system.noun}, {os.path.basename(os.path.abspath(workdir))}',
    noun=system.noun,
    metric=system.metric,
    budget=_budget(system, cfg, origin),
    runs=tuple(runs.values()),
    slots=made.slots,
    reliability=_reliability(workdir, system, cfg),
    ranking=workdirs.peek(os.path.join(workdir, 'ranking.json')),
    winners=_winners(workdir, system, cfg, made, each_rung[own], length, converged),
    standings=((f'{system.metric.name}, {training}', *rankings.HEADER), rows),
    retrained=[result for path in sorted(glob.glob(retrained)) if (result := workdirs.peek(path))['rows']],
    facts=_facts(cfg, origin, made, runs),
    config=saved,
    caveat=_caveat(system, training),
    views=[view for view in views if view[1]],
    remembered=_remembered(os.path.join(workdir, 'replay.json'), made),
    shared=system.alone is None,
    derived=derived,
    converged=converged,
    glance=_glance(system, cfg, origin, made, runs),
    use=_use(workdir, system, cfg, origin),
    links=[name for name in LINKS if os.path.exists(os.path.join(workdir, name))],
    name=os.path.basename(os.path.abspath(workdir)),
    rungs=((system.metric.name, *rungs.HEADER), rungs.rows(each_rung, length, made, system.metric)),
    explained=system.explained if known else '',
  )


def _opened(workdir: str, cfg: Any = None) -> tuple[Mapping[str, Any], Mapping[str, Any], System, Any]:
  """Returns the config.json and the origin.json of a workdir, its system and its config. The errors are `read`'s."""
  saved = workdirs.peek(os.path.join(workdir, 'config.json'))
  if saved is None:
    raise ValueError(f'workdir (={workdir!r}) holds no search: there is no config.json in it. Name one that does.')
  origin = workdirs.peek(os.path.join(workdir, 'origin.json')) or {}
  system = system_of(saved, origin)
  if system is None:
    raise ValueError(f'{workdir}/config.json is of no system known here: it has the fields {", ".join(saved)}.')
  if cfg is None:
    cfg = config.from_json(system.config, saved)
    config.check(cfg)
  return saved, origin, for_config(system, cfg), cfg


def write_top(workdir: str, most: int) -> None:
  """Writes top.json of a search, running or ended, and prints what it holds.

  The errors are those of `read`, and ValueError if no child has been trained without failing.
  """
  _, _, system, cfg = _opened(workdir)
  if not top.write(workdir, system, cfg, most):
    raise ValueError(f'top (={most}): no child of the search in {workdir} has been trained without failing yet.')
  print(top.said(workdir, system, cfg))


def _caveat(system: System, training: str) -> str:
  if system.alone is None:
    return f'Scores are by {training}, each on one minibatch: what leads here need not lead when trained by itself.'
  return (
    f'Every child had {training} and no more. Short budgets favour fast learners: what leads here need not lead after '
    'a whole training. Top 5 and top 15 are means over different architectures.'
  )


def _run(folder: str, system: System, made: space.Space, name: str) -> model.Run:
  found = journal.read(os.path.join(folder, 'children.jsonl'), schema=journal.child_of(made))
  records = [found[number] for number in sorted(found)]
  updates = journal.read(os.path.join(folder, 'updates.jsonl'), by='step', schema=journal.update_of(made))
  key, lower = system.metric.key, system.metric.lower
  best, top = (rankings.progress(records, made, key, lower, k) for k in (1, 5))
  return model.Run(name, records, best, top, [updates[step] for step in sorted(updates)])


def _winners(
  workdir: str,
  system: System,
  cfg: Any,
  made: space.Space,
  each_rung: Sequence[Sequence[journal.Record]],
  length: Callable[[int], str],
  converged: Mapping[str, Any] | None,
) -> list[model.Winner]:
  """Returns the child of the final choice, if there is one, and the best three children by the search's `goal`.

  Where weights are shared, the three are architectures derived after the search. With successive halving, children of
  the longest rung come first.
  """
  derived, winners = workdirs.peek_derived(workdir, made, system.metric.key), list[model.Winner]()
  options = system.options(cfg)
  path = os.path.join(workdir, 'final', 'best.json')
  chosen = workdirs.peek(path) if converged and os.path.exists(path) else None
  if chosen and converged:
    first = converged['rows'][0]
    score = f'test {converged["metric"]} {rankings.spread(first["test"])}'
    title = f'{headline.capital(headline.called(first["name"]))}, {score}'
    winners.append(_winner(title, arch_files.read_arch(path, made.kind), made, options))
  best = rungs.best_first([derived] if derived else each_rung, made, goal(system, cfg))
  for place, (rung, record) in enumerate(best[:3], 1):
    who = 'Derived after the search' if derived else f'Child {record["id"]}'
    title = f'{place}. {who}, {system.metric.name} {rankings.word(record[system.metric.key])}'
    title += f' after {length(rung)}' if rung > 1 else ''
    if not chosen or derived or record['id'] != chosen['id']:
      winners.append(_winner(title, rankings.arch_of(made, record), made, options))
  return winners


def _winner(title: str, arch: Any, made: space.Space, options: Sequence[Any]) -> model.Winner:
  return model.Winner(title, draw.words(arch, made, *options), draw.picture(arch, made, *options))


def _remembered(path: str, made: space.Space) -> str:
  """Returns the replay tree of a search that has one, as an SVG element."""
  if not os.path.exists(path):
    return ''
  labels = made.slots[0].labels
  return replay_picture.svg(arch_files.read_file(path, functools.partial(replay_tree.from_json, labels=labels)), labels)


def _reliability(workdir: str, system: System, cfg: Any) -> list[model.Correlation]:
  if ranks := workdirs.peek(os.path.join(workdir, 'ranks.json')):
    passes = words.counted(ranks['passes'], 'pass', 'passes')
    alone = f'{passes} alone, {ranks["children"]} random ones (Kendall)'
    names = {name: f'{name}, {alone}' for name in ('two seeds', OTHER_DATA)}
    return [
      model.Correlation(
        names.get(name, f'weights shared by {name} and {alone}'),
        math.nan if value is None else value,
        failed=ranks.get('failed', {}).get(name),
      )
      for name, value in ranks['kendall'].items()
    ]
  found = workdirs.peek(os.path.join(workdir, 'reliability.json'))
  if found is None or system.alone is None:
    return []
  training, longer = system.length(cfg), system.length(system.alone.scale_budget(cfg, 5))
  measured = reliability.from_json(found)
  of = f', {headline.children(measured.children)}'
  return [
    model.Correlation(
      between if one is measured.budget else between + of,
      one.all,
      0.5 if one is measured.budget else 0.7,
      one.quarter,
      one.failed,
      one.regret,
    )
    for between, one in reliability.in_words(measured, training, longer).items()
  ]


def _converged(workdir: str, system: System) -> Mapping[str, Any] | None:
  """Returns the results of the final choice and their metric, or None if no final choice has been made."""
  path = os.path.join(workdir, 'final', 'result.json')
  result = workdirs.peek(path) if os.path.exists(path) else None
  return {**result, 'metric': system.retrain.metric} if result and system.retrain and result['rows'] else None


def _budget(system: System, cfg: Any, origin: Mapping[str, Any]) -> int:
  """Returns how many children a search was asked to train."""
  return int(origin.get('max_children', system.children(cfg)))


def _glance(
  system: System, cfg: Any, origin: Mapping[str, Any], made: space.Space, runs: Mapping[str, model.Run]
) -> list[tuple[str, str]]:
  """Returns the facts at the head of the page: data, space, search, budget and reward."""
  asked, most = _budget(system, cfg, origin), max(len(run.records) for run in runs.values())
  each = ' each' if len(runs) > 1 else ''
  more = f' ({most:,} were trained, because the last update was finished)' if most > asked else ''
  return [
    ('data', cfg.dataset),
    ('space', words.counted(made.size(), system.noun)),
    ('search', search.title(cfg)),
    ('budget', f'{headline.children(asked)}{each}{more}, {system.length(cfg)}'),
    ('reward', system.reward(cfg)),
  ]


# Files of a workdir that the page links to.
LINKS = ('best.json', 'top.json', 'final/best.json', 'children.jsonl', 'rungs.jsonl', 'config.json', 'summary.txt')


def _use(workdir: str, system: System, cfg: Any, origin: Mapping[str, Any]) -> list[model.Use]:
  """Returns next steps with the best architecture; none if there is no architecture yet."""
  places = [os.path.join(workdir, name) for name in ('final/best.json', 'best.json')]
  best = next((path for path in places if os.path.exists(path)), None)
  if best is None:
    return []
  options = system.options(cfg)
  lines = [
    'from nas_jax import draw, space',
    f"arch = space.from_json(open('{best}').read())",
    f'print(draw.describe({", ".join(map(str, ("arch", *options)))}))',
  ]
  if options:
    lines.insert(1, 'from nas_jax.space.network import NetworkOptions')
  if system.kind == 'tree_cell':
    lines = ['import flax.linen as nn', 'from nas_jax import space, tree_cell', lines[1]]
    lines += ['layer = nn.RNN(tree_cell.TreeCell(features=64, arch=arch))']
  found = [model.Use('Use it in Python', '\n'.join(lines))]
  if command := top.retrain_command(f'--arch={best}', system, cfg, origin):
    found.append(model.Use('Train it to the end', command))
  several = os.path.join(workdir, top.FILE)
  if os.path.exists(several) and (command := top.retrain_command(f'--arch={several}', system, cfg, origin)):
    found.append(model.Use(f'Train the {top.best(workdir, system)} to the end', command))
  return found


def _facts(
  cfg: Any, origin: Mapping[str, Any], made: space.Space, runs: Mapping[str, model.Run]
) -> list[tuple[str, str]]:
  unknown = 'not recorded'
  spent = sum(record['seconds'] for run in runs.values() for record in run.records) / 60
  both = ', random search included' if len(runs) > 1 else ''
  return [
    ('command', origin.get('command', unknown)),
    ('sha256 of the data', origin.get('sha256', unknown)),
    ('seed', config.seeds_in_words(cfg).removeprefix('seed ')),
    ('token sequences', words.counted(made.size(), 'token sequence')),
    ('training of children', f'{spent:.1f} minutes{both}'),
    ('devices', f'{origin.get("devices", unknown)}, jax {origin.get("jax", unknown)}'),
  ]
