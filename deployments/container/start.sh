#!/bin/sh
# start.sh server | worker: how the image runs as one of these. Secrets are files in /run/secrets, and become variables of
# this process alone: NAME.env has a VARIABLE=value a line, as deployments/systemd/*.env.example have.
# A file that is there and cannot be read ends it: a server without its password would let in every client.
set -eu
secrets=${FERRY_SECRETS:-/run/secrets}
is_there() {
  [ -e "$1" ] || return 1
  [ -r "$1" ] && [ -f "$1" ] || fail "$1 cannot be read by user $(id -u): give it that owner (README.md)"
}
fail() {
  echo "start.sh: $1" >&2
  exit 1
}
[ ! -e "$secrets" ] || [ -x "$secrets" ] || fail "$secrets cannot be entered by user $(id -u)"
set -a
# shellcheck source=/dev/null
if is_there "$secrets/$1.env"; then . "$secrets/$1.env"; fi
# shellcheck disable=SC2034 # set -a exports it
if is_there "$secrets/database_password"; then PREFECT_SERVER_DATABASE_PASSWORD=$(cat "$secrets/database_password"); fi
set +a
case $1 in
server)
  [ -n "${PREFECT_SERVER_API_AUTH_STRING:-}" ] ||
    fail "PREFECT_SERVER_API_AUTH_STRING is empty: set it in $secrets/server.env or the environment"
  exec prefect server start --host 0.0.0.0 --port 4200
  ;;
worker)
  # Before the worker starts, so that no signal finds the shell without it. $! is empty until then.
  trap '[ -z "${!:-}" ] && exit 143; stop_runs.sh "$!"; kill -TERM "$!" 2>/dev/null' TERM INT
  # Two runs at a time, which the container's 4 GB hold; more wait at the server (docs/how-to/many-jobs.md).
  # A shell's `&` would have it ignore SIGINT, which a worker sends itself to end.
  env --default-signal=INT prefect worker start --pool ferry --type process --limit "${FERRY_WORKER_LIMIT:-2}" \
    --install-policy never --with-healthcheck &
  worker=$!
  wait "$worker" || true
  while kill -0 "$worker" 2>/dev/null; do wait "$worker" || true; done # a signal ends a wait as well
  # Its code is known to the shell from now on, whichever wait met its end.
  code=0
  wait "$worker" || code=$?
  exit "$code"
  ;;
*)
  echo "start.sh: say server or worker, not \`$1\`" >&2
  exit 2
  ;;
esac
