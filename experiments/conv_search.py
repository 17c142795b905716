"""Search for a convolutional network (Zoph & Le 2017, Sec. 3.3), with a random search beside it.

The same command resumes a search that was cut off. Example:
  python -m experiments.conv_search --preset=demo --seed=1 --workdir=runs/mine --beside=runs/other/best.json
"""

import functools

from experiments.common import launch, prepare_search
from experiments.common.systems import CONV

prepare = functools.partial(prepare_search.prepare, (CONV,), __doc__)

if __name__ == '__main__':
  launch.main(prepare)
