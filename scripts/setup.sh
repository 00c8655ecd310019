#!/usr/bin/env bash
# Finds or makes an environment that can run the project, and prints its interpreter (all else goes to stderr).
#   bash scripts/setup.sh                      an activated environment, else .venv, made and filled where needed
#   PYTHON=python3.12 bash scripts/setup.sh    another interpreter: used as it is if it has everything, else for an
#                                              environment of its own, .venv-3.12
set -euo pipefail
cd "$(dirname "$0")/.."
check() { "$1" scripts/check_environment.py; }

activated=${VIRTUAL_ENV:-}
[ "${CONDA_DEFAULT_ENV:-base}" = base ] || activated=${activated:-${CONDA_PREFIX:-}}  # conda's base is nobody's project
environment=.venv
if [ -n "${PYTHON:-}" ]; then
  if check "$PYTHON" 2>/dev/null; then
    command -v "$PYTHON"
    exit
  fi
  environment=.venv-$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
elif [ -n "$activated" ]; then
  environment=$activated
fi
if [ ! -x "$environment/bin/python" ]; then
  base=${PYTHON:-python3}
  [ "$("$base" -c 'import sys; print(sys.version_info >= (3, 10))')" = True ] || { check "$base"; exit 1; }
  "$base" -m venv "$environment" >&2
fi
python=$(cd "$environment" && pwd)/bin/python
if ! missing=$(check "$python" 2>&1); then
  echo "$python: $missing; installing requirements.txt (PyTorch is large: a few minutes)" >&2
  "$python" -m pip install --quiet --disable-pip-version-check -r requirements.txt >&2
  check "$python" || { echo "setup failed: the line above says why" >&2; exit 1; }
fi
echo "$python"
