"""Search with shared weights (Pham et al. 2018, ENAS), and a random search that shares weights of its own.

--variant selects the search space: whole networks (macro), cells of networks (micro), or recurrent cells (recurrent).
The same command resumes a search that was cut off. Examples:
  python -m experiments.enas_search --variant=recurrent
  python -m experiments.retrain --arch=runs/enas_search-recurrent-demo/best.json,ENAS_RNN
"""

import functools

from experiments.common import launch, prepare_search
from experiments.common.systems import ENAS

prepare = functools.partial(prepare_search.prepare, ENAS, __doc__)

if __name__ == '__main__':
  launch.main(prepare)
