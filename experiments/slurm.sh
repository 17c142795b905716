#!/usr/bin/env bash
# A search on a cluster with SLURM: sbatch experiments/slurm.sh cell_search --preset=paper --data_dir=... --workdir=...
# The workdir must be on a disk that all nodes share, or at least always on the first one. Adapt the lines below. JAX
# gives each process one GPU of its node, so there are as many tasks as GPUs. Has not been run by the authors.
#SBATCH --job-name=nas_jax
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=4
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@120
set -eu
launcher=$1
shift
# A host that ends must not take the others with it before they have saved their work.
srun --kill-on-bad-exit=0 experiments/again.sh .venv/bin/python -m "experiments.$launcher" --hosts "$@"
