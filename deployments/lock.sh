#!/usr/bin/env bash
# Writes the hash locks from pyproject.toml, for every platform and Python 3.11 or newer. Needs uv.
# The files carry names, versions and hashes, and no index's address.
set -euo pipefail
compile() {
  uv pip compile --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --quiet "$@"
}
build=$(mktemp --suffix=.in)
trap 'rm -f "$build"' EXIT
printf 'setuptools>=80\nwheel\n' >"$build" # for the editable install of Ferry itself
compile pyproject.toml "$build" --extra demo -o requirements.txt
compile pyproject.toml "$build" --extra demo --extra dev -c requirements.txt -o requirements-dev.txt
compile tests/bench/requirements.in -o requirements-bench.txt # a virtual environment of its own, clashing with ours
