#!/usr/bin/env bash
# Starts a search on all hosts of a TPU slice, shows its logs, or stops it. Run it from a checkout on your own machine:
#   experiments/tpu_vm.sh start NAME ZONE cell_search --preset=paper --data_dir=/mnt/data --workdir=/mnt/runs/paper
#   experiments/tpu_vm.sh log NAME ZONE
#   experiments/tpu_vm.sh stop NAME ZONE
# NAME is a TPU VM that exists. What is committed is copied to ~/nas_jax of each host, with an environment of its own.
# The search is restarted on each host by again.sh. It has not been run on a TPU by the authors.
set -eu
GCLOUD=${GCLOUD:-gcloud}

usage() {
  sed -n '2,7s/^# //p' "$0" >&2
  exit 2
}

[ $# -ge 3 ] || usage
what=$1 name=$2 zone=$3
shift 3

everywhere() {
  "$GCLOUD" compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="$1"
}

case $what in
  start)
    [ $# -ge 1 ] || usage
    launcher=$1
    shift
    archive=$(mktemp -d)/nas_jax.tar.gz
    git archive --format=tar.gz -o "$archive" HEAD
    "$GCLOUD" compute tpus tpu-vm scp "$archive" "$name:nas_jax.tar.gz" --zone="$zone" --worker=all
    # uv brings a Python that is new enough: that of the images of TPU VMs may not be.
    everywhere 'set -e
mkdir -p nas_jax && tar xzf nas_jax.tar.gz -C nas_jax && cd nas_jax
python3 -m pip install --quiet --user uv
[ -x .venv/bin/python ] || python3 -m uv venv --quiet --python 3.12 .venv
python3 -m uv pip install --quiet --python .venv/bin/python -r requirements-tpu.txt'
    command=$(printf ' %q' -m "experiments.$launcher" --hosts "$@")
    everywhere "cd nas_jax && { nohup experiments/again.sh .venv/bin/python$command >> search.log 2>&1 < /dev/null & echo \$! > search.pid; }"
    ;;
  log) everywhere 'hostname; tail -n 20 nas_jax/search.log' ;;
  stop) everywhere 'kill -TERM "$(cat nas_jax/search.pid)"' ;;
  *) usage ;;
esac
