#!/usr/bin/env bash
# Runs a command, and runs it again for as long as its exit code means that the same command goes on: a host was lost
# (75, and 134 on the others), or the process crashed or was killed (134 to 137, 139). Any other exit code is its own:
# 0 the end, 2 wrong input, 74 a full disk, 130 and 143 asked to end. SIGTERM and SIGINT are passed on. Example:
#   experiments/again.sh python -m experiments.cell_search --hosts --workdir=/shared/runs/mine
# AGAIN_SECONDS is the pause before the next start; 10 by default.
set -um # each command gets a process group of its own, so that a signal reaches it once, from here
child= asked=
trap 'asked=1; [ -z "$child" ] || kill -TERM "$child"' TERM
trap 'asked=1; [ -z "$child" ] || kill -INT "$child"' INT
while true; do
  "$@" &
  child=$!
  wait "$child"
  code=$?
  while kill -0 "$child" 2>/dev/null; do # a signal has ended the waiting, and not the command
    wait "$child"
    code=$?
  done
  child=
  case $code in
    75 | 134 | 135 | 136 | 137 | 139) [ -z "$asked" ] || exit "$code" ;;
    *) exit "$code" ;;
  esac
  echo "$(date -u +%FT%TZ) exit code $code: again in ${AGAIN_SECONDS:-10} s" >&2
  sleep "${AGAIN_SECONDS:-10}"
  [ -z "$asked" ] || exit 143
done
