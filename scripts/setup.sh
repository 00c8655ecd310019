#!/usr/bin/env bash
# Finds or makes an environment that can run the project, and prints its interpreter (all else goes to stderr).
#   bash scripts/setup.sh                an activated environment, else .venv, made and filled where needed
#   PYTHON=python3.12 bash scripts/setup.sh    another interpreter: used as it is if it has everything, else for .venv
set -euo pipefail
cd "$(dirname "$0")/.."
check() { "$1" scripts/check_environment.py; }

if [ -n "${PYTHON:-}" ] && check "$PYTHON" 2>/dev/null; then
  command -v "$PYTHON"
  exit
fi
activated=${VIRTUAL_ENV:-}
[ "${CONDA_DEFAULT_ENV:-base}" = base ] || activated=${activated:-${CONDA_PREFIX:-}}  # conda's base is nobody's project
if [ -z "${PYTHON:-}" ] && [ -n "$activated" ]; then
  python=$(command -v python)
else
  [ -x .venv/bin/python ] || "${PYTHON:-python3}" -m venv .venv >&2
  python=$PWD/.venv/bin/python
fi
if ! check "$python" 2>/dev/null; then
  echo "installing requirements.txt for $python (PyTorch is large: a few minutes)" >&2
  "$python" -m pip install --quiet --disable-pip-version-check -r requirements.txt >&2
  check "$python" || { echo "setup failed: the line above says why" >&2; exit 1; }
fi
echo "$python"
