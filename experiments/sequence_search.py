"""Search for a recurrent cell that reads sequences with labels, or forecasts a time series.

A random search runs beside it. The same command resumes a search that was cut off. Examples:
  python -m experiments.sequence_search --preset=demo --seed=1 --workdir=runs/mine
  python -m experiments.sequence_search --dataset=folder --data_dir=recordings --test_share=0.2
  python -m experiments.sequence_search --dataset=series.csv --metric=r2 --window=48 --horizon=12 --test_share=0.2
"""

import functools

from experiments.common import launch, prepare_search
from experiments.common.systems import SEQUENCE

prepare = functools.partial(prepare_search.prepare, (SEQUENCE,), __doc__)

if __name__ == '__main__':
  launch.main(prepare)
