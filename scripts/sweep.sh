#!/usr/bin/env bash
# Train every combination of datasets, methods, networks and seeds; --help lists the options.
# Interpreter: $PYTHON, else that of the activated environment.
export PYTHON=${PYTHON:-python}
exec "$PYTHON" "$(dirname "$0")/sweep.py" "$@"
