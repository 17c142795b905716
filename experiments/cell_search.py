"""Search for a recurrent cell (Zoph & Le 2017, Sec. 3.4), with a random search beside it.

The same command resumes a search that was cut off. Example:
  python -m experiments.cell_search --preset=demo --seed=1 --workdir=runs/mine --beside=runs/other/best.json
"""

import functools

from experiments.common import launch, prepare_search
from experiments.common.systems import CELL

prepare = functools.partial(prepare_search.prepare, (CELL,), __doc__)

if __name__ == '__main__':
  launch.main(prepare)
