"""The comparison of search algorithms: benchmarks, algorithms and peers, their statistics, tables and pictures."""
