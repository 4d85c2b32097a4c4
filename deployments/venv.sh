#!/usr/bin/env bash
# Makes a virtual environment from a hash-locked requirements file: venv.sh PYTHON REQUIREMENTS [FOLDER [BELOW]]
# Without FOLDER that is .venv, with Ferry itself in it. With BELOW, another environment, only what that has not in the
# same version is installed.
# What is missing on a bare Debian or Ubuntu is installed as root, and named otherwise.
set -euo pipefail
python=$1 requirements=$2 venv=${3:-.venv} below=${4:-}

apt_line="apt-get update && apt-get install -y python3 python3-venv"
missing() {
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "installing python3 and python3-venv with apt"
    DEBIAN_FRONTEND=noninteractive bash -c "$apt_line" >/dev/null
  else
    echo "$1. Run this, then try again:  sudo sh -c '$apt_line'" >&2
    exit 1
  fi
}

command -v "$python" >/dev/null || missing "python3 is not installed"
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
  echo "Python 3.11 or newer is needed; $python is $("$python" -V 2>&1). Name another: make PYTHON=python3.12 ..." >&2
  exit 1
fi
"$python" -c 'import ensurepip, venv' 2>/dev/null || missing "python3-venv is not installed"

[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
packages='import sysconfig; print(sysconfig.get_path("purelib"))'
[ -z "$below" ] || "$below/bin/python" -c "$packages" >"$("$venv/bin/python" -c "$packages")/below.pth"
echo "installing $requirements into $venv"
# The lock names every package: there is nothing to resolve, and of what production needs nothing is built here.
wheels=
if [ "$requirements" = requirements.txt ]; then wheels=--only-binary=:all:; fi
"$venv/bin/python" -m pip install --quiet --no-compile --no-deps ${wheels:+$wheels} --require-hashes -r "$requirements" 2>&1 | { grep -v '^WARNING: Location' || true; }
[ "$venv" = .venv ] || exit 0
.venv/bin/python -m pip install --quiet --no-deps --no-build-isolation --no-index --editable .
.venv/bin/python deployments/first_start.py
