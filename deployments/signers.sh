#!/usr/bin/env bash
# The programs that sign proofs, for their tests: ssh-keygen and minisign, from the distribution.
# As root what is missing is installed; otherwise the script says what to run.
set -euo pipefail
packages=()
command -v ssh-keygen >/dev/null || packages+=(openssh-client)
command -v minisign >/dev/null || packages+=(minisign)
[ ${#packages[@]} = 0 ] && exit 0

apt_line="apt-get update && apt-get install -y --no-install-recommends ${packages[*]}"
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
  echo "${packages[*]} not installed: tests of signatures will be skipped. To run them:  sudo sh -c '$apt_line'" >&2
  exit 0
fi
echo "installing ${packages[*]} with apt"
DEBIAN_FRONTEND=noninteractive bash -c "$apt_line" >/dev/null
