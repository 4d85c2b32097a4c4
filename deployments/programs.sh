#!/usr/bin/env bash
# Programs that tests start, from the distribution: programs.sh WHAT PROGRAM:PACKAGE... (the Makefile has the lists).
# As root what is missing is installed, without the services that it would start; otherwise the script says what to run.
set -euo pipefail
what=$1
shift
packages=()
for program in "$@"; do
  PATH=$PATH:/usr/sbin command -v "${program%:*}" >/dev/null || packages+=("${program#*:}")
done
[ ${#packages[@]} = 0 ] && exit 0

apt_line="apt-get update && apt-get install -y --no-install-recommends ${packages[*]}"
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
  echo "${packages[*]} not installed: $what will be skipped. To run them:  sudo sh -c '$apt_line'" >&2
  exit 0
fi
echo "installing ${packages[*]} with apt"
DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 bash -c "$apt_line" >/dev/null
