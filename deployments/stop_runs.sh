#!/bin/sh
# stop_runs.sh WORKER: what comes before a stop of the worker whose process is WORKER.
# A worker of Prefect's that is told to stop kills its runs at once. Told themselves, they let the objects in flight end
# (for 10 s at most) and are AwaitingRetry at Prefect: a worker continues them. Who calls this bounds the wait.
[ -n "$1" ] || exit 0 # the worker has died: its runs go on by themselves
runs=$(cat "/proc/$1/task/"*/children)
# shellcheck disable=SC2086 # a list of numbers
[ -z "$runs" ] || kill -TERM $runs
for run in $runs; do tail --pid="$run" -f /dev/null; done
