#!/bin/sh
# start.sh server | worker: how the image runs as one of these. Secrets are files in /run/secrets, and become variables of
# this process alone: NAME.env has a VARIABLE=value a line, as deployments/systemd/*.env.example have.
set -eu
secrets=${FERRY_SECRETS:-/run/secrets}
set -a
# shellcheck source=/dev/null
if [ -r "$secrets/$1.env" ]; then . "$secrets/$1.env"; fi
# shellcheck disable=SC2034 # set -a exports it
if [ -r "$secrets/database_password" ]; then PREFECT_SERVER_DATABASE_PASSWORD=$(cat "$secrets/database_password"); fi
set +a
case $1 in
server)
  exec prefect server start --host 0.0.0.0 --port 4200
  ;;
worker)
  # A shell's `&` would have it ignore SIGINT, which a worker sends itself to end.
  env --default-signal=INT prefect worker start --pool ferry --type process --install-policy never --with-healthcheck &
  worker=$!
  trap 'stop_runs.sh "$worker"; kill -TERM "$worker" 2>/dev/null' TERM INT
  code=0
  wait "$worker" || code=$?
  if kill -0 "$worker" 2>/dev/null; then # it was the signal that ended the wait
    wait "$worker" || code=$?
  fi
  exit "$code"
  ;;
*)
  echo "start.sh: say server or worker, not \`$1\`" >&2
  exit 2
  ;;
esac
