#!/usr/bin/env bash
# Writes the hash locks from pyproject.toml, for every platform and Python 3.11 or newer. Needs uv, and npm for Azurite.
# The files carry names, versions and hashes, and no index's address. What a lock has stays as long as it is allowed:
# `uv pip compile --upgrade` moves on.
set -euo pipefail
oldest='prefect==3.8.8' newest='prefect>=3.9' # the ends of pyproject.toml's range: `make test`, `make test-prefect`
compile() {
  uv pip compile --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --quiet "$@"
}
build=$(mktemp --suffix=.in) end=$(mktemp --suffix=.in)
trap 'rm -f "$build" "$end"' EXIT
printf 'setuptools>=80\nwheel\n' >"$build" # for the editable install of Ferry itself
echo "$oldest" >"$end"
compile pyproject.toml "$build" -c "$end" -o requirements.txt
compile pyproject.toml "$build" --extra demo -c requirements.txt -o requirements-demo.txt
compile pyproject.toml "$build" --extra demo --extra dev --extra azure --extra gcs -c requirements.txt -o requirements-dev.txt
cp requirements-dev.txt requirements-prefect-newest.txt # all that may stay the same does, and is not installed twice
echo "$newest" >"$end"
compile pyproject.toml "$build" --extra demo --extra dev --extra azure --extra gcs -c "$end" -o requirements-prefect-newest.txt
compile benchmarks/requirements.in -o requirements-bench.txt # a virtual environment of its own, clashing with ours
compile tests/servers/stores/requirements.in -o requirements-stores.txt # servers, in another
# integrity and no address: npm takes the registry that it is configured with
(cd tests/servers/stores && npm install --package-lock-only --omit-lockfile-registry-resolved=true --no-audit --no-fund)
