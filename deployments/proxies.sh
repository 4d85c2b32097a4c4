#!/usr/bin/env bash
# The proxies and the web server that the tests of networks start: tinyproxy, squid and nginx, from the distribution.
# As root what is missing is installed, without the services that it would start; otherwise the script says what to run.
set -euo pipefail
packages=()
command -v tinyproxy >/dev/null || packages+=(tinyproxy-bin)
PATH=$PATH:/usr/sbin command -v squid >/dev/null || packages+=(squid-openssl)
PATH=$PATH:/usr/sbin command -v nginx >/dev/null || packages+=(nginx-light)
[ ${#packages[@]} = 0 ] && exit 0

apt_line="apt-get update && apt-get install -y --no-install-recommends ${packages[*]}"
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
  echo "${packages[*]} not installed: tests of networks will be skipped. To run them:  sudo sh -c '$apt_line'" >&2
  exit 0
fi
echo "installing ${packages[*]} with apt"
DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 bash -c "$apt_line" >/dev/null
