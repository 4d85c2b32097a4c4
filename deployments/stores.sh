#!/usr/bin/env bash
# What the servers of tests/stores/ need beside the wheels of .venv-stores: Azurite from npm, Ceph of the distribution.
# As root a missing package of the distribution is installed. What cannot be installed has its tests skipped, and this
# or the test says what to run.
set -euo pipefail
cd "$(dirname "$0")/.."

# debian WHAT PACKAGE...: installs the packages.
debian() {
  local apt_line="apt-get update && apt-get install -y --no-install-recommends ${*:2}"
  if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "$1 is not installed: its tests will be skipped. To run them:  sudo sh -c '$apt_line'" >&2
    return 1
  fi
  echo "installing $1 with apt"
  DEBIAN_FRONTEND=noninteractive bash -c "$apt_line" >/dev/null || {
    echo "$1 cannot be installed with apt: its tests will be skipped" >&2
    return 1
  }
}

command -v radosgw >/dev/null || debian "Ceph RGW" radosgw ceph-mon ceph-osd ceph-common || true

command -v npm >/dev/null || debian "Node.js" nodejs npm || exit 0
lock=tests/servers/stores/package-lock.json azurite=.venv-stores/npm
cmp -s "$lock" "$azurite/installed.json" && exit 0
echo "installing $lock into $azurite"
mkdir -p "$azurite"
cp "$lock" "${lock%-lock.json}.json" "$azurite"
npm ci --prefix "$azurite" --omit=dev --ignore-scripts --no-audit --no-fund --loglevel=error
cp "$lock" "$azurite/installed.json"
