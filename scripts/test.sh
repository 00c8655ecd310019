#!/usr/bin/env bash
# Style and tests. `--all` adds the slow tests; other arguments go to pytest.
set -euo pipefail
python=$(bash "$(dirname "$0")/setup.sh")
cd "$(dirname "$0")/.."
"$python" -c 'import hypothesis, pytest, xdist; from importlib.metadata import version; version("ruff")' 2>/dev/null ||
  "$python" -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
"$python" -m ruff check .
"$python" -m ruff format --check .
selection=(-m "not slow")
if [ "${1:-}" = --all ]; then
  selection=()
  shift
fi
export OMP_NUM_THREADS=1 # one thread for each of xdist's workers
exec "$python" -m pytest -n auto ${selection[@]+"${selection[@]}"} "$@"
