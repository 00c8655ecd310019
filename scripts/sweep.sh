#!/usr/bin/env bash
# Train every combination of datasets, methods, networks and seeds; --help lists the options.
# Interpreter: $PYTHON, else that of the activated environment (conda's base does not count), else .venv, else python.
set -euo pipefail
unset CDPATH # with it cd prints

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if [ "$repository" -ef . ]; then prefix=; else prefix=$repository/; fi
activated=${VIRTUAL_ENV:-}
[ "${CONDA_DEFAULT_ENV:-base}" = base ] || activated=${activated:-${CONDA_PREFIX:-}}
if [ -z "${PYTHON:-}$activated" ] && [ -x "${prefix}.venv/bin/python" ]; then
  PYTHON=${prefix}.venv/bin/python
fi
export PYTHON=${PYTHON:-python}
if ! command -v "$PYTHON" >/dev/null; then
  echo "error: $PYTHON: not found; activate an environment or set PYTHON" >&2
  exit 2
fi
exec "$PYTHON" "${prefix}scripts/sweep.py" "$@"
