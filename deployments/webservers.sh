#!/usr/bin/env bash
# The web servers that load Ferry's redirects in tests: nginx, Apache, HAProxy and Caddy, from the distribution.
# As root what is missing is installed, without the services that it would start; otherwise the script says what to run.
set -euo pipefail
packages=()
for program in nginx:nginx-light apache2:apache2 haproxy:haproxy caddy:caddy; do
  PATH=$PATH:/usr/sbin command -v "${program%:*}" >/dev/null || packages+=("${program#*:}")
done
[ ${#packages[@]} = 0 ] && exit 0

apt_line="apt-get update && apt-get install -y --no-install-recommends ${packages[*]}"
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
  echo "${packages[*]} not installed: tests of redirects will be skipped. To run them:  sudo sh -c '$apt_line'" >&2
  exit 0
fi
echo "installing ${packages[*]} with apt"
DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 bash -c "$apt_line" >/dev/null
