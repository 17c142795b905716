"""Search with shared weights (Pham et al. 2018, ENAS), with a random search beside it, whose weights are its own.

--variant says what is searched for: whole networks (macro), cells of networks (micro), or recurrent cells (recurrent).
The same command resumes a search that was cut off. Examples:
  python -m experiments.enas_search --variant=recurrent
  python -m experiments.retrain --arch=runs/enas_search-recurrent-demo/best.json,ENAS_RNN
"""

from collections.abc import Sequence

from absl import flags

from experiments.common import launch, weight_sharing, workdirs
from experiments.common.systems import ENAS, check_workdir


def own_flags(values: flags.FlagValues) -> None:
  """What this launcher takes beside the fields of its configs."""
  presets = {name: None for system in ENAS.values() for name in system.presets}
  launch.search_flags(presets, 'enas_search-VARIANT')(values)
  flags.DEFINE_enum('variant', 'macro', list(ENAS), 'what is searched for', flag_values=values)


def prepare(argv: Sequence[str]) -> launch.Work:
  """Flags, data, search and workdir."""
  values = launch.parse(argv, __doc__ or '', own_flags, *(system.config for system in ENAS.values()))
  system = ENAS[values.variant]
  launch.own_preset(values, system.presets, f'--variant={values.variant}')
  launch.own_fields(values, system.config, {f'--variant={name}': other.config for name, other in ENAS.items()})
  cfg = launch.configure(values, system.presets)
  workdir = values.workdir or f'runs/enas_search-{values.variant}-{values.preset}'
  check_workdir(workdir, system)
  data = system.load(cfg, values.data_dir)
  launch.set_up_jax()
  system.problem(cfg, data)  # which checks what belongs together
  lock = workdirs.lock(workdir)
  cfg = workdirs.open_config(workdir, cfg)
  facts = {'kind': system.kind, 'dataset': cfg.dataset, 'sha256': data.sha256, 'max_children': cfg.samples}
  workdirs.note_origin(workdir, 'enas_search', argv, cfg, **facts)

  def work(check: launch.Check) -> None:
    with lock:
      weight_sharing.run(system, cfg, data, workdir, values.control, check)

  return work


if __name__ == '__main__':
  launch.main(prepare)
