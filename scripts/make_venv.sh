#!/bin/sh
# make_venv.sh PYTHON FOLDER: a virtual environment, or one sentence about what is missing.
set -eu
python=$1 folder=$2

fail() {
  echo "mcpmeter: $*" >&2
  exit 1
}

command -v "$python" >/dev/null || fail "there is no '$python'. Install Python 3.11 or newer (Debian: apt-get install python3 python3-venv), or name yours: make install PYTHON=/path/to/python3"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
  fail "$python is $("$python" --version 2>&1), and 3.11 or newer is needed. Name a newer one: make install PYTHON=python3.12"
"$python" -c 'import venv, ensurepip' 2>/dev/null ||
  fail "$python has no venv. Install it (Debian: apt-get install python3-venv) and run the same command again."
echo "mcpmeter: making $folder with $("$python" --version)"
"$python" -m venv "$folder"
