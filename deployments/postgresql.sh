#!/usr/bin/env bash
# The programs of PostgreSQL, from the distribution's package: the end-to-end test starts a cluster of its own with them.
# As root a missing package is installed, without the service that it would start; otherwise the test says what to run.
set -euo pipefail
compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null && exit 0
command -v initdb >/dev/null && exit 0

apt_line="apt-get update && apt-get install -y postgresql"
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
  echo "PostgreSQL is not installed: the test of the deployment will be skipped. To run it:  sudo sh -c '$apt_line'" >&2
  exit 0
fi
echo "installing postgresql with apt"
settings=/etc/postgresql-common/createcluster.conf
if [ ! -e "$settings" ]; then # nobody asked for a database that runs from now on
  mkdir -p "${settings%/*}"
  echo "create_main_cluster = false" >"$settings"
fi
DEBIAN_FRONTEND=noninteractive bash -c "$apt_line" >/dev/null
