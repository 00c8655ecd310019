#!/usr/bin/env bash
# Find or create an environment with all required packages; print the path of its interpreter (the log goes to stderr).
#   bash scripts/setup.sh                      the activated environment, else .venv, created if it does not exist
#   PYTHON=python3.12 bash scripts/setup.sh    this interpreter if it has all packages, else .venv-3.12
set -euo pipefail
unset CDPATH # with it cd prints
case ${PYTHON:-} in /*) ;; */*) PYTHON=$PWD/$PYTHON ;; esac
cd "$(dirname "$0")/.."
check() { "$1" scripts/check_environment.py; }
check_version() { "$1" -c 'import utils' || { echo "error: set PYTHON to Python 3.10 or later" >&2; exit 2; }; }

activated=${VIRTUAL_ENV:-}
[ "${CONDA_DEFAULT_ENV:-base}" = base ] || activated=${activated:-${CONDA_PREFIX:-}} # never install into conda's base
environment=.venv
if [ -n "${PYTHON:-}" ]; then
  if check "$PYTHON" 2>/dev/null; then
    command -v "$PYTHON"
    exit
  fi
  check_version "$PYTHON"
  environment=.venv-$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
elif [ -n "$activated" ]; then
  environment=$activated
fi
if [ ! -x "$environment/bin/python" ]; then
  base=${PYTHON:-python3}
  check_version "$base"
  for link in "$environment"/bin/python*; do # venv would keep links to an interpreter that is gone
    [ -e "$link" ] || rm -f "$link"
  done
  # Without the package python3-venv this fails halfway; without an interpreter, the next call creates it again.
  "$base" -m venv "$environment" >&2 || { rm -f "$environment/bin/python"; exit 1; }
fi
python=$(cd "$environment" && pwd)/bin/python
if ! problem=$(check "$python" 2>&1); then
  echo "$python: $problem; installing requirements.txt (PyTorch is large: a few minutes)" >&2
  "$python" -m pip install --quiet --disable-pip-version-check -r requirements.txt >&2
  check "$python" || { echo "setup failed, see the line above" >&2; exit 1; }
fi
echo "$python"
