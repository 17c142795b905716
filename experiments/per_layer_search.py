"""Search for a chain of layers with a reward for every layer (Olga Xu), and a random search beside it.

The same command resumes a search that was cut off. Example:
  python -m experiments.per_layer_search --preset=demo --seed=1 --workdir=runs/mine --beside=runs/other/best.json
"""

import functools

from experiments.common import launch, prepare_search
from experiments.common.systems import CHAIN

prepare = functools.partial(prepare_search.prepare, (CHAIN,), __doc__)

if __name__ == '__main__':
  launch.main(prepare)
